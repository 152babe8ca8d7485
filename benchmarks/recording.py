"""What recording similarity and penalty costs a training, as a ratio measured side by side.

    python benchmarks/recording.py [--repeats 5]

Each pair trains the study's network for six epochs on the embedded digits: with the similarity of
the tiles recorded after every epoch and the penalty after every third, and without. The median over
pairs is printed, with the quartiles.
"""

import argparse
import os
import statistics
import time
from dataclasses import replace

from rapa_lib.data import Dataset
from rapa_lib.experiments.accuracy.experiment import Accuracy

GOAL = 1.1


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # The variable is there for the test that this program runs.
    small = {"n_train": 500, "n_test": 100} if "RAPA_BENCHMARK_REPEATS" in os.environ else {}
    repeats = int(os.environ.get("RAPA_BENCHMARK_REPEATS", 5))
    arguments.add_argument("--repeats", type=int, default=repeats)
    options = arguments.parse_args()
    recorded = Accuracy.of(epochs=6, similarity_every=1, penalty_every=3, **small)
    plain = replace(recorded, similarity_every=0, penalty_every=0)
    data = recorded.recipe.load()
    pairs = [[seconds(run, data) for run in (recorded, plain)] for _ in range(options.repeats)]
    ratios = [with_it / without for with_it, without in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print("| training with recording / without | quartiles | seconds | goal | met |")
    print("|---|---|---|---|---|")
    print(
        f"| {middle:.2f} | {low:.2f} to {high:.2f} | {statistics.median(p[0] for p in pairs):.1f} "
        f"| ≤ {GOAL} | {'yes' if middle <= GOAL else 'no'} |"
    )


def seconds(run: Accuracy, data: Dataset) -> float:
    began = time.perf_counter()
    run.train(data, progress=False)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
