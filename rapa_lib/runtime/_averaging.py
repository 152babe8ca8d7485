"""What it costs to average the tiles of a network every k steps: time, values to move, additions.

The model, its assumptions and its constants in plain words: ``docs/synchronisation.md``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rapa_lib._checks import (
    Checked,
    check_choice,
    check_int,
    check_real,
    check_sequence,
    flag,
    integer,
    optional,
    real,
)
from rapa_lib.runtime._arrays import LayerRunTime, RunTime, check_hardware
from rapa_lib.runtime._cost_tables import cases
from rapa_lib.runtime._costs import DigitalSide, LayerCost, NetworkCost, check_digital, network_cost
from rapa_lib.runtime._layers import NetworkLayers

if TYPE_CHECKING:
    import pandas as pd

WRITES = ("program", "pulses")
"""How the mean is written: onto every array anew, line by line, or by pulse trains that move each
tile by its difference from the mean, one per line."""

SHARE = 0.1
"""Share of the time of training that averagings may take."""


@dataclass(frozen=True)
class AveragingSide(Checked):
    """What averages tiles. No number here is the RAPA paper's.

    Args:
        program_ns: time in which a line of an array (a row or a column, all of its devices
            together) is programmed in a closed loop of writing and reading. Assumption: 10 µs.
        reads: of every line, whose mean is taken against reading noise.
        adds_per_second: additions of all digital logic together; None is unlimited. Assumption:
            10¹², as many as values are moved.
        velocities: whether there are velocities that are averaged too: numbers in memory, as many
            as kernels have, which are read and written once more. Tiles that are written by pulses
            keep none.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    program_ns: float = real(10_000.0, low=0, open_low=True)
    reads: int = integer(1, low=1)
    adds_per_second: float | None = real(1e12, low=0, open_low=True, optional=True)
    velocities: bool = flag(False)


