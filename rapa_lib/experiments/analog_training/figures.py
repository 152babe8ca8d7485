"""The analog experiment's figures and sentences: what imprecision costs."""

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rapa_lib.experiments.analog_training.experiment import BASELINE, IMPERFECTIONS, METHODS
from rapa_lib.experiments.plots import (
    STYLE,
    WIDTH,
    joined,
    set_title,
    t_interval,
    tiling_order,
    with_interval,
)
from rapa_lib.instruments.statistics import mean_interval

METHOD_NAMES = {
    "digital": "digital",
    "hardware_aware": "hardware-aware",
    "analog": "analog",
}
AXIS_NAMES = {
    "out_noise": "output noise",
    "bits": "bits of the DAC (ADC: two more)",
    "dw_min": "mean step of a pulse, dw_min",
    "dtod": "device-to-device spread",
    "asymmetry": "spread of up-down asymmetry",
}
_STYLES = {"digital": "-", "hardware_aware": "--", "analog": ":"}


def analog_figure(table: pd.DataFrame, inference: pd.DataFrame) -> Figure:
    """Test error by method, and of digital and hardware-aware networks against the read noise.

    Args:
        table, inference: of :func:`rapa_lib.analog_training.analog_table`.
    """
    plain = table[table["imperfection"] == BASELINE]
    tilings = tiling_order(plain["tiling"])
    methods = [method for method in METHODS if method in set(plain["method"])]
    palette = dict(zip(tilings, sns.color_palette("colorblind", len(tilings)), strict=True))
    many = table["seed"].nunique() > 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4))
        left, right = figure.subplots(1, 2)
        common = {
            "data": plain, "x": "method", "y": "test_error", "hue": "tiling", "ax": left,
            "order": methods, "hue_order": tilings, "palette": palette,
        }  # fmt: skip
        sns.stripplot(**common, dodge=True, jitter=False, size=4, alpha=0.5, legend=False)
        sns.pointplot(
            **common, dodge=0.4, linestyle="none", marker="D", markersize=5, capsize=0.08,
            errorbar=t_interval if many else None, err_kws={"linewidth": 1.5}, legend=False,
        )  # fmt: skip
        left.set_xticks(range(len(methods)), [METHOD_NAMES[method] for method in methods])
        left.set(xlabel="trained", ylabel="test error (%)", ylim=(0, None))
        for (tiling, method), line in inference.groupby(["tiling", "method"], sort=False):
            _curve(right, line, "out_noise", palette[tiling], _STYLES[method])
        right.set(
            xlabel="output noise when read, not trained anew",
            ylabel="test error (%)",
            ylim=(0, None),
        )
        handles = [Line2D([], [], color=palette[t], marker="D", label=t) for t in tilings]
        handles += [
            Line2D([], [], color="0.3", linestyle=_STYLES[m], label=METHOD_NAMES[m])
            for m in METHODS
            if m in set(inference["method"])
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        set_title(figure, _title(table))
    return figure


def imperfection_figure(table: pd.DataFrame) -> Figure:
    """Test error against each imperfection, everything else at the baseline, which is marked.

    Args:
        table: of :func:`rapa_lib.analog_training.analog_table`, with columns ``baseline_<name>``
            for the value of each imperfection at the baseline.
    """
    names = [name for name in IMPERFECTIONS if name in set(table["imperfection"])]
    tilings = tiling_order(table["tiling"])
    palette = dict(zip(tilings, sns.color_palette("colorblind", len(tilings)), strict=True))
    with mpl.rc_context(STYLE):
        if not names:
            figure = Figure(figsize=(WIDTH, 0.6))
            set_title(figure, "No imperfection was varied.")
            return figure
        columns = min(3, len(names))
        n_rows = -(-len(names) // columns)
        figure = Figure(figsize=(WIDTH, 0.8 + 2.3 * n_rows))
        panels = figure.subplots(n_rows, columns, squeeze=False, sharey=True).flat
        for name, axes in zip(names, panels, strict=False):
            for (tiling, method), line in imperfection_curves(table, name).groupby(
                ["tiling", "method"], sort=False
            ):
                _curve(axes, line, "value", palette[tiling], _STYLES[method])
            axes.axvline(table[f"baseline_{name}"].iloc[0], color="0.6", linewidth=0.8)
            axes.set(xlabel=AXIS_NAMES[name], ylim=(0, None))
            if name == "dw_min":
                axes.set_xscale("log")
        for axes in list(figure.axes)[len(names) :]:
            axes.remove()
        for axes in figure.axes[::columns]:
            axes.set_ylabel("test error (%)")
        methods = [m for m in METHODS if m in set(table["method"])]
        handles = [Line2D([], [], color=palette[t], marker="D", label=t) for t in tilings]
        handles += [
            Line2D([], [], color="0.3", linestyle=_STYLES[m], label=METHOD_NAMES[m])
            for m in methods
            if len(table[(table["method"] == m) & (table["imperfection"] != BASELINE)])
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        set_title(figure, f"{_title(table)}; grey: the baseline")
    return figure


def imperfection_curves(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one imperfection, and the baseline's in their place among them."""
    varied = table[table["imperfection"] == name]
    methods = set(varied["method"])
    plain = table[(table["imperfection"] == BASELINE) & table["method"].isin(methods)]
    plain = plain.assign(value=plain[f"baseline_{name}"])
    return pd.concat([varied, plain]).sort_values("value", kind="stable")


def analog_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Test error and what it is above the baseline, one row a method, tiling and imperfection."""
    rows = []
    keys = ["imperfection", "value", "method", "tiling"]
    tilings = tiling_order(table["tiling"])
    for key, part in table.groupby(keys, sort=False, dropna=False):
        imperfection, value, method, tiling = key
        plain = table[
            (table["imperfection"] == BASELINE)
            & (table["method"] == method)
            & (table["tiling"] == tiling)
        ].set_index("seed")["test_error"]
        added = (part.set_index("seed")["test_error"] - plain).dropna()
        rows.append(
            {
                "imperfection": imperfection,
                "value": "" if pd.isna(value) else f"{value:g}",
                "trained": METHOD_NAMES[method],
                "tiling": tiling,
                "seeds": len(part),
                "test error (%)": with_interval(part["test_error"]),
                "above baseline": ""
                if imperfection == BASELINE or added.empty
                else with_interval(added, sign=True),
                "seconds": f"{part['seconds'].mean():.0f}",
            }
        )
    order = {tiling: i for i, tiling in enumerate(tilings)}
    return pd.DataFrame(rows).sort_values(
        ["imperfection", "trained", "tiling"],
        key=lambda column: column.map(
            {**order, BASELINE: "", **{v: str(i) for i, v in enumerate(METHOD_NAMES.values())}}
        ).fillna(column).astype(str),
        kind="stable",
        ignore_index=True,
    )  # fmt: skip


def analog_answer(table: pd.DataFrame) -> str:
    """What the numbers say, as Markdown: what analog training costs, and what costs most."""
    lines = []
    errors = table[table["imperfection"] == BASELINE]
    for tiling in tiling_order(errors["tiling"]):
        by_seed = errors[errors["tiling"] == tiling].pivot_table(
            index="seed", columns="method", values="test_error"
        )
        said = [
            f"{METHOD_NAMES[method]} {with_interval(by_seed[method])} %"
            for method in METHODS
            if method in by_seed
        ]
        lines.append(f"- `{tiling}`: test error {', '.join(said)}")
        if {"digital", "analog"} <= set(by_seed):
            cost = by_seed["analog"] - by_seed["digital"]
            lines[-1] += f"; analog training costs {with_interval(cost, sign=True)} points"
    worst = {
        tiling: max(changes, key=lambda entry: entry[0])
        for tiling in tiling_order(table["tiling"])
        if (changes := _changes(table[table["tiling"] == tiling]))
    }
    if worst:
        lines += ["", "The imperfection that costs most, of those tried:", ""]
        lines += [f"- `{tiling}`: {text}" for tiling, (_, text) in worst.items()]
    return "\n".join(["**What analog hardware costs (C7):**", "", *lines])


def _changes(table: pd.DataFrame) -> list[tuple[float, str]]:
    found = []
    varied = table[table["imperfection"] != BASELINE]
    for (name, value, method), part in varied.groupby(["imperfection", "value", "method"]):
        plain = table[(table["imperfection"] == BASELINE) & (table["method"] == method)]
        gap = part.set_index("seed")["test_error"] - plain.set_index("seed")["test_error"]
        gap = gap.dropna()
        if len(gap):
            mean, _, _ = mean_interval(gap)
            told = f"{AXIS_NAMES[name]} {value:g}: {with_interval(gap, sign=True)} points"
            found.append((mean, told))
    return found


def _curve(axes, line: pd.DataFrame, x: str, colour, style: str) -> None:
    points = [(at, *mean_interval(part["test_error"])) for at, part in line.groupby(x)]
    places, means, low, high = zip(*points, strict=True)
    bars = [
        [m - lo for m, lo in zip(means, low, strict=True)],
        [hi - m for m, hi in zip(means, high, strict=True)],
    ]
    axes.errorbar(
        places, means, yerr=bars, color=colour, linestyle=style, marker="D", markersize=3.5,
        linewidth=1.3, elinewidth=0.9, capsize=2,
    )  # fmt: skip


def _title(table: pd.DataFrame) -> str:
    many = table["seed"].nunique() > 1
    interval = "means with 95 % t-intervals over seeds" if many else "one seed"
    return f"{joined(table['dataset'])}, {joined(table['epochs'])} epochs; {interval}"
