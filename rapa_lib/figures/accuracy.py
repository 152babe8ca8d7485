"""The accuracy experiment's figures and summary table, and assignments as pictures."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from rapa_lib.figures._style import (
    STYLE,
    WIDTH,
    configuration_labels,
    joined,
    label_order,
    set_title,
    t_interval,
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
        table: rows of ``accuracy.csv``.
    """
    table = table.assign(label=configuration_labels(table))
    with mpl.rc_context(STYLE):
        names = list(table["label"].unique())
        crowded = len(names) > CROWDED
        longest = max(len(name) for name in names)
        figure = Figure(figsize=(WIDTH, 4.8 + (0.08 * longest if crowded else 0)))
        # Merged networks have a scale of their own: they can be far worse.
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        palette = dict(zip(MEASURES.values(), sns.color_palette("colorblind"), strict=False))
        *as_they_are, merged = MEASURES
        for axes, measures in ((upper, as_they_are), (lower, [merged])):
            long = table.melt(id_vars=["label", "seed"], value_vars=measures, var_name="measure")
            long["measure"] = long["measure"].map(MEASURES)
            common = {
                "data": long, "x": "label", "y": "value", "hue": "measure",
                "order": label_order(table), "palette": palette, "ax": axes,
                "hue_order": [MEASURES[measure] for measure in measures],
            }  # fmt: skip
            sns.stripplot(
                **common, dodge=len(measures) > 1, jitter=False, size=4, alpha=0.5, legend=False
            )
            sns.pointplot(
                **common, dodge=0.4 * (len(measures) > 1), linestyle="none", marker="D",
                markersize=5, capsize=0.08, errorbar=t_interval, err_kws={"linewidth": 1.5},
            )  # fmt: skip
            axes.set(xlabel="", ylabel="test error (%)")
            axes.legend(title=None, loc="upper left", bbox_to_anchor=(1, 1))
        lower.set_xlabel("tiling")
        if crowded:  # a configuration in one upright line
            ticks = [label.replace("\n", ", ") for label in label_order(table)]
            lower.set_xticks(range(len(ticks)), ticks, rotation=90)
        elif len(names) > 5:  # side by side they would overlap
            lower.tick_params(axis="x", rotation=25)
            for label in lower.get_xticklabels():
                label.set_horizontalalignment("right")
        seeds = table["seed"].nunique()
        interval = "dots: seeds; diamonds: means with 95 % t-intervals" if seeds > 1 else "one seed"
        title = f"{joined(table['dataset'])}, {joined(table['epochs'])} epochs; {interval}"
        set_title(figure, title, upper)
    return figure


def curves_figure(curves: pd.DataFrame) -> Figure:
    """Learning curves: training loss and test error of one draw over epochs, by tiling.

    Args:
        curves: rows with dataset, tiling, seed, epoch, train_loss, test_error.
    """
    if "label" not in curves:
        curves = curves.assign(label=configuration_labels(curves))
    with mpl.rc_context(STYLE):
        names = label_order(curves)
        crowded = len(names) > CROWDED
        figure = Figure(figsize=(WIDTH, 3.2 + (0.22 * len(names) if crowded else 0)))
        left, right = figure.subplots(1, 2)
        many = curves["seed"].nunique() > 1
        for axes, column, label in (
            (left, "train_loss", "training loss"),
            (right, "test_error", "test error (%)"),
        ):
            sns.lineplot(
                curves, x="epoch", y=column, hue="label", style="label",
                hue_order=label_order(curves), style_order=label_order(curves),
                errorbar=t_interval if many else None, palette="colorblind", ax=axes,
                legend=axes is right,
            )  # fmt: skip
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
        # Losses of the first epochs would press the rest to the floor.
        left.set_yscale("log")
        left.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        left.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        left.yaxis.set_minor_locator(mpl.ticker.NullLocator())
        right.legend(title=None)
        if crowded:  # the curves would be behind it
            handles = right.get_legend().legend_handles
            right.get_legend().remove()
            lines = [name.replace("\n", ", ") for name in names]
            figure.legend(handles, lines, loc="outside lower left", fontsize="small")
        shown = "means over seeds, bands: 95 % t-intervals" if many else "one seed"
        # Half the width is the left axes': a long name has its place above both.
        short = not crowded and len(joined(curves["dataset"])) <= 30
        set_title(figure, f"{joined(curves['dataset'])}; {shown}", left if short else None)
    return figure


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
