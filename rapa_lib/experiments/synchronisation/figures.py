"""The figures of averaged tiles: error against k, error against speed-up, spread of the tiles."""

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
    layer_text,
    set_title,
    t_interval,
    within_percent,
)
from rapa_lib.experiments.recipe import SYNCHRONISATION
from rapa_lib.experiments.synchronisation.spread import steady
from rapa_lib.experiments.synchronisation.tables import NEVER, by_size, every_text
from rapa_lib.runtime import PERFORATED_DENSE

ERRORS = {
    "test_error": ("one pass", "o", "-"),
    "test_error_vote": ("vote", "s", ":"),
    "test_error_merged": ("merged", "^", "--"),
}
"""What the first figure compares: words, marker and line of each column."""

_OTHERS = [name for name in SYNCHRONISATION if name != "sync_every"]


def alone(table: pd.DataFrame) -> pd.DataFrame:
    """The RAPA rows whose tiles are averaged every k steps, or never, and nothing else."""
    return table[(table["tiling"] == "random") & (table[_OTHERS] == 0).all(axis=1)]


def errors_figure(table: pd.DataFrame) -> Figure:
    """Test error against the steps between averagings, a panel for each number of tiles.

    Args:
        table: rows of ``synchronisation.csv``; maybe none. Means over seeds, bars 95 %
            t-intervals; a band is the ordinary network, a line perforation tested dense.
    """
    rows = alone(table)
    sizes = by_size(rows["n_tiles"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6))
        if not sizes:
            return _nothing(figure)
        panels = np.atleast_1d(figure.subplots(1, len(sizes), sharey=True))
        ks = _places(rows["sync_every"])
        colours = dict(zip(ERRORS, sns.color_palette("colorblind", len(ERRORS)), strict=True))
        for axes, n_tiles in zip(panels, sizes, strict=True):
            _references(axes, table, n_tiles)
            its = rows[rows["n_tiles"] == n_tiles]
            for i, (column, (_, marker, line)) in enumerate(ERRORS.items()):
                x, means, low, high = _means(its, column, ks)
                axes.errorbar(
                    x + 0.1 * (i - 1), means, yerr=[means - low, high - means], marker=marker,
                    markersize=5, linewidth=1.2, capsize=2, linestyle=line, color=colours[column],
                )  # fmt: skip
            axes.set_title(f"{n_tiles} tiles")
            axes.set_xticks(list(ks.values()), [str(k) if k else "never" for k in ks])
            axes.set_xlabel("steps between averagings")
        within_percent(panels[0], "y")  # all of them: they share the axis
        panels[0].set_ylabel("test error (%)")
        handles = [
            Line2D([], [], color=colours[c], marker=marker, linestyle=line, label=words)
            for c, (words, marker, line) in ERRORS.items()
        ]
        figure.legend(handles=handles + _reference_handles(table), loc="outside lower center",
                      ncols=3)  # fmt: skip
        set_title(figure, _title(table, "means and 95 % t-intervals over seeds"))
    return figure


def frontier_figure(table: pd.DataFrame) -> Figure:
    """Test error against speed-up in training: what each k gives an architect.

    Args:
        table: rows of ``synchronisation.csv``; maybe none. Filled: the mean is programmed; open: it
            is written by pulses. Colours are k; shapes are numbers of tiles.
    """
    rows = alone(table).dropna(subset=["speedup"])
    sizes = by_size(rows["n_tiles"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2))
        if not sizes:
            return _nothing(figure)
        axes = figure.subplots()
        colours = _k_colours(rows["sync_every"])
        markers = _markers(sizes)
        for n_tiles, its in rows.groupby("n_tiles"):
            for column, filled, dash in (("speedup", True, "-"), ("speedup_pulses", False, ":")):
                points = its.groupby("sync_every")[[column, "test_error"]].mean()
                points = points.sort_values(column)
                axes.plot(points[column], points["test_error"], dash, color="0.6", linewidth=1)
                for k, point in points.iterrows():
                    errors = its.loc[its["sync_every"] == k, "test_error"]
                    _point(axes, point[column], errors, colours[k], markers[n_tiles], filled)
        for tiling, marker in (("none", "*"), (PERFORATED_DENSE, "X")):
            for speedup, its in table[table["tiling"] == tiling].groupby("speedup"):
                _point(axes, speedup, its["test_error"], "0.2", marker, True)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.set(xlabel="speed-up of training on analog arrays", ylabel="test error (%)")
        within_percent(axes, "y")
        handles = _handles(colours, markers)
        handles += [
            Line2D([], [], color="0.2", marker=marker, linestyle="", label=tiling)
            for tiling, marker in (("none", "*"), (PERFORATED_DENSE, "X"))
            if (table["tiling"] == tiling).any()
        ]
        handles += [Line2D([], [], color="0.4", marker="o", linestyle=":", fillstyle="none",
                           label="written by pulses")]  # fmt: skip
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1))
        set_title(figure, _title(table, "bars: 95 % t-intervals over seeds"))
    return figure


