"""The filter-similarity experiment's figures, summary table and answers."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rapa_lib.experiments.accuracy.experiment import LABELS
from rapa_lib.experiments.plots import (
    STYLE,
    UNKNOWN,
    WIDTH,
    joined,
    set_title,
    t_interval,
    tiling_order,
    with_interval,
)
from rapa_lib.instruments.penalty import ALL_LAYERS
from rapa_lib.instruments.statistics import mean_interval

SETTING = [
    *(name for name in LABELS if name != "seed"),
    "activation",
    "normalisation",
    "tile_lr_power",
    "varied",
]
"""What a mean over seeds keeps apart.

Column ``varied``, if there is one, tells whatever else differs among a study's networks."""

KIND = ["activation", "pooling", "normalisation"]
"""What the loss's smoothness depends on."""

NO_PENALTY = "No penalty: these assignments are not drawn at random, so no expectation exists."
NO_TILES = "No layer has several tiles."


def similarity_figure(table: pd.DataFrame) -> Figure:
    """Similarity of tiles over training, a row of panels a start, a column a layer.

    Args:
        table: rows of ``filter_similarity.csv``. Dotted lines: different filters of one tile.
    """
    if table.empty:
        return _note(NO_TILES)
    starts, layers = list(table["tile_init"].unique()), list(table["layer"].unique())
    tilings = tiling_order(table["tiling"])
    colours = dict(zip(tilings, sns.color_palette("colorblind", len(tilings)), strict=True))
    many = table["seed"].nunique() > 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.7 + 2.3 * len(starts)))
        panels = figure.subplots(len(starts), len(layers), squeeze=False, sharex=True, sharey=True)
        for row, start in zip(panels, starts, strict=True):
            for axes, layer in zip(row, layers, strict=True):
                part = table[(table["tile_init"] == start) & (table["layer"] == layer)]
                if part.empty:
                    axes.set_axis_off()
                    continue
                common = {
                    "x": "epoch", "hue": "tiling", "hue_order": tilings, "palette": colours,
                    "ax": axes, "legend": False,
                }  # fmt: skip
                interval = t_interval if many else None
                sns.lineplot(
                    part, y="between_tiles", errorbar=interval, marker=".", **common,
                    style="pooling" if table["pooling"].nunique() > 1 else None,
                )  # fmt: skip
                sns.lineplot(part, y="within_tile", errorbar=None, linestyle=":", **common)
                axes.set(ylim=(-0.12, 1.05), xlabel="epoch", ylabel="mean cosine")
                axes.xaxis.get_major_locator().set_params(integer=True)
                tiles = joined(part["layer_tiles"])
                axes.set_title(f"{layer}, {tiles} tiles, {start} start")
        handles = [Line2D([], [], color=colours[name], label=name) for name in tilings]
        handles += [
            Line2D([], [], color="0.4", label="same filter, other tiles"),
            Line2D([], [], color="0.4", linestyle=":", label="other filters, same tile"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        shown = "means over seeds, bands: 95 % t-intervals" if many else "one seed"
        set_title(figure, f"{joined(table['dataset'])}; {shown}")
    return figure


def tiles_figure(table: pd.DataFrame) -> Figure:
    """Final similarity against the number of tiles: dots are seeds, lines their means.

    Args:
        table: rows of ``filter_similarity.csv``. Whatever varies among them has lines of its own.
    """
    last = _last(table)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0))
        axes = figure.subplots()
        label = last["layer"] + ", " + last["tile_init"] + " start"
        for name in _varying(last, "n_tiles", "tile_init"):
            label += ", " + _told(name, last[name].astype(str))
        last = last.assign(label=label)
        common = {
            "data": last, "x": "layer_tiles", "y": "between_tiles", "hue": "label",
            "palette": "colorblind", "ax": axes,
        }  # fmt: skip
        sns.lineplot(**common, errorbar=None)
        sns.scatterplot(**common, legend=False)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%d"))
        axes.set(xlabel="tiles of the layer", ylabel="mean cosine between tiles", ylim=(-0.1, 1.05))
        title = f"{joined(last['dataset'])}, {joined(last['tiling'])}, "
        set_title(figure, f"{title}{joined(last['epochs'])} epochs; dots: seeds")
        axes.legend(title=None, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def penalty_figure(table: pd.DataFrame) -> Figure:
    """Predicted against measured penalty on logarithmic axes, with the identity line.

    Args:
        table: rows of ``filter_similarity_penalty.csv``, a panel a kind of network. Bars: two
            standard errors. Logarithms hide signs: where they differ, markers are open.
    """
    table = _of_layers(table)
    if table.empty:
        return _note(NO_PENALTY)
    kinds = table[KIND].astype(str).agg(", ".join, axis=1)
    starts = list(table["tile_init"].unique())
    layers = list(table["layer"].unique())
    colours = dict(zip(layers, sns.color_palette("colorblind", len(layers)), strict=True))
    with mpl.rc_context(STYLE):
        names = list(kinds.unique())
        figure = Figure(figsize=(WIDTH, 4.0))
        panels = figure.subplots(1, len(names), squeeze=False, sharex=True, sharey=True)[0]
        for axes, kind in zip(panels, names, strict=True):
            axes.set(xscale="log", yscale="log", xlabel="predicted |R(δ)| (nats)")
            part = table[(kinds == kind) & (table["predicted"] != 0)]
            for (layer, start), points in part.groupby(["layer", "tile_init"]):
                for differ in (False, True):
                    signs = np.sign(points["measured"]) != np.sign(points["predicted"])
                    some = points[signs == differ]
                    size, error = some["measured"].abs(), 2 * some["measured_error"]
                    axes.errorbar(
                        some["predicted"].abs(), size,
                        yerr=[np.minimum(error, 0.99 * size), error],
                        fmt="os^v"[starts.index(start)], color=colours[layer], markersize=5,
                        markerfacecolor="none" if differ else None, elinewidth=1, alpha=0.8,
                    )  # fmt: skip
            if len(part):
                ends = np.array([part["predicted"].abs().min(), part["predicted"].abs().max()])
                axes.plot(ends, ends, color="0.4", linestyle="--", linewidth=1)
            axes.set_title(kind)
        panels[0].set_ylabel("measured |penalty| (nats)")
        handles = [Line2D([], [], color=colours[layer], label=layer) for layer in layers]
        plain = {"color": "0.4", "linestyle": "none"}
        handles += [
            Line2D([], [], marker=marker, label=f"{start} start", **plain)
            for marker, start in zip("os^v", starts, strict=False)
        ]
        shown = table[table["predicted"] != 0]
        if (np.sign(shown["measured"]) != np.sign(shown["predicted"])).any():
            handles.append(
                Line2D([], [], marker="o", markerfacecolor="none", label="signs differ", **plain)
            )
        handles.append(Line2D([], [], color="0.4", linestyle="--", linewidth=1, label="identity"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        scales = ", ".join(f"{scale:g}" for scale in sorted(table["scale"].unique(), reverse=True))
        figure.suptitle(f"deviations × {scales}", x=0.01, ha="left", size="medium")
    return figure


def filters_figure(filters: dict[str, list]) -> Figure:
    """Filters of the first layer across tiles, a panel a network, sorted by likeness.

    Args:
        filters: by title, what :func:`rapa_lib.filter_similarity.shown_filters` gave.
    """
    filters = {title: np.array(shown) for title, shown in filters.items() if len(shown)}
    if not filters:
        return _note(NO_TILES)
    columns = min(len(filters), 3)
    rows = -(-len(filters) // columns)
    with mpl.rc_context(STYLE):
        n_filters, n_tiles = next(iter(filters.values())).shape[:2]
        size = min(WIDTH / columns, 3.0)
        figure = Figure(figsize=(size * columns, rows * (size * n_filters / n_tiles + 0.4)))
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (title, shown) in zip(panels, filters.items(), strict=False):
            pictures = _mosaic(shown)
            axes.imshow(
                pictures if pictures.shape[2] == 3 else pictures[..., 0],
                cmap="gray", vmin=0, vmax=1, interpolation="nearest",
            )  # fmt: skip
            axes.set_title(title)
        for axes in panels:
            axes.set_axis_off()
    return figure


def similarity_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Final similarity per layer: means over seeds with 95 % t-intervals, as strings.

    Args:
        table: rows of ``filter_similarity.csv``.
    """
    rows = []
    last, first = _last(table), _first(table)
    # Without the start there is no rise to speak of.
    last["rise"] = last["between_tiles"] - first["between_tiles"].where(first["epoch"] == 0)
    last["tiling"] = pd.Categorical(last["tiling"], tiling_order(last["tiling"]), ordered=True)
    keys = [*_settings(table), "layer"]
    for values, runs in last.groupby(keys, observed=True):
        setting = dict(zip(keys, map(str, values), strict=True))
        rows.append(
            setting
            | {
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


def similarity_answer(table: pd.DataFrame) -> str:
    """Say in Markdown, from ``filter_similarity.csv``, whether the tiles became alike (C2b)."""
    lines = []
    varying = _varying(table, "tiling", "tile_init", "n_tiles", "pooling")

    def setting(row):
        return "".join(f", {_told(name, str(row[name]))}" for name in varying)

    for row in similarity_summary(table).to_dict("records"):
        rise = row["rise in training"]
        lines.append(
            f"- `{row['tiling']}`, {row['tile_init']} start, {row['pooling']} pooling"
            f"{setting(row)}, layer `{row['layer']}` of tiles {row['n_tiles']}: cosine between "
            f"tiles {row['between tiles']}{'' if rise == UNKNOWN else f' ({rise} in training)'}, "
            f"between different filters of one tile {row['within a tile']}; seeds: {row['seeds']}."
        )
    found = contrast(table)
    for row in found.to_dict("records"):
        interval = (
            "one pair of seeds, no interval"
            if math.isnan(row["low"])
            else f"95 % interval {row['low']:+.3f} to {row['high']:+.3f} over {row['pairs']} seeds"
        )
        verdict = (
            "undecided" if not (row["low"] > 0 or row["high"] < 0)
            else "more alike" if row["difference"] > 0
            else "less alike"
        )  # fmt: skip
        lines.append(
            f"- **C2b**, {row['tile_init']} start, {row['pooling']} pooling{setting(row)}, layer "
            f"`{row['layer']}` of tiles {row['n_tiles']}: `random` − `{row['other']}` = "
            f"{row['difference']:+.3f} ({interval}): {verdict}."
        )
    return "\n".join(lines)


def contrast(table: pd.DataFrame, tiling: str = "random") -> pd.DataFrame:
    """Final similarity of one tiling minus each other's, paired by seed.

    Args:
        table: rows of ``filter_similarity.csv``.
        tiling: the one that is compared.

    Returns:
        A row a setting, layer and other tiling: ``difference`` of ``between_tiles``, ``low`` and
        ``high`` (95 % t-interval over pairs; NaN for one) and ``pairs``.
    """
    last = _last(table)
    keys = [*(key for key in _settings(table) if key != "tiling"), "layer"]
    wide = last.pivot_table(index=[*keys, "seed"], columns="tiling", values="between_tiles")
    rows = []
    for other in wide.columns.drop(tiling, errors="ignore") if tiling in wide else []:
        difference = (wide[tiling] - wide[other]).dropna()
        for values, pairs in difference.groupby(level=keys, sort=False):
            mean, low, high = mean_interval(pairs)
            rows.append(
                dict(zip(keys, values, strict=True))
                | {"other": other, "difference": mean, "low": low, "high": high}
                | {"pairs": len(pairs)}
            )
    return pd.DataFrame(rows, columns=[*keys, "other", "difference", "low", "high", "pairs"])


def penalty_answer(table: pd.DataFrame, pulls: list[float]) -> str:
    """Say in Markdown whether the expansion predicts the penalties, and where they pull (C2a).

    Args:
        table: rows of ``filter_similarity_penalty.csv``.
        pulls: of each network and layer the cosine between the gradient of R and δ.
    """
    table = _of_layers(table)
    if table.empty:
        return NO_PENALTY
    lines = []
    for (activation, pooling, normalisation, scale), rows in table.groupby([*KIND, "scale"]):
        some = rows[rows["predicted"] != 0]
        ratios = some["measured"] / some["predicted"]
        text = (
            f"- **C2a**, {activation}, {pooling} pooling, {normalisation} normalisation, "
            f"deviations × {scale:g}: "
        )
        if len(ratios):
            text += f"measured / predicted {ratios.median():.2f}"
        else:
            text += "no penalty is predicted, the tiles being equal"
        if len(ratios) > 1:
            text += f" (median; {ratios.min():.2f} to {ratios.max():.2f})"
        agrees = int(within_errors(rows).sum())
        text += f"; {agrees} of {len(rows)} agree within 10 % or two standard errors"
        negative = int((rows["measured"] < -2 * rows["measured_error"]).sum())
        if negative:
            text += f"; {negative} measured below zero: fresh draws lower the loss there"
        if activation == "relu" or pooling != "avg":
            text += "; R leaves out the kinks of ReLU and maximum pooling, which are of its order"
        lines.append(text + ".")
    if pulls:
        lines.append(
            "- In its Gauss–Newton form R is never below zero, so its gradient points away from "
            f"the mean by construction; its cosine with δ is {min(pulls):.2f} to {max(pulls):.2f} "
            f"over {len(pulls)} layers."
        )
    return "\n".join(lines)


def within_errors(rows: pd.DataFrame) -> pd.Series:
    """Whether measured and predicted penalties agree within 10 % or two standard errors."""
    gap = (rows["measured"] - rows["predicted"]).abs()
    noise = 2 * (rows["measured_error"] ** 2 + rows["predicted_error"] ** 2) ** 0.5
    return (gap <= noise) | (gap <= 0.1 * rows["predicted"].abs())


def _settings(table: pd.DataFrame) -> list[str]:
    return [name for name in SETTING if name in table]


def _varying(table: pd.DataFrame, *apart: str) -> list[str]:
    """What settings differ among the rows, beside some that are told anyway."""
    return [n for n in _settings(table) if n not in apart and table[n].astype(str).nunique() > 1]


def _told(name: str, value):
    """A setting with its name, or by itself where it says what it is."""
    return value if name in ("dataset", "tiling", "activation", "varied") else f"{name} " + value


def _of_layers(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of single layers; there may be none, and then no columns either."""
    return table if table.empty else table[table["layer"] != ALL_LAYERS]


def _note(text: str) -> Figure:
    """A figure that says why there is nothing to show."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.5))
        figure.text(0.01, 0.5, text, va="center")
    return figure


def _last(table: pd.DataFrame) -> pd.DataFrame:
    return (
        table.sort_values("epoch")
        .drop_duplicates(["run", "layer"], keep="last")
        .sort_values(["run", "layer"], ignore_index=True)
    )


def _first(table: pd.DataFrame) -> pd.DataFrame:
    return (
        table.sort_values("epoch")
        .drop_duplicates(["run", "layer"])
        .sort_values(["run", "layer"], ignore_index=True)
    )


def _mosaic(filters: np.ndarray) -> np.ndarray:
    """Lay filters (rows, columns, channels, h, w) in −1 … 1 out as one picture (H, W, channels)."""
    n_rows, n_columns, channels, height, width = filters.shape
    channels = 3 if channels == 3 else 1
    padded = np.ones((n_rows, n_columns, channels, height + 1, width + 1))
    padded[..., :-1, :-1] = (filters[:, :, :channels] + 1) / 2
    return padded.transpose(0, 3, 1, 4, 2).reshape(
        n_rows * (height + 1), n_columns * (width + 1), channels
    )[:-1, :-1]
