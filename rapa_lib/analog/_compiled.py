"""The analog products and pulsed updates compiled for the CPU at hand: float32.

``kernels.cpp`` is compiled and kept as :mod:`rapa_lib.layers.products.compiled` does it, which also
says when it serves. What is handed over as a raw pointer was checked by
:func:`rapa_lib.analog._tile_checks.check_tiles`; here it is laid out as the source reads it. Else
:mod:`rapa_lib.analog._products` and :mod:`rapa_lib.analog._pulses` do the
work in PyTorch; both follow :func:`torch.manual_seed`, but draw other numbers.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapa_lib.analog._device_config import ExpStepDevice, PowStepDevice, PulsedDevice
from rapa_lib.analog._devices import CrossPoints
from rapa_lib.analog._io_config import IOParameters, UpdateParameters
from rapa_lib.analog._periphery import NotFiniteError
from rapa_lib.analog._pulses import Counts
from rapa_lib.layers.products import compiled
from rapa_lib.layers.products.compiled import _layer, _rows
from rapa_lib.layers.products.geometry import Geometry, pixels_of

_SOURCE = Path(__file__).with_name("kernels.cpp")
_MOST_SLOTS = 31  # a train is a word, less the sign


class _Periphery(ctypes.Structure):
    """``struct Periphery`` of the source."""

    _fields_ = [
        (name, ctypes.c_double)
        for name in (
            "inp_bound", "inp_step", "inp_noise", "out_bound", "out_step", "out_noise", "w_noise",
            "bm_limit",
        )
    ] + [("abs_max", ctypes.c_int64), ("seed", ctypes.c_uint64)]  # fmt: skip

    @classmethod
    def of(cls, io: IOParameters) -> "_Periphery":
        steps = (2 * io.inp_bound * io.inp_res, 2 * io.out_bound * io.out_res)
        inp_step, out_step = (step if step == step else 0 for step in steps)  # inf · 0 is no step
        return cls(
            io.inp_bound, inp_step, io.inp_noise, io.out_bound, out_step, io.out_noise, io.w_noise,
            io.bm_limit, io.noise_management == "abs_max", _seed(),
        )  # fmt: skip


_KINDS = {ExpStepDevice: 2, PowStepDevice: 3}  # 0: constant steps, 1: linear ones


class _Steps(ctypes.Structure):
    """``struct Steps`` of the source."""

    _NUMBERS = (
        "dw_min_std", "a", "b", "A_up", "A_down", "gamma_up", "gamma_down", "dw_min_std_add",
        "dw_min_std_slope", "write_noise",
    )  # fmt: skip
    _fields_ = [
        *((name, ctypes.c_double) for name in _NUMBERS),
        *((name, ctypes.c_int64) for name in ("kind", "additive")),
    ]

    @classmethod
    def of(cls, device: PulsedDevice) -> "_Steps":
        numbers = [getattr(device, name, 0.0) for name in cls._NUMBERS]
        kind = _KINDS.get(type(device), int(device.order_matters))
        return cls(*numbers, kind, not getattr(device, "mult_noise", True))


class _Pulses(ctypes.Structure):
    """``struct Pulses`` of the source."""

    _fields_ = [
        *((name, ctypes.c_double) for name in ("rate", "most", "dw_min_std")),
        *((name, ctypes.c_int64) for name in ("update_management", "update_bl_management")),
        ("seed", ctypes.c_uint64),
    ]

    @classmethod
    def of(cls, update: UpdateParameters, device: PulsedDevice, lr: float) -> "_Pulses":
        return cls(
            lr / device.granularity, update.desired_bl, device.dw_min_std,
            update.update_management, update.update_bl_management, _seed(),
        )  # fmt: skip


def serves(tensor: Tensor) -> bool:
    """Whether the compiled products take tensors of this type and device."""
    return (
        tensor.dtype == torch.float32
        and compiled.serves(tensor)
        and compiled._library(_SOURCE) is not None
    )


def serves_update(tensor: Tensor, update: UpdateParameters) -> bool:
    """Whether the compiled pulses take this kind of update as well."""
    return serves(tensor) and update.method == "exact" and update.desired_bl <= _MOST_SLOTS


def forward(
    x: Tensor,
    matrices: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    geometry: Geometry,
    io: IOParameters,
) -> Tensor:
    """See :func:`rapa_lib.analog._products.forward`."""
    y = x.new_empty(len(x), *geometry.output, matrices.shape[2])
    assignment = _rows(assignment)
    matrices, bias = matrices.contiguous(), None if bias is None else bias.contiguous()
    layer = _layer(x.shape, matrices.shape[2], len(matrices), assignment, geometry, x.stride())
    _call("analog_forward", layer, (_Periphery.of(io),), x, matrices, bias, assignment, y)
    return y.permute(0, 3, 1, 2)


def backward(
    grad: Tensor,
    matrices: Tensor,
    assignment: Tensor,
    input_size: tuple[int, int],
    geometry: Geometry,
    io: IOParameters,
) -> Tensor:
    """See :func:`rapa_lib.analog._products.backward`."""
    matrices = matrices.contiguous()
    channels = matrices.shape[1] // (geometry.kernel[0] * geometry.kernel[1])
    by_x = grad.new_empty(len(grad), *input_size, channels)
    assignment = _rows(assignment)
    size = (len(grad), channels, *input_size)
    layer = _layer(size, matrices.shape[2], len(matrices), assignment, geometry)
    _call(
        "analog_backward", layer, (_Periphery.of(io),), pixels_of(grad), matrices, assignment, by_x
    )
    return by_x.permute(0, 3, 1, 2)


def update(
    x: Tensor,
    d: Tensor,
    matrices: Tensor,
    assignment: Tensor,
    geometry: Geometry,
    pulses: tuple[UpdateParameters, PulsedDevice, float],
    points: CrossPoints,
    hidden: Tensor | None = None,
    signs: Tensor | None = None,
) -> None:
    """Send the pulses of patches of x, errors d and a rate.

    Pulses move ``hidden``, if it is there, and write it with noise to the matrices. ``signs`` of
    every tile's inputs, (T, K), turn pulses round.
    """
    assignment = _rows(assignment)
    layer = _layer(x.shape, d.shape[1], len(matrices), assignment, geometry, x.stride())
    where = (x, pixels_of(d), assignment, None if signs is None else signs.contiguous())
    with _laid_out(matrices, hidden) as moved:
        _call(
            "pulsed_update", layer, (_Pulses.of(*pulses), _Steps.of(pulses[1])), *where, *moved,
            *_devices(points),
        )  # fmt: skip


def scan(
    matrices: Tensor,
    counts: Counts,
    points: CrossPoints,
    device: PulsedDevice,
    hidden: Tensor | None = None,
) -> None:
    """Move devices by whole numbers of pulses; see :func:`rapa_lib.analog._devices.scan`."""
    numbers = [c.contiguous() for c in counts]
    size = (ctypes.c_int64(matrices.numel()), ctypes.c_uint64(_seed()))
    with _laid_out(matrices, hidden) as moved:
        _run("scan_pulses", (_Steps.of(device), *size), *numbers, *moved, *_devices(points))


@contextmanager
def _laid_out(matrices: Tensor, hidden: Tensor | None) -> Iterator[list[Tensor | None]]:
    """Contiguous tensors in place of what is moved and what is read of it, copied back at the end.

    What is read is None where it is what is moved.
    """
    given = [matrices] if hidden is None else [hidden, matrices]
    ours = [tensor.contiguous() for tensor in given]
    yield [*ours, None][:2]
    for tensor, laid_out in zip(given, ours, strict=True):
        if laid_out is not tensor:
            tensor.copy_(laid_out)


def _devices(points: CrossPoints) -> list[Tensor | None]:
    """The devices' parameters as the source takes them, contiguous."""
    return [None if values is None else values.contiguous() for values in points[:7]]


def _call(
    name: str,
    layer: ctypes.Structure,
    parameters: Sequence[ctypes.Structure],
    *tensors: Tensor | None,
) -> None:
    if not _run(name, (layer, *parameters), *tensors):
        raise NotFiniteError(
            f"{'error' if name == 'analog_backward' else 'input'}: got numbers that are not "
            "finite, allowed: finite ones"
        )


def _run(name: str, arguments: Sequence[Any], *tensors: Tensor | None) -> int:
    """Call a function of the source; structures go by address, tensors by that of their numbers."""
    given = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
    pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors]
    return int(getattr(compiled._library(_SOURCE), f"rapa_{name}")(*given, *pointers))


def _seed() -> int:
    """A seed from PyTorch's generator."""
    return int(torch.randint(2**62, (), device="cpu"))
