"""Claims put to the test: collected tables in, one number, interval and verdict a test out.

A claim is a list of tests. A test takes a value from one table, seed by seed, perhaps less the
value of another arm with the same seed, and says beforehand which values would hold it up.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from rapa_lib._checks import check_choice, check_int, check_real
from rapa_lib.experiments.filter_similarity.figures import within_errors
from rapa_lib.instruments.statistics import mean_interval
from rapa_lib.networks import CONTROLS

SETTINGS = (
    "dataset", "n_train", "mirror", "max_shift", "network", "n_tiles", "tile_init", "pooling",
    "activation", "normalisation", "tile_lr_power", "epochs", "layer", "layers", "layer_tiles",
    "schedule", "assignment", "varied", "norm", "epsilon", "scale", "share", "kind", "strength",
    "reroute", "method", "imperfection", "value", "fault_draw",
)  # fmt: skip
"""What may tell two rows of one seed apart."""

TRAINED = SETTINGS[: SETTINGS.index("layer")]
"""Of these, what a network was made and trained with: the same as its control's."""

VERDICTS = ("held", "did not hold", "undecided", "no verdict", "not measured")
POOLS = {"mean": np.mean, "min": np.min, "max": np.max}
FIRST, LAST = "first", "last"


@dataclass(frozen=True)
class Arm:
    """Rows of a table, and the column that is read from them.

    Args:
        value: the column.
        where: by column, the value or the list of values that rows must have; ``"first"`` and
            ``"last"`` are the least and the greatest number of the column, run by run.
    """

    value: str
    where: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimTest:
    """One number that a claim predicts.

    Args:
        test: in words, with its unit.
        table: name of the collected table, without ``.csv``.
        of: what the claim is about.
        minus: what it is compared with, seed by seed; without it the value stands alone.
        above, below: the rule: the claim holds here where the whole 95 % interval is above, or
            below, this number. Exactly one of them.
        times: factor on the values, 100 for shares in percent.
        per: column that the value is divided by.
        pool, over: how rows of one seed that differ in these columns become one number: ``"mean"``,
            ``"min"`` or ``"max"``.
        exact: the table is computed without lots: a number needs neither seeds nor an interval.
        figure: name of the figure that shows it.

    Raises:
        TypeError, ValueError: for an argument that is not allowed.
    """

    test: str
    table: str
    of: Arm
    minus: Arm | None = None
    above: float | None = None
    below: float | None = None
    times: float = 1.0
    per: str | None = None
    pool: str = "mean"
    over: tuple[str, ...] = ()
    exact: bool = False
    figure: str = ""

    def __post_init__(self):
        if (self.above is None) == (self.below is None):
            raise ValueError(
                f"above, below: got {self.above} and {self.below}, expected one of them"
            )
        check_real("above or below", self.below if self.above is None else self.above)
        check_real("times", self.times)
        check_choice("pool", self.pool, POOLS)
        if unknown := sorted(set(self.over) - set(SETTINGS)):
            raise ValueError(f"over: got {', '.join(unknown)}, allowed: {', '.join(SETTINGS)}")

    @property
    def rule(self) -> str:
        """In words, when the claim holds here."""
        side, bound = ("below", self.below) if self.above is None else ("above", self.above)
        return f"{side} {bound:g}"

    def verdict(self, low: float, high: float) -> str:
        """What an interval says of the claim; ``low`` = ``high`` is an exact number."""
        if self.below is not None:
            low, high, bound = -high, -low, -self.below
        else:
            bound = self.above
        if math.isnan(low):
            return "no verdict"
        return "held" if low > bound else "did not hold" if high <= bound else "undecided"


@dataclass(frozen=True)
class Claim:
    """A claim, by its name and in words, and its tests."""

    id: str
    claim: str
    tests: tuple[ClaimTest, ...]


def read_claims(content: Mapping[str, Any]) -> tuple[list[Claim], int]:
    """Claims and the least number of seeds for a verdict, from a YAML file's content.

    A test's ``minus`` is like its ``of`` but for what it says.

    Raises:
        ValueError: for a test that is not allowed, with its claim's name.
    """
    claims = []
    for entry in content["claims"]:
        tests = []
        for test in entry["tests"]:
            try:
                tests.append(_read_test(test))
            except (TypeError, ValueError, KeyError) as error:
                raise ValueError(f"claims: {entry['id']}: {error}") from error
        claims.append(Claim(entry["id"], entry["claim"], tuple(tests)))
    return claims, check_int("min_seeds", content["min_seeds"], low=2)


