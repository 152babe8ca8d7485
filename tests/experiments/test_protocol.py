"""A toy experiment does all that the protocol promises, and what breaks the protocol is named."""

import json
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import pandas as pd
import pytest
from matplotlib.figure import Figure

from rapa_lib._checks import choice, integer
from rapa_lib.experiments import protocol
from rapa_lib.experiments.catalogue import CATALOGUE, Entry
from rapa_lib.experiments.protocol import (
    Collected,
    Collecting,
    Experiment,
    answer_lines,
    experiment,
    write_collected,
)
from rapa_lib.experiments.recipe import LATER, SYNCHRONISATION, Recipe
from rapa_lib.experiments.records import read_runs

TOY = Entry(
    "toy", "A toy", needs="nothing", tables=("toy", "toy_steps"), figures=("toy",),
    leaves=("steps.json", "state.txt"),
)  # fmt: skip


@dataclass(frozen=True)
class Toy(Experiment[int]):
    """Counts in steps up to a number; its state survives interruptions."""

    name: ClassVar[str] = "toy"
    resume_files: ClassVar[tuple[str, ...]] = ("resume.txt",)
    worked: ClassVar[list[int]] = []  # what was done, for the tests to look at

    step: int = integer(1, low=1)
    unit: str = choice("m", ("m", "s"))
    interrupt_at: int | None = None

    def check(self, subject):
        if subject < 0:
            raise ValueError(f"subject: got {subject}, expected at least 0")

    def _measure(self, subject, folder, progress):
        resume = folder / "resume.txt" if folder else None
        done = json.loads(resume.read_text()) if resume and resume.exists() else []
        for value in range(len(done) * self.step, subject, self.step):
            if value == self.interrupt_at:
                raise KeyboardInterrupt
            self.worked.append(value)
            done.append(value)
            if resume:
                resume.write_text(json.dumps(done))
        if folder:
            (folder / "state.txt").write_text("whole")
        return {"total": sum(done), "unit": self.unit, "steps": {"values": done}}

    @classmethod
    def collect(cls, records):
        table = pd.DataFrame([{"run": r["run"], "total": r["total"]} for r in records])
        steps = pd.DataFrame({"values": [v for r in records for v in r["steps"]["values"]]})
        return Collected(
            tables={"toy": table, "toy_steps": steps},
            figures={"toy": lambda: Figure(figsize=(1, 1))},
            answer=[f"**{table['total'].sum()} in all.**"],
            body=["A body."],
        )


@dataclass(frozen=True)
class Trainer(Toy):
    """One that trains: its recipe's parameters are flat beside its own."""

    recipe: Recipe = field(default_factory=Recipe)
    seed: int = integer(5, low=0)  # its own, not the recipe's


@pytest.fixture(autouse=True)
def listed(monkeypatch):
    """The toy in the catalogue, nothing done yet."""
    Toy.worked.clear()
    monkeypatch.setattr(protocol, "CATALOGUE", MappingProxyType({**CATALOGUE, "toy": TOY}))


# --- Settings ---------------------------------------------------------------------------------


def test_settings_are_checked_when_they_are_made():
    assert Toy.of(step=2).step == 2
    with pytest.raises(ValueError, match=r"^step: got 0, allowed: at least 1"):
        Toy.of(step=0)
    with pytest.raises(ValueError, match=r"^unit: got 'kg', allowed: m, s"):
        Toy.of(unit="kg")


def test_an_unknown_parameter_is_named_with_those_there_are():
    with pytest.raises(TypeError, match=r"^toy: apples, pears: unknown; it takes step, unit"):
        Toy.of(pears=1, apples=2)


def test_a_notebook_s_variables_make_settings_and_the_others_are_left():
    variables = {"step": 3, "output": "", "np": object(), "__name__": "notebook"}
    assert Toy.among(variables).step == 3
    assert Toy.among({}) == Toy()


def test_parameters_of_a_recipe_stand_flat_beside_the_experiment_s_own():
    assert set(Recipe.names()) | {"step", "unit"} <= set(Trainer.names())
    assert "recipe" not in Trainer.names()
    assert len(set(Trainer.names())) == len(Trainer.names())
    made = Trainer.of(step=4, tiling="image", epochs=3, device="cpu")
    assert (made.step, made.recipe.network.tiling, made.recipe.training.epochs) == (4, "image", 3)
    with pytest.raises(ValueError, match=r"^epochs: got 0"):
        Trainer.of(epochs=0)


def test_a_parameter_that_both_have_is_the_experiment_s_own():
    made = Trainer.of(seed=7)
    assert (made.seed, made.recipe.seed) == (7, 0)
    assert made.settings()["seed"] == 7


@pytest.mark.parametrize("kind", [Toy, Trainer])
def test_settings_come_back_from_json(kind):
    made = kind.of(step=2, unit="s")
    flat = made.settings()
    assert flat["step"] == 2
    assert set(flat) <= set(kind.names())
    assert kind.of(**json.loads(json.dumps(flat))) == made


# --- Measurement ------------------------------------------------------------------------------


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (None, ""):
        record = Toy().measure(3, folder)
        assert record == {"total": 3, "unit": "m", "steps": {"values": [0, 1, 2]}} | {
            "run": "this run"
        }
    assert not list(tmp_path.iterdir())


