"""What attacks leave: the tables of records, and what they answer."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rapa_lib.experiments.adversarial_robustness.worst_case import strongest_of
from rapa_lib.experiments.plots import UNKNOWN, configuration_labels, label_order
from rapa_lib.experiments.recipe import SYNCHRONISATION, with_synchronisation
from rapa_lib.instruments.statistics import crossed_contrast, crossed_interval, share_interval
from rapa_lib.robustness import LEVELS, NORMS

Interval = tuple[float, float, float]
"""Mean, low and high of shares, not percent."""

REFERENCE = "none"  # the tiling that others are compared with
SORTED_BY = ("tiling", "n_tiles", "tile_init", "pooling", "tile_lr_power", "seed")
CONFIGURATION = [
    "dataset", "tiling", "n_tiles", "tile_init", "pooling", "activation", "normalisation",
    "tile_lr_power", "epochs",
]  # fmt: skip

# In a record they are lists with one number per image; the table has their means.
BY_IMAGE = ("correct", "clean", "norms", "held")

# Entries of a record that are no columns of the table.
_ELSEWHERE = ("rows", "alarms", "noise", "examples", "measurement")


def in_order(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records by configuration and seed."""
    names = (*SORTED_BY, *SYNCHRONISATION)
    return sorted(records, key=lambda record: [str(record.get(name, 0)) for name in names])


