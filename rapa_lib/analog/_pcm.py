"""Inference on phase-change memory: programming noise, drift, 1/f read noise, compensation.

The statistical model was fitted to a million devices: Nandakumar et al., ICECS 2019 (doi
10.1109/ICECS46596.2019.8964852); Joshi et al., Nat. Commun. 11:2473 (2020), which also has the
global compensation of drift. Numbers and names are those of aihwkit 1.2.0's ``PCMLikeNoiseModel``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rapa_lib._checks import Checked, check_real, flag, real, several

# The fits are polynomials and powers of the conductance as a share of this many µS.
_FITTED_AT = 25.0
_LEAST_SHARE = 1e-7
# A tile that reads nothing at all is not compensated without end.
_LEAST_READOUT = 1e-4


def _number(name: str, value: Any) -> float:
    return check_real(name, value)


@dataclass(frozen=True)
class PCMLikeNoiseModel(Checked):
    """Pairs of phase-change devices that hold a weight as the difference of two conductances.

    They are written once and read at a later time; no pulses train them. The largest weight of
    an array (or column, see :class:`MappingParameters`) becomes g_max.

    Args:
        prog_coeff: c₀, c₁, …: a conductance g is written with deviation Σ c_i (g / g_max)^i, in µS
            where g_max is 25 µS and in proportion to it elsewhere.
        g_max: largest conductance, µS.
        t_read: duration of a read, s; it enters the 1/f noise.
        t_0: time between writing and the first read, from which drift counts, s.
        prog_noise_scale, read_noise_scale, drift_scale: factors on programming noise, read noise
            and the exponents of drift.
        drift_compensation: multiply each array's outputs by a digital factor: the summed current of
            its devices, all inputs at one, when it was written, over that of now.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    prog_coeff: tuple[float, ...] = several((0.26348, 1.9650, -1.1731), _number, of="numbers")
    g_max: float = real(25.0, low=0, open_low=True)
    t_read: float = real(250e-9, low=0, open_low=True)
    t_0: float = real(20.0, low=0, open_low=True)
    prog_noise_scale: float = real(1.0, low=0)
    read_noise_scale: float = real(1.0, low=0)
    drift_scale: float = real(1.0, low=0)
    drift_compensation: bool = flag(True)

    def written(self, target: Tensor, normal: Callable[[], Tensor]) -> Tensor:
        """Conductances (µS) after programming noise; ``normal`` draws numbers of their shape."""
        share = target / self.g_max
        terms = [c * share**i for i, c in enumerate(self.prog_coeff)]
        sigma = torch.stack(terms).sum(0) * (self.g_max / _FITTED_AT)
        return (target + self.prog_noise_scale * sigma * normal()).clamp_min(0)

    def exponents(self, target: Tensor, normal: Callable[[], Tensor]) -> Tensor:
        """Exponents ν of the drift of devices with these target conductances."""
        size = (target / self.g_max).clamp_min(_LEAST_SHARE).log()
        mean = (-0.0155 * size + 0.0244).clamp(0.049, 0.1)
        sigma = (-0.0125 * size - 0.0059).clamp(0.008, 0.045)
        return self.drift_scale * (mean + sigma * normal()).abs()

    def read(self, written: Tensor, nu: Tensor, t: float, normal: Callable[[], Tensor]) -> Tensor:
        """Conductances t seconds after the first read: drift, and 1/f noise that has gathered."""
        age = t + self.t_0
        drifted = written * (age / self.t_0) ** -nu
        share = (written / self.g_max) ** 0.65
        relative = (0.0088 / share.clamp_min(1e-3)).clamp_max(0.2)
        sigma = relative * math.sqrt(math.log((age + self.t_read) / (2 * self.t_read)))
        return (drifted * (1 + self.read_noise_scale * sigma * normal())).clamp_min(0)


class ConductancePairs(nn.Module):
    """The devices of T arrays: what was written, and how it drifts.

    As in aihwkit 1.2.0 a reading begins from the difference that was written: its magnitude is the
    conductance of one device of the pair, in units in which the largest of the array is g_max,
    the other device is at zero. Exponents are those of the devices that were written to.

    Args:
        model: see :class:`PCMLikeNoiseModel`.
        like: the weights (T, M, K).
    """

    written: Tensor
    nu: Tensor
    baseline: Tensor
    compensation: Tensor

    def __init__(self, model: PCMLikeNoiseModel, like: Tensor) -> None:
        super().__init__()
        self.model = model
        like = like.detach()
        self.register_buffer("written", torch.zeros_like(like))
        self.register_buffer("nu", like.new_zeros(2, *like.shape))
        self.register_buffer("baseline", like.new_ones(len(like), 1))
        self.register_buffer("compensation", like.new_ones(len(like), 1))

    def write(self, weight: Tensor, generator: torch.Generator | None) -> Tensor:
        """Write weights within ±1; return what they have become."""
        target = self._pairs(weight.clamp(-1, 1))
        normal = _normal_like(target, generator)
        up, down = self.model.written(target, normal)
        self.written.copy_((up - down) / self.model.g_max)
        self.nu.copy_(self.model.exponents(target, normal))
        self.compensation.fill_(1)
        return self.written

    def drifted(self, t: float, generator: torch.Generator | None) -> Tensor:
        """The weights t seconds after the first read, with the noise of this reading."""
        largest = self.written.abs().amax((1, 2), keepdim=True)
        largest = torch.where(largest > 0, largest, 1)
        pairs = self._pairs(self.written / largest)
        up, down = self.model.read(pairs, self.nu, t, _normal_like(pairs, generator))
        return (up - down) * (largest / self.model.g_max)

    def _pairs(self, weight: Tensor) -> Tensor:
        """Conductances (2, T, M, K) whose difference is a weight within ±1."""
        return torch.stack([weight, -weight]).clamp_min(0) * self.model.g_max

    def remember(self, readout: Tensor) -> None:
        """Keep the currents of arrays, (T,), when they were written."""
        self.baseline.copy_(readout[:, None].clamp_min(_LEAST_READOUT))

    def compensate(self, readout: Tensor) -> None:
        """Scale outputs by the loss of current since arrays were written."""
        self.compensation.copy_(self.baseline / readout[:, None].clamp_min(_LEAST_READOUT))


def _normal_like(like: Tensor, generator: torch.Generator | None) -> Callable[[], Tensor]:
    def draw() -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    return draw
