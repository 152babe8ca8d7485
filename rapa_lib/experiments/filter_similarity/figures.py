"""The filter-similarity experiment's figures, drawn from its tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rapa_lib.experiments.filter_similarity.tables import (
    NO_PENALTY,
    NO_TILES,
    SMOOTHNESS,
    at_the_end,
    of_layers,
    setting_text,
    varying,
)
from rapa_lib.experiments.plots import (
    STYLE,
    WIDTH,
    joined,
    layer_text,
    set_title,
    tiling_order,
)
from rapa_lib.instruments.statistics import mean_interval

MARKERS = "os^DvPX*"  # lines are told apart in grey, too

_GREY = "0.4"


def similarity_figure(table: pd.DataFrame) -> Figure:
    """Similarity of tiles over training: one panel per layer and setting, one line per tiling.

    Args:
        table: rows of ``filter_similarity.csv``. Dotted lines: different filters of one tile.
            Each start, and whatever else differs beside tiling and seed, has panels of its own.
    """
    if table.empty:
        return note_figure(NO_TILES)
    table = table.assign(setting=setting_texts(table, "tile_init", without=("tiling",)))
    settings, layers = list(table["setting"].unique()), sorted(table["layer"].unique())
    looks = looks_of(tiling_order(table["tiling"]))
    many = table["seed"].nunique() > 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 + 2.2 * len(settings)))
        panels = figure.subplots(
            len(settings), len(layers), squeeze=False, sharex=True, sharey=True
        )
        for row, setting in zip(panels, settings, strict=True):
            for axes, layer in zip(row, layers, strict=True):
                part = table[(table["setting"] == setting) & (table["layer"] == layer)]
                if part.empty:
                    axes.set_axis_off()
                    continue
                _draw_similarity(axes, part, looks, bands=many)
                axes.set_title(
                    f"{layer_text(layer)} ({joined(part['layer_tiles'])} tiles)\n{setting}"
                )
        for axes in panels[:, 0]:
            axes.set_ylabel("mean cosine")
        for axes in panels[-1]:
            axes.set_xlabel("epoch")
        handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
        handles += [
            Line2D([], [], color=_GREY, label="same filter, different tiles"),
            Line2D([], [], color=_GREY, linestyle=":", label="different filters, same tile"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        shown = "means over seeds, bands: 95 % t-intervals" if many else "one seed"
        set_title(figure, f"{joined(table['dataset'])}; {shown}")
    return figure


def _draw_similarity(
    axes: Axes, part: pd.DataFrame, looks: Mapping[str, dict[str, Any]], *, bands: bool
) -> None:
    """The lines of one panel: means over seeds by epoch, a band where there are several seeds."""
    for tiling, look in looks.items():
        rows = part[part["tiling"] == tiling]
        if rows.empty:
            continue
        by_epoch = rows.groupby("epoch")["between_tiles"]
        found = pd.DataFrame(
            {epoch: mean_interval(values) for epoch, values in by_epoch}, ["mean", "low", "high"]
        ).T
        axes.plot(found.index, found["mean"], **look)
        if bands:
            axes.fill_between(
                found.index, found["low"], found["high"], color=look["color"], alpha=0.2,
                linewidth=0,
            )  # fmt: skip
        baseline = rows.groupby("epoch")["within_tile"].mean()
        axes.plot(
            baseline.index, baseline.astype(float), color=look["color"], linestyle=":", linewidth=1
        )
    axes.set_ylim(-0.12, 1.05)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))


def tiles_figure(table: pd.DataFrame) -> Figure:
    """Final similarity against the number of tiles: one panel per layer, one line per setting.

    Args:
        table: rows of ``filter_similarity.csv``. Dots are seeds, lines their means.
    """
    if table.empty:
        return note_figure(NO_TILES)
    last = at_the_end(table)
    last = last.assign(setting=setting_texts(last, "tile_init", without=("n_tiles",)))
    layers, looks = sorted(last["layer"].unique()), looks_of(sorted(last["setting"].unique()))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2 + 0.2 * len(looks)))
        panels = figure.subplots(1, len(layers), squeeze=False, sharex=True, sharey=True)[0]
        for axes, layer in zip(panels, layers, strict=True):
            part = last[last["layer"] == layer]
            for setting, look in looks.items():
                rows = part[part["setting"] == setting]
                dots = look | {"linestyle": "none", "alpha": 0.6}
                axes.plot(rows["layer_tiles"], rows["between_tiles"], **dots)
                means = rows.groupby("layer_tiles")["between_tiles"].mean()
                axes.plot(means.index, means, **look | {"marker": "none"})
            axes.set_title(layer_text(layer))
            axes.set_xlabel("tiles of the layer")
        tiles = sorted(last["layer_tiles"].unique())
        panels[0].set_xscale("log", base=2)
        panels[0].set_xticks(tiles, map(str, tiles))
        panels[0].set(xlim=(tiles[0] / 1.5, tiles[-1] * 1.5), ylim=(-0.12, 1.05))
        panels[0].set_ylabel("mean cosine between tiles")
        handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=1 + (len(looks) > 3))
        title = f"{joined(last['dataset'])}, {joined(last['tiling'])}, "
        set_title(figure, f"{title}{joined(last['epochs'])} epochs; dots: seeds, lines: means")
    return figure


def penalty_figure(table: pd.DataFrame) -> Figure:
    """Measured against predicted penalty, one panel per kind of network, with the identity line.

    Args:
        table: rows of ``filter_similarity_penalty.csv``. Both axes are logarithmic, the vertical
            one to both sides of zero: below it measured and predicted differ in sign. Bars: two
            standard errors.
    """
    table = of_layers(table)
    if table.empty:
        return note_figure(NO_PENALTY)
    table = table.assign(kind=_texts(table, SMOOTHNESS))
    starts = sorted(table["tile_init"].unique())
    looks = looks_of(sorted(table["layer"].unique()))
    drawn = table[table["predicted"] != 0]
    with mpl.rc_context(STYLE):
        names = list(table["kind"].unique())
        figure = Figure(figsize=(WIDTH, 5.0))
        panels = figure.subplots(1, len(names), squeeze=False, sharex=True, sharey=True)[0]
        for axes, kind in zip(panels, names, strict=True):
            _signed_logarithms(axes, drawn)
            part = drawn[drawn["kind"] == kind]
            for (layer, start), points in part.groupby(["layer", "tile_init"]):
                face = None if start == starts[0] else "none"
                _draw_penalties(axes, points, looks[layer] | {"markerfacecolor": face})
            if part["applies"].astype(bool).any():
                ends = np.array([part["predicted"].abs().min(), part["predicted"].abs().max()])
                axes.plot(ends, ends, color=_GREY, linestyle="--", linewidth=1)
            note = "" if part["applies"].astype(bool).all() else "\n(R is no theorem here)"
            axes.set_title(kind + note, size="small" if len(names) > 1 else "medium")
            axes.set_xlabel("predicted |R(δ)| (nats)")
        panels[0].set_ylabel("measured penalty (nats),\nnegative: of the other sign")
        none: dict[str, Any] = {"linestyle": "none"}
        handles = [
            Line2D([], [], label=layer_text(layer), **look | none) for layer, look in looks.items()
        ]
        grey: dict[str, Any] = {"color": _GREY, "marker": "o", **none}
        handles += [
            Line2D([], [], label=f"{start} start", markerfacecolor="none" if i else _GREY, **grey)
            for i, start in enumerate(starts)
        ]
        if drawn["applies"].astype(bool).any():
            handles.append(Line2D([], [], color=_GREY, linestyle="--", label="theory: both equal"))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        scales = ", ".join(f"{scale:g}" for scale in sorted(table["scale"].unique(), reverse=True))
        title = f"{joined(table['dataset'])}; deviations of tiles from their mean × {scales}; "
        set_title(figure, title + "bars: two standard errors")
    return figure


def _signed_logarithms(axes: Axes, drawn: pd.DataFrame) -> None:
    """Logarithmic axes, the vertical one to both sides of zero, with a tick every two decades."""
    sizes = drawn["measured"].abs().where(lambda size: size > 0).dropna()
    low = np.floor(np.log10(sizes.min())) if len(sizes) else -3.0
    high = np.ceil(np.log10(sizes.max())) if len(sizes) else 0.0
    high = max(high, low + 1)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=10.0**low)
    powers = 10.0 ** np.arange(high, low - 1, -max(1, round((high - low) / 4)))
    axes.set_yticks([*-powers, 0, *powers[::-1]])
    axes.axhline(0, color=_GREY, linewidth=1)
    axes.set_ylim(-3 * 10**high, 3 * 10**high)


def _draw_penalties(axes: Axes, points: pd.DataFrame, look: dict[str, Any]) -> None:
    sign = np.sign(points["predicted"])
    axes.errorbar(
        points["predicted"].abs(), sign * points["measured"], yerr=2 * points["measured_error"],
        elinewidth=1, alpha=0.8, **{**look, "linestyle": "none"},
    )  # fmt: skip


def filters_figure(filters: Mapping[tuple[str, str], list]) -> Figure:
    """Filters of the first layer across tiles: one panel per network, sorted by likeness.

    Args:
        filters: what the experiment's ``shown_filters`` gave, by the row and the column in which
            the panel stands; both are its title.
    """
    arrays = {place: np.array(shown) for place, shown in filters.items() if len(shown)}
    if not arrays:
        return note_figure(NO_TILES)
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*arrays, strict=True))
    with mpl.rc_context(STYLE):
        n_filters, n_tiles = next(iter(arrays.values())).shape[:2]
        size = min(WIDTH / len(columns), 3.0)
        width = max(size * len(columns), 4.0)
        figure = Figure(figsize=(width, 0.5 + len(rows) * (size * n_filters / n_tiles + 0.5)))
        panels = figure.subplots(len(rows), len(columns), squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for (row, column), shown in arrays.items():
            axes, pictures = panels[rows.index(row), columns.index(column)], _mosaic(shown)
            axes.imshow(
                pictures if pictures.shape[2] == 3 else pictures[..., 0],
                cmap="gray", vmin=0, vmax=1, interpolation="nearest",
            )  # fmt: skip
            axes.set_title(f"{column},\n{row}" if row else column, size="small")
        text = "one row per filter, the most alike above; one column per tile"
        figure.suptitle(text, x=0.01, ha="left", size="small")
    return figure


def looks_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each name."""
    colours = sns.color_palette("colorblind", len(names))
    return {
        name: {
            "color": colour,
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 5,
            "linewidth": 1.3,
        }
        for i, (name, colour) in enumerate(zip(names, colours, strict=True))
    }


def setting_texts(table: pd.DataFrame, *always: str, without: Sequence[str]) -> pd.Series:
    """Every row's setting in words: some columns always, others where they differ."""
    return _texts(table, (*always, *varying(table, *always, *without)))


def _texts(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    words = [
        table[name].map(lambda value, name=name: setting_text(name, value)) for name in columns
    ]
    return pd.concat(words, axis=1).agg(", ".join, axis=1)


def note_figure(text: str) -> Figure:
    """A figure that says why there is nothing to show."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.5))
        figure.text(0.01, 0.5, text, va="center")
    return figure


def _mosaic(filters: np.ndarray) -> np.ndarray:
    """Lay filters (rows, columns, channels, h, w) in −1 … 1 out as one picture (H, W, channels)."""
    n_rows, n_columns, channels, height, width = filters.shape
    channels = 3 if channels == 3 else 1
    padded = np.ones((n_rows, n_columns, channels, height + 1, width + 1))
    padded[..., :-1, :-1] = (filters[:, :, :channels] + 1) / 2
    return padded.transpose(0, 3, 1, 4, 2).reshape(
        n_rows * (height + 1), n_columns * (width + 1), channels
    )[:-1, :-1]
