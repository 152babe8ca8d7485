"""Tables of the pull and of the loss along the deviations, and what they answer."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rapa_lib.experiments.filter_similarity.tables import (
    MAIN,
    at_the_end,
    columns_of,
    contrast,
    settings,
    with_expectation,
    with_varied,
)
from rapa_lib.experiments.plots import UNKNOWN, layer_text, tiling_order, with_interval
from rapa_lib.experiments.records import nested_table

UNIT = 1000
"""Pulls are shown in thousandths of a nat."""

_SHOWN = {
    "pull": "P", "kernel_pull": "of kernels", "decay": "weight decay", "push": "noise's push",
    "squared_deviation": "‖δ‖²",
}  # fmt: skip

_VERDICTS = {"more alike": "greater", "less alike": "smaller", "undecided": "undecided"}


def pull_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per run, recorded epoch and tiled layer: the pull, and what stands beside it."""
    named = with_varied(records)
    table = nested_table(named, "tile_pulls", columns_of(named))
    table = table.astype({"push": float} if len(table) else {})  # it may be missing throughout
    order = [name for name in columns_of(named) if name in (*MAIN, "tiling", "seed")]
    return table.sort_values([*order, "run", "epoch", "layer"], ignore_index=True)


def scales_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per run, layer, statistics of normalisation and scale of the deviations: the loss."""
    named = with_varied(records)
    return nested_table(named, "scaled_losses", columns_of(named))


def pull_summary(pulls: pd.DataFrame) -> pd.DataFrame:
    """The pull at the end of training, one row per setting and layer: means over seeds, as strings.

    Args:
        pulls: rows of ``filter_similarity_pull.csv``.
    """
    last = at_the_end(pulls)
    last["tiling"] = pd.Categorical(last["tiling"], tiling_order(last["tiling"]), ordered=True)
    keys = [*settings(pulls), "layer"]
    rows = []
    for values, runs in last.groupby(keys, observed=True):
        row = dict(zip(keys, map(str, values), strict=True))
        row |= {"layer": layer_text(row["layer"]), "seeds": str(len(runs))}
        for column, words in _SHOWN.items():
            scale = 1 if column == "squared_deviation" else UNIT
            known = scale * runs[column].dropna()
            row[words] = with_interval(known) if len(known) else UNKNOWN
        rows.append(row)
    return pd.DataFrame(rows)


def pull_answer(pulls: pd.DataFrame) -> str:
    """How strongly training draws the tiles together at its end (C2a): Markdown sentences.

    Args:
        pulls: rows of ``filter_similarity_pull.csv``; there may be none.
    """
    if pulls.empty:
        return ""
    last = at_the_end(with_expectation(pulls))
    above = int((last["pull"] > 2 * last["pull_error"]).sum())
    names = ", ".join(f"`{name}`" for name in tiling_order(last["tiling"]))
    text = (
        f"the pull on the tiles of {names} networks at the end of training is {_span(last['pull'])}"
        f" thousandths of a nat, above zero by more than two standard errors in {above} of "
        f"{len(last)} layers"
    )
    found = contrast(pulls, column="pull")
    parts = []
    for other, rows in found.groupby("other"):
        counts = rows["verdict"].map(_VERDICTS).value_counts()
        judged = ", ".join(f"{counts[one]} {one}" for one in _VERDICTS.values() if one in counts)
        parts.append(f"`{other}` {_span(rows['difference'], '+')} ({judged})")
    if parts:
        basis = "by 95 % intervals over seeds" if found["pairs"].max() > 1 else "one pair of seeds"
        text += f"; that of `random` minus that of {'; '.join(parts)}, {basis}"
    return f"{text}."


def _span(values: pd.Series, sign: str = "") -> str:
    """The least and the greatest value, in thousandths."""
    if values.isna().all():
        return UNKNOWN
    low, high = (f"{UNIT * value:{sign}.2f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"
