"""Checks of arguments: each error names the argument, what came and what is allowed."""

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any


def check_int(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int in [low, high]; raise TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: got {value!r}, expected an integer")
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name}: got {value}, allowed: {allowed}")
    return int(value)


def check_real(
    name: str, value: Any, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> float:
    """Return ``value`` as a finite float in [low, high] (above ``low`` if ``open_low``)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, expected a number")
    value = float(value)
    if not math.isfinite(value) or value < low or value > high or (open_low and value == low):
        left = f"above {low:g}" if open_low else f"at least {low:g}"
        right = "" if high == math.inf else f" and at most {high:g}"
        raise ValueError(f"{name}: got {value}, allowed: finite, {left}{right}")
    return value


def check_sequence(name: str, value: Any, of: str = "") -> Sequence:
    """Return ``value`` if it is a sequence and no string; raise TypeError otherwise."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: got {value!r}, expected a sequence{of and f' of {of}'}")
    return value


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of the allowed names; raise ValueError otherwise."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{name}: got {value!r}, allowed: {', '.join(names)}")
    return value


def check_bool(name: str, value: Any) -> bool:
    """Return ``value`` if it is a bool; raise TypeError otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, expected True or False")
    return value
