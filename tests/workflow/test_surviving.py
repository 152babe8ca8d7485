"""A study survives kills, damaged files, and runs that fail or break their limits."""

import json
import logging
import re
import shutil
import sys
from types import SimpleNamespace

import nbformat
import pytest
import torch
from study import Limits, Study, load_study
from whole import is_whole, remove_damaged
from workflow_house import (
    COLLECT,
    command,
    execute,
    mock_report,
    survive_kills,
    tables,
    write_yaml,
)

from rapa_lib.experiments._progress import Progress
from rapa_lib.training import load_checkpoint, save_checkpoint

KINDS = ["record.json", "curve.json", "similarity.json", "network.pt", "accuracy.ipynb"]


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- Kills ------------------------------------------------------------------------------------


def test_a_study_killed_at_four_moments_ends_with_the_tables_of_an_undisturbed_one(
    house, smoke, tmp_path
):  # at ten: make test-shell
    kernels = survive_kills(house, smoke, tmp_path, 4)
    assert sum(map(bool, kernels)) >= 2, f"kernels at each kill: {kernels}"


# --- Damaged files ----------------------------------------------------------------------------


@pytest.fixture
def copied(smoke, tmp_path):
    """A copy of the finished smoke study."""
    shutil.copytree(smoke.folder, tmp_path / "smoke")
    return tmp_path / "smoke"


@pytest.mark.parametrize("name", KINDS)
def test_half_a_file_is_removed_and_no_other(smoke, copied, name):
    path = copied / smoke.runs[0].relative_to(smoke.folder) / name
    before = {path for path in copied.rglob("*") if path.is_file()}
    assert remove_damaged(smoke.study, copied) == []
    halve(path)
    assert remove_damaged(smoke.study, copied) == [path]
    assert before - {path for path in copied.rglob("*") if path.is_file()} == {path}


@pytest.mark.parametrize("name", KINDS)
def test_empty_files_and_files_of_zeros_are_not_whole(smoke, tmp_path, name):
    for content in (b"", bytes((smoke.runs[0] / name).stat().st_size), b"\xff{}", b"[]"):
        (tmp_path / name).write_bytes(content)
        assert not is_whole(tmp_path / name)


def test_a_network_with_one_wrong_byte_is_not_whole(smoke, tmp_path):
    content = bytearray((smoke.runs[0] / "network.pt").read_bytes())
    path = tmp_path / "network.pt"
    path.write_bytes(content)
    assert is_whole(path)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not is_whole(path)


