"""How many tiles for which layer: the fewest arrays for a speed, or the most speed for arrays."""

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from rapa_lib._checks import check_choice, check_int, check_real
from rapa_lib.runtime._arrays import SCHEDULES, AnalogArrays, check_hardware, over_layers
from rapa_lib.runtime._knapsack import Choices, cheapest
from rapa_lib.runtime._layers import LayerShape, NetworkLayers, as_layers


def balance_tiles(
    model: nn.Module | NetworkLayers,
    input_size: Sequence[int] | None = None,
    *,
    max_products: int | None = None,
    max_arrays: int | None = None,
    target_speedup: float | None = None,
    schedule: str = "pipelined",
    hardware: AnalogArrays | None = None,
    max_tiles: int | None = None,
) -> dict[str, int]:
    """Choose each layer's number of tiles: the fewest arrays that reach a target.

    The result is optimal, and no layer has more tiles than its number of products needs. It goes
    straight into ``convert_to_rapa(model, tiles, input_size=...)``. Exactly one target is given.

    Args:
        model: an ordinary network (of one that is converted already, :func:`merge_tiles` makes one
            again), or what :func:`count_layers` made of it.
        input_size: shape of one input without batch, (C, H, W) for images; None for counted layers.
        max_products: products one after the other that an image may take, by the schedule.
        max_arrays: arrays that all layers together may take, linear ones included. The result is
            the fastest network that they allow, and of several as fast one with the fewest arrays.
        target_speedup: over one tile per layer, by the schedule; at least 1.
        schedule: ``"pipelined"`` (default: each layer has its arrays to itself, so they can work
            on different images) counts the slowest layer alone; ``"sequential"`` counts the sum
            over layers.
        hardware: the arrays; None is ``AnalogArrays()``.
        max_tiles: the most tiles of a layer; None is one a patch.

    Returns:
        Tiles by name of every convolution that ran, 1 included.

    Raises:
        ValueError: if the target cannot be reached (the message names the layer that is in the way
            and what can be reached), not exactly one target is given, or the model does not run.
        TypeError: if an argument is of the wrong type.
    """
    network = as_layers(model, input_size)
    hardware = check_hardware(hardware)
    check_choice("schedule", schedule, SCHEDULES)
    if max_tiles is not None:
        check_int("max_tiles", max_tiles, low=1)
    given = {
        "max_products": max_products,
        "max_arrays": max_arrays,
        "target_speedup": target_speedup,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            f"target: got {', '.join(given) or 'none'}, expected exactly one of max_products, "
            f"max_arrays, target_speedup"
        )
    layers = network.layers
    options = [_tile_counts(layer, max_tiles) for layer in layers]
    per_tile = [hardware.per_tile(layer) for layer in layers]
    if max_arrays is not None:
        check_int("max_arrays", max_arrays, low=1)
        if max_arrays < sum(per_tile):
            raise ValueError(
                f"max_arrays: got {max_arrays}, but one tile per layer takes {sum(per_tile)} "
                f"arrays of {' × '.join(map(str, hardware.array_size))}"
            )
        tiles: list[int] | None = _fastest(layers, options, per_tile, max_arrays, schedule)
    else:
        if max_products is not None:
            limit = check_int("max_products", max_products, low=1)
        else:
            limit = _products_for(
                layers, check_real("target_speedup", target_speedup, low=1), schedule
            )
        tiles = _fewest_arrays(layers, options, per_tile, limit, schedule)
    if tiles is None:
        raise ValueError(_out_of_reach(layers, options, schedule, max_tiles, given))
    return {layer.name: n for layer, n in zip(layers, tiles, strict=True) if layer.can_tile}


def reachable_speedup(
    model: nn.Module | NetworkLayers,
    input_size: Sequence[int] | None = None,
    *,
    schedule: str = "pipelined",
    max_tiles: int | None = None,
) -> float:
    """The largest speed-up over one tile per layer that any number of arrays gives.

    Args:
        model, input_size, schedule, max_tiles: as in :func:`balance_tiles`.
    """
    layers = as_layers(model, input_size).layers
    check_choice("schedule", schedule, SCHEDULES)
    if max_tiles is not None:
        check_int("max_tiles", max_tiles, low=1)
    options = [_tile_counts(layer, max_tiles) for layer in layers]
    return _single(layers, schedule) / over_layers(_least(layers, options), schedule)


