"""What can be made worse in tiles, or better, with everything else at the baseline."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rapa_lib._checks import check_choice, check_real, check_sequence
from rapa_lib.analog import (
    MixedPrecisionCompound,
    TileConfig,
    TransferCompound,
    resolution,
)

METHODS = ("digital", "hardware_aware", "analog", "tiki_taka")
BASELINE = "baseline"

# An ADC has two bits more than its DAC, as in the baseline (7 and 9).
_MORE_BITS = 2


def _periphery(config: TileConfig, **changes: Any) -> TileConfig:
    return replace(
        config,
        forward=replace(config.forward, **changes),
        backward=replace(config.backward, **changes),
    )


def _device(config: TileConfig, **changes: Any) -> TileConfig:
    """Change every device of the cross-points."""
    device = config.device
    if config.cross_point is None:
        raise ValueError(f"imperfections: preset has ideal devices, without {', '.join(changes)}")
    names = [
        name
        for name in ("fast_device", "slow_device", "device")
        if isinstance(device, TransferCompound | MixedPrecisionCompound)
        and name in device.__dataclass_fields__
    ]
    if not names:
        return replace(config, device=replace(device, **changes))
    inner = {name: replace(getattr(device, name), **changes) for name in names}
    return replace(config, device=replace(device, **inner))


def baseline_values(config: TileConfig) -> dict[str, float]:
    """The value of each of :data:`IMPERFECTIONS` that a configuration has already."""
    step = config.forward.inp_res
    values = {
        "out_noise": config.forward.out_noise,
        "bits": math.log2(1 / step + 2) if step else math.inf,
    }
    if (device := config.cross_point) is not None:
        values |= {
            "dw_min": device.dw_min,
            "dtod": device.dw_min_dtod,
            "asymmetry": device.up_down_dtod,
        }
    return values


IMPERFECTIONS: dict[str, Callable[[TileConfig, float], TileConfig]] = {
    "out_noise": lambda config, value: _periphery(config, out_noise=value),
    "bits": lambda config, value: _periphery(
        config, inp_res=resolution(int(value)), out_res=resolution(int(value) + _MORE_BITS)
    ),
    "dw_min": lambda config, value: _device(config, dw_min=value),
    "dtod": lambda config, value: _device(
        config, dw_min_dtod=value, w_max_dtod=value, w_min_dtod=value
    ),
    "asymmetry": lambda config, value: _device(config, up_down_dtod=value),
}
"""What can be varied, and how.

``out_noise``: of the products, in units of weight × scaled input. ``bits``: of the DAC; the ADC has
two more. ``dw_min``: the devices' mean step. ``dtod``: relative spread of steps and bounds over
devices. ``asymmetry``: spread over devices of the difference of steps up and down.
"""


def check_imperfection(name: str, pair: Any) -> tuple[str, float]:
    """Return a pair of a name in :data:`IMPERFECTIONS` and a value as such."""
    if isinstance(pair, str) or len(check_sequence(name, pair, "a name and a value")) != 2:
        raise ValueError(f"{name}: got {pair!r}, expected pairs of a name and a value")
    return check_choice(name, pair[0], IMPERFECTIONS), check_real(name, pair[1], low=0)
