"""Tuning gives every arm as many trials, never looks at the test, and stands before the records."""

import functools
import json
import os
import re
import sys

import chosen as chosen_module
import papermill
import pytest
import run_notebook
import run_study
import study as study_module
import tune_study
import yaml
from chosen import Chosen, arms_of, by_of, stage
from run_study import Loader, read_settings
from study import Study
from workflow_house import ROOT, execute, write_yaml

from rapa_lib.experiments.accuracy import Accuracy
from rapa_lib.experiments.provenance import CHOSEN_VARIABLE, file_hash
from rapa_lib.experiments.recipe import Recipe
from rapa_lib.experiments.records import provenance

RATE = {"low": 0.01, "high": 1.0, "scale": "log"}
DECAY = {"low": 1e-5, "high": 1e-3, "scale": "log"}
CONFIG = {
    "study": "planted",
    "description": "A study that is tuned",
    "threads": 1,
    "tuning": {
        "trials": 6,
        "best": 2,
        "seed": 1000,
        "seeds": [1001, 1002],
        "validation": 200,
        "short": {"epochs": 1},
        "ranges": {"learning_rate": RATE, "weight_decay": DECAY},
        "knobs": {
            "random": {"tile_lr_power": {"low": 0, "high": 1}},
            "noisy": {"noise": {"low": 0.5, "high": 2, "times": [0.8, 1.0, 0.0]}},
            "dropout": {"dropout": {"low": 0.1, "high": 0.6}},
        },
        "judged_by": {"dropout": "test_error_merged"},
    },
    "accuracy": {
        "common": {
            "dataset": "mnist5k", "n_train": 100, "n_test": 100, "subset": "seed", "epochs": 3,
            "batch_size": 20, "channels": [4, 4, 4], "learning_rate": 0.7, "pull_every": 1,
        },
        "grid": [
            {"tiling": ["none", "dropout", "noisy"], "seed": [0, 1, 2]},
            {"tiling": ["random"], "tile_init": ["identical"], "seed": [0, 1, 2]},
        ],
    },
}  # fmt: skip
ARMS = ("none", "dropout", "noisy", "random")


def config(**changes):
    """The study, changed: keys are paths."""
    content = json.loads(json.dumps(CONFIG))
    for path, value in changes.items():
        *parents, last = path.split("__")
        functools.reduce(dict.__getitem__, parents, content)[last] = value
    return content


def planted_error(parameters):
    """Least at a rate that the plan has in its middle; another trial is the best at full length."""
    rate = abs(parameters["learning_rate"] - 0.1)
    return 10 + rate if parameters["epochs"] == 1 else 20 - rate


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """Tune a study whose runs leave planted records; the runs of each stage, and what is chosen."""
    monkeypatch.setattr(chosen_module, "FOLDER", tmp_path / "chosen")
    monkeypatch.chdir(tmp_path)
    load = Loader()

    def tune(content=None, *, failing=None, error=planted_error, options=()):
        stages = {}

        def planted(options, study, folder, lock, *, partial=False, target):
            assert target == "trials"
            stages[study.name] = [run.parameters for run in study.runs["accuracy"]]
            for run in study.runs["accuracy"]:
                place = folder / "runs/accuracy" / run.name
                place.mkdir(parents=True, exist_ok=True)
                if failing is not None and (why := failing(run.parameters)):
                    text = json.dumps({"error": why, "attempts": 1})
                    (place / "error.json").write_text(text)
                    continue
                images = load(read_settings(Accuracy, run).recipe)
                value = error(run.parameters)
                record = {
                    "test_error": 50.0 if run.parameters["tiling"] == "dropout" else value,
                    "test_error_merged": value, "dataset": images.name,
                    "data_fingerprint": images.fingerprint,
                }  # fmt: skip
                (place / "record.json").write_text(json.dumps(record))
            return not any(failing and failing(run) for run in stages[study.name])

        monkeypatch.setattr(tune_study, "run_snakemake", planted)
        file = write_yaml(tmp_path / "planted.yaml", content or config())
        arguments = ["tune_study", file, "--results", tmp_path / "results", *options]
        monkeypatch.setattr(sys, "argv", [str(word) for word in arguments])
        tune_study.main()
        path = tmp_path / "chosen/planted.yaml"
        return stages, Chosen.read(path), path

    return tune


# --- The trials -------------------------------------------------------------------------------


