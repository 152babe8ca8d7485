import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(items):
    """Where tests run in parallel, keep those together that share what takes long to make.

    What runs studies comes first, in one worker, for it takes longest; of the rest every file is
    for one worker, with its fixtures.
    """

    def runs_studies(item):
        return {"house", "smoke"} & set(item.fixturenames)

    for item in items:
        place = item.path.relative_to(item.config.rootpath).as_posix()
        group = "studies" if runs_studies(item) else place
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: not runs_studies(item))


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
    began = time.monotonic()
    done = execute(house, *command("config/smoke.yaml", results))
    assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(
        done=done,
        seconds=time.monotonic() - began,
        results=results,
        folder=results / "smoke",
        study=load_study(ROOT / "config/smoke.yaml"),
        runs=sorted((results / "smoke/runs/accuracy").iterdir()),
        follower=next((results / "smoke/runs/filter_similarity").iterdir()),
    )
