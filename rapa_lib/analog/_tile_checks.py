"""What tile arrays check before compiled code believes it, and how vectors become images."""

import math
from typing import Any

import torch
from torch import Tensor

from rapa_lib.layers.products.door import check_fits, check_plain, check_product
from rapa_lib.layers.products.geometry import Geometry, kernels_of


def check_tiles(tiles: Any, geometry: Geometry, assignment: Tensor, **others: Any) -> None:
    """Check all that a product or an update is given, the tiles' own tensors included.

    ``others`` are arguments of :func:`check_product`. Parameters can be replaced and attributes
    set by anyone; compiled code believes them.
    """
    shape = (tiles.n_tiles, tiles.out_features, tiles.in_features)
    check_plain("weight", tiles.weight, 3)
    check_fits("weight", tiles.weight, shape, ("weight", tiles.weight))
    per_pixel = math.prod(geometry.kernel)
    if tiles.in_features % per_pixel:
        raise ValueError(
            f"kernel: got {tuple(geometry.kernel)}, which does not divide in_features = "
            f"{tiles.in_features}"
        )
    size = (*geometry.kernel, tiles.in_features // per_pixel)
    kernels = kernels_of(tiles.matrices.detach().unflatten(1, size))
    checked = check_product(
        weight=kernels, assignment=assignment, stride=geometry.stride,
        padding=geometry.padding, dilation=geometry.dilation, groups=1, **others,
    )  # fmt: skip
    if checked != geometry:
        raise ValueError(f"geometry: got {geometry}, expected {checked}")
    if tiles.is_pulsed and {"x", "grad"} <= others.keys():  # an update moves the devices
        steps = zip(tiles.weight.shape, tiles.weight.stride(), strict=True)
        if any(n > 1 and step == 0 for n, step in steps):
            raise ValueError("weight: got an expanded tensor, expected a number for each device")
        for name, values in tiles.points().present().items():
            check_plain(name, values, 3)
            check_fits(name, values, shape, ("weight", tiles.weight))


def check_groups(
    tiles: Any, groups: Tensor | None, vectors: Tensor, name: str, width: int
) -> Tensor:
    """Groups as an assignment (P, 1), once vectors and groups are checked."""
    if vectors.dim() != 2 or vectors.shape[1] != width:
        raise ValueError(f"{name}: got shape {tuple(vectors.shape)}, expected (vectors, {width})")
    if vectors.dtype != tiles.weight.dtype:
        raise TypeError(f"{name}: got {vectors.dtype}, but the weights are {tiles.weight.dtype}")
    if groups is None:
        return torch.zeros(len(vectors), 1, dtype=torch.long, device=vectors.device)
    if groups.dtype != torch.long:
        raise TypeError(f"groups: got {groups.dtype}, expected torch.int64 tile indices")
    if groups.shape != (len(vectors),):
        raise ValueError(f"groups: got shape {tuple(groups.shape)}, expected {len(vectors)}")
    if len(groups) and not (int(groups.min()) >= -1 and int(groups.max()) < tiles.n_tiles):
        raise ValueError(
            f"groups: got indices {int(groups.min())} to {int(groups.max())}, allowed: -1 "
            f"(no tile) to {tiles.n_tiles - 1}"
        )
    return groups[:, None]


def at_patches(
    values: Tensor, assignment: Tensor, images: Tensor, *, nothing: bool = False
) -> Tensor:
    """Each patch's tile's values (T, C), as images (N, C, H', W'); without a tile 0 if nothing."""
    if len(values) == 1 and not (nothing and bool((assignment < 0).any())):
        return values[0, :, None, None]
    chosen = values[assignment.clamp_min(0)].transpose(1, 2)
    if nothing:
        chosen = chosen * (assignment >= 0)[:, None]
    return chosen.unflatten(2, images.shape[2:])


def images_of(vectors: Tensor) -> Tensor:
    """Vectors (P, F) as images of one pixel, (P, F, 1, 1)."""
    return vectors[:, :, None, None]