def test_a_folder_has_the_record_what_lies_beside_it_and_nothing_else(tmp_path):
    record = Toy().measure(3, tmp_path / "new" / "run")
    folder = tmp_path / "new" / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "record.json", "state.txt", "steps.json",
    ]  # fmt: skip
    assert json.loads((folder / "record.json").read_text()) == {"total": 3, "unit": "m"}
    assert read_runs([folder], TOY.leaves) == [record]
    assert record["run"] == "run"


def test_the_record_is_written_after_all_else(tmp_path, monkeypatch):
    written, write = [], protocol.write_json

    def note(path, content):
        assert (tmp_path / "resume.txt").exists()
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr(protocol, "write_json", note)
    Toy().measure(3, tmp_path)
    assert written == ["steps.json", "record.json"]


def test_an_interrupted_measurement_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Toy(interrupt_at=2).measure(4, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["resume.txt"]
    assert Toy.worked == [0, 1]
    record = Toy().measure(4, tmp_path)
    assert Toy.worked == [0, 1, 2, 3]
    assert record == Toy().measure(4) | {"run": tmp_path.name}


def test_what_does_not_fit_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"^subject: got -1"):
        Toy().measure(-1, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^output: cannot write to "):
        Toy().measure(3, tmp_path / "file" / "run")
    assert Toy.worked == []


# --- Collection -------------------------------------------------------------------------------


def collected():
    records = [Toy.of(step=step).measure(4) | {"run": str(step)} for step in (1, 2)]
    return Toy.collect(records), records


def test_tables_figures_and_page_are_written(tmp_path):
    write_collected("toy", *collected()[:1], tmp_path, collected()[1], description="A study")
    assert {path.name for path in tmp_path.iterdir()} == set(TOY.files)
    assert (tmp_path / "toy.csv").read_text() == "run,total\n1,6\n2,2\n"
    lines = (tmp_path / "toy.md").read_text().splitlines()
    assert lines == ["# A study", "", "**8 in all.**", "", "A body.", ""]


def test_a_page_says_how_many_runs_are_missing(tmp_path):
    found, records = collected()
    write_collected("toy", found, tmp_path, records, description="A study", missing=3)
    assert "**Incomplete: 3 of 5 runs did not finish.**" in (tmp_path / "toy.md").read_text()


@pytest.mark.parametrize("part", ["tables", "figures"])
@pytest.mark.parametrize("change", ["less", "more"])
def test_what_the_catalogue_does_not_list_is_refused_and_nothing_is_written(tmp_path, part, change):
    found, records = collected()
    parts = {"tables": dict(found.tables), "figures": dict(found.figures)}
    if change == "more":
        parts[part]["other"] = parts[part]["toy"]
    else:
        del parts[part]["toy"]
    wrong = Collected(**parts, answer=found.answer, body=found.body)
    with pytest.raises(ValueError, match=rf"^toy: its {part} are .*, the catalogue has \['toy'"):
        write_collected("toy", wrong, tmp_path, records, description="A study")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [[], ["a"] * 4, ["two\nlines"]])
def test_an_answer_has_one_to_three_lines(answer):
    with pytest.raises(ValueError, match=r"^answer: got .*expected 1 to 3 lines"):
        Collected(tables={}, figures={}, answer=answer, body=[])


def test_one_line_is_a_paragraph_and_several_are_a_list():
    one, two = (
        Collected(tables={}, figures={}, answer=lines, body=[]) for lines in (["a"], ["a", "b"])
    )
    assert answer_lines(one) == ["a", ""]
    assert answer_lines(two) == ["- a", "- b", ""]


# --- The catalogue ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_experiment_has_its_folder_and_class(name):
    found = experiment(name)
    assert found.name == name
    assert found.entry() is CATALOGUE[name]
    assert issubclass(found, Experiment) == (found.entry().needs != "records")


def test_there_is_something_to_derive_where_a_run_asks_for_it():
    entry = CATALOGUE["synchronisation"]
    assert entry.asked == SYNCHRONISATION
    assert not any(LATER[name] for name in entry.asked)  # what it is where nothing is said
    assert not entry.concerns([])
    assert not entry.concerns([{"tiling": "random"}, {"sync_every": 0, "coupling": 0.0}])
    assert entry.concerns([{"tiling": "none"}, {"sync_every": 16}])
    assert entry.concerns([{"average_last": 3}])
    assert CATALOGUE["tiles_accuracy"].concerns([{}])
    assert not CATALOGUE["tiles_accuracy"].concerns([])


def test_what_is_derived_needs_no_measurement():
    class Derived(Collecting):
        name = "toy"

        @classmethod
        def collect(cls, records):
            return Toy.collect(records)

    assert Derived.entry() is TOY
    assert Derived.collect([Toy().measure(3)]).answer == ["**3 in all.**"]
    assert not hasattr(Derived, "measure")


def test_an_unknown_experiment_is_named():
    with pytest.raises(ValueError, match=r"^experiment: got 'toys', allowed: accuracy, "):
        experiment("toys")


def test_an_entry_lists_every_file_that_it_leaves():
    assert set(TOY.files) == {"toy.csv", "toy_steps.csv", "toy.md", "toy.png", "toy.svg"}


def test_the_catalogue_is_read_without_what_computes(run_python):
    code = (
        "import sys, rapa_lib.experiments.catalogue; "
        "print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]\n"
