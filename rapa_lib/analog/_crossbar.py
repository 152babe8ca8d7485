"""A batch of matrices of devices, and the pulses that move them: what tile arrays are built on."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rapa_lib.analog import _compiled, _products
from rapa_lib.analog._device_config import PulsedDevice
from rapa_lib.analog._devices import CrossPoints, clip, move, n_sections, pulse_by_pulse
from rapa_lib.analog._io_config import UpdateParameters
from rapa_lib.analog._pulses import Coincidences, Counts, Trains
from rapa_lib.layers.products.gathered import Blocks
from rapa_lib.layers.products.geometry import Geometry, pixels_of

# Tiles whose devices are moved at once: a dozen tensors of their size exist meanwhile.
_MOVE_BYTES = 2 * 2**20
# Trains of errors that the compiled update holds at once.
_TRAINS_BYTES = 64 * 2**20

Which = slice | Tensor | tuple[Tensor, Tensor]
"""Tiles, or tiles and lines of theirs, both (n, 1)."""


@dataclass(frozen=True)
class Signals:
    """What the pulses of a mini-batch are made of.

    Args:
        x: images (N, C, H, W).
        d: errors (N, M, H', W').
        assignment: the tile of every patch, (N, L); −1: none.
        geometry: where the patches lie.
        lr: learning rate.
    """

    x: Tensor
    d: Tensor
    assignment: Tensor
    geometry: Geometry
    lr: float

    def part(self, begin: int, end: int) -> "Signals":
        """Those of some images."""
        some = slice(begin, end)
        return replace(self, x=self.x[some], d=self.d[some], assignment=self.assignment[some])


@dataclass(frozen=True)
class Crossbar:
    """T matrices of devices.

    Args:
        weight: what is read, (T, K, M); moved in place.
        points: the devices' parameters, each of that shape.
        device: their kind.
        hidden: what pulses move where that is written with noise to ``weight``; None: ``weight``.
        signs: of the inputs of every tile, (T, K), 1 or −1, which turn pulses round; None: all 1.
    """

    weight: Tensor
    points: CrossPoints
    device: PulsedDevice
    hidden: Tensor | None = None
    signs: Tensor | None = None

    @property
    def moved(self) -> Tensor:
        """What pulses move."""
        return self.weight if self.hidden is None else self.hidden

    def part(self, tiles: "Which") -> "Crossbar":
        """Some of the matrices, or of the lines of each."""
        return Crossbar(
            self.weight[tiles],
            self.points.map(lambda p: p[tiles]),
            self.device,
            None if self.hidden is None else self.hidden[tiles],
            None if self.signs is None else self.signs[tiles],
        )

    def put(self, tiles: "Which", part: "Crossbar") -> None:
        """Put back what :meth:`part` gave, once it has moved."""
        self.weight[tiles] = part.weight
        if self.hidden is not None and part.hidden is not None:
            self.hidden[tiles] = part.hidden

    def clip(self) -> None:
        """Move weights into the bounds of their devices."""
        clip(self.moved, self.points)

    def write(self, reached: Tensor | None = None) -> None:
        """Draw anew what is read of weights, all or those that were reached by a pulse."""
        if self.hidden is None:
            return
        noisy = self.hidden + self.device.write_noise * torch.randn_like(self.hidden)
        self.weight.copy_(noisy if reached is None else torch.where(reached, noisy, self.weight))

    def send(self, signals: Signals, update: UpdateParameters) -> None:
        """Send the pulses of W ← W − lr · Σ d xᵀ, each patch to its tile."""
        if signals.lr == 0 or signals.assignment.numel() == 0:
            return
        if update.method == "sequential":
            self._send_one_by_one(signals, update)
            return
        images = len(signals.x)
        section = math.ceil(images / n_sections(self.device))
        compiled = _compiled.serves_update(signals.x, update)
        if compiled:
            section = min(section, max(1, _TRAINS_BYTES // (4 * signals.d[0].numel())))
        for begin in range(0, images, section):
            some = signals.part(begin, begin + section)
            make = (update, self.device, some.lr)
            where = (some.assignment, some.geometry, make)
            if compiled:
                _compiled.update(
                    some.x, some.d, self.weight, *where, self.points, self.hidden, self.signs
                )
            else:
                self.move(self._turned(self._count(some, update)))

    def _turned(self, counts: Counts) -> Counts:
        """Counts of pulses whose inputs have the signs."""
        if self.signs is None:
            return counts
        turn = self.signs[:, :, None] < 0
        up, down = counts
        return Counts(torch.where(turn, down, up), torch.where(turn, up, down))

    def _count(self, signals: Signals, update: UpdateParameters) -> Counts:
        """Count the pulses of some images, a few of them at a time."""
        sums = Coincidences(self.weight)
        for chunk in _products.chunks(signals.assignment, self.weight):
            blocks = Blocks.of(signals.assignment[chunk], len(self.weight))
            rows = _products.patch_rows(signals.geometry, signals.x[chunk], blocks)
            errors = blocks.take(pixels_of(signals.d[chunk]).flatten(0, 2))
            trains = Trains.of(rows, errors, signals.lr, self.device.granularity, update)
            sums.add(trains, blocks.tile)
        return sums.counts()

    def move(self, counts: Counts) -> None:
        """Move the devices by counted pulses."""
        if self.device.order_matters and _compiled.serves(self.weight):
            _compiled.scan(self.weight, counts, self.points, self.device, self.hidden)
            return
        size = self.weight[0].numel() * self.weight.element_size()
        step = max(1, _MOVE_BYTES // size)
        for begin in range(0, len(self.weight), step):
            tiles = slice(begin, begin + step)
            some, their = self.part(tiles), counts.map(lambda c, tiles=tiles: c[tiles])  # type: ignore[misc]
            move(some.moved, their, some.points, self.device)
            some.write((their.up + their.down) > 0)

    def _send_one_by_one(self, signals: Signals, update: UpdateParameters) -> None:
        make = (signals.lr, self.device.granularity, update)
        tile = signals.assignment.flatten()
        # The n-th patch of every tile that has so many, for n = 0, 1, …
        order = tile.argsort(stable=True)
        order = order[tile[order] >= 0]
        first = torch.searchsorted(tile[order], torch.arange(len(self.weight), device=tile.device))
        rank = torch.arange(len(order), device=tile.device) - first[tile[order]]
        everything = Blocks(torch.arange(len(tile), device=tile.device)[None], None, None, 0)
        rows = _products.patch_rows(signals.geometry, signals.x, everything)[0]
        errors = pixels_of(signals.d).flatten(0, 2)
        for n in range(int(rank.max()) + 1 if len(rank) else 0):
            patch = order[rank == n]
            some = tile[patch]
            bar = self.part(some)
            trains = Trains.of(rows[patch, None], errors[patch, None], *make)
            if bar.signs is not None:
                trains = trains._replace(x=trains.x * bar.signs[:, None])
            bar.write(pulse_by_pulse(bar.moved, trains, bar.points, self.device))
            self.put(some, bar)
