"""A study survives damaged files: what is not whole is noticed and done again."""

import json
import logging
import shutil

import pytest
import torch
from whole import is_whole, remove_damaged
from workflow_house import command, execute, rows

from rapa_lib._progress import Progress
from rapa_lib.training import load_checkpoint, save_checkpoint

KINDS = ["record.json", "curve.json", "similarity.json", "network.pt", "accuracy.ipynb"]
TIMINGS = ("train_seconds", "seconds")


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def tables(folder):
    """The collected tables by name, timings aside."""
    found = {path.name: rows(path) for path in folder.glob("*.csv")}
    for table in found.values():
        for row in table:
            for name in TIMINGS:
                row.pop(name, None)
    return found


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
