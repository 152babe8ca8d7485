"""Pulse trains: how many pulses the outer products of a mini-batch send to every device.

For −lr · d xᵀ every row and column sends a random train of BL slots, with probabilities
p_x = B|x|, p_d = A|d| (clipped at 1) and A = B = √(lr / (dw_min · BL)). A device steps where both
trains fire in a slot, up if d · x is negative. Sources: Gokmen & Vlasov, Front. Neurosci. 10:333
(2016); update management: Gokmen, Onen & Haensch, Front. Neurosci. 11:538 (2017); a mini-batch at
once: Rasch, Gokmen & Haensch, arXiv 1906.02698 (2019).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rapa_lib.analog._io_config import UpdateParameters
from rapa_lib.analog._periphery import check_finite

# Bits of a chunk, as numbers. Small enough to stay near the cache.
BITS_BYTES = 32 * 2**20


class Trains(NamedTuple):
    """Pulse probabilities, with the signs of what they stand for.

    Args:
        x: of the columns, (n_blocks, size, K), in −1 … 1.
        d: of the rows, (n_blocks, size, M), in −1 … 1.
        bl: number of slots, (n_blocks, size, 1).
    """

    x: Tensor
    d: Tensor
    bl: Tensor

    @classmethod
    def of(
        cls, x: Tensor, d: Tensor, lr: float, dw_min: float, update: UpdateParameters
    ) -> "Trains":
        """Trains for −lr · d xᵀ of every vector pair x (n_blocks, size, K), d (n_blocks, size, M).

        Raises:
            NotFiniteError: if a number is not finite.
        """
        tiny = torch.finfo(x.dtype).tiny
        x_max, d_max = (torch.linalg.vector_norm(t, float("inf"), 2, True) for t in (x, d))
        check_finite("input", x_max)
        check_finite("error", d_max)
        x_max, d_max = x_max.clamp_min(tiny), d_max.clamp_min(tiny)
        most = float(update.desired_bl)
        bl, ratio = torch.full_like(x_max, most), 1.0
        if update.update_management or update.update_bl_management:
            # Logarithms: products of small numbers would vanish.
            pulses = ((x_max.log() + d_max.log()).exp() * (lr / dw_min)).clamp_min(tiny)
            d_max = d_max * (most / pulses).clamp_max(1)  # more than the train holds are cut off
            if update.update_bl_management:
                bl = pulses.ceil().clamp(1, most)
            if update.update_management:
                ratio = x_max.sqrt() / d_max.sqrt()  # in this order it cannot overflow
        scale = (lr / (dw_min * bl)).sqrt()
        return cls((x * (scale / ratio)).clamp_(-1, 1), (d * (scale * ratio)).clamp_(-1, 1), bl)


class Counts(NamedTuple):
    """Numbers of pulses up and down that devices (T, K, M) receive."""

    up: Tensor
    down: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "Counts":
        """The same with both tensors changed."""
        return Counts(change(self.up), change(self.down))


class Coincidences:
    """Counts of drawn pulses: from bits X and D, S = XᵀD of signed, T = |X|ᵀ|D| of unsigned."""

    def __init__(self, like: Tensor) -> None:
        self.signed, self.all = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, trains: Trains, tile: Tensor | None) -> None:
        """Draw the pulses of trains; ``tile`` names the tile of each block, None: its number."""
        n_blocks, size, width = trains.x.shape
        per_slot = n_blocks * (width + trains.d.shape[2]) * trains.x.element_size()
        n_slots = int(trains.bl.max()) if size else 0
        step = max(1, BITS_BYTES // max(1, per_slot * n_slots))
        slots = torch.arange(n_slots, device=trains.x.device)[:, None]
        for begin in range(0, size, step):
            part = slice(begin, begin + step)
            sent = (slots < trains.bl[:, part, None]).to(trains.x.dtype)
            x = _bits(trains.x[:, part], n_slots).mul_(sent).flatten(1, 2)
            d = _bits(trains.d[:, part], n_slots).flatten(1, 2)
            _add(self.signed, x.transpose(1, 2) @ d, tile)
            _add(self.all, x.abs_().transpose(1, 2) @ d.abs_(), tile)

    def counts(self) -> Counts:
        return Counts((self.all - self.signed) / 2, (self.all + self.signed) / 2)


def _bits(probability: Tensor, n_slots: int) -> Tensor:
    """Signed bits (n_blocks, size, n_slots, K) that fire with these probabilities."""
    probability = probability[:, :, None]
    shape = (*probability.shape[:2], n_slots, probability.shape[3])
    fires = torch.rand(shape, dtype=probability.dtype, device=probability.device)
    return (fires < probability.abs()) * probability.sign()


def _add(total: Tensor, products: Tensor, tile: Tensor | None) -> None:
    if tile is None:
        total += products
    else:
        total.index_add_(0, tile, products)
