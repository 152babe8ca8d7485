"""What a cross-point is made of: devices and how their steps depend on their weight.

Names, defaults and meaning are those of aihwkit 1.2.0. Sources: constant steps, Gokmen & Vlasov,
Front. Neurosci. 10:333 (2016); linear steps and soft bounds, Rasch, Gokmen & Haensch, arXiv
1906.02698 (2019); exponential steps, the fit of Gong et al., Nat. Commun. 9:2102 (2018); soft
bounds with a reference, Rasch, Carta, Fagbohungbe & Gokmen, Nat. Commun. 15:7133 (2024).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from rapa_lib._checks import Checked, check_real, flag, real

# At weight zero a power-law device's step is dw_min · (1/2)^pow_gamma where its bounds are alike.
_MIDDLE = 0.5


@dataclass(frozen=True)
class IdealDevice(Checked):
    """Weights that an ordinary optimizer sets exactly: no pulses, no bounds, no spread.

    Args:
        w_max: the weight that scaling by ``weight_scaling_omega`` refers to (see
            :class:`MappingParameters`); no weight is cut off there.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    w_max: float = real(1.0, low=0, open_low=True)


@dataclass(frozen=True)
class PulsedDevice(Checked):
    """What all devices that are moved by pulses have in common.

    Device-to-device spreads are drawn once a cross-point: a step of dw_min · |1 + min(β, 0) +
    dw_min_dtod · ξ + up_down_dtod · ξ′| up and of dw_min · |1 − max(β, 0) + dw_min_dtod · ξ −
    up_down_dtod · ξ′| down, with β = up_down; bounds w_max · |1 + w_max_dtod · ξ″| and w_min alike.

    Args:
        dw_min: mean step of a pulse.
        dw_min_dtod: spread of the step over devices, a share of its mean.
        dw_min_std: spread of the step from pulse to pulse (cycle to cycle), a share of it.
        w_max, w_min: mean upper and lower bound.
        w_max_dtod, w_min_dtod: their spreads over devices, shares.
        up_down: asymmetry β: above 0 steps down are smaller by that share, below 0 steps up are.
        up_down_dtod: its spread over devices.
        lifetime: mini-batches after which a weight left alone has lost a share of 1 − 1/e, by a
            factor 1 − 1/lifetime a mini-batch; 0: it is kept.
        lifetime_dtod: its spread over devices, a share.
        drift_nu: exponent of the drift of a weight left alone, (t / drift_t_0)^−drift_nu from
            drift_t_0 on, t the mini-batches since it was last moved; 0: none.
        drift_nu_dtod: its spread over devices, a share.
        drift_t_0: see there.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    order_matters: ClassVar[bool] = True
    """Whether steps depend on the weight, so that the order of pulses matters."""

    dw_min: float = real(0.001, low=0, open_low=True)
    dw_min_dtod: float = real(0.3, low=0)
    dw_min_std: float = real(0.3, low=0)
    w_max: float = real(0.6)
    w_max_dtod: float = real(0.3, low=0)
    w_min: float = real(-0.6)
    w_min_dtod: float = real(0.3, low=0)
    up_down: float = real(0.0, low=-1, high=1)
    up_down_dtod: float = real(0.01, low=0)
    lifetime: float = real(0.0, low=0)
    lifetime_dtod: float = real(0.0, low=0)
    drift_nu: float = real(0.0, low=0)
    drift_nu_dtod: float = real(0.0, low=0)
    drift_t_0: float = real(1.0, low=0, open_low=True)

    def _check(self) -> None:
        if self.w_max <= self.w_min:
            raise ValueError(
                f"w_max: got {self.w_max} with w_min = {self.w_min}, allowed: above w_min"
            )
        check_real("w_max", self.w_max, low=0)
        check_real("w_min", self.w_min, high=0)

    def _check_both_bounds(self) -> None:
        check_real("w_max", self.w_max, low=0, open_low=True)
        if self.w_min == 0:
            raise ValueError(f"w_min: got 0.0, allowed for {type(self).__name__}: below 0")

    @property
    def granularity(self) -> float:
        """The step that pulse trains reckon with: that of a mean device at weight zero."""
        return self.dw_min

    @property
    def write_noise(self) -> float:
        """Standard deviation of what is read about what is updated."""
        return getattr(self, "write_noise_std", 0.0) * self.dw_min


@dataclass(frozen=True)
class ConstantStepDevice(PulsedDevice):
    """A device whose step does not depend on its weight; arguments of :class:`PulsedDevice`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    order_matters: ClassVar[bool] = False


