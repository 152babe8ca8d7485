"""Checks of arguments: each error names the argument, what came and what is allowed."""

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, field, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any


def check_int(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int in [low, high]; raise TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: got {value!r}, expected an integer")
    number = int(value)
    if number < low or (high is not None and number > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name}: got {number}, allowed: {allowed}")
    return number


def check_real(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return ``value`` as a finite float in [low, high], without the bounds that are open."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, expected a number")
    value = float(value)
    on_open_bound = (open_low and value == low) or (open_high and value == high)
    if not math.isfinite(value) or value < low or value > high or on_open_bound:
        left = f"above {low:g}" if open_low else f"at least {low:g}"
        at_most = "below" if open_high else "at most"
        right = "" if high == math.inf else f" and {at_most} {high:g}"
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


def check_memory(name: str, needed: int, what: str) -> None:
    """Raise ValueError if something is known not to fit into the memory that is there.

    Args:
        name: the argument that asks for it.
        needed: bytes.
        what: what takes them, in words, for the message.
    """
    there = available_memory()
    if there is not None and needed > there:
        raise ValueError(
            f"{name}: {what} need {needed / 1e9:,.1f} GB of memory, allowed: the "
            f"{there / 1e9:,.1f} GB that are free"
        )


LARGE = 2**28
"""Bytes; for what takes fewer, asking the system costs more than it saves."""


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say.

    The least of what the machine has and what the control groups of this process (a container, a
    cluster's job) leave it.
    """
    free = [kilobytes * 1024 for kilobytes in _counts(Path("/proc/meminfo"), "MemAvailable:")]
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):  # version 1
            root, names = Path("/sys/fs/cgroup/memory"), ("limit_in_bytes", "usage_in_bytes")
        elif not controllers:
            root, names = Path("/sys/fs/cgroup"), ("max", "current")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            numbers = [_text(folder / f"memory.{name}").strip() for name in names]
            if folder.is_relative_to(root) and all(map(str.isdigit, numbers)):
                # What files left in memory is taken back when there is need.
                cached = sum(_counts(folder / "memory.stat", "inactive_file"))
                free.append(max(0, int(numbers[0]) - max(0, int(numbers[1]) - cached)))
    return min(free, default=None)


def _counts(table: Path, name: str) -> list[int]:
    """The number in each row of a system's table that has this name: one, or none."""
    rows = map(str.split, _text(table).splitlines())
    return [int(row[1]) for row in rows if len(row) > 1 and row[0] == name and row[1].isdigit()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


class Checked:
    """Base of frozen dataclasses whose fields check themselves when an object is made.

    A field made by :func:`integer`, :func:`real`, :func:`flag`, :func:`choice`, :func:`text` or
    :func:`several` is checked, and replaced by Python's own number, string or tuple: numpy's would
    make records and checkpoints unreadable. Subclasses put what involves several fields in
    :meth:`_check`.
    """

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            if (check := one.metadata.get("check")) is not None:
                object.__setattr__(self, one.name, check(one.name, getattr(self, one.name)))
        self._check()

    def _check(self) -> None:
        """Raise for what only several fields together show to be wrong."""


Check = Callable[[str, Any], Any]


def checked(default: Any, check: Check, *, optional: bool = False) -> Any:
    """A field of a :class:`Checked` dataclass.

    Args:
        default: its value where none is given; ``MISSING`` where one must be.
        check: called with the field's name and value; returns the value to keep.
        optional: whether None is allowed, which is then not checked.
    """

    def check_given(name: str, value: Any) -> Any:
        return None if optional and value is None else check(name, value)

    return field(default=default, metadata={"check": check_given})


def integer(
    default: Any = MISSING, *, low: int, high: int | None = None, optional: bool = False
) -> Any:
    """A field that holds an integer in [low, high]."""
    return checked(default, partial(check_int, low=low, high=high), optional=optional)


def real(
    default: Any = MISSING,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    optional: bool = False,
) -> Any:
    """A field that holds a finite number in [low, high], without the bounds that are open."""
    check = partial(check_real, low=low, high=high, open_low=open_low, open_high=open_high)
    return checked(default, check, optional=optional)


def flag(default: Any = MISSING) -> Any:
    """A field that holds True or False."""
    return checked(default, check_bool)


def choice(default: Any, allowed: Callable[[], Iterable[str]] | Iterable[str]) -> Any:
    """A field that holds one of the allowed names, which may be asked for when it is checked."""

    def check(name: str, value: Any) -> str:
        return check_choice(name, value, allowed() if callable(allowed) else allowed)

    return checked(default, check)


def text(default: Any = MISSING, *, of: str = "a name", optional: bool = False) -> Any:
    """A field that holds a string; a path is turned into one."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str | Path):
            raise TypeError(f"{name}: got {value!r}, expected {of}")
        return str(value)

    return checked(default, check, optional=optional)


def several(
    default: Any, each: Check, *, of: str, empty: bool = False, distinct: bool = False
) -> Any:
    """A field that holds a tuple of values, each checked.

    Args:
        default: as in :func:`checked`.
        each: the check of one value, as in :func:`checked`.
        of: what they are, in words, for the message.
        empty: whether there may be none.
        distinct: whether no value may come twice.
    """

    def check(name: str, value: Any) -> tuple:
        values = tuple(each(name, one) for one in check_sequence(name, value, of))
        if not values and not empty:
            raise ValueError(f"{name}: got {values}, expected at least one ({of})")
        if distinct and len(set(values)) < len(values):
            raise ValueError(f"{name}: got {values}, expected different {of}")
        return values

    return checked(default, check)


def optional(module: str, extra: str) -> Any:
    """Import a module that the library does without until it is needed.

    Args:
        module: dotted name.
        extra: of the package, which installs it.

    Raises:
        ModuleNotFoundError: if it is not installed, naming the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # it is there, and something that it needs is not
        raise ModuleNotFoundError(
            f"{module} is not installed; pip install 'rapa-convnets[{extra}]' brings it",
            name=error.name,
        ) from error
