"""Tiling schemes: which tile computes which patch.

A scheme is one function ``(batch, height, width, n_tiles, generator) -> assignment`` from the size
of a layer's output to the tile index of every patch: a LongTensor (batch, height * width), output
positions in row-major order, in which tile loads differ by at most one patch per image. To add a
scheme, write that function and put :func:`register_tiling` above it; every layer, notebook and
study then knows it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from rapa_lib._checks import LARGE, check_bool, check_choice, check_int, check_memory
from rapa_lib.layers.products.compiled import argsort_rows

Scheme = Callable[[int, int, int, int, torch.Generator | None], Tensor]


@dataclass(frozen=True)
class Tiling:
    """A registered scheme.

    Args:
        name: what users call it.
        scheme: the function that assigns patches to tiles.
        redraw: whether every forward pass draws anew. If not, a layer asks once for one image,
            with a generator seeded by the layer, and keeps the answer for all images.
        exchangeable: whether every draw is uniform over balanced assignments, so that no tile is
            preferred: then an expectation over assignments exists, of which
            :mod:`rapa_lib.instruments.penalty` speaks.
    """

    name: str
    scheme: Scheme
    redraw: bool
    exchangeable: bool = False


# A random key, its place in the order, the tile before it is placed and after.
_BYTES_PER_PATCH = 4 + 8 + 8 + 8

TILINGS: dict[str, Tiling] = {}
"""Every registered scheme by name."""


def register_tiling(
    name: str, *, redraw: bool = False, exchangeable: bool = False
) -> Callable[[Scheme], Scheme]:
    """Add the decorated scheme to :data:`TILINGS`.

    Args:
        name: what users call it; must be new.
        redraw: whether every forward pass draws anew (see :class:`Tiling`).
        exchangeable: whether draws are uniform over balanced assignments (see :class:`Tiling`).

    Raises:
        ValueError: if the name is taken, or a scheme that does not draw is called exchangeable.
        TypeError: if the name is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: got {name!r}, expected a string")
    check_bool("redraw", redraw)
    if check_bool("exchangeable", exchangeable) and not redraw:
        raise ValueError("exchangeable: got True, but the scheme does not draw: pass redraw=True")
    if name in TILINGS:
        raise ValueError(f"name: {name!r} is a registered tiling already")

    def add(scheme: Scheme) -> Scheme:
        if not callable(scheme):
            raise TypeError(f"scheme: got {scheme!r}, expected a function")
        TILINGS[name] = Tiling(name, scheme, redraw, exchangeable)
        return scheme

    return add