@dataclass(frozen=True)
class LinearStepDevice(PulsedDevice):
    """A device whose steps shrink linearly with its weight.

    A step up is step · (1 − γ w / w_max), one down step · (1 − γ′ w / w_min).

    Args:
        gamma_up, gamma_down: γ and γ′: the shares by which a step is smaller at its bound.
        gamma_up_dtod, gamma_down_dtod: their spreads over devices.
        allow_increasing: keep a γ that was drawn below 0; else its magnitude is taken.
        mean_bound_reference: w_max and w_min above are the means; else each device's own.
        mult_noise: cycle-to-cycle noise is a share of the step at hand; else of that at zero.
        write_noise_std: standard deviation, in units of dw_min, of what is read of a weight about
            what pulses update; drawn anew when a pulse arrives.
        others: of :class:`PulsedDevice`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    gamma_up: float = real(0.0)
    gamma_down: float = real(0.0)
    gamma_up_dtod: float = real(0.05, low=0)
    gamma_down_dtod: float = real(0.05, low=0)
    allow_increasing: bool = flag(False)
    mean_bound_reference: bool = flag(True)
    mult_noise: bool = flag(True)
    write_noise_std: float = real(0.0, low=0)

    def _check(self) -> None:
        super()._check()
        self._check_both_bounds()


@dataclass(frozen=True)
class SoftBoundsDevice(PulsedDevice):
    """A device whose steps shrink linearly to zero at its own bounds.

    Args:
        mult_noise, write_noise_std: as in :class:`LinearStepDevice`.
        others: of :class:`PulsedDevice`; the steps named there are those at weight zero.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    mult_noise: bool = flag(True)
    write_noise_std: float = real(0.0, low=0)

    def _check(self) -> None:
        super()._check()
        self._check_both_bounds()


@dataclass(frozen=True)
class SoftBoundsReferenceDevice(SoftBoundsDevice):
    """Soft bounds, read against a reference device: what is read is the weight less a reference.

    Args:
        mult_noise: as in :class:`LinearStepDevice`; off by default.
        slope_up_dtod, slope_down_dtod: spreads over devices of the steps' slopes, shares: a bound
            lies where its slope meets zero.
        reference_mean, reference_std: the reference over devices.
        subtract_symmetry_point: add to the reference the weight at which steps up and down are
            alike.
        others: of :class:`SoftBoundsDevice`; bounds are those of the weight before the reference.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    mult_noise: bool = flag(False)
    slope_up_dtod: float = real(0.0, low=0)
    slope_down_dtod: float = real(0.0, low=0)
    reference_mean: float = real(0.0)
    reference_std: float = real(0.05, low=0)
    subtract_symmetry_point: bool = flag(False)


@dataclass(frozen=True)
class ExpStepDevice(PulsedDevice):
    """A device whose steps shrink exponentially towards its bounds.

    With z = 2 a w / (w_max − w_min) + b a step up is step · max(1 − A_up · exp(gamma_up · z), 0),
    one down step · max(1 − A_down · exp(−gamma_down · z), 0).

    Args:
        A_up, A_down, gamma_up, gamma_down, a, b: see there.
        dw_min_std_add, dw_min_std_slope: the deviation from pulse to pulse is dw_min_std · (|step|
            + dw_min_std_add + dw_min_std_slope · |w|).
        write_noise_std: as in :class:`LinearStepDevice`.
        others: of :class:`PulsedDevice`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    A_up: float = real(0.00081)
    A_down: float = real(0.36833)
    gamma_up: float = real(12.44625)
    gamma_down: float = real(12.78785)
    a: float = real(0.244)
    b: float = real(0.2425)
    dw_min_std_add: float = real(0.0, low=0)
    dw_min_std_slope: float = real(0.0, low=0)
    write_noise_std: float = real(0.0, low=0)

    @property
    def granularity(self) -> float:
        """The step down of a mean device at weight zero, as aihwkit 1.2.0 reckons."""
        share = 1 - self.A_down * math.exp(-self.gamma_down * self.b)
        step = self.dw_min * (1 - max(self.up_down, 0)) * max(share, 0)
        return step if step > 0 else self.dw_min


@dataclass(frozen=True)
class PowStepDevice(PulsedDevice):
    """A device whose steps are a power of the distance to its bound.

    A step up is step · ((w_max − w) / (w_max − w_min))^γ, one down step · ((w − w_min) /
    (w_max − w_min))^γ′.

    Args:
        pow_gamma: mean of γ and γ′.
        pow_gamma_dtod: their common spread over devices, a share.
        pow_up_down: asymmetry of γ and γ′, as up_down is of the steps.
        pow_up_down_dtod: its spread over devices.
        write_noise_std: as in :class:`LinearStepDevice`.
        others: of :class:`PulsedDevice`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    pow_gamma: float = real(1.0, low=0)
    pow_gamma_dtod: float = real(0.1, low=0)
    pow_up_down: float = real(0.0, low=-1, high=1)
    pow_up_down_dtod: float = real(0.0, low=0)
    write_noise_std: float = real(0.0, low=0)

    @property
    def granularity(self) -> float:
        return self.dw_min * _MIDDLE**self.pow_gamma


DEVICES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        IdealDevice,
        ConstantStepDevice,
        LinearStepDevice,
        SoftBoundsDevice,
        SoftBoundsReferenceDevice,
        ExpStepDevice,
        PowStepDevice,
    )
}
"""Every device by name."""
