"""Faults of files, disks and processes: noticed, told in a line, and made good."""

import errno
import fcntl
import json
import lzma
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import causes
import pytest
import run_notebook
import run_study
import states
import supervise
from PIL import Image
from study import Run
from whole import is_whole, remove_changed, remove_damaged, seal

from rapa_lib._files import SUMS, changed_files, writable_folder
from rapa_lib.data import load_dataset
from rapa_lib.experiments.archive import ARCHIVE, Archive
from rapa_lib.experiments.catalogue import CATALOGUE
from rapa_lib.experiments.mixing import mixed_lines, mixed_notice
from rapa_lib.experiments.protocol import experiment, write_collected
from rapa_lib.experiments.recipe import recipe_of
from rapa_lib.experiments.records import flat_table, read_runs

# --- Whole but wrong records ------------------------------------------------------------------


def put(name, place, value):
    """Put a value at a place of a run's JSON file; ``...`` removes what is there."""

    def change(folder):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        *parents, last = place
        inner = content
        for key in parents:
            inner = inner[key]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
        path.write_text(json.dumps(content), encoding="utf-8")

    return change


def write(content, name="record.json"):
    def change(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


# Of an experiment's run: what is done to it, and what is said of it.
WRONG = {
    "a text for a number": (
        "accuracy", put("record.json", ["test_error"], "12.5"),
        "test_error: got '12.5', expected a number from 0 to 100",
    ),
    "NaN": (
        "accuracy", put("record.json", ["test_error"], float("nan")),
        "got NaN where a number belongs",
    ),
    "an infinity": (
        "accuracy", put("record.json", ["train_seconds"], float("inf")), "got Infinity where"
    ),
    "a number beyond all": (
        "acceleration", lambda folder: write(
            (folder / "record.json").read_bytes().replace(b'"rows"', b'"x": 1e999, "rows"', 1)
        )(folder), "x: got inf, expected a finite number",
    ),
    "an empty object": ("accuracy", write("{}"), "git_commit is missing"),
    "an error of 120 %": (
        "accuracy", put("record.json", ["test_error_vote"], 120.0), "test_error_vote: got 120.0"
    ),
    "no fingerprint": (
        "accuracy", put("record.json", ["data_fingerprint"], ...), "data_fingerprint is missing"
    ),
    "a true seed": (
        "accuracy", put("record.json", ["seed"], True), "seed: got True, expected a whole number"
    ),
    "epochs below zero": ("accuracy", put("record.json", ["epochs"], -1), "epochs: got -1, expect"),
    "parameters in a list": ("accuracy", put("record.json", ["config"], []), "config: got [], exp"),
    "a curve that is a text": (
        "accuracy", put("curve.json", ["history"], "x"), "history: got 'x', expected a list of rows"
    ),
    "a curve without an epoch": (
        "accuracy", put("curve.json", ["history", 1, "epoch"], ...), "history[1]: epoch is missing"
    ),
    "a loss in words": (
        "accuracy", put("curve.json", ["history", 0, "train_loss"], "low"),
        "history[0].train_loss: got 'low', expected a finite number",
    ),
    "a row that is none": (
        "fault_tolerance", put("record.json", ["rows", 3], 7), "rows[3]: layers is missing"
    ),
    "a share above one": (
        "fault_tolerance", put("record.json", ["rows", 0, "share"], 1.5), "rows[0].share: got 1.5"
    ),
    "a text in a column of numbers": (
        "fault_tolerance", put("record.json", ["rows", 5, "speed_up"], "fast"),
        "rows[5].speed_up: got 'fast' (texts), where others are numbers",
    ),
    "robust above all": (
        "adversarial_robustness", put("record.json", ["rows", 2, "robust_accuracy"], 41.0),
        "rows[2].robust_accuracy: got 41.0, expected a number from 0 to 1",
    ),
    "a penalty of null": (
        "filter_similarity", put("record.json", ["penalties", 0, "measured"], None),
        "penalties[0].measured: got None, expected a finite number",
    ),
    "an analog error in words": (
        "analog_training", put("record.json", ["rows", 0, "test_error"], "?"), "rows[0].test_error"
    ),
    "a list": ("accuracy", write("[1]"), "expected an object, got list"),
    "nothing": ("accuracy", write(""), "cannot read"),
    "zeros": ("accuracy", write(bytes(512)), "cannot read"),
    "half": (
        "accuracy", lambda folder: write((folder / "record.json").read_bytes()[:300])(folder),
        "cannot read",
    ),
    "no text": ("accuracy", write(b'{"a": "\xff"}'), "cannot read"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_of_a_run_is_named_and_not_believed(runs, kind, change, words):
    folders = [folder for folder in runs if folder.parent.name == kind]
    leaves = CATALOGUE[kind].leaves
    assert read_runs(folders, leaves, kind)  # it was good
    change(folders[-1])
    with pytest.raises(ValueError, match=r"^record: ") as caught:
        read_runs(folders, leaves, kind)
    assert words in str(caught.value)
    assert str(folders[-1]) in str(caught.value)
    assert not all(is_whole(path) for path in folders[-1].glob("*.json"))


def test_the_bad_one_of_three_records_is_blamed_whatever_its_place():
    good = {"run": "good", "x": 1}
    for place in range(3):
        records = [good | {"run": f"good-{i}"} for i in range(2)]
        records.insert(place, {"run": "bad"})
        with pytest.raises(ValueError, match=r"^record: bad differs from the others in \['x'\]"):
            flat_table(records)


# --- Files that were changed ------------------------------------------------------------------


def study_of(runs):
    """A study whose runs these are."""
    found = {}
    for folder in runs:
        found.setdefault(folder.parent.name, []).append(Run(folder.name, {}))
    return SimpleNamespace(runs=found)


CHANGED = {
    "an edited number": (put("record.json", ["test_error"], 1.25), "record.json"),
    "an edited curve": (put("curve.json", ["history", 0, "test_error"], 1.25), "curve.json"),
    "a blank": (lambda f: write((f / "record.json").read_text() + " ")(f), "record.json"),
    "another notebook": (write('{"cells": [1]}', "accuracy.ipynb"), "accuracy.ipynb"),
    "checksums that are none": (write("garbage\n", SUMS), SUMS),
    "no checksums": (write("", SUMS), SUMS),
    "checksums of another folder": (write(f"{64 * 'a'}  ../x\n", SUMS), SUMS),
}  # fmt: skip


@pytest.mark.parametrize(("change", "name"), CHANGED.values(), ids=CHANGED)
def test_a_file_that_somebody_changed_is_removed_that_it_is_made_again(runs, change, name):
    study, folder = study_of(runs), runs[0].parents[2]
    assert remove_damaged(study, folder) == []
    change(runs[0])
    assert remove_damaged(study, folder) == [runs[0] / name]
    assert not (runs[0] / name).exists()
    assert remove_damaged(study, folder) == []


@pytest.mark.parametrize("name", ["accuracy.csv", "accuracy.md", "accuracy.png", "report.html"])
def test_a_table_a_page_or_a_figure_that_was_changed_is_made_again(tmp_path, name):
    for one in (*CATALOGUE["accuracy"].files, "report.html", "notes.txt"):
        (tmp_path / one).write_text(f"{one} has 1 number\n", encoding="utf-8")
    assert remove_changed(tmp_path) == []  # nothing was sealed
    seal(tmp_path)
    assert remove_changed(tmp_path) == []
    checked = subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=tmp_path, check=False)
    assert checked.returncode == 0
    (tmp_path / "notes.txt").write_text("the user's own", encoding="utf-8")
    path = tmp_path / name
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    assert remove_changed(tmp_path) == [path]
    assert not path.exists()


def test_a_folder_of_a_time_without_checksums_is_as_it_was(tmp_path):
    (tmp_path / "accuracy.csv").write_text("a\n1\n", encoding="utf-8")
    assert changed_files(tmp_path) == []


def test_sealing_twice_writes_once(tmp_path):
    (tmp_path / "accuracy.csv").write_text("a\n1\n", encoding="utf-8")
    seal(tmp_path)
    before = (tmp_path / SUMS).stat().st_mtime_ns
    seal(tmp_path)
    assert (tmp_path / SUMS).stat().st_mtime_ns == before


# --- Archives from elsewhere ------------------------------------------------------------------


def lines_of(archive, path):
    archive.write(path)
    return [json.loads(line) for line in lzma.decompress(path.read_bytes()).splitlines()]


ARCHIVES = {
    "a run that leads elsewhere": (1, "run", "../../../x", "run: got '../../../x', allowed"),
    "a run with a slash": (1, "run", "/etc/x", "run: got '/etc/x', allowed"),
    "an experiment that leads elsewhere": (1, "experiment", "../x", "experiment: got '../x'"),
    "a file that leads elsewhere": (1, "files", {"../x.json": {}}, "files of "),
    "a file too many": (1, "files", {"record.json": {}, "x.json": {}}, "files of "),
    "rules that lead elsewhere": (0, "claims", "../secret.yaml", "claims: got '../secret.yaml'"),
    "rules that are no text": (0, "claims", 5, "cannot read"),
    "a description of two lines": (0, "description", "a\nb", "description: got 'a\\nb', allowed"),
    "an unknown entry": (0, "extra", 1, "unexpected keyword argument 'extra'"),
    "failed runs in words": (0, "failed", "all", "cannot read"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "key", "value", "words"), ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_that_leads_elsewhere_is_refused(archive, tmp_path, line, key, value, words):
    path = tmp_path / ARCHIVE
    lines = lines_of(archive, path)
    lines[line][key] = value
    path.write_bytes(lzma.compress("\n".join(map(json.dumps, lines)).encode(), preset=0))
    with pytest.raises(ValueError, match=r"^archive: cannot read ") as caught:
        Archive.read(path)
    assert words in str(caught.value)


def test_an_archive_that_is_cut_off_or_a_bomb_is_refused(archive, tmp_path, monkeypatch):
    path = tmp_path / ARCHIVE
    archive.write(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"it is cut off|cannot read"):
        Archive.read(path)
    monkeypatch.setattr("rapa_lib.experiments.archive.MOST_BYTES", 10**6)
    path.write_bytes(lzma.compress(bytes(10**7)))
    with pytest.raises(ValueError, match="it holds more than 1,000,000 bytes"):
        Archive.read(path)


def test_a_wrong_record_in_an_archive_is_named(archive, tmp_path):
    archive.check_records()
    path = tmp_path / ARCHIVE
    lines = lines_of(archive, path)
    lines[1]["files"]["record.json"]["test_error"] = "low"
    path.write_bytes(lzma.compress("\n".join(map(json.dumps, lines)).encode(), preset=0))
    with pytest.raises(ValueError, match=r"record\.json: test_error: got 'low', expected"):
        Archive.read(path).check_records()


# --- States that are mixed --------------------------------------------------------------------

MIXED = {
    "code": ({"code_sha256": 64 * "a"}, "2 states of the code ("),
    "code of a time without hashes": ({"code_sha256": None}, "not recorded: 1 run"),
    "images behind one path": ({"data_fingerprint": 64 * "b"}, "2 states of the data mnist5k ("),
}


@pytest.mark.parametrize(("change", "words"), MIXED.values(), ids=MIXED)
def test_states_that_are_mixed_are_said_at_the_top_of_every_page(archive, tmp_path, change, words):
    records = archive.records("accuracy")
    assert mixed_lines(records) == []
    records[0] |= change
    (line,) = mixed_lines(records)
    assert words in line
    rows = [record | {"config": json.dumps(record["config"])} for record in records]
    assert mixed_lines(rows) == [line]  # as tables have them
    collected = experiment("tiles_accuracy").collect(records)
    write_collected("tiles_accuracy", collected, tmp_path, records, description="d")
    text = (tmp_path / "tiles_accuracy.md").read_text(encoding="utf-8").splitlines()
    assert text[:3] == ["# d", "", *mixed_notice([line])[:1]]


@pytest.mark.parametrize("other", [{"dataset": "svhn"}, {"subset": "seed", "seed": 7}])
def test_two_data_sets_are_not_two_states_of_one(archive, other):
    records = archive.records("accuracy")
    records[0]["config"] = records[0]["config"] | other
    records[0]["data_fingerprint"] = 64 * "b"
    assert mixed_lines(records) == []


@pytest.fixture
def planned(runs, archive, monkeypatch):
    """The kept study's runs as a study plans them, all of one state of code and data."""
    monkeypatch.setattr(states, "code_hash", lambda: 64 * "c")
    for folder in runs:
        put("record.json", ["code_sha256"], 64 * "c")(folder)
    record = archive.records("accuracy")[0]
    recipe = recipe_of(record["config"])
    images = SimpleNamespace(fingerprint=record["data_fingerprint"])
    data = {
        (folder.parent.name, folder.name): (recipe, images)
        for folder in runs
        if folder.parent.name not in ("acceleration", "analog_training")
    }
    return SimpleNamespace(
        study=study_of(runs), folder=runs[0].parents[2], data=data, runs=runs, images=images
    )


def check(planned):
    states.check_unmixed(planned.study, planned.folder, planned.data)


def test_a_study_of_one_state_goes_on(planned):
    check(planned)
    (planned.runs[0] / "record.json").unlink()
    check(planned)


def test_a_run_added_after_the_code_changed_is_refused(planned, monkeypatch):
    monkeypatch.setattr(states, "code_hash", lambda: 64 * "d")
    check(planned)  # nothing is to be made
    (planned.runs[0] / "record.json").unlink()
    with pytest.raises(
        ValueError, match=r"^mixed: its tables would hold 2 states of the code"
    ) as e:
        check(planned)
    assert "cccccccccccc…: 6 runs, dddddddddddd…: 1 run" in str(e.value).replace(
        "dddddddddddd…: 1 run, cccccccccccc…: 6 runs", "cccccccccccc…: 6 runs, dddddddddddd…: 1 run"
    )
    assert "MIX=1 (--mix): every page then says so" in str(e.value)


def test_a_run_added_after_the_images_changed_is_refused(planned):
    planned.images.fingerprint = 64 * "e"
    check(planned)
    (planned.runs[0] / "record.json").unlink()
    with pytest.raises(ValueError, match="2 states of the data mnist5k"):
        check(planned)


# --- Disks ------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch):
    """A disk on which what is written anew has no room."""

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rapa_lib._files.os.fsync", fsync)


def test_a_full_disk_is_said_before_a_study_starts(tmp_path, full):
    with pytest.raises(ValueError, match=f"^results: cannot write to {tmp_path}.*No space left"):
        writable_folder("results", tmp_path)


def test_the_probe_of_a_folder_asks_for_room(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    writable_folder("results", tmp_path)
    assert sizes[0] >= 4096


def test_an_error_is_written_on_a_full_disk_into_room_kept_for_it(tmp_path, monkeypatch):
    reserve, path = tmp_path / ".part-error", tmp_path / "error.json"
    content = {"error": "no space is left “here”", "attempts": 2}
    for error in (content["error"], 5000 * "x", 5000 * "😀"):
        reserve.write_bytes(b" " * run_notebook.RESERVE_BYTES)
        room = reserve.stat().st_ino

        def no_room(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(run_notebook, "whole_file", no_room)
        run_notebook.write_error(path, content | {"error": error}, reserve)
        told = json.loads(path.read_text(encoding="utf-8"))
        assert error.startswith(told["error"][:100])
        assert told["attempts"] == 2
        assert path.stat().st_ino == room
        assert path.stat().st_size == run_notebook.RESERVE_BYTES


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("unexpected pos 64")]
)
def test_a_run_that_a_full_disk_ended_says_so(tmp_path, monkeypatch, error):
    if isinstance(error, RuntimeError):  # PyTorch says so of a file that it cannot write
        monkeypatch.setattr(run_notebook.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    said = run_notebook.describe(error, tmp_path)
    assert said.startswith(f"no space is left on the disk of {tmp_path}: ")
    assert len(said.splitlines()) == 1


def test_a_run_without_an_error_shows_the_end_of_its_log_and_the_disk(tmp_path, monkeypatch):
    place = tmp_path / "runs/accuracy/a"
    place.mkdir(parents=True)
    (place / "error.json").touch()  # all that a full disk took
    (place / "log.txt").write_text("one\nOSError: the last\n\n", encoding="utf-8")
    monkeypatch.setattr(causes.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    said = causes.why_failed(Run("a", {}), tmp_path, place)
    assert said == (
        "it left no error; its log ends: OSError: the last (no space is left on the disk of "
        f"{tmp_path})"
    )


ENDS = {
    "a full disk": (
        OSError(errno.ENOSPC, "No space left on device", "/x/y"),
        "study stopped: [Errno 28] No space left on device: '/x/y'; make room, the same command "
        "goes on with it",
    ),
    "a used-up quota": (OSError(errno.EDQUOT, "quota exceeded"), "study stopped: [Errno 122]"),
    "a signal": (supervise.StoppedError("SIGTERM"), "study stopped by SIGTERM, and all that"),
    "a hand": (KeyboardInterrupt(), "study interrupted; the same command goes on with it"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "words"), ENDS.values(), ids=ENDS)
def test_what_ends_a_study_from_outside_is_told_in_a_line(error, words):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run_study.start(main, "study")
    assert caught.value.code.startswith(f"\n{words}")
    assert len(caught.value.code.splitlines()) == 2


def test_another_error_of_a_study_is_none_of_these():
    def main():
        raise PermissionError(errno.EACCES, "Permission denied", "/x/y")

    with pytest.raises(PermissionError):
        run_study.start(main, "study")


# --- Reports and processes --------------------------------------------------------------------


def test_a_failed_report_is_told_with_its_error_and_its_notebook(tmp_path, capsys):
    place = tmp_path / "runs/report"
    place.mkdir(parents=True)
    (place / "error.json").write_text('{"error": "ValueError: no", "attempts": 1}')
    (place / "failed.ipynb").touch()
    run_study.report(SimpleNamespace(n_runs=2), tmp_path, {}, collected=False)
    said = capsys.readouterr().out
    assert said == f"\nFAILED report: ValueError: no\n  notebook {place / 'failed.ipynb'}\n"


def test_a_report_that_could_not_be_exported_shows_the_end_of_its_log(tmp_path):
    place = tmp_path / "runs/report"
    place.mkdir(parents=True)
    assert causes.why_no_report(tmp_path) == ""
    (place / "log.txt").write_text("Traceback\nKeyError: 'title'\n", encoding="utf-8")
    said = causes.why_no_report(tmp_path)
    assert said == f"FAILED report: KeyError: 'title'\n  log      {place / 'log.txt'}"


def test_runs_that_go_on_without_snakemake_are_not_called_failed(runs):
    study, folder = study_of(runs), runs[0].parents[2]
    assert causes.killed(study, folder, 9) == (
        "study stopped: Snakemake was ended by SIGKILL, and what it had started with it; the same "
        "command goes on with it"
    )
    with (runs[0] / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = causes.killed(study, folder, 9, patience=0.2)
    assert f"ended by SIGKILL; 1 of its runs go on without it (accuracy {runs[0].name});" in said
    assert causes.going_on(study, folder) == []


def test_a_snakemake_that_was_killed_ends_the_study_with_that_alone(runs, monkeypatch, tmp_path):
    options = SimpleNamespace(
        config=tmp_path / "x.yaml",
        data=None,
        results=tmp_path,
        profile="local",
        cores=1,
        local=True,
    )
    monkeypatch.setattr(run_study, "read_config", lambda _: {})
    monkeypatch.setattr(
        run_study,
        "supervised",
        lambda *_, **__: subprocess.run(["sh", "-c", "kill -9 $$"]).returncode,
    )
    study = study_of(runs)
    study.name = "study"
    with pytest.raises(run_study.SnakemakeKilledError, match="9"):
        run_study.run_snakemake(options, study, tmp_path, 0)


TREE = """
import subprocess, sys, time
children = [
    subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
                     stdout=subprocess.PIPE, start_new_session=new) for new in (True, False)
]
for child in children:
    child.stdout.readline()
print(*[child.pid for child in children], flush=True)
time.sleep(60)
"""


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        return "Z" not in state.split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_a_study_started_ends_with_it_in_sessions_of_their_own_too(tmp_path, number):
    (tmp_path / "tree.py").write_text(TREE, encoding="utf-8")
    front = (
        "import supervise, sys\n"
        "with supervise.stoppable():\n"
        f"    supervise.supervised([sys.executable, {str(tmp_path / 'tree.py')!r}], asks=False)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", front], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    with process:
        pids = list(map(int, process.stdout.readline().split()))
        assert len(pids) == 2
        assert all(map(alive, pids))
        process.send_signal(number)
        process.wait(20)
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_no_file_is_blamed_for_a_signal_while_it_is_read(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / split / name / "0.png")
    monkeypatch.setattr(Image, "open", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with supervise.stoppable(), pytest.raises(supervise.StoppedError, match="SIGTERM"):
        load_dataset(tmp_path)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with supervise.stoppable():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(supervise.StoppedError, match="SIGTERM"):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
