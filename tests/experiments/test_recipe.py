"""A recipe is composed inside, flat outside, and the same both ways."""

import json
from dataclasses import FrozenInstanceError

import pytest
import torch
from tiny import SHAPE, same_bits, tiny_dataset

from rapa_lib.data import DataChoice
from rapa_lib.experiments import recipe as module
from rapa_lib.experiments.recipe import (
    LABELS,
    LATER,
    ORDER,
    SYNCHRONISATION,
    Recipe,
    in_order,
    is_plain,
    recipe_of,
    with_synchronisation,
)
from rapa_lib.experiments.tracking import Tracking
from rapa_lib.networks import NetworkShape
from rapa_lib.training import TrainConfig

TINY = SHAPE | {"dataset": "x", "tiling": "image", "epochs": 3, "seed": 4, "device": "cpu"}


def test_parameters_go_to_their_parts():
    made = Recipe.of(**TINY, threads=2, n_train=10)
    assert made.data == DataChoice(dataset="x", n_train=10)
    assert made.network == NetworkShape(tiling="image", **SHAPE)
    assert made.training == TrainConfig(epochs=3, seed=4)
    assert (made.device, made.threads, made.seed) == ("cpu", 2, 4)
    assert Recipe.of() == Recipe()


@pytest.mark.parametrize("parameters", [{}, TINY, {"noise": (), "mirror": True}], ids=len)
def test_flat_parameters_make_the_same_recipe(parameters):
    made = Recipe.of(**parameters)
    assert Recipe.of(**made.flat()) == made
    assert Recipe.of(**json.loads(json.dumps(made.flat()))) == made


def test_every_parameter_has_its_place_and_is_written_in_it():
    assert set(Recipe.names()) <= set(ORDER)
    assert list(Recipe.names()) == sorted(Recipe.names(), key=ORDER.index)
    names = list(Recipe.of(**TINY).flat())
    assert names == [name for name in ORDER if name in names]
    assert set(names) == set(Recipe.names()) - set(LATER)
    assert names[:2] == ["dataset", "data_root"]
    assert names[-3:] == ["seed", "device", "threads"]


def test_the_order_is_that_of_the_parts_whatever_comes_in():
    mixed = {"threads": 1, "epochs": 2, "unknown": 0, "draws": 3, "dataset": "x", "n_tiles": (4,)}
    found = in_order(mixed)
    assert list(found) == ["dataset", "n_tiles", "epochs", "draws", "threads", "unknown"]
    assert found["n_tiles"] == [4]


def test_later_parameters_are_written_only_where_they_say_something(monkeypatch):
    """So that records of both times compare."""
    default = Recipe().training.epochs
    monkeypatch.setattr(module, "LATER", {"epochs": default})
    assert "epochs" not in Recipe.of(epochs=default).flat()
    assert Recipe.of(epochs=default + 1).flat()["epochs"] == default + 1
    assert Recipe.of(**Recipe().flat()) == Recipe()


def test_a_later_parameter_stands_for_its_default():
    defaults = vars(DataChoice()) | vars(NetworkShape()) | vars(TrainConfig())
    for name, value in LATER.items():
        assert defaults.get(name, value) == value


def test_an_unknown_parameter_is_named_with_those_there_are():
    with pytest.raises(TypeError, match=r"^apples, draws: unknown; a run has dataset, data_root"):
        Recipe.of(draws=5, apples=1)


def test_the_recipe_among_a_run_s_parameters():
    given = TINY | {"draws": 5, "similarity_every": 2}
    assert recipe_of(given) == Recipe.of(**TINY)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threads": -1}, ValueError, "threads: got -1, allowed: at least 0"),
        ({"device": "tpu"}, ValueError, "device: got 'tpu', allowed: auto, cpu"),
        ({"n_train": 0}, ValueError, "n_train: got 0"),
        ({"n_tiles": (1, 2)}, ValueError, "n_tiles: got"),
        ({"epochs": "3"}, TypeError, "epochs: got '3'"),
    ],
)
def test_a_bad_value_is_named_whatever_part_it_is_of(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        Recipe.of(**{"device": "cpu"} | arguments)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Recipe().threads = 3


def test_labels_tell_networks_apart_by_what_was_built():
    made = Recipe.of(**TINY, pooling="avg", tile_lr_power=0.5)
    labels = made.labels("true name", [4, 2, 1])
    assert tuple(labels) == LABELS
    assert labels == {
        "dataset": "true name", "tiling": "image", "n_tiles": "4-2-1",
        "tile_init": "independent", "pooling": "avg", "activation": "relu",
        "normalisation": "batch", "tile_lr_power": 0.5, "epochs": 3, "seed": 4,
    }  # fmt: skip


def test_averaged_tiles_are_a_label_where_they_say_something():
    made = Recipe.of(**TINY, sync_every=4)
    labels = made.labels("true name", [4, 2, 1])
    assert set(labels) == {*LABELS, "sync_every"}
    plain = Recipe.of(**TINY).labels("true name", [4, 2, 1])
    assert with_synchronisation([plain]) == [plain]
    known = with_synchronisation([plain, labels])
    assert [[one[name] for name in SYNCHRONISATION] for one in known] == [[0, 0.0, 0], [4, 0.0, 0]]
    assert [is_plain(Recipe.of(**TINY).flat()), is_plain(made.flat())] == [True, False]


def test_the_same_on_another_device_has_the_same_threads_unless_they_are_asked_for():
    made = Recipe.of(**TINY, threads=2)
    assert (made.on("auto").device, made.on("auto").threads) == ("auto", 2)
    assert made.on("cpu", 3).threads == 3
    assert made.on("auto").flat() | {"device": "cpu"} == made.flat()


def test_a_network_without_weights_has_the_shapes_of_the_real_one():
    made, data = Recipe.of(**TINY), tiny_dataset()
    state = torch.get_rng_state()
    real, plan = made.build(data), made.build(data, "meta")
    assert torch.equal(torch.get_rng_state(), state)
    assert {p.device.type for p in plan.parameters()} == {"meta"}
    shapes = [{n: t.shape for n, t in net.state_dict().items()} for net in (real, plan)]
    assert shapes[0] == shapes[1]
    assert same_bits(real.state_dict(), made.untrained(2, 3, (8, 8)).state_dict())


def test_what_is_tracked_is_split_from_the_rest():
    tracking, others = Tracking.split({"similarity_every": 3, "epochs": 2})
    assert (tracking, others) == (Tracking(3, 0, 0), {"epochs": 2})
    with pytest.raises(ValueError, match=r"^penalty_every: got -1"):
        Tracking.split({"penalty_every": -1})
