"""Cross-points: drawing their parameters, and moving their weights by pulses."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rapa_lib._seeds import seeded_generator
from rapa_lib.analog._device_config import (
    ExpStepDevice,
    LinearStepDevice,
    PowStepDevice,
    PulsedDevice,
    SoftBoundsDevice,
    SoftBoundsReferenceDevice,
)
from rapa_lib.analog._pulses import Counts, Trains, _bits

# Where steps depend on the weight the order of pulses matters: a mini-batch is applied in so many
# parts, one after another; within a part each device's pulses come in random order.
SECTIONS = 8


class CrossPoints(NamedTuple):
    """Parameters of every device, each of the shape of the weights; None: devices have none.

    Args:
        step_up, step_down: size of a pulse, at weight zero.
        w_max, w_min: the bounds of what is read.
        shape_up, shape_down: how steps depend on the weight: the slopes of linear steps, the
            exponents of power-law steps.
        reference: what is subtracted when a weight is read.
        decay: factor on a weight in each mini-batch.
        nu: exponent of its drift.
    """

    step_up: Tensor
    step_down: Tensor
    w_max: Tensor
    w_min: Tensor
    shape_up: Tensor | None = None
    shape_down: Tensor | None = None
    reference: Tensor | None = None
    decay: Tensor | None = None
    nu: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "CrossPoints":
        """The same with every tensor changed."""
        return CrossPoints(*(None if p is None else change(p) for p in self))  # type: ignore[arg-type]

    def present(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {name: values for name, values in self._asdict().items() if values is not None}


def draw_devices(
    device: PulsedDevice, shape: tuple[int, ...], seed: int, like: Tensor
) -> CrossPoints:
    """Draw devices of the type and on the device of ``like``: the same for the same seed."""
    generator = seeded_generator(seed, like.device)
    normal = partial(torch.randn, shape, generator=generator, dtype=like.dtype, device=like.device)
    spread = 1 + device.dw_min_dtod * normal()
    asymmetry = device.up_down_dtod * normal()
    points = CrossPoints(
        device.dw_min * (spread + (asymmetry + min(device.up_down, 0.0))).abs(),
        device.dw_min * (spread - (asymmetry + max(device.up_down, 0.0))).abs(),
        device.w_max * (1 + device.w_max_dtod * normal()).abs(),
        device.w_min * (1 + device.w_min_dtod * normal()).abs(),
    )
    points = _with_shapes(points, device, normal)
    if device.lifetime:
        life = device.lifetime * (1 + device.lifetime_dtod * normal())
        points = points._replace(decay=torch.where(life > 1, 1 - 1 / life, 0))
    if device.drift_nu:
        points = points._replace(nu=device.drift_nu * (1 + device.drift_nu_dtod * normal()))
    return points


def _with_shapes(
    points: CrossPoints, device: PulsedDevice, normal: Callable[[], Tensor]
) -> CrossPoints:
    """Draw how steps depend on the weight."""
    up, down, w_max, w_min = points[:4]
    if isinstance(device, LinearStepDevice):
        gammas = [
            gamma + dtod * normal()
            for gamma, dtod in (
                (device.gamma_up, device.gamma_up_dtod),
                (device.gamma_down, device.gamma_down_dtod),
            )
        ]
        if not device.allow_increasing:
            gammas = [gamma.abs() for gamma in gammas]
        ends = (device.w_max, device.w_min) if device.mean_bound_reference else (w_max, w_min)
        return points._replace(
            shape_up=-gammas[0] * up / ends[0], shape_down=-gammas[1] * down / ends[1]
        )
    if isinstance(device, PowStepDevice):
        gain = 1 + device.pow_gamma_dtod * normal()
        asymmetry = device.pow_up_down_dtod * normal()
        return points._replace(
            shape_up=device.pow_gamma * (gain + asymmetry + min(device.pow_up_down, 0.0)).abs(),
            shape_down=device.pow_gamma * (gain - asymmetry - max(device.pow_up_down, 0.0)).abs(),
        )
    if not isinstance(device, SoftBoundsDevice):
        return points
    if isinstance(device, SoftBoundsReferenceDevice):
        w_min = w_min / (1 + device.slope_down_dtod * normal()).abs()
        w_max = w_max / (1 + device.slope_up_dtod * normal()).abs()
    tiny = torch.finfo(w_max.dtype).tiny
    slopes = -up / w_max.clamp_min(tiny), -down / w_min.clamp_max(-tiny)
    points = points._replace(shape_up=slopes[0], shape_down=slopes[1])
    if isinstance(device, SoftBoundsReferenceDevice):
        reference = device.reference_mean + device.reference_std * normal()
        if device.subtract_symmetry_point:
            reference = reference + (up - down) / (slopes[1] - slopes[0])
        points = points._replace(
            reference=reference, w_max=w_max - reference, w_min=w_min - reference
        )
    return points


def steps_at(weight: Tensor, points: CrossPoints, device: PulsedDevice) -> tuple[Tensor, Tensor]:
    """The sizes of one pulse up and one down at these weights."""
    up, down, w_max, w_min = points[:4]
    if isinstance(device, ExpStepDevice):
        z = 2 * device.a * weight / (w_max - w_min) + device.b
        return (
            up * (1 - device.A_up * torch.exp(device.gamma_up * z)).clamp_min(0),
            down * (1 - device.A_down * torch.exp(-device.gamma_down * z)).clamp_min(0),
        )
    if points.shape_up is None or points.shape_down is None:
        return up, down
    if isinstance(device, PowStepDevice):
        share = ((w_max - weight) / (w_max - w_min)).clamp(0, 1)
        return up * share**points.shape_up, down * (1 - share) ** points.shape_down
    seen = weight if points.reference is None else weight + points.reference
    return up + points.shape_up * seen, down + points.shape_down * seen


def _deviation(
    step: Tensor, at_zero: Tensor, weight: Tensor, device: PulsedDevice
) -> Tensor | float:
    """Standard deviation of a step from pulse to pulse."""
    if not getattr(device, "mult_noise", True):
        return device.dw_min_std * at_zero
    if isinstance(device, ExpStepDevice) and (device.dw_min_std_add or device.dw_min_std_slope):
        more = device.dw_min_std_add + device.dw_min_std_slope * weight.abs()
        return device.dw_min_std * (step.abs() + more)
    return device.dw_min_std * step


def n_sections(device: PulsedDevice) -> int:
    """In how many parts, one after another, a mini-batch has to be applied."""
    return SECTIONS if device.order_matters else 1


def move(weight: Tensor, counts: Counts, points: CrossPoints, device: PulsedDevice) -> None:
    """Apply counted pulses to weights, in place.

    Where steps do not depend on the weight pulses add up in any order, except at bounds, where
    they are cut off once at the end, and noise is drawn for their sum. Else :func:`scan`, which
    needs whole numbers of them.
    """
    if device.order_matters:
        scan(weight, counts, points, device)
        return
    up, down = points.step_up, points.step_down
    variance = (counts.up * up**2 + counts.down * down**2).mul_(device.dw_min_std**2)
    weight.addcmul_(counts.up, up).addcmul_(counts.down, down, value=-1)
    weight.addcmul_(variance.clamp_min_(0).sqrt_(), torch.randn_like(weight))
    clip(weight, points)


def scan(weight: Tensor, counts: Counts, points: CrossPoints, device: PulsedDevice) -> None:
    """Apply whole numbers of pulses one after another, each device's in random order, in place."""
    up, down = counts.up.clone(), counts.down.clone()
    for _ in range(int((up + down).max()) if up.numel() else 0):
        left = up + down
        goes_up = torch.rand_like(weight) * left < up
        goes_down = (left > 0) & ~goes_up
        up -= goes_up.to(up.dtype)
        down -= goes_down.to(down.dtype)
        pulse(weight, goes_up.to(weight.dtype) - goes_down.to(weight.dtype), points, device)


