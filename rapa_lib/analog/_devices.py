"""Cross-points: drawing their parameters, and moving their weights by pulses."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rapa_lib._seeds import seeded_generator
from rapa_lib.analog._config import ConstantStepDevice, SoftBoundsDevice
from rapa_lib.analog._pulses import Counts, Trains, _bits

# Where steps depend on the weight the order of pulses matters: a mini-batch is applied in so many
# parts, one after another.
SECTIONS = 8


class CrossPoints(NamedTuple):
    """Parameters of every device, each of the shape of the weights.

    Args:
        step_up, step_down: size of a pulse, at weight zero.
        w_max, w_min: the bounds.
    """

    step_up: Tensor
    step_down: Tensor
    w_max: Tensor
    w_min: Tensor


def draw_devices(
    device: ConstantStepDevice, shape: tuple[int, ...], seed: int, like: Tensor
) -> CrossPoints:
    """Draw devices of the type and on the device of ``like``: the same for the same seed."""
    generator = seeded_generator(seed, like.device)
    normal = partial(torch.randn, shape, generator=generator, dtype=like.dtype, device=like.device)
    spread = 1 + device.dw_min_dtod * normal()
    asymmetry = device.up_down + device.up_down_dtod * normal()
    return CrossPoints(
        device.dw_min * (spread + asymmetry).abs(),
        device.dw_min * (spread - asymmetry).abs(),
        device.w_max * (1 + device.w_max_dtod * normal()).abs(),
        device.w_min * (1 + device.w_min_dtod * normal()).abs(),
    )


def steps_at(
    weight: Tensor, points: CrossPoints, device: ConstantStepDevice
) -> tuple[Tensor, Tensor]:
    """The sizes of one pulse up and one down at these weights."""
    if not isinstance(device, SoftBoundsDevice):
        return points.step_up, points.step_down
    tiny = torch.finfo(weight.dtype).tiny
    up = points.step_up * (1 - weight / points.w_max.clamp_min(tiny))
    down = points.step_down * (1 - weight / points.w_min.clamp_max(-tiny))
    return up, down


def n_sections(device: ConstantStepDevice) -> int:
    """In how many parts, one after another, a mini-batch has to be applied."""
    return SECTIONS if isinstance(device, SoftBoundsDevice) else 1


def move(weight: Tensor, counts: Counts, points: CrossPoints, device: ConstantStepDevice) -> None:
    """Apply counted pulses to weights, in place; noise is drawn for their sum.

    Without weight-dependent steps a mini-batch's pulses add up in any order, except at bounds,
    where they are cut off once at the end. With soft bounds each pulse pulls the weight a share
    towards its bound; the pulses up and down of a part are taken as evenly mixed.
    """
    up, down = steps_at(weight, points, device)
    variance = (counts.up * up**2 + counts.down * down**2).mul_(device.dw_min_std**2)
    if counts.up_var is not None and counts.down_var is not None:
        variance += counts.up_var * up**2 + counts.down_var * down**2
    if isinstance(device, SoftBoundsDevice):
        to_max = counts.up * _pull(points.step_up, points.w_max)
        to_min = counts.down * _pull(points.step_down, points.w_min)
        total = to_max + to_min
        goal = (to_max * points.w_max + to_min * points.w_min) / total.clamp_min(1e-30)
        weight.add_((goal - weight).mul_(-torch.expm1(-total)))
    else:
        weight.addcmul_(counts.up, up).addcmul_(counts.down, down, value=-1)
    weight.addcmul_(variance.clamp_min_(0).sqrt_(), torch.randn_like(weight))
    clip(weight, points)


def pulse_by_pulse(
    weight: Tensor, trains: Trains, points: CrossPoints, device: ConstantStepDevice
) -> None:
    """The definition: apply trains of blocks (T, size, …) one patch and one slot after another."""
    for patch in range(trains.x.shape[1]):
        x, d, bl = (t[:, patch : patch + 1] for t in trains)
        n_slots = int(bl.max())
        x, d = _bits(x, n_slots)[:, 0], _bits(d, n_slots)[:, 0]
        for slot in range(n_slots):
            pulse = -x[:, slot, :, None] * d[:, slot, None, :] * (slot < bl)
            fire(weight, pulse, points, device)


def fire(weight: Tensor, pulse: Tensor, points: CrossPoints, device: ConstantStepDevice) -> None:
    """Let the devices step in one slot: up where pulse is 1, down where it is −1, in place."""
    up, down = steps_at(weight, points, device)
    step = torch.where(pulse > 0, up, down) * pulse
    weight += step * (1 + device.dw_min_std * torch.randn_like(weight))
    clip(weight, points)


def clip(weight: Tensor, points: CrossPoints) -> None:
    """Keep every weight inside the bounds of its device, in place."""
    torch.minimum(torch.maximum(weight, points.w_min, out=weight), points.w_max, out=weight)


def _pull(step: Tensor, bound: Tensor) -> Tensor:
    """The rate −ln(1 − step / |bound|) at which pulses pull a weight to its bound."""
    share = step / bound.abs().clamp_min(torch.finfo(step.dtype).tiny)
    return -torch.log1p(-share.clamp_max(1 - 1e-6))
