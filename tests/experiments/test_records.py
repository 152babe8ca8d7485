"""Files are whole or absent; records say what is wrong with them; intervals are Student's."""

import json
import math
import os
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from rapa_lib._files import whole_file, writable_folder
from rapa_lib.experiments import records
from rapa_lib.experiments.records import (
    PROVENANCE,
    flat_table,
    git_commit,
    nested_table,
    plain,
    provenance,
    provenance_lines,
    read_runs,
    without_provenance,
    write_json,
    write_table,
)
from rapa_lib.instruments.statistics import mean_interval


@pytest.fixture
def fresh_commit(monkeypatch):
    """Let git_commit ask git again, about no repository that a git hook has set."""
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    git_commit.cache_clear()
    yield
    git_commit.cache_clear()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- Files ------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_whole_and_not_before(tmp_path):
    path = tmp_path / "table.csv"
    with whole_file(path) as part:
        assert (part.parent, part.suffix) == (tmp_path, ".csv")
        part.write_text("half")
        assert not path.exists()
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_midway_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write():
        with whole_file(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_the_data_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    path, synced = tmp_path / "table.csv", []

    def fsync(descriptor):
        synced.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_file(path) as part:
        part.write_text("whole")
    assert synced[0] == (5, False)


def test_a_failing_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fsync(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)

    def write():
        with whole_file(path) as part:
            part.write_text("new")

    with pytest.raises(OSError, match="No space"):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_nothing_written_is_an_error_and_no_file(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(str(tmp_path / "table.csv")):
        pass
    assert names(tmp_path) == []


def test_writable_folder_is_made_and_left_empty(tmp_path):
    folder = writable_folder("output", str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert folder.is_dir()
    assert names(folder) == []
    assert writable_folder("output", folder) == folder


def test_writable_folder_touches_no_file_that_is_there(tmp_path):
    """Whatever the probe is called, it must not be a name that a user might give."""
    (tmp_path / "writable").write_text("precious")
    writable_folder("output", tmp_path)
    assert names(tmp_path) == ["writable"]
    assert (tmp_path / "writable").read_text() == "precious"


@pytest.mark.parametrize("below", [(), ("sub",), ("sub", "folder")], ids=str)
def test_a_folder_that_cannot_be_written_is_named(tmp_path, below):
    (tmp_path / "file").write_text("no folder")
    folder = tmp_path.joinpath("file", *below)
    with pytest.raises(ValueError, match=f"^output: cannot write to {folder}: "):
        writable_folder("output", folder)
    assert names(tmp_path) == ["file"]


def test_a_folder_that_refuses_files_is_named(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", fsync)  # root is not stopped by permissions
    with pytest.raises(ValueError, match=f"^output: cannot write to {tmp_path}: .*Read-only"):
        writable_folder("output", tmp_path)
    assert names(tmp_path) == []


# --- Records ----------------------------------------------------------------------------------


def write_runs(folder, rows):
    folders = []
    for i, row in enumerate(rows):
        folders.append(folder / str(i))
        folders[-1].mkdir()
        write_json(folders[-1] / "record.json", row)
    return folders


ROWS = [
    {"tiling": "random", "seed": 1, "error": 3.5, "config": {"a": [1, 2]}, "tiles": [4, 1]},
    {"tiling": "image", "seed": 1, "error": 2.0, "config": {"a": [3]}, "tiles": []},
    {"tiling": "random", "seed": 0, "error": 1.25, "config": {}, "tiles": [1]},
]


def test_records_make_a_table_of_what_was_written(tmp_path):
    table = flat_table(read_runs(write_runs(tmp_path, ROWS)))
    assert table[["tiling", "seed", "error"]].to_dict("list") == {
        "tiling": ["random", "image", "random"],
        "seed": [1, 1, 0],
        "error": [3.5, 2.0, 1.25],
    }
    assert list(table.index) == [0, 1, 2]
    assert list(table.columns) == [*ROWS[0], "run"]
    assert table["run"].tolist() == ["0", "1", "2"]
    assert [json.loads(text) for text in table["config"]] == [{"a": [1, 2]}, {"a": [3]}, {}]
    assert [json.loads(text) for text in table["tiles"]] == [[4, 1], [], [1]]


def test_entries_can_be_left_out(tmp_path):
    table = flat_table(read_runs(write_runs(tmp_path, ROWS)), without=iter(["config", "tiles"]))
    assert list(table.columns) == ["tiling", "seed", "error", "run"]


def test_folders_may_be_texts_and_come_once(tmp_path):
    folders = write_runs(tmp_path, ROWS)
    assert read_runs(map(str, folders)) == read_runs(iter(folders))
    assert [record["run"] for record in read_runs(folders[::-1])] == ["2", "1", "0"]


def test_json_files_beside_a_record_come_with_it(tmp_path):
    folders = write_runs(tmp_path, ROWS[:2])
    for i, folder in enumerate(folders):
        write_json(folder / "curve.json", {"history": [i]})
        (folder / "network.pt").write_bytes(b"no JSON")
    records = read_runs(folders, iter(["curve.json", "network.pt"]))
    assert [record["curve"] for record in records] == [{"history": [0]}, {"history": [1]}]
    assert "network" not in records[0]


@pytest.mark.parametrize("text", [None, "", "[1]"])
def test_a_damaged_or_missing_file_beside_a_record_is_named(tmp_path, text):
    (folder,) = write_runs(tmp_path, ROWS[:1])
    if text is not None:
        (folder / "curve.json").write_text(text)
    with pytest.raises(ValueError, match=r"^record: cannot read .*0/curve\.json: "):
        read_runs([folder], ["curve.json"])


def test_a_table_survives_its_file(tmp_path):
    table = flat_table(read_runs(write_runs(tmp_path, ROWS)))
    write_table(tmp_path / "table.csv", table)
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "table.csv", dtype={"run": str}), table, check_dtype=False,
        check_exact=True,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", '{"tiling": "im', "\udcff", "[1]", "3", "null"], ids=repr)
@pytest.mark.parametrize("place", [0, 2])
def test_a_damaged_record_is_named(tmp_path, text, place):
    folders = write_runs(tmp_path, ROWS)
    (folders[place] / "record.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"^record: .*/{place}/record\.json"):
        read_runs(folders)


def test_a_missing_record_is_named(tmp_path):
    folders = [*write_runs(tmp_path, ROWS), tmp_path / "3"]
    with pytest.raises(ValueError, match=r"^record: cannot read .*/3/record\.json: "):
        read_runs(folders)


def test_differing_keys_are_named(tmp_path):
    other = {**ROWS[0], "extra": 1}
    del other["error"]
    folders = write_runs(tmp_path, [*ROWS, other])
    with pytest.raises(ValueError, match=r"^record: 3 differs .*\['error', 'extra'\]"):
        flat_table(read_runs(folders))


@pytest.mark.parametrize("gather", [read_runs, flat_table])
def test_no_record_is_an_error(gather):
    with pytest.raises(ValueError, match=r"^records: none"):
        gather([])


def test_lists_in_records_make_rows_with_the_record_s_labels():
    records = [
        {"run": "a", "config": {"x": 1}, "rows": [{"layer": 1, "r": 2.0}, {"layer": 2, "r": 3.0}]},
        {"run": "b", "config": {}, "rows": []},
        {"run": "c", "config": {}, "rows": [{"layer": 1, "r": 4.0}]},
    ]
    table = nested_table(records, "rows", iter(["run", "config"]))
    assert table.to_dict("list") == {
        "run": ["a", "a", "c"],
        "config": ['{"x": 1}', '{"x": 1}', "{}"],
        "layer": [1, 2, 1],
        "r": [2.0, 3.0, 4.0],
    }
    empty = nested_table(records[1:2], "rows", ["run"])
    assert (len(empty), list(empty)) == (0, ["run"])


def test_plain_values_are_what_json_gives_back():
    value = {
        1: (1, 2.5, math.nan),
        "t": pd.DataFrame({"a": [1, 2], "b": [math.inf, None], "c": ["x", None]}),
        "deep": [{"x": (True, None, "text")}],
    }
    found = plain(value)
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found == {
        "1": [1, 2.5, None],
        "t": [{"a": 1, "b": None, "c": "x"}, {"a": 2, "b": None, "c": None}],
        "deep": [{"x": [True, None, "text"]}],
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("nested", [False, True])
def test_json_refuses_what_is_no_number(tmp_path, value, nested):
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": [{"b": value}] if nested else value})
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["record.json"]


def test_json_keeps_every_digit_and_letter(tmp_path):
    content = {"name": "CIFAR-10 (16×16, “own”)", "x": 0.1 + 0.2, "n": 2**60, "none": None}
    write_json(tmp_path / "record.json", content)
    assert json.loads((tmp_path / "record.json").read_text()) == content
    assert read_runs([tmp_path]) == [content | {"run": tmp_path.name}]


# --- Provenance -------------------------------------------------------------------------------


def test_provenance_says_what_computed():
    found = provenance(torch.device("cpu"))
    assert found["torch_version"] == torch.__version__
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["git_commit"] == git_commit()
    json.dumps(found)


def test_a_page_says_where_its_numbers_come_from():
    records = [
        provenance(torch.device("cpu")) | {"git_commit": commit, "threads": 1} for commit in "aba"
    ]
    lines = provenance_lines(records)
    assert lines[0] == "- Code: a, b"
    assert f"- PyTorch: {torch.__version__}" in lines
    assert "- Threads per run: 1" in lines
    assert len(lines) == len(PROVENANCE) - 1  # these have no data
    answer = "# A page\n\n- Coded answers stay.\n"
    assert without_provenance(answer + "\n".join(lines)) == answer


IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")


def repository(folder, *files):
    """Make a repository that holds this package's file, and whatever else is asked for."""
    (folder / "rapa_lib/experiments").mkdir(parents=True)
    (folder / "rapa_lib/experiments/records.py").write_text("code")
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, *IDENTITY, "commit", "-q", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


def git(folder, *arguments):
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_of_this_checkout(fresh_commit):
    commit = git_commit()
    root = records.Path(records.__file__).parents[2]
    if not (root / ".git").exists():
        assert commit == "unknown"
    else:
        assert commit.removesuffix("-dirty") == git(root, "rev-parse", "HEAD")
        assert len(commit.removesuffix("-dirty")) == 40


def test_the_commit_is_dirty_where_code_differs_and_only_there(tmp_path, monkeypatch, fresh_commit):
    head = repository(tmp_path, "notebooks/a.ipynb", "results/table.csv", "README.md")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "rapa_lib/experiments/records.py"))
    seen = {}
    changes = ("nothing", "results/table.csv", "README.md", "notebooks/a.ipynb")
    for change in changes:
        if change != "nothing":
            (tmp_path / change).write_text("changed")
        git_commit.cache_clear()
        seen[change] = git_commit()
    assert seen == dict.fromkeys(changes, head) | {"notebooks/a.ipynb": f"{head}-dirty"}


def test_outside_a_checkout_the_commit_is_unknown(tmp_path, monkeypatch, fresh_commit):
    (tmp_path / "rapa_lib").mkdir()
    monkeypatch.setattr(records, "__file__", str(tmp_path / "rapa_lib/experiments/records.py"))
    assert git_commit() == "unknown"


def test_without_git_the_commit_is_unknown(monkeypatch, fresh_commit):
    monkeypatch.setenv("PATH", "")
    assert git_commit() == "unknown"


def test_the_commit_of_a_repository_around_an_installation_is_not_ours(
    tmp_path, monkeypatch, fresh_commit
):
    """Installed into a virtual environment that lies in some other project's checkout."""
    repository(tmp_path)
    packages = tmp_path / ".venv/lib/site-packages"
    (packages / "rapa_lib").mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(packages / "rapa_lib/experiments/records.py"))
    assert git_commit() == "unknown"


# --- Intervals --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 10, 50])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_mean_interval_against_scipy(n, confidence):
    values = np.random.default_rng(n).normal(5, 2, n)
    mean, low, high = mean_interval(list(values), confidence)
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    expected = stats.t.interval(confidence, n - 1, values.mean(), values.std(ddof=1) / n**0.5)
    assert (low, high) == pytest.approx(expected, rel=1e-9)


def test_mean_interval_by_hand():
    # Two values a ± d: standard error d, and t(0.975, one degree of freedom) = 12.7062.
    assert mean_interval([4.0, 6.0]) == pytest.approx((5, 5 - 12.7062, 5 + 12.7062), abs=1e-4)
    assert mean_interval([3, 3, 3]) == (3, 3, 3)


def test_mean_interval_covers_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(1, 3, (400, 4))
    intervals = np.array([mean_interval(sample, 0.8) for sample in samples])
    covered = ((intervals[:, 1] < 1) & (intervals[:, 2] > 1)).mean()
    assert covered == pytest.approx(0.8, abs=4 * (0.8 * 0.2 / 400) ** 0.5)


@pytest.mark.parametrize("values", [[7.5], pd.Series([7.5], index=[3]), (7.5,)], ids=repr)
def test_one_run_has_no_interval(values):
    mean, low, high = mean_interval(values)
    assert mean == 7.5
    assert math.isnan(low)
    assert math.isnan(high)


def test_no_run_is_an_error():
    with pytest.raises(ValueError, match=r"^values: got none"):
        mean_interval([])


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 1.5, 95, math.nan])
def test_a_confidence_that_is_none_is_named(confidence):
    with pytest.raises(ValueError, match=r"^confidence: got "):
        mean_interval([1.0, 2.0], confidence)
