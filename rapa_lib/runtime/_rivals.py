"""What else buys the speed-up: perforation, beside RAPA, by its time and its arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rapa_lib._checks import check_real, optional
from rapa_lib.runtime._arrays import SCHEDULES, AnalogArrays, LayerRunTime, RunTime, check_hardware
from rapa_lib.runtime._cost_tables import TOLERANCE, cases, is_proportional
from rapa_lib.runtime._costs import DigitalSide, check_digital, network_cost
from rapa_lib.runtime._layers import NetworkLayers

if TYPE_CHECKING:
    import pandas as pd

RAPA, PERFORATED_DENSE = ARMS = ("random", "perforated_dense")
"""What is compared: tiles that share the patches, and one tile that leaves patches out."""

RIVAL_COLUMNS = (
    "network", "schedule", "arm", "n_tiles", "training_speedup", "inference_speedup",
    "proportional", "values_per_s", "limit", "arrays",
)  # fmt: skip
"""Columns of :func:`rival_table`."""


def perforated(timed: RunTime) -> RunTime:
    """The same network with one tile per layer that computes one patch in n, not n tiles."""
    return replace(timed, layers=tuple(_perforated(layer) for layer in timed.layers))


def _perforated(timed: LayerRunTime) -> LayerRunTime:
    layer = replace(timed.layer, perforation=timed.layer.perforation * timed.n_tiles)
    return replace(timed, layer=layer, n_tiles=1)


def rival_table(
    networks: Mapping[str, NetworkLayers],
    n_tiles: Sequence[int],
    hardware: AnalogArrays | None = None,
    digital: DigitalSide | None = None,
    schedules: Sequence[str] = SCHEDULES,
    *,
    tolerance: float = TOLERANCE,
) -> "pd.DataFrame":
    """Speed-up of RAPA and of a network trained perforated and tested dense.

    Perforation computes one output in n and fills in the others from their neighbours (Figurnov et
    al., NIPS 2016); each layer keeps its one tile. It trains as fast as n tiles would, reads no
    more values per second than one tile can, and, tested dense, is as slow as the ordinary network.

    Args:
        networks, hardware, digital, schedules, tolerance: as in :func:`cost_table`; patches are
            read in random order by RAPA, in the order of the image by one tile.
        n_tiles: RAPA's tiles of every convolution, and the patches of which perforation computes
            one; each is lowered to L where a layer has fewer patches.

    Returns:
        One row per network, schedule, arm (``"random"``, ``"perforated_dense"``) and number of
        tiles: network, schedule, arm, n_tiles, training_speedup and inference_speedup (over one
        tile per layer with the same digital side), proportional (the former to n_tiles, within the
        tolerance), values_per_s (to move in training if bandwidth holds nothing up), limit (of
        training, one of ``LIMITS``), arrays.

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.
    """
    check_real("tolerance", tolerance, low=0, high=1)
    hardware = check_hardware(hardware)
    digital = check_digital(digital, hardware)
    rows = []
    asked = cases(networks, n_tiles, hardware, schedules, accesses=["random"])
    for name, schedule, access, single, timed in asked:
        cost = partial(network_cost, digital=digital, access=access, schedule=schedule)
        training, inference = (cost(single, training=way).time_us for way in (True, False))
        for arm in (RAPA, PERFORATED_DENSE):
            for count, tiled in timed.items():
                trained, tested = (tiled, tiled) if arm == RAPA else (perforated(tiled), single)
                spent = cost(trained)
                speedup = training / spent.time_us
                rows.append(
                    {
                        "network": name,
                        "schedule": schedule,
                        "arm": arm,
                        "n_tiles": count,
                        "training_speedup": speedup,
                        "inference_speedup": inference / cost(tested, training=False).time_us,
                        "proportional": is_proportional(count, speedup, tolerance),
                        "values_per_s": spent.values_per_s,
                        "limit": spent.limit,
                        "arrays": spent.arrays,
                    }
                )
    return optional("pandas", "figures").DataFrame(rows, columns=RIVAL_COLUMNS)
