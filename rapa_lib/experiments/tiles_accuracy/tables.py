"""What more tiles cost: test errors of trained networks beside their speed-up on analog arrays."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from rapa_lib.experiments.plots import with_interval
from rapa_lib.experiments.recipe import is_plain
from rapa_lib.runtime import PERFORATED_DENSE

COLUMNS = [
    "dataset", "epochs", "tiling", "n_tiles", "tile_init", "tile_lr_power", "pooling", "seed",
    "test_error", "test_error_vote", "speedup", "speedup_sequential", "run", "git_commit",
    "data_fingerprint",
]  # fmt: skip

_SORTED_BY = ["dataset", "epochs", "tiling", "speedup", "seed"]

# Parameters that do not tell a curve's settings apart; the last two are other controls' alone.
_ALONG = ("tiling", "n_tiles", "seed", "noise", "dropout")

# Parameters that an ordinary network does not have: no tiles to start or to scale.
_TILES_ALONE = ("tile_init", "tile_lr_power")

# Parameters that each arm of a tuned study has of its own.
_TUNED = ("learning_rate", "weight_decay")


def tiles_accuracy_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Test errors of trained networks beside the speed-up that their tiles give.

    Networks whose tiles were averaged in training are another matter (``synchronisation``). Of the
    RAPA networks those are taken whose other settings (start, learning rate, pooling, …)
    come with most numbers of tiles, and beside them, otherwise alike, the networks without tiles
    and those trained perforated, tested dense: these train as fast on one array per layer.

    Args:
        records: of the accuracy experiment.

    Returns:
        One row per run: dataset, epochs, tiling (``"none"``, ``"random"``, ``"perforated_dense"``),
        n_tiles, tile_init, tile_lr_power, pooling, seed, ``test_error`` and ``test_error_vote``
        (percent; of a perforated network those of all patches, which is ``test_error_merged`` of
        the accuracy experiment), ``speedup`` of the pipelined and ``speedup_sequential`` of the
        sequential schedule in training, run, git_commit, data_fingerprint. None if no run is one
        of these.
    """
    chosen = [
        record for record in records
        if record["tiling"] in ("none", "random", "perforated") and is_plain(record["config"])
    ]  # fmt: skip
    table = pd.DataFrame([_row(record) for record in chosen], columns=COLUMNS)
    settings = pd.Series([_setting(record["config"]) for record in chosen], dtype=object)
    ordinary, but_tuned = (
        pd.Series([_setting(record["config"], without=names) for record in chosen], dtype=object)
        for names in (_TILES_ALONE, (*_TILES_ALONE, *_TUNED))
    )
    tiled, plain = table["tiling"] == "random", table["tiling"] != "random"
    if tiled.any():
        numbers = table[tiled].groupby(settings[tiled], sort=False)["n_tiles"].nunique()
        tiled &= settings == numbers.idxmax()
        exact = plain & (ordinary == ordinary[tiled].iloc[0])
        alike = plain & (but_tuned == but_tuned[tiled].iloc[0])
        # An arm with the same rates stands for itself; else that with rates of its own tuning.
        plain = exact | (alike & ~table["tiling"].isin(table["tiling"][exact]))
    elif plain.any():
        plain &= ordinary == ordinary[plain].iloc[0]
    return pd.concat([table[plain], table[tiled]]).sort_values(_SORTED_BY, ignore_index=True)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    known = {**record["config"], **record}
    speedups = record["speedups"]
    known |= {"speedup": speedups["pipelined"], "speedup_sequential": speedups["sequential"]}
    if record["tiling"] == "perforated":
        dense = record["test_error_merged"]
        known |= {"tiling": PERFORATED_DENSE, "test_error": dense, "test_error_vote": dense}
    return {name: known[name] for name in COLUMNS}


def _setting(config: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
    kept = {k: value for k, value in config.items() if k not in (*_ALONG, *without)}
    return json.dumps(kept, sort_keys=True)


_CURVE_POINT = ["dataset", "epochs", "tiling", "n_tiles", "speedup", "speedup_sequential"]


def tradeoff_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Test error by number of tiles: means over seeds with 95 % t-intervals, as strings.

    Args:
        table: rows of ``tiles_accuracy.csv``.
    """
    rows = []
    for values, runs in table.sort_values("speedup").groupby(_CURVE_POINT, sort=False):
        row = dict(zip(_CURVE_POINT, values, strict=True))
        rows.append(
            {
                "tiling": row["tiling"],
                "n_tiles": row["n_tiles"],
                "epochs": row["epochs"],
                "seeds": len(runs),
                "speed-up, pipelined": f"{row['speedup']:.4g}",
                "speed-up, sequential": f"{row['speedup_sequential']:.4g}",
                "test error (%)": with_interval(runs["test_error"]),
                "vote (%)": with_interval(runs["test_error_vote"]),
            }
        )
    return pd.DataFrame(rows)


def tradeoff_answer(table: pd.DataFrame) -> list[str]:
    """What the speed-ups cost in test error, in at most three lines.

    Args:
        table: rows of ``tiles_accuracy.csv``.
    """
    if not len(table):
        return ["**No network of this study has tiling `none` or `random`: nothing to compare.**"]
    lines = []
    ordinary, tiled, dense = (
        table[table["tiling"] == tiling] for tiling in ("none", "random", PERFORATED_DENSE)
    )
    if len(ordinary):
        lines.append(f"ordinary networks {with_interval(ordinary['test_error'])} %")
    if len(tiled):
        ends = sorted({tiled["speedup"].min(), tiled["speedup"].max()})
        for speedup in ends:
            errors = tiled.loc[tiled["speedup"] == speedup, "test_error"]
            lines.append(f"RAPA networks {with_interval(errors)} % at {speedup:.4g} × the speed")
    for speedup, errors in dense.groupby("speedup")["test_error"]:
        lines.append(
            f"trained perforated and tested dense {with_interval(errors)} %, trained at "
            f"{speedup:.4g} × the speed on one array per layer, tested at the ordinary one"
        )
    return [f"**Test error: {'; '.join(lines)}** (speed-up on analog arrays, pipelined)."]
