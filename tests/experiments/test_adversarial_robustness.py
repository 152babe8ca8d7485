"""The robustness experiment: what it measures, that it goes on, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from tiny import SHAPE, tiny_dataset

from rapa_lib.experiments.accuracy.experiment import AccuracyRun, save_run
from rapa_lib.experiments.adversarial_robustness import experiment
from rapa_lib.experiments.adversarial_robustness.experiment import (
    RobustnessRun,
    load_copy,
    robustness_table,
)
from rapa_lib.experiments.trained import Trained
from rapa_lib.robustness import as_images

ROOT = Path(__file__).parents[2]
RUN = AccuracyRun(**SHAPE, epochs=15, batch_size=16, device="cpu", similarity_every=0)
SETTINGS = RobustnessRun(
    levels=("published", "adaptive"), images=20, linf=(0.05, 0.2), l2=(0.5,), steps=2, draws=2,
    focus=0.05, draws_curve=(1, 2, 4), judge_draws=3,
)  # fmt: skip


def train(run, folder):
    data = tiny_dataset()
    network = run.build_network(data)
    training = run.train(network, data, progress=False)
    save_run(folder, run, network, data, training, run.evaluate(network, data, training.scaling))
    return Trained(network.eval(), training.scaling, run, data, training.measurements)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    networks = {seed: train(replace(RUN, seed=seed), folder / str(seed)) for seed in (0, 1)}
    return networks[0], folder


@pytest.fixture(scope="module")
def record(trained):
    network, folder = trained
    return SETTINGS.measure(network, [folder / "1/network.pt"], progress=False)


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


def test_a_network_without_lots_is_not_asked_for_draws(tmp_path):
    plain = train(replace(RUN, tiling="none"), tmp_path)
    rows = SETTINGS.measure(plain, progress=False)["rows"]
    assert {row["draws"] for row in rows} == {1}
    assert "draws" not in {row["purpose"] for row in rows}


def test_interrupted_after_any_attack_it_goes_on_to_the_same_bits(trained, record, tmp_path):
    network, folder = trained
    copies, resume = [folder / "1/network.pt"], tmp_path / "resume.json"
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
                SETTINGS.measure(network, copies, resume=resume, progress=False)
    finished = SETTINGS.measure(network, copies, resume=resume, progress=False)
    assert without_time(finished) == without_time(record)
    left[0] = 0
    with pytest.MonkeyPatch.context() as patch:  # nothing is left to be done
        patch.setattr(experiment, "run_attack", dies)
        again = SETTINGS.measure(network, copies, resume=resume, progress=False)
    assert again == finished


def without_time(record):
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in record["rows"]]
    return record | {"rows": rows}


def test_a_resume_file_of_another_measurement_is_refused_and_a_damaged_one_begun_anew(
    trained, tmp_path, caplog
):
    network, _ = trained
    resume = tmp_path / "resume.json"
    few = replace(SETTINGS, levels=("published",))
    first = few.measure(network, resume=resume, progress=False)
    with pytest.raises(ValueError, match=r"resume: .*resume\.json is of another measurement"):
        replace(few, judge_draws=2).measure(network, resume=resume, progress=False)
    resume.write_text(resume.read_text()[:-40])
    again = few.measure(network, resume=resume, progress=False)
    assert "resume.json is damaged and is not used" in caplog.text
    assert without_time(again) == without_time(first)


def test_the_curve_over_draws_ends_when_two_numbers_agree():
    rows = [
        {"attack": "PGD", "norm": "linf", "epsilon": 0.05, "purpose": purpose, "draws": draws,
         "level": "adaptive", "correct": [share] * 10 + [0.5]}
        for purpose, draws, share in (("draws", 1, 0.9), ("suite", 8, 0.5), ("draws", 16, 0.5))
    ]  # fmt: skip
    assert not SETTINGS._goes_on(rows)
    assert SETTINGS._goes_on(rows[:2])
    rows[2]["correct"] = [0.3] * 10 + [0.5]
    assert SETTINGS._goes_on(rows)


def test_examples_are_the_first_images_and_what_most_draws_say(record, trained):
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


def test_the_table_has_every_row_with_its_labels(record):
    table = robustness_table([record | {"run": "a"}, record | {"run": "b"}])
    assert len(table) == 2 * len(record["rows"])
    assert set(table["run"]) == {"a", "b"}
    assert table["tiling"].unique().tolist() == ["random"]
    with pytest.raises(ValueError, match="records: none to collect"):
        robustness_table([])


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
    ],
)
def test_what_is_not_allowed_is_named_before_any_work(changes, error, message):
    with pytest.raises(error, match=message):
        replace(SETTINGS, **changes)


def test_more_images_than_there_are_are_refused(trained):
    network, _ = trained
    with pytest.raises(ValueError, match="images: got 31, but tiny bands has 30 test images"):
        replace(SETTINGS, images=31).check(network.network, network.data)


def test_copies_of_another_kind_are_refused(trained, tmp_path):
    network, folder = trained
    assert load_copy(folder / "1/network.pt", network)[0].n_tiles == (4, 2, 1)
    with pytest.raises(ValueError, match=r"copies: .* was trained from the same seed, 0"):
        load_copy(folder / "0/network.pt", network)
    train(replace(RUN, tiling="image", channels=(4, 4, 8), seed=1), tmp_path / "other")
    with pytest.raises(ValueError, match=r"copies: .*tiling 'image' instead of 'random', channels"):
        load_copy(tmp_path / "other/network.pt", network)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_copy(tmp_path / "none.pt", network)


def test_the_notebook_runs_answers_and_leaves_a_record(tmp_path):
    parameters = {
        "epochs": 1, "images": 10, "linf": [0.05], "l2": [0.5], "focus": 0.05, "steps": 1,
        "draws": 2, "draws_curve": [1], "judge_draws": 2, "threads": 1, "query_steps": 1,
        "query_images": 4, "levels": ["published", "adaptive", "gradient_free"],
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
    assert sum("image/png" in data for data in outputs) == 3
    answers = [data["text/markdown"] for data in outputs if "text/markdown" in data]
    assert "adaptive" in answers[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"executed.ipynb", "record.json"}
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["measurement"]["linf"] == [0.05]
    assert len(record["rows"]) == 14
