"""The acceleration experiment's figures and summary table."""

import itertools

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
    set_title,
    t_interval,
    tiling_order,
    with_interval,
)

PROPORTIONAL = 0.9  # of the number of tiles: from here on a speed-up counts as proportional to it

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


def proportional_up_to(n_tiles: pd.Series, speedup: pd.Series) -> int:
    """The largest number of tiles up to which the speed-up stays above 90 % of it."""
    rows = pd.DataFrame({"n_tiles": n_tiles, "speedup": speedup}).sort_values("n_tiles")
    holds = (rows["speedup"] >= PROPORTIONAL * rows["n_tiles"]).cummin()
    return int(rows.loc[holds, "n_tiles"].max()) if holds.any() else 0


def speedup_figure(table: pd.DataFrame) -> Figure:
    """Speed-up and cross-points against tiles per layer, a line a network.

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
    # Lines that coincide are drawn one inside the other.
    widths = {
        network: {"linewidth": width, "marker": "o", "markersize": width + 1.5}
        for network, width in zip(networks, np.linspace(3.5, 1, len(networks)), strict=True)
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * 1.25, 3.6))
        panels = figure.subplots(1, len(schedules) + 1)
        ends = table["n_tiles"].min(), table["n_tiles"].max()
        for axes, schedule in zip(panels, schedules, strict=False):
            axes.plot(ends, ends, color="0.1", linestyle="--", linewidth=1, zorder=3)
            rows = table[table["schedule"] == schedule]
            for network, lines in rows.groupby("network", sort=False):
                axes.plot(
                    "n_tiles", "speedup", data=lines, color=colours[network], **widths[network]
                )
                last = proportional_up_to(lines["n_tiles"], lines["speedup"])
                ring = lines[lines["n_tiles"] == (last if last < lines["n_tiles"].max() else None)]
                axes.plot(
                    ring["n_tiles"], ring["speedup"], "o", markersize=11, fillstyle="none",
                    color=colours[network],
                )  # fmt: skip
            axes.set(title=schedule, ylabel="speed-up over one tile")
        costs = table.drop_duplicates(["network", "n_tiles"])
        for network, lines in costs.groupby("network", sort=False):
            panels[-1].plot(
                "n_tiles", "cross_points", data=lines, color=colours[network], marker="."
            )
        panels[-1].set(title="cost", ylabel="cross-points of all arrays")
        for axes in panels:
            axes.set(xlabel="tiles per layer")
            _powers(axes)
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
        figure = Figure(figsize=(WIDTH * 0.8, 1.4 + 2.4 * len(schedules)))
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


def layer_time_figure(table: pd.DataFrame) -> Figure:
    """Time per layer of an image, before and after, a panel a network.

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
            axes.set(yscale="log", ylabel="µs an image", title=network)
            if len(layers) <= 10:
                axes.set_xticks(range(len(layers)), layers, rotation=30, ha="right")
                axes.tick_params(axis="x", labelsize="small")
            else:
                axes.set_xlabel("layer, in the order in which they run")
                axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in panels[len(networks) :]:
            axes.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        handles.append(Line2D([], [], color="0.3", linewidth=1, linestyle=":"))
        figure.legend(
            handles, [*labels, "slowest layer"], loc="outside lower center", ncols=len(handles)
        )
    return figure


def pareto_figure(table: pd.DataFrame) -> Figure:
    """Speed-up against cross-points, balanced and uniform numbers of tiles, a panel a network.

    Args:
        table: rows with network, assignment (``"uniform"``, ``"balanced"``), schedule, speedup,
            cross_points; one colour a schedule.
    """
    networks = list(table["network"].unique())
    schedules = list(table["schedule"].unique())
    colours = dict(zip(schedules, sns.color_palette("colorblind"), strict=False))
    styles = {"uniform": {"linestyle": "--", "marker": ".", "alpha": 0.7},
              "balanced": {"linestyle": "-", "marker": "."}}  # fmt: skip
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


