"""Run a study from its YAML file to its tables: check, train, collect, and say what came out."""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import yaml
from progress import shown
from study import ROOT, TABLES, Study, load_study
from whole import remove_damaged

from rapa_lib._checks import check_int
from rapa_lib._files import writable_folder
from rapa_lib.experiments.acceleration.experiment import AccelerationRun
from rapa_lib.experiments.accuracy.experiment import AccuracyRun, choose_device
from rapa_lib.experiments.adversarial_robustness.experiment import RobustnessRun
from rapa_lib.experiments.analog_training.experiment import AnalogTraining
from rapa_lib.experiments.claims import read_claims
from rapa_lib.experiments.fault_tolerance.experiment import FaultSweep
from rapa_lib.experiments.filter_similarity.experiment import FilterSimilarityRun

# What the parameters of every further experiment must make.
FURTHER = {
    "filter_similarity": FilterSimilarityRun,
    "fault_tolerance": FaultSweep,
    "adversarial_robustness": RobustnessRun,
    "analog_training": AnalogTraining,
    "acceleration": AccelerationRun,
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("config", type=absolute, help="the study's YAML file")
    arguments.add_argument("--data", help="a data set's name or folder, instead of the configured")
    arguments.add_argument("--name", help="of the study and its folder, instead of the file's")
    arguments.add_argument("--results", type=absolute, default=Path("results"))
    arguments.add_argument("--profile", default="local", help="where it runs: one of profiles/")
    arguments.add_argument("--cores", type=int, help="of this machine, all if not given")
    options = arguments.parse_args()
    os.chdir(ROOT)
    try:
        check_place(options)
        study = load_study(options.config, options.data, options.name)
        check_runs(study)
        read_claims(yaml.safe_load(Path(study.claims).read_text()))
        folder = writable_folder("results", options.results / study.name)
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"study not started: {error}") from error
    with sole_user(folder) as lock:
        for path in remove_damaged(study, folder):
            print(f"DAMAGED {path}: removed, its run is done again", flush=True)
        at_once = max(1, options.cores // study.threads) if options.cores else None
        with shown(study, folder, at_once):
            collected = run_snakemake(options, study, folder, lock)
            failed = failures(study, folder)
            if failed and any((folder / "runs/accuracy").glob("*/record.json")):
                collected = run_snakemake(options, study, folder, lock, partial=True)
    report(study, folder, failed, collected)
    sys.exit(0 if collected and not failed else 1)


def absolute(path: str) -> Path:
    return Path(path).absolute()


def check_place(options: argparse.Namespace) -> None:
    """Raise for a profile that is not there, and for cores where jobs run elsewhere."""
    profiles = {path.parent.name: path for path in (ROOT / "profiles").glob("*/config.yaml")}
    if options.profile not in profiles:
        known = ", ".join(sorted(profiles))
        raise ValueError(f"profile: got {options.profile!r}, allowed: {known}")
    if yaml.safe_load(profiles[options.profile].read_text())["executor"] == "local":
        if options.cores is None:
            options.cores = os.cpu_count()
        check_int("cores", options.cores, low=1)
    elif options.cores is not None:
        raise ValueError(
            f"cores: got {options.cores}, but they are of this machine and profile "
            f"{options.profile} runs elsewhere; the study's threads and the profile's jobs count"
        )


def check_runs(study: Study) -> None:
    """Raise before any training what a run would raise: its parameters, its data, its network."""
    data, trained = {}, {}
    for run in study.runs["accuracy"]:
        accuracy = AccuracyRun(**run.parameters)
        source = (
            accuracy.dataset, accuracy.data_root, accuracy.image_size, accuracy.n_train,
            accuracy.n_test,
        )  # fmt: skip
        if source not in data:
            data[source] = accuracy.load_data()
        accuracy.check(data[source])
        trained[run.name] = accuracy, data[source]
    for experiment, measurement in FURTHER.items():
        known = [field.name for field in fields(measurement)]
        for run in study.runs.get(experiment, []):
            given = {k: v for k, v in run.parameters.items() if k not in ("threads", "device")}
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(
                    f"study: {experiment}: {', '.join(unknown)} is for a network of the "
                    f"notebook's own; a study can set {', '.join(known)}, device"
                )
            choose_device(run.parameters.get("device", "auto"))
            made = measurement(**given)
            if run.network:
                accuracy, images = trained[run.network]
                made.check(accuracy.build_network(images, "meta"), images)
            elif hasattr(made, "load_data"):  # it trains networks of its own
                made.check(made.load_data())


@contextmanager
def sole_user(folder: Path) -> Iterator[int]:
    """Hold the study's folder; the system lets go of it when we and all we started are gone."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                f"study not started: another one is running in {folder}; wait for it to end"
            ) from None
        yield lock.fileno()


def run_snakemake(
    options: argparse.Namespace,
    study: Study,
    folder: Path,
    lock: int,
    *,
    partial: bool = False,
) -> bool:
    """Bring a study's tables up to date, going on past runs that fail; False if one did."""
    settings = {
        "study": study.name, "results": str(options.results), "data": options.data,
        "partial": partial,
    }  # fmt: skip
    # In a file: Snakemake would guess the types of settings on its command line. In the study's
    # folder: the Snakemake of a job reads it too, maybe on another machine.
    for stale in folder.glob(".settings-*"):  # of one that was killed
        stale.unlink()
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".settings-", suffix=".json") as file:
        json.dump(settings, file)
        file.flush()
        command = [
            sys.executable, "-m", "snakemake", "tables",
            "--snakefile", "workflow/Snakefile",
            "--configfile", str(options.config), file.name,
            "--profile", f"profiles/{options.profile}",
            *(["--cores", str(options.cores)] if options.cores else []),
            "--rerun-incomplete",
            "--rerun-triggers", "mtime", "params", "input",
            "--nolock",  # ours is let go of when its holder is killed
            "--quiet", "rules", "host", "reason",
        ]  # fmt: skip
        return subprocess.run(command, pass_fds=[lock], check=False).returncode == 0


