"""The accuracy experiment's tables, and what they answer."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rapa_lib.experiments.plots import configuration_labels, label_order, with_interval
from rapa_lib.experiments.records import flat_table

SORTED_BY = ["dataset", "tiling", "n_tiles", "tile_init", "pooling", "epochs", "seed"]

SETTINGS = ("dataset", "n_tiles", "tile_init", "pooling", "epochs")
"""Columns of the summary that say what was trained."""

# Entries of a record that are other tables' matter.
_ELSEWHERE = ("curve", "similarity", "speedups", "times_us")


def accuracy_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per run: its labels, test errors in percent, provenance and parameters."""
    return flat_table(records, _ELSEWHERE).sort_values(SORTED_BY, ignore_index=True)


def curves_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per run and epoch: training loss, and training and test error in percent."""
    parts = [
        pd.DataFrame(record["curve"]["history"]).assign(
            **{name: record[name] for name in SORTED_BY}, run=record["run"]
        )
        for record in records
    ]
    columns = [*SORTED_BY, "epoch", "train_loss", "train_error", "test_error", "run"]
    return pd.concat(parts)[columns].sort_values([*SORTED_BY, "epoch"], ignore_index=True)


def accuracy_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean test errors over seeds with 95 % t-intervals, one row per configuration.

    Args:
        table: rows of ``accuracy.csv``.

    Returns:
        Strings ready to print; an interval is missing where there is one seed.
    """
    table = table.assign(label=configuration_labels(table))
    rows = []
    for label in label_order(table):
        runs = table[table["label"] == label]
        tiling, *others = label.split("\n")
        others = [other for other in others if other.split()[0] not in SETTINGS]
        row = {"tiling": ", ".join([tiling, *others])}
        row |= {key: runs[key].iloc[0] for key in SETTINGS} | {"seeds": len(runs)}
        row["test error (%)"] = with_interval(runs["test_error"])
        row["vote (%)"] = with_interval(runs["test_error_vote"])
        row["mean softmax (%)"] = with_interval(runs["test_error_softmax"])
        row["merged (%)"] = with_interval(runs["test_error_merged"])
        row["parameters"] = f"{int(runs['n_parameters'].iloc[0]):,}"
        row["seconds per epoch"] = f"{(runs['train_seconds'] / runs['epochs']).mean():.1f}"
        rows.append(row)
    return pd.DataFrame(rows)


def accuracy_answer(table: pd.DataFrame) -> list[str]:
    """How well RAPA classifies, beside the ordinary network, in at most three lines.

    Args:
        table: rows of ``accuracy.csv``.
    """
    means = table.assign(label=configuration_labels(table)).groupby("label")["test_error"].mean()
    lines = []
    for tiling, words in (("none", "ordinary networks"), ("random", "RAPA networks")):
        chosen = means[[label.split("\n")[0] == tiling for label in means.index]]
        if len(chosen):
            span = f"{chosen.min():.1f}" + (f" to {chosen.max():.1f}" if len(chosen) > 1 else "")
            lines.append(f"{words} (`{tiling}`) {span} %")
    if not lines:
        best = means.idxmin().replace("\n", ", ")
        lines = [f"the least, {means.min():.1f} %, has `{best}`"]
    rapa = table[(table["tiling"] == "random") & (table["draws"] > 1)]
    gain = (rapa["test_error"] - rapa["test_error_vote"]).mean()
    least = f"{abs(gain):.1f} points {'less' if gain >= 0 else 'more'}"
    voted = f" A vote over draws has {least} than RAPA's single passes." if len(rapa) else ""
    return [f"**Mean test error: {'; '.join(lines)}.**{voted}"]