def spread_figure(table: pd.DataFrame) -> Figure:
    """How far tiles part: measured against predicted by local SGD, a panel for each layer.

    Args:
        table: rows of ``synchronisation_spread.csv``; maybe none.
    """
    rows = steady(table)
    rows = rows[(rows["measured"] > 0) & (rows["predicted"] > 0)]
    with mpl.rc_context(STYLE):
        layers = sorted(rows["layer"].unique())
        figure = Figure(figsize=(WIDTH, 3.6))
        if not layers:
            return _nothing(figure, "no pull was recorded where tiles were averaged")
        panels = np.atleast_1d(figure.subplots(1, len(layers), sharex=True, sharey=True))
        colours = _k_colours(rows["sync_every"])
        markers = _markers(by_size(rows["n_tiles"]))
        ends = rows[["measured", "predicted"]].to_numpy()
        for axes, layer in zip(panels, layers, strict=True):
            axes.plot([ends.min(), ends.max()], [ends.min(), ends.max()], color="0.3", linewidth=1)
            for (k, n_tiles), its in rows[rows["layer"] == layer].groupby(
                ["sync_every", "n_tiles"]
            ):
                axes.plot(its["predicted"], its["measured"], markers[n_tiles], color=colours[k],
                          markersize=5, alpha=0.7, markeredgewidth=0)  # fmt: skip
            axes.set(xscale="log", yscale="log", xlabel="predicted Σ‖δ‖²", title=layer_text(layer))
        panels[0].set_ylabel("measured Σ‖δ‖²")
        handles = _handles(colours, markers)
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        set_title(figure, "Tiles just before they are averaged; the line is equality")
    return figure


def _handles(colours: Mapping[int, Any], markers: Mapping[str, str]) -> list[Line2D]:
    """What a legend explains: the k by colour, the numbers of tiles by marker."""
    return [
        *(
            Line2D([], [], color=colour, marker="o", linestyle="", label=every_text(k))
            for k, colour in colours.items()
        ),
        *(
            Line2D([], [], color="0.4", marker=marker, linestyle="", label=f"{n_tiles} tiles")
            for n_tiles, marker in markers.items()
        ),
    ]


def _nothing(figure: Figure, words: str = "no tiles were averaged") -> Figure:
    axes = figure.subplots()
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, words, ha="center", transform=axes.transAxes)
    return figure


def _markers(sizes: list[str]) -> dict[str, str]:
    """A marker for each number of tiles."""
    return dict(zip(sizes, itertools.cycle("oDsv^<>ph")))


def _ordered(every: pd.Series) -> list[int]:
    """The values of k, the least first, never last."""
    return sorted(map(int, every.unique()), key=lambda k: (k == NEVER, k))


def _places(every: pd.Series) -> dict[int, float]:
    return {k: float(i) for i, k in enumerate(_ordered(every))}


def _k_colours(every: pd.Series) -> dict[int, Any]:
    """Dark to light as tiles meet less often, so that a grey print shows the order."""
    ks = _ordered(every)
    return dict(zip(ks, sns.color_palette("viridis", len(ks)), strict=True))


def _means(
    rows: pd.DataFrame, column: str, places: dict[int, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places of the k that there are, and mean and interval of a column at each."""
    groups = {k: part[column] for k, part in rows.groupby("sync_every")}
    ks = [k for k in places if k in groups]
    means = np.array([groups[k].mean() for k in ks])
    low, high = np.array([t_interval(groups[k]) for k in ks]).T
    return np.array([places[k] for k in ks]), means, low, high


def _point(axes: Axes, x: float, errors: pd.Series, colour: Any, marker: str, filled: bool) -> None:
    mean, (low, high) = errors.mean(), t_interval(errors)
    axes.errorbar(
        [x], [mean], yerr=[[mean - low], [high - mean]], marker=marker, markersize=7, capsize=2,
        color=colour, linewidth=1, linestyle="", fillstyle="full" if filled else "none",
    )  # fmt: skip


def _references(axes: Axes, table: pd.DataFrame, n_tiles: str) -> None:
    """The ordinary network as a band, perforation of as many patches as a line."""
    ordinary = table.loc[table["tiling"] == "none", "test_error"]
    if len(ordinary):
        low, high = t_interval(ordinary)
        axes.axhline(ordinary.mean(), color="0.2", linewidth=1)
        if np.isfinite(low):
            axes.axhspan(low, high, color="0.2", alpha=0.15, linewidth=0)
    dense = table[(table["tiling"] == PERFORATED_DENSE) & (table["n_tiles"] == n_tiles)]
    if len(dense):
        axes.axhline(dense["test_error"].mean(), color="0.2", linewidth=1, linestyle="-.")


def _reference_handles(table: pd.DataFrame) -> list[Line2D]:
    lines = (("none", "-"), (PERFORATED_DENSE, "-."))
    return [
        Line2D([], [], color="0.2", linewidth=1, linestyle=line, label=tiling)
        for tiling, line in lines
        if (table["tiling"] == tiling).any()
    ]


def _title(table: pd.DataFrame, words: str) -> str:
    many = table.groupby(["tiling", "n_tiles", *SYNCHRONISATION])["seed"].nunique().max() > 1
    what = f"{joined(table['dataset'])}, {joined(table['epochs'])} epochs"
    return f"{what}; {words if many else 'one seed'}"
