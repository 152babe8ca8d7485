"""Image files, Parquet in the Hugging Face layout or class folders, and what encoded them."""

import io
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rapa_lib._checks import check_memory, optional

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "test")

# One split of a folder: what errors call each image, its encoded bytes or its file, and its label.
Images = list[tuple[str, bytes | Path, int]]


def visible(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted by name, without hidden files."""
    paths = sorted(folder.glob("[!.]*")) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder}: expected a folder with something in it")
    return paths


def open_class_folders(folder: Path) -> tuple[dict[str, Images], tuple[str, ...]]:
    """List train/<class>/<image> and test/…: the images of each split, and the classes."""
    names = {split: [path.name for path in visible(folder / split)] for split in SPLITS}
    if differ := set(names["train"]) ^ set(names["test"]):
        raise ValueError(f"{folder}: in only one of train and test: {', '.join(sorted(differ))}")
    splits: dict[str, Images] = {split: [] for split in SPLITS}
    for split, images in splits.items():
        for label, name in enumerate(names[split]):
            for path in visible(folder / split / name):
                if path.suffix.lower() not in _SUFFIXES:
                    raise ValueError(f"{path}: not an image, allowed: {', '.join(_SUFFIXES)}")
                _check_file(path)
                images.append((str(path), path, label))
    return splits, tuple(names["train"])


def _check_file(path: Path) -> None:
    """Raise ValueError for a pipe, a socket or a device: reading it might never end."""
    if not path.is_file():
        raise ValueError(f"{path}: not a file")


def open_parquet(folder: Path, names: list[str]) -> tuple[dict[str, Images], tuple[str, ...]]:
    """Read the named Parquet files: the images of each split, and the classes."""
    splits: dict[str, Images] = {}
    origins: set[tuple[int, str]] = set()
    classes: set[tuple[str, ...] | None] = set()
    for split in SPLITS:
        own = [n for n in names if set(_SPLIT_WORD.findall(n.lower())) == {split}]
        shards = {int(count) for name in own for count in re.findall(r"-of-(\d+)", name)}
        if not own or shards - {len(own)}:
            lacks = f"no {split} part, or not all its shards"
            raise ValueError(f"{folder}: {lacks}; found: {', '.join(names)}")
        splits[split] = []
        for name in own:
            images, more_origins, its_classes = _read_parquet(folder / name)
            splits[split] += images
            origins |= more_origins
            classes.add(its_classes)
    if len(classes) > 1:
        raise ValueError(f"{folder}: its files do not agree on the class names")
    if (in_metadata := classes.pop()) is not None:
        return splits, in_metadata
    trained, tested = ({label for _, _, label in splits[split]} for split in SPLITS)
    n = len(trained)
    if trained | tested != set(range(n)):
        wanted = "labels 0 to n-1, each in the training part, as its files name no classes"
        raise ValueError(f"{folder}: expected {wanted}; {n} there, highest {max(trained | tested)}")
    # Images that kept their path, one folder a label, tell the names of the classes.
    named = dict(origins)
    told = len(origins) == len(set(named.values())) == n and all(named.values())
    return splits, tuple(named[label] if told else str(label) for label in range(n))


def _read_parquet(path: Path) -> tuple[Images, set[tuple[int, str]], tuple[str, ...] | None]:
    """Return images, each label with the folders its images once lay in, class names if there."""
    pa, pq = optional("pyarrow", "data"), optional("pyarrow.parquet", "data")

    try:
        _check_file(path)
        with pq.ParquetFile(path) as file:
            table = file.read()
        metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable Parquet file, {error}") from error
    columns = []
    for allowed in (("img", "image"), ("label", "fine_label")):
        columns += [name for name in allowed if name in table.column_names][:1]
    if len(columns) < 2 or not len(table):
        wanted = "rows with columns img or image, and label or fine_label"
        raise ValueError(f"{path}: expected {wanted}; found {len(table)} of {table.column_names}")
    names = _class_names(path, metadata, columns[1])
    images: Images = []
    origins: set[tuple[int, str]] = set()
    values = zip(*(table[column].to_pylist() for column in columns), strict=True)
    for row, (image, label) in enumerate(values):
        data, origin = image, None
        if isinstance(image, dict):
            data, origin = image.get("bytes"), image.get("path")
        if not isinstance(data, bytes):
            raise ValueError(f"{path}, row {row}: {columns[0]} has no bytes, expected an image's")
        if type(label) is not int or label < 0 or (names and label >= len(names)):
            wanted = f"integers 0 to {len(names) - 1}" if names else "integers from 0"
            raise ValueError(f"{path}, row {row}: {columns[1]} is {label!r}, allowed: {wanted}")
        images.append((f"{path}, row {row}", data, label))
        origins.add((label, (origin or "").rpartition("/")[0].rpartition("/")[2]))
    return images, origins, tuple(map(str, names)) if names else None


def _class_names(path: Path, metadata: Any, column: str) -> list | None:
    """The names of the classes in a Parquet file's metadata; None where it has none."""
    place = metadata
    for key in ("info", "features", column):
        place = place.get(key, {}) if isinstance(place, dict) else None
    names = place.get("names", []) if isinstance(place, dict) else None
    if not isinstance(names, list):
        raise ValueError(f"{path}: its metadata's features are not those of the datasets library")
    return names or None


_SPLIT_WORD = re.compile("(?<![a-z])(train|test)(?![a-z])")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm")
_FORMATS = ("PNG", "JPEG", "BMP", "PPM")


def decode(images: Images, size: tuple[int, int] | None) -> tuple[Tensor, set, bool]:
    """Return pixels (N, C, H, W), all (mode, JPEG quantization tables) met, if any was resized.

    On one thread: Pillow holds the interpreter's lock for most of the 0.08 ms that a small image
    takes, so two threads take 1.3 times as long.
    """
    pillow = optional("PIL.Image", "data")
    arrays: list[np.ndarray] = []
    tables: set[tuple] = set()
    sizes: dict[tuple[int, int], str] = {}
    for where, source, _ in images:
        try:
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with pillow.open(file, formats=_FORMATS) as image:
                if _is_deep(image):
                    raise ValueError("more than 8 bits a channel")
                mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
                if not arrays:
                    check_pixels(len(images), size or image.size[::-1], len(mode))
                pixels = image.convert(mode)
        except _TooLargeError as error:
            raise ValueError(f"{where}: {error}") from None
        except Exception as error:  # Pillow raises many kinds on malformed files
            wanted = f"a whole 8-bit image ({', '.join(_FORMATS)})"
            raise ValueError(f"{where}: expected {wanted}; {error}") from error
        tables.add((pixels.mode, *map(tuple, getattr(image, "quantization", {}).values())))
        sizes.setdefault(pixels.size[::-1], where)
        if size is None and len(sizes) > 1:
            met = ", ".join(f"{height}×{width} ({at})" for (height, width), at in sizes.items())
            raise ValueError(f"image_size: got None for images of mixed size, {met}; give a size")
        arrays.append(np.asarray(pixels if size is None else resize(pixels, size)))
    if len({array.ndim for array in arrays}) > 1:  # grey images among coloured ones
        arrays = [a if a.ndim == 3 else np.repeat(a[..., None], 3, axis=2) for a in arrays]
    return to_tensor(np.stack(arrays)), tables, size is not None and set(sizes) != {size}


class _TooLargeError(ValueError):
    """More pixels than there is memory for."""


def check_pixels(n: int, size: tuple[int, int], channels: int) -> None:
    """Raise ValueError if n images of (height, width) pixels are more than the memory holds."""
    height, width = size
    what = f"{n:,} images of {height} × {width} pixels"
    try:
        # Thrice: one by one, stacked, and in the order of a tensor.
        check_memory("image_size", 3 * n * height * width * channels, what)
    except ValueError as error:
        raise _TooLargeError(error) from None


def _is_deep(image: "Image.Image") -> bool:
    """Whether a file holds more than 8 bits a channel, which Pillow cuts off from colours."""
    if image.mode.startswith(("I", "F")):
        return True
    for _, _, _, form in image.tile:
        raw, *most = form if isinstance(form, tuple) else (form,)
        if ";16" in str(raw) or any(type(value) is int and value > 255 for value in most):
            return image.format in ("PNG", "PPM")
    return False


def resize(image: "Image.Image", size: tuple[int, int]) -> "Image.Image":
    """Resize to (height, width); Pillow's bilinear filter widens with the scale (antialiasing)."""
    return image.resize(size[::-1], optional("PIL.Image", "data").Resampling.BILINEAR)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Turn grey (N, H, W) or colour (N, H, W, C) pixels into (N, C, H, W)."""
    pixels = pixels[:, None] if pixels.ndim == 3 else np.moveaxis(pixels, 3, 1)
    return torch.from_numpy(np.array(pixels, order="C"))


# The luma and chroma tables that libjpeg scales by quality: ITU-T T.81, Annex K.
_LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87
    80 62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95
    98 112 100 103 99"""
_CHROMA = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66" + 38 * " 99"
)


@lru_cache
def _ijg_tables() -> dict[tuple, int]:
    """Quality 1 to 100 of libjpeg, by image mode and quantization tables."""
    base = np.array([_LUMA.split(), _CHROMA.split()], int)
    found: dict[tuple, int] = {}
    for quality in range(1, 101):
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        luma, chroma = map(tuple, np.clip((base * scale + 50) // 100, 1, 255).tolist())
        found["L", luma] = found["RGB", luma, chroma] = quality
    return found


def jpeg_quality(tables: set[tuple]) -> str:
    """Return "" if no image was JPEG, "JPEG q75" if all were of quality 75, else "JPEG"."""
    if all(len(key) == 1 for key in tables):
        return ""
    qualities = {_ijg_tables().get(key) for key in tables}
    return "JPEG" if None in qualities or len(qualities) > 1 else f"JPEG q{qualities.pop()}"
