"""What a setting's samples say of an endpoint: estimate, interval and one-sided tests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rapa_lib.experiments.claims.endpoints import Measured, Sample
from rapa_lib.experiments.claims.rules import Endpoint
from rapa_lib.instruments.statistics import Contrast, contrast, crossed_contrast, sign_flip_p

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Evidence:
    """One contrast: an endpoint against one rival, or alone.

    Args:
        rival: its name, if there is one.
        estimate, low, high: the difference and its two-sided 95 % interval.
        error: standard error.
        seeds: of each arm.
        method: how the interval was made.
        p_holds, p_equal, p_refuted: one-sided p of what would have to be so for the claim to hold,
            for the arms to be equivalent, and for the claim to be refuted; NaN where there is none.
        p_sign_flip: exact p beside ``p_holds``, by sign flips of differences of like seeds.
        problem: why nothing can be decided, in words; empty where it can.
    """

    rival: str = ""
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    error: float = math.nan
    seeds: tuple[int, ...] = ()
    method: str = ""
    p_holds: float = math.nan
    p_equal: float = math.nan
    p_refuted: float = math.nan
    p_sign_flip: float = math.nan
    problem: str = ""


def p_values(
    endpoint: Endpoint, found: Contrast
) -> tuple[np.ndarray | float, np.ndarray | float, np.ndarray | float]:
    """The three questions of an endpoint: whether it holds, is equivalent, is refuted.

    ======== ===================== ============================= ==================================
    expects  holds                 equivalent                    refuted
    ======== ===================== ============================= ==================================
    greater  above 0               within ±sesoi                 below sesoi
    less     below 0               within ±sesoi                 above −sesoi
    no_more  below sesoi           (it holds)                    above sesoi
    alike    within the bounds     (it holds)                    outside: least of both sides × 2
    ======== ===================== ============================= ==================================
    """
    if endpoint.expects == "alike":
        low, high = endpoint.within
        outside = np.minimum(found.p_below(low), found.p_above(high))
        return found.p_within(low, high), math.nan, np.minimum(1.0, 2 * outside)
    sesoi = endpoint.sesoi or math.nan  # rules of these kinds have one
    if endpoint.expects == "no_more":
        return found.p_below(sesoi), math.nan, found.p_above(sesoi)
    equal = found.p_within(-sesoi, sesoi)
    if endpoint.expects == "less":
        return found.p_below(0), equal, found.p_above(-sesoi)
    return found.p_above(0), equal, found.p_below(sesoi)


def weigh(
    endpoint: Endpoint, measured: Measured, min_seeds: int, *, pair_subsets: bool = False
) -> list[Evidence]:
    """The evidence of a setting, one entry per rival that was run; one without rivals.

    Args:
        endpoint, measured: the question, and the arms' numbers.
        min_seeds, pair_subsets: see :class:`Rules`.
    """
    if measured.exact is not None:
        holds = endpoint.bound is not None and measured.exact >= endpoint.bound
        exact = Evidence(estimate=measured.exact, low=measured.exact, high=measured.exact)
        return [replace(exact, method="exact", p_holds=float(not holds), p_refuted=float(holds))]
    if not endpoint.minus:
        return [_one(endpoint, "", [measured.of], (1,), min_seeds, False)]
    found = []
    for name, rival in measured.minus.items():
        arms = [measured.of, rival, *measured.beyond]
        paired = bool(endpoint.paired) or (pair_subsets and all(arm.own_images for arm in arms))
        found.append(_one(endpoint, name, arms, (1, -1, -1, 1)[: len(arms)], min_seeds, paired))
    return found


def combined(endpoint: Endpoint, measured: Measured, each: Sequence[Evidence]) -> Evidence:
    """The evidence against all rivals: the claim must hold against each (intersection–union).

    It holds by the largest p; it is equivalent by the largest p; it is refuted by the smallest p ×
    the number of rivals. The numbers shown are those against the rival that is hardest to beat. A
    rival that was not run can still refute nothing, so the claim cannot hold without it.
    """
    problems = [one.problem for one in each if one.problem]
    if problems:
        worst = max(each, key=lambda one: _against(endpoint, one))
        return replace(worst, problem=problems[0])
    worst = max(each, key=lambda one: (min(one.p_holds, 0.5), _against(endpoint, one)))
    refuted = min(1.0, len(each) * min(one.p_refuted for one in each))
    equal = max(one.p_equal for one in each)
    missing = [name for name in measured.missing if endpoint.minus]
    if missing:
        return replace(worst, p_holds=1.0, p_equal=1.0, p_refuted=refuted)
    return replace(worst, p_equal=equal, p_refuted=refuted)


def _against(endpoint: Endpoint, one: Evidence) -> float:
    return -one.estimate if endpoint.expects == "greater" else one.estimate


def _one(
    endpoint: Endpoint,
    rival: str,
    arms: list[Sample],
    weights: Sequence[int],
    min_seeds: int,
    paired: bool,
) -> Evidence:
    across = {arm.across for arm in arms}
    crossed = len(across) == 1 and across != {()}
    if not crossed:
        arms = [_by_seed(arm) for arm in arms]
    if paired:
        arms = _paired(arms)
    counts = tuple(len(arm.seeds) for arm in arms)
    means = [float(arm.values.mean()) if len(arm.seeds) else math.nan for arm in arms]
    estimate = float(np.dot(weights, means))
    known = Evidence(rival=rival, estimate=estimate, seeds=counts)
    few = min(counts) < min_seeds
    if few:
        known = replace(known, problem=f"{min(counts)} of at least {min_seeds} seeds per arm")
    if min(counts) < 2:
        return known
    values = [arm.values for arm in arms]
    if crossed:
        found = crossed_contrast(values, weights)
    else:
        found = contrast(values, weights, paired=paired)
    if not found.error > 1e-12 * max(1.0, *map(abs, means)):
        return replace(known, problem="the seeds do not differ: no spread to judge by")
    low, high = found.interval(CONFIDENCE)
    holds, equal, refuted = map(float, p_values(endpoint, found))
    known = replace(
        known, low=float(low), high=float(high), error=float(found.error), method=str(found.method)
    )
    if few:
        return known
    flip = math.nan if crossed else _sign_flip(endpoint, arms, weights)
    return replace(known, p_holds=holds, p_equal=equal, p_refuted=refuted, p_sign_flip=flip)


def _by_seed(arm: Sample) -> Sample:
    return Sample(arm.values.mean(1), arm.seeds) if arm.across else arm


def _paired(arms: list[Sample]) -> list[Sample]:
    """The arms at the seeds that all have, in one order."""
    both = [seed for seed in arms[0].seeds if all(seed in arm.seeds for arm in arms)]
    return [
        Sample(arm.values[[arm.seeds.index(seed) for seed in both]], tuple(both), arm.across)
        for arm in arms
    ]


def _sign_flip(endpoint: Endpoint, arms: list[Sample], weights: Sequence[int]) -> float:
    """Exact p of the question that ``p_holds`` answers, where arms share seeds."""
    if endpoint.expects == "alike":
        return math.nan
    shared = _paired(arms)
    each = sum(weight * arm.values for weight, arm in zip(weights, shared, strict=True))
    bound = endpoint.sesoi if endpoint.expects == "no_more" else None
    return sign_flip_p(each - (bound or 0.0), above=endpoint.expects == "greater")
