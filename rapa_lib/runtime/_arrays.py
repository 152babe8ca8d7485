"""Layers on analog arrays: arrays, cross-points and time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from rapa_lib._checks import (
    Checked,
    check_bool,
    check_choice,
    check_int,
    checked,
    flag,
    optional,
    real,
)
from rapa_lib.runtime._layers import LayerShape, NetworkLayers, Uncounted, as_layers

if TYPE_CHECKING:
    import pandas as pd

SCHEDULES = ("pipelined", "sequential")
"""``"pipelined"``: every layer works on an image of its own, and an image is done each time that
the slowest layer is. ``"sequential"``: one image at a time goes through layer after layer."""


def _check_size(name: str, value: Any) -> tuple[int, int]:
    sizes = value if isinstance(value, tuple | list) else (value, value)
    if len(sizes) != 2:
        raise ValueError(f"{name}: got {value!r}, expected one integer or two (rows, columns)")
    rows, columns = (check_int(name, side, low=1) for side in sizes)
    return rows, columns


@dataclass(frozen=True)
class AnalogArrays(Checked):
    """The arrays that a network is laid out on.

    All arrays are built to one size and work at the same time. A kernel matrix that is larger is
    split over several, their partial sums added digitally; a smaller one leaves cross-points
    unused. No time is counted for digital work (partial sums, activations, normalisation, pooling,
    moving numbers): it is taken to keep up with the arrays.

    Args:
        max_size: largest matrix an array holds, (rows, columns) = (inputs, outputs), or one number
            for both. The default is that of aihwkit's ``MappingParameter``.
        forward_ns, backward_ns, update_ns: time of one matrix-vector product, one with the
            transposed matrix, and one rank-one update, in ns, whatever the matrix. **The default
            80 ns is an assumption of this study**, no measurement and not the RAPA paper's number.
            Speed-ups do not depend on these times.
        analog_bias: keep biases on the arrays, as one more row that is driven by a constant; else
            they are added digitally. Off by default: with it a matrix of exactly ``max_size`` rows
            needs a second array for the bias alone.
        pack_groups: put the matrices of a grouped convolution on the diagonal of common arrays,
            as many as fit. Off by default: each group then has arrays of its own, because an update
            writes to every cross-point of an array, those between the groups too. The time is the
            same: all groups take their part of a patch at once.

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.
    """

    max_size: int | tuple[int, int] = checked(512, _check_size)
    forward_ns: float = real(80.0, low=0, open_low=True)
    backward_ns: float = real(80.0, low=0, open_low=True)
    update_ns: float = real(80.0, low=0, open_low=True)
    analog_bias: bool = flag(False)
    pack_groups: bool = flag(False)

    @property
    def array_size(self) -> tuple[int, int]:
        """Rows and columns of an array: ``max_size`` as a pair."""
        return _check_size("max_size", self.max_size)

    def cycle_ns(self, training: bool = True) -> float:
        """Time of a patch on an array, in ns: all three cycles, or the forward one alone.

        The backward cycle is counted for the first layer too.
        """
        training = check_bool("training", training)
        return self.forward_ns + (self.backward_ns + self.update_ns if training else 0.0)

    def per_tile(self, layer: LayerShape) -> int:
        """Number of arrays that one tile of a layer takes."""
        rows = self._rows(layer)
        most_rows, most_columns = self.array_size
        parts = -(-rows // most_rows) * -(-layer.columns // most_columns)
        if parts == 1 and self.pack_groups:
            together = min(most_rows // rows, most_columns // layer.columns)
            return -(-layer.groups // together)
        return layer.groups * parts

    def used_per_tile(self, layer: LayerShape) -> int:
        """Number of cross-points that hold a number of one tile of a layer."""
        return self._rows(layer) * layer.columns * layer.groups

    def _rows(self, layer: LayerShape) -> int:
        return layer.rows + (1 if layer.bias and self.analog_bias else 0)


@dataclass(frozen=True)
class LayerRunTime:
    """A layer on arrays.

    Args:
        layer: its shape.
        n_tiles: tiles that it has.
        hardware: the arrays.
    """

    layer: LayerShape
    n_tiles: int
    hardware: AnalogArrays

    @property
    def products(self) -> int:
        """Products that each of its arrays computes one after the other for an image."""
        loads = self.layer.loads
        return self.layer.products(self.n_tiles) if loads is None else sum(loads)

    @property
    def speedup(self) -> float:
        """Over the ordinary layer: one tile for all patches; infinite if no tile is left."""
        return _ratio(sum(self.layer.patches), self.products)

    @property
    def arrays(self) -> int:
        return self.n_tiles * self.hardware.per_tile(self.layer)

    @property
    def cross_points(self) -> int:
        """Of all its arrays, used or not."""
        rows, columns = self.hardware.array_size
        return self.arrays * rows * columns

    @property
    def used_cross_points(self) -> int:
        return self.n_tiles * self.hardware.used_per_tile(self.layer)

    @property
    def utilisation(self) -> float:
        """Share of the cross-points that are used."""
        return self.used_cross_points / self.cross_points

    def time_us(self, training: bool = True) -> float:
        """Time of an image in this layer, in µs: forward, backward and update, or forward alone."""
        return self.products * self.hardware.cycle_ns(training) / 1000


@dataclass(frozen=True)
class RunTime:
    """A network on arrays: what :func:`run_time` found.

    Args:
        layers: in the order in which they first run.
        uncounted: modules with parameters that are in no number here, with the reason.
        hardware: the arrays.
    """

    layers: tuple[LayerRunTime, ...]
    uncounted: tuple[Uncounted, ...]
    hardware: AnalogArrays

    def products(self, schedule: str = "pipelined") -> int:
        """Products one after the other between two images: the most of a layer, or their sum."""
        return over_layers((layer.products for layer in self.layers), schedule)

    def speedup(self, schedule: str = "pipelined") -> float:
        """Over the ordinary network: one tile per layer for all patches."""
        single = over_layers((sum(layer.layer.patches) for layer in self.layers), schedule)
        return _ratio(single, self.products(schedule))

    def time_us(self, schedule: str = "pipelined", training: bool = True) -> float:
        """Time per image in µs: of training (all three cycles), or of forward passes alone."""
        return self.products(schedule) * self.hardware.cycle_ns(training) / 1000

    @property
    def bottleneck(self) -> LayerRunTime:
        """The layer with the most products; the first among equals."""
        return max(self.layers, key=lambda layer: layer.products)

    @property
    def arrays(self) -> int:
        return sum(layer.arrays for layer in self.layers)

    @property
    def cross_points(self) -> int:
        """Of all arrays, used or not."""
        return sum(layer.cross_points for layer in self.layers)

    @property
    def used_cross_points(self) -> int:
        return sum(layer.used_cross_points for layer in self.layers)

    @property
    def utilisation(self) -> float:
        """Share of the cross-points that are used."""
        return self.used_cross_points / self.cross_points

    def table(self) -> "pd.DataFrame":
        """One row a layer; times in µs an image, ``patches`` summed over ``uses``."""
        cycles = self.hardware
        return optional("pandas", "figures").DataFrame(
            [
                {
                    "layer": timed.layer.name,
                    "kind": timed.layer.kind,
                    "uses": len(timed.layer.patches),
                    "patches": sum(timed.layer.patches),
                    "rows": timed.layer.rows,
                    "columns": timed.layer.columns,
                    "groups": timed.layer.groups,
                    "n_tiles": timed.n_tiles,
                    "products": timed.products,
                    "speedup": timed.speedup,
                    "arrays": timed.arrays,
                    "cross_points": timed.cross_points,
                    "utilisation": timed.utilisation,
                    "forward_us": timed.products * cycles.forward_ns / 1000,
                    "backward_us": timed.products * cycles.backward_ns / 1000,
                    "update_us": timed.products * cycles.update_ns / 1000,
                }
                for timed in self.layers
            ]
        )


def run_time(
    model: nn.Module | NetworkLayers,
    input_size: Sequence[int] | None = None,
    *,
    n_tiles: int | Mapping[str, int] | None = None,
    hardware: AnalogArrays | None = None,
) -> RunTime:
    """Work out the time, arrays and cross-points that a network takes on analog arrays.

    An array computes one product at a time, all arrays at once: a layer of L patches on n tiles
    takes ceil(L / n) products in each cycle. Linear layers keep one tile; they take as many
    products as they get vectors an image. Inside :func:`rapa_lib.instruments.faults.tile_faults` a
    layer with dead tiles takes as many as its busiest living tile has patches, rerouted or not, and
    the arrays of all its tiles. Source: Rasch, Gokmen, Rigotti, Haensch, Front. Neurosci.
    13:753 (2019); cycle times are parameters, see :class:`AnalogArrays`.

    Args:
        model: any module, or what :func:`count_layers` made of one.
        input_size: shape of one input without batch, (C, H, W) for images; None for counted layers.
        n_tiles: None takes the tiles that the model has; one number stands for every convolution,
            lowered to L where it has fewer patches; a mapping names some layers, the others keep
            theirs. Numbers are of working tiles.
        hardware: the arrays; None is ``AnalogArrays()``.

    Raises:
        ValueError: if the model does not run on that input, for a name that is no convolution of
            the model, or more tiles than patches for a named one.
        TypeError: if an argument is of the wrong type.
    """
    network = as_layers(model, input_size)
    hardware = check_hardware(hardware)
    asked = _asked(network, n_tiles)
    layers = (
        LayerRunTime(replace(layer, loads=None), asked[layer.name], hardware)
        if layer.name in asked
        else LayerRunTime(layer, layer.n_tiles, hardware)
        for layer in network.layers
    )
    return RunTime(tuple(layers), network.uncounted, hardware)


def _asked(network: NetworkLayers, n_tiles: int | Mapping[str, int] | None) -> dict[str, int]:
    """The tiles of those convolutions for which a number is given."""
    by_name = {layer.name: layer for layer in network.layers if layer.can_tile}
    if n_tiles is None:
        return {}
    if not isinstance(n_tiles, Mapping):
        check_int("n_tiles", n_tiles, low=1)
        return {name: min(n_tiles, layer.max_tiles) for name, layer in by_name.items()}
    for name in n_tiles:
        if name not in by_name:
            raise ValueError(
                f"n_tiles: no convolution that ran is called {name!r}; the model has "
                f"{', '.join(by_name) or 'none'}"
            )
    return {
        name: check_int(f"n_tiles[{name!r}]", count, low=1, high=by_name[name].max_tiles)
        for name, count in n_tiles.items()
    }


def check_hardware(hardware: AnalogArrays | None) -> AnalogArrays:
    if hardware is None:
        return AnalogArrays()
    if not isinstance(hardware, AnalogArrays):
        raise TypeError(f"hardware: got {type(hardware).__name__}, expected AnalogArrays")
    return hardware


def _ratio(single: int, products: int) -> float:
    return single / products if products else math.inf


def over_layers(products: Iterable[int], schedule: str) -> int:
    """Products of a network from those of its layers."""
    check_choice("schedule", schedule, SCHEDULES)
    return max(products) if schedule == "pipelined" else sum(products)
