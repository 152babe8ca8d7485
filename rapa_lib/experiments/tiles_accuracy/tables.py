"""What more tiles cost: test errors of trained networks beside their speed-up on analog arrays."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from rapa_lib.experiments.accuracy.experiment import SavedNetwork
from rapa_lib.runtime import run_time


def tiles_accuracy(runs: Iterable[str | Path]) -> pd.DataFrame:
    """Test errors of trained networks beside the speed-up that their tiles give.

    Of the RAPA networks those are taken whose other settings (start, learning rate, pooling, …)
    come with most numbers of tiles, and beside them the networks without tiles and otherwise alike.

    Args:
        runs: folders of finished runs of the accuracy experiment.

    Returns:
        A row a run: dataset, epochs, tiling, n_tiles, tile_init, tile_lr_power, pooling, seed,
        ``test_error`` and ``test_error_vote`` (percent), ``speedup`` of the pipelined and
        ``speedup_sequential`` of the sequential schedule, run, git_commit, data_fingerprint.

    Raises:
        ValueError: if there is no run without tiles and none with random ones.
    """
    rows, settings = [], []
    for folder in map(Path, runs):
        record = json.loads((folder / "record.json").read_text())
        if record["tiling"] not in ("none", "random"):
            continue
        config = record["config"]
        saved = SavedNetwork.read(folder / "network.pt")
        size = (saved.data["in_channels"], *saved.data["image_size"])
        timed = run_time(saved.build()[0], size)
        rows.append(
            {name: record[name] for name in ("dataset", "epochs", "tiling", "n_tiles")}
            | {name: config[name] for name in ("tile_init", "tile_lr_power", "pooling", "seed")}
            | {name: record[name] for name in ("test_error", "test_error_vote")}
            | {
                "speedup": timed.speedup("pipelined"),
                "speedup_sequential": timed.speedup("sequential"),
                "run": folder.name,
            }
            | {name: record[name] for name in ("git_commit", "data_fingerprint")}
        )
        # Noise is the noisy control's alone.
        told = ("tiling", "n_tiles", "seed", "noise")
        settings.append({name: value for name, value in config.items() if name not in told})
    if not rows:
        raise ValueError("runs: none of them has tiling 'none' or 'random'")
    # Ordinary networks have no tiles to start or to scale.
    ordinary = [_text(s, without=("tile_init", "tile_lr_power")) for s in settings]
    table = pd.DataFrame(rows).assign(setting=list(map(_text, settings)), ordinary=ordinary)
    tiled, plain = table[table["tiling"] == "random"], table[table["tiling"] == "none"]
    if len(tiled):
        numbers = tiled.groupby("setting", sort=False)["n_tiles"].nunique()
        tiled = tiled[tiled["setting"] == numbers.idxmax()]
        plain = plain[plain["ordinary"] == tiled["ordinary"].iloc[0]]
    else:
        plain = plain[plain["ordinary"] == plain["ordinary"].iloc[0]]
    table = pd.concat([plain, tiled])
    order = ["dataset", "epochs", "tiling", "speedup", "seed"]
    return table.drop(columns=["setting", "ordinary"]).sort_values(order, ignore_index=True)


def _text(settings: dict[str, Any], without: tuple[str, ...] = ()) -> str:
    kept = {name: value for name, value in settings.items() if name not in without}
    return json.dumps(kept, sort_keys=True)
