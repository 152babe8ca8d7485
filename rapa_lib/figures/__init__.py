"""Figures and summary tables, each drawn from the records given to it and nothing else."""

from rapa_lib.figures._style import STYLE, configuration_labels, save_figure, tiling_order
from rapa_lib.figures.accuracy import (
    MEASURES,
    accuracy_figure,
    accuracy_summary,
    assignment_figure,
    curves_figure,
)
from rapa_lib.figures.faults import fault_figure

__all__ = [
    "MEASURES",
    "STYLE",
    "accuracy_figure",
    "accuracy_summary",
    "assignment_figure",
    "configuration_labels",
    "curves_figure",
    "fault_figure",
    "save_figure",
    "tiling_order",
]
