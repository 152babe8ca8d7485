"""Claim C1 with its costs: how far the speed-up stays proportional, and at what bandwidth."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from rapa_lib._checks import check_choice, check_int, check_real, check_sequence, optional
from rapa_lib.runtime._arrays import SCHEDULES, AnalogArrays, RunTime, check_hardware, run_time
from rapa_lib.runtime._costs import (
    ACCESSES,
    DigitalSide,
    NetworkCost,
    check_digital,
    network_cost,
    stale_images,
)
from rapa_lib.runtime._layers import NetworkLayers

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 0.1
"""A speed-up counts as proportional that is at most this share below the number of tiles."""

BANDWIDTHS = tuple(m * 10.0**e for e in range(9, 14) for m in (1, 2, 5))
"""Bandwidths that :func:`tiles_within` tries by default, in values per second."""


def layer_costs(
    model: nn.Module | NetworkLayers,
    input_size: Sequence[int] | None = None,
    *,
    n_tiles: int | None = None,
    hardware: AnalogArrays | None = None,
    digital: DigitalSide | None = None,
    access: str = "random",
) -> "pd.DataFrame":
    """What every layer moves and what its time goes to.

    Args:
        model, input_size, n_tiles, hardware: as in :func:`run_time`; tiles are lowered to L where a
            layer has fewer patches.
        digital: what feeds the arrays; None is ``DigitalSide()``. Its bandwidth is here that of
            each layer while it works.
        access: one of :data:`ACCESSES`.

    Returns:
        One row per layer: layer, n_tiles, arrays, reads_per_patch, values_per_patch, values_per_s
        (to move if bandwidth does not hold the layer up), arrays_us, converters_us,
        update_us, bandwidth_us and their sum time_us (training, an image), limit, stale_images
        (pipelined, see :func:`stale_images`).
    """
    timed = run_time(model, input_size, n_tiles=n_tiles, hardware=hardware)
    cost = network_cost(timed, digital, access=access, schedule="pipelined")
    stale = stale_images(len(cost.layers))
    return optional("pandas", "figures").DataFrame(
        [
            {
                "layer": one.timed.layer.name,
                "n_tiles": one.timed.n_tiles,
                "arrays": one.arrays,
                "reads_per_patch": one.reads_per_patch,
                "values_per_patch": one.values_per_patch,
                "values_per_s": one.values_per_s,
                **{f"{part}_us": time for part, time in one.parts_us.items()},
                "time_us": one.time_us,
                "limit": one.limit,
                "stale_images": images,
            }
            for one, images in zip(cost.layers, stale, strict=True)
        ]
    )


def cost_table(
    networks: Mapping[str, NetworkLayers],
    n_tiles: Sequence[int],
    hardware: AnalogArrays | None = None,
    digital: DigitalSide | None = None,
    schedules: Sequence[str] = SCHEDULES,
    *,
    tolerance: float = TOLERANCE,
) -> "pd.DataFrame":
    """Speed-up of networks with a digital side that must keep up.

    Args:
        networks: layers by name.
        n_tiles: numbers of tiles, the same for every convolution of a network; each is lowered to
            L where a layer has fewer patches.
        hardware: the arrays; None is ``AnalogArrays()``.
        digital: what feeds them; None is ``DigitalSide()``.
        schedules: of ``SCHEDULES``.
        tolerance: see :func:`is_proportional`.

    Returns:
        One row per network, schedule, access and number of tiles: network, schedule, access,
        n_tiles, speedup_ideal (arrays alone, as :func:`run_time` has it), speedup (over one tile
        per layer on the same arrays with the same digital side), proportional, values_per_s (to
        move if bandwidth holds nothing up), limit (one of ``LIMITS``), limiting_layer, time_us
        (training, an image), arrays, stale_images (see :func:`stale_images`: of the first layer).

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.
    """
    check_real("tolerance", tolerance, low=0, high=1)
    hardware = check_hardware(hardware)
    digital = check_digital(digital, hardware)
    rows = []
    for name, schedule, access, single, timed in cases(networks, n_tiles, hardware, schedules):
        base = network_cost(single, digital, access=access, schedule=schedule).time_us
        for count, tiled in timed.items():
            cost = network_cost(tiled, digital, access=access, schedule=schedule)
            speedup = base / cost.time_us
            rows.append(
                {
                    "network": name,
                    "schedule": schedule,
                    "access": access,
                    "n_tiles": count,
                    "speedup_ideal": tiled.speedup(schedule),
                    "speedup": speedup,
                    "proportional": is_proportional(count, speedup, tolerance),
                    "values_per_s": cost.values_per_s,
                    "limit": cost.limit,
                    "limiting_layer": cost.limiting_layer.timed.layer.name,
                    "time_us": cost.time_us,
                    "arrays": cost.arrays,
                    "stale_images": cost.stale_images,
                }
            )
    return optional("pandas", "figures").DataFrame(rows)


def tiles_within(
    networks: Mapping[str, NetworkLayers],
    n_tiles: Sequence[int],
    hardware: AnalogArrays | None = None,
    digital: DigitalSide | None = None,
    schedules: Sequence[str] = SCHEDULES,
    *,
    bandwidths: Sequence[float] = BANDWIDTHS,
    tolerance: float = TOLERANCE,
) -> "pd.DataFrame":
    """Number of tiles up to which the speed-up stays proportional, by bandwidth: C1's endpoint.

    Args:
        networks, hardware, schedules, tolerance: as in :func:`cost_table`.
        n_tiles: numbers of tiles that are tried; the result is one of them. Powers of two are best:
            others do not divide the patches, so that arrays wait whatever the bandwidth.
        digital: as in :func:`cost_table`, but its bandwidth does not matter.
        bandwidths: in values per second.

    Returns:
        One row per network, schedule, access and bandwidth: network, schedule, access,
        values_per_second, tiles (0 if not even the smallest number tried stays proportional),
        tiles_unlimited (the same with unlimited bandwidth), most_tiles (the largest number tried),
        limit (what limits the network with the next larger number of tiles; "none" if all stay
        proportional).

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.
    """
    check_real("tolerance", tolerance, low=0, high=1)
    check_sequence("bandwidths", bandwidths, "values per second")
    for bandwidth in bandwidths:
        check_real("bandwidths", bandwidth, low=0, open_low=True)
    hardware = check_hardware(hardware)
    digital = check_digital(digital, hardware)
    rows = []
    for name, schedule, access, single, timed in cases(networks, n_tiles, hardware, schedules):
        found = {}
        for rate in (None, *bandwidths):
            side = replace(digital, values_per_second=rate)
            base, *costs = (
                network_cost(one, side, access=access, schedule=schedule)
                for one in (single, *timed.values())
            )
            by_count = dict(zip(timed, costs, strict=True))
            found[rate] = _reach(by_count, base.time_us, tolerance)
        for bandwidth in bandwidths:
            tiles, limit = found[bandwidth]
            rows.append(
                {
                    "network": name,
                    "schedule": schedule,
                    "access": access,
                    "values_per_second": float(bandwidth),
                    "tiles": tiles,
                    "tiles_unlimited": found[None][0],
                    "most_tiles": max(timed),
                    "limit": limit,
                }
            )
    return optional("pandas", "figures").DataFrame(rows)


def is_proportional(n_tiles: int, speedup: float, tolerance: float = TOLERANCE) -> bool:
    """Whether a speed-up is at most a share ``tolerance`` below the number of tiles."""
    return speedup >= (1 - tolerance) * n_tiles * (1 - 1e-12)  # a rounding error is no loss


def _reach(costs: Mapping[int, NetworkCost], base: float, tolerance: float) -> tuple[int, str]:
    """The most tiles up to which all stay proportional, and what limits the next number."""
    reached = 0
    for count in sorted(costs):
        if not is_proportional(count, base / costs[count].time_us, tolerance):
            return reached, costs[count].limit
        reached = count
    return reached, "none"


_Case = tuple[str, str, str, RunTime, dict[int, RunTime]]


def cases(
    networks: Mapping[str, NetworkLayers],
    n_tiles: Sequence[int],
    hardware: AnalogArrays,
    schedules: Sequence[str],
    accesses: Sequence[str] = ACCESSES,
) -> Iterator[_Case]:
    """Each network, schedule and access, with one tile per layer and with each number of tiles."""
    if not isinstance(networks, Mapping):
        raise TypeError(f"networks: got {type(networks).__name__}, expected layers by name")
    for name, network in networks.items():
        if not isinstance(network, NetworkLayers):
            raise TypeError(
                f"networks[{name!r}]: got {type(network).__name__}, expected what count_layers "
                "returns"
            )
    if not networks:
        raise ValueError("networks: got none, expected at least one")
    if not check_sequence("n_tiles", n_tiles, "integers"):
        raise ValueError("n_tiles: got none, expected at least one number of tiles")
    counts = [check_int("n_tiles", count, low=1) for count in n_tiles]
    check_sequence("schedules", schedules, "names")
    for schedule in schedules:
        check_choice("schedules", schedule, SCHEDULES)
    for name, network in networks.items():
        single = run_time(network, n_tiles=1, hardware=hardware)
        timed = {n: run_time(network, n_tiles=n, hardware=hardware) for n in counts}
        for schedule in schedules:
            for access in accesses:
                yield name, schedule, access, single, timed
