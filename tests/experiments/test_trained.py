"""Further experiments begin with the network that was saved, or with the same one trained anew."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import SHAPE, same_bits, tiny_dataset

from rapa_lib import Dataset, frozen_draws
from rapa_lib.data import DataChoice
from rapa_lib.experiments import trained as module
from rapa_lib.experiments.accuracy import Accuracy
from rapa_lib.experiments.recipe import Recipe
from rapa_lib.experiments.tracking import Tracking
from rapa_lib.experiments.trained import (
    SavedNetwork,
    Trained,
    load_network,
    load_or_train,
    save_network,
    trained_among,
)
from rapa_lib.training import load_checkpoint, save_checkpoint

MADE = SHAPE | {"epochs": 2, "batch_size": 16, "seed": 6, "penalty_every": 2}
TINY = MADE | {"draws": 2}


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    """The tiny data set, whatever a run asks for."""
    monkeypatch.setattr(DataChoice, "load", lambda choice, seed=None: tiny_dataset())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run as the accuracy experiment leaves it."""
    folder, run = tmp_path_factory.mktemp("run"), Accuracy.of(**TINY, device="cpu")
    run.measure(tiny_dataset(), folder, progress=False)
    network, training = run.train(tiny_dataset(), progress=False)
    return folder, network, training


def copied(folder, tmp_path, *, without=()):
    for name in {"network.pt", "similarity.json"} - set(without):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path / "network.pt"


def test_the_saved_network_comes_back_with_all_that_belongs_to_it(saved):
    folder, network, training = saved
    trained = load_or_train(folder / "network.pt", device="cpu")
    assert isinstance(trained, Trained)
    assert same_bits(trained.network.state_dict(), network.state_dict())
    assert not any(module.training for module in trained.network.modules())
    assert trained.scaling == training.scaling
    assert trained.recipe == Accuracy.of(**TINY, device="cpu").recipe
    expected = Accuracy.of(**TINY, device="cpu", threads=0).parameters()
    assert dict(trained.parameters) == expected
    assert trained.data.fingerprint == tiny_dataset().fingerprint
    assert trained.measurements == training.measurements
    assert [sorted(taken) for taken in trained.measurements] == [
        ["epoch", "penalty", "similarity"],
        ["epoch", "similarity"],
        ["epoch", "penalty", "similarity"],
    ]


