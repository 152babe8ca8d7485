"""What averaging costs and gives: test errors beside the speed-up that is left, run by run."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from rapa_lib.experiments.plots import UNKNOWN, with_interval
from rapa_lib.experiments.recipe import LATER, SYNCHRONISATION, is_plain
from rapa_lib.runtime import PERFORATED_DENSE, WRITES

COLUMNS = [
    "dataset", "epochs", "tiling", "n_tiles", *SYNCHRONISATION, "seed", "test_error",
    "test_error_vote", "test_error_merged", "speedup", "averaging_share", "least_every",
    "speedup_pulses", "averaging_share_pulses", "least_every_pulses", "least_k",
    "variance_ratio", "run", "git_commit", "data_fingerprint", "config",
]  # fmt: skip

NEVER = 0
"""The k of tiles that are never averaged: RAPA."""

KEPT = 0.9
"""Share of RAPA's speed-up that averaging must leave."""

POINT = ["n_tiles", *SYNCHRONISATION]
"""What tells the arms of RAPA networks apart; rows of one arm and tiling differ in their seeds."""

_SORTED_BY = ["dataset", "epochs", "tiling", "n_tiles", *SYNCHRONISATION, "seed"]

# Parameters that each arm may have of its own tuning.
_TUNED = ("learning_rate", "weight_decay", "tile_lr_power")

# Parameters that do not tell a study's settings apart: arms, tuning, what controls do not have, and
# what a run only records.
_ALONG = (
    "tiling", "n_tiles", "tile_init", "seed", "noise", "dropout", "sync_write", "sync_reads",
    *SYNCHRONISATION, *_TUNED, "draws", "similarity_every", "penalty_every", "pull_every",
    "eval_every", "device", "threads", "data_root",
)  # fmt: skip


def synchronisation_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Networks whose tiles are averaged, beside RAPA, the ordinary network and perforation.

    Of the settings (data, epochs, pooling, …) that is taken in which most arms have averaged tiles.

    Args:
        records: of the accuracy experiment.

    Returns:
        One row per run: dataset, epochs, tiling (``"none"``, ``"random"``, ``"perforated_dense"``),
        n_tiles, sync_every (k; 0: never), coupling, average_last, seed, test errors (percent; of a
        perforated network those of all patches); ``speedup`` (of training, pipelined, with a
        digital side, over one tile per layer), ``averaging_share`` (of its time) and
        ``least_every`` (the least k at which that is a tenth), where the mean is programmed, and
        the same where it is written by pulses; ``least_k`` (whether k is the least of this study
        that leaves nine tenths of RAPA's speed-up, the mean being programmed and tiles neither
        coupled nor averaged over time), variance_ratio (of the tiles, mean over layers, as
        recorded last), run, git_commit, data_fingerprint, config. None if no tiles were averaged.
    """
    chosen = chosen_records(records)
    table = pd.DataFrame([_row(record) for record in chosen], columns=COLUMNS)
    table["least_k"] = _least_k(table)
    return table.sort_values(_SORTED_BY, kind="stable", ignore_index=True)


def chosen_records(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records that are compared, see :func:`synchronisation_table`: one per arm and seed."""
    of_setting: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["tiling"] in ("none", "random", "perforated"):
            of_setting.setdefault(_setting(record["config"]), []).append(record)
    most: list[Mapping[str, Any]] = max(of_setting.values(), key=_n_averaged, default=[])
    return _with_one_tuning(most) if _n_averaged(most) else []


def _n_averaged(records: Sequence[Mapping[str, Any]]) -> int:
    """The number of arms whose tiles are averaged."""
    return len({_arm(r) for r in records if not is_plain(r["config"]) and r["tiling"] == "random"})


