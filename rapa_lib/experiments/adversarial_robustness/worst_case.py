"""What several attacks leave of each image: the worst case, or, of old records, the best attack."""

from typing import Any

import numpy as np
import pandas as pd

WORST = "worst case"
"""Stands for an attack's name where several were chosen from, image by image."""


def strongest_of(rows: pd.DataFrame, epsilon: float) -> tuple[str, np.ndarray, tuple[int, ...]]:
    """What attacks of one level and norm leave at a budget.

    Of each image that attack counts which misleads most of the draws that were drawn for this
    choice (``held``); it is judged on others (``correct``). Records that have no such draws count
    the attack that leaves least on average, by what it takes from the clean accuracy of the images
    it was run on.

    Args:
        rows: of :func:`rapa_lib.experiments.adversarial_robustness.tables.rows_by_image`, of one
            configuration: those of the budget, and those of minimum-norm attacks.
        epsilon: the budget.

    Returns:
        The attack's name or :data:`WORST`, the share of draws that are right (seeds, images), and
        the seeds.
    """
    attacks = [
        (str(name), part.to_dict("records")) for name, part in rows.groupby("attack", sort=False)
    ]
    seeds = {tuple(row["seed"] for row in its) for _, its in attacks}
    chosen = "held" in rows and all(isinstance(held, list) for held in rows["held"])
    if len(attacks) > 1 and chosen and len(seeds) == 1:
        return WORST, _worst_case(attacks, epsilon), next(iter(seeds))
    left = []
    for name, its in attacks:
        correct = np.array([_within(row, epsilon) for row in its])
        taken = correct.mean() - np.mean([row["clean"] for row in its])
        left.append((taken, name, correct, tuple(row["seed"] for row in its)))
    _, name, correct, its_seeds = min(left, key=lambda entry: entry[0])
    return name, correct, its_seeds


def _worst_case(attacks: list[tuple[str, list[dict[str, Any]]]], epsilon: float) -> np.ndarray:
    """Image by image, of the attacks that looked at it within the budget, the strongest."""
    n_images = max(len(row["correct"]) for _, its in attacks for row in its)
    by_seed = []
    for rows in zip(*(its for _, its in attacks), strict=True):
        held = np.full((len(rows), n_images), np.inf)
        correct = np.full((len(rows), n_images), np.nan)
        longest = max(rows, key=lambda row: len(row["clean"]))
        correct[:] = longest["clean"]  # what no attack looked at is as it is
        for row, its_held, its_correct in zip(rows, held, correct, strict=True):
            n = len(row["correct"])
            its_correct[:n] = _within(row, epsilon)
            allowed = True if _has_budget(row) else np.asarray(row["norms"]) <= epsilon
            its_held[:n] = np.where(allowed, row["held"], np.inf)
        # Among equals the last: in a cascade it is what all before it left.
        chosen = len(rows) - 1 - held[::-1].argmin(0)
        by_seed.append(correct[chosen, np.arange(n_images)])
    return np.array(by_seed)


def _has_budget(row: dict[str, Any]) -> bool:
    return row["epsilon"] is not None and not np.isnan(row["epsilon"])


def _within(row: dict[str, Any], epsilon: float) -> np.ndarray:
    """How an attack's images fare at a budget; what exceeds it stays the clean image."""
    correct = np.asarray(row["correct"])
    if _has_budget(row):
        return correct
    return np.where(np.asarray(row["norms"]) <= epsilon, correct, row["clean"])
