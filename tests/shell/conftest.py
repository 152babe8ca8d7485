"""What the tests of the shell share."""

import json
from pathlib import Path

import pytest

from rapa_lib._files import write_sums
from rapa_lib.experiments.archive import Archive

KEPT = Path(__file__).parents[1] / "workflow/kept_study/records.jsonl.xz"


@pytest.fixture(scope="session")
def archive():
    """The small study that is kept with the tests."""
    return Archive.read(KEPT)


@pytest.fixture
def runs(archive, tmp_path):
    """Its runs' folders, as a study leaves them but for their networks, under ``study/runs``."""
    folders = []
    for run in archive.runs:
        folder = tmp_path / "study/runs" / run.experiment / run.run
        run.restore(folder)
        (folder / "restored").unlink()
        notebook = folder / f"{run.experiment}.ipynb"
        notebook.write_text(json.dumps({"cells": []}), encoding="utf-8")
        names = [*run.files, notebook.name]
        write_sums(folder, {name: folder / name for name in names})
        folders.append(folder)
    return folders