def _read_test(test: Mapping[str, Any]) -> ClaimTest:
    known = dict(test) | {"of": Arm(**test["of"]), "over": tuple(test.get("over", ()))}
    if "minus" in test:
        other = Arm(**{"value": test["of"]["value"]} | test["minus"])
        known["minus"] = Arm(other.value, known["of"].where | other.where)
    return ClaimTest(**known)


def judge_claims(
    claims: Sequence[Claim], tables: Mapping[str, pd.DataFrame], min_seeds: int = 3
) -> pd.DataFrame:
    """Put claims to the test.

    Args:
        claims: of :func:`read_claims`.
        tables: a study's collected tables by name; those it did not make are missing.
        min_seeds: fewer seeds get an interval but no verdict.

    Returns:
        A row a test and setting in which the study measured it: ``id``, ``claim``, ``test``,
        ``setting``, ``rule``, ``mean``, ``low``, ``high`` (95 %, Student's t over seeds, of
        differences paired by seed where there are two arms), ``effect`` (mean over standard
        deviation of these, Cohen's d for paired values), ``seeds``, ``verdict``, ``figure``. A test
        that a table cannot answer is not measured, and its ``setting`` says why.
    """
    rows = []
    for claim in claims:
        for test in claim.tests:
            common = {
                "id": claim.id, "claim": claim.claim, "test": test.test, "rule": test.rule,
                "figure": test.figure,
            }  # fmt: skip
            found, why = {}, ""
            try:
                found = measured(test, tables[test.table]) if test.table in tables else {}
            except ValueError as error:  # the report has the other tests to tell
                why = str(error)
            if not found:
                empty = dict.fromkeys(["mean", "low", "high", "effect"], math.nan)
                rows.append(
                    common | empty | {"setting": why, "seeds": 0, "verdict": "not measured"}
                )
            for setting, values in found.items():
                rows.append(common | {"setting": setting} | _judge(test, values, min_seeds))
    columns = [
        "id", "claim", "test", "setting", "rule", "mean", "low", "high", "effect", "seeds",
        "verdict", "figure",
    ]  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=columns)


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """A row a claim: held, held partly, did not hold, undecided, no verdict or not measured.

    Held: in all tests and settings. Held partly: in some. Did not hold: in none, and at least one
    decided so. Tests that were not measured, or with too few seeds, do not count unless all are.
    """
    rows = []
    for (name, claim), part in table.groupby(["id", "claim"], sort=False):
        count = part["verdict"].value_counts()
        decided = part["verdict"].isin(["held", "did not hold", "undecided"]).sum()
        if not decided:
            verdict = "no verdict" if count.get("no verdict", 0) else "not measured"
        elif count.get("held", 0) == decided:
            verdict = "held"
        elif count.get("held", 0):
            verdict = "held partly"
        else:
            verdict = "did not hold" if count.get("did not hold", 0) else "undecided"
        counts = {verdict: int(count.get(verdict, 0)) for verdict in VERDICTS}
        rows.append({"id": name, "claim": claim, "overall": verdict, **counts})
    return pd.DataFrame(rows)


def measured(test: ClaimTest, table: pd.DataFrame) -> dict[str, pd.Series]:
    """A test's values by seed, for every setting in which the table has them.

    Returns:
        By setting in words, which holds what varies among the test's rows, a value a seed.

    Raises:
        ValueError: for a column that the table lacks, or rows of one seed that nothing tells apart.
    """
    table = _prepared(table, test)
    mine, others = _rows(table, test.of), None
    if mine.empty:
        return {}
    if test.minus is not None:
        others = _rows(table, test.minus)
    settings = [name for name in SETTINGS if name in mine and name not in test.over]
    varying = [name for name in settings if mine[name].astype(str).nunique() > 1]
    found = {}
    groups = mine.groupby(varying, sort=False, dropna=False) if varying else [((), mine)]
    for key, part in groups:
        values = _by_seed(part, test, test.of)
        if others is not None:
            same = others
            for name in settings:
                if name not in test.minus.where and not _serves_all(others, name):
                    same = same[same[name].astype(str) == str(part[name].iloc[0])]
            if same.empty:
                continue
            values = (values - _by_seed(same, test, test.minus)).dropna()
        if len(values):
            told = [_told(name, value) for name, value in zip(varying, key, strict=True)]
            found[", ".join(told)] = values * test.times
    return found


