"""Tune the arms of a study: short runs of every trial, the best few at full length, the values of
the best to config/chosen/<study>.yaml.

Every trial is an ordinary run of the accuracy experiment, tested on images cut off its training
images; the test images are looked at by none. Stopped, even killed, it goes on where it was.
"""

import argparse
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from causes import failures, killed
from chosen import Chosen, arms_of, chosen_path, stage, tuning_hash
from progress import shown
from run_study import (
    SnakemakeKilledError,
    check_place,
    check_runs,
    kernels,
    run_snakemake,
    sole_user,
    start,
    study_arguments,
)
from study import ROOT, Run, Study, read_config
from whole import remove_damaged

from rapa_lib._files import whole_file, writable_folder
from rapa_lib.experiments.provenance import code_hash
from rapa_lib.experiments.records import read_object
from rapa_lib.experiments.tuning import Tuning, ranked

Trials = Mapping[str, list[dict[str, Any]]]
Errors = dict[str, list[list[float]]]  # by arm, of each trial, of each seed


def main() -> None:
    arguments = study_arguments(__doc__)
    options = arguments.parse_args()
    os.chdir(ROOT)
    try:
        check_place(options)
        config = read_config(options.config, options.name)
        study = Study.of(config, options.data)
        if study.tuning is None:
            raise ValueError(f"tuning: {study.name} has no tuning block")
        check_unused(study.name, options.results)
        folder = writable_folder("results", options.results / study.name / "tuning")
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"tuning not started: {error}") from error
    with sole_user(folder) as lock:
        Tuner(options, config, study.tuning, folder, lock).tune()


def check_unused(name: str, results: Path) -> None:
    """Raise where a study has records already, which its old values made."""
    if any((results / name / "runs").glob("*/*/record.json")):
        raise ValueError(
            f"tuning: {results / name} has records already; what is chosen now would be newer than "
            "they are: give the study another name"
        )


class Tuner:
    """One tuning, from the plan to the chosen values.

    Args:
        options: of the command line.
        config: of the study.
        tuning: its block.
        folder: of the runs of both stages.
        lock: of the folder, for those that are started.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        config: Mapping[str, Any],
        tuning: Tuning,
        folder: Path,
        lock: int,
    ):
        self.options, self.config, self.tuning = options, config, tuning
        self.folder, self.lock = folder, lock
        self.arms = arms_of(config["accuracy"], tuning.by)
        self.images: dict[str, str] = {}

    def tune(self) -> None:
        """Run both stages, write what came out, and say it."""
        tuning, arms = self.tuning, self.arms
        trials = {arm: tuning.trials_of(arm) for arm in arms}
        short = self.run("short", trials, [tuning.seed], tuning.short)
        images = dict(self.images)
        order = {arm: ranked([fmean(errors) for errors in short[arm]]) for arm in arms}
        if lost := [arm for arm in arms if not order[arm]]:
            raise SystemExit(
                f"tuning: every trial of {', '.join(lost)} diverged: change its ranges"
            )
        places = {arm: order[arm][: tuning.best] for arm in arms}
        best = {arm: [trials[arm][i] for i in places[arm]] for arm in arms}
        # Of one trial there is nothing to choose at full length.
        last = {arm: [short[arm][i] for i in places[arm]] for arm in arms}
        if full := tuning.best > 1:
            last = self.run("full", best, list(tuning.seeds), {})
        winners: dict[str, dict[str, Any]] = {}
        kept: dict[str, list[dict[str, Any]]] = {}
        for arm in arms:
            kept[arm] = [
                {"values": values, "short": _plain(short[arm][i][0])}
                for i, values in enumerate(trials[arm])
            ]
            if full:
                for i, errors in zip(places[arm], last[arm], strict=True):
                    kept[arm][i]["full"] = [_plain(error) for error in errors]
            means = [fmean(errors) for errors in last[arm]]
            if not (order_of_last := ranked(means)):
                raise SystemExit(f"tuning: every trial of {arm} diverged at full length")
            winner = order_of_last[0]
            winners[arm] = best[arm][winner]
            print(f"{arm:14} {means[winner]:6.2f} %  {winners[arm]}")
        name = self.config["study"]
        path = chosen_path(name)
        tuned_for = tuning_hash(self.config)
        Chosen(name, tuned_for, code_hash(), images, winners, kept).write(path)
        print(f"\n{path} is written; commit it before the study starts")

    def run(
        self, name: str, trials: Trials, seeds: list[int], changes: Mapping[str, Any]
    ) -> Errors:
        """Run a stage; return the validation errors, infinite where a training diverged."""
        content = stage(self.config, name, trials, seeds, changes)
        path = self.folder / f"{name}.yaml"
        with whole_file(path) as part:
            part.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        study = Study.of(content, self.options.data)
        try:
            check_runs(study)
            folder = writable_folder("results", self.folder / name)
        except (ValueError, TypeError, OSError) as error:
            raise SystemExit(f"tuning not started: {error}") from error
        remove_damaged(study, folder)
        options = argparse.Namespace(
            **vars(self.options) | {"config": path, "results": self.folder}
        )
        cores = self.options.cores
        at_once = max(1, cores // study.threads) if cores else None
        try:
            with shown(study, folder, at_once), kernels(options, study):
                done = run_snakemake(options, study, folder, self.lock, target="trials")
                failed = failures(study, folder)
                if failed and len(failed) < study.n_runs:
                    done = run_snakemake(
                        options, study, folder, self.lock, partial=True, target="trials"
                    )
        except SnakemakeKilledError as error:
            raise SystemExit(f"\n{killed(study, folder, error.args[0])}") from None
        broken = {p: why for p, why in failed.items() if not why.startswith("DivergedError:")}
        for place, why in broken.items():
            print(f"\nFAILED {place.name}: {why}")
        if broken or not (done or failed):
            raise SystemExit("tuning not finished; the same command goes on with it")
        return {
            arm: [[self.error(study, folder, arm, own, seed) for seed in seeds] for own in mine]
            for arm, mine in trials.items()
        }

    def error(
        self, study: Study, folder: Path, arm: str, values: Mapping[str, Any], seed: int
    ) -> float:
        """The validation error of one trial in percent; infinite if its training diverged."""
        named = {name: self.arms[arm][name] for name in self.tuning.by}
        wanted = {**values, **named, "seed": seed}
        run = next(run for run in study.runs["accuracy"] if _has(run, wanted))
        place = folder / "runs/accuracy" / run.name
        if not (place / "record.json").exists():
            return math.inf
        record = read_object(place / "record.json")
        if not self.images:
            fingerprint = record["data_fingerprint"]
            self.images = {"name": record["dataset"], "fingerprint": fingerprint}
        return float(record[self.tuning.judged(arm)])


def _has(run: Run, wanted: Mapping[str, Any]) -> bool:
    own = run.parameters
    return all(key in own and json.dumps(own[key]) == json.dumps(v) for key, v in wanted.items())


def _plain(error: float) -> float | str:
    return round(error, 6) if math.isfinite(error) else "diverged"


if __name__ == "__main__":
    start(main, "tuning")
