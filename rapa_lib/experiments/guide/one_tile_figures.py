"""The figures of one analog tile."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rapa_lib.analog import PulseTrace
from rapa_lib.experiments.guide.one_tile import relative_error
from rapa_lib.experiments.plots import STYLE, WIDTH, log_axes

_EXACT: dict[str, Any] = {"color": "0.55", "linewidth": 1, "zorder": 1}
_BLUE, _ORANGE, _GREEN, *_ = sns.color_palette("colorblind")
_PULSES = mpl.colors.ListedColormap([_ORANGE, "white", _BLUE])


def read_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Reads of one weight against its input, one panel per periphery.

    Args:
        curves: by title, of :func:`read_curve`.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6))
        panels = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (title, curve) in zip(panels, curves.items(), strict=True):
            axes.plot(curve["input"], curve["exact"], **_EXACT)
            axes.plot(curve["input"], curve["read"], ".", color=_BLUE, markersize=2.5)
            axes.set(title=title, xlabel="input")
        panels[0].set_ylabel("output")
    return figure


def bound_figure(curve: pd.DataFrame, out_bound: float) -> Figure:
    """Reads of growing sums, with and without bound management.

    Args:
        curve: of :func:`bound_curve`.
        out_bound: of the ADC.
    """
    ways = {"none": ("without", _ORANGE, "x"), "iterative": ("with bound management", _BLUE, ".")}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3))
        axes = figure.subplots()
        axes.plot(curve["exact"], curve["exact"], label="exact", **_EXACT)
        axes.axhline(out_bound, linestyle=":", color="black", linewidth=1, label="bound of the ADC")
        for way, (label, colour, marker) in ways.items():
            rows = curve[curve["bound_management"] == way]
            axes.plot(rows["exact"], rows["read"], marker, color=colour, markersize=3, label=label)
        axes.set(xlabel="exact sum", ylabel="as the tile reads it")
        axes.legend(loc="upper left")
    return figure


def product_figure(reads: pd.DataFrame) -> Figure:
    """Outputs of a whole product as read against the exact ones.

    Args:
        reads: of :func:`product_reads`.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4, 3.6))
        axes = figure.subplots()
        ends = [reads["exact"].min(), reads["exact"].max()]
        axes.plot(ends, ends, **_EXACT)
        axes.plot(reads["exact"], reads["read"], ".", color=_BLUE, markersize=3)
        axes.set(xlabel="exact output", ylabel="output as read")
        axes.set_title(f"relative error {100 * relative_error(reads):.1f} %")
    return figure


def pulse_figure(trace: PulseTrace, lr: float, x: list[float], d: list[float]) -> Figure:
    """One update slot by slot: the trains of columns and rows, and every weight.

    Args:
        trace: of :func:`pulsed_update`.
        lr, x, d: of the update.
    """
    n_slots = len(trace.x)
    asked = -lr * np.outer(d, x)
    weights = trace.weights.numpy()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5))
        panels = figure.subplots(3, 1, sharex=True, height_ratios=(len(x), len(d), 8))
        for axes, name, values, bits in (
            (panels[0], "columns, x", x, trace.x),
            (panels[1], "rows, d", d, trace.d),
        ):
            axes.pcolormesh(
                np.arange(n_slots + 1) + 0.5, np.arange(len(values) + 1), bits.numpy().T,
                cmap=_PULSES, vmin=-1, vmax=1, edgecolor="0.85", linewidth=0.5,
            )  # fmt: skip
            axes.set_yticks(np.arange(len(values)) + 0.5, [f"{value:+.1f}" for value in values])
            axes.set_title(f"pulses of the {name} (blue: positive, orange: negative)")
            axes.invert_yaxis()
            axes.grid(False)
        axes = panels[2]
        colours = sns.color_palette("colorblind", weights[0].size)
        # Slot s spans s − ½ to s + ½, so a weight has its new value from its middle on.
        paths = weights.reshape(n_slots + 1, -1).T
        for path, goal, colour in zip(paths, asked.flatten(), colours, strict=True):
            axes.step(np.arange(n_slots + 1), path, where="post", color=colour)
            axes.plot(n_slots + 1, goal, "D", color=colour, markersize=4)
        axes.set(xlabel="slot", xlim=(0, n_slots + 1.5), ylabel="weight")
        axes.set_title("weights; diamonds: what −lr · d xᵀ asks for")
    return figure


def mean_update_figure(table: pd.DataFrame, n_tiles: int) -> Figure:
    """The mean change of each weight over many tiles against what was asked.

    Args:
        table: of :func:`mean_update`.
        n_tiles: of how many tiles.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3))
        axes = figure.subplots()
        ends = [table["asked"].min(), table["asked"].max()]
        axes.plot(ends, ends, label="as asked", **_EXACT)
        axes.errorbar(
            table["asked"], table["mean"], yerr=table["std"], fmt="o", markersize=4, capsize=2,
            color=_BLUE, label=f"mean of {n_tiles} tiles; bars: standard deviation over tiles",
        )  # fmt: skip
        axes.set(xlabel="change asked for, −lr · d xᵀ", ylabel="change made")
        axes.legend(loc="upper left")
    return figure


def response_figure(curves: Mapping[str, np.ndarray]) -> Figure:
    """Weights of some devices under pulses up and down, one panel per kind of device.

    Args:
        curves: by title, of :func:`response_curve`.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3))
        panels = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (title, weights) in zip(panels, curves.items(), strict=True):
            axes.plot(weights, color=_BLUE, linewidth=0.6, alpha=0.5)
            axes.plot(weights.mean(1), color="black", linewidth=1.6, label="mean")
            axes.axvline(len(weights) // 2, color="0.6", linewidth=0.8, linestyle=":")
            axes.set(title=title, xlabel="pulses: up, then down")
        panels[0].set_ylabel("weight")
        panels[0].legend(loc="upper left")
    return figure


def cost_figure(table: pd.DataFrame) -> Figure:
    """What replication brings and takes: speed-up and arrays against tiles per layer.

    Args:
        table: of :func:`replication_costs`.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3))
        left, right = figure.subplots(1, 2, sharex=True)
        left.plot(table["n_tiles"], table["speedup_ideal"], **_EXACT, label="arrays alone")
        left.plot(
            table["n_tiles"], table["speedup"], "o-", color=_BLUE, markersize=4,
            label="with digital logic\nthat must keep up",
        )  # fmt: skip
        left.set(xlabel="tiles per layer", title="speed-up")
        left.legend(loc="upper left")
        right.plot(table["n_tiles"], table["arrays"], "o-", color=_GREEN, markersize=4)
        right.set(xlabel="tiles per layer", title="arrays of the whole network")
        for axes in (left, right):
            log_axes(axes)
    return figure
