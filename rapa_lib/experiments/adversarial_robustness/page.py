"""The robustness experiment's page: its tables and figures put together."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rapa_lib.experiments.adversarial_robustness.answer import robustness_answer
from rapa_lib.experiments.adversarial_robustness.figures import (
    draws_figure,
    examples_figure,
    robustness_figure,
)
from rapa_lib.experiments.adversarial_robustness.frontier import (
    frontier,
    frontier_figure,
    judges,
    rivals,
)
from rapa_lib.experiments.adversarial_robustness.tables import (
    REFERENCE,
    at_focus,
    budget_text,
    differences_summary,
    in_order,
    noise_table,
    raised_alarms,
    robustness_summary,
    robustness_table,
    rows_by_image,
    strongest_by_seed,
    with_labels,
)
from rapa_lib.experiments.markdown import lines_if, markdown_table
from rapa_lib.experiments.protocol import Collected


def collect(records: Sequence[dict[str, Any]]) -> Collected:
    """See :meth:`rapa_lib.experiments.protocol.Experiment.collect`."""
    records = in_order(records)
    rows = rows_by_image(records)
    labelled = with_labels(rows)
    return Collected(
        tables={
            "adversarial_robustness": robustness_table(rows),
            "adversarial_robustness_strongest": strongest_by_seed(labelled),
            "adversarial_robustness_frontier": frontier(labelled),
        },
        figures={
            "adversarial_robustness": lambda: robustness_figure(labelled),
            "adversarial_robustness_frontier": lambda: frontier_figure(labelled),
            "adversarial_robustness_draws": lambda: draws_figure(labelled),
            "adversarial_robustness_examples": lambda: examples_figure(records),
        },
        answer=robustness_answer(labelled, records),
        body=[
            *_differences(labelled, records[0]["measurement"]["focus"]),
            *_summary(labelled, records[0]["measurement"]),
            *_rivals(labelled, records[0]["measurement"]["focus"]),
            *_judges(labelled),
            *_alarms(records),
            "Noise that fresh draws make on the outputs of each layer, relative to these:",
            "",
            *_noise(records),
            "![robust accuracy against ε](adversarial_robustness.png)",
            "",
            "![robust against clean accuracy](adversarial_robustness_frontier.png)",
            *lines_if(
                len(at_focus(labelled)) > 0,
                "![robust accuracy against the number of draws](adversarial_robustness_draws.png)",
            ),
            "",
            "![perturbed images and answers](adversarial_robustness_examples.png)",
        ],
    )


def _differences(rows: pd.DataFrame, focus: float) -> list[str]:
    table = differences_summary(rows, focus)
    if not len(table):
        return []
    return [
        f"Accuracy beyond that of `{REFERENCE}` at ε = {budget_text('linf', focus)} (L∞), on the "
        "same images and seeds, by the attack of each level that leaves least; points, with 95 % "
        "intervals over images and seeds:",
        "",
        markdown_table(table, disable_numparse=True),
        "",
    ]


def _summary(rows: pd.DataFrame, attacked: dict[str, Any]) -> list[str]:
    return [
        "Robust accuracy in percent, with 95 % intervals over images and seeds: the mean share of "
        f"{attacked['judge_draws']} fresh draws that classify the perturbed images correctly, "
        f"{attacked['images']} test images, by the attack that leaves least (in brackets; worst "
        "case: chosen image by image, on other draws than those that judge). Below: the median "
        "perturbation that misleads most draws, by seed.",
        "",
        f"Strength: {'; '.join(_strengths(attacked))}. Networks that draw nothing take one draw.",
        "",
        markdown_table(
            robustness_summary(rows).set_index("network").T, index=True, disable_numparse=True
        ),
        "",
    ]


def _strengths(attacked: dict[str, Any]) -> list[str]:
    """How strong the attacks of each level that was run are, in words; old records may not say."""
    levels = {
        "published": "*published* one gradient of one draw",
        "adaptive": "*adaptive* {steps} steps, gradients averaged over draws: {draws}, starts at "
        "one budget: {restarts}",
        "gradient_free": "*gradient_free* {queries:,} queries of Square",
        "standard": "*standard* APGD of {apgd_steps} steps and Square of {queries:,} queries, both "
        "averaged over draws: {apgd_draws}, starts: {apgd_restarts}, classes aimed at: {targets}",
    }
    found = []
    for name in attacked["levels"]:
        words = levels[name]
        try:
            found.append(words.format_map(attacked))
        except KeyError:
            found.append(f"*{name}* not recorded")
    return found


def _rivals(rows: pd.DataFrame, focus: float) -> list[str]:
    table = rivals(rows, focus)
    if not len(table):
        return []
    return [
        f"`random` against every other network at ε = {budget_text('linf', focus)} (L∞), points; "
        "only networks whose clean accuracies differ by less than 2 points can be compared "
        "(here on the attacked images, in the verdicts on all test images):",
        "",
        table.to_markdown(index=False, disable_numparse=True),
        "",
    ]


def _judges(rows: pd.DataFrame) -> list[str]:
    table = judges(rows)
    if not len(table):
        return []
    return [
        "Two judges, robust accuracy in percent by APGD: the averaged attack judged on fresh "
        "draws, and attack and judge under one and the same fixed draw. What the second keeps is "
        "due to a smoother function; what only the first keeps, to chance at test time:",
        "",
        table.to_markdown(index=False, disable_numparse=True),
        "",
    ]


def _alarms(records: Sequence[dict[str, Any]]) -> list[str]:
    alarms, _ = raised_alarms(records)
    listed = [f"- **Warning**, {alarm}" for alarm in alarms]
    return ["Checks that raised an alarm:", "", *listed, ""] if alarms else []


def _noise(records: Sequence[dict[str, Any]]) -> list[str]:
    noise = noise_table(records)
    lines = markdown_table(noise.round(2)) if len(noise) else "No network draws."
    return [lines, ""]