def test_every_arm_has_as_many_trials_of_either_length(tuned):
    stages, _, _ = tuned()
    for name, each in (("short", 6), ("full", 2 * 2)):
        counts = [sum(run["tiling"] == arm for run in stages[name]) for arm in ARMS]
        assert counts == [each] * len(ARMS)
    rates = {
        arm: [run["learning_rate"] for run in stages["short"] if run["tiling"] == arm]
        for arm in ARMS
    }
    assert rates["none"] == rates["dropout"] == rates["noisy"] == rates["random"]
    assert {run["epochs"] for run in stages["short"]} == {1}
    assert {run["epochs"] for run in stages["full"]} == {3}
    own = [run for run in stages["short"] if run["tiling"] == "random"]
    assert {run["tile_init"] for run in own} == {"identical"}
    assert len({run["tile_lr_power"] for run in own}) == 6


def test_no_trial_looks_at_the_test_images_nor_has_a_seed_of_the_study(tuned):
    stages, _, _ = tuned()
    for run in [*stages["short"], *stages["full"]]:
        assert run["validation"] == 200
        assert "n_test" not in run
        assert run["seed"] in (1000, 1001, 1002)
        recipe = Recipe.of(**{k: v for k, v in run.items() if k in Recipe.names()})
        assert recipe.data.validation == 200
    assert {run["seed"] for run in stages["short"]} == {1000}
    assert {run["seed"] for run in stages["full"]} == {1001, 1002}


def test_the_images_of_a_trial_are_training_images_of_the_study():
    data = Recipe.of(n_train=100, subset="seed", validation=200, seed=1000, device="cpu").load()
    whole = Recipe.of(device="cpu").load()
    known = {image.numpy().tobytes() for image in whole.train_images}
    tested = {image.numpy().tobytes() for image in whole.test_images}
    assert known.isdisjoint(tested)
    for images in (data.train_images, data.test_images):
        assert {image.numpy().tobytes() for image in images} <= known


def test_the_best_at_full_length_of_the_best_short_ones_is_chosen(tuned):
    stages, chosen, path = tuned()
    rates = [run["learning_rate"] for run in stages["short"] if run["tiling"] == "none"]
    best = sorted(rates, key=lambda rate: abs(rate - 0.1))[:2]
    winner = max(best, key=lambda rate: abs(rate - 0.1))
    for arm in ARMS:
        assert chosen.arms[arm]["learning_rate"] == winner
        assert [trial["values"]["learning_rate"] for trial in chosen.trials[arm]] == rates
        assert ["full" in trial for trial in chosen.trials[arm]] == [r in best for r in rates]
    assert set(chosen.arms["noisy"]) == {"learning_rate", "weight_decay", "noise"}
    assert chosen.images["name"].endswith(
        "[200 of 4,000 train for validation] [100 of 3,800 train]"
    )
    before = path.read_bytes()
    tuned()
    assert path.read_bytes() == before
    assert b"&id" not in before  # no anchors


def test_where_one_goes_on_the_short_runs_decide(tuned):
    stages, chosen, _ = tuned(config(tuning__best=1))
    assert list(stages) == ["short"]
    rates = [run["learning_rate"] for run in stages["short"] if run["tiling"] == "none"]
    for arm in ARMS:
        assert chosen.arms[arm]["learning_rate"] == min(rates, key=lambda rate: abs(rate - 0.1))
        assert not any("full" in trial for trial in chosen.trials[arm])


def test_an_arm_is_judged_by_what_is_said(tuned):
    _, chosen, _ = tuned()
    assert min(trial["short"] for trial in chosen.trials["dropout"]) < 12
    _, by_default, _ = tuned(config(tuning__judged_by={}))
    assert {trial["short"] for trial in by_default.trials["dropout"]} == {50.0}


def test_trials_that_diverged_are_left_out(tuned):
    def failing(parameters):
        return "DivergedError: the loss is nan" if parameters["learning_rate"] > 0.05 else None

    _, chosen, _ = tuned(failing=failing)
    for arm in ARMS:
        assert chosen.arms[arm]["learning_rate"] <= 0.05
        assert "diverged" in [trial["short"] for trial in chosen.trials[arm]]


def test_trials_that_failed_otherwise_stop_tuning(tuned, tmp_path, capsys):
    with pytest.raises(SystemExit, match="not finished; the same command goes on"):
        tuned(failing=lambda run: "OSError: disk full" if run["tiling"] == "noisy" else None)
    assert "OSError: disk full" in capsys.readouterr().out
    assert not (tmp_path / "chosen").exists()
    with pytest.raises(SystemExit, match="every trial of noisy diverged"):
        tuned(failing=lambda run: "DivergedError: nan" if run["tiling"] == "noisy" else None)