def tradeoff_figure(table: pd.DataFrame) -> Figure:
    """Test error against speed-up by tiling: what the acceleration costs.

    Args:
        table: rows with tiling, n_tiles, seed, test_error (%), speedup, dataset, epochs. Dots are
            seeds, diamonds means, bars 95 % t-intervals over seeds; a line joins a tiling's means.

    Raises:
        ValueError: if a seed occurs twice at one tiling and speed-up: something else varies there,
            and an interval over these rows would be none over seeds.
    """
    keys = ["dataset", "epochs", "tiling", "n_tiles", "speedup"]
    twice = table[table.duplicated([*keys, "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"table: seed {row['seed']} occurs twice for tiling {row['tiling']} with n_tiles "
            f"{row['n_tiles']}; expected rows that differ in their seeds alone"
        )
    many = table.groupby(keys)["seed"].nunique().max() > 1
    settings = table["dataset"].astype(str) + ", " + table["epochs"].astype(str) + " epochs"
    dashes = dict(zip(settings.unique(), itertools.cycle(["-", "--", ":", "-."])))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8))
        axes = figure.subplots()
        order = tiling_order(table["tiling"])
        colours = dict(zip(order, sns.color_palette("colorblind", len(order)), strict=True))
        for (setting, tiling), rows in table.groupby([settings, "tiling"], sort=False):
            # Tilings of one speed-up stand side by side.
            shift = 1.03 ** (order.index(tiling) - (len(order) - 1) / 2)
            points = rows.groupby(["speedup", "n_tiles"])["test_error"]
            means = points.mean()
            low, high = np.array([t_interval(values) for _, values in points]).T
            axes.errorbar(
                means.index.get_level_values("speedup").to_numpy() * shift, means,
                yerr=[means - low, high - means], marker="D", markersize=5, linewidth=1, capsize=3,
                color=colours[tiling], linestyle=dashes[setting],
            )  # fmt: skip
            axes.plot(
                # A little to the left of their mean, which would cover them.
                rows["speedup"] * shift * 0.92, rows["test_error"], "o", markersize=4, alpha=0.6,
                color=colours[tiling], markeredgewidth=0,
            )  # fmt: skip
        _powers(axes, y=False)
        axes.set(xlabel="speed-up on analog arrays", ylabel="test error (%)")
        handles = [Line2D([], [], color=colours[t], marker="D", label=t) for t in order]
        if len(dashes) > 1:
            handles += [
                Line2D([], [], color="0.3", linewidth=1, linestyle=dash, label=setting)
                for setting, dash in dashes.items()
            ]
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1))
        interval = "dots: seeds; diamonds: means with 95 % t-intervals" if many else "one seed"
        title = f"{joined(table['dataset'])}, {joined(table['epochs'])} epochs; {interval}"
        set_title(figure, title, axes)
    return figure


def tradeoff_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Test error by number of tiles: means over seeds with 95 % t-intervals, as strings.

    Args:
        table: as for :func:`tradeoff_figure`, with ``speedup_sequential``.
    """
    keys = ["dataset", "epochs", "tiling", "n_tiles", "speedup", "speedup_sequential"]
    rows = []
    for values, runs in table.sort_values("speedup").groupby(keys, sort=False):
        row = dict(zip(keys, values, strict=True))
        rows.append(
            {
                "tiling": row["tiling"],
                "n_tiles": row["n_tiles"],
                "epochs": row["epochs"],
                "seeds": len(runs),
                "speed-up, pipelined": f"{row['speedup']:.4g}",
                "speed-up, sequential": f"{row['speedup_sequential']:.4g}",
                "test error (%)": with_interval(runs["test_error"]),
                "vote (%)": with_interval(runs["test_error_vote"]),
            }
        )
    return pd.DataFrame(rows)


def acceleration_summary(table: pd.DataFrame) -> pd.DataFrame:
    """How far the speed-up stays proportional to the number of tiles, one row a network.

    Args:
        table: as for :func:`speedup_figure`.

    Returns:
        network, schedule, ``proportional up to`` (tiles: at least 90 % of the proportional
        speed-up), and at the largest number of tiles the ``speed-up``, ``cross-points ×`` (over
        one tile per layer) and the layer that then is the ``bottleneck``.
    """
    if "assignment" in table:
        table = table[table["assignment"] == "uniform"]
    rows = []
    for (network, schedule), lines in table.groupby(["network", "schedule"], sort=False):
        lines = lines.sort_values("n_tiles")
        first, last = lines.iloc[0], lines.iloc[-1]
        rows.append(
            {
                "network": network,
                "schedule": schedule,
                "proportional up to": proportional_up_to(lines["n_tiles"], lines["speedup"]),
                "most tiles": last["n_tiles"],
                "speed-up": last["speedup"],
                "cross-points ×": last["cross_points"] / first["cross_points"],
                "bottleneck": last["bottleneck"],
            }
        )
    return pd.DataFrame(rows)


def _powers(axes: Axes, y: bool = True) -> None:
    """Logarithmic axes with plain numbers at powers of four along x."""
    axes.set_xscale("log", base=4)
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    if y:
        axes.set_yscale("log")
