"""The three products on an NVIDIA GPU: float32, bfloat16 and float16, through Triton.

Triton comes with PyTorch's CUDA wheels and is optional: where it, a GPU of compute capability 8.0
or the C compiler that it needs is missing, :mod:`rapa_lib.layers.products.gathered` does the work,
which is logged once; with the variable RAPA_KERNELS set to ``off`` it does so silently. Kernels
are compiled when first needed and kept in Triton's cache.

Patches are sorted by tile; products gather them, multiply and scatter
(:mod:`rapa_lib.layers.products.gpu_kernels`). Sums are kept in float32 and rounded once. Numbers of
float32 are multiplied as TensorFloat-32 where PyTorch does so in ``Conv2d``, which is its default
(``torch.backends.cudnn.conv.fp32_precision``).

The same bits again: the sort is stable, every number of a result is written by one program, sums
over several programs are made of parts kept apart and added in order, and the sizes of blocks
follow from shapes, never from a timing.
"""

import functools
import logging
import math
import os
import subprocess
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rapa_lib.layers.products.door import check_tiles
from rapa_lib.layers.products.gathered import _chunks
from rapa_lib.layers.products.geometry import Geometry, kernels_of, matrices_of, pixels_of

log = logging.getLogger(__name__)

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_CAPABILITY = (8, 0)  # the first with bfloat16 and TensorFloat-32

# Blocks to multiply, at most: three stages of them fit the shared memory of every GPU served (100
# KiB). Not tuned: no GPU was at hand.
_MOST_ROWS, _MOST_COLUMNS, _DEPTH_BYTES = 128, 64, 128
# Fewer programs than this leave a GPU idle: the patches of a tile are then shared out, but no
# finer than so many each.
_ENOUGH_PROGRAMS, _LEAST_SHARE = 256, 512
_FOLD_SIZE = 1024


def serves(tensor: Tensor) -> bool:
    """Whether Triton can take a convolution of this tensor's type and device."""
    if not tensor.is_cuda or tensor.dtype not in _TYPES:
        return False
    return os.environ.get("RAPA_KERNELS", "auto") != "off" and _works(tensor.device.index)


@functools.cache
def _works(device: int) -> bool:
    """Whether kernels can be compiled and run on a device; if not, why is logged."""
    try:
        _require(device)
        _kernels()
        _probe(torch.device("cuda", device))
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("tiled convolutions on a GPU run in PyTorch alone, slower: %s", error)
        return False
    return True


def _require(device: int) -> None:
    """Raise RuntimeError if the GPU is none that the kernels are written for."""
    if torch.version.cuda is None:
        raise RuntimeError("the kernels are written for NVIDIA's GPUs")
    found = torch.cuda.get_device_capability(device)
    if found < _CAPABILITY:
        raise RuntimeError(f"got compute capability {found}, needed: {_CAPABILITY} or later")


def _probe(device: torch.device) -> None:
    """Run the smallest kernel, which shows that Triton's compilers are there."""
    patches = torch.zeros(1, device=device)
    ones = (1,) * 8
    constants = {"TAPS": 1, "WIDTH": 1, "SIZE": 16}
    _launch("fold", (1,), patches, torch.empty_like(patches), *ones, 0, 0, 1, 1, **constants)


@functools.cache
def _kernels() -> ModuleType:
    from rapa_lib.layers.products import gpu_kernels

    return gpu_kernels


def _launch(name: str, grid: tuple[int, ...], first: Tensor, *rest: Any, **constants: Any) -> None:
    """Start a kernel's programs on the first argument's device."""
    with torch.cuda.device_of(first):
        getattr(_kernels(), name)[grid](first, *rest, **constants)


