"""Why a verdict is what it is, and what would change it, in plain words."""

import math
from collections.abc import Mapping
from typing import Any

POWER = 0.8
MOST_SEEDS = 200


def needed_seeds(row: Mapping[str, Any], level: float) -> int | None:
    """Seeds per arm at which the estimate, if it stays, would decide; None where it cannot say.

    The margin between the estimate and the nearest bound that a test asks about is to be so many
    standard errors that the test decides with :data:`POWER`; errors shrink with the root of seeds.

    Args:
        row: of :func:`rapa_lib.experiments.claims.judge_claims`, with its evidence.
        level: one-sided, of one test.
    """
    one = row["evidence"]
    if not (one.error > 0 and one.seeds):
        return None
    from scipy import stats

    reached = stats.norm.isf(level) + stats.norm.ppf(POWER)
    margin = _margin(row, one.estimate)
    seeds = math.ceil(min(one.seeds) * (reached * one.error / margin) ** 2) if margin > 0 else None
    return None if seeds is None or seeds > MOST_SEEDS else max(seeds, min(one.seeds) + 1)


def reason_of(row: Mapping[str, Any], seeds: int | None) -> str:
    """What a verdict rests on, and what would change it."""
    verdict, unit = row["verdict"], f" {row['unit']}" if row["unit"] else ""
    effect = f"{row['sesoi']:g}{unit}"
    two_sided = row["expects"] in ("less", "greater")
    if verdict == "not measured":
        return f"Not run in this study: {row['problem']}."
    if verdict == "not testable here":
        return f"{row['gate'][0].upper()}{row['gate'][1:]}."
    if verdict == "equivalent":
        return f"A difference beyond ±{effect} in fresh seeds would change it."
    if row["expects"] == "at_least":
        return "Exact: other hardware, bandwidth or networks would change it."
    if verdict == "holds" and row["expects"] == "alike":
        return "A factor outside the bounds in fresh seeds would change it."
    if verdict == "holds":
        return f"Fresh seeds whose difference reaches {0 if two_sided else effect} would change it."
    if verdict == "does not hold":
        if two_sided:
            return (
                f"An effect of {effect} in the claimed direction is excluded; "
                "a setting that shows one would change it."
            )
        return "A setting in which the number keeps to the rule would change it."
    return _undecided(row, seeds)


def _undecided(row: Mapping[str, Any], seeds: int | None) -> str:
    if row["problem"]:
        return f"{row['problem'][0].upper()}{row['problem'][1:]}."
    if row.get("missing"):
        return f"It cannot hold before it is compared with: {row['missing']}."
    if seeds is None:
        return "The difference lies near a bound: more seeds alone would hardly decide it."
    return f"About {seeds} seeds per arm would decide it, if the difference stays."


def _margin(row: Mapping[str, Any], estimate: float) -> float:
    """How far an estimate is inside the most favourable region that a test asks about."""
    if row["expects"] == "alike":
        low, high = row["within"]
        return abs(min(estimate - low, high - estimate))
    sesoi = row["sesoi"]
    if row["expects"] == "no_more":
        return abs(estimate - sesoi)
    claimed = estimate if row["expects"] == "greater" else -estimate
    return max(claimed, sesoi - claimed, sesoi - abs(claimed))
