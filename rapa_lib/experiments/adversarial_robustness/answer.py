"""What the tables of attacks answer: whether RAPA resists."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rapa_lib.experiments.adversarial_robustness.tables import (
    REFERENCE,
    Interval,
    against_noise,
    budget_text,
    clean_accuracy,
    decisive_level,
    differences,
    interval_of,
    level_text,
    name_text,
    percent_text,
    points_text,
    raised_alarms,
    row_dicts,
    strongest_at,
    with_labels,
)
from rapa_lib.experiments.plots import label_order


def robustness_answer(rows: pd.DataFrame, records: Sequence[dict[str, Any]]) -> list[str]:
    """Whether RAPA resists attacks, in at most three lines of Markdown.

    Args:
        rows: of :func:`rows_by_image`.
        records: what it was made of.
    """
    rows, focus = with_labels(rows), records[0]["measurement"]["focus"]
    gaps = {
        label: gap
        for label, gap in differences(rows, focus).items()
        if label.split("\n")[0] == "random"
    }
    level = decisive_level(rows)
    lines = _against_reference(gaps, focus, level) if gaps else [_levels(rows, focus)]
    noise = against_noise(rows)
    if noise:
        steps = "; ".join(
            f"ε = {budget_text('linf', e)} {points_text(g)}" for e, g in noise.items()
        )
        words = f"Against `noisy`, `random` keeps under {_LEVELS[level]} (points): {steps}."
        lines[1:] = [" ".join([*lines[1:], words])]
    alarms, made = raised_alarms(records)
    raised = f"{len(alarms)} of {made}" if alarms else f"None of {made}"
    return [*lines, f"{raised} checks for gradients that mislead raised an alarm."]


_LEVELS = {"adaptive": "adaptive attacks", "standard": "the standard suite"}


def _against_reference(gaps: dict[str, dict[str, Interval]], focus: float, level: str) -> list[str]:
    """What networks keep more than the ordinary one: at the decisive level, and the published."""
    place = f"ε = {budget_text('linf', focus)} (L∞)"
    first, second = [], []
    for label, gap in gaps.items():
        name = f"`{name_text(label)}`"
        if level in gap:
            first.append(f"{name} {_verdict(gap[level])}")
        if "published" in gap:
            words = f"{name} {_verdict(gap['published'])}"
            if level in gap and gap["published"][1] > 0:
                share = 100 * gap[level][0] / gap["published"][0]
                kept = f"of which {share:.0f} % is left" if share <= 100 else "and more"
                words += f", {kept} under {_LEVELS[level]}"
            second.append(words)
    clean = "; ".join(
        f"`{name_text(label)}` {points_text(gap['clean'])} points"
        for label, gap in gaps.items()
        if "clean" in gap
    )
    lines = []
    if first:
        lines.append(f"**Under {_LEVELS[level]} with {place}, {'; '.join(first)}.**")
    if second:
        lines.append(f"Under published attacks, {'; '.join(second)}.")
    if clean:
        lines[-1:] = [" ".join([*lines[-1:], f"On clean images: {clean}."])]
    return lines


def _verdict(gap: Interval) -> str:
    """A difference from the ordinary network in words."""
    _, low, high = gap
    if low > 0:
        return f"keeps {points_text(gap)} points more than `{REFERENCE}`"
    if high < 0:
        return f"keeps less than `{REFERENCE}`: {points_text(gap)} points"
    return f"cannot be told from `{REFERENCE}`: {points_text(gap)} points"


def _levels(rows: pd.DataFrame, focus: float) -> str:
    """What every network keeps at the focus, where there is no ordinary one to compare with."""
    here, parts = strongest_at(rows, focus), []
    for label in label_order(here):
        left = ", ".join(
            f"{level_text(part['level'])} {percent_text(interval_of(part))} % ({part['attack']})"
            for part in row_dicts(here[here["label"] == label])
        )
        clean = percent_text(clean_accuracy(rows, label))
        parts.append(f"`{name_text(label)}`: clean {clean} %; {left}")
    place = f"ε = {budget_text('linf', focus)} (L∞)"
    return f"{'. '.join(parts)}. Accuracy by the attack of each level that leaves least, {place}."
