"""The acceleration experiment: networks on analog arrays, tiles from one to a thousand."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rapa_lib._checks import check_int, check_real
from rapa_lib._files import writable_folder
from rapa_lib.experiments.records import provenance, write_json
from rapa_lib.networks.network import RapaConvNet
from rapa_lib.runtime import (
    SCHEDULES,
    AnalogArrays,
    NetworkLayers,
    RunTime,
    balance_tiles,
    count_layers,
    reachable_speedup,
    roofline_table,
    run_time,
)

RAPA = "rapa"
"""The name that stands for the study's own network among torchvision's."""


@dataclass(frozen=True)
class AccelerationRun:
    """Everything that names one run of the acceleration experiment; checked when it is made.

    Args:
        networks: names as :func:`count_networks` takes them.
        image_size: side of the images of torchvision's networks.
        max_tiles: the most tiles per layer; powers of two up to it are tried.
        target_speedup: the one whose cost is asked for.
        max_array_size, forward_ns, backward_ns, update_ns, analog_bias, pack_groups: see
            :class:`AnalogArrays`, whose ``max_size`` the first is.
        flops_per_s, bytes_per_s, batch_size: see :func:`roofline_table`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    networks: Sequence[str] = (RAPA, "alexnet", "resnet18")
    image_size: int = 224
    max_tiles: int = 1024
    target_speedup: float = 10
    max_array_size: int = 512
    forward_ns: float = 80.0
    backward_ns: float = 80.0
    update_ns: float = 80.0
    analog_bias: bool = False
    pack_groups: bool = False
    flops_per_s: float = 100e12
    bytes_per_s: float = 1e12
    batch_size: int = 32

    def __post_init__(self) -> None:
        if isinstance(self.networks, str) or not isinstance(self.networks, Sequence):
            raise TypeError(f"networks: got {self.networks!r}, expected a list of names")
        if not self.networks:
            raise ValueError("networks: got none, expected at least one name")
        for name in self.networks:
            _check_name(name)
        check_int("image_size", self.image_size, low=1)
        check_int("max_tiles", self.max_tiles, low=1)
        check_int("batch_size", self.batch_size, low=1)
        check_real("target_speedup", self.target_speedup, low=1)
        for name in ("flops_per_s", "bytes_per_s"):
            check_real(name, getattr(self, name), low=0, open_low=True)
        _ = self.hardware

    @property
    def hardware(self) -> AnalogArrays:
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


def count_networks(names: Iterable[str], image_size: int = 224) -> dict[str, NetworkLayers]:
    """Count the layers of networks known by name; no weight is drawn.

    Args:
        names: ``"rapa"`` for :class:`RapaConvNet` on 3 × 32 × 32 images with one tile per layer,
            or a classification network of torchvision.
        image_size: side of the images for torchvision's networks, with three channels.

    Returns:
        Layers by name.

    Raises:
        ValueError: for an unknown name, or an image size on which a network does not run.
    """
    check_int("image_size", image_size, low=1)
    networks = {}
    for name in names:
        model = _build(name)
        side = 32 if name == RAPA else image_size
        try:
            networks[name] = count_layers(model, (3, side, side))
        except ValueError as error:
            raise ValueError(f"networks: {name}: {error}") from error
    if not networks:
        raise ValueError("networks: got none, expected at least one name")
    return networks


def _check_name(name: str) -> None:
    from torchvision import models

    known = models.list_models(module=models)
    if name != RAPA and name not in known:
        raise ValueError(f"networks: got {name!r}, allowed: {RAPA}, {', '.join(known)}")


def _build(name: str) -> nn.Module:
    from torchvision import models

    _check_name(name)
    with warnings.catch_warnings(), _WithoutWeights():
        # GoogLeNet and Inception announce that their initial weights will change: there are none.
        warnings.simplefilter("ignore", FutureWarning)
        return RapaConvNet(tiling="none") if name == RAPA else models.get_model(name, weights=None)


