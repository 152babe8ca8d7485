"""From collected tables to one sample per arm, in every setting in which a study measured it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from rapa_lib.experiments.claims.rules import Arm, Endpoint
from rapa_lib.experiments.claims.tables import (
    NOT_GIVEN,
    UNHEEDED,
    Prepared,
    canonical,
)
from rapa_lib.experiments.recipe import KNOBS

FIRST, LAST = "first", "last"


class AmbiguousError(ValueError):
    """Rows of one seed that the rules do not tell apart."""


@dataclass(frozen=True)
class Sample:
    """An arm's numbers, one per seed, or per seed and image (or training subset).

    Args:
        values: (seeds,) or (seeds, images).
        seeds: their names.
        across: names of the second factor; empty where there is none.
        own_images: whether each seed drew the training images too, the same for all arms.
    """

    values: np.ndarray
    seeds: tuple[Any, ...]
    across: tuple[Any, ...] = ()
    own_images: bool = False


NO_SAMPLE = Sample(np.empty(0), ())


@dataclass(frozen=True)
class Measured:
    """An endpoint as one setting has it.

    Args:
        setting: in words: what varies among the endpoint's settings.
        key: the setting, by column in canonical text.
        of: the first arm.
        minus: its rivals by name.
        beyond: the two arms of the other network, if the endpoint has them.
        missing: names of arms that were not run in this setting.
        exact: the number, where none of this applies.
    """

    setting: str
    key: Mapping[str, str]
    of: Sample = NO_SAMPLE
    minus: Mapping[str, Sample] = field(default_factory=dict)
    beyond: tuple[Sample, ...] = ()
    missing: tuple[str, ...] = ()
    exact: float | None = None


def measure(
    endpoint: Endpoint,
    tables: Mapping[str, Prepared],
    prefer: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[list[Measured], str]:
    """Take an endpoint's samples from the tables.

    Args:
        endpoint: what is measured.
        tables: a study's tables by name.
        prefer: by column, values in order of preference.

    Returns:
        One entry per setting, the preferred one first (then the one with most seeds, then that
        which comes first in the table), and, where there is none, why.

    Raises:
        AmbiguousError: if rows of one seed are told apart by nothing that the rules name.
    """
    if endpoint.table not in tables:
        return [], f"no table {endpoint.table}"
    table = tables[endpoint.table]
    mine = select(table, endpoint.of)
    if len(mine) == 0:
        return [], f"{endpoint.table} has no rows with {_wanted(table, endpoint.of)}"
    columns = [name for name in table.settings if name not in endpoint.over]
    texts = pd.DataFrame(
        {name: table.text(name)[mine] for name in columns}, index=mine, dtype=object
    )
    varying = [name for name in columns if texts[name].nunique() > 1]
    found, lacking = [], set()
    groups = texts.groupby(varying, sort=False) if varying else [((), texts)]
    for _, part in groups:
        key = part.iloc[0].to_dict()
        words = ", ".join(setting_text(name, key[name]) for name in varying)
        if endpoint.expects == "at_least":
            number = _pooled(table, part.index.to_numpy(), endpoint.of, endpoint) * endpoint.times
            found.append(Measured(words, key, exact=float(number)))
            continue
        one = _measured(endpoint, table, columns, key, words)
        lacking |= set(one.missing)
        complete = one.minus or not endpoint.minus
        if one.of.seeds and complete and len(one.beyond) == len(endpoint.beyond):
            found.append(one)
    if not found:
        return [], f"{endpoint.table} has no rows of {', '.join(sorted(lacking))} to compare with"
    return sorted(found, key=lambda one: _rank(one, prefer or {})), ""


def select(table: Prepared, arm: Arm) -> np.ndarray:
    """Positions of an arm's rows, those without its value left out; none without its column."""
    rows = np.arange(len(table.frame))
    if arm.value not in table:
        return rows[:0]
    ends = {name: w for name, w in arm.where.items() if w in (FIRST, LAST)}
    for name, wanted in arm.where.items():
        if name in ends:
            continue
        allowed = {canonical(w) for w in (wanted if isinstance(wanted, list) else [wanted])}
        if name in table:
            rows = rows[np.isin(table.text(name)[rows], list(allowed))]
        elif NOT_GIVEN not in allowed:
            return rows[:0]
    rows = rows[np.isfinite(table.numbers(arm.value)[rows])]
    for name, wanted in ends.items():
        if name not in table:
            return rows[:0]
        numbers = pd.Series(table.numbers(name)[rows])
        runs = table.text("run")[rows] if "run" in table else np.zeros(len(rows))
        end = numbers.groupby(runs).transform("min" if wanted == FIRST else "max")
        rows = rows[(numbers == end).to_numpy()]
    return rows


