"""Run a study from its YAML file to its tables: check, train, collect, and say what came out."""

import argparse
import errno
import fcntl
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from causes import failures, full_disk, killed, why_no_report
from chosen import Chosen, arms_of, by_of, chosen_hash, chosen_path, stage, tuning_hash
from nursery import nursery
from progress import shown
from states import Place, check_unmixed
from study import ROOT, SET_BY_STUDY, Run, Study, read_config
from supervise import StoppedError, stoppable, supervised
from whole import remove_changed, remove_damaged, seal

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
from rapa_lib.experiments.yaml_files import read_yaml


def main() -> None:
    arguments = study_arguments(__doc__)
    arguments.add_argument(
        "--mix", action="store_true", help="allow several states of code or data in one table"
    )
    options = arguments.parse_args()
    os.chdir(ROOT)
    try:
        check_place(options)
        config, load = read_config(options.config, options.name), Loader()
        study = Study.of(config, options.data)
        check_devices(study, options.profile)
        check_tuned(study, config, options.data, load)
        data = check_runs(study, load)
        read_claims(read_yaml(study.claims, "claims"))
        folder = writable_folder("results", options.results / study.name)
        writable_folder("XDG_CACHE_HOME", cache_folder())
        check_fixed(study, folder)
        if not options.mix:
            check_unmixed(study, folder, data)
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"study not started: {error}") from error
    with sole_user(folder) as lock:
        for path in remove_damaged(study, folder):
            print(f"DAMAGED {path}: removed, its run is done again", flush=True)
        for path in remove_changed(folder):
            print(f"CHANGED {path}: not as it was made; removed and made again", flush=True)
        (folder / "runs/report/error.json").unlink(missing_ok=True)  # of an earlier start
        at_once = max(1, options.cores // study.threads) if options.cores else None
        try:
            with shown(study, folder, at_once), kernels(options, study):
                collected = run_snakemake(options, study, folder, lock)
                failed = failures(study, folder)
                if failed and any((folder / "runs/accuracy").glob("*/record.json")):
                    collected = run_snakemake(options, study, folder, lock, partial=True)
        except SnakemakeKilledError as error:  # whatever ends with the kernels has ended by now
            raise SystemExit(f"\n{killed(study, folder, error.args[0])}") from None
        seal(folder)
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
    if bad := sorted(set(re.findall(r"[{}<>*?\[\]\x00-\x1f]", str(options.results)))):
        raise ValueError(
            f"results: got {str(options.results)!r}, allowed: a path without {' '.join(bad)!r}, "
            "which Snakemake reads as patterns"
        )
    options.local = read_yaml(profiles[options.profile], "profile")["executor"] == "local"
    if options.local:
        if options.cores is None:
            options.cores = os.cpu_count()
        check_int("cores", options.cores, low=1)
    elif options.cores is not None:
        raise ValueError(
            f"cores: got {options.cores}, but they are of this machine and profile "
            f"{options.profile} runs elsewhere; the study's threads and the profile's jobs count"
        )


def check_devices(study: Study, profile: str) -> None:
    """Raise for shares of a GPU where there is none."""
    if study.gpu_percent and profile == "local" and not torch.cuda.is_available():
        raise ValueError(
            f"study: gpu_percent: got {study.gpu_percent}, but this machine has no usable GPU; "
            "leave it out, or take a profile whose machines have one"
        )


def cache_folder() -> Path:
    """Where Snakemake keeps what it needs again."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snakemake"
    except RuntimeError as error:
        raise ValueError(f"XDG_CACHE_HOME: not set, and there is no home: {error}") from error


def check_runs(study: Study, load: "Loader | None" = None) -> dict[Place, tuple[Recipe, Dataset]]:
    """Raise before any training what a run would raise: its parameters, its data, its network.

    Returns:
        Of each run that has data, the recipe that names them, and the data.
    """
    load = load or Loader()
    planned: dict[str, Trained] = {}
    used: dict[Place, tuple[Recipe, Dataset]] = {}

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
            if isinstance(subject, Trained):
                used[name, run.name] = subject.recipe, subject.data
            elif subject is not None:
                used[name, run.name] = settings.recipe, subject
            if isinstance(settings, Accuracy):
                recipe = settings.recipe
                planned[run.name] = Trained.planned(recipe, subject, settings.parameters())
    return used


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
                self._wholes[every] = _whole(every)
            self._parts[key] = data.part(self._wholes[every], recipe.seed)
        return self._parts[key]


def _whole(choice: DataChoice) -> Dataset:
    try:
        return choice.whole()
    except (ValueError, FileNotFoundError) as error:
        way = "a study's data: make study … DATA=<a data set's name or folder>, or --data"
        raise ValueError(f"{error} ({way})") from error


def check_tuned(study: Study, config: dict[str, Any], data: str | None, load: "Loader") -> None:
    """Raise for a study with a tuning block whose arms were not tuned by it, on these images."""
    if study.tuning is None:
        return
    command = "make tune with the same arguments"
    if study.chosen is None:
        raise ValueError(f"tuning: there is no {chosen_path(study.name)}; {command} writes it")
    chosen = Chosen.read(Path(study.chosen))
    if missing := sorted(set(arms_of(config["accuracy"], by_of(config))) - set(chosen.arms)):
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
                    f"first record: go on from its commit, {record.get('git_commit')}, or give the "
                    "study another name"
                )


class SnakemakeKilledError(Exception):
    """A signal, whose number is the argument, ended Snakemake alone."""


@contextmanager
def sole_user(folder: Path) -> Iterator[int]:
    """Hold the study's folder; the system lets go of it when we and all we started are gone."""
    with (folder / ".lock").open("w", encoding="utf-8") as lock:
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
    # The configuration as it was checked: Snakemake would read the file by rules of its own.
    settings = read_config(options.config) | {
        "study": study.name, "results": str(options.results), "data": options.data,
        "partial": partial,
    }  # fmt: skip
    # In a file: Snakemake would guess the types of settings on its command line. In the study's
    # folder: the Snakemake of a job reads it too, maybe on another machine.
    for stale in folder.glob(".settings-*"):  # of one that was killed
        stale.unlink()
    with tempfile.NamedTemporaryFile(
        "w", dir=folder, prefix=".settings-", suffix=".json", encoding="utf-8"
    ) as file:
        json.dump(settings, file)
        file.flush()
        command = [
            sys.executable, "-m", "snakemake", target,
            "--snakefile", "workflow/Snakefile",
            "--configfile", file.name,
            "--profile", f"profiles/{options.profile}",
            *(["--cores", str(options.cores)] if options.cores else []),
            "--rerun-incomplete",
            "--rerun-triggers", "mtime", "params", "input",
            "--nolock",  # ours is let go of when its holder is killed
            "--quiet", "rules", "host", "reason",
        ]  # fmt: skip
        # Whatever the locale: notebooks, tables and parameters are UTF-8.
        environment = os.environ | {"PYTHONUTF8": "1"}
        status = supervised(command, asks=not options.local, pass_fds=[lock], env=environment)
        if status < 0:
            raise SnakemakeKilledError(-status)
        return status == 0


def kernels(options: argparse.Namespace, study: Study) -> AbstractContextManager[None]:
    """Where kernels come from: a nursery if they are on this machine, else what each job starts."""
    here = options.cores is not None
    return nursery(study.threads) if here else nullcontext()


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
        if why := why_no_report(folder):
            print(f"\n{why}")
        else:
            print(f"\nFAILED to collect the tables of {folder}{full_disk(folder)}; see above")
    for place, error in failed.items():
        print(f"\nFAILED {place.parent.name} {place.name}: {error}")
        notebook, log = place / "failed.ipynb", place / "log.txt"
        if notebook.exists() or log.exists():
            print(f"  notebook {notebook}" if notebook.exists() else f"  log      {log}")


def start(run: Callable[[], None], what: str) -> None:
    """Run a study, or its tuning; what ends it from outside is told in a line.

    Args:
        run: to call.
        what: it is, in a word.
    """
    # A terminal that knows fewer letters shows others by their numbers.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with stoppable():
            run()
    except KeyboardInterrupt:
        sys.exit(f"\n{what} interrupted; the same command goes on with it")
    except StoppedError as error:
        sys.exit(
            f"\n{what} stopped by {error}, and all that it had started; the same command goes on "
            "with it"
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"\n{what} stopped: {error}; make room, the same command goes on with it")


if __name__ == "__main__":
    start(main, "study")
