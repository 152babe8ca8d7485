"""The acceleration experiment's figures."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rapa_lib.experiments.acceleration.tables import PROPORTIONAL, proportional_up_to
from rapa_lib.experiments.plots import STYLE, WIDTH, log_axes

_ASSIGNMENTS = {"uniform": "same n_tiles for all layers", "balanced": "balanced"}

# How lines of an order of patches are drawn: dashes, markers, and what it is called.
_ACCESS = {
    "random": ("-", "full", "random order (RAPA)"),
    "contiguous": ("--", "none", "order of the image"),
}

_SCHEDULES = {
    "pipelined": "pipelined: layers work on different images",
    "sequential": "sequential: one image at a time",
}


def speedup_figure(table: pd.DataFrame) -> Figure:
    """Speed-up and cross-points against tiles per layer, one line per network.

    The dashed line is C1, the speed-up proportional to the number of tiles. A ring marks where a
    network leaves it: the last number of tiles with at least 90 % of the proportional speed-up. A
    network without one stays proportional as far as the table goes.

    Args:
        table: rows with network, schedule, n_tiles, speedup, cross_points; the same n_tiles for
            every layer. If there is a column assignment, only its ``"uniform"`` rows are drawn.
    """
    if "assignment" in table:
        table = table[table["assignment"] == "uniform"]
    networks, schedules = list(table["network"].unique()), list(table["schedule"].unique())
    colours = dict(zip(networks, sns.color_palette("colorblind", len(networks)), strict=True))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * 1.25, 3.6))
        panels = figure.subplots(1, len(schedules) + 1)
        for axes, schedule in zip(panels, schedules, strict=False):
            _draw_speedups(axes, table[table["schedule"] == schedule], colours)
            axes.set(title=schedule, ylabel="speed-up over one tile")
        costs = table.drop_duplicates(["network", "n_tiles"])
        for network, lines in costs.groupby("network", sort=False):
            panels[-1].plot(
                "n_tiles", "cross_points", data=lines, color=colours[network], marker="."
            )
        panels[-1].set(title="cost", ylabel="cross-points of all arrays")
        for axes in panels:
            axes.set(xlabel="tiles per layer")
            log_axes(axes)
        limits = [axes.get_ylim() for axes in panels[:-1]]
        for axes in panels[:-1]:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        handles = [Line2D([], [], color=colours[n], marker=".", label=n) for n in networks]
        handles.append(Line2D([], [], color="0.3", linestyle="--", label="proportional (C1)"))
        handles.append(
            Line2D([], [], color="0.3", marker="o", markersize=11, fillstyle="none",
                   linestyle="none", label=f"last with {100 * PROPORTIONAL:g} % of it")
        )  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def bandwidth_figure(table: pd.DataFrame) -> Figure:
    """Tiles up to which the speed-up stays proportional against digital bandwidth: C1's endpoint.

    A line per network, a panel per schedule: full for patches in random order (RAPA), dashed for
    patches in the order of the image. A dotted line is the most tiles that were tried.

    Args:
        table: rows of :func:`rapa_lib.runtime.tiles_within`: network, schedule, access,
            values_per_second, tiles, most_tiles.
    """
    networks, schedules = list(table["network"].unique()), list(table["schedule"].unique())
    colours = dict(zip(networks, sns.color_palette("colorblind", len(networks)), strict=True))
    markers = dict(zip(networks, itertools.cycle("osD^vP")))
    # Lines that coincide are drawn one inside the other.
    widths = dict(zip(networks, np.linspace(4, 1.2, len(networks)), strict=True))
    with mpl.rc_context({**STYLE, "font.size": 12}):
        figure = Figure(figsize=(WIDTH, 1.4 + 2.4 * len(schedules)))
        panels = figure.subplots(len(schedules), 1, sharex=True, sharey=True, squeeze=False)
        for axes, schedule in zip(panels[:, 0], schedules, strict=True):
            rows = table[table["schedule"] == schedule]
            for (network, access), lines in rows.groupby(["network", "access"], sort=False):
                lines = lines.sort_values("values_per_second")
                axes.plot(
                    "values_per_second", "tiles", data=lines, color=colours[network],
                    marker=markers[network], markersize=widths[network] + 2.5,
                    linewidth=widths[network], linestyle=_ACCESS[access][0],
                    fillstyle=_ACCESS[access][1],
                )  # fmt: skip
            axes.axhline(table["most_tiles"].max(), color="0.3", linewidth=1, linestyle=":")
            axes.set(title=_SCHEDULES.get(schedule, schedule), xscale="log")
            axes.set_yscale("symlog", base=4, linthresh=1, linscale=0.3)
            axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        panels[-1, 0].set_xlabel("digital bandwidth (values per second)")
        figure.supylabel("tiles with proportional speed-up", size="medium")
        handles = [
            Line2D([], [], color=colours[n], marker=markers[n], linewidth=widths[n],
                   markersize=widths[n] + 2.5, label=n)
            for n in networks
        ]  # fmt: skip
        handles += [
            Line2D([], [], color="0.3", marker="o", linestyle=dash, fillstyle=fill, label=label)
            for access, (dash, fill, label) in _ACCESS.items()
            if access in set(table["access"])
        ]
        handles.append(Line2D([], [], color="0.3", linestyle=":", label="most tiles tried"))
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _draw_speedups(axes: Axes, rows: pd.DataFrame, colours: Mapping[str, Any]) -> None:
    """One schedule's lines, the proportional line, and the rings."""
    ends = rows["n_tiles"].min(), rows["n_tiles"].max()
    axes.plot(ends, ends, color="0.1", linestyle="--", linewidth=1, zorder=3)
    # Lines that coincide are drawn one inside the other.
    widths = dict(zip(colours, np.linspace(3.5, 1, len(colours)), strict=True))
    for network, lines in rows.groupby("network", sort=False):
        width = widths[network]
        axes.plot(
            "n_tiles", "speedup", data=lines, color=colours[network], linewidth=width,
            marker="o", markersize=width + 1.5,
        )  # fmt: skip
        last = proportional_up_to(lines["n_tiles"], lines["speedup"])
        ring = lines[lines["n_tiles"] == (last if last < lines["n_tiles"].max() else None)]
        axes.plot(
            ring["n_tiles"], ring["speedup"], "o", markersize=11, fillstyle="none",
            color=colours[network],
        )  # fmt: skip


