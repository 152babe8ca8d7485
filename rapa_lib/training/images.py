"""Images on the device: scaled, augmented, classified."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_int, check_real, check_sequence
from rapa_lib._modes import evaluation_mode
from rapa_lib._seeds import seeded
from rapa_lib.training.precision import logits_of


class _Scaling(NamedTuple):
    mean: tuple[float, ...]
    std: tuple[float, ...]


class InputScaling(_Scaling):
    """What turns uint8 images into a network's input: per channel (image / 255 − mean) / std.

    Args:
        mean, std: a number for each channel.

    Raises:
        ValueError, TypeError: for a number that is not finite, a std that is not above 0, or
            another number of means than of stds.
    """

    __slots__ = ()

    def __new__(cls, mean: Sequence[float], std: Sequence[float]) -> "InputScaling":
        means = tuple(check_real("mean", one) for one in check_sequence("mean", mean, "numbers"))
        stds = tuple(
            check_real("std", one, low=0, open_low=True)
            for one in check_sequence("std", std, "numbers")
        )
        if len(means) != len(stds):
            raise ValueError(
                f"mean, std: got {len(means)} and {len(stds)} numbers, allowed: one each a channel"
            )
        return super().__new__(cls, means, stds)

    @classmethod
    def of(cls, images: Tensor) -> "InputScaling":
        """Take mean and standard deviation of training images (N, C, H, W), uint8."""
        counts = [
            torch.bincount(images[:, c].flatten(), minlength=256).double()
            for c in range(images.shape[1])
        ]
        level = torch.arange(256, dtype=torch.double, device=images.device) / 255
        means = [float((n * level).sum() / n.sum()) for n in counts]
        stds = [
            math.sqrt(float((n * (level - mean) ** 2).sum() / n.sum()))
            for n, mean in zip(counts, means, strict=True)
        ]
        return cls(tuple(means), tuple(max(s, 1 / 255) for s in stds))

    def __call__(self, images: Tensor) -> Tensor:
        """Scale uint8 images (N, C, H, W) to float32, channels-last."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images: got {images.dtype}, expected torch.uint8")
        if images.dim() != 4 or images.shape[1] != len(self.mean):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, expected (N, C, H, W) with C = "
                f"{len(self.mean)}, the channels of this scaling"
            )
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=images.device)
            for values in (self.mean, self.std)
        )
        scale = 1 / (255 * std)
        shift = -mean / std
        x = images.to(torch.float32, memory_format=torch.channels_last)
        return x.mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))


def augment(images: Tensor, mirror: bool, max_shift: int) -> Tensor:
    """Mirror and shift each image at random.

    Args:
        images: (N, C, H, W), any type.
        mirror: mirror left and right with probability 1/2.
        max_shift: greatest shift in pixels, either way in both directions; borders reflect.

    Returns:
        (N, C, H, W), the same type.
    """
    if not mirror and max_shift == 0:
        return images
    n, _, height, width = images.shape
    device = images.device
    shifts = torch.randint(-max_shift, max_shift + 1, (2, n, 1), device=device)
    rows = _reflect(torch.arange(height, device=device) + shifts[0], height)
    cols = _reflect(torch.arange(width, device=device) + shifts[1], width)
    if mirror:
        flip = torch.rand(n, 1, device=device) < 0.5
        cols = torch.where(flip, cols.flip(1), cols)
    image = torch.arange(n, device=device)[:, None, None]
    # Indices on both sides of the channels put these last: the format the network wants.
    return images[image, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    scaling: InputScaling,
    *,
    batch_size: int = 500,
    precision: str = "float32",
) -> Tensor:
    """Logits (N, n_classes) of uint8 images (N, C, H, W), in evaluation mode."""
    check_int("batch_size", batch_size, low=1)
    with evaluation_mode(model):
        parts = images.split(batch_size)
        return torch.cat([logits_of(model, scaling(part), precision) for part in parts])


def check_labels(labels: Tensor, n_images: int, n_classes: int | None = None) -> None:
    """Raise unless these are labels (N,) of so many images, whole numbers from 0.

    Args:
        labels: to check.
        n_images: N.
        n_classes: labels must be below it; None: not known yet.

    Raises:
        ValueError, TypeError: naming them.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.long:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: got {got}, expected a tensor of torch.int64")
    if labels.shape != (n_images,):
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)} for {n_images} images, expected (N,)"
        )
    low, high = (int(end) for end in labels.aminmax()) if n_images else (0, 0)
    if low < 0 or (n_classes is not None and high >= n_classes):
        allowed = "at least 0" if n_classes is None else f"0 to {n_classes - 1}"
        raise ValueError(f"labels: got {low} to {high}, allowed: {allowed}")


@torch.no_grad()
def count_classes(model: nn.Module, images: Tensor) -> int:
    """Number of classes that a model tells apart, asked with one image; nothing is drawn.

    Args:
        model: takes scaled images (N, C, H, W), gives logits (N, n_classes).
        images: such images, at least one.
    """
    with seeded(0), evaluation_mode(model):
        return model(images[:1]).shape[-1]


def error_percent(scores: Tensor, labels: Tensor) -> float:
    """Share of images, in percent, whose greatest score is not at their label."""
    return 100 * float((scores.argmax(1) != labels).double().mean())


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror indices that lie outside 0 … size − 1 at the border, the border pixel not doubled."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * size - 2)
    return torch.minimum(index, 2 * size - 2 - index)
