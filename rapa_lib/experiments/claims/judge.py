"""Verdicts: one primary endpoint decides each claim, by corrected one-sided tests."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from rapa_lib.experiments.claims.endpoints import (
    AmbiguousError,
    Measured,
    alike,
    measure,
    select,
)
from rapa_lib.experiments.claims.evidence import Evidence, combined, weigh
from rapa_lib.experiments.claims.rules import Arm, Claim, Endpoint, Gate, Rules
from rapa_lib.experiments.claims.tables import Prepared
from rapa_lib.experiments.claims.words import needed_seeds, reason_of
from rapa_lib.instruments.statistics import false_discovery, holm

VERDICTS = (
    "holds", "equivalent", "does not hold", "undecided", "not testable here", "not measured",
)  # fmt: skip
QUESTION = {"equivalent": "p_equal", "does not hold": "p_refuted"}
"""Which p a verdict rests on; all others are about whether the claim holds."""

COLUMNS = (
    "id", "claim", "role", "endpoint", "against", "setting", "rule", "sesoi", "unit", "estimate",
    "low", "high", "seeds", "method", "p", "p_corrected", "p_sign_flip", "verdict", "reason",
    "figure",
)  # fmt: skip
PRIMARY, SECONDARY = "primary", "secondary"


def judge_claims(rules: Rules, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Judge every claim by a study's tables.

    Args:
        rules: of :func:`read_claims`.
        tables: a study's collected tables by name; those it did not make are missing.

    Returns:
        First of each claim the row of its primary endpoint in its primary setting, whose verdict is
        the claim's; then a row per other setting, rival and secondary endpoint. Columns: ``id``,
        ``claim``, ``role`` (primary or secondary), ``endpoint``, ``against`` (one rival of several,
        or which of them is the hardest to beat), ``setting``, ``rule``, ``sesoi``, ``unit``,
        ``estimate``, ``low``, ``high`` (two-sided 95 % interval), ``seeds`` (per arm), ``method``,
        ``p`` (one-sided, of what the verdict says; undecided: of "it holds"), ``p_corrected`` (Holm
        over primary endpoints, Benjamini–Hochberg over the others), ``p_sign_flip`` (of "it
        holds"), ``verdict``, ``reason`` (and what would change it), ``figure``.
    """
    needed = {e.table for c in rules.claims for e in (c.primary, *c.secondary)}
    needed |= {gate.table for gate in rules.gates.values()}
    ready = {name: Prepared(tables[name]) for name in sorted(needed & set(tables))}
    rows: list[dict[str, Any]] = []
    for claim in rules.claims:
        rows += _endpoint_rows(rules, claim, claim.primary, PRIMARY, ready)
        for endpoint in claim.secondary:
            rows += _endpoint_rows(rules, claim, endpoint, SECONDARY, ready)
    for role, correct in ((PRIMARY, holm), (SECONDARY, false_discovery)):
        _decide_family([row for row in rows if row["role"] == role], correct, rules.level)
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def _decide_family(
    rows: list[dict[str, Any]], correct: Callable[[list[float]], np.ndarray], level: float
) -> None:
    """Fill in the verdicts that tests decide, corrected together, and the reasons of all."""
    tested = [row for row in rows if not row["verdict"]]
    corrected = {
        name: correct([getattr(row["evidence"], name) for row in tested])
        for name in ("p_equal", "p_holds", "p_refuted")
    }
    found = decide(**corrected, level=level)
    for i, row in enumerate(tested):
        row["verdict"] = str(found[i])
        question = QUESTION.get(row["verdict"], "p_holds")
        row["p"] = getattr(row["evidence"], question)
        row["p_corrected"] = corrected[question][i]
    for row in rows:
        row["reason"] = reason_of(row, needed_seeds(row, level / max(1, len(tested))))


def decide(
    p_equal: np.ndarray, p_holds: np.ndarray, p_refuted: np.ndarray, level: float
) -> np.ndarray:
    """Verdicts of corrected p values, the first that applies: NaN is a question not asked.

    Equivalent comes first: an effect that is shown to be smaller than the smallest effect of
    interest is of no interest, even where it is shown to be there. Every equivalent effect also
    excludes one of interest, so "does not hold" comes last.
    """
    return np.select(
        [p_equal < level, p_holds < level, p_refuted < level],
        ["equivalent", "holds", "does not hold"],
        "undecided",
    )


def verdicts(judged: pd.DataFrame) -> pd.DataFrame:
    """Of :func:`judge_claims`, the rows that decide: one per claim."""
    return judged[judged["role"] == PRIMARY].reset_index(drop=True)


