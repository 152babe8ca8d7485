"""What attacks leave: the numbers behind the robustness figures and sentences."""

import json
from typing import Any

import numpy as np
import pandas as pd

from rapa_lib.experiments.plots import configuration_labels
from rapa_lib.instruments.statistics import crossed_interval, share_interval


def strongest(table: pd.DataFrame) -> pd.DataFrame:
    """What is left at each level, norm and budget by the attack that leaves least.

    A minimum-norm attack counts at every budget: its perturbation where that is small enough, the
    clean image where it is not. An attack that was run on fewer images is compared by what it takes
    from the clean accuracy of those.

    Returns:
        A row a configuration, level, norm and budget: ``label``, ``tiling``, ``level``, ``norm``,
        ``epsilon``, ``attack``, ``mean``, ``low``, ``high`` (shares, not percent), ``correct``
        (seeds, images), ``seeds``.
    """
    table = with_labels(table)
    rows = table[table["purpose"] == "suite"]
    found = []
    for (label, level, norm), part in rows.groupby(["label", "level", "norm"], sort=False):
        for epsilon in sorted(part["epsilon"].dropna().unique()):
            left = []
            for attack, its in part.groupby("attack", sort=False):
                at_budget = its[its["epsilon"].isna() | (its["epsilon"] == epsilon)]
                if len(at_budget):
                    correct = np.array([_within(row, epsilon) for row in row_dicts(at_budget)])
                    taken = correct.mean() - np.mean(list(at_budget["clean"]))
                    left.append((taken, attack, correct, tuple(at_budget["seed"])))
            _, attack, correct, seeds = min(left, key=lambda entry: entry[0])
            mean, low, high = share_over_images(correct)
            found.append(
                {
                    "label": label,
                    "tiling": part["tiling"].iloc[0],
                    "level": level,
                    "norm": norm,
                    "epsilon": epsilon,
                    "attack": attack,
                    "mean": mean,
                    "low": low,
                    "high": high,
                    "correct": correct,
                    "seeds": seeds,
                }
            )
    return pd.DataFrame(found)


def with_labels(table: pd.DataFrame) -> pd.DataFrame:
    table = table.reset_index(drop=True)
    if "label" in table:
        return table
    if "config" in table:
        table = table.assign(config=[_json(config) for config in table["config"]])
    return table.assign(label=configuration_labels(table))


def at_focus(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of projected gradient descent that differ in the number of draws alone."""
    pgd = table[(table["attack"] == "PGD") & (table["norm"] == "linf")]
    further = pgd[pgd["purpose"].isin(["draws", "restarts"])]
    focus = further["epsilon"].iloc[0] if len(further) else np.nan
    same = pgd["purpose"].isin(["draws", "suite"]) & (pgd["epsilon"] == focus)
    return pgd[same].sort_values("draws", kind="stable")


def over_images(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Mean and 95 % interval over the images and seeds of rows of one attack."""
    return share_over_images(np.array(list(rows["correct"])))


def share_over_images(correct: np.ndarray) -> tuple[float, float, float]:
    """Mean of shares (seeds, images) with an interval that never collapses at 0 or 1."""
    mean, low, high = crossed_interval(correct)
    floor, ceiling = share_interval(correct.mean(0))
    return mean, max(0.0, min(low, floor)), min(1.0, max(high, ceiling))


def clean_correct(table: pd.DataFrame, label: str) -> dict[int, list[float]]:
    """By seed, the share of draws in which each clean image is right; of the most images."""
    rows = with_labels(table)
    rows = rows[rows["label"] == label].sort_values("n_images", ascending=False, kind="stable")
    return {row["seed"]: row["clean"] for row in row_dicts(rows.drop_duplicates("seed"))}


def clean_accuracy(table: pd.DataFrame, label: str) -> tuple[float, float, float]:
    return share_over_images(np.array(list(clean_correct(table, label).values())))


def correct_by_seed(rows: pd.DataFrame) -> dict[int, np.ndarray]:
    """By seed, how each image fared in the one row of :func:`strongest`; empty without it."""
    if len(rows) == 0:
        return {}
    (row,) = row_dicts(rows)
    return dict(zip(row["seeds"], row["correct"], strict=True))


def paired_difference(mine: dict, others: dict) -> tuple[float, float, float] | None:
    seeds = sorted(set(mine) & set(others))
    if not seeds or any(len(mine[s]) != len(others[s]) for s in seeds):
        return None
    return crossed_interval([np.subtract(mine[s], others[s]) for s in seeds])


def _within(row: dict[str, Any], epsilon: float) -> np.ndarray:
    """How an attack's images fare at a budget; what exceeds it stays the clean image."""
    correct = np.asarray(row["correct"])
    if not np.isnan(row["epsilon"]):
        return correct
    small = np.asarray(row["norms"]) <= epsilon
    return np.where(small, correct, row["clean"])


def interval_of(row: dict[str, Any]) -> tuple[float, float, float]:
    return row["mean"], row["low"], row["high"]


def row_dicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.to_dict("records")


def _json(config: Any) -> str:
    return config if isinstance(config, str) else json.dumps(config)
