"""The drift of weights between updates: a power law of the time since a device was last moved."""

import torch
from torch import Tensor, nn

from rapa_lib.analog._devices import CrossPoints, clip

# A weight that differs by more from what drift left was moved by pulses.
_MOVED = 1e-7


class Drift(nn.Module):
    """Clocks of devices: w(t) = w₀ · (t / t₀)^−ν from t₀ on, t counted from the last pulse.

    As the weight drifter of aihwkit 1.2.0 without offsets and read noise: ν is drawn once a
    device.

    Args:
        like: the weights, (T, M, K).
        t_0: mini-batches before drift begins.
    """

    def __init__(self, like: Tensor, t_0: float) -> None:
        super().__init__()
        self.t_0 = t_0
        self.clock: Tensor
        self.register_buffer("clock", torch.zeros((), dtype=like.dtype, device=like.device))
        for name in ("start", "left", "since"):
            self.register_buffer(name, torch.zeros_like(like.detach()))

    start: Tensor
    left: Tensor
    since: Tensor

    def apply_to(self, weight: Tensor, points: CrossPoints) -> None:
        """Let one mini-batch pass, in place; weights stay inside their bounds."""
        assert points.nu is not None
        self.clock += 1 / self.t_0
        moved = (weight - self.left).abs() > _MOVED
        self.start.copy_(torch.where(moved, weight, self.start))
        self.since.copy_(torch.where(moved, self.clock, self.since))
        age = (self.clock - self.since).clamp_min(1)
        weight.copy_(torch.where(moved, weight, self.start * age**-points.nu))
        clip(weight, points)
        self.left.copy_(weight)
