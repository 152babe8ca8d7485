"""Progress: what is told of a study is what its runs have left; nothing of it stops a study."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import time
from contextlib import suppress

import progress
import pytest
from progress import LOG, Progress, estimate, read_states, shown, spell
from study import Limits, Run, Study
from workflow_house import command, kill_with_descendants

COUNTS = r"progress: (\d+) of (\d+) runs done, (\d+) running, (\d+) failed, (\d+) left"
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d "
BEFORE = 1_000_000_000  # long before any test

DAMAGED = [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"null", b"[" * 100_000, bytes(100)]


def study_of(accuracy=4, followers=0, retries=0):
    """A study of accuracy runs a0, a1, … and followers f0, f1, … of the first of them."""
    runs = {"accuracy": [Run(f"a{i}", {}) for i in range(accuracy)]}
    if followers:
        runs["filter_similarity"] = [Run(f"f{i}", {}, f"a{i}") for i in range(followers)]
    limits = dict.fromkeys(runs, Limits(retries=retries))
    return Study("made", "Made up", 1, runs, limits)


def put(folder, experiment, run, state, *, seconds=10.0, attempts=1, ago=None):
    """Leave what a run in a state leaves; as if written long ago if so wanted."""
    place = folder / "runs" / experiment / run
    place.mkdir(parents=True, exist_ok=True)
    for path in place.iterdir():
        path.unlink()
    told = {"cells": [], "metadata": {"papermill": {"duration": seconds}}}
    files = {
        "left": {"log.txt": ""},
        "running": {"log.txt": "", "running.ipynb": ""},
        "done": {"record.json": "{}", f"{experiment}.ipynb": json.dumps(told)},
        "failed": {
            "failed.ipynb": "", "error.json": json.dumps({"error": "no", "attempts": attempts}),
        },
        "ending": {"running.ipynb": "", "record.json": "{}"},
        "half": {"record.json": "{}"},
    }[state]  # fmt: skip
    for name, content in files.items():
        (place / name).write_text(content)
        if ago is not None:
            os.utime(place / name, (ago, ago))
    return place


def states(study, folder, since=BEFORE + 1):
    return {run: state for (_, run), state in read_states(study, folder, since).items()}


# --- Counting ---------------------------------------------------------------------------------


def test_every_mixture_of_states_is_counted(tmp_path):
    kinds = {"left": "left", "running": "running", "done": "done", "failed": "failed",
             "ending": "running", "half": "left", None: "left"}  # fmt: skip
    for i, mixture in enumerate(itertools.combinations_with_replacement(kinds, 3)):
        folder = tmp_path / str(i)
        for run, kind in enumerate(mixture):
            if kind:
                put(folder, "accuracy", f"a{run}", kind)
        found = read_states(study_of(3), folder, BEFORE)
        assert [found["accuracy", f"a{run}"] for run in range(3)] == [kinds[k] for k in mixture]


def test_what_ran_or_failed_before_the_start_is_left_and_what_was_done_is_done(tmp_path):
    for run, kind in enumerate(["running", "failed", "done", "ending"]):
        put(tmp_path, "accuracy", f"a{run}", kind, ago=BEFORE)
    assert list(states(study_of(4), tmp_path).values()) == ["left", "left", "done", "left"]


def test_a_run_that_is_to_be_tried_again_is_left_until_its_last_attempt(tmp_path):
    for attempts, state in ((1, "left"), (2, "left"), (3, "failed")):
        put(tmp_path, "accuracy", "a0", "failed", attempts=attempts)
        assert states(study_of(1, retries=2), tmp_path) == {"a0": state}


def test_what_follows_a_failed_run_has_failed_unless_it_is_done(tmp_path):
    study = study_of(3, followers=3)
    put(tmp_path, "accuracy", "a0", "failed")
    put(tmp_path, "accuracy", "a1", "failed")
    put(tmp_path, "filter_similarity", "f1", "done")
    assert states(study, tmp_path) == {
        "a0": "failed", "a1": "failed", "a2": "left", "f0": "failed", "f1": "done", "f2": "left",
    }  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_files_are_counted_and_raise_nothing(tmp_path, content, capsys):
    study = study_of(4)
    (put(tmp_path, "accuracy", "a0", "done") / "accuracy.ipynb").write_bytes(content)
    (put(tmp_path, "accuracy", "a1", "failed") / "error.json").write_bytes(content)
    (put(tmp_path, "accuracy", "a2", "running") / "running.ipynb").write_bytes(content)
    assert list(states(study, tmp_path).values()) == ["done", "failed", "running", "left"]
    telling = Progress(study, tmp_path, 1)
    telling.since = BEFORE
    telling.tell()
    assert capsys.readouterr().out == (
        "progress: 1 of 4 runs done, 1 running, 1 failed, 1 left\n"  # no duration, no estimate
    )


@pytest.mark.parametrize("duration", [None, "long", -1.0, float("nan"), float("inf"), 10**400, []])
def test_impossible_durations_are_none(tmp_path, duration):
    put(tmp_path, "accuracy", "a0", "done", seconds=duration)
    put(tmp_path, "accuracy", "a1", "done", seconds=7)
    telling = Progress(study_of(2), tmp_path, 1)
    found = read_states(study_of(2), tmp_path, BEFORE)
    assert telling.durations(found) == {("accuracy", "a1"): 7.0}
    # One that is run again is read again.
    again = put(tmp_path, "accuracy", "a1", "done", seconds=9) / "accuracy.ipynb"
    os.utime(again, (BEFORE, BEFORE))
    assert telling.durations(found) == {("accuracy", "a1"): 9.0}


# --- Estimating -------------------------------------------------------------------------------


def simulated(running, left, at_once):
    """Seconds until all is done, counted one by one: the slow way to know."""
    at_work, queue, clock = list(running), list(left), 0
    while True:
        at_work = [rest for rest in at_work if rest > 0]
        while queue and len(at_work) < at_once:
            at_work.append(queue.pop(0))
        if not at_work:
            return clock
        at_work = [rest - 1 for rest in at_work]
        clock += 1


@pytest.mark.parametrize("seed", range(30))
def test_the_estimate_is_that_of_a_simulation(seed):
    draw = random.Random(seed)
    at_once = draw.randint(1, 5)
    means = {experiment: 60 * draw.randint(1, 40) for experiment in ("one", "two")}
    found, durations, elapsed, running, left = {}, {}, {}, [], []
    for experiment, mean in means.items():
        for off in (-30, 30, 0):
            found[experiment, f"done{off}"] = "done"
            durations[experiment, f"done{off}"] = float(mean + off)
        for i in range(draw.randint(0, 12)):
            found[experiment, f"left{i}"] = "left"
            left.append(mean)
    for i in range(draw.randint(0, at_once)):
        experiment = draw.choice(["one", "two"])
        key = experiment, f"running{i}"
        found[key], elapsed[key] = "running", draw.randint(0, 2 * means[experiment])
        running.append(max(0, means[experiment] - elapsed[key]))
    found["one", "failed"] = "failed"
    expected = simulated(running, left, at_once)
    told = f"about {spell(expected)} to go" if expected else None
    assert estimate(found, durations, elapsed, at_once) == told


def test_where_an_experiment_has_no_run_done_the_estimate_is_the_least():
    found = {("one", "a"): "done", ("one", "b"): "left", ("two", "c"): "left"}
    took = {("one", "a"): 2400.0}
    assert estimate(found, took, {}, 1) == "at least 40 min to go"
    assert estimate(found | {("two", "c"): "failed"}, took, {}, 1) == "about 40 min to go"
    assert estimate(found | {("one", "b"): "done"}, took, {}, 1) is None
    assert estimate(found, {}, {}, 1) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (1.4, "1 s"), (45, "45 s"), (59.4, "59 s"), (59.6, "1 min"), (60, "1 min"),
        (12 * 60 + 20, "12 min"), (3599, "1 h"), (3600, "1 h"), (4200, "1 h 10 min"),
        (7170, "2 h"), (7140, "1 h 59 min"), (100 * 3600, "100 h"),
    ],
)  # fmt: skip
def test_times_are_spelled(seconds, words):
    assert spell(seconds) == words


# --- Telling ----------------------------------------------------------------------------------


def lines(folder):
    """The lines of a study's log, without their times."""
    written = (folder / LOG).read_text()
    assert written.endswith("\n")
    assert all(re.match(STAMP + "progress: ", line) for line in written.splitlines())
    return [line.partition(" ")[2] for line in written.splitlines()]


