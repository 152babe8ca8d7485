"""Averaging of analog tiles: read through their periphery, written by programming or by pulses."""

import warnings

import torch
from torch import Tensor

from rapa_lib._checks import check_choice, check_int
from rapa_lib.analog._tile_array import AnalogTileArray

WRITES = ("program", "pulses")
"""How the mean is written. ``"program"``: onto every array anew, as a network is programmed, inside
the bounds of the devices. ``"pulses"``: as the updates of training are, one pulse train for each
line of an array; what a train cannot carry (at most ``bl_max`` steps) is left to the next time."""


@torch.no_grad()
def read_tiles(tiles: AnalogTileArray, reads: int = 1) -> Tensor:
    """Read every matrix through the periphery: products with unit vectors along its shorter side.

    Args:
        tiles: what is read. Forward products give its columns, backward ones its rows.
        reads: of every line; their mean is taken.

    Returns:
        (T, M, K), with the noise and the resolution of the converters.

    Raises:
        ValueError, TypeError: if reads is not allowed.
    """
    check_int("reads", reads, low=1)
    lines, groups = _lines(tiles)
    by_columns = tiles.in_features <= tiles.out_features
    read = tiles.forward if by_columns else tiles.backward
    total = torch.stack([read(lines, groups) for _ in range(reads)]).mean(0)
    total = total.unflatten(0, (tiles.n_tiles, -1))
    return total.transpose(1, 2) if by_columns else total


@torch.no_grad()
def average_tiles(tiles: AnalogTileArray, *, write: str = "program", reads: int = 1) -> None:
    """Bring all tiles to the mean of what is read of them.

    Reading noise of standard deviation σ leaves σ / √(T · reads) in the mean. By programming that
    is all that the tiles get of it; by pulses each is moved by the mean less what was read of
    itself, and keeps its own σ / √reads.

    Args:
        tiles: the arrays of one layer; with ideal devices too.
        write: see :data:`WRITES`.
        reads: see :func:`read_tiles`.

    Raises:
        ValueError, TypeError: naming the argument; there are no pulses for ideal devices.
        NotFiniteError: if what was read is not finite; nothing is written.
    """
    check_choice("write", write, WRITES)
    read = read_tiles(tiles, reads)
    mean = read.mean(0)
    if write == "program":
        with warnings.catch_warnings():  # that some means lie outside some bounds is no news
            warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ weights are outside the bounds")
            tiles.program(mean.expand_as(read))
        return
    lines, groups = _lines(tiles)
    if tiles.in_features <= tiles.out_features:
        tiles.update(lines, (read - mean).transpose(1, 2).flatten(0, 1), 1.0, groups)
    else:
        tiles.update((read - mean).flatten(0, 1), lines, 1.0, groups)


def _lines(tiles: AnalogTileArray) -> tuple[Tensor, Tensor]:
    """Unit vectors along the shorter side of every tile, (T · side, side), and their tiles."""
    side = min(tiles.in_features, tiles.out_features)
    weight = tiles.weight
    eye = torch.eye(side, dtype=weight.dtype, device=weight.device)
    groups = torch.arange(tiles.n_tiles, device=weight.device).repeat_interleave(side)
    return eye.repeat(tiles.n_tiles, 1), groups
