"""The robustness experiment: what it measures, that it goes on, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from tiny import SHAPE, tiny_dataset

from rapa_lib.experiments.adversarial_robustness import AdversarialRobustness, experiment
from rapa_lib.experiments.adversarial_robustness.experiment import goes_on, load_copy
from rapa_lib.experiments.adversarial_robustness.tables import rows_by_image
from rapa_lib.experiments.recipe import Recipe
from rapa_lib.experiments.trained import Trained, save_network, train_recipe
from rapa_lib.robustness import as_images

ROOT = Path(__file__).parents[3]
RECIPE = Recipe.of(**SHAPE, epochs=15, batch_size=16, device="cpu")
BASE = {
    "levels": ("published", "adaptive"), "images": 20, "linf": (0.05, 0.2), "l2": (0.5,),
    "steps": 2, "draws": 2, "focus": 0.05, "draws_curve": (1, 2, 4), "judge_draws": 3,
}  # fmt: skip


def settings(**changes):
    return AdversarialRobustness.of(**BASE | changes)


def train(recipe, folder):
    data = tiny_dataset()
    network, training = train_recipe(recipe, data, progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    save_network(folder / "network.pt", network, training.scaling, data, recipe.flat())
    return Trained(network.eval(), training.scaling, recipe, data, recipe.flat(), [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    networks = {seed: train(RECIPE.but(seed=seed), folder / str(seed)) for seed in (0, 1)}
    return networks[0], folder


@pytest.fixture(scope="module")
def copied(trained):
    """Settings with a copy to transfer from."""
    _, folder = trained
    return settings(copies=[folder / "1/network.pt"])


@pytest.fixture(scope="module")
def record(trained, copied):
    network, _ = trained
    return copied.measure(network, progress=False)


def test_there_is_a_row_for_every_attack_and_budget(record):
    table = pd.DataFrame(record["rows"])
    cells = table.groupby(["level", "attack", "norm", "purpose"], sort=False).size().to_dict()
    assert cells == {
        ("published", "FGSM", "linf", "suite"): 2,
        ("published", "FGM", "l2", "suite"): 1,
        ("adaptive", "from merged", "linf", "suite"): 2,
        ("adaptive", "from copies", "linf", "suite"): 2,
        ("adaptive", "PGD", "linf", "suite"): 2,
        ("adaptive", "PGD", "l2", "suite"): 1,
        ("adaptive", "DDN", "l2", "suite"): 1,
        ("adaptive", "FMN", "linf", "suite"): 1,
        ("adaptive", "PGD", "linf", "unbounded"): 1,
        ("adaptive", "PGD", "linf", "restarts"): 1,
        ("adaptive", "PGD", "linf", "draws"): len(table[table["purpose"] == "draws"]),
    }
    assert 1 in set(table[table["purpose"] == "draws"]["draws"])
    assert 2 not in set(table[table["purpose"] == "draws"]["draws"])  # the suite has it


def test_every_row_is_made_of_its_images(record):
    for row in record["rows"]:
        assert len(row["correct"]) == len(row["clean"]) == row["n_images"] == 20
        assert row["robust_accuracy"] == pytest.approx(np.mean(row["correct"]), abs=1e-6)
        assert row["clean_accuracy"] == pytest.approx(np.mean(row["clean"]), abs=1e-6)
        assert row["low"] <= row["robust_accuracy"] <= row["high"]
        assert {round(3 * share, 5) % 1 for share in row["correct"]} <= {0, 0.00001, 0.99999}
        if row["epsilon"] is None:
            misled = np.where(np.array(row["correct"]) < 0.5, row["norms"], np.inf)
            norms = np.where(np.array(row["clean"]) < 0.5, 0, misled)
            median = np.sort(norms)[(len(norms) - 1) // 2]
            expected = None if np.isinf(median) else pytest.approx(median, abs=1e-5)
            assert row["median_norm"] == expected


def test_attacks_take_accuracy_and_stronger_ones_more(record):
    table = pd.DataFrame(record["rows"])
    pgd = table[(table["attack"] == "PGD") & (table["purpose"] == "suite")]
    left = pgd[pgd["norm"] == "linf"].set_index("epsilon")["robust_accuracy"]
    assert left[0.2] < left[0.05] <= table["clean_accuracy"].iloc[0]
    assert table.loc[table["purpose"] == "unbounded", "robust_accuracy"].item() < 0.2


def test_a_network_that_does_not_draw_is_not_asked_for_draws(tmp_path):
    plain = train(RECIPE.but(tiling="none"), tmp_path)
    rows = settings().measure(plain, progress=False)["rows"]
    assert {row["draws"] for row in rows} == {1}
    assert "draws" not in {row["purpose"] for row in rows}


def test_interrupted_after_any_attack_it_goes_on_to_the_same_bits(
    trained, copied, record, tmp_path
):
    network, _ = trained
    attack, left = experiment.run_attack, [0]

    def dies(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return attack(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "run_attack", dies)
        for n_attacks in (1, 4, 3):
            left[0] = n_attacks
            with pytest.raises(KeyboardInterrupt):
                copied.measure(network, tmp_path, progress=False)
            assert {path.name for path in tmp_path.iterdir()} == {"resume.json"}
    resume = (tmp_path / "resume.json").read_text()
    finished = copied.measure(network, tmp_path, progress=False)
    assert without_time(finished) == without_time(record | {"run": tmp_path.name})
    assert {path.name for path in tmp_path.iterdir()} == {"record.json"}
    kept = json.loads(resume)["done"]
    assert len(kept) == 8  # they were not run again: even their times are those of the first run
    assert all(row in finished["rows"] for rows, _ in kept.values() for row in rows)


def test_the_standard_suite_is_a_cascade_with_two_judges_and_goes_on_to_the_same_bits(
    trained, tmp_path
):
    network, _ = trained
    suite = settings(
        levels=("standard",), linf=(0.05,), apgd_steps=3, apgd_draws=2, queries=8, targets=1
    )
    whole = suite.measure(network, progress=False)
    table = pd.DataFrame(whole["rows"])
    cells = [tuple(cell) for cell in table[["attack", "norm", "purpose"]].to_numpy()]
    fresh, frozen = ("APGD-CE", "APGD-DLR", "APGD-T", "Square"), ("APGD-CE", "APGD-T")
    assert cells == [
        *((name, norm, purpose) for norm in ("linf", "l2")
          for purpose, names in (("suite", fresh), ("frozen", frozen)) for name in names),
        ("APGD-CE", "linf", "unbounded"),
    ]  # fmt: skip
    held = [row["held"] for row in whole["rows"][:4]]
    assert (np.diff(held, axis=0) <= 0).all()
    assert len(whole["examples"]["labels"]) == experiment.SHOWN_IMAGES
    cascade, left = experiment.run_cascade, [2]

    def dies(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return cascade(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "run_cascade", dies)
        with pytest.raises(KeyboardInterrupt):
            suite.measure(network, tmp_path, progress=False)
    finished = suite.measure(network, tmp_path, progress=False)
    assert without_time(finished) == without_time(whole | {"run": tmp_path.name})


def test_the_file_holds_the_record(trained, tmp_path):
    network, _ = trained
    few = settings(levels=("published",), linf=("4/80",), focus="4/80")
    record = few.measure(network, tmp_path, progress=False)
    assert json.loads((tmp_path / "record.json").read_text()) | {"run": tmp_path.name} == record
    assert record["measurement"]["linf"] == [0.05]  # numbers, whatever a study's file had
    assert record["measurement"]["focus"] == 0.05
    assert AdversarialRobustness.of(**record["measurement"]) == few
    assert record["config"] == network.parameters


def without_time(record):
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in record["rows"]]
    return record | {"rows": rows}


def test_a_resume_file_of_another_measurement_is_refused_and_a_damaged_one_begun_anew(
    trained, tmp_path, caplog
):
    network, folder = trained
    few = settings(levels=("published",))

    def dies(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "layer_noise", dies)  # after the last attack
        with pytest.raises(KeyboardInterrupt):
            few.measure(network, tmp_path, progress=False)
    for changes in ({"judge_draws": 2}, {"copies": [folder / "1/network.pt"]}):
        other = settings(levels=("published",), **changes)
        with pytest.raises(ValueError, match=r"resume: .*resume\.json is of another measurement"):
            other.measure(network, tmp_path, progress=False)
    resume = tmp_path / "resume.json"
    resume.write_text(resume.read_text()[:-40])
    again = few.measure(network, tmp_path, progress=False)
    assert "resume.json is damaged and is not used" in caplog.text
    first = few.measure(network, progress=False)
    assert without_time(again) == without_time(first | {"run": tmp_path.name})


def test_the_curve_over_draws_ends_when_two_numbers_agree():
    rows = [
        {"attack": "PGD", "norm": "linf", "epsilon": 0.05, "purpose": purpose, "draws": draws,
         "level": "adaptive", "correct": [share] * 10 + [0.5]}
        for purpose, draws, share in (("draws", 1, 0.9), ("suite", 8, 0.5), ("draws", 16, 0.5))
    ]  # fmt: skip
    assert not goes_on(rows)
    assert goes_on(rows[:2])
    rows[2]["correct"] = [0.3] * 10 + [0.5]
    assert goes_on(rows)


def test_examples_are_the_first_images_and_what_most_draws_answer(record, trained):
    network, _ = trained
    data = network.data.subset(None, 20, seed=0)
    examples = record["examples"]
    n = experiment.SHOWN_IMAGES
    assert examples["labels"] == [data.classes[i] for i in data.test_labels[:n]]
    clean = torch.tensor(examples["clean"]).permute(0, 3, 1, 2)
    assert torch.equal(clean, data.test_images[:n].int())
    change = (torch.tensor(examples["perturbed"]) - torch.tensor(examples["clean"])).abs().max()
    assert 0 < change <= round(0.05 * 255) + 1
    assert set(examples["perturbed_answers"]) <= set(data.classes)
    assert as_images(data.test_images).max() <= 1


def test_the_tables_have_every_row_with_its_labels(record):
    records = [record | {"run": "a"}, record | {"run": "b", "seed": 1}]
    collected = AdversarialRobustness.collect(records)
    table = collected.tables["adversarial_robustness"]
    assert len(table) == 2 * len(record["rows"])
    assert set(table["run"]) == {"a", "b"}
    assert table["tiling"].unique().tolist() == ["random"]
    assert not {"correct", "clean", "norms", "config"} & set(table)
    found = collected.tables["adversarial_robustness_strongest"]
    assert found.groupby(["level", "norm", "epsilon"]).size().tolist() == [2] * 6
    assert set(collected.tables) == set(AdversarialRobustness.entry().tables)
    assert set(collected.figures) == set(AdversarialRobustness.entry().figures)
    with pytest.raises(ValueError, match="records: none to collect"):
        rows_by_image([])


def test_the_rows_of_a_table_are_in_the_order_of_configurations(record):
    records = [record | {"seed": 1}, record | {"tiling": "image"}, record]
    records = [one | {"run": str(i)} for i, one in enumerate(records)]
    table = AdversarialRobustness.collect(records).tables["adversarial_robustness"]
    assert table["run"].unique().tolist() == ["1", "2", "0"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"levels": "adaptive"}, TypeError, "levels: got 'adaptive', expected a sequence"),
        ({"levels": ()}, ValueError, r"levels: got \(\)"),
        ({"levels": ("adaptive", "adaptive")}, ValueError, "levels: got"),
        ({"levels": ("hard",)}, ValueError, "levels: got 'hard', allowed: published"),
        ({"images": 0}, ValueError, "images: got 0, allowed: at least 1"),
        ({"linf": (-0.1, 0.05)}, ValueError, "linf: got -0.1, allowed: finite, above 0"),
        ({"focus": 0.07}, ValueError, r"focus: got 0.07, expected one of linf, \(0.05, 0.2\)"),
        ({"judge_draws": 0}, ValueError, "judge_draws: got 0"),
        ({"query_images": 0}, ValueError, "query_images: got 0"),
        ({"steps": 1.5}, TypeError, "steps: got 1.5, expected an integer"),
        ({"seed": -1}, ValueError, "seed: got -1, allowed: at least 0"),
        ({"focus": "0.05"}, ValueError, "focus: got '0.05', allowed: numbers, quotients such as"),
        ({"copies": "network.pt"}, TypeError, "copies: got 'network.pt', expected a sequence"),
        ({"copies": [1]}, TypeError, "copies: got 1, expected a path"),
        ({"tiling": "none"}, TypeError, "adversarial_robustness: tiling: unknown; it takes linf"),
    ],
)
def test_what_is_not_allowed_is_named_before_any_work(changes, error, message):
    with pytest.raises(error, match=message):
        settings(**changes)


def test_more_images_than_there_are_are_refused(trained):
    network, _ = trained
    with pytest.raises(ValueError, match="images: got 31, but tiny bands has 30 test images"):
        settings(images=31).check(network)


def test_copies_of_another_kind_are_refused(trained, tmp_path):
    network, folder = trained
    assert load_copy(folder / "1/network.pt", network)[0].n_tiles == (4, 2, 1)
    with pytest.raises(ValueError, match=r"copies: .* was trained from the same seed, 0"):
        load_copy(folder / "0/network.pt", network)
    train(RECIPE.but(tiling="image", channels=(4, 4, 8), seed=1), tmp_path / "other")
    with pytest.raises(ValueError, match=r"copies: .*tiling 'image' instead of 'random', channels"):
        load_copy(tmp_path / "other/network.pt", network)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_copy(tmp_path / "none.pt", network)


def test_the_notebook_runs_answers_and_leaves_a_record(tmp_path):
    parameters = {
        "epochs": 1, "images": 10, "linf": [0.05], "l2": [0.5], "focus": 0.05, "steps": 1,
        "draws": 2, "draws_curve": [1], "judge_draws": 2, "threads": 1, "query_steps": 1,
        "query_images": 4, "queries": 8, "levels": ["published", "adaptive", "gradient_free"],
        "output": str(tmp_path),
    }  # fmt: skip
    executed = papermill.execute_notebook(
        ROOT / "notebooks/adversarial_robustness.ipynb",
        tmp_path / "executed.ipynb",
        parameters,
        kernel_name="python3",
        cwd=ROOT / "notebooks",
        progress_bar=False,
    )
    outputs = [out.get("data", {}) for cell in executed.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in data for data in outputs) == 4
    answers = [data["text/markdown"] for data in outputs if "text/markdown" in data]
    assert "adaptive" in answers[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"executed.ipynb", "record.json"}
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["measurement"]["linf"] == [0.05]
    assert len(record["rows"]) == 16