def draw_assignment(
    tiling: str,
    batch: int,
    height: int,
    width: int,
    n_tiles: int,
    *,
    living: Sequence[int] | None = None,
    reroute: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the tile index of every patch of a batch.

    Where tiles are dead and their patches rerouted, a scheme that draws anew is asked for an
    assignment of the living tiles alone. Under any other, living tiles keep their own patches, and
    the dead tiles' patches, in row-major order, are dealt out one at a time to the living ones,
    those with least load first, so that their loads still differ by at most one patch.

    Args:
        tiling: a name in :data:`TILINGS`.
        batch: number of images.
        height, width: output size of the layer; L = height * width patches per image.
        n_tiles: number of tiles, 1 to L.
        living: indices of the tiles that take patches; None: all.
        reroute: whether living tiles take the dead tiles' patches; if not, these get no tile.
        generator: source of randomness, on ``device``; None is PyTorch's global one.
        device: where the result lies; None is the CPU.

    Returns:
        LongTensor (batch, L) of tile indices in [0, n_tiles); -1 where a patch gets no tile.

    Raises:
        ValueError: if the tiling is unknown, a number is out of its range, no living tile is there
            to reroute to, or the scheme's answer is no assignment.
        TypeError: if a number is no integer.
    """
    check_choice("tiling", tiling, TILINGS)
    check_int("batch", batch, low=0)
    check_int("height", height, low=1)
    check_int("width", width, low=1)
    check_int("n_tiles", n_tiles, low=1)
    check_n_tiles(n_tiles, height, width)
    needed = _BYTES_PER_PATCH * max(1, batch if TILINGS[tiling].redraw else 1) * height * width
    if needed > LARGE:
        what = f"{batch:,} assignments of {height:,} × {width:,} patches"
        check_memory("batch, height, width", needed, what)
    if tiling == "none" and n_tiles != 1:
        raise ValueError(f"n_tiles: got {n_tiles}, but tiling 'none' has one tile")
    living = check_living(living, n_tiles, reroute)
    over_living = living is not None and reroute and TILINGS[tiling].redraw
    n_drawn = len(living) if living is not None and over_living else n_tiles
    with torch.device("cpu" if device is None else device):
        assignment = TILINGS[tiling].scheme(batch, height, width, n_drawn, generator)
    if assignment.shape != (batch, height * width) or assignment.dtype != torch.long:
        raise ValueError(
            f"tiling {tiling!r}: its scheme gave {assignment.dtype} of shape "
            f"{tuple(assignment.shape)}, expected torch.int64 of {(batch, height * width)}"
        )
    # On a GPU looking at the values would wait for it in every forward pass.
    if assignment.device.type == "cpu" and assignment.numel():
        low, high = map(int, assignment.aminmax())
        if low < 0 or high >= n_drawn:
            raise ValueError(
                f"tiling {tiling!r}: its scheme gave tiles {low} to {high}, allowed: 0 to "
                f"{n_drawn - 1}"
            )
    if living is None:
        return assignment
    names = torch.tensor(living, dtype=torch.long, device=assignment.device)
    if over_living:
        return names[assignment]
    kept = torch.full((n_tiles,), -1, device=assignment.device)
    kept[names] = names
    assignment = kept[assignment]
    return _deal_out(assignment, names) if reroute else assignment


def check_living(
    living: Sequence[int] | None, n_tiles: int, reroute: bool
) -> tuple[int, ...] | None:
    """Return the living tiles in order, None where all of them live.

    Raises:
        ValueError, TypeError: if an index is not that of a tile, comes twice, or none is left to
            reroute to.
    """
    check_bool("reroute", reroute)
    if living is None:
        return None
    tiles = tuple(sorted(check_int("living", tile, low=0, high=n_tiles - 1) for tile in living))
    if len(set(tiles)) < len(tiles):
        raise ValueError(f"living: got {tiles}, expected each tile once")
    if reroute and not tiles:
        raise ValueError("living: got no tile, but rerouted patches need at least one")
    return None if len(tiles) == n_tiles else tiles


def check_n_tiles(n_tiles: int, height: int, width: int) -> None:
    """Raise ValueError if an output of that size has fewer patches than there are tiles."""
    if n_tiles > height * width:
        raise ValueError(
            f"n_tiles: got {n_tiles}, but an output of {height} × {width} has only "
            f"{height * width} patches; allowed: 1 to {height * width}"
        )


def _deal_out(assignment: Tensor, living: Tensor) -> Tensor:
    """Give every patch without a tile (-1) to the living tile with the least load, in turn."""
    rows = []
    for row in assignment.unbind():
        loads = torch.bincount(row[row >= 0], minlength=int(living[-1]) + 1)[living]
        orphans = (row < 0).nonzero().flatten()
        # What each tile's load would be at its 1st, 2nd, … patch more: take the lowest first.
        depth = -(-len(orphans) // len(living)) + int(loads.max() - loads.min())
        levels = loads[:, None] + torch.arange(depth, device=row.device)
        order = levels.flatten().argsort(stable=True)[: len(orphans)]
        row = row.clone()
        row[orphans] = living[order // max(depth, 1)]
        rows.append(row)
    return torch.stack(rows) if rows else assignment


@register_tiling("none")
def _none(
    batch: int, height: int, width: int, n_tiles: int, generator: torch.Generator | None
) -> Tensor:
    """One tile: an ordinary convolution."""
    return torch.zeros(1, height * width, dtype=torch.long).expand(batch, -1)


@register_tiling("image")
def _image(
    batch: int, height: int, width: int, n_tiles: int, generator: torch.Generator | None
) -> Tensor:
    """Cut the output plane into n_tiles contiguous blocks: equal runs along a Hilbert curve.

    Runs along a space-filling curve are compact and touch for every n_tiles and every plane, and
    are exact squares where they can be (16 tiles on 32 × 32: squares of 8 × 8).
    """
    tiles = _hilbert_tiles(height, width, n_tiles).to(torch.get_default_device())
    return tiles.expand(batch, -1)


@register_tiling("alternate")
def _alternate(
    batch: int, height: int, width: int, n_tiles: int, generator: torch.Generator | None
) -> Tensor:
    """Give neighbouring positions to different tiles in a fixed repeating pattern.

    Along a row tiles follow each other; where rows would line up, each is shifted against the
    one above by about √n_tiles, so that equal tiles stay far apart in both directions.
    """
    shift = math.isqrt(n_tiles) if width % n_tiles == 0 else width
    rows = torch.arange(height)[:, None] * shift
    tiles = (rows + torch.arange(width)) % n_tiles
    return tiles.flatten().expand(batch, -1)


@register_tiling("random", redraw=True, exchangeable=True)
def _random(
    batch: int, height: int, width: int, n_tiles: int, generator: torch.Generator | None
) -> Tensor:
    """RAPA: a fresh balanced random permutation for every image."""
    n_patches = height * width
    tiles = (torch.arange(n_patches) % n_tiles).expand(batch, -1)
    if n_patches % n_tiles:  # which tiles carry one patch more is drawn as well
        labels = argsort_rows(torch.rand(batch, n_tiles, generator=generator))
        tiles = labels.gather(1, tiles)
    order = argsort_rows(torch.rand(batch, n_patches, generator=generator))
    return tiles.gather(1, order)


@register_tiling("random_fixed")
def _random_fixed(
    batch: int, height: int, width: int, n_tiles: int, generator: torch.Generator | None
) -> Tensor:
    """Draw one balanced random permutation and keep it for all images (control)."""
    return _random(1, height, width, n_tiles, generator).expand(batch, -1)


@lru_cache(maxsize=64)
def _hilbert_tiles(height: int, width: int, n_tiles: int) -> Tensor:
    """Tiles in runs along the curve, their lengths differing by at most one; on the CPU."""
    n_patches = height * width
    with torch.device("cpu"):
        tiles = torch.empty(n_patches, dtype=torch.long)
        walk = torch.tensor(_hilbert_walk(height, width))
        tiles[walk] = torch.arange(n_patches) * n_tiles // n_patches
    return tiles


def _hilbert_walk(height: int, width: int) -> list[int]:
    """Row-major positions of a plane in the order of a generalised Hilbert curve.

    Every step goes to a neighbour (at most one of them diagonally, where a side is odd). The
    construction for sides that are no power of two follows J. Červený's gilbert: walk a rectangle
    as an elongated pair of halves, or up, across and back down.
    """
    walk: list[int] = []

    def visit(start: tuple[int, int], along: tuple[int, int], across: tuple[int, int]) -> None:
        """Walk the rectangle spanned by two vectors, from start to the end of along."""
        length, depth = abs(sum(along)), abs(sum(across))
        step, side = _unit(along), _unit(across)
        if depth == 1 or length == 1:
            move, count = (step, length) if depth == 1 else (side, depth)
            walk.extend(
                (start[0] + i * move[0]) * width + start[1] + i * move[1] for i in range(count)
            )
            return
        half, fold = _halve(along), _halve(across)
        if 2 * length > 3 * depth:
            if abs(sum(half)) % 2 and length > 2:
                half = _add(half, step)  # even halves keep the steps between neighbours
            visit(start, half, across)
            visit(_add(start, half), _add(along, half, -1), across)
            return
        if abs(sum(fold)) % 2 and depth > 2:
            fold = _add(fold, side)
        visit(start, fold, half)
        visit(_add(start, fold), along, _add(across, fold, -1))
        end = _add(_add(start, _add(along, step, -1)), _add(fold, side, -1))
        visit(end, _scale(fold, -1), _scale(_add(along, half, -1), -1))

    if width >= height:
        visit((0, 0), (0, width), (height, 0))
    else:
        visit((0, 0), (height, 0), (0, width))
    return walk


def _unit(v: tuple[int, int]) -> tuple[int, int]:
    return ((v[0] > 0) - (v[0] < 0), (v[1] > 0) - (v[1] < 0))


def _halve(v: tuple[int, int]) -> tuple[int, int]:
    return (v[0] // 2, v[1] // 2)


def _scale(v: tuple[int, int], factor: int) -> tuple[int, int]:
    return (factor * v[0], factor * v[1])


def _add(v: tuple[int, int], w: tuple[int, int], factor: int = 1) -> tuple[int, int]:
    return (v[0] + factor * w[0], v[1] + factor * w[1])
