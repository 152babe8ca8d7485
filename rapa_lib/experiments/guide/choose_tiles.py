"""How many arrays for how much speed-up, and what that speed-up cost in a finished study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rapa_lib._checks import check_real
from rapa_lib.experiments.plots import STYLE, WIDTH, joined, log_axes
from rapa_lib.instruments.statistics import mean_interval
from rapa_lib.runtime import (
    AnalogArrays,
    NetworkLayers,
    balance_tiles,
    reachable_speedup,
    run_time,
)


def tile_choices(
    layers: NetworkLayers,
    speedups: Sequence[float],
    hardware: AnalogArrays | None = None,
    *,
    max_tiles: int | None = None,
) -> pd.DataFrame:
    """The fewest arrays for each speed-up of a network, image after image through a pipeline.

    Args:
        layers: of :func:`rapa_lib.runtime.count_layers`.
        speedups: targets, each at least 1; those out of reach are left out.
        hardware: the arrays; None is ``AnalogArrays()``.
        max_tiles: the most tiles of a layer; None is one per patch.

    Returns:
        One row per target within reach, 1 first: target, speedup (reached), arrays, more_arrays
        (over one tile per layer), cross_points, most_tiles (of a layer), slowest_layer, and tiles
        (by layer, as ``convert_to_rapa`` takes them).
    """
    for speedup in speedups:
        check_real("speedups", speedup, low=1)
    limit = reachable_speedup(layers, max_tiles=max_tiles)
    rows: list[dict[str, Any]] = []
    for target in sorted({1.0, *map(float, speedups)}):
        if target > limit:
            continue
        tiles = balance_tiles(layers, target_speedup=target, hardware=hardware, max_tiles=max_tiles)
        timed = run_time(layers, n_tiles=tiles, hardware=hardware)
        rows.append(
            {
                "target": target,
                "speedup": timed.speedup(),
                "arrays": timed.arrays,
                "more_arrays": timed.arrays / rows[0]["arrays"] if rows else 1.0,
                "cross_points": timed.cross_points,
                "most_tiles": max(tiles.values(), default=1),
                "slowest_layer": timed.bottleneck.layer.name,
                "tiles": tiles,
            }
        )
    return pd.DataFrame(rows)


def study_errors(folder: str | Path) -> pd.DataFrame:
    """Test errors of a study's networks under random assignment, by speed-up.

    Args:
        folder: of the study, with ``tiles_accuracy.csv``.

    Returns:
        One row per number of tiles, fastest last: dataset, epochs, n_tiles, speedup, seeds,
        test_error, low, high (95 % t-interval over seeds), vote, more_error (points over one tile).

    Raises:
        ValueError: if there is no such table, or it has no network with one tile.
    """
    path = Path(folder) / "tiles_accuracy.csv"
    if not path.exists():
        raise ValueError(f"results: got {str(folder)!r}, expected a folder with tiles_accuracy.csv")
    table = pd.read_csv(path)
    table = table[table["tiling"].isin(["none", "random"])]
    rows = []
    keys = ["dataset", "epochs", "n_tiles", "speedup"]
    for values, part in table.groupby(keys, sort=False):
        mean, low, high = mean_interval(part["test_error"])
        rows.append(
            dict(zip(keys, values, strict=True))
            | {"seeds": len(part), "test_error": mean, "low": low, "high": high}
            | {"vote": part["test_error_vote"].mean()}
        )
    errors = pd.DataFrame(rows, columns=[*keys, "seeds", "test_error", "low", "high", "vote"])
    single = errors.loc[errors["speedup"] == 1, "test_error"]
    if len(single) != 1:
        raise ValueError(f"results: got {len(single)} settings with one tile, expected one")
    errors["more_error"] = errors["test_error"] - single.iloc[0]
    return errors.sort_values("speedup", ignore_index=True)


def choice_figure(choices: pd.DataFrame, errors: pd.DataFrame) -> Figure:
    """Arrays of one network and test error of the study's, both against speed-up.

    Args:
        choices: of :func:`tile_choices`.
        errors: of :func:`study_errors`.
    """
    blue, orange, *_ = sns.color_palette("colorblind")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.6))
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.plot(choices["speedup"], choices["arrays"], "o-", color=blue, markersize=4)
        upper.set(ylabel="arrays", title="your network: the fewest arrays for a speed-up")
        upper.set_ylim(0, None)
        _draw_errors(lower, errors, orange)
        log_axes(lower, y=False)
        lower.set(xlabel="speed-up on analog arrays", ylabel="test error (%)", ylim=(0, None))
        lower.set_title(
            f"the study's network, not yours: {joined(errors['dataset'])},\n"
            f"{joined(errors['epochs'])} epochs; means of {joined(errors['seeds'])} seeds with "
            "95 % t-intervals",
            fontsize="small",
        )
    return figure


def _draw_errors(axes: Axes, errors: pd.DataFrame, colour: object) -> None:
    axes.errorbar(
        errors["speedup"], errors["test_error"],
        yerr=[errors["test_error"] - errors["low"], errors["high"] - errors["test_error"]],
        fmt="D-", color=colour, markersize=5, capsize=3,
    )  # fmt: skip
    for row in errors.itertuples():
        axes.annotate(
            f"{row.test_error:.1f} %", (row.speedup, row.test_error), xytext=(0, -14),
            textcoords="offset points", ha="center", fontsize="small",
        )  # fmt: skip
