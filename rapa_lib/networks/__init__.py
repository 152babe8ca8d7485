"""The study's network, and whole models of any kind: replicated over tiles and merged again."""

from rapa_lib.networks.convert import convert_to_rapa, count_patches, merge_tiles
from rapa_lib.networks.network import CONTROLS, MixedPool2d, RapaConvNet, count_parameters

__all__ = [
    "CONTROLS",
    "MixedPool2d",
    "RapaConvNet",
    "convert_to_rapa",
    "count_parameters",
    "count_patches",
    "merge_tiles",
]
