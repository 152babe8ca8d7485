"""The study's network, and whole models of any kind: replicated over tiles and merged again."""

from rapa_lib.networks.convert import convert_to_rapa, count_patches, merge_tiles
from rapa_lib.networks.kinds import CONTROLS, Kind, kind_names, network_kind
from rapa_lib.networks.network import RapaConvNet, count_parameters
from rapa_lib.networks.pooling import MixedPool2d
from rapa_lib.networks.shape import NetworkShape

__all__ = [
    "CONTROLS",
    "Kind",
    "MixedPool2d",
    "NetworkShape",
    "RapaConvNet",
    "convert_to_rapa",
    "count_parameters",
    "count_patches",
    "kind_names",
    "merge_tiles",
    "network_kind",
]
