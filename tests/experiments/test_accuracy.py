"""A run is checked before it works, comes back from its files bit by bit, and records itself."""

import json
import re
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SHAPE, same_bits, tiny_dataset

from rapa_lib import (
    InputScaling,
    RapaConvNet,
    TrainConfig,
    count_parameters,
    evaluate,
    frozen_draws,
)
from rapa_lib.experiments.accuracy.experiment import (
    LABELS,
    AccuracyRun,
    choose_device,
    load_network,
    save_run,
)
from rapa_lib.experiments.records import collect, git_commit, package_version
from rapa_lib.instruments.similarity import tile_similarity
from rapa_lib.training import load_checkpoint, save_checkpoint

TINY_RUN = AccuracyRun(
    **SHAPE, epochs=2, batch_size=16, learning_rate=0.02, draws=3, seed=6, device="cpu"
)


def finish(run, folder):
    """Train, evaluate and save; return what load_network and the record are compared with."""
    data = tiny_dataset()
    network = run.build_network(data)
    training = run.train(network, data, progress=False)
    errors = run.evaluate(network, data, training.scaling)
    record = save_run(folder, run, network, data, training, errors)
    return network, training, errors, record


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, *finish(TINY_RUN, folder)


# --- What a run leaves ------------------------------------------------------------------------


def test_a_saved_network_comes_back_bit_by_bit(finished):
    folder, network, training, *_ = finished
    loaded, scaling, run = load_network(folder / "network.pt")
    assert same_bits(loaded.state_dict(), network.state_dict())
    assert scaling == training.scaling
    assert isinstance(scaling, InputScaling)
    assert not any(m.training for m in loaded.modules())
    assert run.parameters() == TINY_RUN.parameters()
    x = scaling(tiny_dataset().test_images)
    with torch.no_grad(), frozen_draws(network.eval(), 3), frozen_draws(loaded, 3):
        logits = loaded(x)
        assert torch.equal(logits, network(x))
    with torch.no_grad(), frozen_draws(loaded, 4):
        assert not torch.equal(loaded(x), logits)  # it draws lots as the original does


@pytest.mark.parametrize(
    "changes",
    [
        {"tiling": "random_fixed", "tile_init": "identical"},
        {"tiling": "perforated", "pooling": "mixed"},
        {"tiling": "enlarged", "activation": "tanh"},
        {"tiling": "noisy", "noise": (0.5, 0.0, 1.5)},
        {"tiling": "none", "normalisation": "group", "pooling": "avg"},
    ],
    ids=str,
)
def test_every_kind_of_network_comes_back(tmp_path, changes):
    run = replace(TINY_RUN, epochs=1, **changes)
    network, training, *_ = finish(run, tmp_path)
    loaded, _, again = load_network(str(tmp_path / "network.pt"), "cpu")
    x = training.scaling(tiny_dataset().test_images)
    with torch.no_grad(), frozen_draws(network.eval(), 3), frozen_draws(loaded, 3):
        assert torch.equal(loaded(x), network(x))
    assert again.parameters() == run.parameters()


def test_the_loaded_run_measures_the_same_errors(finished):
    folder, *_, errors, _ = finished
    network, scaling, run = load_network(folder / "network.pt")
    assert run.evaluate(network, tiny_dataset(), scaling) == errors


def test_loading_draws_nothing_from_the_caller_s_generator(finished):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    load_network(finished[0] / "network.pt")
    assert torch.equal(torch.get_rng_state(), state)


