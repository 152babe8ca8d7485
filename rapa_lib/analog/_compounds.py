"""Compound devices at work: fast and slow devices, buffers, choppers, digital sums of gradients."""

import torch
from torch import Tensor, nn

from rapa_lib.analog._compound_config import (
    BufferedTransferCompound,
    ChoppedTransferCompound,
    Compound,
    MixedPrecisionCompound,
    TransferCompound,
)
from rapa_lib.analog._crossbar import Crossbar, Signals
from rapa_lib.analog._devices import CrossPoints, draw_devices
from rapa_lib.analog._io_config import UpdateParameters
from rapa_lib.analog._periphery import analog_product
from rapa_lib.analog._pulses import Counts, Trains, _bits
from rapa_lib.layers.products import operators as ops
from rapa_lib.layers.products.geometry import matrices_of

# Trains of rows that are drawn at once when digital sums are sent, in numbers.
_ROWS_AT_ONCE = 2**22


def make_compound(compound: Compound, like: Tensor, seed: int) -> "Transfer | MixedPrecision":
    """The state of a compound for weights (T, K, M)."""
    kind = MixedPrecision if isinstance(compound, MixedPrecisionCompound) else Transfer
    return kind(compound, like, seed)  # type: ignore[arg-type]  # of its own kind


class Transfer(nn.Module):
    """Tiki-Taka on T tiles: their fast devices, buffers and signs, and whose turn it is.

    Args:
        compound: see :class:`TransferCompound`.
        like: the weights (T, K, M).
        seed: of the fast devices.
    """

    fast: Tensor
    buffer: Tensor
    signs: Tensor
    column: Tensor
    waiting: Tensor

    def __init__(self, compound: TransferCompound, like: Tensor, seed: int) -> None:
        super().__init__()
        self.compound = compound
        like = like.detach()
        self.register_buffer("fast", torch.zeros_like(like))
        points = draw_devices(compound.fast_device, like.shape, seed, like)
        for name, values in points.present().items():
            self.register_buffer(f"fast_{name}", values)
        hidden = torch.zeros_like(like) if compound.fast_device.write_noise else None
        self.fast_hidden: Tensor | None
        self.register_buffer("fast_hidden", hidden)
        if isinstance(compound, BufferedTransferCompound):
            self.register_buffer("buffer", torch.zeros_like(like))
        if isinstance(compound, ChoppedTransferCompound):
            self.register_buffer("signs", -like.new_ones(like.shape[:2]))  # of every column
        zeros = torch.zeros(len(like), dtype=torch.long, device=like.device)
        self.register_buffer("column", zeros)  # the next to be read, of every tile
        self.register_buffer("waiting", zeros.clone())  # updates since the last transfer

    def crossbar(self) -> Crossbar:
        """The fast devices."""
        names = CrossPoints._fields
        points = CrossPoints(*(getattr(self, f"fast_{name}", None) for name in names))  # type: ignore[arg-type]
        chopped = isinstance(self.compound, ChoppedTransferCompound)
        return Crossbar(
            self.fast, points, self.compound.fast_device, self.fast_hidden,
            self.signs if chopped else None,
        )  # fmt: skip

    def reset(self) -> None:
        """Begin anew, as after weights were written."""
        for name in ("fast", "buffer", "column", "waiting", "fast_hidden"):
            if getattr(self, name, None) is not None:
                getattr(self, name).zero_()
        self.crossbar().write()

    def visible(self, slow: Tensor) -> Tensor:
        """What products read of slow weights (T, K, M)."""
        return slow + self.compound.gamma * self.fast

    def let_time_pass(self) -> None:
        """Let the fast devices decay for a mini-batch."""
        decay = self.crossbar().points.decay
        if decay is not None:
            self.crossbar().moved.mul_(decay)
            self.crossbar().write()

    def update(self, slow: Crossbar, signals: Signals, update: UpdateParameters) -> None:
        """Send the pulses of a mini-batch to the fast devices; transfer what is due."""
        compound = self.compound
        if (
            compound.transfer_every
            and not compound.units_in_mbatch
            and (update.method == "sequential")
        ):
            self._vector_by_vector(slow, signals, update)
            return
        self._send(signals, update)
        if not compound.transfer_every:
            return
        if compound.units_in_mbatch:
            self.waiting += 1
        else:
            tile = signals.assignment.flatten()
            self.waiting += torch.bincount(tile[tile >= 0], minlength=len(self.waiting))
        self._transfer_due(slow, signals.lr)

    def _send(self, signals: Signals, update: UpdateParameters) -> None:
        """Send gradients to the fast devices, with the signs of the columns."""
        rate = self.compound.fast_lr or signals.lr
        signals = Signals(signals.x, signals.d, signals.assignment, signals.geometry, rate)
        self.crossbar().send(signals, update)

    def _vector_by_vector(self, slow: Crossbar, signals: Signals, update: UpdateParameters) -> None:
        """The definition: a transfer when its turn has come, between two vectors."""
        n_patches = signals.assignment.shape[1]
        for image in range(len(signals.x)):
            for patch in range(n_patches):
                one = signals.part(image, image + 1)
                only = torch.full_like(one.assignment, -1)
                only[:, patch] = one.assignment[:, patch]
                self._send(Signals(one.x, one.d, only, one.geometry, one.lr), update)
                tile = int(only[0, patch])
                if tile >= 0:
                    self.waiting[tile] += 1
                    self._transfer_due(slow, signals.lr)

    def _transfer_due(self, slow: Crossbar, lr: float) -> None:
        """Transfer the columns whose turn has come.

        A transfer leaves the other columns alone, so different ones of a tile go together.
        """
        every = max(1, round(self.compound.transfer_every))
        turns = self.waiting // every
        self.waiting -= turns * every
        due, n_columns = turns * self.compound.n_reads_per_transfer, self.fast.shape[1]
        most = self._lines_at_once()
        while bool(due.any()):
            now = due.clamp(max=n_columns)
            tiles = torch.arange(len(now), device=now.device).repeat_interleave(now)
            first = (now.cumsum(0) - now).repeat_interleave(now)
            place = torch.arange(len(tiles), device=now.device) - first
            columns = (self.column[tiles] + place) % n_columns
            for some in zip(tiles.split(most), columns.split(most), strict=True):
                self._transfer(slow, *some, lr)
            self.column = (self.column + now) % n_columns
            due -= now

    def _lines_at_once(self) -> int:
        """How many columns are transferred together: all but where each needs a whole matrix."""
        n_rows = self.fast.shape[1] if self._reads_whole_matrices() else 1
        return max(1, _ROWS_AT_ONCE // (n_rows * self.fast.shape[2]))

    def _reads_whole_matrices(self) -> bool:
        """Whether noise on the other inputs, which are zero without, is read too."""
        io = self.compound.transfer_forward
        return not io.is_perfect and bool(io.inp_noise)

    def _transfer(self, slow: Crossbar, tiles: Tensor, columns: Tensor, lr: float) -> None:
        """Read columns (n,) of the fast devices of tiles (n,) and send them to the slow ones.

        A unit vector is the input, so only the devices of its line are read and written to.
        """
        compound = self.compound
        lines = tiles[:, None], columns[:, None]
        values = self._read(tiles, columns)
        rate = compound.transfer_lr * (lr if compound.scale_transfer_lr else 1.0)
        if isinstance(compound, BufferedTransferCompound):
            values = self._through_buffer(values, tiles, columns, rate)
            rate = compound.step * compound.slow_device.granularity
        if rate == 0 or not bool(values.any()):
            return
        some, one = slow.part(lines), values.new_ones(len(tiles), 1, 1)
        granularity = compound.slow_device.granularity
        trains = Trains.of(one, -values[:, None], rate, granularity, compound.transfer_update)
        some.move(row_counts(trains.x, trains.d, trains.bl))
        slow.put(lines, some)

    def _read(self, tiles: Tensor, columns: Tensor) -> Tensor:
        """Columns of tiles as the periphery reads them, (n, M)."""
        io = self.compound.transfer_forward
        if self._reads_whole_matrices():
            unit = self.fast.new_zeros(len(tiles), 1, self.fast.shape[1])
            unit[torch.arange(len(tiles)), 0, columns] = 1
            return analog_product(unit, self.fast[tiles], io)[:, 0]
        one = self.fast.new_ones(len(tiles), 1, 1)
        return analog_product(one, self.fast[tiles[:, None], columns[:, None]], io)[:, 0]

    def _through_buffer(
        self, values: Tensor, tiles: Tensor, columns: Tensor, rate: float
    ) -> Tensor:
        """Add what was read of columns to their buffers; return whole pulses that are due."""
        compound = self.compound
        assert isinstance(compound, BufferedTransferCompound)
        unit = compound.thres_scale * compound.slow_device.granularity
        if isinstance(compound, ChoppedTransferCompound):
            unit = compound.buffer_granularity * compound.fast_device.granularity
            sign = self.signs[tiles, columns]
            values = values * sign[:, None]
            turned = torch.rand_like(sign) < compound.in_chop_prob
            self.signs[tiles, columns] = torch.where(turned, -sign, sign)
        full = self.buffer[tiles, columns] + values * (rate / unit)  # in pulses
        most = compound.transfer_update.desired_bl
        due = full.trunc().clamp(-most, most)
        kept = full * compound.momentum
        if not compound.forget_buffer:
            kept = full - (1 - compound.momentum) * due
        self.buffer[tiles, columns] = torch.where(due != 0, kept, full)
        return due


class MixedPrecision(nn.Module):
    """Digital sums of gradients for T tiles.

    Args:
        compound: see :class:`MixedPrecisionCompound`.
        like: the weights (T, K, M).
        seed: not used: there is nothing to draw.
    """

    chi: Tensor
    waiting: Tensor

    def __init__(self, compound: MixedPrecisionCompound, like: Tensor, seed: int) -> None:
        super().__init__()
        self.compound = compound
        self.register_buffer("chi", torch.zeros_like(like.detach()))
        self.register_buffer("waiting", torch.zeros((), dtype=torch.long, device=like.device))

    def reset(self) -> None:
        """Begin anew, as after weights were written."""
        self.chi.zero_()
        self.waiting.zero_()

    def visible(self, slow: Tensor) -> Tensor:
        """What products read: the weights."""
        return slow

    def let_time_pass(self) -> None:
        """Digital sums do not change."""

    def update(self, slow: Crossbar, signals: Signals, update: UpdateParameters) -> None:
        """Add −lr · Σ d xᵀ to the sums; send whole steps when their turn has come."""
        geometry = signals.geometry
        gradient, _ = ops.grad_weight(
            signals.d, signals.x, signals.assignment, len(slow.weight), list(geometry.kernel),
            *(list(part) for part in geometry[3:]), 1,
        )  # fmt: skip
        self.chi.sub_(matrices_of(gradient).flatten(1, 3), alpha=signals.lr)
        self.waiting += 1
        if int(self.waiting) % self.compound.transfer_every:
            return
        step = self.compound.granularity or slow.device.granularity
        steps = (self.chi / step).trunc_()
        self.chi.sub_(steps, alpha=step)
        # Row by row: steps are the inputs, a unit vector is the error.
        rows = steps.transpose(1, 2)
        error = -torch.ones_like(rows[..., :1])
        rate = step * self.compound.transfer_lr
        trains = Trains.of(rows, error, rate, slow.device.granularity, update)
        counts = row_counts(trains.d, trains.x, trains.bl)
        slow.move(counts.map(lambda c: c.transpose(1, 2).contiguous()))


def row_counts(x: Tensor, d: Tensor, bl: Tensor) -> Counts:
    """Counts of pulses of trains x (T, n, K) and d (T, n, M): one of a pair's sides is alone.

    Either n is 1, and the counts (T, K, M) are those of the outer product, or x is (T, n, 1), and
    each row n has trains of its own: (T, n, M).
    """
    n_slots = int(bl.max())
    step = max(1, _ROWS_AT_ONCE // max(1, n_slots * d.shape[1] * (d.shape[2] + x.shape[2])))
    parts = []
    for begin in range(0, len(x), step):
        some = slice(begin, begin + step)
        slots = torch.arange(n_slots, device=x.device)[:, None] < bl[some, :, None]
        x_bits, d_bits = _bits(x[some], n_slots) * slots, _bits(d[some], n_slots)
        if x.shape[1] == 1:
            signed = x_bits[:, 0].transpose(1, 2) @ d_bits[:, 0]
            every = x_bits[:, 0].abs().transpose(1, 2) @ d_bits[:, 0].abs()
        else:
            signed, every = (x_bits * d_bits).sum(2), (x_bits * d_bits).abs().sum(2)
        parts.append(torch.stack([(every - signed) / 2, (every + signed) / 2]))
    return Counts(*torch.cat(parts, 1))
