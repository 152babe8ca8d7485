"""The fault experiment's tables, and what they answer."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rapa_lib.experiments.plots import (
    UNKNOWN,
    configuration_labels,
    joined,
    label_order,
    layer_text,
    with_interval,
)
from rapa_lib.experiments.records import nested_table
from rapa_lib.networks import kind_names, network_kind

COLUMNS = (
    "dataset", "tiling", "n_tiles", "tile_init", "pooling", "epochs", "seed", "git_commit",
    "config",
)  # fmt: skip
"""Labels of every row of the two tables."""

SORTED_BY = ["tiling", "tile_init", "n_tiles", "pooling", "seed"]

POINTS = 1.0
"""What faults may add to the test error, in percentage points, to count as tolerated."""


def fault_table(records: Sequence[dict[str, Any]], part: str = "rows") -> pd.DataFrame:
    """The rows of fault records under one another, each with its record's labels.

    Args:
        records: of the fault experiment.
        part: ``"rows"`` or ``"repairs"``.

    Raises:
        ValueError: if there is none, or one lacks what it must have; it is named.
    """
    try:
        table = nested_table(records, part, COLUMNS)
    except (KeyError, TypeError) as error:
        runs = ", ".join(str(record.get("run")) for record in records)
        raise ValueError(f"record: cannot read one of {runs}: {error!r}") from error
    if table.empty:
        raise ValueError("records: none to collect")
    if part == "rows":  # missing throughout where nothing was rerouted
        table = table.astype({"test_error_reestimated": float})
    return table.sort_values(SORTED_BY, kind="stable", ignore_index=True)


def tolerated_share(table: pd.DataFrame, points: float = POINTS) -> pd.DataFrame:
    """The share of tiles that can fail for less than so many points of test error.

    Args:
        table: rows of one network or of several of one configuration, a share of 0 among them.
        points: percentage points above the mean test error without faults.

    Returns:
        One row per ``layers`` × ``reroute``: ``share_faulty``, the greatest share measured up to
        which every mean test error stays below; ``added_error``, what it costs in points, and
        ``added_reestimated``, the same where statistics were re-estimated, without faults too (NaN
        where they were not); ``speed_up``, its mean there.

    Raises:
        ValueError: if there are no rows without faults.
    """
    rows = []
    for (layers, reroute), part in table.groupby(["layers", "reroute"], sort=False):
        columns = ["test_error", "test_error_reestimated", "speed_up"]
        shares = part.reindex(columns=[*columns, "share_faulty"]).groupby("share_faulty")
        means = shares.mean().sort_index()
        if means.index[0] != 0:
            raise ValueError(f"table: it has no rows without faults for layers {layers!r}")
        added = means["test_error"] - means["test_error"].iloc[0]
        anew = means["test_error_reestimated"]
        kept = added[(added < points).cummin()].index[-1]
        rows.append(
            {
                "layers": layers,
                "reroute": reroute,
                "share_faulty": kept,
                "added_error": added[kept],
                "added_reestimated": anew[kept] - anew.iloc[0],
                "speed_up": means["speed_up"][kept],
            }
        )
    return pd.DataFrame(rows)


def tolerated_shares(table: pd.DataFrame, points: float = POINTS) -> pd.DataFrame:
    """:func:`tolerated_share` of every configuration, with its ``label`` before it.

    Args:
        table: rows of ``fault_tolerance.csv``.
        points: see :func:`tolerated_share`.
    """
    table = table.assign(label=configuration_labels(table))
    parts = []
    for label in label_order(table):
        runs = table[table["label"] == label]
        found = tolerated_share(runs, points)
        found.insert(0, "label", label.replace("\n", ", "))
        parts.append(
            found.assign(seeds=runs["seed"].nunique(), fault_draws=runs["fault_draw"].nunique())
        )
    return pd.concat(parts, ignore_index=True)


def fault_summary(table: pd.DataFrame, points: float = POINTS) -> pd.DataFrame:
    """:func:`tolerated_shares` as strings ready to print."""
    found = tolerated_shares(table, points)
    return pd.DataFrame(
        {
            "tiling": found["label"],
            "layers": found["layers"].map(layer_text),
            "rerouted": found["reroute"].map({True: "yes", False: "no"}),
            "share": (100 * found["share_faulty"]).map("{:.0f} %".format),
            "added error (points)": found["added_error"].map("{:+.2f}".format),
            "with statistics re-estimated": [
                UNKNOWN if pd.isna(one) else f"{one:+.2f}" for one in found["added_reestimated"]
            ],
            "speed-up left": found["speed_up"].map("{:.1f}".format),
            "seeds": found["seeds"],
            "draws of faults": found["fault_draws"],
        }
    )


def repair_errors(repairs: pd.DataFrame) -> pd.DataFrame:
    """Test error by configuration, repair and seed: means over draws of faults.

    Args:
        repairs: rows of ``fault_tolerance_repairs.csv``.

    Returns:
        ``label``, ``tiling``, ``repair``, ``seed``, ``test_error``; configurations and repairs in
        the order in which they are shown.
    """
    repairs = repairs.assign(label=configuration_labels(repairs))
    for name, order in (("label", label_order(repairs)), ("repair", repairs["repair"].unique())):
        repairs[name] = pd.Categorical(repairs[name], order, ordered=True)
    keys = ["label", "tiling", "repair", "seed"]
    return repairs.groupby(keys, observed=True, as_index=False)["test_error"].mean()


def repair_summary(repairs: pd.DataFrame) -> pd.DataFrame:
    """Test error after each repair, one row per configuration: means over seeds, as strings.

    Args:
        repairs: rows of ``fault_tolerance_repairs.csv``.
    """
    errors = repair_errors(repairs)
    rows = [
        {"tiling": str(label).replace("\n", ", ")}
        | {
            str(repair): with_interval(values)
            for repair, values in part.groupby("repair", observed=True)["test_error"]
        }
        for label, part in errors.groupby("label", observed=True)
    ]
    return pd.DataFrame(rows)


def fault_answer(table: pd.DataFrame, repairs: pd.DataFrame) -> list[str]:
    """How many tiles can fail, and what repairs give back, in at most three Markdown lines.

    Args:
        table: rows of ``fault_tolerance.csv``.
        repairs: rows of ``fault_tolerance_repairs.csv``.
    """
    return [_tolerated_line(table), *_repair_lines(repairs)]


def _tolerated_line(table: pd.DataFrame) -> str:
    found = tolerated_shares(table)
    several = found["label"].nunique() > 1
    parts = []
    for single, where in ((False, "all layers at once"), (True, "one layer alone")):
        for reroute in (False, True):
            chosen = ((found["layers"] != "all") == single) & (found["reroute"] == reroute)
            if not chosen.any():
                continue
            order = {"by": ["share_faulty", "added_error"], "ascending": [False, True]}
            best = found[chosen].sort_values(**order, kind="stable").iloc[0]
            text = f"{100 * best['share_faulty']:.0f} % of {where}"
            text += ", rerouted" if reroute else ", not rerouted"
            if best["share_faulty"]:
                whose = [f"`{best['label']}`"] if several else []
                whose += [layer_text(best["layers"])] if single else []
                whose += [f"{best['added_error']:+.2f} points"]
                whose += [f"{best['speed_up']:.1f} times as fast as one tile"] if reroute else []
                text += f" ({', '.join(whose)})"
            parts.append(text)
    labels = "" if several else f"of `{found['label'].iloc[0]}` "
    return (
        f"**Of the shares tried, at most so many tiles {labels}can be {joined(table['kind'])} for "
        f"less than {POINTS:g} point of mean test error: {'; '.join(parts)}.**"
    )


def _repair_lines(repairs: pd.DataFrame) -> list[str]:
    errors = repair_errors(repairs)
    faults = f"{100 * repairs['share'].iloc[0]:.0f} % of all tiles {joined(repairs['kind'])}"
    shown = _shown_label(errors)
    mean = {
        repair: with_interval(values)
        for repair, values in errors[errors["label"] == shown].groupby("repair", observed=True)[
            "test_error"
        ]
    }
    whole, broken = f"{mean.pop('no faults')} %", mean.pop("none")
    if tuned := mean.pop("no faults, fine-tuned", None):
        whole += f", fine-tuned as well {tuned} %"
    given = "; ".join(f"{repair} {error} %" for repair, error in mean.items())
    lines = [
        f"With {faults}, the test error of `{_flat(shown)}` is {broken} % (without faults {whole})"
        f"; repairs: {given}."
    ]
    means = errors.groupby(["label", "repair"], observed=True)["test_error"].mean().unstack()
    if len(means) > 1:
        added = (means["none"] - means["no faults"]).sort_values()
        others = added.iloc[1:]
        lines.append(
            f"Unrepaired, these faults add the fewest points to `{_flat(added.index[0])}`, "
            f"{added.iloc[0]:.1f}, and {others.min():.1f} to {others.max():.1f} to the others."
        )
    return lines


def _shown_label(errors: pd.DataFrame) -> Any:
    """The first configuration that draws assignments at random; the first where there is none."""
    labels = errors.drop_duplicates("label").set_index("label")["tiling"]
    known = kind_names()
    drawn = [
        label for label, name in labels.items()
        if name in known and network_kind(name).expectation
    ]  # fmt: skip
    return (drawn or list(labels.index))[0]


def _flat(label: Any) -> str:
    return str(label).replace("\n", ", ")
