"""Analog products of all patches of a batch, tile by tile: forward, and backward by the input.

Patches are gathered a few images at a time, as in :mod:`rapa_lib.layers.products.gathered`. A batch
of vectors is a batch of images of one pixel.
"""

import math

from torch import Tensor

from rapa_lib.analog._io_config import IOParameters
from rapa_lib.analog._periphery import analog_product
from rapa_lib.layers.products import gathered
from rapa_lib.layers.products.gathered import Blocks
from rapa_lib.layers.products.geometry import Geometry, pixels_of


def forward(
    x: Tensor,
    matrices: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    geometry: Geometry,
    io: IOParameters,
) -> Tensor:
    """Multiply each patch with its tile's matrix.

    Args:
        x: images (N, C, H, W).
        matrices: (T, kh · kw · C, O).
        bias: added digitally, (T, O), or None.
        assignment: the tile of every patch, (N, L); −1: none, its output is zero.
        geometry: where the patches lie.
        io: the periphery.

    Returns:
        (N, O, H', W'), channels-last.
    """
    n_out = matrices.shape[2]
    y = x.new_empty(len(x), geometry.n_patches, n_out)
    for chunk in chunks(assignment, matrices):
        blocks = Blocks.of(assignment[chunk], len(matrices))
        out = analog_product(
            patch_rows(geometry, x[chunk], blocks), of_blocks(matrices, blocks), io
        )
        if bias is not None:
            out += of_blocks(bias, blocks)[:, None]
        blocks.put(out, y[chunk].view(-1, n_out))
    return y.view(len(x), *geometry.output, n_out).permute(0, 3, 1, 2)


def backward(
    grad: Tensor,
    matrices: Tensor,
    assignment: Tensor,
    input_size: tuple[int, int],
    geometry: Geometry,
    io: IOParameters,
) -> Tensor:
    """Multiply each error with its tile's transposed matrix and add up where patches overlap.

    Args:
        grad: errors (N, O, H', W').
        input_size: height and width of the input.
        matrices, assignment, geometry, io: as in :func:`forward`.

    Returns:
        (N, C, H, W), channels-last.
    """
    height, width = input_size
    per_patch = matrices.shape[1]
    channels = per_patch // math.prod(geometry.kernel)
    transposed = matrices.transpose(1, 2)
    by_x = grad.new_empty(len(grad), height, width, channels)
    for chunk in chunks(assignment, matrices):
        blocks = Blocks.of(assignment[chunk], len(matrices))
        rows = blocks.take(pixels_of(grad[chunk]).flatten(0, 2))
        products = analog_product(rows, of_blocks(transposed, blocks), io)
        n = chunk.stop - chunk.start
        patches = grad.new_empty(n * geometry.n_patches, per_patch)
        blocks.put(products, patches)
        padded = grad.new_zeros(n, *geometry.size, channels)
        gathered._scatter(geometry, patches.view(n, geometry.n_patches, -1), padded)
        images = gathered._unpad(geometry, padded, height, width)
        by_x[chunk] = images.permute(0, 2, 3, 1)
    return by_x.permute(0, 3, 1, 2)


def chunks(assignment: Tensor, matrices: Tensor) -> list[slice]:
    """Runs of images whose patches fill a buffer."""
    per_patch = max(matrices.shape[1:])
    return gathered._chunks(assignment, per_patch * matrices.element_size())


def patch_rows(geometry: Geometry, images: Tensor, blocks: Blocks) -> Tensor:
    """Patches of images (B, C, H, W), block by block: (n_blocks, size, kh · kw · C)."""
    return gathered._patches(geometry, images, blocks, 1)[:, 0]


def of_blocks(per_tile: Tensor, blocks: Blocks) -> Tensor:
    """What belongs to each block's tile."""
    return per_tile if blocks.tile is None else per_tile[blocks.tile]
