"""What must keep up with the arrays: values to move, converters, pulse trains, shared arrays.

The model, its assumptions and its constants in plain words: ``docs/run_time.md``.
"""

from collections import Counter
from dataclasses import dataclass, replace

from rapa_lib._checks import Checked, check_choice, check_int, choice, flag, integer, real
from rapa_lib.runtime._arrays import SCHEDULES, AnalogArrays, LayerRunTime, RunTime

ACCESSES = ("random", "contiguous")
"""Order in which patches are read. ``"random"``: every patch is read whole, as a random assignment
asks for it. ``"contiguous"``: in the order of the image, neighbours at the same time, so that a
line buffer needs each input value once."""

PACKINGS = ("separate", "diagonal", "dense")
"""How tiles lie on arrays. ``"separate"``: no two on one. ``"diagonal"``: small ones share an array
with no row or column in common, and work at the same time. ``"dense"``: as many as fit, one at a
time."""

LIMITS = ("arrays", "converters", "update", "bandwidth")
"""What the time of a layer goes to."""


@dataclass(frozen=True)
class DigitalSide(Checked):
    """What feeds the arrays and writes to them. No number here is the RAPA paper's.

    Args:
        values_per_second: values that digital logic moves between memory and arrays in a second;
            None is unlimited. Assumption: 10¹², one byte a value at the 10¹² byte/s that the
            study also gives its digital processor.
        shared: whether all layers together have that bandwidth, else each layer has it to itself.
            Assumption. Of the two schedules only the pipelined one is slower for it.
        line_buffer: whether rows of the image are kept beside the arrays, so that contiguous
            access reads every input value once. Assumption.
        adc_share, dac_share: neighbouring lines of an array that take turns at one converter.
            Assumption: 1, a converter for every line.
        adc_ns, dac_ns: time of one conversion; ``forward_ns`` and ``backward_ns`` of
            :class:`AnalogArrays` hold one of each. Assumption.
        bl: pulses of an update's pulse train. The longest that the study's analog tiles use, as
            aihwkit 1.2.0 does; bit-length management can shorten it.
        pulse_ns: time of one pulse; an update takes ``bl · pulse_ns``, and no less than
            ``update_ns`` of :class:`AnalogArrays`. Assumption: 2.5 ns, so that 31 pulses fit into
            80 ns.
        packing: see :data:`PACKINGS`.

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.
    """

    values_per_second: float | None = real(1e12, low=0, open_low=True, optional=True)
    shared: bool = flag(True)
    line_buffer: bool = flag(True)
    adc_share: int = integer(1, low=1)
    dac_share: int = integer(1, low=1)
    adc_ns: float = real(40.0, low=0)
    dac_ns: float = real(10.0, low=0)
    bl: int = integer(31, low=1)
    pulse_ns: float = real(2.5, low=0, open_low=True)
    packing: str = choice("separate", PACKINGS)


