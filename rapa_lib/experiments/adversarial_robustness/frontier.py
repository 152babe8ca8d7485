"""Robust against clean accuracy, rivals of like clean accuracy, and the two judges."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rapa_lib.experiments.adversarial_robustness.figures import interval_words, legend, looks
from rapa_lib.experiments.adversarial_robustness.tables import (
    CONFIGURATION,
    budget_text,
    clean_accuracy,
    clean_correct,
    correct_by_seed,
    decisive_level,
    difference_over_images,
    interval_of,
    name_text,
    over_images,
    percent_text,
    points_text,
    row_dicts,
    strongest,
    strongest_at,
    with_labels,
)
from rapa_lib.experiments.plots import STYLE, UNKNOWN, WIDTH, joined, label_order, set_title
from rapa_lib.robustness import NORMS

LIKE = 0.02
"""Networks whose clean accuracies differ by less can be compared in robustness."""


def frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """Clean and robust accuracy of every configuration at every budget, at the decisive level.

    Args:
        rows: of :func:`rapa_lib.experiments.adversarial_robustness.tables.rows_by_image`.

    Returns:
        One row per configuration, norm and budget: its settings, ``network``, ``level``, ``norm``,
        ``epsilon``, ``seeds``, and ``clean``, ``robust`` (shares), each with its 95 % interval over
        seeds and images (``_low``, ``_high``).
    """
    rows = with_labels(rows)
    found = strongest(rows)
    found = found[found["level"] == decisive_level(rows)]
    settings = rows.drop_duplicates("label").set_index("label")[CONFIGURATION]
    return pd.DataFrame(
        settings.loc[row["label"]].to_dict()
        | {"network": name_text(row["label"]), "level": row["level"], "norm": row["norm"]}
        | {"epsilon": row["epsilon"], "seeds": len(row["seeds"])}
        | _with_ends("clean", clean_accuracy(rows, row["label"]))
        | _with_ends("robust", interval_of(row))
        for row in row_dicts(found)
    )


def frontier_figure(rows: pd.DataFrame) -> Figure:
    """Robust against clean accuracy: a point per network, a panel per budget; higher is better.

    What is to the upper right of all others is on the frontier. Panels of a row share their axes.

    Args:
        rows: of :func:`rapa_lib.experiments.adversarial_robustness.tables.rows_by_image`.
    """
    rows = with_labels(rows)
    table, labels = frontier(rows), label_order(rows)
    norms = [norm for norm in NORMS if len(table) and norm in set(table["norm"])]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.3 + 2.4 * max(1, len(norms))))
        if not norms:
            figure.text(0.5, 0.5, "Neither adaptive attacks nor the standard suite.", ha="center")
            return figure
        widest = max(table.loc[table["norm"] == norm, "epsilon"].nunique() for norm in norms)
        panels = figure.subplots(len(norms), widest, squeeze=False, sharex=True, sharey="row")
        for norm, row in zip(norms, panels, strict=True):
            here = table[table["norm"] == norm]
            budgets = sorted(here["epsilon"].unique())
            for axes in row[len(budgets) :]:
                axes.set_axis_off()
            for epsilon, axes in zip(budgets, row, strict=False):
                axes.set_title(f"ε {budget_text(norm, epsilon)} ({NORMS[norm]})")
                for label, look in looks(labels):
                    at = here[(here["network"] == name_text(label)) & (here["epsilon"] == epsilon)]
                    _point(axes, at, name_text(label), look)
                axes.set_ylim(bottom=0)
            row[0].set_ylabel("robust accuracy (%)")
        for axes in panels[-1]:
            axes.set_xlabel("clean accuracy (%)")
        legend(figure, panels[0, 0])
        level = {"standard": "the standard suite", "adaptive": "adaptive attacks"}
        words = level[decisive_level(rows)]
        set_title(figure, f"{joined(rows['dataset'])}; {words}; {interval_words(rows)}")
    return figure


def _point(axes: mpl.axes.Axes, at: pd.DataFrame, name: str, look: dict) -> None:
    """One network with its intervals in both directions."""
    if len(at) == 0:
        return
    (row,) = row_dicts(at)
    ends = [
        [[100 * (row[kind] - row[f"{kind}_low"])], [100 * (row[f"{kind}_high"] - row[kind])]]
        for kind in ("clean", "robust")
    ]
    axes.errorbar(
        [100 * row["clean"]], [100 * row["robust"]], xerr=ends[0], yerr=ends[1], label=name,
        **look | {"linestyle": "none"}, markersize=5, elinewidth=0.8, capsize=1.5,
    )  # fmt: skip


def rivals(rows: pd.DataFrame, focus: float) -> pd.DataFrame:
    """What `random` keeps more than networks of like clean accuracy, in points, ready to print.

    Args:
        rows: of :func:`rapa_lib.experiments.adversarial_robustness.tables.rows_by_image`.
        focus: the budget (L∞).

    Returns:
        One row per pair of a `random` network and another: whether their clean accuracies differ by
        less than :data:`LIKE`, both differences with 95 % intervals over seeds and images.
    """
    rows = with_labels(rows)
    here = strongest_at(rows, focus)
    here = here[here["level"] == decisive_level(rows)]
    labels = label_order(here) if len(here) else []
    table = []
    for mine in (label for label in labels if label.split("\n")[0] == "random"):
        for other in (label for label in labels if label != mine):
            pair = (mine, other)
            clean = difference_over_images(*(clean_correct(rows, one) for one in pair))
            robust = difference_over_images(
                *(correct_by_seed(here[here["label"] == one]) for one in pair)
            )
            if clean is None or robust is None:
                continue
            table.append(
                {
                    "network": name_text(mine),
                    "against": name_text(other),
                    "clean accuracy": points_text(clean),
                    "robust accuracy": points_text(robust),
                    "comparable": "yes" if abs(clean[0]) < LIKE else "no",
                }
            )
    return pd.DataFrame(table)


def judges(rows: pd.DataFrame) -> pd.DataFrame:
    """Robust accuracy by two judges, in percent, ready to print: fresh draws, and one fixed draw.

    Both by APGD on cross-entropy, then its targeted form. Where one fixed draw keeps as much as
    fresh ones do, the function is smoother; where it keeps less, chance at test time is what
    protects.

    Args:
        rows: of :func:`rapa_lib.experiments.adversarial_robustness.tables.rows_by_image`.

    Returns:
        One row per network and budget that was attacked under a fixed draw; empty without any.
    """
    rows = with_labels(rows)
    last = rows[(rows["level"] == "standard") & (rows["attack"] == "APGD-T")]
    table = []
    for label in label_order(last) if len(last) else []:
        own = last[last["label"] == label]
        for (norm, epsilon), part in own.groupby(["norm", "epsilon"], sort=False):
            fresh, frozen = (part[part["purpose"] == one] for one in ("suite", "frozen"))
            if len(frozen) == 0:
                continue
            table.append(
                {
                    "network": name_text(label),
                    "ε": f"{NORMS[norm]} {budget_text(norm, epsilon)}",
                    "fresh draws": percent_text(over_images(fresh)) if len(fresh) else UNKNOWN,
                    "one fixed draw": percent_text(over_images(frozen)),
                }
            )
    return pd.DataFrame(table)


def _with_ends(name: str, interval: tuple[float, float, float]) -> dict[str, float]:
    names = (name, f"{name}_low", f"{name}_high")
    return dict(zip(names, np.round(interval, 6).tolist(), strict=True))
