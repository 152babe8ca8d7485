"""The accuracy experiment's figures, and assignments as pictures."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from rapa_lib.experiments.plots import (
    STYLE,
    WIDTH,
    configuration_labels,
    joined,
    label_order,
    set_title,
    t_interval,
    tiling_order,
    within_percent,
)

FEW_ROWS = 4  # more rows of curves than these are lower
CROWDED = 7  # more configurations than these need room of their own

MEASURES = {
    "test_error": "as it is",
    "test_error_vote": "vote of draws",
    "test_error_merged": "merged",
}


CURVES = {"train_loss": "training loss", "test_error": "test error (%)"}


def without_foreign_statistics(table: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Leave out errors of networks with dropout as they are, if there are other networks.

    Their statistics of normalisation are of outputs that were dropped in part, and do not fit the
    network with nothing dropped: such an error says how far off they are, and would stretch the
    axis of all others.
    """
    dropped = table["tiling"] == "dropout"
    if dropped.all():
        return table
    return table.assign(**{name: table[name].astype(float).mask(dropped) for name in measures})


class _TilesInTurn(Normalize):
    """Tile t gets colour t mod 20."""

    def __call__(self, value: Any, clip: bool | None = None) -> Any:
        return super().__call__(np.ma.where(value < 0, value, value % 20) + 0.5, clip)


def accuracy_figure(table: pd.DataFrame) -> Figure:
    """Test error by tiling: every run as a dot, means with 95 % t-intervals over seeds.

    Of networks with dropout only *merged*, whose statistics of normalisation fit.

    Args:
        table: rows of ``accuracy.csv``. More than :data:`CROWDED` configurations stand in lines
            below one another, others side by side.
    """
    labels = configuration_labels(table)
    crowded = labels.nunique() > CROWDED
    table = table.assign(label=labels.map(_in_lines) if crowded else labels)
    names = label_order(table)
    *as_they_are, merged = MEASURES
    table = without_foreign_statistics(table, as_they_are)
    with mpl.rc_context(STYLE):
        figure, panels = _lines(names) if crowded else _columns()
        # Merged networks have a scale of their own: they can be far worse.
        for axes, measures in zip(panels, (as_they_are, [merged]), strict=True):
            _draw_errors(axes, table, names, measures, crowded)
            (_finish_lines if crowded else _finish_column)(axes, len(measures))
        if not crowded:
            _name_columns(panels[-1], len(names))
        seeds = table["seed"].nunique()
        interval = "dots: seeds; diamonds: means with 95 % t-intervals" if seeds > 1 else "one seed"
        title = f"{joined(table['dataset'])}, {joined(table['epochs'])} epochs; {interval}"
        set_title(figure, title, None if crowded else panels[0])
    return figure


def _lines(names: Sequence[str]) -> tuple[Figure, Sequence[Axes]]:
    """Two panels beside each other, with room for a line per name."""
    lines = max(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(WIDTH + 2, 1.4 + (0.12 + 0.15 * lines) * len(names)))
    return figure, figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))


def _columns() -> tuple[Figure, Sequence[Axes]]:
    """Two panels below each other."""
    figure = Figure(figsize=(WIDTH, 4.8))
    return figure, figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))


def _draw_errors(
    axes: Axes, table: pd.DataFrame, names: list[str], measures: list[str], crowded: bool
) -> None:
    """Dots and diamonds of some measures; configurations along y if there are many."""
    long = table.melt(id_vars=["label", "seed"], value_vars=measures, var_name="measure")
    long["measure"] = long["measure"].map(MEASURES)
    x, y = ("value", "label") if crowded else ("label", "value")
    common = {
        "data": long, "x": x, "y": y, "hue": "measure", "order": names, "ax": axes,
        "palette": dict(zip(MEASURES.values(), sns.color_palette("colorblind"), strict=False)),
        "hue_order": [MEASURES[measure] for measure in measures],
        "orient": "h" if crowded else "v",
    }  # fmt: skip
    sns.stripplot(**common, dodge=len(measures) > 1, jitter=False, size=4, alpha=0.5, legend=False)
    sns.pointplot(
        **common, dodge=0.4 * (len(measures) > 1), linestyle="none", marker="D", markersize=5,
        capsize=0.08, errorbar=t_interval, err_kws={"linewidth": 1.5},
    )  # fmt: skip


