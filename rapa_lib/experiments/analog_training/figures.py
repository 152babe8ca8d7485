"""The analog experiment's figures: what imprecision costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from rapa_lib.experiments.analog_training.imperfections import BASELINE, IMPERFECTIONS, METHODS
from rapa_lib.experiments.analog_training.tables import (
    IMPERFECTION_NAMES,
    METHOD_NAMES,
    READING_NAMES,
    imperfection_curves,
    time_name,
)
from rapa_lib.experiments.plots import (
    STYLE,
    WIDTH,
    joined,
    mean_curve,
    name_values,
    set_title,
    tiling_order,
)

_DASHES: Mapping[str, Any] = {
    "digital": ":",
    "hardware_aware": "--",
    "analog": "-",
    "tiki_taka": "-.",
}
_MARKERS = "os^DvPX*"  # what tells networks apart in grey

Looks = Mapping[str, Mapping[str, Any]]


def analog_figure(table: pd.DataFrame, inference: pd.DataFrame) -> Figure:
    """Test error by method, and of digital and hardware-aware networks against the read noise.

    Args:
        table: of :func:`rapa_lib.experiments.analog_training.tables.analog_table`.
        inference: of :func:`rapa_lib.experiments.analog_training.tables.inference_table`; where
            no network was read with noise, there is no second panel.
    """
    plain = table[table["imperfection"] == BASELINE]
    looks = _looks(plain)
    methods = [method for method in METHODS if method in set(plain["method"])]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2))
        left, *right = figure.subplots(1, 2 if len(inference) else 1, sharey=True, squeeze=False)[0]
        shifts = 0.16 * (np.arange(len(looks)) - (len(looks) - 1) / 2)
        for shift, (tiling, look) in zip(shifts, looks.items(), strict=True):
            own = plain[plain["tiling"] == tiling]
            places = own["method"].map(methods.index).to_numpy() + shift
            left.plot(places, own["test_error"], ".", color=look["color"], alpha=0.6, markersize=4)
            _curve(left, own.assign(at=places), "at", {**look, "linestyle": "none"})
        names = [METHOD_NAMES[method].replace("-", "-\n") for method in methods]
        left.set_xticks(range(len(methods)), names)
        left.set(xlabel="way of training", ylabel="test error (%)", xlim=(-0.5, len(methods) - 0.5))
        left.grid(axis="x", visible=False)
        for axes in right:
            _curves(axes, inference, "out_noise", looks)
            axes.set(xlabel="output noise when read,\nnot trained anew")
            levels = sorted(inference["out_noise"].dropna().unique())
            if len(levels) == 1:
                axes.set_xticks(levels, [f"{levels[0]:g}"])
                axes.set_xlim(0, 2 * levels[0] or 1)
            else:
                axes.xaxis.set_major_locator(MaxNLocator(4))
        left.set_ylim(0, _top(plain, inference))
        _legend(figure, looks, [m for m in METHODS if m in set(inference["method"])])
        set_title(figure, _title(table))
    return figure


def imperfection_figure(table: pd.DataFrame) -> Figure:
    """Test error against each imperfection, everything else at the baseline, which is marked.

    Args:
        table: of :func:`rapa_lib.experiments.analog_training.tables.analog_table`, with columns
            ``baseline_<name>`` for the value of each imperfection at the baseline.
    """
    names = [name for name in IMPERFECTIONS if name in set(table["imperfection"])]
    looks = _looks(table)
    with mpl.rc_context(STYLE):
        if not names:
            figure = Figure(figsize=(WIDTH, 1.2))
            words = "No imperfection was varied: every network was trained at the baseline alone."
            figure.text(0.5, 0.5, words, ha="center", va="center")
            return figure
        columns = min(2, len(names))
        n_rows = -(-len(names) // columns)
        figure = Figure(figsize=(WIDTH, 1.2 + 2.5 * n_rows))
        panels = figure.subplots(n_rows, columns, squeeze=False, sharey=True).flat
        for name, axes in zip(names, panels, strict=False):
            curves = imperfection_curves(table, name)
            _curves(axes, curves, "value", looks)
            axes.axvline(table[f"baseline_{name}"].iloc[0], color="0.6", linewidth=2.5, zorder=0)
            axes.set(xlabel=IMPERFECTION_NAMES[name], ylim=(0, _top(table)))
            if name == "dw_min":
                tried = sorted(curves["value"].dropna().unique())
                name_values(axes, tried, [f"{value:g}" for value in tried])
            else:
                axes.xaxis.set_major_locator(MaxNLocator(4, integer=name == "bits"))
        for axes in list(figure.axes)[len(names) :]:
            axes.remove()
        for axes in figure.axes[::columns]:
            axes.set_ylabel("test error (%)")
        varied = set(table.loc[table["imperfection"] != BASELINE, "method"])
        _legend(figure, looks, [method for method in METHODS if method in varied])
        lost = "; trainings that diverged are missing" if table["diverged"].any() else ""
        set_title(figure, f"{_title(table)}; grey line: the baseline{lost}")
    return figure


def drift_figure(table: pd.DataFrame) -> Figure:
    """Test error on phase-change memory over time, a panel for each way of training.

    Args:
        table: of :func:`rapa_lib.experiments.analog_training.tables.drift_table`.
    """
    with mpl.rc_context(STYLE):
        if not len(table):
            figure = Figure(figsize=(WIDTH, 1.2))
            words = "No network was written to phase-change memory."
            figure.text(0.5, 0.5, words, ha="center", va="center")
            return figure
        methods = [method for method in METHODS if method in set(table["method"])]
        lines = list(table.groupby(["tiling", "reading"], sort=False).groups)
        looks = _looks(table)
        figure = Figure(figsize=(WIDTH, 3.8))
        panels = figure.subplots(1, len(methods), squeeze=False, sharex=True, sharey=True)[0]
        for axes, method in zip(panels, methods, strict=True):
            for i, (tiling, reading) in enumerate(lines):
                own = table[(table["tiling"] == tiling) & (table["reading"] == reading)]
                dashes = "-" if reading == "single" else "--" if reading == "vote" else ":"
                look = {**looks[tiling], "marker": _MARKERS[i % len(_MARKERS)]}
                label = f"{tiling}{READING_NAMES[reading]}"
                rows = own[own["method"] == method]
                _curve(axes, rows, "t_seconds", {**look, "linestyle": dashes, "label": label})
            times = sorted(table["t_seconds"].unique())
            name_values(axes, times, [time_name(t) for t in times])
            axes.set(xlabel="time since the first read", title=METHOD_NAMES[method])
        panels[0].set(ylabel="test error (%)", ylim=(0, _top(table)))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, handlelength=3)
        set_title(figure, _title(table))
    return figure


def _looks(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour and marker of every network."""
    tilings = tiling_order(table["tiling"])
    palette = sns.color_palette("colorblind", len(tilings))
    return {
        tiling: {"color": colour, "marker": _MARKERS[i % len(_MARKERS)]}
        for i, (tiling, colour) in enumerate(zip(tilings, palette, strict=True))
    }


