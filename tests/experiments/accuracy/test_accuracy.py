"""A run is checked before it works, comes back from its files bit by bit, and records itself."""

import json
import re
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import SHAPE, same_bits, tiny_dataset, tiny_network

from rapa_lib import (
    InputScaling,
    RapaConvNet,
    TrainConfig,
    count_parameters,
    evaluate,
    frozen_draws,
)
from rapa_lib._seeds import Purpose, seeded
from rapa_lib.experiments.accuracy import Accuracy
from rapa_lib.experiments.accuracy.experiment import COLUMNS, training_times
from rapa_lib.experiments.recipe import LATER, choose_device
from rapa_lib.experiments.records import git_commit, package_version, read_runs
from rapa_lib.experiments.trained import load_network
from rapa_lib.instruments.pull import LayerPull, tile_pull
from rapa_lib.instruments.similarity import tile_similarity
from rapa_lib.runtime import averaging_cost, count_layers, run_time
from rapa_lib.training import augment, load_checkpoint, save_checkpoint

TINY = SHAPE | {
    "epochs": 2, "batch_size": 16, "learning_rate": 0.02, "draws": 3, "seed": 6, "device": "cpu",
}  # fmt: skip
TINY_RUN = Accuracy.of(**TINY)


def changed(**changes):
    return Accuracy.of(**TINY | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder, network and training as made step by step, and the record of a measurement."""
    folder = tmp_path_factory.mktemp("run")
    network, training = TINY_RUN.train(tiny_dataset(), progress=False)
    record = TINY_RUN.measure(tiny_dataset(), folder, progress=False)
    return folder, network, training, record


# --- What a run leaves ------------------------------------------------------------------------


def test_a_saved_network_comes_back_bit_by_bit(finished):
    folder, network, training, _ = finished
    loaded, scaling, recipe = load_network(folder / "network.pt")
    assert same_bits(loaded.state_dict(), network.state_dict())
    assert scaling == training.scaling
    assert isinstance(scaling, InputScaling)
    assert not any(m.training for m in loaded.modules())
    assert recipe.flat() == TINY_RUN.recipe.flat()
    x = scaling(tiny_dataset().test_images)
    with torch.no_grad(), frozen_draws(network.eval(), 3), frozen_draws(loaded, 3):
        logits = loaded(x)
        assert torch.equal(logits, network(x))
    with torch.no_grad(), frozen_draws(loaded, 4):
        assert not torch.equal(loaded(x), logits)  # it draws as the original does


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
    run = changed(epochs=1, **changes)
    run.measure(tiny_dataset(), tmp_path, progress=False)
    network, training = run.train(tiny_dataset(), progress=False)
    loaded, _, again = load_network(str(tmp_path / "network.pt"), "cpu")
    x = training.scaling(tiny_dataset().test_images)
    with torch.no_grad(), frozen_draws(network.eval(), 3), frozen_draws(loaded, 3):
        assert torch.equal(loaded(x), network(x))
    assert again.flat() == run.recipe.flat()


def test_the_loaded_network_has_the_errors_of_the_record(finished):
    folder, *_, record = finished
    network, scaling, recipe = load_network(folder / "network.pt")
    errors = asdict(replace(TINY_RUN, recipe=recipe).test(network, tiny_dataset(), scaling))
    assert errors == {name: record[name] for name in errors}


def test_loading_draws_nothing_from_the_caller_s_generator(finished):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    load_network(finished[0] / "network.pt")
    assert torch.equal(torch.get_rng_state(), state)


def untimed(history):
    return [{k: value for k, value in row.items() if k != "seconds"} for row in history]


BESIDE = ("curve", "similarity", "run")


def test_the_record_says_what_was_run_and_found(finished):
    folder, network, training, record = finished
    written = json.loads((folder / "record.json").read_text())
    assert written == {name: value for name, value in record.items() if name not in BESIDE}
    errors = asdict(TINY_RUN.test(network, tiny_dataset(), training.scaling))
    expected = {
        "dataset": "tiny bands",
        "tiling": "random",
        "n_tiles": "4-2-1",
        "tile_init": "independent",
        "pooling": "max",
        "seed": 6,
        "epochs": 2,
        "n_parameters": count_parameters(network),
        "git_commit": git_commit(),
        "package_version": package_version(),
        "torch_version": torch.__version__,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "data_fingerprint": tiny_dataset().fingerprint,
        "config": TINY_RUN.parameters(),
    } | errors
    assert {key: record[key] for key in expected} == expected
    assert {
        "test_error", "test_error_std_draws", "test_error_vote", "test_error_merged", "draws",
    } <= set(record)  # fmt: skip
    assert record["draws"] == 3
    assert record["train_seconds"] > 0


def test_the_record_has_the_speedups_of_the_network_s_tiles(finished):
    """64, 16 and 4 patches on 4, 2 and 1 tiles, and a linear layer."""
    *_, record = finished
    assert record["speedups"] == pytest.approx(
        {"pipelined": 4, "sequential": (64 + 16 + 4 + 1) / (16 + 8 + 4 + 1)}
    )


def test_the_record_has_the_times_of_training_on_arrays(finished):
    _, network, _, record = finished
    times, batch_size = record["times_us"], record["config"]["batch_size"]
    tiled = averaging_cost(run_time(network, (2, 8, 8)), batch_size=batch_size, write="pulses")
    assert times["image"] == tiled.time_us(0)
    assert times["averaging"]["pulses"] == tiled.averaging_us
    assert times["averaging"]["program"] > tiled.averaging_us
    assert times["single"] == pytest.approx(4 * times["image"])


def test_perforation_is_compared_with_every_patch():
    network = tiny_network(tiling="perforated")
    times = training_times(count_layers(network, (2, 8, 8)), TrainConfig())
    assert times["single"] == pytest.approx(4 * times["image"])
    assert times["averaging"] == {"program": 0, "pulses": 0}


def test_the_record_s_errors_are_those_of_the_network(finished):
    _, network, training, record = finished
    again = [
        evaluate(network, tiny_dataset(), training.scaling, draws=3, seed=seed) for seed in (0, 1)
    ]
    # Other draws, same network: what does not depend on draws is equal, the rest is near.
    assert {e.test_error_merged for e in again} == {record["test_error_merged"]}
    assert all(abs(e.test_error - record["test_error"]) < 25 for e in again)


def test_the_config_makes_the_run_again(finished):
    record = finished[-1]
    run = Accuracy.of(**record["config"])
    assert run == TINY_RUN
    assert set(record["config"]) == set(Accuracy.names()) - set(LATER)
    network, _ = run.train(tiny_dataset(), progress=False)
    assert same_bits(network.state_dict(), finished[1].state_dict())


def test_the_curve_is_the_training_s_history_with_labels(finished):
    folder, _, training, record = finished
    curve = json.loads((folder / "curve.json").read_text())
    assert curve == record["curve"]
    assert untimed(curve.pop("history")) == untimed(training.history)
    assert curve == {label: record[label] for label in COLUMNS}
    assert len(training.history) == 2


def test_nothing_but_the_four_files_is_left(finished):
    assert sorted(p.name for p in finished[0].iterdir()) == [
        "curve.json",
        "network.pt",
        "record.json",
        "similarity.json",
    ]
    assert {p.name for p in finished[0].iterdir()} == {"record.json", *Accuracy.entry().leaves}


def test_without_a_folder_nothing_is_written_and_the_record_is_the_same(
    finished, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    record = TINY_RUN.measure(tiny_dataset(), progress=False)
    assert not list(tmp_path.iterdir())
    assert record.pop("run") == "this run"
    loose = ("run", "train_seconds", "curve")
    assert {k: v for k, v in record.items() if k not in loose} == {
        k: v for k, v in finished[-1].items() if k not in loose
    }
    assert untimed(record["curve"]["history"]) == untimed(finished[2].history)


def test_records_of_runs_collect_into_tables(finished, tmp_path):
    changed(epochs=1, tiling="none", seed=0).measure(tiny_dataset(), tmp_path, progress=False)
    records = read_runs([finished[0], tmp_path], Accuracy.entry().leaves)
    collected = Accuracy.collect(records)
    table, curves = collected.tables["accuracy"], collected.tables["accuracy_curves"]
    assert table["tiling"].tolist() == ["none", "random"]
    assert table["n_tiles"].tolist() == ["1-1-1", "4-2-1"]
    assert [json.loads(text)["seed"] for text in table["config"]] == [0, 6]
    assert not {"speedups", "curve", "similarity"} & set(table)
    assert "read *merged*" not in "\n".join(collected.body)
    dropped = [record | {"tiling": "dropout"} for record in records[1:]]
    assert "`dropout`: read *merged*" in "\n".join(Accuracy.collect(dropped).body)
    assert table["run"].tolist() == [tmp_path.name, finished[0].name]
    assert curves[["tiling", "epoch"]].to_numpy().tolist() == [
        ["none", 1], ["random", 1], ["random", 2],
    ]  # fmt: skip
    history = finished[2].history
    assert curves["train_loss"].tolist()[1:] == [row["train_loss"] for row in history]
    (line,) = collected.answer
    errors = table.set_index("tiling")["test_error"]
    assert f"ordinary networks (`none`) {errors['none']:.1f}" in line
    assert f"RAPA networks (`random`) {errors['random']:.1f} %" in line
    pd.testing.assert_frame_equal(Accuracy.collect(records[::-1]).tables["accuracy"], table)


def test_the_record_is_written_last_so_that_it_proves_the_rest(tmp_path, monkeypatch):
    written = []
    rename = Path.replace

    def note(self, target):
        written.append(Path(target).name)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", note)
    changed(epochs=1).measure(tiny_dataset(), tmp_path, progress=False)
    names = [name for name in written if "." in name]
    assert names[0] == "resume.pt"
    assert names[-1] == "record.json"
    assert sorted(names[1:-1]) == sorted(Accuracy.entry().leaves)


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Accuracy, "train", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^output: cannot write to .*file/run"):
        TINY_RUN.measure(tiny_dataset(), tmp_path / "file" / "run", progress=False)


def test_numbers_of_numpy_reach_the_record_and_come_back(tmp_path):
    """A grid made with numpy must not cost a finished training."""
    numbers = {"seed": np.int64(6), "learning_rate": np.float64(0.02), "epochs": np.int32(1)}
    run = changed(n_tiles=tuple(np.array([4, 2, 1])), **numbers)
    record = run.measure(tiny_dataset(), tmp_path, progress=False)
    assert record["config"]["learning_rate"] == 0.02
    _, _, again = load_network(tmp_path / "network.pt")
    assert (again.seed, again.training.learning_rate, list(again.network.n_tiles)) == (
        6, 0.02, [4, 2, 1],
    )  # fmt: skip


# --- Seeds ------------------------------------------------------------------------------------


def test_the_seed_decides_the_network_and_the_caller_s_generator_does_not():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = TINY_RUN.recipe.build(tiny_dataset())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same_bits(first.state_dict(), TINY_RUN.recipe.build(tiny_dataset()).state_dict())
    other = changed(seed=7).recipe.build(tiny_dataset())
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_all_arguments_reach_the_network_and_the_training():
    changes = {
        "tiling": "image", "n_tiles": (4, 1), "tile_init": "identical", "channels": (3, 5),
        "kernel_sizes": (1, 5), "pooling": "mixed", "activation": "gelu", "normalisation": "group",
    }  # fmt: skip
    network = Accuracy.of(**changes, device="cpu").recipe.build(tiny_dataset())
    expected = RapaConvNet(2, 3, 8, **changes)
    assert str(network) == str(expected)
    assert network.features[0][0].tile_init == "identical"
    config = {
        "epochs": 3, "batch_size": 7, "learning_rate": 0.3, "momentum": 0.2, "weight_decay": 0.1,
        "tile_lr_power": 0.4, "mirror": True, "max_shift": 2, "seed": 9,
    }  # fmt: skip
    assert Accuracy.of(**config, device="cpu").recipe.training == TrainConfig(**config)
    assert set(config) == {f.name for f in fields(TrainConfig)} - set(LATER)


def test_the_data_are_the_part_and_the_size_that_are_asked_for():
    part = {"dataset": "mnist5k", "n_train": 20, "n_test": 10, "image_size": 8}
    run = changed(**part, epochs=1, batch_size=10)
    data = run.recipe.data.load()
    assert data.train_images.shape == (20, 1, 8, 8)
    assert data.test_images.shape == (10, 1, 8, 8)
    assert data.train_labels.bincount().tolist() == [2] * 10
    run.check(data)
    assert run.recipe.build(data)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(finished, tmp_path, monkeypatch):
    """The training is whole, the test is not: the next measurement trains no step."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Accuracy, "test", interrupt)
        with pytest.raises(KeyboardInterrupt):
            TINY_RUN.measure(tiny_dataset(), tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["resume.pt"]
    record = TINY_RUN.measure(tiny_dataset(), tmp_path, progress=False)
    assert untimed(record["curve"]["history"]) == untimed(finished[2].history)
    assert record["test_error"] == finished[-1]["test_error"]
    assert not (tmp_path / "resume.pt").exists()
    network = load_network(tmp_path / "network.pt")[0]
    assert same_bits(network.state_dict(), finished[1].state_dict())


@pytest.mark.parametrize("changes", [{"pooling": "avg"}, {"tiling": "image"}], ids=str)
def test_an_interrupted_run_is_not_continued_as_another(tmp_path, changes):
    """Same folder, same shapes, another network: a mixture of both is no result."""
    data = tiny_dataset()
    changed(epochs=1).train(data, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"checkpoint: .*resume.pt"):
        changed(epochs=1, **changes).train(data, folder=tmp_path, progress=False)


# --- Errors -----------------------------------------------------------------------------------


def test_a_run_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TINY_RUN.draws = 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed: got -1, allowed: 0 to 9223372036854775807"),
        ({"epochs": 0}, ValueError, "epochs: got 0, allowed: at least 1"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate: got nan"),
        ({"mirror": "yes"}, TypeError, "mirror: got 'yes', expected True or False"),
        ({"draws": 0}, ValueError, "draws: got 0, allowed: at least 1"),
        ({"draws": 2.5}, TypeError, "draws: got 2.5, expected an integer"),
        ({"threads": -1}, ValueError, "threads: got -1, allowed: 0 to 1024"),
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
        Accuracy.of(**{"device": "cpu"} | arguments)


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
        Accuracy.of(**{"device": "cpu"} | arguments)


def test_a_folder_may_be_a_path_and_still_be_recorded(tmp_path):
    run = changed(dataset=tmp_path, data_root=tmp_path)
    config = json.loads(json.dumps(run.parameters()))
    assert (config["dataset"], config["data_root"]) == (str(tmp_path), str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there_is_refused(name, finished):
    message = f"device: got '{name}', allowed: auto, cpu (this machine has no usable GPU)"
    for make in (choose_device, lambda n: Accuracy.of(device=n)):
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
        Accuracy.of(dataset="cifar11", device="cpu").recipe.data.load()


def test_more_images_than_there_are_is_named():
    run = Accuracy.of(dataset="mnist5k", n_train=4001, device="cpu")
    with pytest.raises(ValueError, match=r"^n_train: got 4001, allowed: 1 to 4000"):
        run.recipe.data.load()


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
        changed(**changes).check(tiny_dataset())


def test_check_passes_what_runs_and_draws_nothing():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    changed(batch_size=48, n_tiles=(64, 16, 4)).check(tiny_dataset())
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
    changed(epochs=1).train(tiny_dataset(), folder=tmp_path, progress=False)
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
    try:
        changed(epochs=1, batch_size=48, threads=before + 1).train(tiny_dataset(), progress=False)
        assert torch.get_num_threads() == before + 1
        record = changed(epochs=1, threads=before + 2).measure(tiny_dataset(), progress=False)
        assert torch.get_num_threads() == record["threads"] == before + 2
    finally:
        torch.set_num_threads(before)


def test_the_tiles_are_recorded_while_they_learn(tmp_path):
    run = changed(epochs=3, similarity_every=2, penalty_every=3)
    run.measure(tiny_dataset(), tmp_path, progress=False)
    content = json.loads((tmp_path / "similarity.json").read_text())
    rows = content.pop("measurements")
    assert set(content) == set(COLUMNS)
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
def test_only_what_there_is_is_recorded(changes, kinds):
    run = changed(epochs=1, penalty_every=1, **changes)
    rows = run.measure(tiny_dataset(), progress=False)["similarity"]["measurements"]
    assert [set(row) - {"epoch"} for row in rows] == ([kinds] * 2 if kinds else [])


PULL_FIELDS = {one.name for one in fields(LayerPull)} | {"batch_size"}


@pytest.mark.parametrize("tiling", ["random", "image"])
def test_the_pull_is_recorded_and_leaves_the_training_its_bits(tmp_path, tiling):
    augmented = {"tiling": tiling, "max_shift": 1, "epochs": 3}
    plain = changed(**augmented).train(tiny_dataset(), progress=False)[0]
    run = changed(**augmented, pull_every=2, similarity_every=0)
    record = run.measure(tiny_dataset(), tmp_path, progress=False)
    network, scaling, _ = load_network(tmp_path / "network.pt")
    assert same_bits(network.state_dict(), plain.state_dict())
    rows = record["similarity"]["measurements"]
    assert [row["epoch"] for row in rows] == [0, 2, 3]
    assert [set(row) for row in rows] == [{"epoch", "pull"}] * 3
    # The last one by hand: all 48 images, shifted as training shifts, in batches of 16.
    with seeded(6, Purpose.PULL_IMAGES):
        chosen = torch.randperm(48)
        images = augment(tiny_dataset().train_images[chosen], False, 1)
    with seeded(6, 3, Purpose.MEASUREMENT):
        seed = int(torch.randint(2**31, ()))
    found = tile_pull(
        network, scaling(images), tiny_dataset().train_labels[chosen], batch_size=16, seed=seed,
        weight_decay=run.recipe.training.weight_decay, tile_lr_power=1.0,
    )  # fmt: skip
    assert rows[-1]["pull"] == [asdict(layer) | {"batch_size": 16} for layer in found]
    assert set(rows[0]["pull"][0]) == PULL_FIELDS
    assert [layer["n_tiles"] for layer in rows[0]["pull"]] == [4, 2]
    assert rows[-1]["pull"] != rows[0]["pull"]


def test_the_pull_of_an_ordinary_network_is_not_recorded():
    record = changed(epochs=1, pull_every=1, tiling="none").measure(tiny_dataset(), progress=False)
    assert record["similarity"]["measurements"] == []


def test_a_record_without_a_pull_is_what_it_was_before():
    assert "pull_every" not in TINY_RUN.parameters()
    assert changed(pull_every=3).parameters()["pull_every"] == 3
