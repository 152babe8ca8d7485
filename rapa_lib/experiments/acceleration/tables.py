"""The acceleration experiment's tables, and what they answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from rapa_lib._checks import check_real
from rapa_lib.runtime import (
    SCHEDULES,
    TOLERANCE,
    AnalogArrays,
    NetworkLayers,
    RunTime,
    balance_tiles,
    is_proportional,
    reachable_speedup,
    roofline_table,
    run_time,
)

PROPORTIONAL = 1 - TOLERANCE  # of the number of tiles

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
        One row for each network, number of tiles and schedule: network, assignment (``"uniform"``),
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


def speedup_table(
    networks: Mapping[str, NetworkLayers],
    n_tiles: Sequence[int],
    hardware: AnalogArrays | None = None,
    *,
    max_tiles: int | None = None,
) -> pd.DataFrame:
    """Rows of :func:`acceleration_table`, then of :func:`balanced_table` for their speed-ups."""
    uniform = acceleration_table(networks, n_tiles, hardware)
    reached = {name: rows["speedup"].tolist() for name, rows in uniform.groupby("network")}
    balanced = balanced_table(networks, reached, hardware, max_tiles=max_tiles)
    return pd.concat([uniform, balanced], ignore_index=True)


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


def target_table(
    networks: Mapping[str, NetworkLayers],
    speedup: float,
    hardware: AnalogArrays | None = None,
    *,
    max_tiles: int | None = None,
) -> pd.DataFrame:
    """What a speed-up costs with the fewest arrays that reach it.

    Args:
        networks, hardware, max_tiles: as for :func:`balanced_table`.
        speedup: the target.

    Returns:
        One row per network and schedule: network, schedule, ``reachable`` (the greatest speed-up),
        and, missing where that is below the target, speedup, n_tiles (the most of a layer), arrays,
        cross_points and ``cross_points_ratio`` (over one tile per layer).
    """
    limits = pd.DataFrame(
        [
            {
                "network": name,
                "schedule": schedule,
                "reachable": reachable_speedup(network, schedule=schedule, max_tiles=max_tiles),
                "single": run_time(network, n_tiles=1, hardware=hardware).cross_points,
            }
            for name, network in networks.items()
            for schedule in SCHEDULES
        ]
    )
    balanced = balanced_table(networks, [speedup], hardware, max_tiles=max_tiles)
    costs = balanced[["network", "schedule", "speedup", "n_tiles", "arrays", "cross_points"]]
    table = limits.merge(costs, on=["network", "schedule"], how="left")
    table["cross_points_ratio"] = table["cross_points"] / table.pop("single")
    return table


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
        One row for each network, assignment (``"one tile"``, ``"balanced"``) and layer: n_tiles,
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
        One row per network: input_size, layers, uncounted (modules on no array that are not
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


def proportional_up_to(n_tiles: pd.Series, speedup: pd.Series) -> int:
    """The largest number of tiles up to which the speed-up stays above 90 % of it."""
    rows = pd.DataFrame({"n_tiles": n_tiles, "speedup": speedup}).sort_values("n_tiles")
    counts = zip(rows["n_tiles"], rows["speedup"], strict=True)
    holds = pd.Series([is_proportional(*count) for count in counts], rows.index).cummin()
    return int(rows.loc[holds, "n_tiles"].max()) if holds.any() else 0


def acceleration_summary(table: pd.DataFrame) -> pd.DataFrame:
    """How far the speed-up stays proportional to the number of tiles, one row per network.

    Args:
        table: as for :func:`speedup_figure`.

    Returns:
        network, schedule, ``proportional up to`` (tiles: at least 90 % of the proportional
        speed-up), and at the largest number of tiles the ``speed-up``, ``cross-points ×`` (over
        one tile per layer) and the layer that then is the ``bottleneck``.
    """
    if "assignment" in table:
        table = table[table["assignment"] == "uniform"]
    rows = []
    for (network, schedule), lines in table.groupby(["network", "schedule"], sort=False):
        lines = lines.sort_values("n_tiles")
        first, last = lines.iloc[0], lines.iloc[-1]
        rows.append(
            {
                "network": network,
                "schedule": schedule,
                "proportional up to": proportional_up_to(lines["n_tiles"], lines["speedup"]),
                "most tiles": last["n_tiles"],
                "speed-up": last["speedup"],
                "cross-points ×": last["cross_points"] / first["cross_points"],
                "bottleneck": last["bottleneck"],
            }
        )
    return pd.DataFrame(rows)


def acceleration_answer(table: pd.DataFrame) -> list[str]:
    """How far speed-ups are proportional to tiles, and what balancing saves: three lines at most.

    Args:
        table: rows of ``acceleration.csv``.
    """
    summary = acceleration_summary(table)
    spans = []
    for schedule, rows in summary.groupby("schedule", sort=False):
        names = rows.groupby("proportional up to")["network"].agg(", ".join).sort_index()
        parts = [f"{int(last):,} tiles ({name})" for last, name in names[::-1].items()]
        spans.append(f"{schedule} {', '.join(parts)}")
    most = int(summary["most tiles"].max())
    lines = [
        f"**The speed-up stays above {100 * PROPORTIONAL:g} % of the number of tiles per layer up "
        f"to: {'; '.join(spans)}.** {most:,} were tried at most."
    ]
    ratios = _balanced_ratios(table)
    if len(ratios):
        low, high = (f"{100 * ratio:.0f} %" for ratio in (ratios.min(), ratios.max()))
        lines.append(
            f"Balanced tiles reach the speed-up of {most:,} equal ones with "
            f"{low if low == high else f'{low} to {high}'} of their cross-points."
        )
    return lines


def _balanced_ratios(table: pd.DataFrame) -> pd.Series:
    """Cross-points of balanced tiles over those of equal tiles, at the speed-up of the most."""
    ratios = []
    for _, rows in table.groupby(["network", "schedule"], sort=False):
        uniform = rows[rows["assignment"] == "uniform"]
        most = uniform.loc[uniform["n_tiles"].idxmax()]
        enough = rows[(rows["assignment"] == "balanced") & (rows["speedup"] >= most["speedup"])]
        if len(enough):
            ratios.append(enough["cross_points"].min() / most["cross_points"])
    return pd.Series(ratios, dtype=float)
