"""The filter-similarity experiment's tables, and what they answer."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import pandas as pd

from rapa_lib.experiments.plots import UNKNOWN, layer_text, tiling_order, with_interval
from rapa_lib.experiments.recipe import (
    KNOBS,
    LABELS,
    LATER,
    SYNCHRONISATION,
    with_synchronisation,
)
from rapa_lib.experiments.records import nested_table
from rapa_lib.experiments.tracking import Tracking
from rapa_lib.instruments.penalty import ALL_LAYERS
from rapa_lib.instruments.statistics import mean_interval
from rapa_lib.networks import kind_names, network_kind

SETTING = (*(name for name in LABELS if name != "seed"), *SYNCHRONISATION, "varied")
"""What a mean over seeds keeps apart; ``varied`` holds whatever else differs among networks."""

COLUMNS = (
    *(name for name in SETTING if name not in SYNCHRONISATION),
    "seed", "run", "git_commit", "data_fingerprint",
)  # fmt: skip
"""Labels of every row of the two tables, beside those of :data:`SYNCHRONISATION`."""

MAIN = tuple(name for name in SETTING if name not in ("tiling", "tile_init"))
"""What the figure of similarity over training holds still: all but what it compares."""

SMOOTHNESS = ("activation", "pooling", "normalisation")
"""What the loss's smoothness depends on."""

NO_PENALTY = "No penalty: these assignments are not drawn at random, so no expectation exists."
NO_THEOREM = (
    "R(δ) is a theorem for none of these networks: ReLU and maximum pooling have kinks, and batch "
    "normalisation leaves the mean kernels foreign statistics."
)
NO_TILES = "No layer has several tiles."

# Parameters that have a column of their own or change no network.
_APART = {
    *LABELS, *SYNCHRONISATION, *(one.name for one in fields(Tracking)), "data_root", "draws",
    "device", "threads",
}  # fmt: skip

_WORDS = {
    "tile_init": "{} start", "pooling": "{} pooling", "normalisation": "{} normalisation",
    "epochs": "{} epochs", "n_tiles": "tiles {}", "tile_lr_power": "learning rate × n_tiles^{}",
}  # fmt: skip


def setting_text(name: str, value: Any) -> str:
    """A setting in words, such as ``max pooling``."""
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return _WORDS.get(name, "{}").format(shown)


def similarity_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per run, recorded epoch and tiled layer: how similar the tiles are."""
    named = with_varied(records)
    table = nested_table(named, "similarities", columns_of(named))
    order = [name for name in columns_of(named) if name in (*MAIN, "tiling", "seed")]
    return table.sort_values([*order, "run", "epoch", "layer"], ignore_index=True)


def penalty_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per run, layer and scale of the deviations: the penalty, measured and predicted."""
    named = with_varied(records)
    return nested_table(named, "penalties", columns_of(named))


