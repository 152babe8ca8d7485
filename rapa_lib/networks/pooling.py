"""Poolings of the study's network: windows of 3 × 3 pixels, stride 2."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

_POOL = (3, 2, 1)  # kernel size, stride, padding


class MixedPool2d(nn.Module):
    """A learnt mix of maximum and average pooling, w · max + (1 − w) · average with 0 < w < 1.

    Source: Lee, Gallagher, Tu, "Generalizing pooling functions in convolutional neural networks",
    AISTATS 2016 (one mixing proportion per layer). Starts at w = 1/2.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, ceil(H / 2), ceil(W / 2)): windows of 3 × 3, stride 2
    """

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))
        self.max = nn.MaxPool2d(*_POOL)
        self.avg = nn.AvgPool2d(*_POOL, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(self.avg(x), self.max(x), torch.sigmoid(self.logit))


POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "max": lambda: nn.MaxPool2d(*_POOL),
    "avg": lambda: nn.AvgPool2d(*_POOL, count_include_pad=False),
    "mixed": MixedPool2d,
}
