"""The robustness experiment's figures: what attacks leave of the accuracy."""

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rapa_lib.experiments.adversarial_robustness.tables import (
    Interval,
    at_focus,
    budget_text,
    clean_accuracy,
    name_text,
    over_images,
    strongest,
    with_labels,
)
from rapa_lib.experiments.plots import STYLE, WIDTH, joined, label_order, set_title
from rapa_lib.robustness import LEVELS, NORMS

LEVEL_TITLES = {
    "published": "published attacks: one gradient of one draw",
    "adaptive": "adaptive attacks: gradients averaged over draws",
    "gradient_free": "gradient-free attacks: they only ask for answers",
    "standard": "standard suite: APGD and Square, worst case image by image",
}

# Colours, and what tells lines apart in grey.
_MARKERS = "os^DvPX*"
_DASHES = ("-", "--", "-.", ":")

MOST_EXAMPLES = 6  # networks whose examples are shown


def robustness_figure(rows: pd.DataFrame) -> Figure:
    """Robust accuracy against the budget ε: a row per level, a column per norm, a line per network.

    At each ε the attack counts that leaves least; at 0 there is the clean accuracy. Intervals are
    95 % over images and, where there are several, seeds. All panels share the axis of accuracy,
    those of one norm that of ε.

    Args:
        rows: of :func:`rapa_lib.experiments.adversarial_robustness.tables.rows_by_image`.
    """
    rows = with_labels(rows)
    found = strongest(rows)
    labels = label_order(found)
    clean = {label: clean_accuracy(rows, label) for label in labels}
    levels = [level for level in LEVELS if level in set(found["level"])]
    norms = [norm for norm in NORMS if norm in set(found["norm"])]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 + 2.3 * len(levels)))
        panels = figure.subplots(len(levels), len(norms), squeeze=False, sharey=True, sharex="col")
        for level, row in zip(levels, panels, strict=True):
            for norm, axes in zip(norms, row, strict=True):
                here = found[(found["norm"] == norm) & (found["level"] == level)]
                # Budgets grow by factors: side by side they can all be seen.
                budgets = sorted({0.0, *found.loc[found["norm"] == norm, "epsilon"]})
                _budget_lines(axes, here, clean, budgets)
                axes.set_xticks(range(len(budgets)), [budget_text(norm, e) for e in budgets])
            row[0].set_title(LEVEL_TITLES[level])
            row[0].set_ylabel("robust accuracy (%)")
        for norm, axes in zip(norms, panels[-1], strict=True):
            axes.set_xlabel(f"ε ({NORMS[norm]})")
        panels[0, 0].set_ylim(bottom=0)
        legend(figure, panels[0, 0])
        set_title(figure, f"{joined(rows['dataset'])}; {interval_words(rows)}")
    return figure


def _budget_lines(
    axes: Axes, found: pd.DataFrame, clean: dict[str, Interval], budgets: list[float]
) -> None:
    """Every network's accuracy at every budget, a little beside one another."""
    for i, (label, look) in enumerate(looks(list(clean))):
        line = found[found["label"] == label].sort_values("epsilon")
        if len(line) == 0:
            continue
        points = [clean[label], *line[["mean", "low", "high"]].to_numpy()]
        places = [budgets.index(e) for e in (0.0, *line["epsilon"])]
        shift = 0.06 * (i - (len(clean) - 1) / 2)
        _points(axes, np.add(places, shift), points, label=name_text(label), **look)


def draws_figure(rows: pd.DataFrame) -> Figure:
    """Robust accuracy against the number of draws of a gradient, at one budget.

    Networks that do not draw have one gradient, whatever the number: a point of its own, and a
    dotted line.

    Args:
        rows: of :func:`rapa_lib.experiments.adversarial_robustness.tables.rows_by_image`.
    """
    rows = at_focus(with_labels(rows))
    labels = label_order(rows)
    fixed = {label for label in labels if set(rows.loc[rows["label"] == label, "draws"]) == {1}}
    counts = sorted(rows.loc[~rows["label"].isin(fixed), "draws"].unique())
    first = 0 if fixed else 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2 if len(rows) else 1.2))
        if not len(rows):
            figure.text(0.5, 0.5, "Projected gradient descent was not run.", ha="center")
            return figure
        axes = figure.subplots()
        for i, (label, look) in enumerate(looks(labels)):
            line, shift = rows[rows["label"] == label], 0.06 * (i - (len(labels) - 1) / 2)
            if label in fixed:
                point = over_images(line)
                look |= {"linestyle": "none"}
                _points(axes, [shift], [point], label=name_text(label), **look)
                axes.axhline(100 * point[0], color=look["color"], linestyle=":", linewidth=1.2)
                continue
            curve = [(counts.index(m) + 1, over_images(part)) for m, part in line.groupby("draws")]
            places, points = zip(*curve, strict=True)
            _points(axes, np.add(places, shift), points, label=name_text(label), **look)
        names = (["does not\ndraw"] if fixed else []) + [str(count) for count in counts]
        axes.set_xticks(range(first, len(counts) + 1), names)
        axes.set(xlabel="draws of each gradient", ylabel="robust accuracy (%)", ylim=(0, None))
        legend(figure, axes)
        epsilon = budget_text(rows["norm"].iloc[0], rows["epsilon"].iloc[0])
        attack = f"PGD with {rows['steps'].iloc[0]} steps, ε {epsilon} (L∞)"
        set_title(figure, f"{joined(rows['dataset'])}; {attack}; {interval_words(rows)}")
    return figure


