"""Whole studies stopped, edited or filled up on the way: minutes, so ``make test-shell``."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from study import load_study
from workflow_house import (
    COLLECT,
    ROOT,
    command,
    execute,
    kill_with_descendants,
    mock_report,
    survive_kills,
    write_yaml,
)

pytestmark = pytest.mark.shell

STUDY = {
    "study": "slow",
    "description": "Runs that wait",
    "threads": 1,
    "accuracy": {
        "common": {"dataset": "mnist5k", "n_train": 512, "n_test": 100, "epochs": 1},
        "grid": [{"seed": [0, 1]}],
    },
}

# In the place of what runs notebooks: holds its lock and waits for leave to end.
RUN = """
import fcntl, json, shutil, sys, time, zipfile
from pathlib import Path

executed, kept = Path(sys.argv[2]), json.loads({kept!r})
parameters = json.loads(sys.argv[4])
if "results" in parameters:
    for name in ("claims.csv", "claims.md"):
        Path(parameters["output"], name).touch()
    executed.touch()
    sys.exit()
folder = executed.parent
lock = (folder / ".lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)
(folder / "at_work").touch()
while not (folder.parent / "go").exists():
    time.sleep(0.05)
for name, content in kept.items():
    (folder / name).write_text(json.dumps(content))
zipfile.ZipFile(folder / "network.pt", "w").close()
executed.write_text('{{"cells": []}}')
"""


@pytest.fixture
def waiting(archive, tmp_path):
    """A house whose runs wait, and the study in it."""
    place = tmp_path / "house"
    place.mkdir()
    for folder in ("workflow", "config", "notebooks", "profiles"):
        shutil.copytree(ROOT / folder, place / folder)
    kept = next(run.files for run in archive.runs if run.experiment == "accuracy")
    runner = RUN.format(kept=json.dumps(kept))
    (place / "workflow/scripts/run_notebook.py").write_text(runner, encoding="utf-8")
    (place / "workflow/scripts/collect.py").write_text(COLLECT, encoding="utf-8")
    mock_report(place)
    config = write_yaml(tmp_path / "slow.yaml", STUDY)
    runs = [tmp_path / "slow/runs/accuracy" / r.name for r in load_study(config).runs["accuracy"]]
    start = [str(word) for word in (*command(config, tmp_path, "--cores", "2"), "--mix")]
    return place, runs, start


@pytest.fixture
def process(waiting):
    """The study, once its runs are at work; nothing of it is left behind."""
    place, runs, start = waiting
    process = subprocess.Popen(
        start, cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        try:
            deadline = time.monotonic() + 600  # whatever else the machine does
            while not all((run / "at_work").exists() for run in runs):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield process
        finally:
            kill_with_descendants(process)


def everyone(process):
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_front_process_stops_everything_that_it_started(process, number):
    children = everyone(process)
    assert len(children) >= 3
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "the same command goes on with it" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_snakemake_killed_alone_is_told_and_no_run_is_called_failed(waiting, process):
    place, runs, start = waiting
    (snakemake,) = [
        c for c in everyone(process)
        if c.ppid() == process.pid and "snakemake" in c.cmdline()
    ]  # fmt: skip
    snakemake.kill()
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    # Without the nursery that they are started in, on a cluster, they would go on.
    assert "Snakemake was ended by SIGKILL, and what it had started with it" in errors
    assert "FAILED" not in said + errors
    (runs[0].parent / "go").touch()
    done = execute(place, *start)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "slow: 2 of 2 runs are in" in done.stdout


def test_a_table_changed_by_hand_is_named_and_made_again(waiting, tmp_path):
    place, runs, start = waiting
    runs[0].parent.mkdir(parents=True)
    (runs[0].parent / "go").touch()
    assert execute(place, *start).returncode == 0
    table = tmp_path / "slow/accuracy.csv"
    before = table.read_bytes()
    table.write_bytes(before + b"0\n")
    done = execute(place, *start)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"CHANGED {table}: not as it was made; removed and made again" in done.stdout
    assert table.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_full_is_named(waiting, tmp_path):
    place, _, start = waiting
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        (Path(disk) / "filler").write_bytes(bytes(100 * 1024))
        words = [str(disk) if word == str(tmp_path) else word for word in start]
        done = execute(place, *words)
        assert done.returncode == 1
        assert f"study not started: results: cannot write to {disk / 'slow'}" in done.stderr
        assert "No space left on device" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_study_killed_at_ten_moments_ends_with_the_tables_of_an_undisturbed_one(
    house, smoke, tmp_path
):
    kernels = survive_kills(house, smoke, tmp_path, 10)
    assert sum(map(bool, kernels)) >= 4, f"kernels at each kill: {kernels}"
