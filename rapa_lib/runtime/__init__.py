"""Run time on analog arrays: how long a network takes, on how many arrays, and how to share them.

An analog array computes a matrix-vector product in constant time whatever its size, so a layer
takes as many products one after the other as it has patches; RAPA divides them among its tiles.
"""

from rapa_lib.runtime._arrays import SCHEDULES, AnalogArrays, LayerRunTime, RunTime, run_time
from rapa_lib.runtime._averaging import (
    AVERAGING_COLUMNS,
    WRITES,
    AveragingSide,
    LayerAveraging,
    NetworkAveraging,
    averaging_cost,
    averaging_table,
)
from rapa_lib.runtime._balance import balance_tiles, reachable_speedup
from rapa_lib.runtime._cost_tables import (
    BANDWIDTHS,
    TOLERANCE,
    cost_table,
    is_proportional,
    layer_costs,
    tiles_within,
)
from rapa_lib.runtime._costs import (
    ACCESSES,
    LIMITS,
    PACKINGS,
    DigitalSide,
    LayerCost,
    NetworkCost,
    network_cost,
    stale_images,
)
from rapa_lib.runtime._digital import roofline_table
from rapa_lib.runtime._layers import LayerShape, NetworkLayers, Uncounted, count_layers
from rapa_lib.runtime._rivals import PERFORATED_DENSE, RIVAL_COLUMNS, rival_table

__all__ = [
    "ACCESSES",
    "AVERAGING_COLUMNS",
    "BANDWIDTHS",
    "LIMITS",
    "PACKINGS",
    "PERFORATED_DENSE",
    "RIVAL_COLUMNS",
    "SCHEDULES",
    "TOLERANCE",
    "WRITES",
    "AnalogArrays",
    "AveragingSide",
    "DigitalSide",
    "LayerAveraging",
    "LayerCost",
    "LayerRunTime",
    "LayerShape",
    "NetworkAveraging",
    "NetworkCost",
    "NetworkLayers",
    "RunTime",
    "Uncounted",
    "averaging_cost",
    "averaging_table",
    "balance_tiles",
    "cost_table",
    "count_layers",
    "is_proportional",
    "layer_costs",
    "network_cost",
    "reachable_speedup",
    "rival_table",
    "roofline_table",
    "run_time",
    "stale_images",
    "tiles_within",
]
