"""The acceleration experiment: networks on analog arrays, tiles from one to a thousand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch

from rapa_lib._checks import checked, flag, integer, real, several
from rapa_lib.experiments.acceleration.networks import RAPA, check_network, count_networks
from rapa_lib.experiments.acceleration.page import collect
from rapa_lib.experiments.acceleration.tables import (
    layer_times,
    network_table,
    speedup_table,
    target_table,
)
from rapa_lib.experiments.protocol import Collected, Experiment, Record
from rapa_lib.experiments.records import plain, provenance
from rapa_lib.runtime import (
    AnalogArrays,
    DigitalSide,
    NetworkLayers,
    cost_table,
    rival_table,
    tiles_within,
)

ArraySize = int | tuple[int, int]


def _sides(name: str, value: Any) -> Any:
    """A list, as JSON has it, as a pair; the rest is for :class:`AnalogArrays` to check."""
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Acceleration(Experiment[None]):
    """Everything that names one run of the acceleration experiment; checked when it is made.

    Args:
        networks: names as :func:`count_networks` takes them.
        image_size: side of the images of torchvision's networks.
        max_tiles: the most tiles per layer; powers of two up to it are tried.
        target_speedup: the one whose cost is asked for.
        max_array_size, forward_ns, backward_ns, update_ns, analog_bias, pack_groups: see
            :class:`AnalogArrays`, whose ``max_size`` the first is.
        flops_per_s, bytes_per_s, batch_size: see :func:`rapa_lib.runtime.roofline_table`.
        digital: what must keep up with the arrays.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    name: ClassVar[str] = "acceleration"

    networks: Sequence[str] = several((RAPA, "alexnet", "resnet18"), check_network, of="names")
    image_size: int = integer(224, low=1)
    max_tiles: int = integer(1024, low=1)
    target_speedup: float = real(10.0, low=1)
    max_array_size: ArraySize = checked(512, _sides)  # noqa: RUF009 - makes a field
    forward_ns: float = 80.0
    backward_ns: float = 80.0
    update_ns: float = 80.0
    analog_bias: bool = flag(False)
    pack_groups: bool = flag(False)
    flops_per_s: float = real(100e12, low=0, open_low=True)
    bytes_per_s: float = real(1e12, low=0, open_low=True)
    batch_size: int = integer(32, low=1)
    digital: DigitalSide = field(default_factory=DigitalSide)

    def _check(self) -> None:
        _ = self.hardware  # checks its own arguments

    @property
    def hardware(self) -> AnalogArrays:
        """The arrays that the networks run on."""
        return AnalogArrays(
            self.max_array_size,
            forward_ns=self.forward_ns,
            backward_ns=self.backward_ns,
            update_ns=self.update_ns,
            analog_bias=self.analog_bias,
            pack_groups=self.pack_groups,
        )

    @property
    def n_tiles(self) -> list[int]:
        """The numbers of tiles that are tried."""
        return [2**i for i in range(self.max_tiles.bit_length())]

    def count(self) -> dict[str, NetworkLayers]:
        """Count the networks' layers."""
        return count_networks(self.networks, self.image_size)

    def before_tiling(self) -> pd.DataFrame:
        """What the networks need before any tiling: see :func:`network_table`."""
        return network_table(
            self.count(), self.hardware, flops_per_s=self.flops_per_s,
            bytes_per_s=self.bytes_per_s, batch_size=self.batch_size,
        )  # fmt: skip

    def target_costs(self) -> pd.DataFrame:
        """What the target speed-up costs: see :func:`target_table`."""
        networks = self.count()
        return target_table(networks, self.target_speedup, self.hardware, max_tiles=self.max_tiles)

    def _measure(self, subject: None, folder: Path | None, progress: bool) -> Record:
        networks, hardware = self.count(), self.hardware
        rows = speedup_table(networks, self.n_tiles, hardware, max_tiles=self.max_tiles)
        layers = layer_times(networks, self.target_speedup, hardware, max_tiles=self.max_tiles)
        return {
            **provenance(torch.device("cpu")),
            "config": self.settings(),
            "rows": plain(rows),
            "layers": plain(layers),
            "costs": plain(cost_table(networks, self.n_tiles, hardware, self.digital)),
            "bandwidth": plain(tiles_within(networks, self.n_tiles, hardware, self.digital)),
            "rivals": plain(rival_table(networks, self.n_tiles, hardware, self.digital)),
        }

    @classmethod
    def collect(cls, records: Sequence[Record]) -> Collected:
        """See :meth:`Experiment.collect`."""
        return collect(records)