@dataclass(frozen=True)
class LayerAveraging:
    """One averaging of the tiles of a layer.

    Args:
        cost: the layer on its arrays, with its digital side.
        side: what averages.
        write: one of :data:`WRITES`.
    """

    cost: LayerCost
    side: AveragingSide
    write: str

    @property
    def timed(self) -> LayerRunTime:
        """The layer and its tiles."""
        return self.cost.timed

    @property
    def is_averaged(self) -> bool:
        """Whether it has tiles to average."""
        return self.timed.n_tiles > 1

    @property
    def lines(self) -> int:
        """Lines that are read, and written, one after the other: along an array's shorter side.

        All arrays work at once, but for tiles that share an array. Groups of a convolution that lie
        in one array have lines of their own.
        """
        layer = self.timed.layer
        groups = -(-layer.groups // self.timed.hardware.per_tile(layer))
        return self.is_averaged * min(self._matrix) * groups * self.cost.per_array

    @property
    def kernels(self) -> int:
        """Numbers in the kernel matrices of all tiles."""
        return self.is_averaged * self.timed.n_tiles * self.timed.layer.weights

    @property
    def read_values(self) -> int:
        """Values moved from arrays, and from memory where there are velocities."""
        return self.kernels * (self.side.reads + self.side.velocities)

    @property
    def written_values(self) -> int:
        """Values moved to arrays and to memory.

        By pulses each tile gets its own difference. The programmed mean and the velocities' mean
        are the same for all tiles: each array takes them from one common line.
        """
        mean = self.timed.layer.weights * self.is_averaged
        programmed = self.kernels if self.write == "pulses" else mean
        return programmed + mean * self.side.velocities

    @property
    def adds(self) -> int:
        """Additions: sums over reads and tiles, scaled once; by pulses each tile's difference."""
        sums = self.kernels * (self.side.reads + self.side.velocities)
        return sums + (self.kernels if self.write == "pulses" else 0)

    @property
    def read_us(self) -> float:
        """Time of the arrays to be read: a forward or a backward cycle for each line."""
        hardware, (rows, columns) = self.timed.hardware, self._matrix
        cycle = hardware.forward_ns if rows <= columns else hardware.backward_ns
        return self.lines * self.side.reads * cycle / 1000

    @property
    def write_us(self) -> float:
        """Time of the arrays to be written."""
        digital, hardware = self.cost.digital, self.timed.hardware
        pulsed = max(hardware.update_ns, digital.bl * digital.pulse_ns)
        return self.lines * (pulsed if self.write == "pulses" else self.side.program_ns) / 1000

    @property
    def _matrix(self) -> tuple[int, int]:
        """Rows and columns of a kernel matrix, or of the largest part of it on one array."""
        layer, (rows, columns) = self.timed.layer, self.timed.hardware.array_size
        return min(layer.rows, rows), min(layer.columns, columns)


@dataclass(frozen=True)
class NetworkAveraging:
    """Training on arrays whose tiles are averaged every k steps.

    All layers are averaged at the same time, between two steps, while nothing else happens: first
    everything is read and added, then everything is written. Each takes as long as its slowest
    layer, or as moving the values or adding them takes.

    Args:
        cost: of the network, in training.
        layers: one averaging of each of its layers.
        batch_size: images in a step.
    """

    cost: NetworkCost
    layers: tuple[LayerAveraging, ...]
    batch_size: int

    @property
    def values(self) -> int:
        """Values that one averaging moves."""
        return sum(layer.read_values + layer.written_values for layer in self.layers)

    @property
    def adds(self) -> int:
        """Additions of one averaging."""
        return sum(layer.adds for layer in self.layers)

    @property
    def averaging_us(self) -> float:
        """Time of one averaging; 0 where no layer has several tiles."""
        read = [layer.read_us for layer in self.layers]
        write = [layer.write_us for layer in self.layers]
        adding = _seconds(self.adds, self.layers[0].side.adds_per_second)
        read_values = self._moving_us([layer.read_values for layer in self.layers])
        written = self._moving_us([layer.written_values for layer in self.layers])
        return max(*read, read_values, 1e6 * adding) + max(*write, written)

    @property
    def step_us(self) -> float:
        """Time of a step without averaging."""
        return self.batch_size * self.cost.time_us

    def time_us(self, every: int) -> float:
        """Time of an image in training with an averaging every ``every`` steps; 0: none."""
        return self.cost.time_us + self._per_step_us(every) / self.batch_size

    def share(self, every: int) -> float:
        """Share of the time that averagings take."""
        extra = self._per_step_us(every)
        return extra / (self.step_us + extra)

    def least_every(self, share: float = SHARE) -> int:
        """The least k at which averagings take no more than this share of the time, at least 1."""
        check_real("share", share, low=0, high=1, open_low=True, open_high=True)
        steps = self.averaging_us * (1 - share) / (share * self.step_us)
        return max(1, math.ceil(steps * (1 - 1e-12)))

    def _per_step_us(self, every: int) -> float:
        return self.averaging_us / check_int("every", every, low=0) if every else 0.0

    def _moving_us(self, values: Sequence[int]) -> float:
        digital = self.layers[0].cost.digital
        together = sum(values) if digital.shared else max(values)
        return 1e6 * _seconds(together, digital.values_per_second)


def _seconds(number: float, per_second: float | None) -> float:
    return number / per_second if per_second else 0.0


def averaging_cost(
    timed: RunTime,
    digital: DigitalSide | None = None,
    side: AveragingSide | None = None,
    *,
    batch_size: int,
    write: str = "program",
    access: str = "random",
    schedule: str = "pipelined",
) -> NetworkAveraging:
    """Give a network on arrays what averages its tiles.

    Args:
        timed: what :func:`run_time` found.
        digital: what feeds the arrays; None is ``DigitalSide()``.
        side: what averages; None is ``AveragingSide()``.
        batch_size: images in a step.
        write: one of :data:`WRITES`.
        access, schedule: as for :func:`network_cost`.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    check_int("batch_size", batch_size, low=1)
    check_choice("write", write, WRITES)
    side = AveragingSide() if side is None else side
    if not isinstance(side, AveragingSide):
        raise TypeError(f"side: got {type(side).__name__}, expected AveragingSide")
    cost = network_cost(timed, digital, access=access, schedule=schedule)
    layers = tuple(LayerAveraging(layer, side, write) for layer in cost.layers)
    return NetworkAveraging(cost, layers, batch_size)


AVERAGING_COLUMNS = (
    "network", "schedule", "write", "n_tiles", "sync_every", "speedup", "share", "averaging_us",
    "step_us", "values", "adds", "least_every",
)  # fmt: skip
"""Columns of :func:`averaging_table`."""


def averaging_table(
    networks: Mapping[str, NetworkLayers],
    n_tiles: Sequence[int],
    every: Sequence[int],
    digital: DigitalSide | None = None,
    side: AveragingSide | None = None,
    *,
    batch_size: int = 128,
    schedules: Sequence[str] = ("pipelined",),
) -> "pd.DataFrame":
    """Speed-up of networks whose tiles are averaged every k steps.

    Args:
        networks, n_tiles, schedules: as in :func:`cost_table`.
        every: numbers of steps k; 0: never.
        digital, side, batch_size: as for :func:`averaging_cost`.

    Returns:
        One row per network, schedule, way of writing, number of tiles and k: network, schedule,
        write, n_tiles, sync_every, speedup (over one tile per layer with the same digital side),
        share (of the time, taken by averagings), averaging_us, step_us, values and adds (of one
        averaging), least_every (the least k at which averagings take a tenth of the time).

    Raises:
        ValueError, TypeError: naming the argument.
    """
    check_sequence("every", every, "integers")
    hardware = check_hardware(None)
    digital = check_digital(digital, hardware)
    rows = []
    for name, schedule, access, single, timed in cases(networks, n_tiles, hardware, schedules):
        if access != "random":
            continue
        base = network_cost(single, digital, access=access, schedule=schedule).time_us
        for write in WRITES:
            for count, tiled in timed.items():
                found = averaging_cost(
                    tiled, digital, side, batch_size=batch_size, write=write, schedule=schedule
                )
                rows += [
                    {
                        "network": name,
                        "schedule": schedule,
                        "write": write,
                        "n_tiles": count,
                        "sync_every": k,
                        "speedup": base / found.time_us(k),
                        "share": found.share(k),
                        "averaging_us": found.averaging_us,
                        "step_us": found.step_us,
                        "values": found.values,
                        "adds": found.adds,
                        "least_every": found.least_every(),
                    }
                    for k in every
                ]
    return optional("pandas", "figures").DataFrame(rows, columns=AVERAGING_COLUMNS)
