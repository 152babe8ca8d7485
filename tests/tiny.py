"""A data set small enough to learn in a second, and a network for it."""

from functools import cache

import torch

from rapa_lib import Dataset, RapaConvNet

SHAPE = {"n_tiles": (4, 2, 1), "channels": (4, 4, 6), "kernel_sizes": (3, 3, 3)}
"""Arguments of a network for the data set: 64, 16 and 4 patches, 16, 8 and 4 a tile."""


@cache
def tiny_dataset() -> Dataset:
    """48 training and 30 test images 2 × 8 × 8 of 3 classes: noise, and a bright band a class."""
    generator = torch.Generator().manual_seed(7)
    parts = []
    for n in (48, 30):
        labels = torch.arange(n) % 3
        images = torch.randint(0, 128, (n, 2, 8, 8), generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[0, :, 2 * label + 1 : 2 * label + 3] += 120
        parts += [images.to(torch.uint8), labels]
    return Dataset("tiny bands", *parts, ("left", "middle", "right"))


def tiny_network(*, init_seed: int = 0, **changes) -> RapaConvNet:
    """A network for the data set, its weights drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(init_seed)
        return RapaConvNet(2, 3, 8, **SHAPE | changes)


def same_bits(a: dict, b: dict) -> bool:
    """Whether two state dicts agree bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
