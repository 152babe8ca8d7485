"""A study's tables, figures and report come out of its kept records alone, byte for byte."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import remake_tables
from keep_records import read_error
from workflow_house import ROOT, command, execute

from rapa_lib.experiments.archive import ARCHIVE, Archive, keep_networks, kept_networks

KEPT = Path(__file__).with_name("kept_study")


def remake(house, folder):
    """What ``make tables`` does, for a study's folder."""
    return execute(house, sys.executable, "workflow/scripts/remake_tables.py", folder)


def contents(folder):
    """The files that a study leaves, by name, but for its log."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".log"
    }


@pytest.fixture(scope="module")
def remade(house, smoke, tmp_path_factory):
    """The smoke study's folder as its records alone give it."""
    folder = tmp_path_factory.mktemp("remade") / "smoke"
    folder.mkdir()
    shutil.copy(smoke.folder / ARCHIVE, folder)
    done = remake(house, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_file_is_made_again_byte_for_byte(smoke, remade):
    first, again = contents(smoke.folder), contents(remade)
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []


def test_a_study_goes_on_from_its_records_without_training(house, smoke, remade):
    done = execute(house, *command("config/smoke.yaml", remade.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smoke: 7 of 7 runs are in" in done.stdout
    assert not list(remade.glob("runs/*/*/network.pt"))
    assert contents(remade) == contents(smoke.folder)


def test_a_committed_study_has_the_tables_of_its_records(tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    shutil.copy(KEPT / ARCHIVE, folder)
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'workflow/scripts');"
        "from remake_tables import collect; from rapa_lib.experiments.archive import Archive;"
        f"collect(Archive.read(Path(sys.argv[1]) / '{ARCHIVE}'), Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    committed = contents(KEPT)
    assert len(committed) > 10
    made = contents(folder)
    assert [name for name in committed if committed[name] != made.get(name)] == []


def test_claims_are_judged_by_the_rules_that_were_kept(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(remake_tables, "run_script", lambda *arguments: said.append(arguments))
    for rules in ("", "level: 0.01\n"):
        archive = Archive("one", "a study", "config/claims/paper.yaml", (), rules=rules)
        remake_tables.report(archive, tmp_path)
    names = [json.loads(one[-1])["claims"] for one in said if one[0] == "run_notebook.py"]
    assert names[0] == "config/claims/paper.yaml"
    assert Path(names[1]).read_text(encoding="utf-8") == "level: 0.01\n"


def test_a_kept_network_is_put_where_followers_look_for_it(smoke, tmp_path):
    results = tmp_path / "smoke"
    shutil.copytree(smoke.folder / "runs/accuracy", results / "runs/accuracy")
    (first, *_) = keep_networks(results)
    shutil.rmtree(results / "runs")
    archive = Archive.read(smoke.folder / ARCHIVE)
    remake_tables.restore(archive, results, kept_networks(results))
    network = results / "runs/accuracy" / first.stem / "network.pt"
    assert network.read_bytes() == first.read_bytes()
    assert not list(results.glob("runs/[!a]*/*/network.pt"))


def test_a_run_that_is_not_done_says_why(tmp_path):
    assert read_error(tmp_path / "none-0-abc") == "not done yet"
    folder = tmp_path / "none-1-abc"
    folder.mkdir()
    assert read_error(folder) == "it left neither record nor error"
    (folder / "error.json").write_text('{"error": "no memory"}')
    assert read_error(folder) == "no memory"


def test_a_study_without_records_says_so(house, tmp_path):
    done = remake(house, tmp_path)
    assert done.returncode == 1
    assert f"tables not made: archive: cannot read {tmp_path / ARCHIVE}" in done.stderr
