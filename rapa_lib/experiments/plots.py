"""What all figures share: style, files, the names of configurations, intervals."""

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rapa_lib._files import whole_file
from rapa_lib.experiments.recipe import KNOBS, LATER
from rapa_lib.instruments.statistics import mean_interval
from rapa_lib.networks import kind_names

WIDTH = 7.0  # inches: a column of text

UNKNOWN = "–"

STYLE = {
    **sns.axes_style("whitegrid"),
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "rapa",  # the same figure gives the same bytes
    "legend.frameon": False,
}


def configuration_labels(table: pd.DataFrame) -> pd.Series:
    """Name every row's configuration: its tiling, and what else varies among the tiling's rows.

    An interval "over seeds" is one over the rows of a label: nothing but the seed may vary there.
    What each arm may have tuned for itself is named only where nothing else tells rows apart.

    Args:
        table: rows with ``tiling``. Of the others, those columns count that name a configuration,
            and every parameter in ``config`` (JSON) if there is one.
    """
    settings = table.reindex(columns=["dataset", "n_tiles", "tile_init", "pooling", "epochs"])
    if "config" in table:
        configs = [LATER | json.loads(config) for config in table["config"]]
        config = pd.DataFrame(configs, index=table.index)
        told = {"seed", "tiling", *settings}  # what has a column of its own
        settings = settings.join(config[[name for name in config if name not in told]])
        # How many of its images were taken is told by parameters.
        whole = settings["dataset"].astype(str).str.replace(r" \[.*\]$", "", regex=True)
        settings["dataset"] = whole
    settings = settings.astype(str)
    labels = table["tiling"].copy()
    for name in sorted(settings, key=lambda name: name in KNOBS):
        among = labels if name in KNOBS else table["tiling"]
        varies = settings.groupby(among)[name].transform("nunique") > 1
        labels[varies] += "\n" + name + " " + settings.loc[varies, name]
    return labels


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Write a figure as ``stem.png`` and ``stem.svg``, each whole or not at all."""
    paths = [Path(f"{stem}{suffix}") for suffix in (".png", ".svg")]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        with whole_file(path) as part, mpl.rc_context(STYLE):
            figure.savefig(part, dpi=160, metadata=metadata)
    return paths


def tiling_order(tilings: pd.Series) -> list[str]:
    """The tilings that occur, in the order in which the study names them."""
    present = set(tilings)
    known = [name for name in kind_names() if name in present]
    return known + sorted(present - set(known))


def label_order(table: pd.DataFrame) -> list[str]:
    """The labels that occur, by tiling."""
    labels = table[["tiling", "label"]].drop_duplicates()
    return [
        label
        for tiling in tiling_order(table["tiling"])
        for label in sorted(labels.loc[labels["tiling"] == tiling, "label"], key=_by_numbers)
    ]


def _by_numbers(text: str) -> list[tuple[bool, float, str]]:
    """Sorts numbers in texts by their values."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", text)
    return [(True, float(p), "") if p[0].isdigit() else (False, 0.0, p) for p in parts]


def with_interval(values: pd.Series, digits: int = 2, *, sign: bool = False) -> str:
    """Mean with half its 95 % t-interval, if there is one; a dash for no number."""
    mean, low, _ = mean_interval(values)
    if np.isnan(mean):
        return UNKNOWN
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    return text if np.isnan(low) else f"{text} ± {mean - low:.{digits}f}"


def mean_curve(rows: pd.DataFrame, x: str) -> pd.DataFrame:
    """Mean test error over seeds and its 95 % t-interval, one row per value of a column.

    Args:
        rows: of one curve, with ``test_error``.
        x: that column.

    Returns:
        ``x``, ``mean``, ``low``, ``high``; these two are NaN for one seed.
    """
    points = [(at, *mean_interval(part["test_error"])) for at, part in rows.groupby(x)]
    return pd.DataFrame(points, columns=[x, "mean", "low", "high"])


def t_interval(values: pd.Series) -> tuple[float, float]:
    return mean_interval(values)[1:]


def joined(values: pd.Series) -> str:
    """Different values in words; a dollar sign among them begins no formula."""
    found = sorted(map(str, pd.unique(values)), key=_by_numbers)
    return ", ".join(found).replace("$", r"\$")


def set_title(figure: Figure, text: str, axes: Axes | None = None) -> None:
    """Put a title above axes, or, where there are none or it is long, in lines above the figure."""
    if axes is not None and len(text) <= 80:
        axes.set_title(text)
    else:
        figure.suptitle(textwrap.fill(text, 90), x=0.01, ha="left", size="medium")


def log_axes(axes: Axes, y: bool = True) -> None:
    """Logarithmic axes for numbers of tiles: plain numbers at powers of four along x."""
    axes.set_xscale("log", base=4)
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    if y:
        axes.set_yscale("log")


def name_values(axes: Axes, values: Sequence[float], names: Sequence[str]) -> None:
    """Make x logarithmic, with marks at some values alone, each by its name."""
    axes.set_xscale("log")
    axes.set_xticks(values, names)
    axes.minorticks_off()


def within_percent(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Cut an axis of percentages to 0 to 100: intervals of few seeds can reach far beyond."""
    low, high = getattr(axes, f"get_{axis}lim")()
    getattr(axes, f"set_{axis}lim")(max(low, -2), min(high, 102))


def layer_text(layer: str) -> str:
    """A layer in words: the study's network names its convolutions ``features.0.0`` and so on."""
    found = re.fullmatch(r"features\.(\d+)\.0", layer)
    return f"convolution {int(found[1]) + 1}" if found else layer
