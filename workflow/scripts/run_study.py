"""Run a study from its YAML file to its tables: check, train, collect, and say what came out."""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from chosen import Chosen, arms_of, chosen_hash, chosen_path, stage, tuning_hash
from nursery import nursery
from progress import shown
from study import ROOT, SET_BY_STUDY, Run, Study, read_config
from whole import remove_damaged

from rapa_lib._checks import check_int
from rapa_lib._files import writable_folder
from rapa_lib.data import DataChoice, Dataset
from rapa_lib.experiments.accuracy import Accuracy
from rapa_lib.experiments.catalogue import CATALOGUE
from rapa_lib.experiments.claims import read_claims
from rapa_lib.experiments.protocol import Experiment, experiment
from rapa_lib.experiments.provenance import code_hash, rules_hash
from rapa_lib.experiments.recipe import Recipe, choose_device
from rapa_lib.experiments.records import git_commit
from rapa_lib.experiments.trained import Trained


def main() -> None:
    options = study_arguments(__doc__).parse_args()
    os.chdir(ROOT)
    try:
        check_place(options)
        config, load = read_config(options.config, options.name), Loader()
        study = Study.of(config, options.data)
        check_tuned(study, config, options.data, load)
        check_runs(study, load)
        read_claims(yaml.safe_load(Path(study.claims).read_text(encoding="utf-8")))
        folder = writable_folder("results", options.results / study.name)
        check_fixed(study, folder)
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"study not started: {error}") from error
    with sole_user(folder) as lock:
        for path in remove_damaged(study, folder):
            print(f"DAMAGED {path}: removed, its run is done again", flush=True)
        at_once = max(1, options.cores // study.threads) if options.cores else None
        with shown(study, folder, at_once), kernels(options, study):
            collected = run_snakemake(options, study, folder, lock)
            failed = failures(study, folder)
            if failed and any((folder / "runs/accuracy").glob("*/record.json")):
                collected = run_snakemake(options, study, folder, lock, partial=True)
    report(study, folder, failed, collected)
    sys.exit(0 if collected and not failed else 1)


def study_arguments(description: str | None) -> argparse.ArgumentParser:
    """What says which study runs where."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("config", type=absolute, help="the study's YAML file")
    arguments.add_argument("--data", help="a data set's name or folder, instead of the configured")
    arguments.add_argument("--name", help="of the study and its folder, instead of the file's")
    arguments.add_argument("--results", type=absolute, default=Path("results"))
    arguments.add_argument("--profile", default="local", help="where it runs: one of profiles/")
    arguments.add_argument("--cores", type=int, help="of this machine, all if not given")
    return arguments


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


def check_runs(study: Study, load: "Loader | None" = None) -> None:
    """Raise before any training what a run would raise: its parameters, its data, its network."""
    load = load or Loader()
    planned: dict[str, Trained] = {}

    for name, runs in study.runs.items():
        needs, kind = CATALOGUE[name].needs, experiment(name)
        assert issubclass(kind, Experiment)  # the others have no runs
        for run in runs:
            settings = read_settings(kind, run)
            subject: Any = None
            if needs == "network":
                assert run.network is not None  # the study found it
                subject = planned[run.network]
            elif needs == "data":
                subject = load(settings.recipe)
            settings.check(subject)
            if isinstance(settings, Accuracy):
                recipe = settings.recipe
                planned[run.name] = Trained.planned(recipe, subject, settings.parameters())


def read_settings(kind: type[Experiment], run: Run) -> Any:
    """A run's settings; raise for parameters that are for a network of the notebook's own."""
    known = set(kind.names())
    settable = known | {"threads", "device"}
    if unknown := sorted(set(run.parameters) - settable):
        allowed = ", ".join(sorted(settable - set(SET_BY_STUDY)))
        raise ValueError(
            f"study: {kind.name}: {', '.join(unknown)} is for a network of the notebook's own; a "
            f"study can set {allowed}"
        )
    choose_device(run.parameters.get("device", "auto"))
    return kind.of(**{name: run.parameters[name] for name in run.parameters if name in known})


class Loader:
    """Loads the images of recipes: every data set once, every part of it once."""

    def __init__(self) -> None:
        self._wholes: dict[DataChoice, Dataset] = {}
        self._parts: dict[tuple[DataChoice, int | None], Dataset] = {}

    def __call__(self, recipe: Recipe) -> Dataset:
        data = recipe.data
        key = data, recipe.seed if data.drawn_by_seed else None
        if key not in self._parts:
            every = replace(data, n_train=None, n_test=None, subset="fixed", validation=None)
            if every not in self._wholes:
                self._wholes[every] = every.whole()
            self._parts[key] = data.part(self._wholes[every], recipe.seed)
        return self._parts[key]


def check_tuned(study: Study, config: dict[str, Any], data: str | None, load: "Loader") -> None:
    """Raise for a study with a tuning block whose arms were not tuned by it, on these images."""
    if study.tuning is None:
        return
    command = "make tune with the same arguments"
    if study.chosen is None:
        raise ValueError(f"tuning: there is no {chosen_path(study.name)}; {command} writes it")
    chosen = Chosen.read(Path(study.chosen))
    if missing := sorted(set(arms_of(config["accuracy"])) - set(chosen.arms)):
        raise ValueError(f"tuning: {study.chosen} has no {', '.join(missing)}; {command} tunes it")
    if chosen.tuning_sha256 != tuning_hash(config):
        raise ValueError(
            f"tuning: {study.chosen} was tuned for another grid or by another tuning block than "
            f"{study.name} has; {command} tunes it anew"
        )
    trials = {arm: study.tuning.trials_of(arm)[:1] for arm in chosen.arms}
    short = stage(config, "short", trials, [study.tuning.seed], study.tuning.short)
    run = Study.of(short, data).runs["accuracy"][0]
    images = load(read_settings(Accuracy, run).recipe)
    if images.fingerprint != chosen.images["fingerprint"]:
        raise ValueError(
            f"tuning: {study.chosen} was tuned on {chosen.images['name']} with fingerprint "
            f"{chosen.images['fingerprint'][:12]}…, but {images.name} has here "
            f"{images.fingerprint[:12]}…; give the study another name and tune it"
        )


def check_fixed(study: Study, folder: Path) -> None:
    """Raise for a study whose rules, code or tuned values are not those of its first record.

    Rules and code are fixed in confirmatory studies, tuned values in every tuned one. A time of a
    file says nothing, for a checkout sets it anew: each record has the hash of what was chosen.
    """
    now = {}
    if study.confirmatory:
        if (commit := git_commit()).endswith("-dirty"):
            raise ValueError(
                f"confirmatory: the code differs from commit {commit.removesuffix('-dirty')}; "
                "commit it before the study starts"
            )
        now = {"code_sha256": code_hash(), "rules_sha256": rules_hash(ROOT / study.claims)}
    if study.chosen is not None:
        now["chosen_sha256"] = chosen_hash(ROOT / study.chosen)
    for path in sorted((folder / "runs").glob("*/*/record.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # damaged: removed, and made again
        for name, value in now.items():
            if record.get(name) != value:
                raise ValueError(
                    f"confirmatory: {name} is {value[:12]}…, but that of {path.parent} is "
                    f"{str(record.get(name))[:12]}…; rules, code and tuned values stand before the "
                    "first record: give the study another name"
                )


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
    target: str = "tables",
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
            sys.executable, "-m", "snakemake", target,
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


def kernels(options: argparse.Namespace, study: Study) -> AbstractContextManager[None]:
    """Where kernels come from: a nursery if they are on this machine, else what each job starts."""
    here = options.cores is not None
    return nursery(study.threads) if here else nullcontext()


def failures(study: Study, folder: Path) -> dict[Path, str]:
    """The folders of runs without a record, with their errors."""
    failed = {}
    for kind, runs in study.runs.items():
        for run in runs:
            place = folder / "runs" / kind / run.name
            if not (place / "record.json").exists():
                failed[place] = why_failed(run, folder, place)
    return failed


def why_failed(run: Run, folder: Path, place: Path) -> str:
    """Why a run left no record, in one line."""
    needed = [run.network, *run.copies] if run.network else []
    for name in needed:
        if not (folder / "runs/accuracy" / name / "network.pt").exists():
            return f"there is no network: accuracy run {name} failed"
    try:
        left = json.loads((place / "error.json").read_text(encoding="utf-8"))
        return left["error"] + after(left["attempts"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it left no error; see its log.txt"


def after(attempts: int) -> str:
    """After how many attempts, if there were several."""
    return f", after {attempts} attempts" if attempts > 1 else ""


def report(study: Study, folder: Path, failed: dict[Path, str], collected: bool) -> None:
    """Print what came out, and where."""
    if collected:
        print(f"\n{study.name}: {study.n_runs - len(failed)} of {study.n_runs} runs are in")
        for name, source in study.collected.items():
            if any(folder / "runs" / source / run.name not in failed for run in study.runs[source]):
                print(f"  {name:22} {folder / name}.md")
        if (folder / "report.html").exists():
            print(f"  {'report':22} {folder / 'report.html'}")
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