def _tile_counts(layer: LayerShape, max_tiles: int | None) -> np.ndarray:
    """Numbers of tiles that a layer may have, rising, each the least for its products."""
    most = min(layer.max_tiles, max_tiles or layer.max_tiles)
    # ceil(L / q) is the least n with ceil(L / n) <= q: at each of these a use takes fewer products.
    steps = [-(-n_patches // np.arange(1, n_patches + 1)) for n_patches in set(layer.patches)]
    tiles = np.unique(np.concatenate(steps))
    return tiles[tiles <= most]


def _fewest_arrays(
    layers: Sequence[LayerShape],
    options: Sequence[np.ndarray],
    per_tile: Sequence[int],
    limit: int,
    schedule: str,
) -> list[int] | None:
    """Tiles that take the fewest arrays within a limit of products; None if none do."""
    if schedule == "sequential":
        # Reversed: a load (products) that rises while the cost (arrays) falls.
        items = [
            Choices(layer.products(tiles)[::-1], cost * tiles[::-1])
            for layer, tiles, cost in zip(layers, options, per_tile, strict=True)
        ]
        chosen = cheapest(items, limit)
        if chosen is None:
            return None
        return [int(tiles[::-1][k]) for tiles, k in zip(options, chosen, strict=True)]
    chosen = []
    for layer, tiles in zip(layers, options, strict=True):
        # Layers do not share the limit: each takes the fewest tiles that keep it.
        enough = tiles[layer.products(tiles) <= limit]
        if len(enough) == 0:
            return None
        chosen.append(int(enough[0]))
    return chosen


def _fastest(
    layers: Sequence[LayerShape],
    options: Sequence[np.ndarray],
    per_tile: Sequence[int],
    max_arrays: int,
    schedule: str,
) -> list[int] | None:
    """Tiles with the fewest products within a number of arrays, and then the fewest arrays."""
    if schedule == "sequential":
        items = [
            Choices(cost * tiles, layer.products(tiles))
            for layer, tiles, cost in zip(layers, options, per_tile, strict=True)
        ]
        chosen = cheapest(items, max_arrays)
        if chosen is None:
            return None
        limit = sum(int(item.cost[k]) for item, k in zip(items, chosen, strict=True))
    else:
        # The arrays that a limit needs fall as it rises: bisect for the least that fits.
        low, limit = 1, _single(layers, schedule)
        while low < limit:
            middle = (low + limit) // 2
            tiles = _fewest_arrays(layers, options, per_tile, middle, schedule)
            fits = tiles is not None and np.dot(per_tile, tiles) <= max_arrays
            low, limit = (low, middle) if fits else (middle + 1, limit)
    return _fewest_arrays(layers, options, per_tile, limit, schedule)


def _products_for(layers: Sequence[LayerShape], speedup: float, schedule: str) -> int:
    """The most products that still give a speed-up, as :meth:`RunTime.speedup` divides."""
    single = _single(layers, schedule)
    limit = math.floor(single / speedup)
    while single / (limit + 1) >= speedup:
        limit += 1
    while limit > 0 and single / limit < speedup:
        limit -= 1
    return limit


def _single(layers: Sequence[LayerShape], schedule: str) -> int:
    return over_layers((sum(layer.patches) for layer in layers), schedule)


def _least(layers: Sequence[LayerShape], options: Sequence[np.ndarray]) -> list[int]:
    """Each layer's products with as many tiles as it may have."""
    return [layer.products(int(tiles[-1])) for layer, tiles in zip(layers, options, strict=True)]


def _out_of_reach(
    layers: Sequence[LayerShape],
    options: Sequence[np.ndarray],
    schedule: str,
    max_tiles: int | None,
    given: dict,
) -> str:
    least = _least(layers, options)
    slowest = int(np.argmax(least))
    layer = layers[slowest]
    if not layer.can_tile:
        why = "and RAPA tiles convolutions only"
    elif options[slowest][-1] < layer.max_tiles:
        why = f"with max_tiles = {max_tiles}"
    else:
        why = "with a tile for each of its patches"
    uses = f", used {len(layer.patches)} times" if len(layer.patches) > 1 else ""
    total = over_layers(least, schedule)
    of_them = "" if schedule == "pipelined" else f" of the {total} that all layers need"
    ((name, value),) = given.items()
    reachable = f"{_single(layers, schedule) / total:g}" if name == "target_speedup" else total
    return (
        f"{name}: got {value}, but layer {layer.name!r} ({layer.kind}{uses}) takes at least "
        f"{least[slowest]} products{of_them}, {why}; {schedule}, reachable: {reachable}"
    )