class _Sorted(NamedTuple):
    """Patches in the order of their tiles.

    Args:
        order: LongTensor (patches,) of patch numbers; those of no tile (-1) come first.
        bounds: LongTensor (T + 2,): tile t has ``order[bounds[t + 1]:bounds[t + 2]]``.
    """

    order: Tensor
    bounds: Tensor

    @classmethod
    def of(cls, assignment: Tensor, n_tiles: int) -> "_Sorted":
        """Sort an assignment (N, L).

        Raises:
            ValueError: if a tile does not exist.
        """
        check_tiles(assignment, n_tiles)
        short = n_tiles <= torch.iinfo(torch.int16).max  # a radix sort goes by bits
        kind = torch.int16 if short else torch.int32
        tiles, order = assignment.flatten().to(kind).sort(stable=True)
        each = torch.arange(-1, n_tiles + 1, dtype=kind, device=tiles.device)
        return cls(order, torch.searchsorted(tiles, each))

    def blocks(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cut each tile's patches into blocks of that many, the last one perhaps shorter.

        How many blocks there are is not asked, which would mean waiting for the GPU: there are as
        many as there can be, and those at the end may be empty.

        Returns:
            tile, start and stop in ``order`` of each block.
        """
        sizes = self.bounds.diff()
        most = len(self.order) // rows + len(sizes)
        last = ((sizes + rows - 1) // rows).cumsum(0)
        block = torch.arange(most, device=last.device)
        slot = torch.searchsorted(last, block, right=True).clamp_(max=len(sizes) - 1)
        first = last - (sizes + rows - 1) // rows
        start = self.bounds[slot] + (block - first[slot]) * rows
        return slot - 1, start, torch.minimum(start + rows, self.bounds[slot + 1])


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    geometry: Geometry,
    groups: int,
) -> Tensor:
    """See :func:`rapa_lib.layers.products.operators.forward`."""
    n_tiles, outputs, channels = weight.shape[:3]
    keys, per_tile = math.prod(geometry.kernel) * channels, assignment.numel() // n_tiles
    blocks = _blocks(per_tile, outputs // groups, keys, x.dtype)
    by_tile = _Sorted.of(assignment, n_tiles)
    tiles, starts, stops = by_tile.blocks(blocks["ROWS"])
    y = x.new_empty(len(x), *geometry.output, outputs)
    _launch(
        "forward", (len(tiles), groups * blocks["COLUMN_BLOCKS"]),
        x, matrices_of(weight), x if bias is None else bias.contiguous(),
        by_tile.order, tiles, starts, stops, y, outputs, *_place(geometry, x),
        HAS_BIAS=bias is not None, **blocks,
        **_constants(geometry, channels, outputs // groups, x.dtype),
    )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def grad_input(
    grad: Tensor,
    weight: Tensor,
    assignment: Tensor,
    input_size: tuple[int, int],
    geometry: Geometry,
    groups: int,
) -> Tensor:
    """See :func:`rapa_lib.layers.products.operators.grad_input`.

    Derivatives by patches are kept, in float32 and some images at a time, for a second kernel to
    add up where patches overlap: each pixel's are of as many tiles as there are positions.
    """
    n_tiles, outputs, channels = weight.shape[:3]
    keys = math.prod(geometry.kernel) * channels
    constants = _constants(geometry, channels, outputs // groups, grad.dtype)
    grad, matrices = pixels_of(grad).flatten(1, 2), matrices_of(weight)
    grad_x = grad.new_empty(len(grad), *input_size, channels * groups)
    left, _, top, _ = geometry.padding
    for chunk in _chunks(assignment, keys * groups * 4):
        by_tile = _Sorted.of(assignment[chunk], n_tiles)
        per_tile = len(by_tile.order) // n_tiles
        blocks = _blocks(per_tile, keys, outputs // groups, grad.dtype)
        patches = grad.new_empty(len(by_tile.order), keys * groups, dtype=torch.float32)
        tiles, starts, stops = by_tile.blocks(blocks["ROWS"])
        _launch(
            "grad_patches", (len(tiles), groups * blocks["COLUMN_BLOCKS"]),
            grad[chunk], matrices, by_tile.order, tiles, starts, stops, patches, outputs,
            GROUPS=groups, **constants, **blocks,
        )  # fmt: skip
        part = grad_x[chunk]
        _launch(
            "fold", (math.ceil(part.numel() / _FOLD_SIZE),),
            patches, part, part.numel(), channels * groups, *input_size, *geometry.output,
            *geometry.stride, top, left, *geometry.dilation,
            TAPS=math.prod(geometry.kernel), WIDTH=geometry.kernel[1], SIZE=_FOLD_SIZE,
        )  # fmt: skip
    return grad_x.permute(0, 3, 1, 2)


def grad_weight(
    grad: Tensor,
    x: Tensor,
    assignment: Tensor,
    n_tiles: int,
    geometry: Geometry,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """See :func:`rapa_lib.layers.products.operators.grad_weight`."""
    outputs, channels = grad.shape[1], x.shape[1] // groups
    keys, per_tile = math.prod(geometry.kernel) * channels, assignment.numel() // n_tiles
    blocks = _blocks(keys, outputs // groups, per_tile, x.dtype)
    key_blocks = math.ceil(keys / blocks["ROWS"])
    column_blocks = groups * blocks["COLUMN_BLOCKS"]
    programs = n_tiles * key_blocks * column_blocks
    shares = max(1, min(_ENOUGH_PROGRAMS // programs, per_tile // _LEAST_SHARE))
    kind = grad.dtype if shares == 1 else torch.float32
    matrices = grad.new_empty(shares, n_tiles, keys, outputs, dtype=kind)
    biases = grad.new_empty(shares, n_tiles, outputs, dtype=kind)
    by_tile = _Sorted.of(assignment, n_tiles)
    _launch(
        "grad_weight", (n_tiles * shares, key_blocks, column_blocks),
        pixels_of(grad), x, by_tile.order, by_tile.bounds[1:], matrices, biases, n_tiles,
        outputs, *_place(geometry, x),
        SHARES=shares, **blocks, **_constants(geometry, channels, outputs // groups, x.dtype),
    )  # fmt: skip
    total, total_bias = (
        parts[0] if shares == 1 else parts.sum(0).to(grad.dtype) for parts in (matrices, biases)
    )
    return kernels_of(total.unflatten(1, (*geometry.kernel, channels))), total_bias


def _place(geometry: Geometry, x: Tensor) -> tuple[int, ...]:
    """Where patches lie in images, as the kernels take it."""
    left, _, top, _ = geometry.padding
    return (
        *x.shape[2:], geometry.n_patches, geometry.output[1], *geometry.stride, top, left,
        *geometry.dilation, *x.stride(),
    )  # fmt: skip


def _constants(
    geometry: Geometry, channels: int, outputs: int, dtype: torch.dtype
) -> dict[str, int | str | bool]:
    """What is known of a layer when its kernels are compiled; channels and outputs of a group."""
    exact = torch.backends.cudnn.conv.fp32_precision != "tf32"  # type: ignore[attr-defined]
    return {
        "CHANNELS": channels,
        "WIDTH": geometry.kernel[1],
        "KEYS": math.prod(geometry.kernel) * channels,
        "OUTPUTS": outputs,
        "PRECISION": "ieee" if exact else "tf32",
        "WIDEN": dtype == torch.bfloat16 and _interprets(),
    }


def _interprets() -> bool:
    """Whether Triton interprets kernels, for tests, instead of compiling them."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def _blocks(rows: int, columns: int, depth: int, dtype: torch.dtype) -> dict[str, int]:
    """Sizes of blocks for a product of (rows, depth) and (depth, columns)."""
    wide = _power_of_two(columns, _MOST_COLUMNS)
    return {
        "ROWS": _power_of_two(rows, _MOST_ROWS),
        "COLUMNS": wide,
        "DEPTH": _power_of_two(depth, _DEPTH_BYTES // dtype.itemsize),
        "COLUMN_BLOCKS": math.ceil(columns / wide),
    }


def _power_of_two(n: int, most: int) -> int:
    """The least power of two that holds n, from 16, the least of a matrix unit, to ``most``."""
    return min(most, max(16, 1 << (n - 1).bit_length() if n > 1 else 1))