class _WithoutWeights(TorchFunctionMode):
    """Give new layers weights on the meta device.

    ``with torch.device("meta")`` would take all other tensors along, with which some constructors
    (RegNet's) compute.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


_COLUMNS = [
    "network",
    "assignment",
    "schedule",
    "n_tiles",
    "speedup",
    "products",
    "time_us",
    "arrays",
    "cross_points",
    "utilisation",
    "bottleneck",
]


def acceleration_table(
    networks: Mapping[str, NetworkLayers],
    n_tiles: Sequence[int],
    hardware: AnalogArrays | None = None,
) -> pd.DataFrame:
    """Speed-up and cost of networks with the same number of tiles for every convolution.

    Args:
        networks: layers by name.
        n_tiles: numbers of tiles; each is lowered to L where a layer has fewer patches.
        hardware: the arrays; None is ``AnalogArrays()``.

    Returns:
        A row for each network, number of tiles and schedule: network, assignment (``"uniform"``),
        schedule, n_tiles, speedup (over one tile per layer), products, time_us (training, an
        image), arrays, cross_points (of all arrays), utilisation, bottleneck (the slowest layer).
    """
    return pd.DataFrame(
        [
            _row(name, "uniform", schedule, count, timed)
            for name, network in networks.items()
            for count in n_tiles
            for timed in [run_time(network, n_tiles=count, hardware=hardware)]
            for schedule in SCHEDULES
        ]
    )


def balanced_table(
    networks: Mapping[str, NetworkLayers],
    speedups: Mapping[str, Sequence[float]] | Sequence[float],
    hardware: AnalogArrays | None = None,
    *,
    schedules: Sequence[str] = SCHEDULES,
    max_tiles: int | None = None,
) -> pd.DataFrame:
    """Cost of networks whose tiles :func:`balance_tiles` chose: the fewest arrays for a speed-up.

    Args:
        networks: layers by name.
        speedups: targets, for all networks or for each by name; one that a network cannot reach
            has no row.
        hardware: the arrays; None is ``AnalogArrays()``.
        schedules: of each target.
        max_tiles: the most tiles of a layer.

    Returns:
        Rows as of :func:`acceleration_table`, with assignment ``"balanced"``; ``n_tiles`` is the
        most that a layer has.
    """
    rows = []
    for name, network in networks.items():
        targets = speedups[name] if isinstance(speedups, Mapping) else speedups
        for schedule in schedules:
            limit = reachable_speedup(network, schedule=schedule, max_tiles=max_tiles)
            for target in sorted({float(t) for t in targets if t <= limit}):
                tiles = balance_tiles(
                    network, target_speedup=target, schedule=schedule, hardware=hardware,
                    max_tiles=max_tiles,
                )  # fmt: skip
                timed = run_time(network, n_tiles=tiles, hardware=hardware)
                most = max(tiles.values(), default=1)
                rows.append(_row(name, "balanced", schedule, most, timed))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _row(name: str, assignment: str, schedule: str, n_tiles: int, timed: RunTime) -> dict[str, Any]:
    return {
        "network": name,
        "assignment": assignment,
        "schedule": schedule,
        "n_tiles": int(n_tiles),
        "speedup": timed.speedup(schedule),
        "products": timed.products(schedule),
        "time_us": timed.time_us(schedule),
        "arrays": timed.arrays,
        "cross_points": timed.cross_points,
        "utilisation": timed.utilisation,
        "bottleneck": timed.bottleneck.layer.name,
    }


def layer_times(
    networks: Mapping[str, NetworkLayers],
    speedup: float,
    hardware: AnalogArrays | None = None,
    *,
    schedule: str = "pipelined",
    max_tiles: int | None = None,
) -> pd.DataFrame:
    """Time of every layer with one tile, and with the tiles that a speed-up takes.

    Args:
        networks: layers by name.
        speedup: target for :func:`balance_tiles`; a network that cannot reach it gets the most
            that it can reach.
        hardware, schedule, max_tiles: as in :func:`balance_tiles`.

    Returns:
        A row for each network, assignment (``"one tile"``, ``"balanced"``) and layer: n_tiles,
        products, arrays, time_us (training, an image), in the order in which layers run.
    """
    check_real("speedup", speedup, low=1)
    rows = []
    for name, network in networks.items():
        target = min(speedup, reachable_speedup(network, schedule=schedule, max_tiles=max_tiles))
        tiles = balance_tiles(
            network, target_speedup=target, schedule=schedule, hardware=hardware,
            max_tiles=max_tiles,
        )  # fmt: skip
        for assignment, count in (("one tile", 1), ("balanced", tiles)):
            for timed in run_time(network, n_tiles=count, hardware=hardware).layers:
                rows.append(
                    {
                        "network": name,
                        "assignment": assignment,
                        "layer": timed.layer.name,
                        "n_tiles": timed.n_tiles,
                        "products": timed.products,
                        "arrays": timed.arrays,
                        "time_us": timed.time_us(),
                    }
                )
    return pd.DataFrame(rows)


def network_table(
    networks: Mapping[str, NetworkLayers],
    hardware: AnalogArrays | None = None,
    *,
    flops_per_s: float,
    bytes_per_s: float,
    bytes_per_number: float = 4.0,
    batch_size: int = 1,
) -> pd.DataFrame:
    """What networks ask for before any tiling, beside a digital processor's least time.

    Args:
        networks: layers by name.
        hardware: the arrays; None is ``AnalogArrays()``.
        flops_per_s, bytes_per_s, bytes_per_number, batch_size: of the digital processor, see
            :func:`roofline_table`.

    Returns:
        One row a network: input_size, layers, uncounted (modules on no array that are not
        digital), macs (forward, an image), arrays, utilisation, time_us_pipelined,
        time_us_sequential (training, an image, one tile per layer), bottleneck,
        digital_us (training, an image, sum of roofline times over layers).
    """
    rows = []
    for name, network in networks.items():
        timed = run_time(network, n_tiles=1, hardware=hardware)
        digital = roofline_table(
            network, flops_per_s=flops_per_s, bytes_per_s=bytes_per_s,
            bytes_per_number=bytes_per_number, batch_size=batch_size, training=True,
        )  # fmt: skip
        rows.append(
            {
                "network": name,
                "input_size": "×".join(map(str, network.input_size)),
                "layers": len(network.layers),
                "uncounted": sum(u.reason != "digital" for u in network.uncounted),
                "macs": sum(layer.macs for layer in network.layers),
                "arrays": timed.arrays,
                "utilisation": timed.utilisation,
                **{f"time_us_{schedule}": timed.time_us(schedule) for schedule in SCHEDULES},
                "bottleneck": timed.bottleneck.layer.name,
                "digital_us": digital["time_us"].sum(),
            }
        )
    return pd.DataFrame(rows)


def save_acceleration(
    folder: str | Path,
    run: AccelerationRun,
    table: pd.DataFrame,
    layers: pd.DataFrame,
) -> dict[str, Any]:
    """Write ``record.json`` to a folder.

    Args:
        folder: is made if it is not there.
        run: what was asked.
        table: rows of :func:`acceleration_table` and :func:`balanced_table`.
        layers: rows of :func:`layer_times`.

    Returns:
        The record: provenance, parameters, and the tables' rows.
    """
    record = {
        **provenance(torch.device("cpu")),
        "config": asdict(run) | {"networks": list(run.networks)},
        "rows": table.to_dict("records"),
        "layers": layers.to_dict("records"),
    }
    write_json(writable_folder("output", folder) / "record.json", record)
    return record
