"""The analog experiment's tables, and what they answer: what imprecision costs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rapa_lib.experiments.analog_training.imperfections import BASELINE, METHODS
from rapa_lib.experiments.plots import tiling_order, with_interval
from rapa_lib.instruments.statistics import contrast, mean_interval

METHOD_NAMES = {
    "digital": "digital",
    "hardware_aware": "hardware-aware",
    "analog": "analog",
    "tiki_taka": "Tiki-Taka",
}
READING_NAMES = {"single": "", "vote": ", voted", "merged": ", merged"}
IMPERFECTION_NAMES = {
    "out_noise": "output noise",
    "bits": "bits of the DAC (ADC: two more)",
    "dw_min": "mean step of a pulse, dw_min",
    "dtod": "device-to-device spread",
    "asymmetry": "spread of up-down asymmetry",
}

# Entries of a record that are no columns of a table.
_ELSEWHERE = ("rows", "inference", "drift", "measurement", "tiles")

_DRIFT = ("tiling", "n_tiles", "method", "reading", "t_seconds", "test_error")
_INFERENCE = ("tiling", "n_tiles", "method", "out_noise", "test_error", "clipped")


def in_order(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records by seed."""
    return sorted(records, key=lambda record: (record["seed"], record["run"]))


def analog_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per training, with its record's labels.

    Args:
        records: of the experiment.

    Returns:
        Beside the labels: ``tiling``, ``n_tiles``, ``method``, ``imperfection``, ``value``,
        ``n_weights``, ``test_error`` and ``train_error`` (percent), ``clipped`` (weights that their
        devices could not hold when they were programmed), ``diverged`` (then there are no errors),
        ``seconds``.

    Raises:
        ValueError: if there are no records.
    """
    rows = [_labels(record) | row for record in records for row in record["rows"]]
    if not rows:
        raise ValueError("records: none to collect")
    return pd.DataFrame(rows)


def inference_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per trained network and noise level at which it is read, with its record's labels.

    Args:
        records: of the experiment.

    Returns:
        Beside the labels: ``tiling``, ``n_tiles``, ``method``, ``out_noise``, ``test_error``
        (percent), ``clipped``. No rows where nothing was read.

    Raises:
        ValueError: if there are no records.
    """
    if not records:
        raise ValueError("records: none to collect")
    rows = [_labels(record) | row for record in records for row in record["inference"]]
    return pd.DataFrame(rows, columns=[*_labels(records[0]), *_INFERENCE])


def drift_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per trained network, reading and time on phase-change memory, with labels.

    Args:
        records: of the experiment; older ones have no such rows.

    Returns:
        Beside the labels: ``tiling``, ``n_tiles``, ``method``, ``reading`` (``single``, ``vote``,
        ``merged``), ``t_seconds``, ``test_error`` (percent).

    Raises:
        ValueError: if there are no records.
    """
    if not records:
        raise ValueError("records: none to collect")
    rows = [_labels(record) | row for record in records for row in record.get("drift", [])]
    return pd.DataFrame(rows, columns=[*_labels(records[0]), *_DRIFT])


def drift_answer(table: pd.DataFrame) -> str:
    """What drift adds to test errors from the first time to the last, of the last way of training.

    Args:
        table: of :func:`drift_table`; empty: nothing is said.
    """
    if not len(table):
        return ""
    own = table[table["method"] == list(dict.fromkeys(table["method"]))[-1]]
    first, last = own["t_seconds"].min(), own["t_seconds"].max()
    parts = []
    for (tiling, reading), part in own.groupby(["tiling", "reading"], sort=False):
        at = [part[part["t_seconds"] == t]["test_error"].astype(float) for t in (first, last)]
        words = " to ".join(with_interval(errors) for errors in at)
        parts.append(f"`{tiling}`{READING_NAMES[reading]} {words} %")
    return (
        f"On phase-change memory, from {time_name(first)} to {time_name(last)} "
        f"({METHOD_NAMES[own['method'].iloc[0]]}): {', '.join(parts)}."
    )


def time_name(seconds: float) -> str:
    """A time in the largest unit that it has at least one of: 3600 is 1 h."""
    units = (("y", 31_536_000), ("d", 86_400), ("h", 3600), ("s", 1))
    unit, size = next((u for u in units if seconds >= u[1]), units[-1])
    return f"{seconds / size:.3g} {unit}"


def _labels(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _ELSEWHERE}


def imperfection_curves(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one imperfection, and the baseline's in their place among them."""
    varied = table[table["imperfection"] == name]
    methods = set(varied["method"])
    plain = table[(table["imperfection"] == BASELINE) & table["method"].isin(methods)]
    plain = plain.assign(value=plain[f"baseline_{name}"])
    return pd.concat([varied, plain]).sort_values("value", kind="stable")


