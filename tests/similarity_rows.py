"""Rows of filter similarity's tables, made up."""

import numpy as np
import pandas as pd

TILINGS = ("image", "random")
LAYERS = {"a": 16, "b": 4}
SETTING = {
    "dataset": "digits", "n_tiles": "16-4-1", "pooling": "avg", "activation": "tanh",
    "normalisation": "batch", "tile_lr_power": 1.0, "epochs": 2,
}  # fmt: skip


def similarity_table(seeds=(0, 1, 2), starts=("independent", "identical"), tilings=TILINGS):
    """Rows of every tiling, start, layer, seed and epoch; no two similarities are equal."""
    rows = []
    for t, tiling in enumerate(tilings):
        for i, start in enumerate(starts):
            for n, (layer, tiles) in enumerate(LAYERS.items()):
                for s, seed in enumerate(seeds):
                    for epoch in (0, 1, 2):
                        alike = 0.05 + 0.1 * t + 0.2 * i + 0.02 * n + (0.05 + 0.1 * t) * epoch
                        alike += 0.001 * (s + 2 * t * s * (s - 1) + epoch * s)
                        rows.append(
                            SETTING
                            | {
                                "tiling": tiling, "tile_init": start, "layer": layer,
                                "layer_tiles": tiles, "seed": seed, "epoch": epoch,
                                "run": f"{tiling}-{start}-{seed}", "between_tiles": alike,
                                "within_tile": alike / 10, "variance_ratio": 1 - alike,
                                "cka": alike + 0.1, "cka_chance": 0.2, "matched": alike + 0.2,
                                "matched_chance": 0.3, "penalty": np.nan,
                            }
                        )  # fmt: skip
    return pd.DataFrame(rows[::-1])  # in no helpful order


def penalty_table(scales=(1.0, 0.5), sign=1.0, **changes):
    rows = []
    for layer, size in (("a", 0.2), ("b", 0.03), ("all", np.nan)):
        for scale in scales:
            predicted = size * scale**2
            rows.append(
                SETTING
                | {
                    "tiling": "random", "tile_init": "independent", "layer": layer, "seed": 0,
                    "scale": scale, "run": "one", "predicted": predicted,
                    "measured": sign * (0.3 if layer == "all" else 1.05 * predicted + 1e-4),
                    "measured_error": 0.001, "predicted_error": 0.002, "merged_loss": 1.5,
                    "gauss_newton": predicted, "gauss_newton_error": 0.002, "applies": True,
                }
                | changes
            )  # fmt: skip
    return pd.DataFrame(rows)


def pull_table(seeds=(0, 1, 2), tilings=TILINGS, epochs=(0, 1, 2)):
    """Rows of every tiling, layer, seed and epoch; no two pulls are equal."""
    rows = []
    for t, tiling in enumerate(tilings):
        for n, (layer, tiles) in enumerate(LAYERS.items()):
            for seed in seeds:
                for epoch in epochs:
                    pull = 0.1 * t + 0.02 * n + 0.004 * seed + 0.3 * epoch + 0.001
                    rows.append(
                        SETTING
                        | {
                            "tiling": tiling, "tile_init": "independent", "layer": layer,
                            "layer_tiles": tiles, "seed": seed, "epoch": epoch, "varied": "",
                            "run": f"{tiling}-{seed}", "pull": pull, "pull_error": 0.01,
                            "kernel_pull": pull - 0.0005, "decay": pull / 10, "push": pull / 3,
                            "squared_deviation": 2.0 + n,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows[::-1])


def scales_table(seeds=(0, 1, 2), tilings=TILINGS, scales=(0.0, 0.5, 1.0)):
    """Rows of every tiling, layer, statistics, seed and scale; no two changes but 0 are equal."""
    rows = []
    for t, tiling in enumerate(tilings):
        for n, layer in enumerate((*LAYERS, "all")):
            for k, statistics in enumerate(("batch", "reestimated")):
                for seed in seeds:
                    for scale in scales:
                        change = (1 - scale) * (1 + t + 0.1 * n + 0.03 * k + 0.007 * seed)
                        rows.append(
                            SETTING
                            | {
                                "tiling": tiling, "tile_init": "independent", "layer": layer,
                                "seed": seed, "run": f"{tiling}-{seed}", "varied": "",
                                "statistics": statistics, "scale": scale, "loss": 1 + change,
                                "loss_error": 0.1, "change": change, "change_error": 0.02,
                            }
                        )  # fmt: skip
    return pd.DataFrame(rows[::-1])
