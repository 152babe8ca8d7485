"""What a tile is made of: periphery, pulses, devices. Names and defaults are aihwkit's.

Sources of the model: Gokmen & Vlasov, Front. Neurosci. 10:333 (2016); Gokmen, Onen & Haensch,
Front. Neurosci. 11:538 (2017); Rasch, Gokmen & Haensch, arXiv 1906.02698 (2019); the behaviour of
IBM's aihwkit 1.2.0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from rapa_lib._checks import Checked, check_choice
from rapa_lib.analog._compound_config import (
    COMPOUNDS,
    Compound,
    MixedPrecisionCompound,
    TransferCompound,
)
from rapa_lib.analog._device_config import DEVICES, ConstantStepDevice, IdealDevice, PulsedDevice
from rapa_lib.analog._io_config import IOParameters, UpdateParameters
from rapa_lib.analog._mapping import MappingParameters
from rapa_lib.analog._pcm import PCMLikeNoiseModel
from rapa_lib.runtime import AnalogArrays

_COMPOUNDS = (TransferCompound, MixedPrecisionCompound)
_KINDS: dict[str, Any] = {**DEVICES, PCMLikeNoiseModel.__name__: PCMLikeNoiseModel, **COMPOUNDS}


@dataclass(frozen=True)
class TileConfig(Checked):
    """A whole tile.

    Args:
        forward: periphery of y = W x.
        backward: periphery of Wᵀ d; its bound management is not used.
        update: pulses.
        device: :class:`IdealDevice`, a :class:`PulsedDevice` (see :data:`DEVICES`), a compound of
            such (see :data:`COMPOUNDS`), or, for inference alone, a :class:`PCMLikeNoiseModel`.
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
    device: IdealDevice | PulsedDevice | PCMLikeNoiseModel | Compound = field(
        default_factory=ConstantStepDevice
    )
    mapping: MappingParameters = field(default_factory=MappingParameters)

    def _check(self) -> None:
        for name, *kinds in (
            ("forward", IOParameters),
            ("backward", IOParameters),
            ("update", UpdateParameters),
            ("device", IdealDevice, PulsedDevice, PCMLikeNoiseModel, *_COMPOUNDS),
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
        device = self.cross_point
        assert device is not None  # it is no other
        return min(device.w_max, -device.w_min)

    @property
    def cross_point(self) -> PulsedDevice | None:
        """The device that holds a weight and is moved by pulses; None where there is none."""
        if isinstance(self.device, _COMPOUNDS):
            return self.device.device
        return self.device if isinstance(self.device, PulsedDevice) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts of plain numbers: what YAML writes."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}

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
        made = {name: _make(kinds[name], name, part) for name, part in parts.items()}
        return cls(**made, device=_make_device("device", device))

    def to_yaml(self) -> str:
        """As YAML text; needs PyYAML, which the library itself does not."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> "TileConfig":
        """Undo :meth:`to_yaml`; errors are those of :meth:`from_dict`."""
        import yaml

        return cls.from_dict(yaml.safe_load(text) or {})


def _plain(part: Any) -> Any:
    """An object as nested dicts; devices say of which kind they are."""
    if not is_dataclass(part):
        return list(part) if isinstance(part, tuple) else part
    kind = {"kind": type(part).__name__} if type(part).__name__ in _KINDS else {}
    return kind | {one.name: _plain(getattr(part, one.name)) for one in fields(part)}


def _make_device(name: str, part: Mapping[str, Any]) -> Any:
    if not isinstance(part, Mapping):
        raise TypeError(f"{name}: got {part!r}, expected a mapping")
    numbers = dict(part)
    kind = check_choice(f"{name}.kind", numbers.pop("kind", "ConstantStepDevice"), _KINDS)
    if kind in COMPOUNDS:
        for inner in {"device", "fast_device", "slow_device"} & numbers.keys():
            numbers[inner] = _make_device(f"{name}.{inner}", numbers[inner])
        for inner, its in (
            ("transfer_forward", IOParameters),
            ("transfer_update", UpdateParameters),
        ):
            if inner in numbers:
                numbers[inner] = _make(its, f"{name}.{inner}", numbers[inner])
    return _make(_KINDS[kind], name, numbers)


def _make(kind: type, name: str, part: Mapping[str, Any]) -> Any:
    if not isinstance(part, Mapping):
        raise TypeError(f"{name}: got {part!r}, expected a mapping")
    allowed = [one.name for one in fields(kind)]
    if unknown := sorted(set(part) - set(allowed)):
        raise ValueError(f"{name}: got {unknown}, allowed: {', '.join(allowed) or 'nothing'}")
    return kind(**part)
