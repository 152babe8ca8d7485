"""Tables of a planted study: every claim as it is asked to be, with what a real study leaves empty.

``outcomes`` says by claim what its primary endpoint shall show: ``holds``, ``does not hold`` or
``equivalent``.
"""

import json

import numpy as np
import pandas as pd

HOLDS, REFUTED, EQUAL = "holds", "does not hold", "equivalent"
TILINGS = ("none", "random", "random_fixed", "image", "alternate", "perforated", "noisy")
ONE_TILE = ("none", "noisy")


def planted(outcomes=None, *, seeds=5, spread=0.05, without=(), train_error=10.0, rng=0):
    """All tables of a study.

    Args:
        outcomes: by claim; every claim holds that is not named.
        seeds: per arm.
        spread: of test errors over seeds, in points.
        without: tilings that were not run.
        train_error: of the ordinary network, whose test error is 25.
        rng: seed of the spread.
    """
    claims = ("C1", "C2a", "C2b", "C3", "C4", "C5", "C6", "C7", "C8", "N1", "N2", "N3")
    plan = dict.fromkeys(claims, HOLDS)
    plan |= outcomes or {}
    study = _Study(plan, seeds, spread, [t for t in TILINGS if t not in without], rng)
    accuracy = study.accuracy()
    return {
        "accuracy": accuracy,
        "accuracy_curves": _curves(accuracy, train_error),
        "adversarial_robustness_strongest": study.robustness(),
        "filter_similarity": study.similarity(),
        "filter_similarity_pull": study.pull(),
        "filter_similarity_penalty": study.penalty(),
        "analog_training": study.analog(),
        "fault_tolerance": study.faults(),
        "synchronisation": study.synchronisation(),
        "acceleration_costs": _costs(64 if plan["C1"] == REFUTED else 1024),
    }


