"""A choice of data is checked when it is made, and loads what it says."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from rapa_lib import Dataset, load_dataset
from rapa_lib.data import DataChoice
from rapa_lib.experiments.recipe import Recipe


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
        ({"subset": "fresh"}, ValueError, "subset: got 'fresh', allowed: fixed, seed"),
        ({"subset": "seed"}, ValueError, "subset: got 'seed', but without n_train there is noth"),
        ({"validation": 0}, ValueError, "validation: got 0, allowed: at least 1"),
        (
            {"validation": 9, "n_test": 8},
            ValueError,
            "n_test: got 8, allowed with validation: None; its 9 images stand for the test images",
        ),
    ],
)
def test_what_is_not_allowed_is_named_before_any_data_are_read(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        DataChoice(**arguments)


def test_paths_and_numpy_s_numbers_become_what_json_holds(tmp_path):
    choice = DataChoice(dataset=tmp_path, data_root=tmp_path, n_train=np.int64(3))
    assert json.loads(json.dumps(asdict(choice))) == {
        "dataset": str(tmp_path), "data_root": str(tmp_path), "image_size": None, "n_train": 3,
        "n_test": None, "subset": "fixed", "validation": None,
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


# --- Images drawn by the seed -----------------------------------------------------------------

CLASSES = 4


class _Sealed(Dataset):
    """A data set whose test part cannot be looked at once it is made."""

    sealed = False

    def __getattribute__(self, name):
        if name.startswith("test_") and type(self).sealed:
            raise AssertionError(f"{name} was looked at")
        return super().__getattribute__(name)


@pytest.fixture
def numbered():
    """Every image is its own number: 200 for training, classes in turn; the test's are others."""

    def part(first, n):
        number = torch.arange(first, first + n)
        images = torch.stack([number // 256, number % 256], 1).to(torch.uint8)[:, :, None, None]
        return images, number % CLASSES

    yield _Sealed("numbered", *part(0, 200), *part(1000, 40), tuple("abcd"))
    _Sealed.sealed = False


def numbers(images):
    return [256 * int(high) + int(low) for high, low in images.flatten(1)]


def test_every_seed_draws_a_balanced_subset_of_its_own_and_shares_the_test(numbered):
    choice = DataChoice(n_train=60, n_test=20, subset="seed")
    parts = [choice.part(numbered, seed) for seed in range(5)]
    drawn = [numbers(part.train_images) for part in parts]
    assert len({tuple(one) for one in drawn}) == 5
    for part, one in zip(parts, drawn, strict=True):
        assert torch.bincount(part.train_labels).tolist() == [15] * CLASSES
        assert len(set(one)) == 60
        assert max(one) < 200
        assert [number % CLASSES for number in one] == part.train_labels.tolist()
        assert torch.equal(part.test_images, parts[0].test_images)
        assert part.name == parts[0].name == "numbered [60 of 200 train, 20 of 40 test]"
    # Two draws of 60 of 200 share 18 on average: they are unrelated.
    assert 8 < len(set(drawn[0]) & set(drawn[1])) < 30
    assert numbers(choice.part(numbered, 3).train_images) == drawn[3]
    assert len({part.fingerprint for part in parts}) == 5


def test_a_fixed_subset_is_the_same_for_every_seed(numbered):
    choice = DataChoice(n_train=60)
    parts = [choice.part(numbered, seed) for seed in (None, 0, 7)]
    assert len({part.fingerprint for part in parts}) == 1
    assert parts[0].fingerprint == numbered.subset(60).fingerprint
    assert not choice.drawn_by_seed


@pytest.mark.parametrize("n_train", [None, 60])
@pytest.mark.parametrize("subset", ["fixed", "seed"])
def test_validation_images_are_cut_off_the_training_images_and_the_test_is_sealed(
    numbered, n_train, subset
):
    if n_train is None and subset == "seed":
        return
    _Sealed.sealed = True
    choice = DataChoice(n_train=n_train, subset=subset, validation=40)
    seen = set()
    for seed in range(4):
        part = choice.part(numbered, seed)
        train, held = numbers(part.train_images), numbers(part.test_images)
        assert len(held) == 40
        assert len(train) == (n_train or 160)
        assert set(train).isdisjoint(held)
        assert max(train + held) < 200
        assert torch.bincount(part.test_labels).tolist() == [10] * CLASSES
        assert torch.bincount(part.train_labels).tolist() == [len(train) // CLASSES] * CLASSES
        assert part.name.startswith("numbered [40 of 200 train for validation]")
        seen.add(tuple(held))
    assert len(seen) == 4


def test_a_sealed_test_part_is_sealed(numbered):
    _Sealed.sealed = True
    with pytest.raises(AssertionError, match="test_images was looked at"):
        numbered.subset(None, 20)


@pytest.mark.parametrize("choice", [{"n_train": 10, "subset": "seed"}, {"validation": 10}])
def test_what_is_drawn_by_the_seed_needs_one_and_a_recipe_gives_its_own(choice):
    with pytest.raises(ValueError, match=r"^seed: got None, but training images are drawn by it"):
        DataChoice(**choice).load()
    made = Recipe.of(**choice, image_size=4, seed=3, device="cpu").load()
    assert made.fingerprint == DataChoice(**choice, image_size=4).load(3).fingerprint


def test_at_least_one_image_is_left_to_train_on(numbered):
    with pytest.raises(ValueError, match=r"^validation: got 200, allowed: 1 to 199$"):
        DataChoice(validation=200).part(numbered, 0)
    with pytest.raises(ValueError, match=r"^n_train: got 161, allowed: 1 to 160$"):
        DataChoice(validation=40, n_train=161).part(numbered, 0)


def test_records_name_the_draw_where_there_is_one():
    assert not {"subset", "validation"} & set(Recipe().flat())
    flat = Recipe.of(n_train=9, subset="seed", validation=5).flat()
    assert (flat["subset"], flat["validation"]) == ("seed", 5)
    assert Recipe.of(**flat).data == DataChoice(n_train=9, subset="seed", validation=5)