def test_the_record_says_what_was_run_and_found(finished):
    folder, network, training, errors, record = finished
    assert json.loads((folder / "record.json").read_text()) == record
    expected = {
        "dataset": "tiny bands",
        "tiling": "random",
        "n_tiles": "4-2-1",
        "tile_init": "independent",
        "pooling": "max",
        "seed": 6,
        "epochs": 2,
        "n_parameters": count_parameters(network),
        "train_seconds": round(training.seconds, 3),
        "git_commit": git_commit(),
        "package_version": package_version(),
        "torch_version": torch.__version__,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "data_fingerprint": tiny_dataset().fingerprint,
        "config": TINY_RUN.parameters(),
    } | asdict(errors)
    assert {key: record[key] for key in expected} == expected
    assert {
        "test_error", "test_error_std_draws", "test_error_vote", "test_error_merged", "draws",
    } <= set(record)  # fmt: skip
    assert record["draws"] == 3


def test_the_record_s_errors_are_those_of_the_network(finished):
    folder, network, training, _, record = finished
    again = [
        evaluate(network, tiny_dataset(), training.scaling, draws=3, seed=seed) for seed in (0, 1)
    ]
    # Other draws, same network: what does not depend on draws is equal, the rest is near.
    assert {e.test_error_merged for e in again} == {record["test_error_merged"]}
    assert all(abs(e.test_error - record["test_error"]) < 25 for e in again)
    assert folder.joinpath("record.json").exists()


def test_the_config_makes_the_run_again(finished):
    record = finished[-1]
    run = AccuracyRun(**record["config"])
    assert run.parameters() == TINY_RUN.parameters()
    assert set(record["config"]) == {f.name for f in fields(AccuracyRun) if f.init}
    network = run.build_network(tiny_dataset())
    run.train(network, tiny_dataset(), progress=False)
    assert same_bits(network.state_dict(), finished[1].state_dict())


def test_the_curve_is_the_training_s_history_with_labels(finished):
    folder, _, training, _, record = finished
    curve = json.loads((folder / "curve.json").read_text())
    assert curve.pop("history") == training.history
    assert curve == {label: record[label] for label in LABELS}
    assert len(training.history) == 2


def test_nothing_but_the_four_files_is_left(finished):
    assert sorted(p.name for p in finished[0].iterdir()) == [
        "curve.json",
        "network.pt",
        "record.json",
        "similarity.json",
    ]


def test_records_of_runs_collect_into_a_table(finished, tmp_path):
    other = replace(TINY_RUN, epochs=1, tiling="none", seed=0)
    finish(other, tmp_path)
    table = collect([finished[0] / "record.json", tmp_path / "record.json"], LABELS)
    assert table["tiling"].tolist() == ["none", "random"]
    assert table["n_tiles"].tolist() == ["1-1-1", "4-2-1"]
    assert [json.loads(text)["seed"] for text in table["config"]] == [0, 6]


def test_the_record_is_written_last_so_that_it_proves_the_rest(tmp_path, monkeypatch):
    written = []
    rename = Path.replace

    def note(self, target):
        written.append(Path(target).name)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", note)
    finish(replace(TINY_RUN, epochs=1), tmp_path)
    files = ["network.pt", "curve.json", "similarity.json", "record.json"]
    assert [name for name in written if "." in name] == files


def test_a_folder_that_cannot_be_written_is_named(finished, tmp_path):
    _, network, training, errors, _ = finished
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^output: cannot write to .*file/run"):
        save_run(tmp_path / "file" / "run", TINY_RUN, network, tiny_dataset(), training, errors)


def test_numbers_of_numpy_reach_the_record_and_come_back(tmp_path):
    """A grid made with numpy must not cost a finished training."""
    numbers = {"seed": np.int64(6), "learning_rate": np.float64(0.02), "epochs": np.int32(1)}
    run = replace(TINY_RUN, n_tiles=tuple(np.array([4, 2, 1])), **numbers)
    *_, record = finish(run, tmp_path)
    assert record["config"]["learning_rate"] == 0.02
    _, _, again = load_network(tmp_path / "network.pt")
    assert (again.seed, again.learning_rate, list(again.n_tiles)) == (6, 0.02, [4, 2, 1])


# --- Seeds ------------------------------------------------------------------------------------