def counted(text):
    """Done, all, running, failed and left, as often as they are told."""
    return [tuple(map(int, found)) for found in re.findall(COUNTS, text)]


@pytest.fixture
def quick(monkeypatch):
    """Look often."""
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.01)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_change_is_told_once_on_the_terminal_and_in_the_log(tmp_path, quick, capsys):
    put(tmp_path, "accuracy", "a0", "done", seconds=600)
    story = [
        ("a1", "running", "1 of 3 runs done, 1 running, 0 failed, 1 left; about 10 min to go"),
        ("a1", "done", "2 of 3 runs done, 0 running, 0 failed, 1 left; about 10 min to go"),
        ("a2", "running", "2 of 3 runs done, 1 running, 0 failed, 0 left; about 10 min to go"),
        ("a2", "failed", "2 of 3 runs done, 0 running, 1 failed, 0 left"),
    ]
    with shown(study_of(3), tmp_path, 2):
        for run, state, told in story:
            put(tmp_path, "accuracy", run, state, seconds=600)
            wait_for(lambda told=told: lines(tmp_path)[-1] == f"progress: {told}")
    first, *between, last = lines(tmp_path)
    assert first == (
        "progress: 1 of 3 runs done, 0 running, 0 failed, 2 left; started; about 10 min to go"
    )
    assert re.fullmatch(re.escape(between[-1]) + r"; ended after \d+ s", last)
    assert all(line != after for line, after in itertools.pairwise(between))
    assert capsys.readouterr().out.splitlines() == lines(tmp_path)


