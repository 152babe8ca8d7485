"""The fault experiment's figure: what broken tiles cost in error, and rerouting in time."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rapa_lib.experiments.plots import (
    STYLE,
    WIDTH,
    configuration_labels,
    joined,
    label_order,
    layer_text,
)
from rapa_lib.instruments.statistics import mean_interval

_GREY = "0.3"
_MARKERS = "os^DvPX*"  # lines are told apart in grey, too
_STYLES = {"not rerouted": "--", "rerouted": "-", "rerouted, re-estimated": ":"}


def fault_figure(table: pd.DataFrame) -> Figure:
    """Test error and remaining speed-up against the share of faulty tiles.

    One column per set of layers; one row of errors without rerouting, one with it, one with it and
    normalisation statistics re-estimated, and one of speed-ups; in each panel one line per
    configuration. A seed's errors are averaged over its draws of faults first; intervals are over
    training seeds where a configuration has several, and over draws of faults where it has one. The
    title says which.

    Args:
        table: rows of ``fault_tolerance.csv``.

    Raises:
        ValueError: if there are no rows, or faults of more than one kind and strength.
    """
    _check(table)
    table = table.reset_index(drop=True)
    table = table.assign(label=configuration_labels(table))
    labels = label_order(table)
    palette = sns.color_palette("colorblind", len(labels))
    looks = {
        label: {"color": colour, "marker": _MARKERS[i % len(_MARKERS)], "markersize": 4}
        for i, (label, colour) in enumerate(zip(labels, palette, strict=True))
    }
    layers = sorted(pd.unique(table["layers"]), key=lambda name: (name != "all", name))
    cases = _cases(table)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0 + 2.1 * len(cases)))
        panels = figure.subplots(
            len(cases) + 1, len(layers), sharex=True, sharey="row", squeeze=False,
            height_ratios=[3] * len(cases) + [2],
        )  # fmt: skip
        unit_of: dict[str, str] = {}
        for name, column in zip(layers, panels.T, strict=True):
            rows = table[table["layers"] == name]
            for axes, (case, shown) in zip(column, cases.items(), strict=False):
                own = {label: look | {"linestyle": _STYLES[case]} for label, look in looks.items()}
                unit_of |= _draw_errors(axes, shown[shown["layers"] == name], own)
            _draw_speeds(column[-1], rows, looks)
            column[0].set_title(_where(name))
        for axes, case in zip(panels[:, 0], cases, strict=False):
            axes.set_ylabel(f"test error (%),\n{case}")
        _finish(panels, joined(table["kind"]))
        figure.suptitle(_title(table, unit_of), x=0.01, ha="left", fontsize="medium")
        handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
        handles += [
            Line2D([], [], color=_GREY, linestyle=_STYLES[case], label=case) for case in cases
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
    return figure


def _cases(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each row of panels by its name, what is shown of them as ``test_error``."""
    reroute = table["reroute"].astype(bool)
    cases = {"not rerouted": table[~reroute], "rerouted": table[reroute]}
    if "test_error_reestimated" in table:
        anew = table[reroute & table["test_error_reestimated"].notna()]
        cases["rerouted, re-estimated"] = anew.assign(test_error=anew["test_error_reestimated"])
    return {name: rows for name, rows in cases.items() if len(rows)}


def _check(table: pd.DataFrame) -> None:
    if len(table) == 0:
        raise ValueError("table: got no rows")
    kinds = table[["kind", "strength"]].drop_duplicates()
    if len(kinds) > 1:
        raise ValueError(
            f"table: got faults of kinds {joined(table['kind'])} and strengths "
            f"{joined(table['strength'])}, expected one of each"
        )


def _draw_errors(
    axes: Axes, rows: pd.DataFrame, looks: Mapping[str, dict[str, Any]]
) -> dict[str, str]:
    """A line of mean errors with intervals per configuration; returns what these are over."""
    unit_of = {}
    for i, (label, look) in enumerate(looks.items()):
        line = rows[rows["label"] == label]
        if len(line) == 0:
            continue
        errors, unit_of[label] = _by_unit(line)
        summary = [mean_interval(values) for _, values in errors.groupby(level=0)]
        means, low, high = map(list, zip(*summary, strict=True))
        shares = errors.index.get_level_values(0).unique().sort_values()
        bars = [[m - lo for m, lo in zip(means, low, strict=True)]]
        bars.append([hi - m for m, hi in zip(means, high, strict=True)])
        # Bars of several lines at one share stand beside each other.
        beside = 0.012 * (i - (len(looks) - 1) / 2)
        axes.errorbar(
            shares + beside, means, yerr=bars, capsize=2, elinewidth=1, linewidth=1.3, **look
        )
    return unit_of


def _draw_speeds(axes: Axes, rows: pd.DataFrame, looks: Mapping[str, dict[str, Any]]) -> None:
    """The speed-up that is left; one grey line where all configurations have the same."""
    speeds = rows.groupby(["reroute", "share_faulty"])["speed_up"]
    shared = len(looks) > 1 and (speeds.max() - speeds.min()).max() < 1e-9
    grey = {"color": _GREY, "marker": "none"}
    lines: Mapping[Any, dict[str, Any]] = {None: grey} if shared else looks
    for label, look in lines.items():
        own = rows if label is None else rows[rows["label"] == label]
        for reroute, line in own.groupby("reroute"):
            speed = line.groupby("share_faulty")["speed_up"].mean()
            style: dict[str, Any] = {"linewidth": 1.3}
            style["linestyle"] = _STYLES["rerouted" if reroute else "not rerouted"]
            axes.plot(speed.index, speed, **look | style)


def _finish(panels: Any, kind: str) -> None:
    """Limits and names of the axes; the rows of errors have the same."""
    errors = panels[:-1, 0]
    top = min(100, max(axes.get_ylim()[1] for axes in errors))
    for axes in errors:
        axes.set_ylim(0, top)
    panels[-1, 0].set_ylabel("speed-up left")
    panels[-1, 0].set_ylim(bottom=0)
    panels[-1, 0].xaxis.set_major_locator(mpl.ticker.MultipleLocator(0.25))
    panels[-1, 0].xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, 0, symbol=None))
    for axes in panels[-1]:
        axes.set_xlabel(f"{kind} tiles (%)")


def _by_unit(line: pd.DataFrame) -> tuple[pd.Series, str]:
    """Errors by share and what an interval is over: training seeds, else draws of faults."""
    # Two shares asked for can come to the same tiles: those count once.
    line = line.drop_duplicates(["share_faulty", "seed", "fault_draw"])
    if line["seed"].nunique() > 1:
        return line.groupby(["share_faulty", "seed"])["test_error"].mean(), "training seeds"
    unit = "draws of faults" if line["fault_draw"].nunique() > 1 else "one draw of faults"
    return line.set_index(["share_faulty", "fault_draw"])["test_error"], unit


def _where(layers: str) -> str:
    return "all layers" if layers == "all" else f"{layer_text(layers)} alone"


def _title(table: pd.DataFrame, unit_of: Mapping[str, str]) -> str:
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
