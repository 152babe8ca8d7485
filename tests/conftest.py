import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest


@pytest.fixture
def run_python():
    """Run code in a fresh interpreter; return what it printed, fail with what it complained of."""

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    """A copy of what a study needs beside the library: what Snakemake keeps of it goes with it."""
    from workflow_house import ROOT

    house = tmp_path_factory.mktemp("house")
    for folder in ("workflow", "config", "notebooks", "profiles"):
        shutil.copytree(ROOT / folder, house / folder)
    return house


@pytest.fixture(scope="session")
def smoke(house, tmp_path_factory):
    """The smoke study, run once; its results lie where a path is hardest to hand on."""
    from study import load_study
    from workflow_house import ROOT, command, execute

    results = tmp_path_factory.mktemp("results of ünï: #1")
    done = execute(house, *command("config/smoke.yaml", results))
    assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(
        done=done,
        results=results,
        folder=results / "smoke",
        study=load_study(ROOT / "config/smoke.yaml"),
        runs=sorted((results / "smoke/runs/accuracy").iterdir()),
        follower=next((results / "smoke/runs/filter_similarity").iterdir()),
    )