def columns_of(records: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """:data:`COLUMNS` of records, with :data:`SYNCHRONISATION` if they have it."""
    if not records or SYNCHRONISATION[0] not in records[0]:
        return COLUMNS
    place = COLUMNS.index("varied")
    return (*COLUMNS[:place], *SYNCHRONISATION, *COLUMNS[place:])


def with_varied(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, each with ``varied``: the parameters without a column that differ among them.

    Not those that each arm has tuned for itself: arms are compared although these differ.
    """
    configs = pd.DataFrame([LATER | record["config"] for record in records]).astype(str)
    labels = {name: [record[name] for record in records] for name in ("tiling", "n_tiles")}
    apart = {*_APART, *tuned(configs.assign(**labels))}
    names = [name for name in configs if name not in apart and configs[name].nunique() > 1]
    pairs = zip(with_synchronisation(records), configs.iterrows(), strict=True)
    return [
        record | {"varied": ", ".join(f"{name} {config[name]}" for name in names)}
        for record, (_, config) in pairs
    ]


def tuned(table: pd.DataFrame) -> list[str]:
    """The knobs that differ among arms (tiling, tiles, how these meet) and within none."""
    apart = ("tiling", "n_tiles", *SYNCHRONISATION)
    arms = [table[name].astype(str) for name in apart if name in table]
    texts = {name: table[name].astype(str) for name in KNOBS if name in table and arms}
    return [
        name
        for name, values in texts.items()
        if values.nunique() > 1 and (values.groupby(arms).nunique() == 1).all()
    ]


def most_common(table: pd.DataFrame, columns: Iterable[str] = MAIN) -> pd.DataFrame:
    """The rows with the combination of values that most runs have."""
    runs = table.drop_duplicates("run").set_index("run")
    told = settings(table)
    runs = runs[[name for name in columns if name in told]]
    kinds = runs.astype(str).agg(" ".join, axis=1)
    chosen = kinds.index[kinds == kinds.value_counts().idxmax()]
    return table[table["run"].isin(chosen)]


def with_expectation(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of networks that draw assignments at random; all rows where there is none."""
    known = kind_names()
    chosen = [
        name for name in table["tiling"].unique()
        if name in known and network_kind(name).expectation
    ]  # fmt: skip
    return table[table["tiling"].isin(chosen)] if chosen else table


def of_layers(penalties: pd.DataFrame) -> pd.DataFrame:
    """The rows of single layers; there may be none, and then no columns either."""
    return penalties if penalties.empty else penalties[penalties["layer"] != ALL_LAYERS]


def settings(table: pd.DataFrame) -> list[str]:
    """The columns of :data:`SETTING` that a table has, but for what its arms have tuned."""
    apart = tuned(table)
    return [name for name in SETTING if name in table and name not in apart]


def varying(table: pd.DataFrame, *apart: str) -> list[str]:
    """The settings that differ among the rows, those shown otherwise (``apart``) left out."""
    return [n for n in settings(table) if n not in apart and table[n].astype(str).nunique() > 1]


def at_the_end(table: pd.DataFrame) -> pd.DataFrame:
    """The last recorded epoch of every run and layer."""
    return _one_epoch(table, "last")


def _one_epoch(table: pd.DataFrame, keep: Any) -> pd.DataFrame:
    rows = table.sort_values("epoch").drop_duplicates(["run", "layer"], keep=keep)
    return rows.sort_values(["run", "layer"], ignore_index=True)


def _with_rise(table: pd.DataFrame) -> pd.DataFrame:
    """The last rows with ``rise`` since the start; missing where the start was not recorded."""
    last, first = at_the_end(table), _one_epoch(table, "first")
    start = first["between_tiles"].where(first["epoch"] == 0)
    return last.assign(rise=last["between_tiles"] - start)


def similarity_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Final similarity per layer: means over seeds with 95 % t-intervals, as strings.

    Args:
        table: rows of ``filter_similarity.csv``.
    """
    rows = []
    last = _with_rise(table)
    last["tiling"] = pd.Categorical(last["tiling"], tiling_order(last["tiling"]), ordered=True)
    keys = [*settings(table), "layer"]
    for values, runs in last.groupby(keys, observed=True):
        setting = dict(zip(keys, map(str, values), strict=True))
        rows.append(
            setting
            | {
                "layer": layer_text(setting["layer"]),
                "seeds": len(runs),
                "between tiles": with_interval(runs["between_tiles"], 3),
                "rise in training": with_interval(runs["rise"], 3, sign=True),
                "within a tile": with_interval(runs["within_tile"], 3),
                "variance ratio": with_interval(runs["variance_ratio"], 3),
                "CKA": with_interval(runs["cka"], 3),
                "CKA by chance": f"{runs['cka_chance'].mean():.3f}",
                "matched": with_interval(runs["matched"], 3),
                "matched by chance": f"{runs['matched_chance'].mean():.3f}",
            }
        )
    return pd.DataFrame(rows)


def contrast(
    table: pd.DataFrame, tiling: str = "random", column: str = "between_tiles"
) -> pd.DataFrame:
    """Final similarity of one tiling minus each other's, paired by seed.

    Args:
        table: rows of ``filter_similarity.csv``, or of another table with epochs and layers.
        tiling: the one that is compared.
        column: what is compared.

    Returns:
        One row per setting, layer and other tiling: ``difference`` of ``column``, ``low``
        and ``high`` (95 % t-interval over pairs; NaN for one), ``pairs`` and ``verdict``:
        ``"more alike"``, ``"less alike"`` or, where the interval holds 0 or is missing,
        ``"undecided"``.
    """
    last = at_the_end(table)
    keys = [*(key for key in settings(table) if key != "tiling"), "layer"]
    wide = last.pivot_table(index=[*keys, "seed"], columns="tiling", values=column)
    rows = []
    for other in wide.columns.drop(tiling, errors="ignore") if tiling in wide else []:
        difference = (wide[tiling] - wide[other]).dropna()
        for values, pairs in difference.groupby(level=keys, sort=False):
            mean, low, high = mean_interval(pairs)
            verdict = "more alike" if low > 0 else "less alike" if high < 0 else "undecided"
            rows.append(
                dict(zip(keys, values, strict=True))
                | {"other": other, "difference": mean, "low": low, "high": high}
                | {"pairs": len(pairs), "verdict": verdict}
            )
    columns = [*keys, "other", "difference", "low", "high", "pairs", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def contrast_summary(table: pd.DataFrame, tiling: str = "random") -> pd.DataFrame:
    """:func:`contrast` as strings ready to print; settings that are all the same are left out."""
    found = contrast(table, tiling)
    differing = varying(found)
    interval = [
        UNKNOWN if pd.isna(row.low) else f"{row.low:+.3f} to {row.high:+.3f}"
        for row in found.itertuples()
    ]
    shown = found[differing].astype(str)
    return shown.assign(
        layer=found["layer"].astype(str).map(layer_text),
        compared=[f"{tiling} − {other}" for other in found["other"]],
        difference=found["difference"].map("{:+.3f}".format),
        **{"95 % interval": interval, "seeds": found["pairs"], "verdict": found["verdict"]},
    )


def within_errors(rows: pd.DataFrame) -> pd.Series:
    """Whether measured and predicted penalties agree within 10 % or two standard errors."""
    gap = (rows["measured"] - rows["predicted"]).abs()
    noise = 2 * (rows["measured_error"] ** 2 + rows["predicted_error"] ** 2) ** 0.5
    return (gap <= noise) | (gap <= 0.1 * rows["predicted"].abs())


def where_it_applies(penalties: pd.DataFrame) -> pd.DataFrame:
    """The rows of single layers of networks for which R is a theorem."""
    table = of_layers(penalties)
    return table if table.empty else table[table["applies"].astype(bool)]


def penalty_agreement(penalties: pd.DataFrame) -> pd.DataFrame:
    """How measured penalties compare with predicted ones, one row per kind of network and scale.

    Networks for which R is no theorem are left out: theirs need not agree.

    Args:
        penalties: rows of ``filter_similarity_penalty.csv``.

    Returns:
        :data:`SMOOTHNESS`, ``scale``, ``layers`` (how many), ``median``, ``low`` and ``high`` of
        measured / predicted (NaN where nothing is predicted, the tiles being equal), ``agree``
        (:func:`within_errors`) and ``below_zero``, by more than two standard errors.
    """
    table, keys = where_it_applies(penalties), [*SMOOTHNESS, "scale"]
    rows = []
    for values, part in table.groupby(keys) if len(table) else ():
        some = part[part["predicted"] != 0]
        ratios = some["measured"] / some["predicted"]
        rows.append(
            dict(zip(keys, values, strict=True))
            | {"layers": len(part), "median": ratios.median()}
            | {"low": ratios.min(), "high": ratios.max()}
            | {"agree": int(within_errors(part).sum())}
            | {"below_zero": int((part["measured"] < -2 * part["measured_error"]).sum())}
        )
    columns = [*keys, "layers", "median", "low", "high", "agree", "below_zero"]
    return pd.DataFrame(rows, columns=columns)


def penalty_summary(penalties: pd.DataFrame) -> pd.DataFrame:
    """:func:`penalty_agreement` as strings ready to print."""
    found = penalty_agreement(penalties)
    return found[list(SMOOTHNESS)].assign(
        **{
            "deviations ×": found["scale"].map("{:g}".format),
            "measured / predicted": [
                UNKNOWN if pd.isna(row.median) else f"{row.median:.2f}"
                for row in found.itertuples()
            ],
            "from, to": [
                UNKNOWN if pd.isna(row.median) else f"{row.low:.2f}, {row.high:.2f}"
                for row in found.itertuples()
            ],
            "agree": [f"{row.agree} of {row.layers}" for row in found.itertuples()],
            "below zero": [f"{row.below_zero} of {row.layers}" for row in found.itertuples()],
        }
    )


def similarity_answer(table: pd.DataFrame) -> list[str]:
    """Whether the tiles became alike (C2b), in Markdown: one line, two with tilings to compare.

    Args:
        table: rows of ``filter_similarity.csv``.
    """
    if table.empty:
        return [NO_TILES]
    shown = _with_rise(with_expectation(table))
    means = shown.groupby([*settings(shown), "layer"], sort=False)[
        ["between_tiles", "rise", "within_tile"]
    ].mean()
    names = ", ".join(f"`{name}`" for name in tiling_order(shown["tiling"]))
    starts = []
    for start, rows in means.groupby(level="tile_init"):
        text = f"{_span(rows['between_tiles'])} from an {start} start"
        rise = rows["rise"].dropna()
        starts.append(text + (f" ({_span(rise, '+')} in training)" if len(rise) else ""))
    lines = [
        f"**The same filter on different tiles of {names} networks ends with a mean cosine of "
        f"{' and '.join(starts)}; different filters of one tile: {_span(means['within_tile'])}.**"
    ]
    found = contrast(table)
    if len(found):
        parts = [
            f"`{other}` {_span(rows['difference'], '+')} ({_counts(rows['verdict'])})"
            for other, rows in found.groupby("other")
        ]
        low, high = found["pairs"].min(), found["pairs"].max()
        over = f"{low} seeds" if low == high else f"{low} to {high} seeds"
        basis = "one pair of seeds, no interval" if high == 1 else f"95 % intervals over {over}"
        lines.append(
            "**C2b**: mean cosine between tiles of `random` minus that of another tiling, each "
            f"layer and setting by itself: {'; '.join(parts)}; {basis}."
        )
    return lines


def penalty_answer(penalties: pd.DataFrame, pulls: Sequence[float]) -> str:
    """Whether the expansion predicts the penalties where R is a theorem, and where they pull.

    Args:
        penalties: rows of ``filter_similarity_penalty.csv``.
        pulls: of each network and layer the cosine between the gradient of R and δ.
    """
    found, layers = penalty_agreement(penalties), of_layers(penalties)
    if layers.empty:
        return NO_PENALTY
    if found.empty:
        return NO_THEOREM
    least = found.loc[found.groupby(list(SMOOTHNESS))["scale"].idxmin()]
    parts = []
    for row in least.itertuples():
        text = (
            f"{row.agree} of {row.layers} measured penalties agree with the predicted ones within "
            f"10 % or two standard errors (deviations × {row.scale:g}; {_kind_text(row)}; "
        )
        text += (
            "no penalty is predicted, the tiles being equal" if pd.isna(row.median)
            else f"median ratio {row.median:.2f}"
        )  # fmt: skip
        if row.below_zero:
            text += f"; {row.below_zero} below zero"
        parts.append(text + ")")
    line = f"At the smallest deviations {'; '.join(parts)}"
    if others := layers["run"].nunique() - where_it_applies(penalties)["run"].nunique():
        line += f"; R is no theorem for {others} more of the networks"
    if len(pulls):
        line += (
            f"; cosine between the gradient of R and the deviations: {min(pulls):.2f} to "
            f"{max(pulls):.2f} over {len(pulls)} layers"
        )
    return line + "."


def _kind_text(row: Any) -> str:
    return ", ".join(setting_text(name, getattr(row, name)) for name in SMOOTHNESS)


def _span(values: pd.Series, sign: str = "") -> str:
    """The least and the greatest value; one where they print alike; a dash for none."""
    if values.isna().all():
        return UNKNOWN
    low, high = f"{values.min():{sign}.3f}", f"{values.max():{sign}.3f}"
    return low if low == high else f"{low} to {high}"


def _counts(verdicts: pd.Series) -> str:
    counts = verdicts.value_counts()
    names = [name for name in ("more alike", "less alike", "undecided") if name in counts]
    return ", ".join(f"{counts[name]} {name}" for name in names)