def _top(*tables: pd.DataFrame) -> float:
    """The end of the axis of test errors, in percent: intervals may reach beyond 100."""
    largest = pd.concat([table["test_error"].astype(float) for table in tables]).max()
    return 100.0 if np.isnan(largest) else min(100.0, max(1.0, 1.25 * float(largest)))


def _legend(figure: Figure, looks: Looks, methods: Sequence[str]) -> None:
    """Networks by colour and marker, ways of training by dashes."""
    networks = [
        Line2D([], [], linestyle="none", label=tiling, **look) for tiling, look in looks.items()
    ]
    ways = [
        Line2D([], [], color="0.3", linestyle=_DASHES[method], label=METHOD_NAMES[method])
        for method in methods
    ]  # fmt: skip
    figure.legend(handles=[*networks, *ways], loc="outside lower center", ncols=4, handlelength=3)


def _curves(axes: Axes, rows: pd.DataFrame, x: str, looks: Looks) -> None:
    """A curve per network and way of training, a few points apart, so that intervals are seen."""
    groups = list(rows.groupby(["tiling", "method"], sort=False))
    for i, ((tiling, method), line) in enumerate(groups):
        inches = 0.05 * (i - (len(groups) - 1) / 2)
        aside = ScaledTranslation(inches, 0, axes.figure.dpi_scale_trans)
        look = {**looks[tiling], "linestyle": _DASHES[method], "transform": axes.transData + aside}
        _curve(axes, line, x, look)
    axes.update_datalim(rows[[x, "test_error"]].to_numpy(dtype=float))  # lines set aside are not
    axes.autoscale_view()


def _curve(axes: Axes, rows: pd.DataFrame, x: str, look: Mapping[str, Any]) -> None:
    """Means over seeds with their intervals, where there are several seeds."""
    points = mean_curve(rows, x)
    bars = [points["mean"] - points["low"], points["high"] - points["mean"]]
    axes.errorbar(
        points[x], points["mean"], yerr=bars, markersize=5, linewidth=1.3, elinewidth=0.9,
        capsize=2, **look,
    )  # fmt: skip


def _title(table: pd.DataFrame) -> str:
    many = table["seed"].nunique() > 1
    interval = "means with 95 % t-intervals over seeds" if many else "one seed"
    return f"{joined(table['dataset'])}, {joined(table['epochs'])} epochs; {interval}"