def examples_figure(records: Sequence[dict[str, Any]]) -> Figure:
    """Perturbed images with each network's answer: a row per network, clean images above.

    Answers are those of most draws; the share is of fresh draws that are still right.

    Args:
        records: of the experiment, of the same images; of several of one configuration the first
            is shown, and of many configurations the first :data:`MOST_EXAMPLES`.
    """
    table = with_labels(pd.DataFrame(records))
    shown = [
        (label, records[table.index[table["label"] == label][0]]["examples"])
        for label in label_order(table)
    ]
    shown = [(label, examples) for label, examples in shown if examples]
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        if not shown:
            figure = Figure(figsize=(WIDTH, 1.2))
            figure.text(
                0.5, 0.5, "No examples: projected gradient descent was not run.", ha="center"
            )
            return figure
        n_all, shown = len(shown), shown[:MOST_EXAMPLES]
        first = shown[0][1]
        n_images = len(first["labels"])
        figure = Figure(figsize=(WIDTH, 1.55 * (len(shown) + 1) + 0.4))
        panels = figure.subplots(len(shown) + 1, n_images, squeeze=False)
        for axes, image, name in zip(panels[0], first["clean"], first["labels"], strict=True):
            _picture(axes, image, name, "black")
        panels[0, 0].set_ylabel("clean")
        for (label, examples), row in zip(shown, panels[1:], strict=True):
            _answers(row, examples)
            row[0].set_ylabel(label)
        focus = budget_text("linf", records[0]["measurement"]["focus"])
        set_title(
            figure,
            f"{joined(table['dataset'])}: attacked with ε {focus} (L∞); the answer "
            "of most draws, right ✓ or wrong ✗, and the share of fresh draws that are right"
            + (f"; {len(shown)} of {n_all} networks" if n_all > len(shown) else ""),
        )
    return figure


def _answers(row: Sequence[Axes], examples: dict[str, Any]) -> None:
    """One network's perturbed images and its answers."""
    columns = ("perturbed", "perturbed_answers", "labels", "withstood")
    for axes, image, answer, right, share in zip(
        row, *(examples[column] for column in columns), strict=True
    ):
        mark, colour = ("✓", "tab:green") if answer == right else ("✗", "tab:red")
        _picture(axes, image, f"{answer}\n{mark} {100 * share:.0f} %", colour)


def looks(labels: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Colour, marker and dashes of every network."""
    for i, (label, colour) in enumerate(
        zip(labels, sns.color_palette("colorblind", len(labels)), strict=True)
    ):
        marker, dashes = _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)]
        yield label, {"color": colour, "marker": marker, "linestyle": dashes}


def legend(figure: Figure, axes: Axes) -> None:
    """The networks' names below the panels, in as many columns as find room."""
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, 80 // (8 + max(map(len, names))))  # characters of a name and its line
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=3)


def _points(axes: Axes, places: Any, points: Any, **look: Any) -> None:
    mean, low, high = 100 * np.array(points, dtype=float).T
    axes.errorbar(
        places, mean, yerr=[mean - low, high - mean],
        **{"markersize": 4.5, "linewidth": 1.3, "elinewidth": 0.8, "capsize": 1.5} | look,
    )  # fmt: skip


def _picture(axes: Axes, image: Any, title: str, colour: str) -> None:
    image = np.asarray(image, dtype=np.uint8)
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, color=colour, fontsize=9, loc="center")


def interval_words(rows: pd.DataFrame) -> str:
    """What intervals are over, in words."""
    many = rows["seed"].nunique() > 1
    return f"95 % intervals over images{' and seeds' if many else ''}"