def _finish_lines(axes: Axes, n_measures: int) -> None:
    axes.set(xlabel="test error (%)", ylabel="")
    axes.grid(axis="y", linewidth=0.3)
    axes.legend(title=None, loc="lower left", bbox_to_anchor=(0, 1), ncols=n_measures)
    within_percent(axes, "x")


def _finish_column(axes: Axes, n_measures: int) -> None:
    axes.set(xlabel="", ylabel="test error (%)")
    axes.legend(title=None, loc="upper left", bbox_to_anchor=(1, 1))
    within_percent(axes, "y")


def _name_columns(axes: Axes, n_names: int) -> None:
    axes.set_xlabel("tiling")
    if n_names > 5:  # side by side they would overlap
        axes.tick_params(axis="x", rotation=25)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")


def curves_figure(curves: pd.DataFrame) -> Figure:
    """Learning curves over epochs: a panel of training loss, one of test error, a line per tiling.

    Settings that several networks of one tiling differ in have a row of panels each, with the same
    axes. A tiling is in every row whose settings agree with its own: one that has a single setting,
    such as the ordinary network, is in all of them. Where networks were tested at their end alone,
    losses are all there is to follow: settings then stand in two columns. Networks with dropout
    have no line of test errors: they were tested with statistics of normalisation that do not fit.

    Args:
        curves: rows with dataset, tiling, seed, epoch, train_loss, test_error (missing where an
            epoch was not tested), and maybe ``label`` (:func:`configuration_labels`).
    """
    if "label" not in curves:
        curves = curves.assign(label=configuration_labels(curves))
    curves = curves.assign(test_error=curves["test_error"].astype(float))
    curves = without_foreign_statistics(curves, ["test_error"])
    tilings = tiling_order(curves["tiling"])
    looks = dict(zip(tilings, sns.color_palette("colorblind", len(tilings)), strict=True))
    many = curves["seed"].nunique() > 1
    settings = _curve_rows(curves)
    quantities = [name for name in CURVES if _followed(curves, name)] or ["train_loss"]
    across = 2 if len(quantities) < len(settings) else len(quantities)
    n_rows = -(-len(settings) * len(quantities) // across)
    with mpl.rc_context(STYLE):
        height = 2.4 if n_rows <= FEW_ROWS else 1.7
        figure = Figure(figsize=(WIDTH, 0.9 + height * n_rows))
        panels = figure.subplots(
            n_rows, across, sharex=True, sharey="col" if len(quantities) > 1 else "all",
            squeeze=False,
        )  # fmt: skip
        free = iter(panels.flat)
        for title, shown in settings.items():
            for column, axes in zip(quantities, free, strict=False):
                _draw_curves(axes, shown, column, looks, many)
                if title and column == quantities[0]:
                    axes.set_title(_in_lines(title, 44), size="small")
        for axes in free:  # of the last row, at most one: the panel above it has the labels
            axes.remove()
            panels[-2, -1].tick_params(labelbottom=True)
        for axes, column in zip(panels[0], quantities, strict=False):
            _scale(axes, curves[column])
        for axes in panels[:-1].flat:
            axes.set_xlabel("")
        _legend_below(figure)
        bands = ["range of losses", "95 % t-intervals of errors"][: len(quantities)]
        interval = f"means over seeds, bands: {', '.join(bands)}" if many else "one seed"
        set_title(figure, f"{joined(curves['dataset'])}; {interval}")
    return figure


def _followed(curves: pd.DataFrame, name: str) -> bool:
    """Whether a quantity is known at more epochs than one, or at as many as there are."""
    epochs = curves.dropna(subset=name)["epoch"].nunique()
    return epochs > 1 or epochs == curves["epoch"].nunique()


def _curve_rows(curves: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The curves of every row by its title: the settings that it is for, and whose they are.

    Settings that are part of another's get no row of their own: ``tile_init identical`` stands in
    every row with that start, whatever the numbers of tiles.
    """
    parts = curves["label"].str.split("\n").map(lambda words: frozenset(words[1:]))
    order = [frozenset(label.split("\n")[1:]) for label in label_order(curves)]
    rows = {}
    for setting in dict.fromkeys(order):
        if any(setting < other for other in order):
            continue
        mine = curves[parts == setting]
        words = mine["label"].iloc[0].split("\n")[1:]
        owners = ", ".join(tiling_order(mine["tiling"]))
        title = f"{owners}: " + "\n".join(words) if words else ""
        rows[title] = curves[parts.map(setting.issuperset)]
    return rows


def _draw_curves(
    axes: Axes, curves: pd.DataFrame, column: str, looks: Mapping[str, Any], many: bool
) -> None:
    """One quantity over epochs, a line per tiling; bands where seeds are many.

    Losses spread over orders of magnitude, and symmetric intervals of them fall below nothing.
    """
    band = (lambda values: (values.min(), values.max())) if column == "train_loss" else t_interval
    sns.lineplot(
        curves.dropna(subset=column), x="epoch", y=column, hue="tiling", style="tiling",
        hue_order=list(looks), style_order=list(looks), errorbar=band if many else None,
        palette=looks, ax=axes, legend=True, err_kws={"alpha": 0.12, "linewidth": 0},
    )  # fmt: skip
    # A line of one point is none.
    known = curves.dropna(subset=column).groupby("tiling")
    for tiling, points in known[["epoch", column]]:
        if points["epoch"].nunique() == 1:
            axes.plot(points["epoch"].iloc[0], points[column].mean(), "D", color=looks[tiling])
    axes.set(xlabel="epoch", ylabel=CURVES[column])
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator("auto", integer=True))


def _scale(axes: Axes, values: pd.Series) -> None:
    """Fit the axis to the runs, not to the bands of few seeds; logarithmic where they spread.

    Losses always are: those of the first epochs would press the rest to the floor. Last of all: on
    logarithmic axes seaborn would draw geometric means.
    """
    low, high = values.min(), values.max()
    if values.name == "train_loss" and high > 0:  # no loss at all has no place on such an axis
        low = max(values[values > 0].min(), 1e-6 * high)
    spread = high / low if low > 0 else math.inf
    if low > 0 and (values.name == "train_loss" or spread > 10):
        axes.set_yscale("log")
        margin = max(spread, 1.1) ** 0.05
        axes.set_ylim(low / margin, high * margin)
        subs = (1, 1.5, 2, 3, 5, 7) if spread < 10 else (1, 2, 5) if spread < 100 else (1,)
        axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    else:
        margin = 0.05 * max(high - low, 2.0)
        axes.set_ylim(low - margin, high + margin)


def _legend_below(figure: Figure) -> None:
    """One legend for all panels, of the tilings that any of them shows."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    for axes in figure.axes:
        if (legend := axes.get_legend()) is not None:
            legend.remove()
    columns = min(len(names), 4)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=3)


def _in_lines(label: str, width: int = 56) -> str:
    """A configuration's name in lines of less than ``width`` characters, each setting in one."""
    words = label.replace(" ", "\N{NO-BREAK SPACE}").replace("\n", ", ")
    return "\n".join(textwrap.wrap(words, width)).replace("\N{NO-BREAK SPACE}", " ")


def assignment_figure(assignments: dict[str, Tensor], height: int, width: int) -> Figure:
    """Patches coloured by tile, one panel per scheme.

    Args:
        assignments: by title, the tile of every output position (L,); -1 is drawn white.
        height, width: of the output plane, L = height * width.
    """
    with mpl.rc_context(STYLE):
        columns = min(len(assignments), 3)
        rows = -(-len(assignments) // columns)
        figure = Figure(figsize=(WIDTH, 0.4 + WIDTH / columns * rows * height / width))
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (title, tiles) in zip(panels, assignments.items(), strict=False):
            plane = tiles.view(height, width).numpy()
            # Twenty colours, taken in turn: neighbours in number never share one.
            axes.imshow(
                np.ma.masked_less(plane, 0), cmap="tab20", interpolation="nearest",
                norm=_TilesInTurn(0, 20),
            )  # fmt: skip
            axes.set_title(title)
        for axes in panels:
            axes.set_axis_off()
    return figure