def _serves_all(control: pd.DataFrame, name: str) -> bool:
    """Whether rows with any value of a setting can be compared with a control's, which has one.

    A network without tiles has nothing that says how tiles start or learn; and what was done with
    trained networks need not be done with a control.
    """
    values = control[name].astype(str).unique()
    if len(values) != 1:
        return False
    if name in ("tile_init", "tile_lr_power"):
        return set(control["tiling"]) <= {"none", *CONTROLS}
    if name == "n_tiles":
        return set(values[0].split("-")) == {"1"}
    return name not in TRAINED


def _judge(test: ClaimTest, values: pd.Series, min_seeds: int) -> dict[str, Any]:
    mean, low, high = mean_interval(values.to_numpy())
    if test.exact:
        return {
            "mean": mean, "low": mean, "high": mean, "seeds": 0, "verdict": test.verdict(mean, mean)
        }  # fmt: skip
    spread = float(values.std()) if len(values) > 1 else math.nan
    verdict = test.verdict(low, high) if len(values) >= min_seeds else "no verdict"
    effect = mean / spread if spread > 0 else math.nan
    return {
        "mean": mean, "low": low, "high": high, "effect": effect, "seeds": len(values),
        "verdict": verdict,
    }  # fmt: skip


def _prepared(table: pd.DataFrame, test: ClaimTest) -> pd.DataFrame:
    """The table with the parameters of its runs as columns, and what is derived from others."""
    table = table.reset_index(drop=True)
    if "config" in table:
        configs = [json.loads(c) if isinstance(c, str) else c for c in table["config"]]
        given = pd.DataFrame(configs, index=table.index)
        missing = [name for name in given if name not in table and name in SETTINGS]
        table = table.join(given[missing].astype(str))
        if "n_tiles" in table and "n_tiles" in given:  # a control's are those it is a control for
            controls = table["tiling"].isin(CONTROLS)
            meant = given["n_tiles"].map(lambda n: "-".join(map(str, n)))
            table["n_tiles"] = table["n_tiles"].where(~controls, meant)
    if {"measured", "predicted_error"} <= set(table):
        table = table.assign(agrees=within_errors(table).astype(float))
    needed = {test.of.value, *test.of.where, *test.over} | ({test.per} if test.per else set())
    if test.minus is not None:
        needed |= {test.minus.value, *test.minus.where}
    if lacking := sorted(needed - set(table)):
        raise ValueError(f"claims: table {test.table} has no column {', '.join(lacking)}")
    return table


def _rows(table: pd.DataFrame, arm: Arm) -> pd.DataFrame:
    for name, wanted in arm.where.items():
        column = table[name]
        if wanted in (FIRST, LAST):
            run = table["run"] if "run" in table else pd.Series(0, table.index)
            end = column.groupby(run).transform("min" if wanted == FIRST else "max")
            table = table[column == end]
        else:
            allowed = wanted if isinstance(wanted, list) else [wanted]
            table = table[column.astype(str).isin([str(value) for value in allowed])]
    return table[table[arm.value].notna()]


def _by_seed(rows: pd.DataFrame, test: ClaimTest, arm: Arm) -> pd.Series:
    seeds = rows["seed"] if "seed" in rows else pd.Series(0, rows.index)
    columns = [name for name in SETTINGS if name in rows and name not in test.over]
    for name in columns:
        if rows[name].astype(str).nunique() > 1:
            raise ValueError(
                f"claims: {test.test}: rows of {test.table} differ in {name}: "
                f"{', '.join(sorted(rows[name].astype(str).unique()))}; choose one in where, or "
                "pool over it"
            )
    values = rows[arm.value].astype(float)
    if test.per:
        values = values / rows[test.per].astype(float)
    if not test.over and seeds.duplicated().any():
        raise ValueError(f"claims: {test.test}: several rows of {test.table} have the same seed")
    return values.groupby(seeds).agg(POOLS[test.pool])


def _told(name: str, value: Any) -> str:
    """A setting with its name, or by itself where it says what it is."""
    if name == "epsilon":
        return f"ε = {value * 255:g}/255" if value * 255 == round(value * 255) else f"ε = {value:g}"
    alone = ("dataset", "layer", "network", "schedule", "activation", "method")
    return str(value) if name in alone else f"{name} {value}"