def test_the_seed_decides_the_network_and_the_caller_s_generator_does_not():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = TINY_RUN.build_network(tiny_dataset())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same_bits(first.state_dict(), TINY_RUN.build_network(tiny_dataset()).state_dict())
    other = replace(TINY_RUN, seed=7).build_network(tiny_dataset())
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_all_arguments_reach_the_network_and_the_training():
    changes = {
        "tiling": "image", "n_tiles": (4, 1), "tile_init": "identical", "channels": (3, 5),
        "kernel_sizes": (1, 5), "pooling": "mixed", "activation": "gelu", "normalisation": "group",
    }  # fmt: skip
    run = AccuracyRun(**changes, device="cpu")
    network = run.build_network(tiny_dataset())
    expected = RapaConvNet(2, 3, 8, **changes)
    assert str(network) == str(expected)
    assert network.features[0][0].tile_init == "identical"
    config = {
        "epochs": 3, "batch_size": 7, "learning_rate": 0.3, "momentum": 0.2, "weight_decay": 0.1,
        "tile_lr_power": 0.4, "mirror": True, "max_shift": 2, "seed": 9,
    }  # fmt: skip
    assert AccuracyRun(**config, device="cpu").training_config() == TrainConfig(**config)
    assert set(config) == {f.name for f in fields(TrainConfig)}


def test_load_data_takes_the_part_and_the_size_that_are_asked_for():
    run = AccuracyRun(dataset="mnist5k", n_train=20, n_test=10, image_size=8, device="cpu")
    data = run.load_data()
    assert data.train_images.shape == (20, 1, 8, 8)
    assert data.test_images.shape == (10, 1, 8, 8)
    assert data.train_labels.bincount().tolist() == [2] * 10
    run = replace(run, **SHAPE, epochs=1, batch_size=10)
    run.check(data)
    assert run.build_network(data)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_an_interrupted_run_goes_on(tmp_path):
    data = tiny_dataset()
    network = TINY_RUN.build_network(data)
    TINY_RUN.train(network, data, resume=tmp_path / "resume.pt", progress=False)
    again = TINY_RUN.build_network(data)
    training = TINY_RUN.train(again, data, resume=tmp_path / "resume.pt", progress=False)
    assert same_bits(network.state_dict(), again.state_dict())
    assert len(training.history) == 2


@pytest.mark.parametrize("changes", [{"pooling": "avg"}, {"tiling": "image"}], ids=str)
def test_an_interrupted_run_is_not_continued_as_another(tmp_path, changes):
    """Same folder, same shapes, another network: a mixture of both is no result."""
    data, one = tiny_dataset(), replace(TINY_RUN, epochs=1)
    one.train(one.build_network(data), data, resume=tmp_path / "resume.pt", progress=False)
    other = replace(one, **changes)
    network = other.build_network(data)
    with pytest.raises(ValueError, match=r"checkpoint: .*resume.pt"):
        other.train(network, data, resume=tmp_path / "resume.pt", progress=False)


# --- Errors -----------------------------------------------------------------------------------


