"""What the tests of the workflow share: its commands, in a copy of what a study needs."""

import csv
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[1]

# Timings; and someone may commit while a test runs.
PASSING = ("train_seconds", "seconds", "git_commit")

# In the place of the script that collects, to see the workflow alone.
COLLECT = """
import sys
from pathlib import Path

from rapa_lib.experiments.catalogue import CATALOGUE

experiment, folder = sys.argv[1], Path(sys.argv[2])
if (folder / "stop").exists():
    sys.exit("no")
for name in CATALOGUE[experiment].files:
    (folder / name).write_text(" ".join(sys.argv))
"""


def command(config, results, *options):
    return [sys.executable, "workflow/scripts/run_study.py", config, "--results", results, *options]


def execute(house, *args, environment=os.environ, seconds=900):
    return subprocess.run(
        [str(arg) for arg in args], cwd=house, env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip


def rows(path):
    """The rows of a CSV file, as they are written."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tables(folder):
    """The tables that a study collected by name, but for what passes."""
    found = {path.name: rows(path) for path in folder.glob("*.csv")}
    for table in found.values():
        for row in table:
            for name in PASSING:
                row.pop(name, None)
    return found


def write_yaml(path, content):
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def kill_with_descendants(process):
    """SIGKILL a process and all that it started, the kernels in sessions of their own too."""
    with suppress(psutil.NoSuchProcess):
        everyone = [p := psutil.Process(process.pid), *p.children(recursive=True)]
        for one in everyone:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(everyone, timeout=30)
    process.wait()


def mock_report(house):
    """Put what takes no time, and asks nothing of the tables, in the place of the report."""
    workflow = house / "workflow/scripts"
    (workflow / "keep_records.py").write_text(
        "import sys, pathlib\n"
        "for name in ('runs.csv', 'records.jsonl.xz'): pathlib.Path(sys.argv[1], name).touch()"
    )
    (workflow / "export_report.py").write_text(
        "import sys, pathlib; pathlib.Path(sys.argv[2]).touch()"
    )


def kernels_under(process):
    """How many notebooks a study is executing."""
    found = 0
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            found += "run_notebook.py" in " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
    return found


def survive_kills(house, smoke, folder, n_kills):
    """Kill the smoke study so often, let it end, and compare; return the kernels at each kill."""
    start = [str(word) for word in command("config/smoke.yaml", folder)]
    said = folder / "said"
    moments = random.Random(2019)
    kernels = []
    while len(kernels) < n_kills:
        with said.open("w") as out:
            process = subprocess.Popen(start, cwd=house, stdout=out, stderr=subprocess.STDOUT)
        # Three in ten moments are of any kind, most of them before the first job; the others after.
        if len(kernels) % 3 != 1:
            while process.poll() is None and "Execute" not in said.read_text():
                time.sleep(0.05)
        time.sleep(moments.uniform(0, 0.1 * smoke.seconds))
        if process.poll() is not None:  # faster than the undisturbed one: there is to be more to do
            assert process.returncode == 0, said.read_text()
            shutil.rmtree(folder / "smoke/runs/accuracy")
            continue
        kernels.append(kernels_under(process))
        kill_with_descendants(process)
    done = execute(house, *start)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DAMAGED" not in done.stdout  # files are whole, or not there
    assert tables(folder / "smoke") == tables(smoke.folder)
    return kernels
