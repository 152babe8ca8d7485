"""The accuracy experiment's figures, and assignments as pictures."""

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
)

CROWDED = 7  # more configurations than these need room of their own

MEASURES = {
    "test_error": "as it is",
    "test_error_vote": "vote of draws",
    "test_error_merged": "merged",
}


class _TilesInTurn(Normalize):
    """Tile t gets colour t mod 20."""

    def __call__(self, value, clip=None):
        return super().__call__(np.ma.where(value < 0, value, value % 20) + 0.5, clip)


def accuracy_figure(table: pd.DataFrame) -> Figure:
    """Test error by tiling: every run as a dot, means with 95 % t-intervals over seeds.

    Args:
        table: rows of ``accuracy.csv``. More than :data:`CROWDED` configurations stand in lines
            below one another, others side by side.
    """
    labels = configuration_labels(table)
    crowded = labels.nunique() > CROWDED
    table = table.assign(label=labels.map(_in_lines) if crowded else labels)
    names = label_order(table)
    with mpl.rc_context(STYLE):
        # Merged networks have a scale of their own: they can be far worse.
        if crowded:
            lines = max(name.count("\n") + 1 for name in names)
            figure = Figure(figsize=(WIDTH + 2, 1.4 + (0.12 + 0.15 * lines) * len(names)))
            panels = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        else:
            figure = Figure(figsize=(WIDTH, 4.8))
            panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        x, y = ("value", "label") if crowded else ("label", "value")
        palette = dict(zip(MEASURES.values(), sns.color_palette("colorblind"), strict=False))
        *as_they_are, merged = MEASURES
        for axes, measures in zip(panels, (as_they_are, [merged]), strict=True):
            long = table.melt(id_vars=["label", "seed"], value_vars=measures, var_name="measure")
            long["measure"] = long["measure"].map(MEASURES)
            common = {
                "data": long, "x": x, "y": y, "hue": "measure", "order": names,
                "palette": palette, "ax": axes, "orient": "h" if crowded else "v",
                "hue_order": [MEASURES[measure] for measure in measures],
            }  # fmt: skip
            sns.stripplot(
                **common, dodge=len(measures) > 1, jitter=False, size=4, alpha=0.5, legend=False
            )
            sns.pointplot(
                **common, dodge=0.4 * (len(measures) > 1), linestyle="none", marker="D",
                markersize=5, capsize=0.08, errorbar=t_interval, err_kws={"linewidth": 1.5},
            )  # fmt: skip
            if crowded:
                axes.set(xlabel="test error (%)", ylabel="")
                axes.grid(axis="y", linewidth=0.3)
                above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(measures)}
                axes.legend(title=None, **above)
            else:
                axes.set(xlabel="", ylabel="test error (%)")
                axes.legend(title=None, loc="upper left", bbox_to_anchor=(1, 1))
        if not crowded:
            panels[-1].set_xlabel("tiling")
        if not crowded and len(names) > 5:  # side by side they would overlap
            panels[-1].tick_params(axis="x", rotation=25)
            for label in panels[-1].get_xticklabels():
                label.set_horizontalalignment("right")
        seeds = table["seed"].nunique()
        interval = "dots: seeds; diamonds: means with 95 % t-intervals" if seeds > 1 else "one seed"
        title = f"{joined(table['dataset'])}, {joined(table['epochs'])} epochs; {interval}"
        set_title(figure, title, None if crowded else panels[0])
    return figure


def curves_figure(curves: pd.DataFrame) -> Figure:
    """Learning curves over epochs: a panel of training loss, one of test error, a line per tiling.

    Settings that several networks of one tiling differ in have a row of panels each, with the
    same axes; a tiling with one setting, such as the ordinary network, is in every row.

    Args:
        curves: rows with dataset, tiling, seed, epoch, train_loss, test_error (missing where an
            epoch was not tested), and maybe ``label`` (:func:`configuration_labels`).
    """
    if "label" not in curves:
        curves = curves.assign(label=configuration_labels(curves))
    parts = curves["label"].str.partition("\n")
    curves = curves.assign(setting=parts[2], test_error=curves["test_error"].astype(float))
    settings = [name for name in curves["setting"].unique() if name] or [""]
    tilings = tiling_order(curves["tiling"])
    looks = dict(zip(tilings, sns.color_palette("colorblind", len(tilings)), strict=True))
    many = curves["seed"].nunique() > 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + 2.4 * len(settings)))
        panels = figure.subplots(len(settings), 2, sharex=True, sharey="col", squeeze=False)
        for setting, row in zip(settings, panels, strict=True):
            shown = curves[curves["setting"].isin(["", setting])]
            _draw_curves(row, shown, tilings, looks, many)
            if setting:
                row[0].set_title(_in_lines(setting), size="small")
        for left in panels[:, 0]:
            _log_losses(left)
        for axes in panels[:-1].flat:
            axes.set_xlabel("")
        interval = "means over seeds, bands: 95 % t-intervals" if many else "one seed"
        set_title(figure, f"{joined(curves['dataset'])}; {interval}")
    return figure


def _draw_curves(
    row: Sequence[Axes],
    curves: pd.DataFrame,
    tilings: list[str],
    looks: Mapping[str, Any],
    many: bool,
) -> None:
    """Training loss and test error over epochs, a line per tiling; bands where seeds are many."""
    for axes, column, label in (
        (row[0], "train_loss", "training loss"),
        (row[1], "test_error", "test error (%)"),
    ):
        sns.lineplot(
            curves.dropna(subset=column), x="epoch", y=column, hue="tiling", style="tiling",
            hue_order=tilings, style_order=tilings, errorbar=t_interval if many else None,
            palette=looks, ax=axes, legend=axes is row[1],
        )  # fmt: skip
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    present = set(curves["tiling"])
    handles, names = row[1].get_legend_handles_labels()
    kept = [(h, n) for h, n in zip(handles, names, strict=True) if n in present]
    row[1].legend(*zip(*kept, strict=True), fontsize="small", handlelength=2.5)


def _log_losses(axes: Axes) -> None:
    """Losses of the first epochs would press the rest to the floor.

    Last of all: on logarithmic axes seaborn would draw geometric means.
    """
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())


def _in_lines(label: str) -> str:
    """A configuration's name in lines of less than 56 characters, each setting in one."""
    words = label.replace(" ", "\N{NO-BREAK SPACE}").replace("\n", ", ")
    return "\n".join(textwrap.wrap(words, 56)).replace("\N{NO-BREAK SPACE}", " ")


def assignment_figure(assignments: dict[str, Tensor], height: int, width: int) -> Figure:
    """Patches coloured by tile, one panel a scheme.

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
