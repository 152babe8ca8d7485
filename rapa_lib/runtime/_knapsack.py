"""The multiple-choice knapsack problem, solved exactly: one choice an item, least cost in all."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_INT64_SAFE = 2**62


class Choices(NamedTuple):
    """What an item can be: loads that strictly rise, costs that strictly fall (int64)."""

    load: np.ndarray
    cost: np.ndarray


def cheapest(items: Sequence[Choices], limit: int) -> list[int] | None:
    """Choose for every item so that the loads sum to at most ``limit`` at the least cost.

    Dynamic programming over the items, keeping the states (load, cost) that no other dominates.
    A state is dropped only if a lower bound on all its completions (Lagrange's, with the multiplier
    of the linear relaxation) is above the cost of a choice already known. So the result is optimal.

    Args:
        items: their choices.
        limit: on the sum of loads.

    Returns:
        The index of each item's choice; None if no choice fits.
    """
    if sum(int(item.load[0]) for item in items) > limit:
        return None
    chosen, (weight_cost, weight_load) = _relaxation(items, limit)
    best = sum(int(item.cost[k]) for item, k in zip(items, chosen, strict=True))
    # Any multiplier bounds; rounding it keeps the products below within 64 bits.
    total = sum(int(item.load[-1]) + int(item.cost[0]) for item in items) + abs(limit)
    while max(weight_cost, weight_load) * total > _INT64_SAFE:
        weight_cost, weight_load = max(1, weight_cost // 2), weight_load // 2
    penalties = [weight_cost * item.cost + weight_load * item.load for item in items]
    least = [int(penalty.min()) for penalty in penalties]
    # What a partial choice and the least completion may weigh and still beat the best one known.
    allowance = weight_cost * (best - 1) + weight_load * limit
    spare = allowance - sum(least)
    kept = [np.flatnonzero(p - low <= spare) for p, low in zip(penalties, least, strict=True)]
    if any(len(k) == 0 for k in kept):
        return chosen
    # Items with few choices left come first: the states stay few for longer.
    order = sorted(range(len(items)), key=lambda i: len(kept[i]))
    load, cost = np.zeros(1, np.int64), np.zeros(1, np.int64)
    rest_load = sum(int(item.load[k[0]]) for item, k in zip(items, kept, strict=True))
    rest_least = sum(least)
    steps = []
    for i in order:
        rest_load -= int(items[i].load[kept[i][0]])
        rest_least -= least[i]
        sums_load = (load[:, None] + items[i].load[kept[i]]).ravel()
        sums_cost = (cost[:, None] + items[i].cost[kept[i]]).ravel()
        bound = weight_cost * sums_cost + weight_load * sums_load + rest_least
        alive = np.flatnonzero((bound <= allowance) & (sums_load + rest_load <= limit))
        by_load = alive[np.lexsort((sums_cost[alive], sums_load[alive]))]
        falls = np.minimum.accumulate(sums_cost[by_load])
        front = by_load[np.diff(falls, prepend=np.iinfo(np.int64).max) < 0]
        if len(front) == 0:
            return chosen  # nothing is better than what the relaxation gave
        load, cost = sums_load[front], sums_cost[front]
        steps.append(np.divmod(front, len(kept[i])))
    state = len(load) - 1  # on the front the largest load is the cheapest
    if cost[state] >= best:
        return chosen
    for i, (before, choice) in zip(reversed(order), reversed(steps), strict=True):
        chosen[i] = int(kept[i][choice[state]])
        state = before[state]
    return chosen


def _relaxation(items: Sequence[Choices], limit: int) -> tuple[list[int], tuple[int, int]]:
    """A choice that fits and is near the optimum, and the multiplier (of cost, of load).

    Every item starts at its least cost; edges of the lower convex hulls are taken in the order of
    what a unit of load costs on them, until the loads fit. The last one's price is the multiplier.
    """
    edges = []  # price, item, from, to
    for i, item in enumerate(items):
        hull = _hull(item)
        for here, to in zip(hull[:0:-1], hull[-2::-1], strict=True):
            spent = int(item.cost[to]) - int(item.cost[here])
            saved = int(item.load[here]) - int(item.load[to])
            edges.append((spent / saved, i, to, spent, saved))
    edges.sort(key=lambda edge: edge[0])  # stable: an item's edges stay in their order
    chosen = [len(item.load) - 1 for item in items]
    excess = sum(int(item.load[-1]) for item in items) - limit
    multiplier = (1, 0)
    for _, i, to, spent, saved in edges:
        if excess <= 0:
            break
        multiplier = (saved, spent)
        if excess <= saved:
            # The last step need not be on a hull: the cheapest that suffices, of any item.
            chosen = min(
                (
                    _with(chosen, j, items[j], excess)
                    for j in range(len(items))
                    if items[j].load[chosen[j]] - items[j].load[0] >= excess
                ),
                key=lambda option: option[0],
            )[1]
            break
        chosen[i] = to
        excess -= saved
    return chosen, multiplier


def _with(chosen: list[int], j: int, item: Choices, excess: int) -> tuple[int, list[int]]:
    """Let item j alone save the excess: at what cost, and the choice."""
    target = item.load[chosen[j]] - excess
    to = int(np.searchsorted(item.load, target, side="right")) - 1
    option = chosen.copy()
    option[j] = to
    return int(item.cost[to] - item.cost[chosen[j]]), option


def _hull(item: Choices) -> list[int]:
    """Indices of the lower convex hull of an item's choices, by rising load."""
    hull: list[int] = []
    points = list(zip(item.load.tolist(), item.cost.tolist(), strict=True))
    for k, (x, y) in enumerate(points):
        while len(hull) > 1:
            (x1, y1), (x2, y2) = points[hull[-2]], points[hull[-1]]
            if (x2 - x1) * (y - y1) > (y2 - y1) * (x - x1):
                break
            hull.pop()
        hull.append(k)
    return hull
