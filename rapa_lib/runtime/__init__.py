"""Run time on analog arrays: how long a network takes, on how many arrays, and how to share them.

An analog array computes a matrix-vector product in constant time whatever its size, so a layer
takes as many products one after the other as it has patches; RAPA divides them among its tiles.
"""

from rapa_lib.runtime._arrays import SCHEDULES, AnalogArrays, LayerRunTime, RunTime, run_time
from rapa_lib.runtime._balance import balance_tiles, reachable_speedup
from rapa_lib.runtime._digital import roofline_table
from rapa_lib.runtime._layers import LayerShape, NetworkLayers, Uncounted, count_layers

__all__ = [
    "SCHEDULES",
    "AnalogArrays",
    "LayerRunTime",
    "LayerShape",
    "NetworkLayers",
    "RunTime",
    "Uncounted",
    "balance_tiles",
    "count_layers",
    "reachable_speedup",
    "roofline_table",
    "run_time",
]
