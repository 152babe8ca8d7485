"""The tiled convolution's products in PyTorch alone: any device, any type.

Patches are gathered a few images at a time into buffers of about :data:`CHUNK_BYTES`, and gathered
again in the backward pass: the unfolded input never exists as a whole. Images are handled
channels-last, where a row of a patch is one stretch of memory.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rapa_lib.layers.products.geometry import Geometry, kernels_of, matrices_of, pixels_of

# Large enough that a product has work to do, small enough to stay near the cache. Forward and
# backward of three layers with (16, 4, 1) tiles at batch 128 on two cores took, in units of Conv2d:
# 4.9 at 2 MB, 3.8 at 4 and at 8 MB, 6.3 at 16 MB, 5.5 at 32 MB.
CHUNK_BYTES = 8 * 2**20
# A GPU wants few large products, and Triton's take as much. Not measured yet.
GPU_CHUNK_BYTES = 256 * 2**20


class Blocks(NamedTuple):
    """The patches of a chunk in equal blocks, each of one tile: what a batched product needs.

    Args:
        patch: LongTensor (n_blocks, size) of patch numbers in the chunk; any number where empty.
        filled: bool (n_blocks, size), which entries are patches; None where all are.
        tile: LongTensor (n_blocks,); None where block i belongs to tile i.
        skipped: number of patches that are in no block.
    """

    patch: Tensor
    filled: Tensor | None
    tile: Tensor | None
    skipped: int

    @classmethod
    def of(cls, assignment: Tensor, n_tiles: int) -> "Blocks":
        """Sort the patches of an assignment (any shape, -1 = skipped) by tile.

        Raises:
            ValueError: if a tile does not exist; below -1 it is ``bincount``'s RuntimeError.
        """
        flat = assignment.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat + 1, minlength=n_tiles + 1)
        if len(counts) > n_tiles + 1:  # known without waiting for a GPU once more
            raise ValueError(
                f"assignment: got tile {len(counts) - 2}, allowed: -1 (no tile) to {n_tiles - 1}"
            )
        skipped, counts = int(counts[0]), counts[1:]
        order = order[skipped:]
        mean = math.ceil(len(order) / n_tiles)
        size = max(int(counts.max()), 1)
        if size * n_tiles == len(order):
            return cls(order.view(n_tiles, size), None, None, skipped)
        tile = None
        blocks = torch.ones_like(counts)
        if size > 1.25 * mean + 4:  # an uneven load is cut into more blocks of the mean size
            size = max(mean, 1)
            blocks = -(-counts // size)
            tile = torch.repeat_interleave(blocks)
        first_block, first_patch = blocks.cumsum(0) - blocks, counts.cumsum(0) - counts
        sorted_tile = flat[order]
        rank = torch.arange(len(order), device=flat.device) - first_patch[sorted_tile]
        slot = first_block[sorted_tile] * size + rank
        patch = flat.new_zeros(int(blocks.sum()) * size)
        filled = torch.zeros_like(patch, dtype=torch.bool)
        patch[slot], filled[slot] = order, True
        return cls(patch.view(-1, size), filled.view(-1, size), tile, skipped)

    def put(self, rows: Tensor, target: Tensor) -> None:
        """Write rows (n_blocks, size, F) to target (patches, F); zero where skipped."""
        if self.skipped:
            target.zero_()
        if self.filled is None:
            target.index_copy_(0, self.patch.flatten(), rows.flatten(0, 1))
        else:
            target.index_copy_(0, self.patch[self.filled], rows[self.filled])

    def take(self, source: Tensor) -> Tensor:
        """Read rows (n_blocks, size, F) from source (patches, F); zero where empty."""
        rows = source.index_select(0, self.patch.flatten()).view(*self.patch.shape, -1)
        return rows if self.filled is None else rows * self.filled[:, :, None]


def _kernel_matrices(weight: Tensor, groups: int) -> Tensor:
    """Lay out kernels (T, O, C/g, kh, kw) as matrices (T, g, kh * kw * C/g, O/g)."""
    matrices = matrices_of(weight).flatten(1, 3)
    return matrices.unflatten(2, (groups, -1)).transpose(1, 2)


def _kernels(matrices: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Undo :func:`_kernel_matrices`."""
    matrices = matrices.transpose(1, 2).flatten(2)
    return kernels_of(matrices.unflatten(1, (*kernel, -1)))


