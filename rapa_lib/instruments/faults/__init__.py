"""Broken tiles: drawn, imposed on a network for a while, and repaired."""

from rapa_lib.instruments.faults.broken import tile_faults
from rapa_lib.instruments.faults.deaths import TileDeaths, dying_tiles
from rapa_lib.instruments.faults.draw import FAULT_KINDS, TileFault, draw_faults
from rapa_lib.instruments.faults.repair import fine_tune, repair_by_copy

__all__ = [
    "FAULT_KINDS",
    "TileDeaths",
    "TileFault",
    "draw_faults",
    "dying_tiles",
    "fine_tune",
    "repair_by_copy",
    "tile_faults",
]