class _Study:
    def __init__(self, plan, seeds, spread, tilings, rng):
        self.plan, self.seeds, self.spread, self.tilings = plan, range(seeds), spread, tilings
        self.rng = np.random.default_rng(rng)

    def choose(self, claim, holds, refuted, equal=0.0):
        return {HOLDS: holds, REFUTED: refuted, EQUAL: equal}[self.plan[claim]]

    def about(self, mean, scale=1.0):
        return mean + scale * self.spread * self.rng.normal()

    def accuracy(self):
        random = 25 + self.choose("C3", -1.5, 1.5)
        rival = random + self.choose("C5", 2, -2)
        rows = []
        for tiling in self.tilings:
            error = {"none": 25.0, "random": random, "perforated": 35.0, "noisy": 35.0}
            mean = error.get(tiling, rival)
            merged = {"random": mean + 2 + self.choose("C8", 0, 2), "perforated": rival}
            vote = 25 + self.choose("C6", -2, 2) if tiling == "random" else mean
            for seed in self.seeds:
                rows.append(
                    self.labels(tiling, seed)
                    | {
                        "test_error": self.about(mean),
                        "test_error_vote": self.about(vote),
                        "test_error_merged": self.about(merged.get(tiling, mean + 2)),
                        "config": json.dumps(self.config(tiling, seed)),
                    }
                )
        return pd.DataFrame(rows)

    def labels(self, tiling, seed):
        tiles = "1-1-1" if tiling in ONE_TILE else "16-4-1"
        return {
            "dataset": "planted",
            "tiling": tiling,
            "n_tiles": tiles,
            "tile_init": "identical",
            "pooling": "max",
            "epochs": 6,
            "seed": seed,
            "run": f"{tiling}-{seed}",
        }

    def config(self, tiling, seed):
        """Parameters as records have them: what is not given is null, as in the quick study."""
        return {
            "dataset": "planted",
            "n_train": None,
            "n_test": None,
            "image_size": None,
            "tiling": tiling,
            "n_tiles": [16, 4, 1],
            "tile_init": "identical",
            "noise": None,
            "tile_lr_power": 1.0,
            "seed": seed,
            "draws": 5,
        }

    def robustness(self):
        means = {"random": 0.3 + self.choose("C4", 0.06, -0.06), "none": 0.3}
        return pd.DataFrame(
            self.labels(tiling, seed)
            | {
                "level": level,
                "norm": "linf",
                "epsilon": epsilon,
                "activation": "relu",
                "normalisation": "batch",
                "tile_lr_power": 1.0,
                "attack": "PGD",
                "n_images": 500,
                "robust_accuracy": self.about(mean, 0.01),
            }
            for tiling, mean in means.items()
            for level in ("published", "adaptive")
            for epsilon in (2 / 255, 4 / 255)
            for seed in self.seeds
            if tiling in self.tilings
        ).drop(columns="run")

    def similarity(self):
        random = 0.5 + self.choose("C2b", -0.2, 0.2)
        rows = []
        for tiling in ("random", "random_fixed", "image", "alternate"):
            for seed in self.seeds if tiling in self.tilings else ():
                for epoch, layer in ((0, 0), (0, 1), (6, 0), (6, 1)):
                    ratio = (random if tiling == "random" else 0.5) if epoch else 0.0
                    rows.append(
                        self.labels(tiling, seed)
                        | {
                            "epoch": epoch,
                            "layer": f"features.{layer}.0",
                            "varied": np.nan,
                            "layer_tiles": (16, 4)[layer],
                            "variance_ratio": self.about(ratio + layer / 10, 0.1),
                            "between_tiles": self.about(1 - ratio, 0.1),
                            "cka": self.about(1 - ratio, 0.1),
                            "matched": self.about(1 - ratio, 0.1),
                        }
                    )
        return pd.DataFrame(rows)

    def pull(self):
        random = self.choose("C2a", 0.05, -0.05)
        return pd.DataFrame(
            self.labels(tiling, seed)
            | {
                "epoch": epoch,
                "layer": layer,
                "layer_tiles": tiles,
                "pull_error": 0.001,
                "pull": self.about(mean * (epoch > 0), 0.02),
                "decay": 0.01,
            }
            for tiling, mean in (("random", random), ("random_fixed", 0.0))
            for seed in self.seeds
            for epoch in (0, 6)
            for layer, tiles in (("features.0.0", 16), ("features.1.0", 4))
            if tiling in self.tilings
        )

    def penalty(self):
        """Perfect agreement at the smallest differences; ``all`` layers have no prediction."""
        return pd.DataFrame(
            self.labels("random", seed)
            | {
                "activation": "tanh",
                "pooling": "avg",
                "scale": scale,
                "layer": layer,
                "layer_tiles": tiles,
                "predicted": predicted * scale**2,
                "measured": self.about(0.01, 0.002) * scale**2 * (1 if scale < 1 else 3),
            }
            for seed in self.seeds
            for scale in (1.0, 0.25)
            for layer, tiles, predicted in (
                ("features.0.0", 16, 0.01),
                ("features.1.0", 4, 0.01),
                ("all", np.nan, np.nan),
            )
        )

    def analog(self):
        cost = {"none": 8.0, "random": 8.0 + self.choose("C7", 0, 3)}
        return pd.DataFrame(
            {
                "dataset": "planted",
                "epochs": 3,
                "seed": seed,
                "tiling": tiling,
                "n_tiles": "1-1-1" if tiling == "none" else "16-4-1",
                "method": method,
                "imperfection": "baseline",
                "value": np.nan,
                "run": f"analog-{seed}",
                "test_error": self.about(30 + (method == "analog") * cost[tiling]),
            }
            for tiling in ("none", "random")
            for method in ("digital", "hardware_aware", "analog")
            for seed in self.seeds
            if tiling in self.tilings
        )

    def faults(self):
        random, others = self.choose("N1", (2, 6), (6, 2), (2, 2))
        return pd.DataFrame(
            self.labels(tiling, seed)
            | {
                "config": json.dumps(self.config(tiling, seed)),
                "layers": layers,
                "share": share,
                "kind": "dead",
                "strength": np.nan,
                "reroute": reroute,
                "fault_draw": draw,
                "test_error": self.about(
                    30 + 4 * share * (random if tiling == "random" else others)
                ),
            }
            for tiling in ("random", "random_fixed", "image", "alternate")
            for seed in self.seeds
            for layers in ("all", "features.0.0")
            for share in (0.0, 0.25, 0.5)
            for reroute in (False, True)
            for draw in range(2)
            if tiling in self.tilings
        )

    def synchronisation(self):
        """Tiles averaged at the least k that is fast enough, at another, and never."""
        averaged, merged = 25 + self.choose("N2", 0.2, 2), 25 + self.choose("N3", 0.2, 2)
        arms = (
            ("none", 0, False, 25.0, 25.0),
            ("random", 0, False, 30.0, 33.0),
            ("random", 4, True, averaged, merged),
            ("random", 64, False, 27.0, 27.0),
            ("perforated_dense", 0, False, 29.0, 29.0),
        )
        return pd.DataFrame(
            self.labels(tiling, seed)
            | {
                "sync_every": every,
                "coupling": 0.0,
                "average_last": 0,
                "least_k": least,
                "test_error": self.about(error),
                "test_error_merged": self.about(error_merged),
                "config": json.dumps(self.config(tiling, seed) | {"sync_every": every}),
            }
            for tiling, every, least, error, error_merged in arms
            for seed in self.seeds
            if tiling in (*self.tilings, "perforated_dense")
        )


def _curves(accuracy, train_error):
    last = accuracy.drop(columns="config").assign(epoch=6, train_error=train_error)
    return pd.concat([last.assign(epoch=1, test_error=80.0, train_error=80.0), last])


def _costs(reach):
    return pd.DataFrame(
        {
            "network": network,
            "schedule": schedule,
            "access": "random",
            "n_tiles": n_tiles,
            "proportional": n_tiles <= (reach if schedule == "pipelined" else 4),
            "limit": "arrays",
        }
        for network in ("rapa", "alexnet")
        for schedule in ("pipelined", "sequential")
        for n_tiles in (1, 4, 16, 64, 256, 1024)
    )