def analog_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Test error and what it is above the baseline, one row per method, tiling and imperfection.

    Where nothing but the baseline was trained, there is no such difference.
    """
    rows = []
    keys = ["imperfection", "value", "method", "tiling"]
    tilings = tiling_order(table["tiling"])
    for key, part in table.groupby(keys, sort=False, dropna=False):
        imperfection, value, method, tiling = key
        added = _above(part, _baseline(table, tiling, method))
        rows.append(
            {
                "imperfection": imperfection,
                "value": "" if pd.isna(value) else f"{value:g}",
                "trained": METHOD_NAMES[method],
                "tiling": tiling,
                "seeds": len(part),
                "test error (%)": _error_text(part),
                "above baseline": ""
                if imperfection == BASELINE or added.empty
                else with_interval(added, sign=True),
                "seconds": f"{part['seconds'].mean():.0f}",
            }
        )
    order = {tiling: i for i, tiling in enumerate(tilings)}
    summary = pd.DataFrame(rows)
    varied = summary["imperfection"].ne(BASELINE).any()
    return summary.drop(columns=[] if varied else ["value", "above baseline"]).sort_values(
        ["imperfection", "trained", "tiling"],
        key=lambda column: column.map(
            {**order, BASELINE: "", **{v: str(i) for i, v in enumerate(METHOD_NAMES.values())}}
        ).fillna(column).astype(str),
        kind="stable",
        ignore_index=True,
    )  # fmt: skip


def _error_text(rows: pd.DataFrame) -> str:
    """The test error of trainings, and how many of them diverged."""
    lost = int(rows["diverged"].sum())
    if lost == len(rows):
        return "diverged"
    text = with_interval(rows["test_error"].dropna())
    return f"{text} ({lost} of {len(rows)} diverged)" if lost else text


def _baseline(table: pd.DataFrame, tiling: str, method: str) -> pd.DataFrame:
    """The rows of one way of training one network at the baseline."""
    plain = table[table["imperfection"] == BASELINE]
    return plain[(plain["method"] == method) & (plain["tiling"] == tiling)]


def _above(rows: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """What test errors are above others, by seed, where there are both."""
    gap = rows.set_index("seed")["test_error"] - others.set_index("seed")["test_error"]
    return gap.astype(float).dropna()


def analog_answer(table: pd.DataFrame) -> list[str]:
    """What analog hardware costs, in at most three lines of Markdown.

    Args:
        table: of :func:`analog_table`.
    """
    tilings = tiling_order(table["tiling"])
    trained, programmed, paired = (
        _costs(table, tilings, method) for method in ("analog", "hardware_aware", "tiki_taka")
    )
    lines = []
    if trained:
        more = f" Tiki-Taka costs {paired}." if paired else ""
        lines.append(f"**Against digital training, analog training costs {trained}.**{more}")
    if programmed:
        lines.append(f"Hardware-aware training, and programming onto devices, costs {programmed}.")
    worst = [
        f"`{tiling}` {changes[-1][1]}"
        for tiling in tilings
        if (changes := sorted(_changes(table[table["tiling"] == tiling])))
    ]
    if worst:
        lines.append(f"The imperfection that costs most, of those varied: {'; '.join(worst)}.")
        if lost := _lost(table):
            lines[-1] += f" Every training diverged with {'; '.join(lost)}."
    return lines or [f"**{_errors(table, tilings)}.**"]


def _costs(table: pd.DataFrame, tilings: Sequence[str], method: str) -> str:
    """What a way of training costs each network, and how much more it costs RAPA."""
    costs = {
        tiling: gap
        for tiling in tilings
        if len(gap := _above(_baseline(table, tiling, method), _baseline(table, tiling, "digital")))
    }
    parts = []
    for tiling, gap in costs.items():
        error = with_interval(_baseline(table, tiling, method)["test_error"].astype(float))
        parts.append(f"`{tiling}` {with_interval(gap, sign=True)} points (test error {error} %)")
    words = ", ".join(parts)
    if {"none", "random"} <= set(costs):
        words += f"; `random` {_more(table, method)} points more than `none`"
    return words


def _more(table: pd.DataFrame, method: str) -> str:
    """What a way of training costs RAPA more than the ordinary network, as C7 is judged.

    The four arms are independent, with one variance.
    """
    arms = [
        _baseline(table, tiling, way)["test_error"].astype(float).dropna()
        for tiling in ("random", "none")
        for way in (method, "digital")
    ]
    if min(map(len, arms)) < 2:
        return f"{np.dot((1, -1, -1, 1), [arm.mean() for arm in arms]):+.2f}"
    found = contrast(arms, (1, -1, -1, 1))
    low, high = map(float, found.interval())
    return f"{float(found.estimate):+.2f} ± {(high - low) / 2:.2f}"


def _errors(table: pd.DataFrame, tilings: Sequence[str]) -> str:
    """Test errors, where there is nothing to compare them with."""
    plain = table[table["imperfection"] == BASELINE]
    parts = [
        f"`{tiling}` {METHOD_NAMES[method]} {with_interval(part['test_error'].astype(float))} %"
        for tiling in tilings
        for method in METHODS
        if len(part := plain[(plain["tiling"] == tiling) & (plain["method"] == method)])
    ]
    return f"Test error: {', '.join(parts)}"


def _lost(table: pd.DataFrame) -> list[str]:
    """Imperfections under which no training of a network ended."""
    varied = table[table["imperfection"] != BASELINE]
    return [
        f"{IMPERFECTION_NAMES[name]} {value:g} (`{tiling}`)"
        for (name, value, tiling), part in varied.groupby(["imperfection", "value", "tiling"])
        if part["diverged"].all()
    ]


def _changes(table: pd.DataFrame) -> list[tuple[float, str]]:
    """What each imperfection adds to a network's test error: the mean, and in words."""
    found = []
    varied = table[table["imperfection"] != BASELINE]
    for (name, value, method), part in varied.groupby(["imperfection", "value", "method"]):
        gap = _above(part, _baseline(table, part["tiling"].iloc[0], method))
        if len(gap):
            mean, _, _ = mean_interval(gap)
            words = f"{IMPERFECTION_NAMES[name]} {value:g}: {with_interval(gap, sign=True)} points"
            found.append((mean, words))
    return found
