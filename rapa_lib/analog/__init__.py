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

from rapa_lib.analog._config import (
    PRESETS,
    ConstantStepDevice,
    IdealDevice,
    IOParameters,
    SoftBoundsDevice,
    TileConfig,
    UpdateParameters,
    ideal,
    reram,
    resolution,
    rpu_baseline,
)
from rapa_lib.analog._layers import AnalogLinear, AnalogRapaConv2d, convert_to_analog
from rapa_lib.analog._optimizer import AnalogSGD
from rapa_lib.analog._periphery import NotFiniteError
from rapa_lib.analog._tile_array import AnalogTileArray
from rapa_lib.analog._trace import PulseTrace, trace_update

__all__ = [
    "PRESETS",
    "AnalogLinear",
    "AnalogRapaConv2d",
    "AnalogSGD",
    "AnalogTileArray",
    "ConstantStepDevice",
    "IOParameters",
    "IdealDevice",
    "NotFiniteError",
    "PulseTrace",
    "SoftBoundsDevice",
    "TileConfig",
    "UpdateParameters",
    "convert_to_analog",
    "ideal",
    "reram",
    "resolution",
    "rpu_baseline",
    "trace_update",
]