def test_a_run_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TINY_RUN.seed = 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed: got -1, allowed: at least 0"),
        ({"epochs": 0}, ValueError, "epochs: got 0, allowed: at least 1"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate: got nan"),
        ({"mirror": "yes"}, TypeError, "mirror: got 'yes', expected True or False"),
        ({"draws": 0}, ValueError, "draws: got 0, allowed: at least 1"),
        ({"draws": 2.5}, TypeError, "draws: got 2.5, expected an integer"),
        ({"threads": -1}, ValueError, "threads: got -1, allowed: at least 0"),
        ({"n_train": 0}, ValueError, "n_train: got 0, allowed: at least 1"),
        ({"n_test": "10"}, TypeError, "n_test: got '10', expected an integer"),
        ({"image_size": -8}, ValueError, "image_size: got -8, allowed: at least 1"),
        ({"device": "tpu"}, ValueError, "device: got 'tpu', allowed: auto, cpu"),
        ({"device": "CPU"}, ValueError, "device: got 'CPU', allowed: auto, cpu"),
        ({"device": None}, ValueError, "device: got None, allowed: auto, cpu"),
        ({"device": "cuda:99"}, ValueError, "device: got 'cuda:99', allowed: auto, cpu"),
    ],
)
def test_bad_values_are_named_when_the_run_is_made(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        AccuracyRun(**{"device": "cpu"} | arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tiling": "randon"}, ValueError, "tiling: got 'randon', allowed: none, image"),
        ({"tile_init": "zeros"}, ValueError, "tile_init: got 'zeros', allowed: "),
        ({"pooling": "min"}, ValueError, "pooling: got 'min', allowed: max, avg, mixed"),
        ({"activation": "elu"}, ValueError, "activation: got 'elu', allowed: relu"),
        ({"normalisation": 1}, ValueError, "normalisation: got 1, allowed: batch"),
        ({"n_tiles": (16, 4)}, ValueError, r"n_tiles: got \(16, 4\), expected 3 numbers"),
        ({"n_tiles": (16, 4, 0)}, ValueError, "n_tiles: got 0, allowed: at least 1"),
        ({"n_tiles": 16}, TypeError, "n_tiles: got 16, expected a sequence"),
        ({"channels": ()}, ValueError, "channels: got"),
        ({"kernel_sizes": (5, 4, 5)}, ValueError, r"kernel_sizes: got \(5, 4, 5\), allowed: odd"),
        ({"dataset": 5}, TypeError, "dataset: got 5"),
        ({"data_root": 5}, TypeError, "data_root: got 5"),
    ],
)
def test_bad_networks_and_data_are_named_when_the_run_is_made(arguments, error, message):
    """No data are needed to know that these are wrong."""
    with pytest.raises(error, match=f"^{message}"):
        AccuracyRun(**{"device": "cpu"} | arguments)


def test_a_folder_may_be_a_path_and_still_be_recorded(tmp_path):
    run = replace(TINY_RUN, dataset=tmp_path, data_root=tmp_path)
    config = json.loads(json.dumps(run.parameters()))
    assert (config["dataset"], config["data_root"]) == (str(tmp_path), str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there_is_refused(name, finished):
    message = f"device: got '{name}', allowed: auto, cpu (this machine has no usable GPU)"
    for make in (choose_device, lambda n: AccuracyRun(device=n)):
        with pytest.raises(ValueError, match=re.escape(message)):
            make(name)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_network(finished[0] / "network.pt", name)


def test_auto_is_a_device_that_is_there():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == torch.device("cpu")


def test_an_unknown_data_set_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"got 'cifar11', allowed: mnist5k, cifar10, .*folder"):
        AccuracyRun(dataset="cifar11", device="cpu").load_data()


def test_more_images_than_there_are_is_named():
    run = AccuracyRun(dataset="mnist5k", n_train=4001, device="cpu")
    with pytest.raises(ValueError, match=r"^n_train: got 4001, allowed: 1 to 4000"):
        run.load_data()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 49}, "batch_size: got 49, but tiny bands has 48 training images"),
        ({"n_tiles": (65, 2, 1)}, "n_tiles: got 65 for convolution 1, allowed: 1 to 64"),
        ({"n_tiles": (4, 17, 1)}, "n_tiles: got 17 for convolution 2, allowed: 1 to 16"),
        ({"n_tiles": (4, 2, 5)}, "n_tiles: got 5 for convolution 3, allowed: 1 to 4"),
        ({"n_tiles": (4, 2, 5), "tiling": "enlarged"}, "n_tiles: got 5 for convolution 3"),
    ],
    ids=str,
)
def test_check_finds_what_the_data_forbid(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(TINY_RUN, **changes).check(tiny_dataset())


def test_check_passes_what_runs_and_draws_nothing():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    replace(TINY_RUN, batch_size=48, n_tiles=(64, 16, 4)).check(tiny_dataset())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_missing_network_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path: .*network.pt"):
        load_network(tmp_path / "network.pt")


@pytest.mark.parametrize("kept", [0, 100, 0.6, -1])
def test_a_truncated_network_file_is_named(finished, tmp_path, kept):
    whole = (finished[0] / "network.pt").read_bytes()
    path = tmp_path / "network.pt"
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"path: .*network.pt"):
        load_network(path)