def test_a_study_with_records_is_not_tuned_any_more(tuned, tmp_path):
    record = tmp_path / "results/planted/runs/accuracy/none-0-abc/record.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    with pytest.raises(SystemExit, match=r"tuning not started: .* has records already"):
        tuned()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning__seeds": [2, 1001]}, "tuning: seeds: got 2, which the study confirms with"),
        ({"tuning__seed": 1}, "tuning: seeds: got 1, which the study confirms with"),
        ({"tuning__knobs": {"image": {"x": {"low": 0, "high": 1}}}}, "knobs: got image, allowed"),
        ({"tuning__best": 7}, "tuning: best: got 7, allowed: 1 to 6"),
        ({"tuning__judged_by": {"none": "train_error"}}, "'train_error' is not one of"),
        ({"tuning__ranges": {"x": {"low": 0, "high": 1}}}, "has no parameter x to set"),
        ({"tuning__more": 1}, "'more' was unexpected"),
    ],
)
def test_a_bad_block_is_refused(tuned, changes, message):
    with pytest.raises((SystemExit, ValueError), match=message):
        tuned(config(**changes))


def test_a_study_without_the_block_is_not_tuned(tuned):
    content = config()
    del content["tuning"]
    with pytest.raises(SystemExit, match="planted has no tuning block"):
        tuned(content)


# --- The study that takes the values ----------------------------------------------------------


def check(content):
    study = Study.of(content)
    run_study.check_tuned(study, content, None, Loader())
    return study


def test_runs_take_the_values_of_their_arm_and_what_the_grid_says_itself(tuned):
    _, chosen, _ = tuned()
    study = check(config())
    for run in study.runs["accuracy"]:
        arm = run.parameters["tiling"]
        assert chosen.arms[arm].items() <= run.parameters.items()
        assert run.parameters["seed"] in (0, 1, 2)
        assert "validation" not in run.parameters
    content = config()
    content["accuracy"]["grid"].append({"tiling": ["none"], "learning_rate": [0.3], "seed": [0]})
    *_, last = Study.of(content).runs["accuracy"]
    assert last.parameters["learning_rate"] == 0.3
    assert last.parameters["weight_decay"] == chosen.arms["none"]["weight_decay"]


def test_a_study_that_is_not_tuned_or_tuned_for_something_else_is_refused(tuned, tmp_path):
    with pytest.raises(ValueError, match=r"tuning: there is no .*planted.yaml; make tune"):
        check(config())
    tuned()
    check(config())
    for changes in (
        {"tuning__trials": 7}, {"accuracy__common__epochs": 4},
        {"accuracy__grid": [{"tiling": list(ARMS), "seed": [0]}]},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="was tuned for another grid or by another tuning"):
            check(config(**changes))
    path = tmp_path / "chosen/planted.yaml"
    text = path.read_text()
    path.write_text(text.replace("  random:", "  others:"))
    with pytest.raises(ValueError, match=r"planted\.yaml has no random; make tune"):
        check(config())
    path.write_text(text)
    path.write_text(path.read_text().replace("fingerprint: ", "fingerprint: 00"))
    with pytest.raises(
        ValueError, match=r"was tuned on MNIST .* but MNIST .* give the study anoth"
    ):
        check(config())
    path.write_text("arms: [")
    with pytest.raises(ValueError, match=r"chosen: cannot read .*planted\.yaml"):
        Study.of(config())


def test_values_that_are_newer_than_the_first_record_are_refused_by_content_not_by_time(
    tuned, tmp_path
):
    _, _, path = tuned()
    folder = tmp_path / "results/planted"
    place = folder / "runs/accuracy/none-0-abc"
    place.mkdir(parents=True)
    (place / "record.json").write_text(json.dumps({"chosen_sha256": file_hash(path)}))
    study = Study.of(config())
    os.utime(path, (2e9, 2e9))  # as a checkout may set it
    run_study.check_fixed(study, folder)
    path.write_text(path.read_text() + "# touched\n")
    os.utime(path, (1e9, 1e9))  # older, and yet newer
    with pytest.raises(ValueError, match=r"chosen_sha256 is .*stand before the first record"):
        run_study.check_fixed(study, folder)
    (place / "record.json").write_text("{}")
    with pytest.raises(ValueError, match="chosen_sha256"):
        run_study.check_fixed(study, folder)


def test_every_run_is_handed_the_hash_of_the_values(tmp_path, monkeypatch):
    path = tmp_path / "values.yaml"
    path.write_text("arms: {}\n")
    seen = {}

    def see(source, target, *_, **__):
        import torch

        seen.update(provenance(torch.device("cpu")))
        target.write_text("{}")

    monkeypatch.setenv(CHOSEN_VARIABLE, "")  # to be set back afterwards
    monkeypatch.setattr(papermill, "execute_notebook", see)
    arguments = ["x", "n.ipynb", tmp_path / "done.ipynb", "--parameters", "{}", "--chosen", path]
    monkeypatch.setattr(sys, "argv", [str(word) for word in arguments])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_notebook.main()
    assert seen["chosen_sha256"] == file_hash(path)


