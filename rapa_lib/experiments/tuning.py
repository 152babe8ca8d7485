"""Equal tuning: for every arm the same number of trials, from one seeded plan of low discrepancy.

The plan is a scrambled Halton sequence (Halton 1960; Owen, "A randomized Halton algorithm in R",
arXiv:1706.02808), which is even for any number of points and dimensions. All arms take the same
points: what they share (rates, weight decay) has the same values in each arm, the last coordinate
is the arm's own knob, and idle where it has none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from functools import partial
from typing import Any

from rapa_lib._checks import (
    Checked,
    check_int,
    check_real,
    check_sequence,
    choice,
    integer,
    real,
    several,
)

SCALES = ("linear", "log")
DIGITS = 3  # significant ones of a tuned value: finer differences are nobody's


@dataclass(frozen=True)
class Range(Checked):
    """The values that a parameter may take.

    Args:
        low, high: its bounds.
        scale: ``"linear"``, or ``"log"`` for what is spread evenly over orders of magnitude.
        times: a sequence of numbers that the value is a factor of, for a parameter that is one
            number per layer; None for a plain number.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    low: float = real()
    high: float = real()
    scale: str = choice("linear", SCALES)
    times: Sequence[float] | None = None

    def _check(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"high: got {self.high:g}, allowed: above low, {self.low:g}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low: got {self.low:g}, allowed on a log scale: above 0")
        if self.times is not None:
            given = check_sequence("times", self.times, "numbers")
            numbers = tuple(check_real("times", number) for number in given)
            object.__setattr__(self, "times", numbers)

    def at(self, u: float) -> float | list[float]:
        """The value at a share u of the way from low to high, in [0, 1], to three digits."""
        if self.scale == "log":
            value = math.exp(math.log(self.low) + u * math.log(self.high / self.low))
        else:
            value = self.low + u * (self.high - self.low)
        if self.times is None:
            return _rounded(value)
        return [_rounded(value * number) for number in self.times]


@dataclass(frozen=True)
class Tuning(Checked):
    """How a study's arms are tuned; checked when it is made.

    Args:
        trials: of every arm.
        best: how many of an arm's trials go on to full length; 1: none does, the short runs decide.
        seed: of the plan, and of every short run.
        seeds: of the runs at full length, one run per trial and seed.
        validation: training images that are cut off to judge by, see
            :class:`rapa_lib.data.DataChoice`.
        short: parameters that short runs have otherwise than those at full length.
        ranges: by parameter, what is tuned in every arm.
        knobs: by arm, the one parameter more that is tuned in it, with its range.
        by: parameters whose values name an arm; each of its runs takes what was chosen for it,
            whatever else the grid says. Arms are tilings where nothing is said.
        judged_by: by arm, the entry of a record that says how good a trial is; ``test_error``, the
            error on the validation images, where nothing is said.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    trials: int = integer(low=1)
    best: int = integer(low=1)
    seed: int = integer(low=0)
    seeds: Sequence[int] = several(MISSING, partial(check_int, low=0), of="seeds", distinct=True)
    validation: int = integer(low=1)
    short: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    knobs: Mapping[str, Mapping[str, Range]] = field(default_factory=dict)
    judged_by: Mapping[str, str] = field(default_factory=dict)
    by: Sequence[str] = several(
        ("tiling",), lambda name, one: str(one), of="parameters", distinct=True
    )

    @classmethod
    def of(cls, block: Mapping[str, Any]) -> "Tuning":
        """Make it of a study's ``tuning`` block.

        Raises:
            ValueError, TypeError: naming the argument.
        """
        ranges = {name: _range(name, given) for name, given in block.get("ranges", {}).items()}
        knobs = {
            arm: {name: _range(f"{arm}: {name}", given) for name, given in own.items()}
            for arm, own in block.get("knobs", {}).items()
        }
        return cls(**{**block, "ranges": ranges, "knobs": knobs})

    def _check(self) -> None:
        if self.best > self.trials:
            raise ValueError(f"best: got {self.best}, allowed: 1 to {self.trials}, the trials")
        for arm, own in self.knobs.items():
            if len(own) != 1 or set(own) & set(self.ranges):
                raise ValueError(
                    f"knobs: got {', '.join(own) or 'none'} for {arm}, allowed: one parameter that "
                    "is not among ranges"
                )
        if not self.ranges:
            raise ValueError("ranges: got none, allowed: at least one parameter")

    @property
    def all_seeds(self) -> set[int]:
        """Every seed that tuning sees."""
        return {self.seed, *self.seeds}

    def plan(self) -> list[list[float]]:
        """The points of the plan, (trials, ranges + 1) in [0, 1): the last is the knob's."""
        # Here, for every job of the workflow reads this module: together they take half a second.
        import numpy as np
        from scipy.stats import qmc

        generator = np.random.default_rng(self.seed)
        plan = qmc.Halton(len(self.ranges) + 1, scramble=True, seed=generator)
        return plan.random(self.trials).tolist()

    def trials_of(self, arm: str) -> list[dict[str, Any]]:
        """The parameters of an arm's trials, in the order of the plan."""
        found = []
        for *shared, own in self.plan():
            pairs = zip(self.ranges.items(), shared, strict=True)
            values: dict[str, Any] = {name: known.at(u) for (name, known), u in pairs}
            values |= {name: known.at(own) for name, known in self.knobs.get(arm, {}).items()}
            found.append(values)
        return found

    def judged(self, arm: str) -> str:
        """The entry of a record by which an arm's trials are judged."""
        return self.judged_by.get(arm, "test_error")


def ranked(errors: Sequence[float]) -> list[int]:
    """Places of trials by rising error; equal ones in order, those that diverged (inf) left out."""
    finite = [i for i, error in enumerate(errors) if math.isfinite(error)]
    return sorted(finite, key=lambda i: errors[i])


def _range(name: str, given: Mapping[str, Any]) -> Range:
    try:
        return Range(**given)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from error


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