def layer_time_figure(table: pd.DataFrame) -> Figure:
    """Time per layer of an image, before and after, one panel per network.

    Args:
        table: rows with network, assignment, layer, time_us; layers in the order to draw. Each
            assignment (``"one tile"`` and another, say) is a colour.
    """
    networks = list(table["network"].unique())
    assignments = list(table["assignment"].unique())
    colours = dict(zip(assignments, sns.color_palette("colorblind"), strict=False))
    with mpl.rc_context(STYLE):
        columns = min(len(networks), 2)
        rows = -(-len(networks) // columns)
        figure = Figure(figsize=(WIDTH, 0.6 + 2.1 * rows))
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, network in zip(panels, networks, strict=False):
            one = table[table["network"] == network]
            layers = list(one["layer"].unique())
            for assignment, times in one.groupby("assignment", sort=False):
                # Where both are equal, the second lies inside the first's ring.
                first = assignment == assignments[0]
                axes.plot(
                    times["layer"].map(layers.index), times["time_us"], "o",
                    markersize=6 if first else 3, fillstyle="none" if first else "full",
                    color=colours[assignment], label=assignment,
                )  # fmt: skip
                slowest = times["time_us"].max()
                axes.axhline(slowest, color=colours[assignment], linewidth=1, linestyle=":")
            axes.set(yscale="log", ylabel="µs per image", title=network)
            if len(layers) <= 10:
                axes.set_xticks(range(len(layers)), layers, rotation=30, ha="right")
                axes.tick_params(axis="x", labelsize="small")
            else:
                axes.set_xlabel("layer, in the order in which they run")
                axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator("auto", integer=True))
        for axes in panels[len(networks) :]:
            axes.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        handles.append(Line2D([], [], color="0.3", linewidth=1, linestyle=":"))
        figure.legend(
            handles, [*labels, "slowest layer"], loc="outside lower center", ncols=len(handles)
        )
    return figure