@dataclass(frozen=True)
class LayerCost:
    """A layer on arrays with a digital side; times and values are those of an image.

    Args:
        timed: the layer, its tiles and the arrays.
        digital: what feeds them.
        access: see :data:`ACCESSES`. One tile takes patches in any order, so it always reads them
            contiguously.
        training: with a backward and an update cycle after each forward one.
    """

    timed: LayerRunTime
    digital: DigitalSide
    access: str
    training: bool = True

    @property
    def patches(self) -> tuple[int, ...]:
        """Patches that it computes in each use; a perforated layer leaves some out."""
        layer = self.timed.layer
        return tuple(-(-n_patches // layer.perforation) for n_patches in layer.patches)

    @property
    def reads_per_patch(self) -> float:
        """Values read from memory for a patch: all C_in · k² of it, or what is new in it."""
        layer = self.timed.layer
        whole = layer.rows * layer.groups
        in_order = self.access == "contiguous" or self.timed.n_tiles == 1
        if not (in_order and self.digital.line_buffer):
            return whole
        return min(whole, layer.inputs / sum(self.patches))

    @property
    def values_per_patch(self) -> float:
        """Values moved for a patch in one cycle: those read, and the C_out outputs."""
        return self.reads_per_patch + self.timed.layer.columns * self.timed.layer.groups

    @property
    def values(self) -> float:
        """Values moved for an image in all cycles, of which each moves the same number."""
        return len(self._cycles_ns) * sum(self.patches) * self.values_per_patch

    @property
    def per_array(self) -> int:
        """Tiles on one array: more than one only if they are packed and a tile fits into one."""
        hardware = self.timed.hardware
        if self.digital.packing == "separate" or hardware.per_tile(self.timed.layer) > 1:
            return 1
        rows, columns = self._lines
        most_rows, most_columns = hardware.array_size
        fit = most_rows // rows, most_columns // columns
        most = min(fit) if self.digital.packing == "diagonal" else fit[0] * fit[1]
        return min(self.timed.n_tiles, most)

    @property
    def arrays(self) -> int:
        if self.per_array == 1:
            return self.timed.arrays
        return -(-self.timed.n_tiles // self.per_array)

    @property
    def workers(self) -> int:
        """Tiles that work at the same time."""
        one_at_a_time = self.digital.packing == "dense" and self.per_array > 1
        return self.arrays if one_at_a_time else self.timed.n_tiles

    @property
    def steps(self) -> Counter[int]:
        """How many steps of an image have so many tiles working; a step is one product each.

        Tiles have patches that differ in number by at most one. Tiles on one array take turns if
        it is packed densely.
        """
        n_tiles, workers = self.timed.n_tiles, self.workers
        steps: Counter[int] = Counter()
        for n_patches in self.patches:
            rounds, rest = divmod(n_patches, n_tiles)
            for tiles, times in ((n_tiles, rounds), (rest, 1)):
                full, left = divmod(tiles, workers)
                steps[workers] += full * times
                steps[left] += times
        del steps[0]
        return +steps

    @property
    def parts_us(self) -> dict[str, float]:
        """Time of an image by what it goes to, see :data:`LIMITS`; together they are all of it.

        A cycle in which values take longer to move than the arrays need counts for bandwidth as a
        whole; another one for arrays, converters beyond one conversion, or the update.
        """
        parts = dict.fromkeys(LIMITS, 0.0)
        bandwidth = self.digital.values_per_second
        for active, count in self.steps.items():
            moving = 1e9 * active * self.values_per_patch / bandwidth if bandwidth else 0.0
            for cycle in self._cycles_ns:
                held_up = moving > sum(cycle.values())
                for part, time_ns in ({"bandwidth": moving} if held_up else cycle).items():
                    parts[part] += count * time_ns / 1000
        return parts

    @property
    def time_us(self) -> float:
        return sum(self.parts_us.values())

    @property
    def limit(self) -> str:
        """What takes most of the time; the first of :data:`LIMITS` among equals."""
        parts = self.parts_us
        return max(LIMITS, key=parts.__getitem__)

    @property
    def values_per_s(self) -> float:
        """Values to move in a second while the layer works, if bandwidth holds nothing up.

        For a random assignment to n_t tiles that divide the patches: n_t (C_in · k² + C_out) in
        each cycle. The mean over cycles, where these are not equally long.
        """
        return 1e6 * self.values / self.unlimited().time_us

    def unlimited(self) -> "LayerCost":
        """The same with unlimited bandwidth."""
        return replace(self, digital=replace(self.digital, values_per_second=None))

    @property
    def _lines(self) -> tuple[int, int]:
        """Rows and columns in use on the fullest array of a tile."""
        layer, hardware = self.timed.layer, self.timed.hardware
        groups = -(-layer.groups // hardware.per_tile(layer))  # on one array, spread evenly
        rows = layer.rows + (layer.bias and hardware.analog_bias)
        most_rows, most_columns = hardware.array_size
        return min(rows, most_rows) * groups, min(layer.columns, most_columns) * groups

    @property
    def _cycles_ns(self) -> tuple[dict[str, float], ...]:
        """Time of one forward and, in training, backward and update cycle by what it goes to."""
        hardware, digital = self.timed.hardware, self.digital
        at_once = self.per_array if digital.packing == "diagonal" else 1
        rows, columns = (at_once * lines for lines in self._lines)

        def waiting(inputs: int, outputs: int) -> float:
            dac, adc = min(digital.dac_share, inputs), min(digital.adc_share, outputs)
            return (dac - 1) * digital.dac_ns + (adc - 1) * digital.adc_ns

        forward = {"arrays": hardware.forward_ns, "converters": waiting(rows, columns)}
        if not self.training:
            return (forward,)
        return (
            forward,
            {"arrays": hardware.backward_ns, "converters": waiting(columns, rows)},
            {"update": max(hardware.update_ns, digital.bl * digital.pulse_ns)},
        )


@dataclass(frozen=True)
class NetworkCost:
    """A network on arrays with a digital side; times and values are those of an image.

    Args:
        layers: in the order in which they first run.
        schedule: see ``SCHEDULES``.
    """

    layers: tuple[LayerCost, ...]
    schedule: str

    @property
    def time_us(self) -> float:
        """From one image to the next."""
        times = [layer.time_us for layer in self.layers]
        return max(*times, self._moving_us) if self.schedule == "pipelined" else sum(times)

    @property
    def limit(self) -> str:
        """What takes most of the time, see :data:`LIMITS`.

        Pipelined: what limits the slowest layer, or bandwidth if moving the values of all layers
        takes longer still. Sequential: the largest part of the time of all layers together.
        """
        if self.schedule == "sequential":
            parts = [layer.parts_us for layer in self.layers]
            return max(LIMITS, key=lambda part: sum(one[part] for one in parts))
        slowest = max(self.layers, key=lambda layer: layer.time_us)
        return "bandwidth" if self._moving_us > slowest.time_us else slowest.limit

    @property
    def limiting_layer(self) -> LayerCost:
        """The layer that has most of what limits the network; the first among equals.

        Pipelined: the slowest, or the one that moves most values if bandwidth for all layers is the
        limit. Sequential: the one with the largest part of the time that goes to the limit.
        """
        if self.schedule == "sequential":
            limit = self.limit
            return max(self.layers, key=lambda layer: layer.parts_us[limit])
        slowest = max(self.layers, key=lambda layer: layer.time_us)
        if self._moving_us > slowest.time_us:
            return max(self.layers, key=lambda layer: layer.values)
        return slowest

    @property
    def values_per_s(self) -> float:
        """Values to move in a second if bandwidth holds nothing up.

        Pipelined: of all layers together if they share it, else of the one that moves most.
        Sequential: while the layer works that moves most in a second.
        """
        if self.schedule == "sequential":
            return max(layer.values_per_s for layer in self.layers)
        values = [layer.values for layer in self.layers]
        total = sum(values) if self.layers[0].digital.shared else max(values)
        return 1e6 * total / max(layer.unlimited().time_us for layer in self.layers)

    @property
    def arrays(self) -> int:
        return sum(layer.arrays for layer in self.layers)

    @property
    def stale_images(self) -> int:
        """Images that change the first layer between an image's forward pass and its update."""
        return stale_images(len(self.layers))[0] if self.schedule == "pipelined" else 0

    @property
    def _moving_us(self) -> float:
        """Least time of moving an image's values of all layers; 0 if they do not have to wait."""
        digital = self.layers[0].digital
        if self.schedule != "pipelined" or not digital.shared or not digital.values_per_second:
            return 0.0
        return 1e6 * sum(layer.values for layer in self.layers) / digital.values_per_second


def stale_images(depth: int) -> list[int]:
    """Images that change a layer between an image's forward pass in it and that image's update.

    Pipelined, every layer does one forward, one backward and one update cycle per slot, each for
    another image. Image i is in layer l = 1 … D forward in slot i + l and backward, with the update
    right after, in slot i + 2D − l; the last layer does both in one slot. So 2 (D − l) images
    update the layer in between. One image at a time (sequential) there are none.

    Args:
        depth: layers that run one after the other, D.

    Returns:
        Images for each layer, the first to the last.
    """
    check_int("depth", depth, low=1)
    return [2 * (depth - place) for place in range(1, depth + 1)]


def network_cost(
    timed: RunTime,
    digital: DigitalSide | None,
    *,
    access: str,
    schedule: str,
    training: bool = True,
) -> NetworkCost:
    """Give a network on arrays a digital side.

    Args:
        timed: what :func:`run_time` found.
        digital: None is ``DigitalSide()``.
        access: one of :data:`ACCESSES`.
        schedule: one of ``SCHEDULES``.
        training: whether images are trained on, or only pass forward.

    Raises:
        ValueError, TypeError: naming the argument; if conversions take longer than the cycle that
            they are part of.
    """
    check_choice("access", access, ACCESSES)
    check_choice("schedule", schedule, SCHEDULES)
    digital = check_digital(digital, timed.hardware)
    layers = tuple(LayerCost(one, digital, access, training) for one in timed.layers)
    return NetworkCost(layers, schedule)


def check_digital(digital: DigitalSide | None, hardware: AnalogArrays) -> DigitalSide:
    """The digital side, or the default one; its conversions must fit into the arrays' cycles."""
    if digital is None:
        digital = DigitalSide()
    if not isinstance(digital, DigitalSide):
        raise TypeError(f"digital: got {type(digital).__name__}, expected DigitalSide")
    shortest = min(hardware.forward_ns, hardware.backward_ns)
    waits = digital.adc_share > 1 or digital.dac_share > 1
    if waits and digital.adc_ns + digital.dac_ns > shortest:
        raise ValueError(
            f"adc_ns + dac_ns: got {digital.adc_ns + digital.dac_ns:g}, allowed: at most the "
            f"arrays' forward_ns and backward_ns, here {shortest:g}, which hold one of each"
        )
    return digital
