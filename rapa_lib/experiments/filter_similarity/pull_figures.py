"""Figures of the pull and of the loss along the deviations, drawn from their tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rapa_lib.experiments.filter_similarity.figures import looks_of, note_figure, setting_texts
from rapa_lib.experiments.filter_similarity.pull_tables import UNIT
from rapa_lib.experiments.filter_similarity.tables import NO_TILES
from rapa_lib.experiments.plots import (
    STYLE,
    WIDTH,
    joined,
    layer_text,
    set_title,
    tiling_order,
)
from rapa_lib.instruments.statistics import mean_interval

FORCES = {
    "kernel_pull": "pull", "decay": "weight decay", "push": "push of gradient noise",
}  # fmt: skip
"""Columns of the pull's table that stand in one row of panels, with their titles."""

STATISTICS = {"batch": "batch statistics", "reestimated": "statistics re-estimated"}

NO_SCALES = "The loss along the deviations was not measured."


def pull_figure(pulls: pd.DataFrame) -> Figure:
    """Pull, weight decay and noise over training: one row per layer and setting, one line a tiling.

    The panels of a row have the same axes: where pull and decay together exceed the push, the tiles
    approach each other.

    Args:
        pulls: rows of ``filter_similarity_pull.csv``.
    """
    if pulls.empty:
        return note_figure(NO_TILES)
    pulls = pulls.assign(setting=setting_texts(pulls, "tile_init", without=("tiling",)))
    rows = list(pulls.groupby(["layer", "setting"], sort=True))
    looks = looks_of(tiling_order(pulls["tiling"]))
    many = pulls["seed"].nunique() > 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 1.9 * len(rows)))
        panels = figure.subplots(len(rows), len(FORCES), squeeze=False, sharex=True, sharey="row")
        for row, ((layer, setting), part) in enumerate(rows):
            line = panels[row]
            for (column, title), axes in zip(FORCES.items(), line, strict=True):
                error = "pull_error" if column == "kernel_pull" and not many else None
                _draw(axes, part, looks, "epoch", column, error, unit=UNIT)
                axes.set_title(title if row == 0 else "", size="small")
                axes.axhline(0, color="0.4", linewidth=0.8)
            _signed_scale(line[0], UNIT * part[list(FORCES)].abs().max().max())
            line[0].set_ylabel(f"{layer_text(layer)},\n{setting}\n(nats / {UNIT})", size="small")
        for axes in panels[-1]:
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        _finish(figure, looks)
        bars = "bars: 95 % t-intervals over seeds" if many else (
            "one seed; bars of the pull: two standard errors over batches"
        )  # fmt: skip
        set_title(figure, f"{joined(pulls['dataset'])}; what moves the tiles' kernels; {bars}")
    return figure


def scales_figure(scales: pd.DataFrame) -> Figure:
    """Loss against the scale of the deviations: one column per layer, one row per statistics.

    Args:
        scales: rows of ``filter_similarity_scales.csv``. Shown is the change from the network as
            it was trained, at scale 1; at 0 the tiles are merged.
    """
    if scales.empty:
        return note_figure(NO_SCALES)
    layers = sorted(scales["layer"].unique(), key=lambda name: (name == "all", name))
    scales = scales.assign(line=setting_texts(scales, "tiling", "tile_init", without=()))
    looks = looks_of(sorted(scales["line"].unique()))
    many = scales["seed"].nunique() > 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 0.2 * len(looks) + 2.2 * len(STATISTICS)))
        panels = figure.subplots(
            len(STATISTICS), len(layers), squeeze=False, sharex=True, sharey=True
        )
        for row, (statistics, words) in enumerate(STATISTICS.items()):
            line = panels[row]
            for layer, axes in zip(layers, line, strict=True):
                chosen = (scales["layer"] == layer) & (scales["statistics"] == statistics)
                error = None if many else "change_error"
                _draw(axes, scales[chosen], looks, "scale", "change", error, by="line")
                axes.axhline(0, color="0.4", linewidth=0.8)
                where = "all layers" if layer == "all" else layer_text(layer)
                axes.set_title(where if row == 0 else "", size="small")
            line[0].set_ylabel(f"change of loss (nats),\n{words}", size="small")
        for axes in panels[-1]:
            axes.set_xlabel("deviations ×")
        _finish(figure, looks)
        bars = "95 % t-intervals over seeds" if many else "two paired standard errors, one seed"
        title = "loss as the tiles' deviations are scaled, 0: merged, 1: as trained"
        set_title(figure, f"{joined(scales['dataset'])}; {title}; bars: {bars}")
    return figure


def _draw(
    axes: Axes,
    part: pd.DataFrame,
    looks: Mapping[str, dict[str, Any]],
    x: str,
    y: str,
    error: str | None,
    *,
    by: str = "tiling",
    unit: float = 1,
) -> None:
    """A line of means with bars for every name; bars are t-intervals, or two given errors."""
    for name, look in looks.items():
        rows = part[part[by] == name].dropna(subset=[y])
        if rows.empty:
            continue
        found = {at: _mean_and_bar(same, y, error) for at, same in rows.groupby(x)}
        means, bars = unit * np.array(list(found.values()), dtype=float).T
        axes.errorbar(list(found), means, yerr=np.nan_to_num(bars), capsize=2, elinewidth=1, **look)


def _mean_and_bar(rows: pd.DataFrame, y: str, error: str | None) -> tuple[float, float]:
    mean, low, _ = mean_interval(rows[y].astype(float))
    return mean, 2 * float(rows[error].mean()) if error else mean - low


def _signed_scale(axes: Axes, greatest: float) -> None:
    """Logarithmic to both sides of zero: pull, decay and push differ by orders of magnitude."""
    if not greatest > 0:
        return
    top = 10.0 ** np.ceil(np.log10(greatest))
    axes.set_yscale("symlog", linthresh=top / 1000)
    axes.set_yticks([-top, -top / 100, 0, top / 100, top])


def _finish(figure: Figure, looks: Mapping[str, dict[str, Any]]) -> None:
    handles: Sequence[Line2D] = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3))
