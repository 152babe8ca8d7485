"""Fields check themselves, and keep Python's own numbers, strings and tuples."""

import json
import math
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rapa_lib._checks import (
    Checked,
    check_int,
    checked,
    choice,
    flag,
    integer,
    real,
    several,
    text,
)


def doubled(name, value):
    return 2 * value


@dataclass(frozen=True)
class Settings(Checked):
    count: int = integer(1, low=1, high=9)
    size: int | None = integer(None, low=1, optional=True)
    rate: float = real(0.5, low=0, high=1, open_low=True)
    above: float | None = real(None, optional=True)
    on: bool = flag(False)
    kind: str = choice("a", ("a", "b"))
    late: str = choice("x", lambda: NAMES)
    label: str = text("label", of="a label")
    folder: str | None = text(None, of="a path", optional=True)
    numbers: tuple[int, ...] = several((1,), partial(check_int, low=0), of="numbers")
    names: tuple[int, ...] = several(
        (), partial(check_int, low=0), of="numbers", empty=True, distinct=True
    )
    twice: int = checked(1, doubled)
    free: object = None


NAMES = ["x", "y"]


@dataclass(frozen=True)
class Needed(Checked):
    count: int = integer(low=1)
    kind: str = text()


def test_defaults_pass_their_own_checks():
    made = Settings()
    assert (made.count, made.size, made.rate, made.on, made.kind) == (1, None, 0.5, False, "a")
    assert made.numbers == (1,)
    assert made.twice == 2


def test_a_field_without_default_must_be_given():
    with pytest.raises(TypeError, match="count"):
        Needed(kind="a")
    assert Needed(1, "a") == Needed(count=1, kind="a")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"count": 0}, ValueError, r"count: got 0, allowed: 1 to 9"),
        ({"count": 10}, ValueError, r"count: got 10, allowed: 1 to 9"),
        ({"count": 1.0}, TypeError, r"count: got 1\.0, expected an integer"),
        ({"count": True}, TypeError, r"count: got True, expected an integer"),
        ({"count": None}, TypeError, r"count: got None, expected an integer"),
        ({"size": 0}, ValueError, r"size: got 0, allowed: at least 1"),
        ({"rate": 0}, ValueError, r"rate: got 0\.0, allowed: finite, above 0 and at most 1"),
        ({"rate": 1.5}, ValueError, r"rate: got 1\.5, allowed: finite, above 0 and at most 1"),
        ({"rate": math.nan}, ValueError, r"rate: got nan"),
        ({"rate": "1"}, TypeError, r"rate: got '1', expected a number"),
        ({"rate": True}, TypeError, r"rate: got True, expected a number"),
        ({"above": math.inf}, ValueError, r"above: got inf, allowed: finite"),
        ({"on": 1}, TypeError, r"on: got 1, expected True or False"),
        ({"kind": "c"}, ValueError, r"kind: got 'c', allowed: a, b"),
        ({"late": "z"}, ValueError, r"late: got 'z', allowed: x, y"),
        ({"label": 3}, TypeError, r"label: got 3, expected a label"),
        ({"folder": 3}, TypeError, r"folder: got 3, expected a path"),
        ({"numbers": ()}, ValueError, r"numbers: got \(\), expected at least one \(numbers\)"),
        ({"numbers": 3}, TypeError, r"numbers: got 3, expected a sequence of numbers"),
        ({"numbers": "12"}, TypeError, r"numbers: got '12', expected a sequence of numbers"),
        ({"numbers": [1, -1]}, ValueError, r"numbers: got -1, allowed: at least 0"),
        ({"names": [1, 1]}, ValueError, r"names: got \(1, 1\), expected different numbers"),
    ],
    ids=str,
)
def test_what_is_not_allowed_is_named(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        Settings(**arguments)


def test_names_that_come_later_are_allowed_then():
    NAMES.append("new")
    try:
        assert Settings(late="new").late == "new"
    finally:
        NAMES.remove("new")


def test_numbers_of_numpy_and_paths_become_python_s_own():
    made = Settings(
        count=np.int64(3), size=np.int32(2), rate=np.float32(0.5), label=Path("a/b"),
        numbers=[np.int64(1), np.int8(2)], names=[],
    )  # fmt: skip
    assert [type(value) for value in (made.count, made.size, made.rate, made.label)] == [
        int, int, float, str,
    ]  # fmt: skip
    assert made.numbers == (1, 2)
    assert made.names == ()
    json.dumps({one.name: getattr(made, one.name) for one in fields(made)}, allow_nan=False)


def test_fields_without_a_check_are_left_alone():
    value = object()
    assert Settings(free=value).free is value


def test_what_several_fields_show_comes_after_each_of_them():
    @dataclass(frozen=True)
    class Narrow(Settings):
        def _check(self):
            assert self.twice == 6  # the checked value, not the given one
            raise ValueError("twice: got 3 for that")

    with pytest.raises(ValueError, match=r"^twice: got 3"):
        Narrow(twice=3)
    with pytest.raises(ValueError, match=r"^numbers: got \(\)"):
        Narrow(twice=3, numbers=())
