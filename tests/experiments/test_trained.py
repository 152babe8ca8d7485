"""Further experiments begin with the network that was saved, or with the same one trained anew."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import SHAPE, same_bits, tiny_dataset

from rapa_lib import Dataset, frozen_draws
from rapa_lib.experiments.accuracy.experiment import AccuracyRun, save_run
from rapa_lib.experiments.trained import Trained, load_or_train
from rapa_lib.training import load_checkpoint, save_checkpoint

TINY = SHAPE | {"epochs": 2, "batch_size": 16, "seed": 6, "penalty_every": 2, "draws": 2}


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    """The tiny data set, whatever a run asks for."""
    monkeypatch.setattr(AccuracyRun, "load_data", lambda run: tiny_dataset())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run as the accuracy experiment leaves it."""
    folder, data = tmp_path_factory.mktemp("run"), tiny_dataset()
    run = AccuracyRun(**TINY, device="cpu")
    network = run.build_network(data)
    training = run.train(network, data, progress=False)
    save_run(folder, run, network, data, training, run.evaluate(network, data, training.scaling))
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
    assert trained.run.parameters() == AccuracyRun(**TINY, device="cpu").parameters()
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
    made = load_or_train(no_network, TINY, device="cpu", progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    loaded = load_or_train(str(folder / "network.pt"), device="cpu")
    assert same_bits(made.network.state_dict(), loaded.network.state_dict())
    assert (made.scaling, made.run, made.measurements) == (
        loaded.scaling, loaded.run, loaded.measurements,
    )  # fmt: skip
    assert not any(module.training for module in made.network.modules())
    x = made.scaling(tiny_dataset().test_images)
    with torch.no_grad(), frozen_draws(made.network, 3), frozen_draws(loaded.network, 3):
        assert torch.equal(made.network(x), loaded.network(x))


def test_a_loaded_network_takes_nothing_from_the_arguments_of_a_training(saved):
    trained = load_or_train(saved[0] / "network.pt", {"tiling": "image", "epochs": 9}, device="cpu")
    assert (trained.run.tiling, trained.run.epochs) == ("random", 2)


def test_device_and_threads_are_those_of_now(saved):
    before = torch.get_num_threads()
    try:
        trained = load_or_train(saved[0] / "network.pt", device="cpu", threads=before + 1)
        assert torch.get_num_threads() == trained.run.threads == before + 1
        made = load_or_train(
            "", TINY | {"epochs": 1, "threads": 1, "device": "tpu"}, device="cpu",
            threads=before + 2, progress=False,
        )  # fmt: skip
        assert torch.get_num_threads() == made.run.threads == before + 2
    finally:
        torch.set_num_threads(before)


def test_no_training_arguments_are_the_defaults(monkeypatch):
    asked = []
    monkeypatch.setattr(AccuracyRun, "train", lambda run, *_, **__: asked.append(run) or 1 / 0)
    monkeypatch.setattr(AccuracyRun, "load_data", lambda run: big_enough())
    with pytest.raises(ZeroDivisionError):
        load_or_train(device="cpu")
    assert asked == [AccuracyRun(device="cpu")]


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
    monkeypatch.setattr(AccuracyRun, "load_data", lambda run: other)
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


def test_an_unknown_argument_of_the_training_is_named():
    with pytest.raises(TypeError, match="learning_rat"):
        load_or_train("", {"learning_rat": 0.1}, device="cpu")


def test_a_bad_argument_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(AccuracyRun, "load_data", lambda run: pytest.fail("data were loaded"))
    with pytest.raises(ValueError, match=r"^epochs: got 0"):
        load_or_train("", {"epochs": 0}, device="cpu")


@pytest.mark.parametrize("network", ["", "saved"])
def test_a_device_that_is_not_there_is_refused(saved, network):
    with pytest.raises(ValueError, match=r"^device: got 'tpu', allowed: auto, cpu"):
        load_or_train(saved[0] / "network.pt" if network else "", TINY, device="tpu")
