"""The figure of error against speed-up."""

import itertools
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rapa_lib.experiments.plots import (
    STYLE,
    WIDTH,
    joined,
    log_axes,
    set_title,
    t_interval,
    tiling_order,
    within_percent,
)

_KEYS = ["dataset", "epochs", "tiling", "n_tiles", "speedup"]


def tradeoff_figure(table: pd.DataFrame) -> Figure:
    """Test error against speed-up by tiling: what the acceleration costs.

    Args:
        table: rows with tiling, n_tiles, seed, test_error (%), speedup, dataset, epochs; maybe
            none. Dots are seeds, diamonds means, bars 95 % t-intervals over seeds; a line joins a
            tiling's means.

    Raises:
        ValueError: if a seed occurs twice at one tiling and speed-up: something else varies there,
            and an interval over these rows would be none over seeds.
    """
    twice = table[table.duplicated([*_KEYS, "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"table: seed {row['seed']} occurs twice for tiling {row['tiling']} with n_tiles "
            f"{row['n_tiles']}; expected rows that differ in their seeds alone"
        )
    settings = (
        table["dataset"].astype(str).str.replace("$", r"\$")
        + ", "
        + table["epochs"].astype(str)
        + " epochs"
    )
    dashes = dict(zip(settings.unique(), itertools.cycle(["-", "--", ":", "-."])))
    order = tiling_order(table["tiling"])
    colours = dict(zip(order, sns.color_palette("colorblind", len(order)), strict=True))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8))
        axes = figure.subplots()
        axes.set(xlabel="speed-up on analog arrays", ylabel="test error (%)")
        if not len(table):
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "no network to compare", ha="center", transform=axes.transAxes)
            return figure
        for (setting, tiling), rows in table.groupby([settings, "tiling"], sort=False):
            # Tilings of one speed-up stand side by side.
            shift = 1.03 ** (order.index(tiling) - (len(order) - 1) / 2)
            _draw_errors(axes, rows, shift, colours[tiling], dashes[setting])
        log_axes(axes, y=False)
        within_percent(axes, "y")
        axes.legend(handles=_handles(colours, dashes), loc="upper left", bbox_to_anchor=(1, 1))
        many = table.groupby(_KEYS)["seed"].nunique().max() > 1
        interval = "dots: seeds; diamonds: means with 95 % t-intervals" if many else "one seed"
        title = f"{joined(table['dataset'])}, {joined(table['epochs'])} epochs; {interval}"
        set_title(figure, title, axes)
    return figure


def _draw_errors(axes: Axes, rows: pd.DataFrame, shift: float, colour: Any, dash: str) -> None:
    """One tiling's seeds, means and intervals, along its speed-ups times ``shift``."""
    points = rows.groupby(["speedup", "n_tiles"])["test_error"]
    means = points.mean()
    low, high = np.array([t_interval(values) for _, values in points]).T
    axes.errorbar(
        means.index.get_level_values("speedup").to_numpy() * shift, means,
        yerr=[means - low, high - means], marker="D", markersize=5, linewidth=1, capsize=3,
        color=colour, linestyle=dash,
    )  # fmt: skip
    axes.plot(
        # A little to the left of their mean, which would cover them.
        rows["speedup"] * shift * 0.92, rows["test_error"], "o", markersize=4, alpha=0.6,
        color=colour, markeredgewidth=0,
    )  # fmt: skip


def _handles(colours: Mapping[str, Any], dashes: Mapping[str, Any]) -> list[Line2D]:
    """What the legend explains: tilings, and settings where there are several."""
    handles = [Line2D([], [], color=c, marker="D", label=t) for t, c in colours.items()]
    if len(dashes) > 1:
        handles += [
            Line2D([], [], color="0.3", linewidth=1, linestyle=dash, label=setting)
            for setting, dash in dashes.items()
        ]
    return handles