def _endpoint_rows(
    rules: Rules, claim: Claim, endpoint: Endpoint, role: str, tables: Mapping[str, Prepared]
) -> list[dict[str, Any]]:
    common = {
        "id": claim.id, "claim": claim.claim, "role": role, "endpoint": endpoint.endpoint,
        "rule": endpoint.rule, "sesoi": endpoint.sesoi or math.nan, "unit": endpoint.unit,
        "figure": endpoint.figure, "against": "", "setting": "", "method": "", "seeds": "",
        "expects": endpoint.expects, "within": endpoint.within,
    }  # fmt: skip
    nothing = {"evidence": Evidence(), "verdict": "not measured"}
    try:
        found, why = measure(endpoint, tables, rules.prefer)
    except AmbiguousError as error:  # the report has other endpoints to show
        return [common | nothing | {"verdict": "undecided", "problem": f"the tables: {error}"}]
    if not found:
        return [common | nothing | {"problem": why}]
    rows = []
    for i, measured in enumerate(found):
        each = weigh(endpoint, measured, rules.min_seeds, pair_subsets=rules.pair_subsets)
        whole = combined(endpoint, measured, each) if len(endpoint.minus) > 1 else each[0]
        gate = _closed_gate(rules, endpoint, measured, tables)
        here = common | {"setting": measured.setting, "gate": gate}
        first = role if i == 0 else SECONDARY
        missing = ", ".join(measured.missing) if len(endpoint.minus) > 1 else ""
        against = f"hardest: {whole.rival}" if len(each) > 1 else ""
        rows.append(_row(here | {"role": first, "missing": missing, "against": against}, whole))
        if len(each) > 1 and i == 0:
            rows += [_row(here | {"role": SECONDARY, "against": e.rival}, e) for e in each]
    return rows


def _row(common: Mapping[str, Any], one: Evidence) -> dict[str, Any]:
    """A row, its verdict left open where tests decide it."""
    verdict = "not testable here" if common["gate"] else "undecided" if one.problem else ""
    if one.method == "exact":
        verdict = verdict or ("holds" if one.p_holds == 0 else "does not hold")
    seeds = sorted({min(one.seeds), max(one.seeds)}) if one.seeds else []
    return {
        **common,
        "estimate": one.estimate,
        "low": one.low,
        "high": one.high,
        "seeds": "–".join(map(str, seeds)),
        "method": one.method,
        "p": math.nan if one.method == "exact" else one.p_holds,
        "p_sign_flip": one.p_sign_flip,
        "problem": one.problem,
        "verdict": verdict,
        "evidence": one,
    }  # fmt: skip


def _closed_gate(
    rules: Rules, endpoint: Endpoint, measured: Measured, tables: Mapping[str, Prepared]
) -> str:
    """Why an endpoint cannot be tested in a setting, in words; empty where it can."""
    for name in endpoint.gates:
        gate = rules.gates[name]
        number = _gate_number(gate, endpoint, measured, tables)
        if number is None:
            return f"needed: {gate.says}; this study has no numbers to show it"
        if not gate.passed(number):
            unit = f" {gate.unit}" if gate.unit else ""
            return f"needed: {gate.says}; here {shown_beside(gate, number)}{unit}"
    return ""


def shown_beside(gate: Gate, number: float) -> str:
    """A number that does not pass a gate, with so many digits that one sees it."""
    shown = (f"{number:.{digits}f}" for digits in range(1, 9))
    return next((text for text in shown if not gate.passed(float(text))), str(number))


def _gate_number(
    gate: Gate, endpoint: Endpoint, measured: Measured, tables: Mapping[str, Prepared]
) -> float | None:
    if gate.table not in tables:
        return None
    table = tables[gate.table]
    if not gate.compared:
        return _gate_mean(table, gate.of, measured.key)
    arms = [endpoint.of, *(one for one in endpoint.minus if one.name in measured.minus)]
    means: list[float] = []
    for arm in arms:
        where = dict(gate.of.where) | {"tiling": arm.where["tiling"]}
        own = Arm(gate.of.value, where, name=arm.name)
        mean = _gate_mean(table, own, measured.key)
        if mean is None:
            return None
        means.append(mean)
    return max(abs(mean - means[0]) for mean in means)


def _gate_mean(table: Prepared, arm: Arm, key: Mapping[str, str]) -> float | None:
    """Mean over an arm's rows in a setting, as far as the gate's table tells settings apart."""
    rows = alike(table, select(table, arm), arm, table.settings, key)
    if len(rows) == 0:
        return None
    values = table.numbers(arm.value)[rows]
    if arm.less is not None:
        values = values - table.numbers(arm.less.value)[rows]
    return float(values.mean())
