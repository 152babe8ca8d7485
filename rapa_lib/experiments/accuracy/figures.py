"""The accuracy experiment's figures and summary table, and assignments as pictures."""

import textwrap

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
    with_interval,
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
    """Learning curves: training loss and test error of one draw over epochs, by tiling.

    Args:
        curves: rows with dataset, tiling, seed, epoch, train_loss, test_error (missing where an
            epoch was not tested). More than
            :data:`CROWDED` configurations have a row of panels for each tiling.
    """
    if "label" not in curves:
        curves = curves.assign(label=configuration_labels(curves))
    names = label_order(curves)
    many = curves["seed"].nunique() > 1
    shown = "means over seeds, bands: 95 % t-intervals" if many else "one seed"
    title = f"{joined(curves['dataset'])}; {shown}"
    with mpl.rc_context(STYLE):
        if len(names) > CROWDED:
            tilings = tiling_order(curves["tiling"])
            told = {name: _in_lines("\n".join(name.split("\n")[1:])) for name in names}
            of_tiling = curves.groupby("tiling")["label"].unique()
            heights = [  # so that each legend has room
                max(1.7, 0.6 + sum(0.05 + 0.17 * (told[n].count("\n") + 1) for n in of_tiling[t]))
                for t in tilings
            ]
            figure = Figure(figsize=(WIDTH + 3, 0.8 + sum(heights)))
            panels = figure.subplots(
                len(tilings), 2, sharex=True, sharey="col", squeeze=False, height_ratios=heights
            )
            for tiling, (left, right) in zip(tilings, panels, strict=True):
                _draw_curves(left, right, curves[curves["tiling"] == tiling], many)
                handles, labels = right.get_legend_handles_labels()
                right.legend(
                    handles, [told[label] for label in labels], title=tiling, fontsize="small",
                    loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0, alignment="left",
                )  # fmt: skip
                if tiling != tilings[-1]:
                    left.set_xlabel("")
                    right.set_xlabel("")
            for left in panels[:, 0]:
                _log_losses(left)
            set_title(figure, title)
            return figure
        figure = Figure(figsize=(WIDTH, 3.2))
        left, right = figure.subplots(1, 2)
        _draw_curves(left, right, curves, many)
        _log_losses(left)
        right.legend(title=None)
        # Half the width is the left axes': a long name has its place above both.
        set_title(figure, title, left if len(joined(curves["dataset"])) <= 30 else None)
    return figure


def _draw_curves(left: Axes, right: Axes, curves: pd.DataFrame, many: bool) -> None:
    """Training loss and test error over epochs, a line a label; bands where seeds are many."""
    names = label_order(curves)
    for axes, column, label in (
        (left, "train_loss", "training loss"),
        (right, "test_error", "test error (%)"),
    ):
        sns.lineplot(
            curves.dropna(subset=column), x="epoch", y=column, hue="label", style="label",
            hue_order=names, style_order=names, errorbar=t_interval if many else None,
            palette="colorblind", ax=axes, legend=axes is right,
        )  # fmt: skip
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)


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


def accuracy_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean test errors over seeds with 95 % t-intervals, one row a configuration.

    Args:
        table: rows of ``accuracy.csv``.

    Returns:
        Strings ready to print; an interval is missing where there is one seed.
    """
    table = table.assign(label=configuration_labels(table))
    keys = ["dataset", "n_tiles", "tile_init", "pooling", "epochs"]
    rows = []
    for label in label_order(table):
        runs = table[table["label"] == label]
        tiling, *others = label.split("\n")
        others = [other for other in others if other.split()[0] not in keys]
        row = {"tiling": ", ".join([tiling, *others])}
        row |= {key: runs[key].iloc[0] for key in keys} | {"seeds": len(runs)}
        row["test error (%)"] = with_interval(runs["test_error"])
        row["vote (%)"] = with_interval(runs["test_error_vote"])
        row["mean softmax (%)"] = with_interval(runs["test_error_softmax"])
        row["merged (%)"] = with_interval(runs["test_error_merged"])
        row["parameters"] = f"{int(runs['n_parameters'].iloc[0]):,}"
        row["seconds an epoch"] = f"{(runs['train_seconds'] / runs['epochs']).mean():.1f}"
        rows.append(row)
    return pd.DataFrame(rows)