def pareto_figure(table: pd.DataFrame) -> Figure:
    """Speed-up against cross-points, balanced and uniform numbers of tiles, one panel per network.

    Args:
        table: rows with network, assignment (``"uniform"``, ``"balanced"``), schedule, speedup,
            cross_points; one colour per schedule.
    """
    networks = list(table["network"].unique())
    schedules = list(table["schedule"].unique())
    colours = dict(zip(schedules, sns.color_palette("colorblind"), strict=False))
    styles: dict[str, dict[str, Any]] = {
        "uniform": {"linestyle": "--", "marker": ".", "alpha": 0.7},
        "balanced": {"linestyle": "-", "marker": "."},
    }
    with mpl.rc_context(STYLE):
        columns = min(len(networks), 3)
        rows = -(-len(networks) // columns)
        figure = Figure(figsize=(WIDTH * 1.1, 0.7 + 2.3 * rows))
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for i, (axes, network) in enumerate(zip(panels, networks, strict=False)):
            one = table[table["network"] == network]
            for (schedule, assignment), lines in one.groupby(["schedule", "assignment"]):
                lines = lines.sort_values(["cross_points", "speedup"])
                axes.plot(
                    "cross_points", "speedup", data=lines, color=colours[schedule],
                    **styles[assignment],
                )  # fmt: skip
            axes.set(title=network, xlabel="cross-points of all arrays")
            if i % columns == 0:
                axes.set_ylabel("speed-up over one tile")
            axes.set(xscale="log", yscale="log")
            axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        for axes in panels[len(networks) :]:
            axes.set_axis_off()
        handles = [Line2D([], [], color=colours[s], label=s) for s in schedules]
        handles += [
            Line2D([], [], color="0.3", label=label, **styles[assignment])
            for assignment, label in _ASSIGNMENTS.items()
            if assignment in set(table["assignment"])
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


# How an arm is drawn: its name, dashes and marker.
_ARMS = {
    "random": ("RAPA: n tiles", "-", "o"),
    "perforated_dense": ("perforated, tested dense: one tile", "--", "s"),
}

_PHASES = {"training_speedup": "training", "inference_speedup": "inference"}


def rivals_figure(table: pd.DataFrame) -> Figure:
    """Speed-up in training and in inference against arrays: RAPA, and perforation tested dense.

    One network, the first of the table, pipelined where it was worked out. A number beside a point
    is the n that it stands for.

    Args:
        table: rows of :func:`rapa_lib.runtime.rival_table`; maybe none.
    """
    rows = table[table["network"] == table["network"].iloc[0]] if len(table) else table
    if "pipelined" in set(rows["schedule"]):
        rows = rows[rows["schedule"] == "pipelined"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6))
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        if not len(rows):
            panels[0].text(0.5, 0.5, "not measured", ha="center", transform=panels[0].transAxes)
            return figure
        colours = dict(zip(_ARMS, sns.color_palette("colorblind", len(_ARMS)), strict=True))
        for axes, (column, phase) in zip(panels, _PHASES.items(), strict=True):
            for arm, lines in rows.groupby("arm", sort=False):
                label, dash, marker = _ARMS[str(arm)]
                lines = lines.sort_values("n_tiles")
                axes.plot(
                    lines["arrays"], lines[column], color=colours[str(arm)], linestyle=dash,
                    marker=marker, markersize=5, label=label,
                )  # fmt: skip
                if column == "training_speedup":
                    _name_tiles(axes, lines, column)
            axes.set(title=phase, xlabel="arrays")
            log_axes(axes)
        panels[0].set_ylabel("speed-up over one tile per layer")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _name_tiles(axes: Axes, lines: pd.DataFrame, column: str) -> None:
    """Write n beside every other point of a line that has room for it, the last one included."""
    named: tuple[float, float] | None = None
    for number, speedup, arrays in lines[["n_tiles", column, "arrays"]].to_numpy()[::-2]:
        place = math.log2(arrays), math.log2(speedup)
        if named is not None and math.dist(named, place) < 1:  # a factor of two of either
            continue
        named = place
        axes.annotate(
            f"{number:.0f}", (arrays, speedup), xytext=(7, -4), textcoords="offset points",
            fontsize="x-small",
        )  # fmt: skip
