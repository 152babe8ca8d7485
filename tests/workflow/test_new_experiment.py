"""A new experiment is one folder, one notebook and one entry: from there to the report."""

import os
import shutil

import nbformat
import pandas as pd
import pytest
from workflow_house import ROOT, command, execute, rows, write_yaml

# Place 1: the experiment itself.
EXPERIMENT = '''"""How many numbers the toy draws on average."""

from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from rapa_lib._checks import integer
from rapa_lib.experiments.protocol import Collected, Experiment
from rapa_lib.experiments.records import nested_table


@dataclass(frozen=True)
class Toy(Experiment[None]):
    """A toy."""

    name: ClassVar[str] = "toy"
    throws: int = integer(3, low=1)

    def _measure(self, subject, folder, progress):
        return {"measurement": self.settings(), "rows": [{"x": x} for x in range(self.throws)]}

    @classmethod
    def collect(cls, records):
        table = nested_table(records, "rows", ["run"])

        def figure():
            figure = Figure()
            figure.subplots().plot(table["x"])
            return figure

        answer = [f"The toy drew {table['x'].mean():g} on average."]
        body = [table.to_markdown(index=False), "", "![what the toy drew](toy.png)"]
        return Collected({"toy": table}, {"toy": figure}, answer, body)


EXPERIMENT = Toy
'''

# Place 2: its notebook.
CELLS = (
    'throws = 5  # how often it draws\noutput = ""  # folder for the record',
    "from rapa_lib.experiments.toy import Toy\n\ntoy = Toy.among(globals())\n"
    "record = toy.measure(None, output)\ntoy.collect([record]).answer",
)

# Place 3: its entry in the catalogue.
ENTRY = """    Entry("toy", "A toy", needs="nothing", tables=("toy",), figures=("toy",)),
)

CATALOGUE: """

# Place 4: its runs, in a study's YAML.
STUDY = {
    "study": "playing",
    "description": "A study with a toy",
    "threads": 1,
    "accuracy": {
        "common": {
            "dataset": "mnist5k", "n_train": 64, "n_test": 20, "epochs": 1, "batch_size": 32,
            "channels": [2, 2, 2], "draws": 1,
        },
        "grid": [{"tiling": ["none"]}],
    },
    "toy": {"common": {}, "grid": [{"throws": [4, 6]}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The study with the toy, run in a copy of the repository; its folder and what it said."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("rapa_lib", "notebooks", "workflow", "config", "profiles"):
        shutil.copytree(ROOT / folder, copy / folder)
    package = copy / "rapa_lib/experiments/toy"
    package.mkdir()
    (package / "__init__.py").write_text(EXPERIMENT)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    nbformat.write(notebook, copy / "notebooks/toy.ipynb")
    catalogue = copy / "rapa_lib/experiments/catalogue.py"
    text = catalogue.read_text(encoding="utf-8")
    assert text.count(")\n\nCATALOGUE: ") == 1
    catalogue.write_text(text.replace(")\n\nCATALOGUE: ", ENTRY), encoding="utf-8")
    config = write_yaml(copy / "config/playing.yaml", STUDY)
    done = execute(
        copy, *command(config, copy / "results"), environment=os.environ | {"PYTHONPATH": str(copy)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "results/playing", done.stdout


def test_a_toy_experiment_runs_through_the_workflow_to_the_report(played):
    folder, said = played
    assert "playing: 3 of 3 runs are in" in said
    assert f"{folder / 'toy'}.md\n" in said
    assert sorted(int(row["x"]) for row in rows(folder / "toy.csv")) == sorted(
        [*range(4), *range(6)]
    )
    page = (folder / "toy.md").read_text(encoding="utf-8")
    assert page.startswith("# A study with a toy\n\nThe toy drew 2.1 on average.\n")
    assert (folder / "toy.png").stat().st_size > 1000
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "<h2>A toy</h2>" in report
    assert "The toy drew 2.1 on average." in report
    assert 'id="toy"' in report


def test_the_toys_runs_are_listed_among_the_others(played):
    folder, _ = played
    listed = pd.read_csv(folder / "runs.csv")
    assert list(listed["experiment"]) == ["accuracy", "toy", "toy"]
    assert listed["done"].all()
