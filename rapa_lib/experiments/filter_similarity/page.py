"""The filter-similarity experiment's page: its tables and figures put together."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rapa_lib.experiments.filter_similarity.figures import (
    filters_figure,
    penalty_figure,
    similarity_figure,
    tiles_figure,
)
from rapa_lib.experiments.filter_similarity.pull_figures import pull_figure, scales_figure
from rapa_lib.experiments.filter_similarity.pull_tables import (
    pull_answer,
    pull_summary,
    pull_table,
    scales_table,
)
from rapa_lib.experiments.filter_similarity.tables import (
    NO_THEOREM,
    SETTING,
    contrast_summary,
    most_common,
    penalty_answer,
    penalty_summary,
    penalty_table,
    setting_text,
    similarity_answer,
    similarity_summary,
    similarity_table,
    tuned,
    with_expectation,
)
from rapa_lib.experiments.markdown import markdown_table, set_aside
from rapa_lib.experiments.plots import tiling_order
from rapa_lib.experiments.protocol import Collected

PICTURES = [
    "![similarity over training](filter_similarity.png)",
    "",
    "![similarity against the number of tiles](filter_similarity_tiles.png)",
    "",
    "![pull, weight decay and noise over training](filter_similarity_pull.png)",
    "",
    "![loss along the deviations](filter_similarity_scales.png)",
    "",
    "![predicted against measured penalty](filter_similarity_penalty.png)",
    "",
    "![filters of the first layer](filter_similarity_filters.png)",
]


def collect(records: Sequence[dict[str, Any]]) -> Collected:
    """See :meth:`rapa_lib.experiments.protocol.Experiment.collect`."""
    table, penalties = similarity_table(records), penalty_table(records)
    main = most_common(table)
    filters = filters_shown(records, main)
    cosines = [cosine for record in records for cosine in record["pulls"].values()]
    pulls, scales = pull_table(records), scales_table(records)
    return Collected(
        tables={
            "filter_similarity": table,
            "filter_similarity_penalty": penalties,
            "filter_similarity_pull": pulls,
            "filter_similarity_scales": scales,
        },
        figures={
            "filter_similarity": lambda: similarity_figure(main),
            "filter_similarity_tiles": lambda: tiles_figure(with_expectation(table)),
            "filter_similarity_pull": lambda: pull_figure(most_common(pulls)),
            "filter_similarity_scales": lambda: scales_figure(most_common(scales)),
            "filter_similarity_penalty": lambda: penalty_figure(penalties),
            "filter_similarity_filters": lambda: filters_figure(filters),
        },
        answer=[
            *similarity_answer(table),
            f"**C2a**: {pull_answer(pulls)} {penalty_answer(penalties, cosines)}",
        ],
        body=[
            *_similarities(table),
            *_contrasts(table),
            *_pulls(pulls),
            *_penalties(penalties),
            *PICTURES,
        ],
    )


def filters_shown(
    records: Sequence[dict[str, Any]], main: pd.DataFrame
) -> dict[tuple[str, str], list]:
    """The filters of one network of every start and tiling among the runs of a table, in order."""
    runs, order = set(main["run"]), tiling_order(main["tiling"])
    found: dict[tuple[str, str], list] = {}
    for record in records:
        if record["run"] in runs:
            place = setting_text("tile_init", record["tile_init"]), record["tiling"]
            found.setdefault(place, record["filters"])
    return dict(sorted(found.items(), key=lambda one: (order.index(one[0][1]), one[0][0])))


def _similarities(table: pd.DataFrame) -> list[str]:
    finals = similarity_summary(table)
    finals = finals.drop(columns=[] if finals["varied"].any() else "varied")
    differing, common = set_aside(finals, SETTING)
    rates = ", ".join(tuned(table))
    return [
        _markdown(differing),
        "",
        common + (f" Tuned for each arm: {rates}." if rates else ""),
        "",
        "Similarity of the tiles of each layer at the end of training: means over seeds, ± half a "
        "95 % interval by Student's t where there is more than one. Between tiles: mean cosine of "
        "the same filter on different tiles, and its rise in training; within a tile: of different "
        "filters; variance ratio: between tiles over total; CKA and matched: measures that need no "
        "order of filters, beside their values for independent Gaussian kernels.",
        "",
    ]


def _contrasts(table: pd.DataFrame) -> list[str]:
    differences = contrast_summary(table)
    if differences.empty:
        return []
    return [
        _markdown(differences),
        "",
        "Differences of the mean cosine between tiles at the end of training, paired by seed; "
        "undecided: the 95 % t-interval holds 0, or there is none.",
        "",
    ]


def _pulls(pulls: pd.DataFrame) -> list[str]:
    found = pull_summary(pulls)
    if found.empty:
        return []
    return [
        _markdown(set_aside(found, SETTING)[0]),
        "",
        "The pull P on the tiles at the end of training, in thousandths of a nat: the slope of the "
        "expected training loss as the deviations δ of a layer's tiles grow, with batch "
        "statistics; above zero, descent draws the tiles together. Weight decay: its part of that "
        "slope. Noise's push: what gradient noise holds against kernels' pull and decay at the "
        "rate of the moment, which ends near zero. Means over seeds, ± half a 95 % interval by "
        "Student's t where there is more than one. The sign of P alone is no evidence for random "
        "assignment; P above that of fixed assignments is.",
        "",
    ]


def _penalties(penalties: pd.DataFrame) -> list[str]:
    agreement = penalty_summary(penalties)
    if agreement.empty:
        return [] if penalties.empty else [NO_THEOREM, ""]
    return [
        _markdown(agreement),
        "",
        "The penalty of random assignment, measured and predicted (R), as the deviations of the "
        "tiles from their mean are scaled: the ratio's median and extremes over networks and "
        "layers; how many agree within 10 % or two standard errors; how many are measured below "
        "zero by more than two standard errors. Only networks for which R is a theorem count: "
        "smooth ones without batch normalisation. In its Gauss–Newton form R is never below zero, "
        "so its gradient points away from the mean.",
        "",
    ]


def _markdown(table: pd.DataFrame) -> str:
    return markdown_table(table, disable_numparse=True)