@pytest.mark.parametrize(
    ("how", "counts"), [(None, (1, 4, 0, 3, 0)), (KeyboardInterrupt, (1, 4, 0, 1, 2))]
)
def test_what_is_not_there_has_failed_at_the_end_and_is_left_if_interrupted(tmp_path, how, counts):
    (tmp_path / LOG).write_text("an earlier study's\n")
    put(tmp_path, "accuracy", "a0", "done")
    with suppress(KeyboardInterrupt), shown(study_of(4), tmp_path, 1):
        put(tmp_path, "accuracy", "a1", "running")
        put(tmp_path, "accuracy", "a2", "failed")
        if how:
            raise how
    earlier, *_, last = (tmp_path / LOG).read_text().splitlines()
    assert earlier == "an earlier study's"
    word = "interrupted" if how else "ended"
    assert re.fullmatch(STAMP + COUNTS + rf"; {word} after \d+ s", last)
    assert counted(last) == [counts]


def test_a_study_goes_on_where_its_progress_cannot_be_told(tmp_path, quick, monkeypatch):
    def fail(*_):
        raise RuntimeError("no")

    (tmp_path / LOG).mkdir()
    with shown(study_of(1), tmp_path, 1):
        pass
    (tmp_path / LOG).rmdir()
    monkeypatch.setattr(progress, "read_states", fail)
    with shown(study_of(1), tmp_path, 1):
        time.sleep(0.1)
    assert lines(tmp_path) == ["progress: not known, RuntimeError: no"] * 2
    monkeypatch.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError))
    with shown(study_of(1), tmp_path, 1):
        pass


def test_without_a_number_at_once_it_is_that_of_the_running_ones(tmp_path, capsys):
    for run, state in enumerate(["done", "left", "left", "left", "left"]):
        put(tmp_path, "accuracy", f"a{run}", state, seconds=600)
    telling = Progress(study_of(5), tmp_path, None)
    telling.tell("started")
    put(tmp_path, "accuracy", "a1", "running")
    put(tmp_path, "accuracy", "a2", "running")
    telling.tell()
    telling.tell()
    assert capsys.readouterr().out.splitlines() == [
        "progress: 1 of 5 runs done, 0 running, 0 failed, 4 left; started",
        "progress: 1 of 5 runs done, 2 running, 0 failed, 2 left; about 20 min to go",
    ]


# --- The smoke study --------------------------------------------------------------------------


def test_the_smoke_study_tells_its_progress(smoke):
    told = counted(smoke.done.stdout)
    assert told[0] == (0, 7, 0, 0, 7)
    assert told[-1] == (7, 7, 0, 0, 0)
    for done, all_of_them, running, failed, left in told:
        assert done + running + failed + left == all_of_them == 7
        assert failed == 0
    assert [done for done, *_ in told] == sorted(done for done, *_ in told)
    assert max(running for _, _, running, *_ in told) >= 1
    said = [line for line in smoke.done.stdout.splitlines() if line.startswith("progress: ")]
    # Another test may have started the finished study again.
    assert lines(smoke.folder)[: len(said)] == said
    assert said[0].endswith("; started")
    assert re.search(r"; ended after (\d+ min|\d+ s)$", said[-1])


def test_an_interrupted_study_says_so_and_what_is_left(house, tmp_path):
    with (tmp_path / "said.txt").open("w") as said:
        study = subprocess.Popen(
            command("config/smoke.yaml", tmp_path, "--cores", "1"), cwd=house,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=said, stderr=said,
            start_new_session=True,
            # What a shell starts in the background ignores interrupts, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    try:
        log = tmp_path / "smoke" / LOG
        wait_for(lambda: log.exists() and "1 running" in log.read_text())
        os.killpg(study.pid, signal.SIGINT)  # as a terminal does
        assert study.wait(60) == 1
    finally:
        kill_with_descendants(study)
    assert (
        "study interrupted; the same command goes on with it" in (tmp_path / "said.txt").read_text()
    )
    last = lines(tmp_path / "smoke")[-1]
    assert re.fullmatch(COUNTS + r"; interrupted after \d+ s", last)
    ((done, total, running, failed, left),) = counted(last)
    assert (total, running, failed) == (7, 0, 0)
    assert done + left == 7