def test_runs_of_other_studies_say_nothing_of_values(monkeypatch):
    import torch

    monkeypatch.delenv(CHOSEN_VARIABLE, raising=False)
    assert "chosen_sha256" not in provenance(torch.device("cpu"))


def test_snakemake_hands_the_file_on_and_knows_the_stages(tuned, house, tmp_path):
    """What it would do, in the copy of the workflow, whose own file of values it finds."""
    _, chosen, path = tuned()
    own = house / "config/chosen/planted.yaml"
    own.parent.mkdir(exist_ok=True)
    own.write_bytes(path.read_bytes())

    def planned(content, target):
        file = write_yaml(tmp_path / f"{target}.yaml", content)
        done = execute(
            house, sys.executable, "-m", "snakemake", target, "--dry-run", "--printshellcmds",
            "--snakefile", "workflow/Snakefile", "--configfile", file, "--cores", "1",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        said = planned(config(), "tables")
    finally:
        own.unlink()
    assert said.count("--chosen config/chosen/planted.yaml") >= 12
    assert str(chosen.arms["none"]["weight_decay"]) in said
    trials = {arm: [chosen.arms[arm]] for arm in ARMS}
    said = planned(stage(config(), "short", trials, [1000], {"epochs": 1}), "trials")
    assert said.count("run_notebook.py notebooks/accuracy.ipynb") == 4
    # A rule for each block of the grid, the earlier the sooner.
    found = re.findall(r"rule (accuracy_run\w*):.*?priority: (\d+)", said, re.DOTALL)
    assert dict(found) == {
        "accuracy_run": "8", "accuracy_run_2": "7", "accuracy_run_3": "6", "accuracy_run_4": "5"
    }  # fmt: skip
    assert "--chosen" not in said
    assert "claims.md" not in said
    assert "keep_records.py" in said


def test_arms_are_the_tilings_of_the_grid_as_they_are_first_set():
    assert list(arms_of(CONFIG["accuracy"])) == list(ARMS)
    assert arms_of({"common": {}}) == {"random": {"tiling": "random"}}
    assert arms_of({"common": {"tiling": "none"}, "grid": [{"seed": [1]}]}) == {
        "none": {"tiling": "none"}
    }


def test_arms_can_be_numbers_of_tiles_too_whatever_else_the_grid_says():
    many, few = [1024, 256, 64], [16, 4, 1]
    accuracy = {
        "common": {"n_tiles": few},
        "grid": [
            {"tiling": ["none"], "seed": [0]},
            {"tiling": ["random"], "n_tiles": [few, many], "sync_every": [0, 4], "seed": [0, 1]},
        ],
    }
    found = arms_of(accuracy, ("tiling", "n_tiles"))
    assert list(found) == ["none 16-4-1", "random 16-4-1", "random 1024-256-64"]
    assert found["random 1024-256-64"] == {"tiling": "random", "n_tiles": many, "sync_every": 0}
    assert list(arms_of(accuracy)) == ["none", "random"]
    with pytest.raises(ValueError, match="by: got apples, allowed: what common or the grid set"):
        arms_of(accuracy, ("tiling", "apples"))


def test_runs_take_the_values_of_their_tiling_and_number_of_tiles():
    many, few = [1024, 256, 64], [16, 4, 1]
    block = {"tiling": ["random"], "n_tiles": [few, many], "sync_every": [0, 4], "seed": [0]}
    accuracy = {"common": {"dataset": "mnist5k", "n_tiles": few}, "grid": [block]}
    values = {"random 16-4-1": {"learning_rate": 0.1}, "random 1024-256-64": {"learning_rate": 9.0}}
    runs = study_module._grid("accuracy", accuracy, 1, None, values, ("tiling", "n_tiles"))
    rates = {(run.parameters["n_tiles"][0], run.parameters["sync_every"]): run for run in runs}
    assert {k: run.parameters["learning_rate"] for k, run in rates.items()} == {
        (16, 0): 0.1, (16, 4): 0.1, (1024, 0): 9.0, (1024, 4): 9.0,
    }  # fmt: skip


def test_committed_values_are_those_of_their_study():
    for path in (ROOT / "config/chosen").glob("*.yaml"):
        chosen = Chosen.read(path)
        content = yaml.safe_load((ROOT / f"config/{chosen.study}.yaml").read_text())
        assert path.stem == chosen.study
        assert set(chosen.arms) >= set(arms_of(content["accuracy"], by_of(content)))
        assert chosen.tuning_sha256 == chosen_module.tuning_hash(content)