def test_a_network_file_with_a_changed_weight_is_named(finished, tmp_path):
    folder, network, *_ = finished
    whole = bytearray((folder / "network.pt").read_bytes())
    weight = bytes(network.features[1][0].weight.untyped_storage())
    whole[whole.index(weight) + 101] ^= 16
    (tmp_path / "network.pt").write_bytes(bytes(whole))
    with pytest.raises(ValueError, match=r"path: .*network.pt"):
        load_network(tmp_path / "network.pt")


def test_a_file_of_another_kind_is_named(tmp_path):
    data, one = tiny_dataset(), replace(TINY_RUN, epochs=1)
    one.train(one.build_network(data), data, resume=tmp_path / "resume.pt", progress=False)
    with pytest.raises(ValueError, match=r"path: .*resume.pt"):
        load_network(tmp_path / "resume.pt")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match=r"path: .*text.pt"):
        load_network(tmp_path / "text.pt")


def test_a_network_file_with_a_missing_tensor_is_named(finished, tmp_path):
    content = load_checkpoint(finished[0] / "network.pt")
    del content["state"]["classifier.bias"], content["format"]
    save_checkpoint(tmp_path / "network.pt", content)
    with pytest.raises(ValueError, match=r"(?s)path: .*network.pt.*classifier.bias"):
        load_network(tmp_path / "network.pt")


def test_threads_are_those_that_the_run_asks_for():
    before = torch.get_num_threads()
    seen = []
    run = replace(TINY_RUN, epochs=1, batch_size=48, threads=before + 1)
    network = run.build_network(tiny_dataset())
    network.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    try:
        run.train(network, tiny_dataset(), progress=False)
        assert set(seen) == {before + 1}
    finally:
        torch.set_num_threads(before)


def test_the_tiles_are_recorded_while_they_learn(tmp_path):
    run = replace(TINY_RUN, epochs=3, similarity_every=2, penalty_every=3)
    finish(run, tmp_path)
    content = json.loads((tmp_path / "similarity.json").read_text())
    rows = content.pop("measurements")
    assert set(content) == set(LABELS)
    assert [row["epoch"] for row in rows] == [0, 2, 3]
    assert [sorted(set(row) - {"epoch"}) for row in rows] == [
        ["penalty", "similarity"],
        ["similarity"],
        ["penalty", "similarity"],
    ]
    last = rows[-1]
    assert [layer["n_tiles"] for layer in last["similarity"]] == [4, 2]
    names = [layer["layer"] for layer in last["similarity"]]
    assert [entry["layer"] for entry in last["penalty"]] == [*names, "all"]
    network = load_network(tmp_path / "network.pt")[0]
    measured = [layer.between_tiles for layer in tile_similarity(network)]
    assert [layer["between_tiles"] for layer in last["similarity"]] == measured


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"tiling": "none"}, None),
        ({"similarity_every": 0}, {"penalty"}),
        ({"tiling": "random_fixed"}, {"similarity"}),  # no expectation to take
    ],
)
def test_only_what_there_is_is_recorded(tmp_path, changes, kinds):
    finish(replace(TINY_RUN, epochs=1, penalty_every=1, **changes), tmp_path)
    rows = json.loads((tmp_path / "similarity.json").read_text())["measurements"]
    assert [set(row) - {"epoch"} for row in rows] == ([kinds] * 2 if kinds else [])
