"""Why a study did not come to its end: of each run, of its report, of Snakemake itself."""

import fcntl
import json
import os
import shutil
import signal
import time
from pathlib import Path

from study import Run, Study

FULL_BYTES = 2**20
"""A disk with less room than this is full."""


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
        log = last_line(place / "log.txt")
        said = f"; its log ends: {log}" if log else "; see its log.txt"
        return f"it left no error{said}{full_disk(folder)}"


def after(attempts: int) -> str:
    """After how many attempts, if there were several."""
    return f", after {attempts} attempts" if attempts > 1 else ""


def last_line(log: Path) -> str:
    """The last line of a log that says something; empty where there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:300] if said else ""


def full_disk(folder: Path) -> str:
    """Words on a disk without room, to put after a reason; empty where there is some."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f" (no space is left on the disk of {folder})" if free < FULL_BYTES else ""


def why_no_report(folder: Path) -> str:
    """Why a study has tables and no report, in lines; empty if the report did not fail."""
    place = folder / "runs/report"
    failed, log = place / "failed.ipynb", place / "log.txt"
    try:
        error = json.loads((place / "error.json").read_text(encoding="utf-8"))["error"]
    except (OSError, ValueError, KeyError, TypeError):
        if not log.exists() or (folder / "report.html").exists():
            return ""
        error = last_line(log) or "it left no error"
    where = f"notebook {failed}" if failed.exists() else f"log      {log}"
    return f"FAILED report: {error}{full_disk(folder)}\n  {where}"


def going_on(study: Study, folder: Path) -> list[str]:
    """The runs that are at work although what started them is gone: their locks are held."""
    at_work = []
    for kind, runs in study.runs.items():
        for run in runs:
            lock = folder / "runs" / kind / run.name / ".lock"
            if lock.exists() and _is_held(lock):
                at_work.append(f"{kind} {run.name}")
    return at_work


def _is_held(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def killed(study: Study, folder: Path, number: int, patience: float = 5.0) -> str:
    """What is said when a signal ended Snakemake alone.

    Args:
        study: that was at work.
        folder: its results.
        number: of the signal.
        patience: seconds that runs which end with the kernels have to be gone.
    """
    name = signal.Signals(number).name
    said = f"study stopped: Snakemake was ended by {name}{full_disk(folder)}"
    deadline = time.monotonic() + patience
    while (at_work := going_on(study, folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if at_work:
        said += f"; {len(at_work)} of its runs go on without it ({', '.join(at_work)})"
        return f"{said}; the same command waits for them and goes on with it"
    return f"{said}, and what it had started with it; the same command goes on with it"
