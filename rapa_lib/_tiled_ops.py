"""The tiled convolution's three products, as PyTorch operators.

With patches x_p of an image, kernel matrices K_t, biases b_t and an assignment a,

    forward       y_p = K_a(p) x_p + b_a(p)          (0 where a(p) = -1: the patch is skipped)
    grad_input    x̄   = Σ_p scatter_p(K_a(p)ᵀ ȳ_p)
    grad_weight   K̄_t = Σ_{p: a(p)=t} ȳ_p x_pᵀ,   b̄_t = Σ_{p: a(p)=t} ȳ_p

As custom operators they are opaque to ``torch.compile`` (one graph, the same numbers), and a faster
kernel can take the place of their bodies without anything above noticing. Their derivatives are in
:mod:`rapa_lib._tiled_conv`.

Patches are gathered a few images at a time into buffers of about :data:`CHUNK_BYTES`, and gathered
again in the backward pass: the unfolded input never exists as a whole. Images are handled
channels-last, where a row of a patch is one stretch of memory.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Large enough that a product has work to do, small enough to stay near the cache. Forward and
# backward of three layers with (16, 4, 1) tiles at batch 128 on two cores took, in units of Conv2d:
# 4.9 at 2 MB, 3.8 at 4 and at 8 MB, 6.3 at 16 MB, 5.5 at 32 MB.
CHUNK_BYTES = 8 * 2**20


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
    def of(cls, input_size, kernel, stride, padding, dilation) -> "Geometry":
        left, right, top, bottom = padding
        size = (input_size[0] + top + bottom, input_size[1] + left + right)
        output = tuple(
            (size[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)
        )
        return cls(
            size, tuple(kernel), output, tuple(stride), (left, right, top, bottom), tuple(dilation)
        )

    @property
    def n_patches(self) -> int:
        return self.output[0] * self.output[1]

    def padded(self, images: Tensor) -> Tensor:
        """Copy images (B, C, H, W) into a zero-padded channels-last (B, H', W', C)."""
        left, _, top, _ = self.padding
        batch, channels, height, width = images.shape
        out = images.new_zeros(batch, *self.size, channels)
        out[:, top : top + height, left : left + width] = images.permute(0, 2, 3, 1)
        return out

    def unpadded(self, padded: Tensor, height: int, width: int) -> Tensor:
        """View the images (B, C, H, W) inside a padded channels-last (B, H', W', C)."""
        left, _, top, _ = self.padding
        return padded[:, top : top + height, left : left + width].permute(0, 3, 1, 2)

    def patch_starts(self, batch: int, device: torch.device) -> Tensor:
        """Position of every patch's first pixel in the flattened padded batch: (B * L,)."""
        rows = torch.arange(self.output[0], device=device) * self.stride[0] * self.size[1]
        cols = torch.arange(self.output[1], device=device) * self.stride[1]
        images = torch.arange(batch, device=device) * (self.size[0] * self.size[1])
        return (images[:, None, None] + rows[:, None] + cols).flatten()

    def gather(self, padded: Tensor, starts: Tensor) -> Tensor:
        """Collect patches (P, kernel height * kernel width * C) that begin at ``starts`` (P,)."""
        channels = padded.shape[-1]
        rows = torch.arange(self.kernel[0], device=starts.device) * self.dilation[0] * self.size[1]
        length = self.kernel[1]
        if self.dilation[1] > 1:  # a kernel row is then no single stretch of memory
            cols = torch.arange(self.kernel[1], device=starts.device) * self.dilation[1]
            rows, length = (rows[:, None] + cols).flatten(), 1
        positions = padded.numel() // channels
        stretches = padded.as_strided((positions - length + 1, length * channels), (channels, 1))
        index = (starts[:, None] + rows).flatten()
        return stretches.index_select(0, index).view(len(starts), -1)

    def scatter(self, patches: Tensor, padded: Tensor) -> None:
        """Add patches (B, L, kernel height * kernel width * C), in order, to the padded images."""
        batch, channels = padded.shape[0], padded.shape[-1]
        patches = patches.view(batch, *self.output, *self.kernel, channels)
        for i in range(self.kernel[0]):
            top = i * self.dilation[0]
            for j in range(self.kernel[1]):
                left = j * self.dilation[1]
                bottom = top + (self.output[0] - 1) * self.stride[0] + 1
                right = left + (self.output[1] - 1) * self.stride[1] + 1
                target = padded[:, top : bottom : self.stride[0], left : right : self.stride[1]]
                target += patches[:, :, :, i, j]


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
        """Sort the patches of an assignment (any shape, -1 = skipped) by tile."""
        flat = assignment.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat + 1, minlength=n_tiles + 1)
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
    n_tiles, out_channels, channels, *kernel = weight.shape
    matrices = weight.view(n_tiles, groups, out_channels // groups, channels, *kernel)
    return matrices.permute(0, 1, 4, 5, 3, 2).reshape(
        n_tiles, groups, math.prod(kernel) * channels, out_channels // groups
    )


def _kernels(matrices: Tensor, channels: int, kernel: tuple[int, int]) -> Tensor:
    """Undo :func:`_kernel_matrices`."""
    n_tiles, groups, _, out_channels = matrices.shape
    weight = matrices.view(n_tiles, groups, *kernel, channels, out_channels)
    weight = weight.permute(0, 1, 5, 4, 2, 3).contiguous()
    return weight.view(n_tiles, groups * out_channels, channels, *kernel)


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
    step = max(1, CHUNK_BYTES // max(1, n_patches * patch_bytes))
    return [slice(i, min(i + step, batch)) for i in range(0, batch, step)]


def _of_blocks(per_tile: Tensor, blocks: Blocks) -> Tensor:
    return per_tile if blocks.tile is None else per_tile[blocks.tile]


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where partial sums are kept: chunks and overlaps must not round in half precision."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _pixels(images: Tensor) -> Tensor:
    """View channels-last images (B, O, H, W) as rows (B * H * W, O), copying if they are not."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


@torch.library.custom_op("rapa_lib::forward", mutates_args=())
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Convolve x (N, C, H, W) with kernels (T, O, C/g, kh, kw) under an assignment (N, L).

    ``padding`` is (left, right, top, bottom). The result (N, O, H', W') is channels-last.
    """
    geometry = Geometry.of(x.shape[2:], weight.shape[3:], stride, padding, dilation)
    matrices = _kernel_matrices(weight, groups)
    n_tiles, _, per_group, _ = matrices.shape
    y = x.new_empty(len(x), geometry.n_patches, weight.shape[1])
    for chunk in _chunks(assignment, per_group * groups * x.element_size()):
        padded = geometry.padded(x[chunk])
        starts = geometry.patch_starts(len(padded), x.device)
        blocks = Blocks.of(assignment[chunk], n_tiles)
        patches = geometry.gather(padded, starts[blocks.patch.flatten()])
        patches = _by_group(patches.view(*blocks.patch.shape, -1), groups, geometry.kernel)
        out = (patches @ _of_blocks(matrices, blocks)).transpose(1, 2).flatten(2)
        if bias is not None:
            out = out + _of_blocks(bias, blocks)[:, None]
        blocks.put(out, y[chunk].view(-1, weight.shape[1]))
    return y.view(len(x), *geometry.output, weight.shape[1]).permute(0, 3, 1, 2)


@torch.library.custom_op("rapa_lib::grad_input", mutates_args=())
def grad_input(
    grad: Tensor,
    weight: Tensor,
    assignment: Tensor,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Derivative by the input: grad (N, O, H', W') to (N, C, H, W), channels-last."""
    height, width = input_size
    geometry = Geometry.of(input_size, weight.shape[3:], stride, padding, dilation)
    matrices = _kernel_matrices(weight, groups).transpose(2, 3).contiguous()
    n_tiles, _, _, per_group = matrices.shape
    channels = weight.shape[2] * groups
    gx = grad.new_empty(len(grad), height, width, channels)
    for chunk in _chunks(assignment, per_group * groups * grad.element_size()):
        blocks = Blocks.of(assignment[chunk], n_tiles)
        rows = blocks.take(_pixels(grad[chunk]))
        rows = rows.unflatten(2, (groups, -1)).transpose(1, 2)
        products = _ungroup(rows @ _of_blocks(matrices, blocks), groups, geometry.kernel)
        batch = chunk.stop - chunk.start
        patches = grad.new_empty(batch * geometry.n_patches, products.shape[-1])
        blocks.put(products, patches)
        padded = grad.new_zeros(batch, *geometry.size, channels, dtype=_sum_dtype(grad.dtype))
        geometry.scatter(patches.view(batch, geometry.n_patches, -1), padded)
        gx[chunk] = geometry.unpadded(padded, height, width).permute(0, 2, 3, 1)
    return gx.permute(0, 3, 1, 2)


@torch.library.custom_op("rapa_lib::grad_weight", mutates_args=())
def grad_weight(
    grad: Tensor,
    x: Tensor,
    assignment: Tensor,
    n_tiles: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Derivative by kernels and biases: (T, O, C/g, kh, kw) and (T, O)."""
    geometry = Geometry.of(x.shape[2:], kernel, stride, padding, dilation)
    channels, out_channels = x.shape[1] // groups, grad.shape[1]
    per_group = math.prod(kernel) * channels
    total = grad.new_zeros(
        n_tiles, groups, per_group, out_channels // groups, dtype=_sum_dtype(grad.dtype)
    )
    total_bias = total.new_zeros(n_tiles, out_channels)
    for chunk in _chunks(assignment, per_group * groups * x.element_size()):
        padded = geometry.padded(x[chunk])
        starts = geometry.patch_starts(len(padded), x.device)
        blocks = Blocks.of(assignment[chunk], n_tiles)
        patches = geometry.gather(padded, starts[blocks.patch.flatten()])
        patches = _by_group(patches.view(*blocks.patch.shape, -1), groups, geometry.kernel)
        rows = blocks.take(_pixels(grad[chunk]))
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
    weight = _kernels(total, channels, geometry.kernel)
    return weight.to(grad.dtype), total_bias.to(grad.dtype)


@forward.register_fake
def _(x, weight, bias, assignment, stride, padding, dilation, groups):
    geometry = Geometry.of(x.shape[2:], weight.shape[3:], stride, padding, dilation)
    return x.new_empty(len(x), *geometry.output, weight.shape[1]).permute(0, 3, 1, 2)


@grad_input.register_fake
def _(grad, weight, assignment, input_size, stride, padding, dilation, groups):
    return grad.new_empty(len(grad), *input_size, weight.shape[2] * groups).permute(0, 3, 1, 2)


@grad_weight.register_fake
def _(grad, x, assignment, n_tiles, kernel, stride, padding, dilation, groups):
    weight = grad.new_empty(n_tiles, grad.shape[1], x.shape[1] // groups, *kernel)
    return weight, grad.new_empty(n_tiles, grad.shape[1])
