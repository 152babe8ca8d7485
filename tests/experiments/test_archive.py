"""What is kept of a study's runs is all that its tables need, in the same bytes each time."""

import json

import pandas as pd
import pytest

from rapa_lib.experiments.archive import (
    ARCHIVE,
    Archive,
    KeptRun,
    keep_networks,
    kept_networks,
    read_seconds,
)
from rapa_lib.experiments.runs import runs_table


@pytest.fixture
def folders(tmp_path):
    """A run of the accuracy experiment with all that it leaves, and one of another."""
    first, second = tmp_path / "runs/accuracy/a-0-1", tmp_path / "runs/acceleration/b"
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps({"seed": 0, "x": 0.1 + 0.2, "ü": None}))
        notebook = {"cells": [], "metadata": {"papermill": {"duration": 12.5}}}
        (folder / f"{folder.parent.name}.ipynb").write_text(json.dumps(notebook))
    for name in ("curve", "similarity"):
        (first / f"{name}.json").write_text(json.dumps({"name": name}))
    (first / "network.pt").write_bytes(b"weights")
    return [first, second]


def kept(folders, **changes):
    runs = tuple(map(KeptRun.of, folders))
    content = {
        "study": "mine",
        "description": "one",
        "claims": "config/claims/c.yaml",
        "runs": runs,
    } | changes
    return Archive(**content)


def test_an_archive_gives_back_what_was_put_in(folders, tmp_path):
    failed = ({"experiment": "accuracy", "run": "z", "error": "no"},)
    archive = kept(folders, failed=failed)
    archive.write(tmp_path / ARCHIVE)
    again = Archive.read(tmp_path / ARCHIVE)
    assert again == archive
    (record,) = again.records("accuracy")
    assert record["x"] == 0.1 + 0.2
    assert record["curve"] == {"name": "curve"}
    assert record["run"] == "a-0-1"
    assert again.records("tiles_accuracy") == [record]  # derived from these
    assert (again.missing("accuracy"), again.missing("acceleration")) == (1, 0)


def test_an_archive_keeps_the_rules_where_there_are_any(folders, tmp_path):
    for rules in ("", "level: 0.05\n"):
        archive = kept(folders, rules=rules)
        archive.write(tmp_path / "one.xz")
        assert Archive.read(tmp_path / "one.xz") == archive
    kept(folders, rules=3).write(tmp_path / "bad.xz")
    with pytest.raises(ValueError, match="rules: got int, expected text"):
        Archive.read(tmp_path / "bad.xz")


def test_the_same_runs_give_the_same_bytes(folders, tmp_path):
    for name in ("one", "two"):
        kept(folders).write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_restored_run_is_the_run_without_network_and_notebook(folders, tmp_path):
    first = KeptRun.of(folders[0])
    first.restore(tmp_path / "elsewhere/accuracy/a-0-1")
    again = KeptRun.of(tmp_path / "elsewhere/accuracy/a-0-1")
    assert again == first
    assert again.seconds == 12.5
    left = {path.name for path in (tmp_path / "elsewhere/accuracy/a-0-1").iterdir()}
    assert left == {"record.json", "curve.json", "similarity.json", "restored", "SHA256SUMS"}


def test_networks_are_kept_and_restored_with_their_runs(folders, tmp_path):
    results = folders[0].parents[2]
    (folders[0] / "network.pt").write_bytes(b"trained")
    kept_files = keep_networks(results)
    assert [path.name for path in kept_files] == [f"{folders[0].name}.pt"]
    (folders[0] / "network.pt").unlink()
    assert keep_networks(results) == kept_files  # a run that has none any more keeps its own
    network = kept_networks(results)[folders[0].name]
    KeptRun.of(folders[0]).restore(tmp_path / "elsewhere/accuracy/a-0-1", network)
    assert (tmp_path / "elsewhere/accuracy/a-0-1/network.pt").read_bytes() == b"trained"
    assert "network.pt" in (tmp_path / "elsewhere/accuracy/a-0-1/SHA256SUMS").read_text()


def test_a_kept_network_that_was_changed_is_named(folders):
    results = folders[0].parents[2]
    assert kept_networks(results) == {}
    (folders[0] / "network.pt").write_bytes(b"trained")
    (kept_file,) = keep_networks(results)
    kept_file.write_bytes(b"other")
    with pytest.raises(ValueError, match=f"{kept_file} is not the file that was kept"):
        kept_networks(results)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\xfd7zXZ\x00half"])
def test_a_damaged_archive_is_named(tmp_path, content):
    (tmp_path / ARCHIVE).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^archive: cannot read .*{ARCHIVE}"):
        Archive.read(tmp_path / ARCHIVE)
    with pytest.raises(ValueError, match=r"^archive: cannot read .*nowhere"):
        Archive.read(tmp_path / "nowhere")


def test_a_run_without_a_file_that_it_should_have_is_named(folders):
    (folders[0] / "curve.json").unlink()
    with pytest.raises(ValueError, match=r"curve\.json"):
        KeptRun.of(folders[0])


def test_seconds_are_unknown_where_nothing_says(tmp_path):
    assert read_seconds(tmp_path) is None


def test_the_table_of_runs_has_a_row_for_each_done_or_failed(folders):
    failed = ({"experiment": "accuracy", "run": "z", "error": "no"},)
    table = runs_table(kept(folders, failed=failed))
    assert list(table["experiment"]) == ["accuracy", "accuracy", "acceleration"]
    assert list(table["run"]) == ["a-0-1", "z", "b"]
    assert list(table["done"]) == [True, False, True]
    assert list(table["seconds"].dropna()) == [12.5, 12.5]
    assert list(table["error"]) == ["", "no", ""]
    assert pd.isna(table["git_commit"]).all()