def _by_group(patches: Tensor, groups: int, kernel: tuple[int, int]) -> Tensor:
    """Turn patches (n_blocks, size, kh * kw * C) to (n_blocks, g, size, kh * kw * C/g)."""
    if groups == 1:
        return patches[:, None]
    n_blocks, size, _ = patches.shape
    parts = patches.view(n_blocks, size, math.prod(kernel), groups, -1)
    return parts.permute(0, 3, 1, 2, 4).flatten(3)


def _ungroup(patches: Tensor, groups: int, kernel: tuple[int, int]) -> Tensor:
    """Undo :func:`_by_group`."""
    if groups == 1:
        return patches[:, 0]
    n_blocks, _, size, _ = patches.shape
    parts = patches.view(n_blocks, groups, size, math.prod(kernel), -1)
    return parts.permute(0, 2, 3, 1, 4).flatten(2)


def _chunks(assignment: Tensor, patch_bytes: int) -> list[slice]:
    """Cut a batch into runs of images whose patches fill about CHUNK_BYTES."""
    batch, n_patches = assignment.shape
    chunk_bytes = GPU_CHUNK_BYTES if assignment.is_cuda else CHUNK_BYTES
    step = max(1, chunk_bytes // max(1, n_patches * patch_bytes))
    return [slice(i, min(i + step, batch)) for i in range(0, batch, step)]


def _of_blocks(per_tile: Tensor, blocks: Blocks) -> Tensor:
    return per_tile if blocks.tile is None else per_tile[blocks.tile]


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where partial sums are kept: chunks and overlaps must not round in half precision."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    geometry: Geometry,
    groups: int,
) -> Tensor:
    """See :func:`rapa_lib.layers.products.operators.forward`."""
    matrices = _kernel_matrices(weight, groups)
    n_tiles, _, per_group, _ = matrices.shape
    y = x.new_empty(len(x), geometry.n_patches, weight.shape[1])
    for chunk in _chunks(assignment, per_group * groups * x.element_size()):
        blocks = Blocks.of(assignment[chunk], n_tiles)
        patches = _patches(geometry, x[chunk], blocks, groups)
        out = (patches @ _of_blocks(matrices, blocks)).transpose(1, 2).flatten(2)
        if bias is not None:
            out = out + _of_blocks(bias, blocks)[:, None]
        blocks.put(out, y[chunk].view(-1, weight.shape[1]))
    return y.view(len(x), *geometry.output, weight.shape[1]).permute(0, 3, 1, 2)


def grad_input(
    grad: Tensor,
    weight: Tensor,
    assignment: Tensor,
    input_size: tuple[int, int],
    geometry: Geometry,
    groups: int,
) -> Tensor:
    """See :func:`rapa_lib.layers.products.operators.grad_input`."""
    height, width = input_size
    matrices = _kernel_matrices(weight, groups).transpose(2, 3).contiguous()
    n_tiles, _, _, per_group = matrices.shape
    channels = weight.shape[2] * groups
    gx = grad.new_empty(len(grad), height, width, channels)
    for chunk in _chunks(assignment, per_group * groups * grad.element_size()):
        blocks = Blocks.of(assignment[chunk], n_tiles)
        rows = blocks.take(pixels_of(grad[chunk]).flatten(0, 2))
        rows = rows.unflatten(2, (groups, -1)).transpose(1, 2)
        products = _ungroup(rows @ _of_blocks(matrices, blocks), groups, geometry.kernel)
        batch = chunk.stop - chunk.start
        patches = grad.new_empty(batch * geometry.n_patches, products.shape[-1])
        blocks.put(products, patches)
        padded = grad.new_zeros(batch, *geometry.size, channels, dtype=_sum_dtype(grad.dtype))
        _scatter(geometry, patches.view(batch, geometry.n_patches, -1), padded)
        gx[chunk] = _unpad(geometry, padded, height, width).permute(0, 2, 3, 1)
    return gx.permute(0, 3, 1, 2)


