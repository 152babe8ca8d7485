"""Run a study from its YAML file to its tables: check, train, collect, and say what came out."""

import argparse
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from study import ROOT, Study, load_study

from rapa_lib._files import writable_folder
from rapa_lib.accuracy import AccuracyRun


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("config", type=Path, help="the study's YAML file")
    arguments.add_argument("--data", help="a data set's name or folder, instead of the configured")
    arguments.add_argument("--results", type=Path, default=Path("results"))
    arguments.add_argument("--cores", type=int, default=os.cpu_count())
    options = arguments.parse_args()
    os.chdir(ROOT)
    try:
        study = load_study(options.config, options.data)
        folder = writable_folder("results", options.results / study.name)
        check_runs(study)
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"study not started: {error}") from error
    with sole_user(folder) as lock:
        run_snakemake("runs", options, folder, lock)
        failed = failures(study, folder)
        if len(failed) < len(study.accuracy):
            run_snakemake("tables", options, folder, lock, partial=bool(failed), must=True)
    report(study, folder, failed)
    sys.exit(1 if failed else 0)


def check_runs(study: Study) -> None:
    """Raise before any training what a run would raise: its parameters, its data, its network."""
    data = {}
    for run in study.accuracy:
        accuracy = AccuracyRun(**run.parameters)
        source = (
            accuracy.dataset, accuracy.data_root, accuracy.image_size, accuracy.n_train,
            accuracy.n_test,
        )  # fmt: skip
        if source not in data:
            data[source] = accuracy.load_data()
        accuracy.check(data[source])


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


def run_snakemake(target, options, folder, lock, *, partial=False, must=False) -> None:
    """Bring a target of the Snakefile up to date, going on past runs that fail."""
    settings = {"results": str(options.results), "partial": partial}
    if options.data is not None:
        settings["data"] = options.data
    command = [
        sys.executable, "-m", "snakemake", target,
        "--snakefile", "workflow/Snakefile",
        "--configfile", str(options.config),
        "--cores", str(options.cores),
        "--config", *(f"{key}={json.dumps(value)}" for key, value in settings.items()),
        "--keep-going", "--rerun-incomplete",
        "--rerun-triggers", "mtime", "params", "input",
        "--nolock",  # ours is let go of when its holder is killed
        "--quiet", "rules", "host", "reason",
    ]  # fmt: skip
    done = subprocess.run(command, pass_fds=[lock], check=False)
    if must and done.returncode:
        raise SystemExit(f"study: collecting the tables of {folder} failed; see above")


def failures(study: Study, folder: Path) -> dict[Path, str]:
    """The folders of runs without a record, with their errors."""
    failed = {}
    for run in study.accuracy:
        place = folder / "runs/accuracy" / run.name
        if (place / "record.json").exists():
            continue
        try:
            failed[place] = json.loads((place / "error.json").read_text())["error"]
        except (OSError, ValueError, KeyError):
            failed[place] = "it left no error; see its log.txt"
    return failed


def report(study: Study, folder: Path, failed: dict[Path, str]) -> None:
    n_runs = len(study.accuracy)
    if len(failed) < n_runs:
        print(f"\n{study.name}: {n_runs - len(failed)} of {n_runs} runs are in")
        for label, name in {
            "table": "accuracy.csv", "figure": "accuracy.png", "curves": "accuracy_curves.png",
            "summary": "accuracy.md",
        }.items():  # fmt: skip
            print(f"  {label:8} {folder / name}")
    for place, error in failed.items():
        print(f"\nFAILED {place.name}: {error}")
        print(f"  notebook {place / 'failed.ipynb'}")


if __name__ == "__main__":
    main()
