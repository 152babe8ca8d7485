"""Analog tiles: noisy, quantized, bounded products and stochastic pulsed updates.

A batched simulator of resistive processing units: all tiles of a layer in a few tensor operations,
where IBM's aihwkit, whose statistics it reproduces, walks tile by tile and patch by patch.
Configurations are in :class:`TileConfig`, with the presets :func:`ideal`, :func:`rpu_baseline` and
:func:`reram`.

    network = convert_to_analog(RapaConvNet(), rpu_baseline())
    optimizer = AnalogSGD(network, lr=0.01)
    cross_entropy(network(images), labels).backward()
    optimizer.step()

``convert_to_analog(network, config)`` of a trained network is inference on analog tiles;
``config.hardware_aware()`` in place of ``config`` is hardware-aware training.
"""

from rapa_lib.analog._averaging import WRITES, average_tiles, read_tiles
from rapa_lib.analog._compound_config import (
    COMPOUNDS,
    BufferedTransferCompound,
    ChoppedTransferCompound,
    MixedPrecisionCompound,
    TransferCompound,
)
from rapa_lib.analog._config import TileConfig
from rapa_lib.analog._convert import convert_to_analog, drift
from rapa_lib.analog._device_config import (
    DEVICES,
    ConstantStepDevice,
    ExpStepDevice,
    IdealDevice,
    LinearStepDevice,
    PowStepDevice,
    PulsedDevice,
    SoftBoundsDevice,
    SoftBoundsReferenceDevice,
)
from rapa_lib.analog._io_config import IOParameters, UpdateParameters, resolution
from rapa_lib.analog._layers import AnalogLinear, AnalogRapaConv2d
from rapa_lib.analog._mapping import MappingParameters
from rapa_lib.analog._optimizer import AnalogSGD
from rapa_lib.analog._pcm import PCMLikeNoiseModel
from rapa_lib.analog._periphery import NotFiniteError
from rapa_lib.analog._presets import PRESET_DEVICES, PRESETS, ideal, reram, rpu_baseline
from rapa_lib.analog._tile_array import AnalogTileArray
from rapa_lib.analog._tile_grid import AnalogTileGrid
from rapa_lib.analog._trace import PulseTrace, trace_update

__all__ = [
    "COMPOUNDS",
    "DEVICES",
    "PRESETS",
    "PRESET_DEVICES",
    "WRITES",
    "AnalogLinear",
    "AnalogRapaConv2d",
    "AnalogSGD",
    "AnalogTileArray",
    "AnalogTileGrid",
    "BufferedTransferCompound",
    "ChoppedTransferCompound",
    "ConstantStepDevice",
    "ExpStepDevice",
    "IOParameters",
    "IdealDevice",
    "LinearStepDevice",
    "MappingParameters",
    "MixedPrecisionCompound",
    "NotFiniteError",
    "PCMLikeNoiseModel",
    "PowStepDevice",
    "PulseTrace",
    "PulsedDevice",
    "SoftBoundsDevice",
    "SoftBoundsReferenceDevice",
    "TileConfig",
    "TransferCompound",
    "UpdateParameters",
    "average_tiles",
    "convert_to_analog",
    "drift",
    "ideal",
    "read_tiles",
    "reram",
    "resolution",
    "rpu_baseline",
    "trace_update",
]