def failures(study: Study, folder: Path) -> dict[Path, str]:
    """The folders of runs without a record, with their errors."""
    failed = {}
    for experiment, runs in study.runs.items():
        for run in runs:
            place = folder / "runs" / experiment / run.name
            if (place / "record.json").exists():
                continue
            needed = [run.network, *run.copies] if run.network else []
            networks = {name: folder / "runs/accuracy" / name / "network.pt" for name in needed}
            if missing := [name for name, path in networks.items() if not path.exists()]:
                failed[place] = f"there is no network: accuracy run {missing[0]} failed"
                continue
            try:
                told = json.loads((place / "error.json").read_text())
                failed[place] = told["error"] + after(told["attempts"])
            except (OSError, ValueError, KeyError, TypeError):
                failed[place] = "it left no error; see its log.txt"
    return failed


def after(attempts: int) -> str:
    return f", after {attempts} attempts" if attempts > 1 else ""


def report(study: Study, folder: Path, failed: dict[Path, str], collected: bool) -> None:
    if collected:
        print(f"\n{study.name}: {study.n_runs - len(failed)} of {study.n_runs} runs are in")
        for experiment, runs in study.runs.items():
            pages = [folder / name for name in TABLES[experiment] if name.endswith(".md")]
            if any(folder / "runs" / experiment / run.name not in failed for run in runs):
                print(f"  {experiment:18} {', '.join(map(str, pages))}")
        if (folder / "report.html").exists():
            print(f"  {'report':18} {folder / 'report.html'}")
    elif len(failed) < study.n_runs:
        print(f"\nFAILED to collect the tables of {folder}; see above")
    for place, error in failed.items():
        print(f"\nFAILED {place.parent.name} {place.name}: {error}")
        notebook, log = place / "failed.ipynb", place / "log.txt"
        if notebook.exists() or log.exists():
            print(f"  notebook {notebook}" if notebook.exists() else f"  log      {log}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstudy interrupted; the same command goes on with it")