def pulse(weight: Tensor, signs: Tensor, points: CrossPoints, device: PulsedDevice) -> None:
    """Send at most one pulse to every device, up (1), down (−1) or none (0), in place."""
    up, down = steps_at(weight, points, device)
    step = torch.where(signs > 0, up, down)
    at_zero = torch.where(signs > 0, points.step_up, points.step_down)
    noise = torch.randn_like(weight) * _deviation(step, at_zero, weight, device)
    weight += signs * (step + noise)
    clip(weight, points)


def pulse_by_pulse(
    weight: Tensor, trains: Trains, points: CrossPoints, device: PulsedDevice
) -> Tensor:
    """The definition: apply trains of blocks (T, size, …) one patch and one slot after another.

    Returns which devices got a pulse.
    """
    reached = torch.zeros_like(weight, dtype=torch.bool)
    for patch in range(trains.x.shape[1]):
        x, d, bl = (t[:, patch : patch + 1] for t in trains)
        n_slots = int(bl.max())
        x, d = _bits(x, n_slots)[:, 0], _bits(d, n_slots)[:, 0]
        for slot in range(n_slots):
            signs = -x[:, slot, :, None] * d[:, slot, None, :] * (slot < bl)
            reached |= signs != 0
            pulse(weight, signs, points, device)
    return reached


def clip(weight: Tensor, points: CrossPoints) -> None:
    """Keep every weight inside the bounds of its device, in place."""
    torch.minimum(torch.maximum(weight, points.w_min, out=weight), points.w_max, out=weight)