def grad_weight(
    grad: Tensor,
    x: Tensor,
    assignment: Tensor,
    n_tiles: int,
    geometry: Geometry,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """See :func:`rapa_lib.layers.products.operators.grad_weight`."""
    channels, out_channels = x.shape[1] // groups, grad.shape[1]
    per_group = math.prod(geometry.kernel) * channels
    total = grad.new_zeros(
        n_tiles, groups, per_group, out_channels // groups, dtype=_sum_dtype(grad.dtype)
    )
    total_bias = total.new_zeros(n_tiles, out_channels)
    for chunk in _chunks(assignment, per_group * groups * x.element_size()):
        blocks = Blocks.of(assignment[chunk], n_tiles)
        patches = _patches(geometry, x[chunk], blocks, groups)
        rows = blocks.take(pixels_of(grad[chunk]).flatten(0, 2))
        sums = rows.sum(1, dtype=total.dtype)
        rows = rows.unflatten(2, (groups, -1)).transpose(1, 2)
        if blocks.tile is None and total.dtype == rows.dtype:
            # In place: adding the products up apart took twice the time with 1,024 tiles.
            total.flatten(0, 1).baddbmm_(patches.transpose(2, 3).flatten(0, 1), rows.flatten(0, 1))
            total_bias += sums
        else:
            tile = torch.arange(n_tiles, device=x.device) if blocks.tile is None else blocks.tile
            products = patches.transpose(2, 3) @ rows
            total.index_add_(0, tile, products.to(total.dtype))
            total_bias.index_add_(0, tile, sums)
    weight = _kernels(total, geometry.kernel)
    return weight.to(grad.dtype), total_bias.to(grad.dtype)


def _patches(geometry: Geometry, images: Tensor, blocks: Blocks, groups: int) -> Tensor:
    """Patches of images (B, C, H, W), block by block: (n_blocks, g, size, kh * kw * C/g)."""
    padded = _pad(geometry, images)
    starts = _patch_starts(geometry, len(images), images.device)
    patches = _gather(geometry, padded, starts[blocks.patch.flatten()])
    return _by_group(patches.view(*blocks.patch.shape, -1), groups, geometry.kernel)


def _pad(geometry: Geometry, images: Tensor) -> Tensor:
    """Copy images (B, C, H, W) into a zero-padded channels-last (B, H', W', C)."""
    left, _, top, _ = geometry.padding
    batch, channels, height, width = images.shape
    out = images.new_zeros(batch, *geometry.size, channels)
    out[:, top : top + height, left : left + width] = images.permute(0, 2, 3, 1)
    return out


def _unpad(geometry: Geometry, padded: Tensor, height: int, width: int) -> Tensor:
    """View the images (B, C, H, W) inside a padded channels-last (B, H', W', C)."""
    left, _, top, _ = geometry.padding
    return padded[:, top : top + height, left : left + width].permute(0, 3, 1, 2)


def _patch_starts(geometry: Geometry, batch: int, device: torch.device) -> Tensor:
    """Position of every patch's first pixel in the flattened padded batch: (B * L,)."""
    rows = torch.arange(geometry.output[0], device=device) * geometry.stride[0] * geometry.size[1]
    cols = torch.arange(geometry.output[1], device=device) * geometry.stride[1]
    images = torch.arange(batch, device=device) * (geometry.size[0] * geometry.size[1])
    return (images[:, None, None] + rows[:, None] + cols).flatten()


def _gather(geometry: Geometry, padded: Tensor, starts: Tensor) -> Tensor:
    """Collect patches (P, kernel height * kernel width * C) that begin at ``starts`` (P,)."""
    channels = padded.shape[-1]
    rows = (
        torch.arange(geometry.kernel[0], device=starts.device)
        * geometry.dilation[0]
        * geometry.size[1]
    )
    length = geometry.kernel[1]
    if geometry.dilation[1] > 1:  # a kernel row is then no single stretch of memory
        cols = torch.arange(geometry.kernel[1], device=starts.device) * geometry.dilation[1]
        rows, length = (rows[:, None] + cols).flatten(), 1
    positions = padded.numel() // channels
    stretches = padded.as_strided((positions - length + 1, length * channels), (channels, 1))
    index = (starts[:, None] + rows).flatten()
    return stretches.index_select(0, index).view(len(starts), -1)


def _scatter(geometry: Geometry, patches: Tensor, padded: Tensor) -> None:
    """Add patches (B, L, kernel height * kernel width * C), in order, to the padded images."""
    batch, channels = padded.shape[0], padded.shape[-1]
    patches = patches.view(batch, *geometry.output, *geometry.kernel, channels)
    for i in range(geometry.kernel[0]):
        top = i * geometry.dilation[0]
        for j in range(geometry.kernel[1]):
            left = j * geometry.dilation[1]
            bottom = top + (geometry.output[0] - 1) * geometry.stride[0] + 1
            right = left + (geometry.output[1] - 1) * geometry.stride[1] + 1
            target = padded[:, top : bottom : geometry.stride[0], left : right : geometry.stride[1]]
            target += patches[:, :, :, i, j]