def test_damaged_runs_and_what_follows_from_them_are_done_again(house, smoke, copied):
    (follower,) = smoke.study.runs["filter_similarity"]
    (acceleration,) = smoke.study.runs["acceleration"]
    damaged = [
        copied / "runs/accuracy" / follower.network / "network.pt",
        copied / "runs/acceleration" / acceleration.name / "record.json",
    ]
    for path in damaged:
        halve(path)
    untouched = next((copied / "runs/analog_training").iterdir()) / "record.json"
    redone = copied / "runs/filter_similarity" / follower.name / "record.json"
    before = untouched.stat().st_mtime_ns, redone.stat().st_mtime_ns

    done = execute(house, *command("config/smoke.yaml", copied.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("DAMAGED")]
    assert said == [f"DAMAGED {path}: removed, its run is done again" for path in damaged]
    assert all(is_whole(path) for path in damaged)
    assert untouched.stat().st_mtime_ns == before[0]
    assert redone.stat().st_mtime_ns > before[1]
    assert tables(copied) == tables(smoke.folder)


def test_half_a_checkpoint_is_not_resumed_from(tmp_path, caplog):
    path = tmp_path / "resume.pt"
    save_checkpoint(path, {"model": {"weight": torch.ones(1000)}})
    assert load_checkpoint(path) is not None
    halve(path)
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(path) is None
    assert f"checkpoint {path} is damaged and is not used" in caplog.text


def test_half_a_resume_file_is_begun_anew(tmp_path, caplog):
    path = tmp_path / "resume.json"
    Progress(path, {"of": "this"}).add("one", [1, 2, 3])
    assert Progress(path, {"of": "this"}).done == {"one": [1, 2, 3]}
    halve(path)
    with caplog.at_level(logging.WARNING):
        kept = Progress(path, {"of": "this"})
    assert f"resume: {path} is damaged and is not used" in caplog.text
    assert kept.done == {}
    kept.add("one", [4])
    assert json.loads(path.read_text())["done"] == {"one": [4]}


# --- Limits and retries -----------------------------------------------------------------------

# In the place of the accuracy notebook's story: what a run of each seed does.
STORY = """
import os, time, zipfile
from pathlib import Path

folder = Path(output)
with (folder / "tries.txt").open("a") as tries:
    tries.write("x")
if seed == 1:
    raise RuntimeError("no")
if seed == 2:
    held = b"x" * 900_000_000
    time.sleep(600)
if seed == 3:
    time.sleep(600)
if seed == 4:
    os.kill(os.getpid(), 9)
if seed == 5 and (folder / "tries.txt").read_text() == "x":
    raise RuntimeError("only once")
if seed == 6:
    held = b"x" * 450_000_000
    time.sleep(2)
for name in ("record.json", "curve.json", "similarity.json"):
    (folder / name).write_text("{}")
zipfile.ZipFile(folder / "network.pt", "w").close()
"""
PAGE = """
from pathlib import Path

for name in ("claims.csv", "claims.md"):
    Path(output, name).touch()
"""
LIMITED = {
    "study": "limited",
    "description": "Runs that raise, hold too much, last too long, die",
    "threads": 1,
    "limits": {"minutes": 60, "memory_gb": 0.35, "retries": 1},
    "accuracy": {
        "common": {"dataset": "mnist5k", "n_train": 512, "n_test": 100},
        "grid": [{"seed": [0, 1, 2, 3, 4, 5, 6]}],
        "limits": {"minutes": 0.2},
    },
}


@pytest.fixture(scope="module")
def limited(house, tmp_path_factory):
    """The limited study, run once; its folder, its runs' by seed, and what it said."""
    place = tmp_path_factory.mktemp("limited")
    shutil.copytree(house, place / "house", ignore=shutil.ignore_patterns(".snakemake"))
    path = place / "house/notebooks/accuracy.ipynb"
    notebook = nbformat.read(path, 4)
    (given,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    notebook.cells = [given, nbformat.v4.new_code_cell(STORY)]
    nbformat.write(notebook, path)
    (place / "house/workflow/scripts/collect.py").write_text(COLLECT)
    mock_report(place / "house")
    path = place / "house/notebooks/report.ipynb"
    notebook = nbformat.read(path, 4)
    (given,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    notebook.cells = [given, nbformat.v4.new_code_cell(PAGE)]
    nbformat.write(notebook, path)
    config = write_yaml(place / "limited.yaml", LIMITED)
    done = execute(place / "house", *command(config, place, "--cores", "2"))
    runs = [place / "limited/runs/accuracy" / r.name for r in load_study(config).runs["accuracy"]]
    return SimpleNamespace(done=done, folder=place / "limited", runs=runs)


def test_what_breaks_its_limits_is_named_after_its_attempts_and_the_rest_completes(limited):
    assert limited.done.returncode == 1
    assert "limited: 3 of 7 runs are in" in limited.done.stdout
    said = dict(re.findall(r"FAILED accuracy (\S+): (.*)", limited.done.stdout))
    reasons = {
        1: r"RuntimeError: no",
        2: r"used 0\.\d+ GB, limit 0\.7 GB",  # twice that of the first attempt
        3: r"ran past its limit of 0\.2 min",
        4: r"the kernel died, perhaps out of memory",
    }
    assert set(said) == {limited.runs[seed].name for seed in reasons}
    for seed, reason in reasons.items():
        assert re.fullmatch(f"{reason}, after 2 attempts", said[limited.runs[seed].name])
        told = json.loads((limited.runs[seed] / "error.json").read_text())
        assert told["attempts"] == 2
        assert (limited.runs[seed] / "failed.ipynb").exists()
    arguments = (limited.folder / "accuracy.md").read_text()
    assert arguments.endswith(" --missing 4")
    collected = [seed for seed, run in enumerate(limited.runs) if run.name in arguments]
    assert collected == [0, 5, 6]


def test_runs_are_tried_again_as_often_as_configured(limited):
    tries = [len((run / "tries.txt").read_text()) for run in limited.runs]
    # The last one ran out of memory once; its retry had more.
    assert tries == [1, 2, 2, 2, 2, 2, 2]
    assert not (limited.runs[6] / "error.json").exists()


def test_limits_are_the_studys_replaced_by_the_experiments_and_change_no_name():
    study = Study.of(LIMITED)
    assert study.limits["accuracy"] == Limits(minutes=0.2, memory_gb=0.35, retries=1)
    bare = json.loads(json.dumps(LIMITED))
    del bare["limits"], bare["accuracy"]["limits"]
    assert Study.of(bare).limits["accuracy"] == Limits(None, None, 0)
    assert Study.of(bare).runs == study.runs


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"hours": 1}, ["'hours'", "allowed keys: minutes, memory_gb, retries"]),
        ({"minutes": 0}, ["$.limits.minutes", "0 is less than or equal to the minimum of 0"]),
        ({"memory_gb": float("nan")}, ["memory_gb: got nan, allowed: above 0"]),
        ({"memory_gb": float("inf")}, ["$.limits.memory_gb", "inf is greater than the maximum"]),
        ({"memory_gb": "8"}, ["$.limits.memory_gb", "'8' is not of type 'number'"]),
        ({"retries": -1}, ["$.limits.retries", "-1 is less than the minimum of 0"]),
        ({"retries": 0.5}, ["$.limits.retries", "0.5 is not of type 'integer'"]),
    ],
)
def test_bad_limits_are_refused(limits, words):
    with pytest.raises(ValueError, match=r"^study: ") as caught:
        Study.of(LIMITED | {"limits": limits})
    for word in words:
        assert word in str(caught.value)


def test_snakemake_is_told_what_a_run_takes(house, tmp_path):
    own = {"minutes": 90.5, "memory_gb": 2.5}
    config = LIMITED | {"accuracy": LIMITED["accuracy"] | {"limits": own}}
    path = write_yaml(tmp_path / "limited.yaml", config)
    done = execute(
        house, sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1",
        "--snakefile", "workflow/Snakefile", "--configfile", path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # More than the run's own limits, at which it stops itself and says so.
    assert "mem_mb=4500" in done.stdout
    assert "runtime=106" in done.stdout
