"""Convolutions whose patches are divided among tiles, and their controls."""

from rapa_lib.layers._patch_conv import PatchConv2d, frozen_draws
from rapa_lib.layers.conv import RapaConv2d
from rapa_lib.layers.dropout import DropoutConv2d
from rapa_lib.layers.locally_connected import LocallyConnected2d
from rapa_lib.layers.noisy import NoisyConv2d
from rapa_lib.layers.noisy_tiles import TileNoiseConv2d
from rapa_lib.layers.perforated import PerforatedConv2d
from rapa_lib.layers.tiling import TILINGS, draw_assignment, register_tiling

__all__ = [
    "TILINGS",
    "DropoutConv2d",
    "LocallyConnected2d",
    "NoisyConv2d",
    "PatchConv2d",
    "PerforatedConv2d",
    "RapaConv2d",
    "TileNoiseConv2d",
    "draw_assignment",
    "frozen_draws",
    "register_tiling",
]
