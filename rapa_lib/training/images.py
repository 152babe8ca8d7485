"""Images on the device: scaled, augmented, classified."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rapa_lib._modes import evaluation_mode
from rapa_lib.training.precision import logits_of


class InputScaling(NamedTuple):
    """What turns uint8 images into a network's input: per channel (image / 255 − mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

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
    with evaluation_mode(model):
        parts = images.split(batch_size)
        return torch.cat([logits_of(model, scaling(part), precision) for part in parts])


def error_percent(scores: Tensor, labels: Tensor) -> float:
    """Share of images, in percent, whose greatest score is not at their label."""
    return 100 * float((scores.argmax(1) != labels).double().mean())


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror indices that lie outside 0 … size − 1 at the border, the border pixel not doubled."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * size - 2)
    return torch.minimum(index, 2 * size - 2 - index)
