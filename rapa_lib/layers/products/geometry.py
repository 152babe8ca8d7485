"""Where the patches of an image lie, and how kernels lie in memory."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Geometry(NamedTuple):
    """Where the patches of an image lie.

    Args:
        size: padded input height and width.
        kernel: kernel height and width.
        output: output height and width.
        stride, padding, dilation: as in ``Conv2d``; padding is (left, right, top, bottom).
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    output: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(
        cls,
        input_size: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> "Geometry":
        """The geometry of inputs of that (height, width), before padding."""
        if min(stride) < 1:
            raise ValueError(f"stride: got {tuple(stride)}, allowed: numbers of at least 1")
        left, right, top, bottom = padding
        size = (input_size[0] + top + bottom, input_size[1] + left + right)
        height, width = (
            (size[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)
        )
        return cls(
            size=size,
            kernel=(kernel[0], kernel[1]),
            output=(height, width),
            stride=(stride[0], stride[1]),
            padding=(left, right, top, bottom),
            dilation=(dilation[0], dilation[1]),
        )

    @property
    def n_patches(self) -> int:
        return self.output[0] * self.output[1]


def pixels_of(images: Tensor) -> Tensor:
    """Images (N, C, H, W) as contiguous (N, H, W, C): a view, without a copy, if channels-last."""
    return images.permute(0, 2, 3, 1).contiguous()


def matrices_of(kernels: Tensor) -> Tensor:
    """Kernels (T, O, C, kh, kw) as kernel matrices, transposed: contiguous (T, kh, kw, C, O).

    A view, without a copy, where :func:`kernels_of` made the kernels.
    """
    return kernels.permute(0, 3, 4, 2, 1).contiguous()


def kernels_of(matrices: Tensor) -> Tensor:
    """View kernel matrices (T, kh, kw, C, O) as kernels (T, O, C, kh, kw).

    In this memory layout each tile's numbers lie as the products read them: a row of neighbouring
    outputs for each number of a patch.
    """
    return matrices.permute(0, 4, 3, 1, 2)
