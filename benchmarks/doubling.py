"""Whether attacks have converged: robust accuracy with twice the draws, steps and restarts.

    python benchmarks/doubling.py [--images 50] [--network FOLDER/network.pt] [--epsilon 8/255]

The suite of the study attacked_digits (level standard: APGD with cross-entropy, with the difference
of logits ratio and targeted, Square; the worst case of each image) attacks a network that redraws,
then with twice as many draws of each gradient, steps and queries, or starts. Differences are paired
by image; what each leaves is judged on ten fresh draws. Without --network, RAPA is trained on 60
digits, as in that study.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from measuring import keep, machine

from rapa_lib.experiments.adversarial_robustness import AdversarialRobustness
from rapa_lib.experiments.trained import Trained, load_or_train
from rapa_lib.experiments.yaml_files import read_yaml
from rapa_lib.instruments.statistics import mean_interval
from rapa_lib.robustness import SuiteSettings, attack_suite, run_cascade

SMALL = "RAPA_BENCHMARK_REPEATS" in os.environ  # set by the test that this program runs
STUDY = Path(__file__).parents[1] / "config/attacked_digits.yaml"
SUITE = ("apgd_steps", "apgd_draws", "queries", "targets")
JUDGES = 10
TWICE = {
    "the study's": (), "twice the draws": ("apgd_draws",),
    "twice the steps and queries": ("apgd_steps", "queries"),
    "twice the starts": ("apgd_restarts",),
}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--network", type=Path, help="of a run of the accuracy experiment")
    arguments.add_argument("--images", type=int, default=2 if SMALL else 50)
    arguments.add_argument("--epsilon", default="8/255", help="the budget, L∞")
    arguments.add_argument("--workers", type=int, default=os.cpu_count())
    arguments.add_argument("--output", type=Path, help="folder for doubling.md and doubling.json")
    options = arguments.parse_args()
    network, suite = of_study()
    if SMALL:
        network |= {"epochs": 1, "eval_every": 1}
        suite |= {"apgd_steps": 3, "apgd_draws": 2, "queries": 6}
    subject = load_or_train(options.network or "", network, threads=1, progress=False)
    workers = ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"))
    with workers:
        asked = [(subject, options, suite, name) for name in TWICE]
        rows = list(workers.map(attacked, *zip(*asked, strict=True)))
    text = "\n".join(markdown(rows, options))
    print(text)
    if options.output:
        result = {"machine": machine(torch.device("cpu")), "rows": rows}
        keep(options.output, "doubling", result, text + "\n")


def of_study() -> tuple[dict, dict]:
    """The study's first network that redraws, and the strength of its standard suite."""
    study = read_yaml(STUDY)
    (block,) = (one for one in study["accuracy"]["grid"] if one["tiling"] == ["random"])
    network = study["accuracy"]["common"] | {name: values[0] for name, values in block.items()}
    attacks = study["adversarial_robustness"]["common"]
    return network, {name: attacks[name] for name in SUITE}


def attacked(subject: Trained, options: argparse.Namespace, suite: dict, name: str) -> dict:
    """What the worst case leaves of each image, under the suite with some of it doubled."""
    subject.recipe.use_threads()
    settings = SuiteSettings(linf=[options.epsilon], l2=[0.5], focus=options.epsilon, **suite)
    settings = replace(settings, **{one: 2 * getattr(settings, one) for one in TWICE[name]})
    run = AdversarialRobustness(settings, ["standard"], images=options.images)
    its = run.attacked(subject)
    attacks = [
        one for one in attack_suite("standard", settings)
        if one.norm == "linf" and one.purpose == "suite"
    ]  # fmt: skip
    *_, worst = run_cascade(
        attacks, settings.linf[0], its.target, its.images, its.labels,
        judge_draws=JUDGES, seed=0, progress=False,
    )  # fmt: skip
    print(name, float(worst.correct.mean()), file=sys.stderr, flush=True)
    return {
        "data": subject.data.name, "suite": name, "clean": its.clean.tolist(),
        "correct": worst.correct.tolist(),
    }  # fmt: skip


def markdown(rows: list[dict], options: argparse.Namespace) -> Iterator[str]:
    """A line for every suite: robust accuracy, and the difference from the first."""
    clean = 100 * np.mean(rows[0]["clean"])
    yield (
        f"Robust accuracy of `random` at ε = {options.epsilon} (L∞), {rows[0]['data']}, "
        f"{options.images} images, clean accuracy {clean:.1f} %; differences paired by image, with "
        "95 % intervals over images."
    )
    yield ""
    yield "| suite | robust accuracy (%) | difference (points) |"
    yield "|---|---|---|"
    first = 100 * np.array(rows[0]["correct"])
    for row in rows:
        correct = 100 * np.array(row["correct"])
        gap = correct - first
        shown = "" if row is rows[0] else difference(gap)
        yield f"| {row['suite']} | {correct.mean():.1f} | {shown} |"


def difference(gap: np.ndarray) -> str:
    """The mean over images, with its interval."""
    mean, low, high = mean_interval(gap)
    return f"{mean:+.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