def _arm(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return (record["n_tiles"], *(synchronisation_of(record["config"])).values())


def _with_one_tuning(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each tiling and number of tiles the rates, start, … that most of its arms have.

    In a tuned study every arm has rates of its own: there, those that most of its runs have.
    """
    tuned = all("chosen_sha256" in record for record in records)

    def place_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
        return (record["tiling"], *(_arm(record) if tuned else (record["n_tiles"],)))

    kept: list[Mapping[str, Any]] = []
    for place in dict.fromkeys(map(place_of, records)):
        of_tuning: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            if place_of(record) == place:
                config = record["config"]
                own = [config.get(name) for name in (*_TUNED, "tile_init", "sync_reads")]
                of_tuning.setdefault(json.dumps(own), []).append(record)
        kept += sorted(of_tuning.values(), key=_n_arms, reverse=True)[0]
    return kept


def _n_arms(records: list[Mapping[str, Any]]) -> tuple[int, int]:
    return len(set(map(_arm, records))), len(records)


def synchronisation_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of :data:`SYNCHRONISATION` of a run's parameters."""
    return {name: config.get(name, LATER[name]) for name in SYNCHRONISATION}


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    config = record["config"]
    own = synchronisation_of(config)
    known = {**config, **record, **own, "config": json.dumps(config), "least_k": False}
    for write, suffix in zip(WRITES, ("", "_pulses"), strict=True):
        known |= {f"{name}{suffix}": value for name, value in times(record, write).items()}
    if record["tiling"] == "perforated":
        dense = record["test_error_merged"]
        known |= {"tiling": PERFORATED_DENSE, "test_error": dense, "test_error_vote": dense}
    known["variance_ratio"] = _variance_ratio(record)
    return {name: known[name] for name in COLUMNS}


def times(record: Mapping[str, Any], write: str) -> dict[str, float]:
    """Speed-up, the averagings' share of the time, and the least k at which that is a tenth.

    Args:
        record: of the accuracy experiment; of older ones nothing is known.
        write: how the mean is written.
    """
    if "times_us" not in record:
        return dict.fromkeys(("speedup", "averaging_share", "least_every"), math.nan)
    known, config = record["times_us"], record["config"]
    every, coupling, _ = synchronisation_of(config).values()
    per_step = (1 / every if every else 0) + bool(coupling)  # coupled tiles meet in every step
    step, averaging = config["batch_size"] * known["image"], known["averaging"][write]
    least = math.ceil(averaging * KEPT / ((1 - KEPT) * step) * (1 - 1e-12))
    return {
        "speedup": config["batch_size"] * known["single"] / (step + per_step * averaging),
        "averaging_share": per_step * averaging / (step + per_step * averaging),
        "least_every": float(max(1, least)),
    }


def _variance_ratio(record: Mapping[str, Any]) -> float:
    """The likeness of the tiles that was recorded last, mean over layers."""
    measured = [one for one in record["similarity"]["measurements"] if "similarity" in one]
    last = measured[-1]["similarity"] if measured else []
    return sum(row["variance_ratio"] for row in last) / len(last) if last else math.nan


def _least_k(table: pd.DataFrame, written: str = "") -> pd.Series:
    """Whether a row's k is the least of its tiles that leaves :data:`KEPT` of RAPA's speed-up.

    ``written``: how the mean is, by the ending of the columns.
    """
    others = [name for name in SYNCHRONISATION if name != "sync_every"]
    alone = (table["tiling"] == "random") & (table[others] == 0).all(axis=1)
    fast = (
        alone
        & (table["sync_every"] > NEVER)
        & (table[f"averaging_share{written}"] <= 1 - KEPT + 1e-12)
    )
    least = table["sync_every"].where(fast).groupby(table["n_tiles"]).transform("min")
    return fast & (table["sync_every"] == least)


def _setting(config: Mapping[str, Any]) -> str:
    kept = {k: v for k, v in (LATER | dict(config)).items() if k not in _ALONG}
    return json.dumps(kept, sort_keys=True)


def by_size(n_tiles: pd.Series) -> list[str]:
    """The numbers of tiles that occur, the fewest first."""
    return sorted(n_tiles.unique(), key=lambda text: [int(n) for n in text.split("-")])


def every_text(every: int) -> str:
    """A number of steps between averagings in words."""
    return "never" if every == NEVER else f"every {every} steps" if every > 1 else "every step"


def arm_text(row: Mapping[str, Any]) -> str:
    """How an arm's tiles are brought together, in words."""
    parts = [every_text(int(row["sync_every"]))]
    if row["coupling"]:
        parts.append(f"coupling {row['coupling']:g}")
    if row["average_last"]:
        parts.append(f"mean over the last {row['average_last']:g} epochs")
    return ", ".join(parts)


def synchronisation_summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: speed-up, and errors as means over seeds with 95 % t-intervals, as strings.

    Args:
        table: rows of ``synchronisation.csv``.
    """
    rows = []
    for _, runs in table.groupby(["tiling", *POINT], sort=False):
        first = runs.iloc[0]
        rows.append(
            {
                "tiling": first["tiling"],
                "n_tiles": first["n_tiles"],
                "tiles are averaged": arm_text(first) if first["tiling"] == "random" else UNKNOWN,
                "seeds": len(runs),
                "speed-up, programmed": _number(runs["speedup"]),
                "by pulses": _number(runs["speedup_pulses"]),
                "test error (%)": with_interval(runs["test_error"]),
                "vote (%)": with_interval(runs["test_error_vote"]),
                "merged (%)": with_interval(runs["test_error_merged"]),
                "variance ratio": with_interval(runs["variance_ratio"], 3),
            }
        )
    return pd.DataFrame(rows)


def _number(values: pd.Series) -> str:
    return UNKNOWN if values.isna().all() else f"{values.mean():.4g}"


def synchronisation_answer(table: pd.DataFrame) -> list[str]:
    """How often tiles must meet, in at most three lines.

    Args:
        table: rows of ``synchronisation.csv``.
    """
    if table.empty:
        return ["**No network of this study has averaged tiles.**"]
    ordinary = table.loc[table["tiling"] == "none", "test_error"]
    lines = []
    tiled = table[table["tiling"] == "random"]
    for n_tiles in by_size(tiled["n_tiles"]):
        rows = tiled[tiled["n_tiles"] == n_tiles]
        arms = [
            (f"{words} {every_text(int(k))}", one, column)
            for words, least, column in (
                ("averaged", rows["least_k"], "speedup"),
                ("by pulses", _least_k(rows, "_pulses"), "speedup_pulses"),
            )
            for k, one in rows[least].groupby("sync_every")
        ]
        plain = rows[(rows[list(SYNCHRONISATION)] == 0).all(axis=1)]
        arms += [("never averaged", plain, "speedup")] if len(plain) else []
        parts = [
            f"{words} {with_interval(one['test_error'])} % (merged "
            f"{with_interval(one['test_error_merged'])} %) at {_number(one[column])} × the speed"
            for words, one, column in arms
        ] or ["no k of this study leaves nine tenths of the speed-up"]
        lines.append(f"{n_tiles} tiles: {'; '.join(parts)}")
    beside = f", ordinary networks {with_interval(ordinary)} %" if len(ordinary) else ""
    head = f"**Test error by the least k that leaves nine tenths of RAPA's speed-up{beside}.**"
    shown = [head, *lines[:2]]
    if len(lines) > 2:
        shown[2] += f" ({len(lines) - 2} more below)"
    return shown