def alike(
    table: Prepared, rows: np.ndarray, arm: Arm, columns: Iterable[str], key: Mapping[str, str]
) -> np.ndarray:
    """Of an arm's rows, those in a setting; none where it was not run in it.

    An arm has the setting's value in each column, but for what its rules fix, what says nothing of
    it, and what it has tuned for itself.
    """
    for name in columns:
        if name not in key or not isinstance(arm.where.get(name, []), list):
            continue
        texts = table.text(name)[rows]
        same = texts == key[name]
        if same.any():
            rows = rows[same]
        elif len(set(texts)) != 1 or not _may_differ(name, texts[0], _tilings(table, rows)):
            return rows[:0]
    return rows


def take(
    table: Prepared, rows: np.ndarray, arm: Arm, endpoint: Endpoint, columns: Sequence[str]
) -> Sample:
    """One number per seed of rows in one setting.

    Raises:
        AmbiguousError: if rows of one seed are told apart by nothing that the rules name.
    """
    where = f"{arm.name} in {endpoint.table}"
    for name in columns:
        if len(values := set(table.text(name)[rows])) > 1:
            raise AmbiguousError(f"rows of {where} differ in {name}: {', '.join(sorted(values))}")
    seeds = table.numbers("seed")[rows] if "seed" in table else np.zeros(len(rows))
    subsets = table.text("subset")[rows] if "subset" in table else np.full(len(rows), NOT_GIVEN)
    units = list(zip(seeds.tolist(), subsets, strict=True))
    if not endpoint.over and len(set(units)) < len(units):
        raise AmbiguousError(f"several rows of {where} have the same seed")
    if endpoint.images in table and len(set(units)) == len(units) == len(set(seeds)):
        answers = [json.loads(table.frame[endpoint.images].iloc[row]) for row in rows]
        images = np.array(answers, dtype=float) * endpoint.times
        return Sample(images, tuple(seeds), tuple(range(images.shape[1])))
    of_unit: dict[tuple[float, str], list[int]] = {}
    for unit, row in zip(units, rows, strict=True):
        of_unit.setdefault(unit, []).append(row)
    numbers = {
        unit: _pooled(table, np.array(its), arm, endpoint) * endpoint.times
        for unit, its in sorted(of_unit.items())
    }
    sample = _by_unit({unit: number for unit, number in numbers.items() if np.isfinite(number)})
    return replace(sample, own_images=set(subsets) == {"seed"})


def _by_unit(numbers: Mapping[tuple[float, str], float]) -> Sample:
    """A sample of numbers by seed and training subset.

    Every seed with its own subset: the seeds. Every seed on every subset: both factors. Several
    seeds on each of several subsets: the subsets' means, for a subset is one draw.
    """
    seeds, subsets = ({unit[i] for unit in numbers} for i in (0, 1))
    if len(subsets) <= 1 or len(numbers) == len(seeds) == len(subsets):
        return Sample(np.array(list(numbers.values())), tuple(seed for seed, _ in numbers))
    grid = pd.Series(numbers).unstack()
    if grid.notna().all(axis=None) and len(grid) > 1:
        return Sample(grid.to_numpy(), tuple(grid.index), tuple(grid.columns))
    return Sample(grid.mean().to_numpy(), tuple(grid.columns))


_PHRASES = {
    "n_tiles": "{} tiles",
    "tile_init": "{} start",
    "pooling": "{} pooling",
    "normalisation": "{} normalisation",
    "epochs": "{} epochs",
    "layers": "layers: {}",
    "layer_tiles": "of {} tiles",
    "share": "share {}",
}
_ALONE = ("dataset", "layer", "network", "schedule", "activation", "method", "norm", "kind")