def rows_by_image(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per attack and budget, with its record's labels, and with how each image fared.

    Args:
        records: of the experiment.

    Raises:
        ValueError: if there are none.
    """
    rows = [
        {name: value for name, value in record.items() if name not in _ELSEWHERE} | row
        for record in with_synchronisation(records)
        for row in record["rows"]
    ]
    if not rows:
        raise ValueError("records: none to collect")
    return pd.DataFrame(rows)


def robustness_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The same without what there is of each image, and without the parameters: a CSV table.

    Args:
        rows: of :func:`rows_by_image`.
    """
    return rows.drop(columns=[*BY_IMAGE, "config"], errors="ignore")


def strongest(table: pd.DataFrame) -> pd.DataFrame:
    """What is left at each level, norm and budget by the attack that leaves least.

    A minimum-norm attack counts at every budget: its perturbation where that is small enough, the
    clean image where it is not. Which attack counts, image by image: see :func:`strongest_of`.

    Args:
        table: of :func:`rows_by_image`.

    Returns:
        One row per configuration, level, norm, budget: ``label``, ``tiling``, ``level``, ``norm``,
        ``epsilon``, ``attack``, ``mean``, ``low``, ``high`` (shares, not percent), ``correct``
        (seeds, images), ``seeds``.
    """
    table = with_labels(table)
    rows = table[table["purpose"] == "suite"]
    found = []
    for (label, level, norm), part in rows.groupby(["label", "level", "norm"], sort=False):
        for epsilon in sorted(part["epsilon"].dropna().unique()):
            attack, correct, seeds = strongest_of(
                part[part["epsilon"].isna() | (part["epsilon"] == epsilon)], epsilon
            )
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
    """Rows with the ``label`` of their configuration (:func:`configuration_labels`)."""
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


def over_images(rows: pd.DataFrame) -> Interval:
    """Mean and 95 % interval over the images and seeds of rows of one attack."""
    return share_over_images(np.array(list(rows["correct"])))


def share_over_images(correct: np.ndarray) -> Interval:
    """Mean of shares (seeds, images) with an interval that never collapses at 0 or 1."""
    mean, low, high = crossed_interval(correct.tolist())
    floor, ceiling = share_interval(correct.mean(0))
    return mean, max(0.0, min(low, floor)), min(1.0, max(high, ceiling))


def clean_correct(table: pd.DataFrame, label: str) -> dict[int, list[float]]:
    """By seed, the share of draws in which each clean image is right; of the most images."""
    rows = with_labels(table)
    rows = rows[rows["label"] == label].sort_values("n_images", ascending=False, kind="stable")
    return {row["seed"]: row["clean"] for row in row_dicts(rows.drop_duplicates("seed"))}


def clean_accuracy(table: pd.DataFrame, label: str) -> Interval:
    """Mean and 95 % interval of the accuracy of a configuration that is not attacked."""
    return share_over_images(np.array(list(clean_correct(table, label).values())))


def correct_by_seed(rows: pd.DataFrame) -> dict[int, np.ndarray]:
    """By seed, how each image fared in the one row of :func:`strongest`; empty without it."""
    if len(rows) == 0:
        return {}
    (row,) = row_dicts(rows)
    return dict(zip(row["seeds"], row["correct"], strict=True))


def difference_over_images(mine: dict[int, Any], others: dict[int, Any]) -> Interval | None:
    """Mean difference and 95 % interval over seeds and images; None without seeds in common.

    As claims are judged (:func:`rapa_lib.instruments.statistics.crossed_contrast`): image by image,
    each arm's seeds being its own. With one seed the interval is over images alone.

    Args:
        mine, others: by seed, how each image fared.
    """
    seeds = sorted(set(mine) & set(others))
    if not seeds or any(len(mine[s]) != len(others[s]) for s in seeds):
        return None
    arms = [np.array([of_seed[s] for s in seeds], dtype=float) for of_seed in (mine, others)]
    if len(seeds) == 1 or arms[0].shape[1] == 1:
        return crossed_interval(arms[0] - arms[1])
    found = crossed_contrast(arms, (1, -1))
    low, high = map(float, found.interval(0.95))
    return float(found.estimate), low, high


def interval_of(row: dict[str, Any]) -> Interval:
    """Mean and interval of a row of :func:`strongest`."""
    return row["mean"], row["low"], row["high"]


def row_dicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, by column."""
    return table.to_dict("records")


def _json(config: Any) -> str:
    return config if isinstance(config, str) else json.dumps(config)


def budget_text(norm: str, epsilon: float) -> str:
    """A budget as people write it."""
    return f"{255 * epsilon:.3g}/255" if norm == "linf" and epsilon else f"{epsilon:g}"


def level_text(level: str) -> str:
    """A level of attacks in a sentence."""
    return level.replace("_", "-")


def percent_text(interval: Interval) -> str:
    """A share and its interval in percent."""
    mean, low, high = (100 * value for value in interval)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def points_text(interval: Interval) -> str:
    """A difference of shares and its interval in points."""
    mean, low, high = (100 * value for value in interval)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def name_text(label: str) -> str:
    """A configuration's label in one line."""
    return label.replace("\n", ", ")


def strongest_by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Robust accuracy under the attack that leaves least, as :func:`strongest` finds it, by seed.

    Args:
        rows: of :func:`rows_by_image`.

    Returns:
        One row per configuration, level, norm, budget and seed: :data:`CONFIGURATION`, ``level``,
        ``norm``, ``epsilon``, ``attack``, ``seed``, ``n_images``, ``robust_accuracy`` (a share),
        ``correct`` (the share of draws for each image, as JSON; claims are judged over both).
    """
    rows = with_labels(rows)
    settings = rows.drop_duplicates("label").set_index("label")[
        [name for name in (*CONFIGURATION, *SYNCHRONISATION) if name in rows]
    ]
    return pd.DataFrame(
        settings.loc[found["label"]].to_dict()
        | {name: found[name] for name in ("level", "norm", "epsilon", "attack")}
        | {"seed": seed, "n_images": len(correct), "robust_accuracy": float(correct.mean())}
        | {"correct": json.dumps([round(float(share), 4) for share in correct])}
        for found in row_dicts(strongest(rows))
        for seed, correct in zip(found["seeds"], found["correct"], strict=True)
    )


def robustness_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration: accuracy in percent, clean and under each level, and norms.

    Args:
        rows: of :func:`rows_by_image`.
    """
    rows = with_labels(rows)
    found = strongest(rows)
    summary = []
    for label in label_order(found):
        own = rows[rows["label"] == label]
        row = {"network": name_text(label), "seeds": own["seed"].nunique()}
        row["clean"] = percent_text(clean_accuracy(rows, label))
        mine = found[found["label"] == label].sort_values(
            ["norm", "epsilon"], ascending=[False, True]
        )
        for level in LEVELS:
            for part in row_dicts(mine[mine["level"] == level]):
                budget = budget_text(part["norm"], part["epsilon"])
                name = f"{level_text(level)}, {NORMS[part['norm']]} {budget}"
                row[name] = f"{percent_text(interval_of(part))} ({part['attack']})"
        summary.append(row | _median_norms(own))
    return pd.DataFrame(summary).fillna(UNKNOWN)


def _median_norms(rows: pd.DataFrame) -> dict[str, str]:
    """Of each minimum-norm attack on a network, its median perturbation, by seed."""
    medians = {}
    for attack, part in rows[rows["epsilon"].isna()].groupby("attack", sort=False):
        norm = part["norm"].iloc[0]
        scale, unit = (255, "/255") if norm == "linf" else (1, "")
        numbers = part["median_norm"].astype(float)
        medians[f"median {NORMS[norm]} norm, {attack}"] = ", ".join(
            "∞" if np.isnan(n) else f"{scale * n:.2f}{unit}" for n in numbers
        )
    return medians


def differences(rows: pd.DataFrame, focus: float) -> dict[str, dict[str, Interval]]:
    """How much more accuracy networks have than the one ordinary network of a study.

    Args:
        rows: of :func:`rows_by_image`.
        focus: a budget (L∞).

    Returns:
        By label, and by ``"clean"`` or level: the difference of shares at the focus, over
        seeds and images. Empty where there is not one ordinary network, or no other.
    """
    rows = with_labels(rows)
    here = strongest_at(rows, focus)
    references = here.loc[here["tiling"] == REFERENCE, "label"].unique()
    if len(references) != 1:
        return {}
    gaps: dict[str, dict[str, Interval]] = {}
    for label in label_order(here):
        if label == references[0]:
            continue
        pairs: dict[str, Any] = {
            "clean": tuple(clean_correct(rows, one) for one in (label, references[0]))
        }
        for level in LEVELS:
            at = here[here["level"] == level]
            pairs[level] = tuple(
                correct_by_seed(at[at["label"] == one]) for one in (label, references[0])
            )
        gap = {name: difference_over_images(*pair) for name, pair in pairs.items()}
        gaps[label] = {name: value for name, value in gap.items() if value is not None}
    return gaps


def strongest_at(rows: pd.DataFrame, focus: float) -> pd.DataFrame:
    """Those rows of :func:`strongest` that are at one budget (L∞)."""
    found = strongest(rows)
    return found[(found["norm"] == "linf") & np.isclose(found["epsilon"], focus)]


def differences_summary(rows: pd.DataFrame, focus: float) -> pd.DataFrame:
    """One row per network that is compared: :func:`differences` in points, ready to print.

    Levels at which nothing was compared are left out.
    """
    gaps = differences(rows, focus)
    compared = {name for gap in gaps.values() for name in gap}
    return pd.DataFrame(
        {"network": name_text(label)}
        | {
            level_text(name): points_text(gap[name]) if name in gap else UNKNOWN
            for name in ("clean", *LEVELS)
            if name in compared
        }
        for label, gap in gaps.items()
    )


def decisive_level(rows: pd.DataFrame) -> str:
    """The level by which networks are compared: the standard suite where it was run."""
    return "standard" if (rows["level"] == "standard").any() else "adaptive"


def against_noise(rows: pd.DataFrame) -> dict[float, Interval]:
    """By budget (L∞), how much more `random` keeps than `noisy`, at the decisive level.

    Args:
        rows: of :func:`rows_by_image`; budgets are left out at which there is not one of each.
    """
    found = strongest(rows)
    decisive = found[(found["level"] == decisive_level(rows)) & (found["norm"] == "linf")]
    gaps = {}
    for epsilon, part in decisive.groupby("epsilon"):
        mine, noisy = (part[part["tiling"] == tiling] for tiling in ("random", "noisy"))
        if len(mine) == len(noisy) == 1:
            gap = difference_over_images(correct_by_seed(mine), correct_by_seed(noisy))
            if gap is not None:
                gaps[float(epsilon)] = gap
    return gaps


def noise_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per network that draws: the relative noise that fresh draws make on each layer."""
    return pd.DataFrame(
        {"tiling": record["tiling"], "seed": record["seed"], **record["noise"]}
        for record in records
        if record["noise"]
    )


def raised_alarms(records: Sequence[dict[str, Any]]) -> tuple[list[str], int]:
    """What each check says that found gradients to mislead, and the number of checks made."""
    alarms = [
        f"`{record['tiling']}`, seed {record['seed']}: not so that {alarm['check']} "
        f"({alarm['detail']})"
        for record in records
        for alarm in record["alarms"]
        if alarm["holds"] is False
    ]
    made = sum(alarm["holds"] is not None for record in records for alarm in record["alarms"])
    return alarms, made
