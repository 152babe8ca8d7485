"""The learning rates at which digital, hardware-aware and analog training go best, by plain SGD.

    python benchmarks/analog_rates.py [--images 200] [--epochs 10] [--output results/benchmarks]

What C7 compares is trained at rates of its own: every network and way of training is trained at the
same rates, on seeds that no study confirms with, and judged on images that are cut off its training
images; the test images are looked at by none. The rates that a study's YAML file names are those
of the least mean validation error here, fixed before its seeds are run.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from measuring import keep, machine

from rapa_lib.experiments.analog_training import AnalogTraining

TILINGS = ("none", "random")
METHODS = ("digital", "hardware_aware", "analog", "tiki_taka")
RATES = (0.02, 0.05, 0.1, 0.2, 0.5)
SEEDS = (1001, 1002)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # The variable is there for the test that this program runs.
    small = "RAPA_BENCHMARK_REPEATS" in os.environ
    arguments.add_argument("--data", default="mnist5k", help="a data set's name or folder")
    arguments.add_argument("--images", type=int, default=50 if small else 200)
    arguments.add_argument("--epochs", type=int, default=1 if small else 10)
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    arguments.add_argument("--rates", nargs="+", type=float, default=RATES[:1] if small else RATES)
    arguments.add_argument(
        "--reads", type=int, default=1, help="columns that Tiki-Taka transfers after a mini-batch"
    )
    arguments.add_argument("--output", type=Path, help="folder for analog_rates.md and .json")
    options = arguments.parse_args()
    seeds = SEEDS[:1] if small else SEEDS
    asked = [
        (options.data, options.images, options.epochs, tiling, method, rate, seed, options.reads)
        for tiling in TILINGS
        for method in options.methods
        for rate in options.rates
        for seed in seeds
    ]
    workers = ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))
    with workers:
        rows = []
        for row in workers.map(trained, *zip(*asked, strict=True)):
            print(*row.values(), file=sys.stderr, flush=True)
            rows.append(row)
    about = f"{rows[0]['data']}, {options.epochs} epochs, seeds {seeds[0]} to {seeds[-1]}"
    text = "\n".join(markdown(pd.DataFrame(rows), about))
    print(text)
    if options.output:
        result = {"machine": machine(torch.device("cpu")), "rows": rows}
        keep(options.output, "analog_rates", result, text + "\n")


def trained(
    data: str,
    images: int,
    epochs: int,
    tiling: str,
    method: str,
    rate: float,
    seed: int,
    reads: int,
) -> dict:
    """The validation error in percent of one training; 100 where it diverged."""
    run = AnalogTraining.of(
        dataset=data, n_train=images, subset="seed", validation=1000, epochs=epochs, seed=seed,
        batch_size=10, n_tiles=[16, 4, 1], tile_init="identical", tile_lr_power=0.5,
        learning_rate=rate, analog_rate=1.0, plain_sgd=True, tilings=[tiling], methods=[method],
        noise_levels=[], draws=1, threads=1, n_reads_per_transfer=reads,
    )  # fmt: skip
    record = run.measure(run.recipe.load(), progress=False)
    (found,) = record["rows"]
    error = 100.0 if found["diverged"] else found["test_error"]
    return {
        "data": record["dataset"], "tiling": tiling, "method": method, "rate": rate, "seed": seed,
        "error": error, "seconds": found["seconds"],
    }  # fmt: skip


def markdown(rows: pd.DataFrame, about: str) -> Iterator[str]:
    """A line for every network and way of training: the error by rate, the least in bold."""
    rates = sorted(rows["rate"].unique())
    yield f"Validation error in percent, mean over seeds, by learning rate. {about}."
    yield ""
    yield f"| network | training | {' | '.join(f'{rate:g}' for rate in rates)} | seconds each |"
    yield "|---" * (len(rates) + 3) + "|"
    for (tiling, method), part in rows.groupby(["tiling", "method"], sort=False):
        means = part.groupby("rate")["error"].mean()
        cells = [f"{mean:.1f}" for mean in means]
        best = list(means).index(means.min())
        cells[best] = f"**{cells[best]}**"
        seconds = part["seconds"].mean()
        yield f"| `{tiling}` | {method} | {' | '.join(cells)} | {seconds:.1f} |"


if __name__ == "__main__":
    main()
