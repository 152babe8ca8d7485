"""What a tile is made of: periphery, pulses, devices. Names and defaults are aihwkit's.

Sources of the model: Gokmen & Vlasov, Front. Neurosci. 10:333 (2016); Gokmen, Onen & Haensch,
Front. Neurosci. 11:538 (2017); Rasch, Gokmen & Haensch, arXiv 1906.02698 (2019); the behaviour of
IBM's aihwkit 1.2.0.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from rapa_lib._checks import (
    Checked,
    check_choice,
    check_int,
    check_real,
    checked,
    choice,
    flag,
    integer,
    real,
)
from rapa_lib.analog._device_config import DEVICES, ConstantStepDevice, IdealDevice, PulsedDevice
from rapa_lib.analog._mapping import MappingParameters
from rapa_lib.analog._pcm import PCMLikeNoiseModel
from rapa_lib.runtime import AnalogArrays

NOISE_MANAGEMENTS = ("abs_max", "none")
BOUND_MANAGEMENTS = ("iterative", "none")
PULSE_METHODS = ("exact", "fast", "sequential")


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
        method: ``"exact"`` draws every pulse and counts coincidences; ``"fast"`` draws counts of
            the same mean and variance, independent of each other (devices whose steps depend on
            their weight need whole pulses: theirs are counted as in ``"exact"``);
            ``"sequential"`` is the definition, one patch and one slot after another, slow.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    desired_bl: int = integer(31, low=1, high=1000)
    update_management: bool = flag(True)
    update_bl_management: bool = flag(True)
    method: str = choice("exact", PULSE_METHODS)


@dataclass(frozen=True)
class TileConfig(Checked):
    """A whole tile.

    Args:
        forward: periphery of y = W x.
        backward: periphery of Wᵀ d; its bound management is not used.
        update: pulses.
        device: :class:`IdealDevice`, a :class:`PulsedDevice` (see :data:`DEVICES`), or, for
            inference alone, a :class:`PCMLikeNoiseModel`.
        mapping: how matrices are scaled and split over arrays.

    Raises:
        TypeError: if a part is none of its type.

    Examples:
        >>> config = TileConfig(device=ConstantStepDevice(dw_min=0.002))
        >>> TileConfig.from_dict(config.to_dict()) == config
        True
    """

    forward: IOParameters = field(default_factory=IOParameters)
    backward: IOParameters = field(default_factory=lambda: IOParameters(bound_management="none"))
    update: UpdateParameters = field(default_factory=UpdateParameters)
    device: IdealDevice | PulsedDevice | PCMLikeNoiseModel = field(
        default_factory=ConstantStepDevice
    )
    mapping: MappingParameters = field(default_factory=MappingParameters)

    def _check(self) -> None:
        for name, *kinds in (
            ("forward", IOParameters),
            ("backward", IOParameters),
            ("update", UpdateParameters),
            ("device", IdealDevice, PulsedDevice, PCMLikeNoiseModel),
            ("mapping", MappingParameters),
        ):
            if not isinstance(getattr(self, name), tuple(kinds)):
                wanted = " or ".join(kind.__name__ for kind in kinds)
                raise TypeError(f"{name}: got {getattr(self, name)!r}, expected {wanted}")
        if self.backward.bound_management != "none":
            object.__setattr__(self, "backward", replace(self.backward, bound_management="none"))

    def hardware_aware(self) -> "TileConfig":
        """The same forward product; exact errors and exact updates by any optimizer."""
        device = IdealDevice()
        if self.omega:
            device = IdealDevice(w_max=self.w_bound)
        return replace(self, backward=IOParameters.perfect(), device=device)

    @property
    def omega(self) -> float:
        """The mapping's ``weight_scaling_omega``; for conductances, always scaled, 1 where 0."""
        always = float(isinstance(self.device, PCMLikeNoiseModel))
        return self.mapping.weight_scaling_omega or always

    @property
    def w_bound(self) -> float:
        """The largest magnitude that a mean device holds on either side of zero."""
        if isinstance(self.device, PCMLikeNoiseModel):
            return 1.0
        if isinstance(self.device, IdealDevice):
            return self.device.w_max
        return min(self.device.w_max, -self.device.w_min)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts of plain numbers: what YAML writes."""
        plain = asdict(self)
        plain["device"] = {"kind": type(self.device).__name__} | plain["device"]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "TileConfig":
        """Undo :meth:`to_dict`; what is left out has its default.

        Raises:
            ValueError, TypeError: naming an unknown or wrong entry.
        """
        parts = dict(plain)
        device = dict(parts.pop("device", {}))
        kinds: dict[str, type] = {
            "forward": IOParameters,
            "backward": IOParameters,
            "update": UpdateParameters,
            "mapping": MappingParameters,
        }
        if unknown := sorted(set(parts) - set(kinds)):
            raise ValueError(f"config: got {unknown}, allowed: {', '.join([*kinds, 'device'])}")
        mapping = parts.get("mapping")
        if isinstance(mapping, Mapping) and mapping.get("arrays") is not None:
            arrays = _make(AnalogArrays, "arrays", mapping["arrays"])
            parts["mapping"] = {**mapping, "arrays": arrays}
        known = {**DEVICES, PCMLikeNoiseModel.__name__: PCMLikeNoiseModel}
        kind = check_choice("device.kind", device.pop("kind", "ConstantStepDevice"), known)
        made = {name: _make(kinds[name], name, part) for name, part in parts.items()}
        return cls(**made, device=_make(known[kind], "device", device))

    def to_yaml(self) -> str:
        """As YAML text; needs PyYAML, which the library itself does not."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> "TileConfig":
        """Undo :meth:`to_yaml`; errors are those of :meth:`from_dict`."""
        import yaml

        return cls.from_dict(yaml.safe_load(text) or {})


def _make(kind: type, name: str, part: Mapping[str, Any]) -> Any:
    if not isinstance(part, Mapping):
        raise TypeError(f"{name}: got {part!r}, expected a mapping")
    allowed = [one.name for one in fields(kind)]
    if unknown := sorted(set(part) - set(allowed)):
        raise ValueError(f"{name}: got {unknown}, allowed: {', '.join(allowed) or 'nothing'}")
    return kind(**part)