@pytest.mark.parametrize("no_network", ["", None])
def test_without_a_network_one_is_trained_with_the_same_bits(saved, no_network):
    folder, *_ = saved
    torch.manual_seed(8)
    state = torch.get_rng_state()
    made = load_or_train(no_network, MADE, device="cpu", progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    loaded = load_or_train(str(folder / "network.pt"), device="cpu")
    assert same_bits(made.network.state_dict(), loaded.network.state_dict())
    assert (made.scaling, made.recipe, made.measurements) == (
        loaded.scaling, loaded.recipe, loaded.measurements,
    )  # fmt: skip
    assert not any(module.training for module in made.network.modules())
    x = made.scaling(tiny_dataset().test_images)
    with torch.no_grad(), frozen_draws(made.network, 3), frozen_draws(loaded.network, 3):
        assert torch.equal(made.network(x), loaded.network(x))


def test_a_loaded_network_takes_nothing_from_the_arguments_of_a_training(saved):
    trained = load_or_train(saved[0] / "network.pt", {"tiling": "image", "epochs": 9}, device="cpu")
    assert (trained.recipe.network.tiling, trained.recipe.training.epochs) == ("random", 2)


def test_device_and_threads_are_those_of_now(saved):
    before = torch.get_num_threads()
    try:
        trained = load_or_train(saved[0] / "network.pt", device="cpu", threads=before + 1)
        assert torch.get_num_threads() == trained.recipe.threads == before + 1
        made = load_or_train(
            "", MADE | {"epochs": 1, "threads": 1, "device": "tpu"}, device="cpu",
            threads=before + 2, progress=False,
        )  # fmt: skip
        assert torch.get_num_threads() == made.recipe.threads == before + 2
    finally:
        torch.set_num_threads(before)


def test_no_training_arguments_are_the_defaults(monkeypatch):
    asked = []
    monkeypatch.setattr(
        module, "train_recipe", lambda recipe, *_, **others: asked.append((recipe, others)) or 1 / 0
    )
    monkeypatch.setattr(DataChoice, "load", lambda choice, seed=None: big_enough())
    with pytest.raises(ZeroDivisionError):
        load_or_train(device="cpu")
    ((recipe, others),) = asked
    assert recipe == Recipe(device="cpu")
    assert others["tracking"] == Tracking()


def big_enough():
    images, labels = torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.arange(2)
    return Dataset("blank", images, labels, images, labels, ("a", "b"))


# --- What is recorded beside it ---------------------------------------------------------------


def test_a_network_without_recorded_tiles_has_no_measurements(saved, tmp_path):
    path = copied(saved[0], tmp_path, without=["similarity.json"])
    assert load_or_train(path, device="cpu").measurements == []


@pytest.mark.parametrize("text", ["", '{"measur', "[]", "{}", "3"])
def test_a_damaged_record_of_tiles_is_named(saved, tmp_path, text):
    path = copied(saved[0], tmp_path)
    (tmp_path / "similarity.json").write_text(text)
    with pytest.raises(ValueError, match=r"^network: .*similarity\.json beside it is damaged"):
        load_or_train(path, device="cpu")


def test_measurements_are_those_of_the_file(saved, tmp_path):
    path = copied(saved[0], tmp_path)
    content = json.loads((tmp_path / "similarity.json").read_text())
    content["measurements"] = content["measurements"][:1]
    (tmp_path / "similarity.json").write_text(json.dumps(content))
    assert load_or_train(path, device="cpu").measurements == content["measurements"]


# --- Errors -----------------------------------------------------------------------------------


def test_other_data_than_it_was_trained_on_are_refused(saved, monkeypatch):
    data = tiny_dataset()
    other = replace(data, train_images=data.train_images.flip(0))
    monkeypatch.setattr(DataChoice, "load", lambda choice, seed=None: other)
    ours, theirs = (d.fingerprint[:12] for d in (other, data))
    message = rf"^network: .*network.pt was trained on tiny bands .*{theirs}….*{ours}…$"
    with pytest.raises(ValueError, match=message):
        load_or_train(saved[0] / "network.pt", device="cpu")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nothing\.pt"):
        load_or_train(tmp_path / "nothing.pt", device="cpu")


@pytest.mark.parametrize("kept", [0, 0.6])
def test_a_damaged_file_is_named(saved, tmp_path, kept):
    path = copied(saved[0], tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"network.pt is no undamaged network checkpoint"):
        load_or_train(path, device="cpu")


def test_a_file_that_lacks_a_tensor_is_named(saved, tmp_path):
    content = load_checkpoint(saved[0] / "network.pt")
    del content["state"]["classifier.bias"], content["format"]
    save_checkpoint(tmp_path / "network.pt", content)
    with pytest.raises(ValueError, match=r"(?s)network.pt does not fit.*classifier.bias"):
        load_or_train(tmp_path / "network.pt", device="cpu")


@pytest.mark.parametrize("name", ["learning_rat", "draws"])
def test_an_unknown_argument_of_the_training_is_named(name):
    with pytest.raises(TypeError, match=f"^{name}: unknown; a run has dataset"):
        load_or_train("", {name: 0.1}, device="cpu")


def test_a_bad_argument_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(
        DataChoice, "load", lambda choice, seed=None: pytest.fail("data were loaded")
    )
    with pytest.raises(ValueError, match=r"^epochs: got 0"):
        load_or_train("", {"epochs": 0}, device="cpu")


@pytest.mark.parametrize("network", ["", "saved"])
def test_a_device_that_is_not_there_is_refused(saved, network):
    with pytest.raises(ValueError, match=r"^device: got 'tpu', allowed: auto, cpu"):
        load_or_train(saved[0] / "network.pt" if network else "", MADE, device="tpu")


# --- The file, and what is known before it is there -------------------------------------------


def test_a_file_has_what_names_the_run_and_the_data(saved):
    file = SavedNetwork.read(saved[0] / "network.pt")
    assert file.path == saved[0] / "network.pt"
    assert file.parameters == Accuracy.of(**TINY, device="cpu").parameters()
    assert file.data == {
        "name": "tiny bands", "fingerprint": tiny_dataset().fingerprint, "in_channels": 2,
        "n_classes": 3, "image_size": [8, 8],
    }  # fmt: skip


def test_a_network_can_be_saved_and_loaded_without_a_run(saved, tmp_path):
    _, network, training = saved
    recipe = Accuracy.of(**TINY, device="cpu").recipe
    save_network(tmp_path / "x.pt", network, training.scaling, tiny_dataset(), recipe.flat())
    loaded, scaling, again = load_network(tmp_path / "x.pt")
    assert same_bits(loaded.state_dict(), network.state_dict())
    assert (scaling, again) == (training.scaling, recipe)


def test_a_planned_network_has_shapes_and_labels_and_no_weights(saved):
    recipe = Accuracy.of(**TINY, device="cpu").recipe
    planned = Trained.planned(recipe, tiny_dataset(), recipe.flat())
    assert planned.device.type == "meta"
    loaded = load_or_train(saved[0] / "network.pt", device="cpu")
    shapes = [
        {name: tensor.shape for name, tensor in one.network.state_dict().items()}
        for one in (planned, loaded)
    ]
    assert shapes[0] == shapes[1]
    assert planned.labels() == loaded.labels()
    assert planned.labels()["n_tiles"] == "4-2-1"
    assert not planned.network.training


def test_a_notebooks_parameters_name_the_network(saved):
    folder, network, _ = saved
    notebook = {name: value for name, value in MADE.items() if name != "seed"}
    notebook |= {"training_seed": 6, "seed": 99, "images": 3, "device": "cpu", "threads": 0}
    made = trained_among(notebook | {"network": ""})
    assert same_bits(made.network.state_dict(), network.state_dict())
    assert made.parameters["seed"] == 6
    loaded = trained_among(notebook | {"network": str(folder / "network.pt")})
    assert same_bits(loaded.network.state_dict(), network.state_dict())
