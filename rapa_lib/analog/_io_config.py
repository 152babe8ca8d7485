"""The periphery of a tile: converters, noise and pulse trains. Names and defaults are aihwkit's."""

import math
from dataclasses import dataclass
from typing import Any

from rapa_lib._checks import Checked, check_int, check_real, checked, choice, flag, integer, real

NOISE_MANAGEMENTS = ("abs_max", "none")
BOUND_MANAGEMENTS = ("iterative", "none")
PULSE_METHODS = ("exact", "sequential")


def resolution(bits: int) -> float:
    """The ``inp_res`` or ``out_res`` of a converter with so many bits: 1 / (2^bits − 2).

    Raises:
        ValueError: if bits is below 2: a converter needs a level on either side of zero.
    """
    return 1 / (2 ** check_int("bits", bits, low=2, high=20) - 2)


def _check_bound(name: str, value: Any) -> float:
    return value if value == math.inf else check_real(name, value, low=0, open_low=True)


@dataclass(frozen=True)
class IOParameters(Checked):
    """The periphery of a product: converters, noise, and what keeps signals in their range.

    Args:
        inp_bound: range ± of the DAC; ``inf`` for none. Inputs are in units of the scale that
            noise management chooses.
        inp_res: step of the DAC as a share of its range (steps are 2 · inp_bound · inp_res), see
            :func:`resolution`; 0 for none.
        inp_noise: standard deviation of the noise of each input, after the DAC.
        out_bound: range ± of the ADC, in units of weight × scaled input; ``inf`` for none.
        out_res: step of the ADC as a share of its range; 0 for none.
        out_noise: standard deviation of the noise of each output, before the ADC.
        w_noise: standard deviation of the noise of each weight, new in every product.
        noise_management: ``"abs_max"`` divides each vector by its largest magnitude; ``"none"``.
        bound_management: ``"iterative"`` repeats the product of a vector, its input halved, as
            long as an output exceeds its bound, until max_bm_factor, or until the input falls
            below the DAC's resolution (a factor of 0.25 / inp_res); ``"none"``.
        max_bm_factor: largest factor by which bound management divides.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    inp_bound: float = checked(1.0, _check_bound)
    inp_res: float = real(resolution(7), low=0, high=0.5)
    inp_noise: float = real(0.0, low=0)
    out_bound: float = checked(12.0, _check_bound)
    out_res: float = real(resolution(9), low=0, high=0.5)
    out_noise: float = real(0.06, low=0)
    w_noise: float = real(0.0, low=0)
    noise_management: str = choice("abs_max", NOISE_MANAGEMENTS)
    bound_management: str = choice("iterative", BOUND_MANAGEMENTS)
    max_bm_factor: float = real(1000.0, low=1)

    def _check(self) -> None:
        for name in ("inp", "out"):
            step = getattr(self, f"{name}_res")
            if getattr(self, f"{name}_bound") == math.inf and step:
                raise ValueError(
                    f"{name}_res: got {step}, allowed without a finite {name}_bound: 0"
                )

    @classmethod
    def perfect(cls) -> "IOParameters":
        """No converters, no noise, no bounds."""
        return cls(
            inp_bound=math.inf, inp_res=0, out_bound=math.inf, out_res=0, out_noise=0,
            noise_management="none", bound_management="none",
        )  # fmt: skip

    @property
    def is_perfect(self) -> bool:
        """Whether a product is exact."""
        return (
            self.inp_bound == self.out_bound == math.inf
            and not self.inp_res and not self.out_res and not self.is_noisy
        )  # fmt: skip

    @property
    def is_noisy(self) -> bool:
        """Whether two products of the same numbers differ."""
        return self.inp_noise > 0 or self.out_noise > 0 or self.w_noise > 0

    @property
    def bm_limit(self) -> float:
        """The largest factor of bound management; 1 where there is none."""
        if self.bound_management == "none" or self.out_bound == math.inf:
            return 1.0
        return min(self.max_bm_factor, 0.25 / self.inp_res if self.inp_res else math.inf)


@dataclass(frozen=True)
class UpdateParameters(Checked):
    """How an outer product becomes pulses.

    Args:
        desired_bl: slots in a pulse train; the most of them where the length is managed.
        update_management: share the pulse probabilities between rows and columns so that their
            largest are equal.
        update_bl_management: use no more slots than the largest product needs.
        method: ``"exact"`` draws every pulse and counts coincidences; ``"sequential"`` is the
            definition, one patch and one slot after another, slow.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    desired_bl: int = integer(31, low=1, high=1000)
    update_management: bool = flag(True)
    update_bl_management: bool = flag(True)
    method: str = choice("exact", PULSE_METHODS)
