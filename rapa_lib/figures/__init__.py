"""Figures and summary tables, each drawn from the records given to it and nothing else."""

from rapa_lib.figures._style import STYLE, configuration_labels, save_figure, tiling_order
from rapa_lib.figures.acceleration import (
    acceleration_summary,
    layer_time_figure,
    pareto_figure,
    proportional_up_to,
    speedup_figure,
    tradeoff_figure,
    tradeoff_summary,
)
from rapa_lib.figures.accuracy import (
    MEASURES,
    accuracy_figure,
    accuracy_summary,
    assignment_figure,
    curves_figure,
)
from rapa_lib.figures.faults import fault_figure, fault_summary, repair_summary
from rapa_lib.figures.similarity import (
    contrast,
    filters_figure,
    penalty_answer,
    penalty_figure,
    similarity_answer,
    similarity_figure,
    similarity_summary,
    tiles_figure,
)

__all__ = [
    "MEASURES",
    "STYLE",
    "acceleration_summary",
    "accuracy_figure",
    "accuracy_summary",
    "assignment_figure",
    "configuration_labels",
    "contrast",
    "curves_figure",
    "fault_figure",
    "fault_summary",
    "filters_figure",
    "layer_time_figure",
    "pareto_figure",
    "penalty_answer",
    "penalty_figure",
    "proportional_up_to",
    "repair_summary",
    "save_figure",
    "similarity_answer",
    "similarity_figure",
    "similarity_summary",
    "speedup_figure",
    "tiles_figure",
    "tiling_order",
    "tradeoff_figure",
    "tradeoff_summary",
]