def setting_text(name: str, value: str) -> str:
    """A setting in words."""
    if not value:
        return f"{name} not given"
    if name == "epsilon":
        level = float(value) * 255
        return f"ε = {round(level)}/255" if abs(level - round(level)) < 1e-6 else f"ε = {value}"
    if name == "tile_lr_power":
        return {"0": "rate as without tiles", "0.5": "rate × √n_tiles", "1": "rate × n_tiles"}.get(
            value, f"rate × n_tiles^{value}"
        )
    return _PHRASES.get(name, "{}" if name in _ALONE else f"{name} {{}}").format(value)


def _wanted(table: Prepared, arm: Arm) -> str:
    """What an arm's rows must have, as far as it is to be blamed that there are none."""
    if arm.value not in table:
        return f"a column {arm.value}"
    shown = {
        name: wanted for name, wanted in arm.where.items()
        if wanted not in (FIRST, LAST) or name not in table
    }  # fmt: skip
    return ", ".join(
        f"{name} {' or '.join(map(canonical, w)) if isinstance(w, list) else canonical(w)}"
        for name, w in shown.items()
    )


def _measured(
    endpoint: Endpoint,
    table: Prepared,
    columns: Sequence[str],
    key: Mapping[str, str],
    words: str,
) -> Measured:
    """All arms of an endpoint in one setting."""
    of = _sample(table, endpoint.of, endpoint, columns, key)
    rivals = {one.name: _sample(table, one, endpoint, columns, key) for one in endpoint.minus}
    beyond = [_sample(table, one, endpoint, columns, key) for one in endpoint.beyond]
    arms = [(endpoint.of.name, of), *rivals.items()]
    arms += [(arm.name, one) for arm, one in zip(endpoint.beyond, beyond, strict=True)]
    return Measured(
        words,
        key,
        of or NO_SAMPLE,
        {name: one for name, one in rivals.items() if one is not None},
        tuple(one for one in beyond if one is not None),
        tuple(dict.fromkeys(name for name, one in arms if one is None)),
    )


def _sample(
    table: Prepared,
    arm: Arm,
    endpoint: Endpoint,
    columns: Sequence[str],
    key: Mapping[str, str],
) -> Sample | None:
    rows = alike(table, select(table, arm), arm, columns, key)
    if len(rows) == 0:
        return None
    sample = take(table, rows, arm, endpoint, columns)
    if len(sample.values) == 0:
        return None
    if arm.less is None:
        return sample
    base = _sample(table, arm.less, endpoint, columns, key)
    if base is None or base.across != sample.across:
        return None
    both = [seed for seed in sample.seeds if seed in base.seeds]
    if not both:
        return None
    mine = sample.values[[sample.seeds.index(seed) for seed in both]]
    return Sample(
        mine - base.values[[base.seeds.index(seed) for seed in both]], tuple(both), sample.across
    )


def _tilings(table: Prepared, rows: np.ndarray) -> set[str]:
    return set(table.text("tiling")[rows]) if "tiling" in table else set()


def _may_differ(name: str, value: str, tilings: set[str]) -> bool:
    """Whether rows that all have one value of a setting serve another one too."""
    unheeded = bool(tilings) and all(name in UNHEEDED.get(tiling, ()) for tiling in tilings)
    one_tile = name == "n_tiles" and set(value.split("-")) == {"1"}
    return name in KNOBS or unheeded or one_tile


def _pooled(table: Prepared, rows: np.ndarray, arm: Arm, endpoint: Endpoint) -> float:
    """One number of the rows of one run."""
    values = table.numbers(arm.value)[rows]
    if endpoint.pool == "reach":
        numbers = table.numbers(endpoint.over[0])[rows]
        failed = numbers[values == 0]
        reached = numbers[numbers < failed.min()] if len(failed) else numbers
        return float(reached.max()) if len(reached) else 0.0
    if endpoint.pool == "slope":
        against = table.numbers(endpoint.against)[rows]
        known = np.isfinite(against)
        squares = float((against[known] ** 2).sum())
        return float((values * against)[known].sum()) / squares if squares > 0 else np.nan
    return float(values.mean())


def _rank(one: Measured, prefer: Mapping[str, Sequence[Any]]) -> tuple[int, ...]:
    places = []
    for name, values in prefer.items():
        order = [canonical(value) for value in values]
        text = one.key.get(name, NOT_GIVEN)
        places.append(order.index(text) if text in order else len(order))
    return (*places, -len(one.of.seeds))
