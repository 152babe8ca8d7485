"""Whether networks trained in bfloat16 are those trained in float32: errors and tiles' likeness.

    python benchmarks/precision.py [--data FOLDER] [--images 4000] [--epochs 20] [--seeds 6]

For the ordinary and the RAPA network, each seed is trained in both precisions on the same images in
the same order, from the same weights. Two trainings that differ by rounding part ways like two
seeds do, so differences of a pair scatter; two one-sided tests say whether their mean lies within
0.5 points of test error, and within 0.02 of cosine between the tiles of a layer.
"""

import argparse
import os
import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd

from rapa_lib.data import Dataset
from rapa_lib.experiments.accuracy.experiment import Accuracy
from rapa_lib.instruments.similarity import tile_similarity
from rapa_lib.instruments.statistics import contrast

PRECISIONS = ("bfloat16", "float32")
WITHIN = {"test error (points)": 0.5, "cosine between tiles": 0.02}
LEVEL = 0.05


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", default="mnist5k", help="a data set's name or folder")
    # The variable is there for the test that this program runs.
    small = "RAPA_BENCHMARK_REPEATS" in os.environ
    arguments.add_argument("--images", type=int, default=130 if small else 4000)
    arguments.add_argument("--test-images", type=int, default=100 if small else None)
    arguments.add_argument("--epochs", type=int, default=1 if small else 20)
    arguments.add_argument("--seeds", type=int, default=2 if small else 6)
    options = arguments.parse_args()
    rows = pd.DataFrame(measured(options))
    print(
        "| network | measure | float32 | bfloat16 − float32 | 90 % interval | within | "
        "equivalent |\n|---|---|---|---|---|---|---|"
    )
    for (tiling, measure), values in rows.groupby(["tiling", "measure"], sort=False):
        print(line(tiling, measure, *(values[name].to_numpy() for name in PRECISIONS)))
    print(
        f"\n{rows['data'].iloc[0]}, {options.epochs} epochs, seeds 0 to {options.seeds - 1}, "
        "no augmentation; p of two one-sided tests at 5 %."
    )


def measured(options: argparse.Namespace) -> Iterator[dict]:
    """A row per network, seed and measure, with its value in both precisions."""
    for tiling in ("none", "random"):
        for seed in range(options.seeds):
            run = Accuracy.of(
                dataset=options.data, n_train=options.images, n_test=options.test_images,
                epochs=options.epochs, seed=seed, tiling=tiling, n_tiles=[16, 4, 1], threads=1,
                eval_every=options.epochs,
            )  # fmt: skip
            data = run.recipe.load()
            found = [values(run, precision, data) for precision in PRECISIONS]
            print(tiling, seed, found, file=sys.stderr, flush=True)
            for measure in found[0]:
                pair = (one[measure] for one in found)
                named = dict(zip(PRECISIONS, pair, strict=True))
                yield {"tiling": tiling, "data": data.name, "measure": measure, **named}


def values(run: Accuracy, precision: str, data: Dataset) -> dict[str, float]:
    """Test error in percent and, with tiles, their mean cosine over layers."""
    parameters = run.recipe.flat() | {"precision": precision}
    run = Accuracy.of(**parameters)
    network, training = run.train(data, progress=False)
    assert training.scaling is not None
    found = {"test error (points)": run.test(network, data, training.scaling).test_error}
    if run.recipe.network.tiling == "random":
        likeness = [one.between_tiles for one in tile_similarity(network) if one.n_tiles > 1]
        found["cosine between tiles"] = float(np.mean(likeness))
    return found


def line(tiling: str, measure: str, half: np.ndarray, full: np.ndarray) -> str:
    """A line of the table: means, the paired difference, and whether it is equivalent."""
    found = contrast([half, full], [1, -1], paired=True)
    low, high = found.interval(1 - 2 * LEVEL)
    bound = WITHIN[measure]
    p = float(found.p_within(-bound, bound))
    return (
        f"| `{tiling}` | {measure} | {full.mean():.3g} | {float(found.estimate):+.3f} | "
        f"{float(low):+.3f} to {float(high):+.3f} | ± {bound} | "
        f"{'yes' if p < LEVEL else 'not shown'} (p = {p:.2g}) |"
    )


if __name__ == "__main__":
    main()
