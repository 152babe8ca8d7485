"""How far a study is: its runs done, running, failed and left, and about how long they take yet.

All is read from what the runs leave in the study's folder, so that it holds on whatever machine
they run. Each change is a line on the terminal, and one with its time in ``study.log``.
"""

import heapq
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from study import Study

LOG = "study.log"
LOOK_SECONDS = 2

# An experiment and the name of one of its runs.
Key = tuple[str, str]


@contextmanager
def shown(study: Study, folder: Path, at_once: int | None) -> Iterator[None]:
    """Tell the progress of a study while what runs it is at work inside; raise nothing.

    Args:
        study: which runs there are.
        folder: the study's, where ``study.log`` is continued.
        at_once: how many runs there can be at a time; None is as many as are seen running.
    """
    progress = Progress(study, folder, at_once)
    progress.tell("started")
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            progress.tell()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    how = "interrupted"
    try:
        yield
        how = "ended"
    finally:
        ended.set()
        watcher.join()
        progress.tell(how)


class Progress:
    """The progress of a study from now on; see :func:`shown` for the arguments."""

    def __init__(self, study: Study, folder: Path, at_once: int | None):
        self.study = study
        self.folder = folder
        self.at_once = at_once
        self.began = time.monotonic()
        # By the clock of the file system, which need not be ours.
        self.since = time.time()
        with suppress(OSError):
            (folder / LOG).touch()
            self.since = (folder / LOG).stat().st_mtime
        self.told: Counter | None = None
        self.seen: dict[Key, float] = {}  # since when each run was seen running
        self.read: dict[Path, tuple[float, float | None]] = {}  # notebooks' mtimes and durations

    def tell(self, event: str = "") -> None:
        """Print and log the counts if there is an event, or if they are not those last told.

        Args:
            event: "started", "ended" or "interrupted"; after the latter two nothing runs.
        """
        try:
            line = self.line(event)
        except Exception as error:  # no study shall end for the sake of its progress
            line = f"progress: not known, {type(error).__name__}: {error}" if event else None
        if line is None:
            return
        with suppress(OSError, ValueError):  # nobody reads on
            print(line, flush=True)
        with suppress(OSError), (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n")

    def line(self, event: str = "") -> str | None:
        """What :meth:`tell` tells; None where it tells nothing."""
        now = time.monotonic()
        states = read_states(self.study, self.folder, self.since)
        if event == "ended":  # what is not there by now is named as failed
            states = {key: state if state == "done" else "failed" for key, state in states.items()}
        elif event == "interrupted":
            states = {key: "left" if s == "running" else s for key, s in states.items()}
        counts = Counter(states.values())
        self.seen = {key: self.seen.get(key, now) for key, s in states.items() if s == "running"}
        if counts == self.told and not event:
            return None
        self.told = counts
        line = (
            f"progress: {counts['done']} of {len(states)} runs done, {counts['running']} running, "
            f"{counts['failed']} failed, {counts['left']} left"
        )
        if event in ("ended", "interrupted"):
            return f"{line}; {event} after {spell(now - self.began)}"
        elapsed = {key: now - first for key, first in self.seen.items()}
        at_once = self.at_once or counts["running"]
        to_go = estimate(states, self.durations(states), elapsed, at_once) if at_once else None
        return "; ".join(filter(None, [line, event, to_go]))

    def durations(self, states: dict[Key, str]) -> dict[Key, float]:
        """Seconds that done runs took, where their notebooks tell; each notebook is read once."""
        known = {}
        for (experiment, run), state in states.items():
            if state != "done":
                continue
            path = self.folder / "runs" / experiment / run / f"{experiment}.ipynb"
            written = mtime(path)
            if path not in self.read or self.read[path][0] != written:
                self.read[path] = written, read_duration(path)
            if (seconds := self.read[path][1]) is not None:
                known[experiment, run] = seconds
        return known


def read_states(study: Study, folder: Path, since: float) -> dict[Key, str]:
    """Whether each run of a study is done, running, failed or left.

    A run whose network failed has failed: it cannot begin. One that is to be tried again is left.

    Args:
        study: which runs there are.
        folder: the study's.
        since: when the study was started, in seconds since the epoch; what ran or failed before
            is left, as it is tried again.
    """
    states: dict[Key, str] = {}
    for experiment, runs in study.runs.items():
        for run in runs:
            place = folder / "runs" / experiment / run.name
            needed = [run.network, *run.copies] if run.network else []
            # In this order: a run that ends meanwhile is then seen as running or as done.
            if mtime(place / "running.ipynb") >= since:
                state = "running"
            elif is_done(place):
                state = "done"
            elif any(states["accuracy", name] == "failed" for name in needed) or (
                mtime(place / "error.json") >= since
                and read_attempts(place / "error.json") > study.limits[experiment].retries
            ):
                state = "failed"
            else:
                state = "left"
            states[experiment, run.name] = state
    return states


def is_done(folder: Path) -> bool:
    """Whether a run has its record, and its executed notebook unless it was restored."""
    ends = (folder / f"{folder.parent.name}.ipynb", folder / "restored")
    return (folder / "record.json").exists() and any(path.exists() for path in ends)


def mtime(path: Path) -> float:
    """When a file was written, in seconds since the epoch; -inf where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return -math.inf


def read_attempts(error: Path) -> float:
    """How often a run was tried; infinity where its error does not tell."""
    try:
        return int(json.loads(error.read_text(encoding="utf-8"))["attempts"])
    except Exception:  # a damaged file raises whatever its bytes happen to mean
        return math.inf


def read_duration(notebook: Path) -> float | None:
    """Seconds that an executed notebook took; None where it does not tell."""
    try:
        seconds = float(
            json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["papermill"]["duration"]
        )
    except Exception:  # as above
        return None
    return seconds if 0 <= seconds < math.inf else None


def estimate(
    states: dict[Key, str],
    durations: dict[Key, float],
    elapsed: dict[Key, float],
    at_once: int,
) -> str | None:
    """In words, how long the runs take that are running or left; None where nothing is known.

    Each is taken to last as long as the done ones of its experiment did on average, and to begin
    as soon as there is room. Where an experiment has none done, the others' time is the least.

    Args:
        states: the state of every run.
        durations: seconds that done runs took.
        elapsed: seconds since running ones began.
        at_once: how many runs there are at a time.
    """
    taken: dict[str, list[float]] = {}
    for (experiment, _), seconds in durations.items():
        taken.setdefault(experiment, []).append(seconds)
    running = [key for key, state in states.items() if state == "running"]
    to_do = running + [key for key, state in states.items() if state == "left"]
    free = [0.0] * at_once  # when there is room for a run; a heap
    for key in to_do:
        if known := taken.get(key[0]):
            seconds = max(0.0, sum(known) / len(known) - elapsed.get(key, 0.0))
            heapq.heapreplace(free, free[0] + seconds)
    if max(free) < 1:
        return None
    word = "about" if all(experiment in taken for experiment, _ in to_do) else "at least"
    return f"{word} {spell(max(free))} to go"


def spell(seconds: float) -> str:
    """A time in words: 45 s, 12 min, 1 h 10 min."""
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    parts = [f"{hours} h" if hours else "", f"{minutes} min" if minutes else ""]
    return " ".join(filter(None, parts))
