"""A choice of data is checked when it is made, and loads what it says."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from rapa_lib import load_dataset
from rapa_lib.data import DataChoice


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": 5}, TypeError, "dataset: got 5, expected a name or a path"),
        ({"dataset": None}, TypeError, "dataset: got None, expected a name or a path"),
        ({"data_root": 5}, TypeError, "data_root: got 5, expected a name or a path"),
        ({"image_size": 0}, ValueError, "image_size: got 0, allowed: at least 1"),
        ({"image_size": (8, 8)}, TypeError, r"image_size: got \(8, 8\), expected an integer"),
        ({"n_train": 0}, ValueError, "n_train: got 0, allowed: at least 1"),
        ({"n_test": 2.5}, TypeError, r"n_test: got 2\.5, expected an integer"),
    ],
)
def test_what_is_not_allowed_is_named_before_any_data_are_read(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        DataChoice(**arguments)


def test_paths_and_numpy_s_numbers_become_what_json_holds(tmp_path):
    choice = DataChoice(dataset=tmp_path, data_root=tmp_path, n_train=np.int64(3))
    assert json.loads(json.dumps(asdict(choice))) == {
        "dataset": str(tmp_path), "data_root": str(tmp_path), "image_size": None, "n_train": 3,
        "n_test": None,
    }  # fmt: skip


def test_the_whole_data_set_is_the_default():
    assert DataChoice().load().fingerprint == load_dataset("mnist5k").fingerprint


def test_a_part_and_a_size_are_those_asked_for():
    data = DataChoice(image_size=8, n_train=20, n_test=10).load()
    expected = load_dataset("mnist5k", image_size=8).subset(20, 10)
    assert (data.name, data.fingerprint) == (expected.name, expected.fingerprint)
    assert data.train_images.shape == (20, 1, 8, 8)
    alone = DataChoice(n_test=10).load()
    assert (len(alone.train_images), len(alone.test_images)) == (4000, 10)


def test_what_only_the_data_show_to_be_wrong_is_named_when_they_are_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"^n_train: got 4001, allowed: 1 to 4000"):
        DataChoice(n_train=4001).load()
    with pytest.raises(ValueError, match=r"got 'cifar11', allowed: mnist5k"):
        DataChoice(dataset="cifar11").load()


def test_the_root_is_handed_on(tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=str(tmp_path / "absent")):
        DataChoice(dataset="cifar10", data_root=tmp_path / "absent").load()
