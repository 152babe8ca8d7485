"""How much data decides: test errors of finished studies against the number of training images."""

import itertools
import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rapa_lib.experiments.plots import STYLE, WIDTH, mean_curve, name_values, tiling_order
from rapa_lib.experiments.recipe import LATER, is_plain
from rapa_lib.instruments.statistics import contrast

ARMS = ("none", "dropout", "random", "random_fixed")
VOTE = "random, vote"
WHOLE: Mapping[str, int] = {"CIFAR-10": 50_000, "CIFAR-100": 50_000, "MNIST (5,000 digits)": 4_000}
"""Training images of whole data sets, by how their names begin: runs on all have no number."""

_KEYS = ["data", "images", "arm"]


def errors_by_amount(
    folders: Iterable[str | Path], arms: Sequence[str] = ARMS, n_tiles: str = "16-4-1"
) -> pd.DataFrame:
    """Test errors of studies by data set, number of training images and arm, seed by seed.

    Args:
        folders: of finished studies, with ``accuracy.csv``.
        arms: the tilings to take; what RAPA's draws say by majority vote is an arm of its own.
        n_tiles: of the networks with tiles.

    Returns:
        One row per network and way of asking it: study, data (the set's name), images, own_images
        (whether each seed drew them, the same for all arms), arm, seed, test_error (percent; of
        dropout without dropping anything, statistics of normalisation so).

    Raises:
        ValueError: if a folder has no such table, an arm has a seed twice at one number of images,
            or the number of training images is not known.
    """
    rows = [row for folder in folders for row in _rows(Path(folder), arms, n_tiles)]
    columns = ["study", "data", "images", "own_images", "arm", "seed", "test_error"]
    table = pd.DataFrame(rows, columns=columns)
    twice = table[table.duplicated([*_KEYS, "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"folders: got seed {row['seed']} of {row['arm']} on {row['images']:,} images of "
            f"{row['data']} twice; expected settings that differ in their images alone"
        )
    return table


def _rows(folder: Path, arms: Sequence[str], n_tiles: str) -> list[dict[str, object]]:
    path = folder / "accuracy.csv"
    if not path.is_file():
        raise ValueError(f"folders: got {str(folder)!r}, expected a study's, with accuracy.csv")
    rows: list[dict[str, object]] = []
    for run in pd.read_csv(path).to_dict("records"):
        config = LATER | json.loads(run["config"])
        tiled = run["n_tiles"] != "1-1-1"
        if (
            run["tiling"] not in arms
            or not is_plain(config)
            or (tiled and run["n_tiles"] != n_tiles)
        ):
            continue
        known = {
            "study": folder.name,
            "data": re.sub(r" \[.*\]$", "", run["dataset"]),
            "images": config["n_train"] or _whole(run["dataset"]),
            "own_images": config["subset"] == "seed",
            "seed": run["seed"],
        }
        own = "test_error_merged" if run["tiling"] == "dropout" else "test_error"
        rows.append({**known, "arm": run["tiling"], "test_error": run[own]})
        if run["tiling"] == "random":
            rows.append({**known, "arm": VOTE, "test_error": run["test_error_vote"]})
    return rows


def _whole(dataset: str) -> int:
    for name, images in WHOLE.items():
        if dataset.startswith(name) and "own split" not in dataset:
            return images
    raise ValueError(f"folders: training images of {dataset!r}: unknown; known: {', '.join(WHOLE)}")


def differences_by_amount(errors: pd.DataFrame, minus: str = "none") -> pd.DataFrame:
    """What arms have above one of them.

    Arms are compared as the claims are: paired by seed where every seed drew images of its own that
    the arms share, else unpaired, for on the same images nothing ties one arm's seed to another's.

    Args:
        errors: of :func:`errors_by_amount`.
        minus: the arm that others are compared with.

    Returns:
        One row per data set, number of images and other arm, fewest images first: data, images,
        arm, seeds (of the arm that has fewer), difference (points of test error), low, high (95 %
        interval; NaN of one seed), method (``"paired"``, ``"pooled"`` or ``"Welch"``, see
        :class:`rapa_lib.instruments.statistics.Contrast`; empty of one seed).
    """
    rows = []
    for (data, images), part in errors.groupby(["data", "images"]):
        paired = bool(part["own_images"].all())
        by_seed = part.pivot(index="seed", columns="arm", values="test_error")
        for arm in tiling_order(part["arm"]):
            if arm == minus or minus not in by_seed:
                continue
            both = by_seed[[arm, minus]].dropna() if paired else by_seed[[arm, minus]]
            samples = [both[one].dropna().to_numpy() for one in (arm, minus)]
            if not (seeds := min(map(len, samples))):
                continue
            between, method = (nan, nan), ""
            if seeds > 1:
                found = contrast(samples, (1, -1), paired=paired)
                low, high = found.interval(0.95)
                between, method = (float(low), float(high)), str(found.method)
            difference = samples[0].mean() - samples[1].mean()
            rows.append((data, images, arm, seeds, difference, *between, method))
    columns = [*_KEYS, "seeds", "difference", "low", "high", "method"]
    return pd.DataFrame(rows, columns=columns)


def crossing_text(differences: pd.DataFrame, arm: str = "random", minus: str = "none") -> str:
    """Where an arm begins to be worse, or better, as images become more: one line per data set.

    The sign turns where both intervals lie on their sides of zero; else it is said of the means.

    Args:
        differences: of :func:`differences_by_amount`.
        arm, minus: the arms in words.
    """
    lines = []
    for data, part in differences[differences["arm"] == arm].groupby("data", sort=False):
        points = part.sort_values("images").to_dict("records")
        said = [f"{_with_interval(row)} with {row['images']:,}" for row in points]
        line = f"- {data}: `{arm}` − `{minus}` (points of test error): {'; '.join(said)} images."
        for pair in itertools.pairwise(points):
            better, worse = sorted(pair, key=lambda row: row["difference"])
            if better["difference"] < 0 < worse["difference"]:
                sure = better["high"] < 0 < worse["low"]
                turns = (
                    "the sign turns" if sure else "the means change sign, within their intervals"
                )
                line += (
                    f" Between {pair[0]['images']:,} and {pair[1]['images']:,} {turns}: "
                    f"better with {better['images']:,}, worse with {worse['images']:,}."
                )
        lines.append(line)
    return "\n".join(lines)


def _with_interval(row: Mapping[Hashable, Any]) -> str:
    text = f"{row['difference']:+.1f}"
    if row["seeds"] > 1:
        text += f" [{row['low']:.1f}, {row['high']:.1f}]"
    return text.replace("-", "−")


def amount_figure(errors: pd.DataFrame, minus: str = "none") -> Figure:
    """Test error against the number of training images, and what is above the ordinary network's.

    Args:
        errors: of :func:`errors_by_amount`. A row of two panels for every data set; means with 95 %
            t-intervals over seeds.
        minus: see :func:`differences_by_amount`.

    Raises:
        ValueError: if there is no error to show.
    """
    if errors.empty:
        raise ValueError("errors: got an empty table, expected at least one network")
    arms = tiling_order(errors["arm"])
    looks = {
        arm: {"color": colour, "marker": marker, "markersize": 5, "capsize": 2, "linewidth": 1.2}
        for arm, colour, marker in zip(
            arms, sns.color_palette("colorblind", len(arms)), "os^DvPX*", strict=False
        )
    }
    differences = differences_by_amount(errors, minus)
    sets = list(errors["data"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.7 + 2.7 * len(sets)))
        panels = figure.subplots(len(sets), 2, squeeze=False)
        for data, (left, right) in zip(sets, panels, strict=True):
            _draw_errors(left, errors[errors["data"] == data], looks)
            _draw_differences(right, differences[differences["data"] == data], looks)
            left.set(title=data, ylabel="test error (%)")
            right.set(ylabel=f"above {minus} (points)")
            for axes in (left, right):
                _along_images(axes, sorted(errors.loc[errors["data"] == data, "images"].unique()))
        for axes in panels[-1]:
            axes.set_xlabel("training images")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def _draw_errors(axes: Axes, errors: pd.DataFrame, looks: Mapping[str, Mapping[str, Any]]) -> None:
    for i, (arm, look) in enumerate(looks.items()):
        own = mean_curve(errors[errors["arm"] == arm], "images")
        bars = [own["mean"] - own["low"], own["high"] - own["mean"]]
        at = _aside(own["images"], i, len(looks))
        axes.errorbar(at, own["mean"], yerr=bars, label=arm, **look)


def _draw_differences(
    axes: Axes, differences: pd.DataFrame, looks: Mapping[str, Mapping[str, Any]]
) -> None:
    axes.axhline(0, color="0.3", linewidth=1)
    for i, (arm, look) in enumerate(looks.items()):
        own = differences[differences["arm"] == arm]
        bars = [own["difference"] - own["low"], own["high"] - own["difference"]]
        axes.errorbar(_aside(own["images"], i, len(looks)), own["difference"], yerr=bars, **look)


def _aside(images: Iterable[float], place: int, n: int) -> list[float]:
    """Numbers of images a little aside on a logarithmic axis, so that intervals are seen."""
    return [one * 1.03 ** (place - (n - 1) / 2) for one in images]


def _along_images(axes: Axes, images: Sequence[int]) -> None:
    """A logarithmic axis that names the numbers of images that were tried."""
    name_values(axes, images, [f"{n:,}" for n in images])
    axes.set_xlim(images[0] / 1.5, images[-1] * 1.5)
