"""The fault experiment's figure: what broken tiles cost in error, and rerouting in time."""

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rapa_lib.experiments.fault_tolerance.experiment import tolerated_share
from rapa_lib.experiments.plots import (
    STYLE,
    WIDTH,
    configuration_labels,
    joined,
    label_order,
    with_interval,
)
from rapa_lib.instruments.statistics import mean_interval

_GREY = "0.3"
_LINES = {True: ("rerouted", "-", "o"), False: ("not rerouted", "--", "s")}


def fault_figure(table: pd.DataFrame) -> Figure:
    """Test error and remaining speed-up against the share of faulty tiles, rerouted and not.

    A column a set of layers, a colour a configuration. A seed's errors are averaged over its draws
    of faults first; intervals are over training seeds where a configuration has several, and over
    draws of faults where it has one. The title says which.

    Args:
        table: rows of :func:`rapa_lib.fault_table`.

    Raises:
        ValueError: if there are no rows, or faults of more than one kind and strength.
    """
    if len(table) == 0:
        raise ValueError("table: got no rows")
    kinds = table[["kind", "strength"]].drop_duplicates()
    if len(kinds) > 1:
        raise ValueError(
            f"table: got faults of kinds {joined(table['kind'])} and strengths "
            f"{joined(table['strength'])}, expected one of each"
        )
    table = table.reset_index(drop=True)
    table = table.assign(label=configuration_labels(table))
    labels = label_order(table)
    colours = dict(zip(labels, sns.color_palette("colorblind", len(labels)), strict=True))
    layers = sorted(pd.unique(table["layers"]), key=lambda name: (name != "all", name))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.2))
        panels = figure.subplots(
            2, len(layers), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 2)
        )
        unit_of = {}
        for name, column in zip(layers, panels.T, strict=True):
            rows = table[table["layers"] == name]
            speeds = rows.groupby(["reroute", "share_faulty"])["speed_up"]
            shared = len(labels) > 1 and (speeds.max() - speeds.min()).max() < 1e-9
            for i, label in enumerate(labels):
                for reroute, (_, style, marker) in _LINES.items():
                    line = rows[(rows["label"] == label) & (rows["reroute"] == reroute)]
                    if len(line) == 0:
                        continue
                    errors, unit_of[label] = _by_unit(line)
                    look = {
                        "color": colours[label], "linestyle": style, "marker": marker,
                        "markersize": 4, "linewidth": 1.3,
                    }  # fmt: skip
                    _draw_intervals(column[0], errors, look, shift=(i - (len(labels) - 1) / 2))
                    speed = line.groupby("share_faulty")["speed_up"].mean()
                    # Configurations of equal speed would hide one another: one grey line for all.
                    look["color"] = _GREY if shared else look["color"]
                    column[1].plot(speed.index, speed, **look)
            column[0].set_title(_where(name))
            column[1].set_xlabel("share of faulty tiles")
        panels[0, 0].set_ylabel("test error (%)")
        panels[0, 0].set_ylim(0, min(100, panels[0, 0].get_ylim()[1]))
        panels[1, 0].set_ylabel("speed-up left")
        panels[1, 0].set_ylim(bottom=0)
        panels[1, 0].xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
        figure.suptitle(_title(table, unit_of), x=0.01, ha="left", fontsize="medium")
        _add_legend(figure, table, colours)
    return figure


def _by_unit(line: pd.DataFrame) -> tuple[pd.Series, str]:
    """Errors by share and what an interval is over: training seeds, else draws of faults."""
    # Two shares asked for can come to the same tiles: those count once.
    line = line.drop_duplicates(["share_faulty", "seed", "fault_draw"])
    if line["seed"].nunique() > 1:
        return line.groupby(["share_faulty", "seed"])["test_error"].mean(), "training seeds"
    unit = "draws of faults" if line["fault_draw"].nunique() > 1 else "one draw of faults"
    return line.set_index(["share_faulty", "fault_draw"])["test_error"], unit


def _draw_intervals(axes, errors: pd.Series, look: dict, *, shift: float) -> None:
    summary = [mean_interval(values) for _, values in errors.groupby(level=0)]
    means, low, high = map(list, zip(*summary, strict=True))
    shares = errors.index.get_level_values(0).unique().sort_values()
    bars = [[m - lo for m, lo in zip(means, low, strict=True)]]
    bars.append([hi - m for m, hi in zip(means, high, strict=True)])
    # Bars of several lines at one share stand beside each other.
    axes.errorbar(shares + 0.008 * shift, means, yerr=bars, capsize=2, elinewidth=1, **look)


def fault_summary(table: pd.DataFrame, points: float = 1.0) -> pd.DataFrame:
    """The share of tiles that can fail for less than so many points, one row a configuration.

    Args:
        table: rows of ``fault_tolerance.csv``.
        points: percentage points of test error.
    """
    table = table.assign(label=configuration_labels(table))
    rows = []
    for label in label_order(table):
        part = table[table["label"] == label]
        for found in tolerated_share(part, points).to_dict("records"):
            rows.append(
                {
                    "tiling": label.replace("\n", ", "),
                    "layers": found["layers"],
                    "rerouted": "yes" if found["reroute"] else "no",
                    "share": f"{100 * found['share_faulty']:.0f} %",
                    "added error (points)": f"{found['added_error']:+.2f}",
                    "speed-up left": f"{found['speed_up']:.1f}",
                    "seeds": part["seed"].nunique(),
                    "draws of faults": part["fault_draw"].nunique(),
                }
            )
    return pd.DataFrame(rows)


def repair_summary(repairs: pd.DataFrame) -> pd.DataFrame:
    """Test error after each repair, one row a configuration: means over seeds, as strings.

    Args:
        repairs: rows of ``fault_tolerance_repairs.csv``.
    """
    repairs = repairs.assign(label=configuration_labels(repairs))
    kinds = list(repairs["repair"].unique())
    rows = []
    for label in label_order(repairs):
        part = repairs[repairs["label"] == label]
        by_seed = part.groupby(["repair", "seed"])["test_error"].mean()
        rows.append(
            {"tiling": label.replace("\n", ", ")}
            | {kind: with_interval(by_seed[kind]) for kind in kinds}
        )
    return pd.DataFrame(rows)


def _where(layers: str) -> str:
    return "all layers" if layers == "all" else f"{layers} alone"


def _title(table: pd.DataFrame, unit_of: dict[str, str]) -> str:
    kind = f"{joined(table['kind'])} tiles"
    if table["strength"].notna().any():
        kind += f" (strength {joined(table['strength'])})"
    units = sorted(set(unit_of.values()), reverse=True)
    if len(units) == 1:
        over = units[0]
    else:  # a line of one seed has no interval over seeds
        lines = {unit: [n for n, u in unit_of.items() if u == unit] for unit in units}
        over = "; ".join(f"{unit} for {', '.join(lines[unit])}" for unit in units)
        over = over.replace("\n", " ")
    shown = (
        "one draw of faults" if over == "one draw of faults" else f"95 % t-intervals over {over}"
    )
    return f"{joined(table['dataset'])}, {joined(table['epochs'])} epochs; {kind}\n{shown}"


def _add_legend(figure: Figure, table: pd.DataFrame, colours: dict) -> None:
    handles = [Line2D([], [], color=colour, label=label) for label, colour in colours.items()]
    handles += [
        Line2D([], [], color=_GREY, linestyle=style, marker=marker, markersize=4, label=text)
        for reroute, (text, style, marker) in _LINES.items()
        if (table["reroute"] == reroute).any()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
