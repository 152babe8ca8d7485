"""Statistics of runs: intervals, contrasts of arms with their tests, corrections for many tests."""

from rapa_lib.instruments.statistics.contrasts import (
    EQUALITY_LEVEL,
    Contrast,
    contrast,
    equal_variances_p,
    sign_flip_p,
)
from rapa_lib.instruments.statistics.corrections import false_discovery, holm
from rapa_lib.instruments.statistics.crossed import crossed_contrast, crossed_interval
from rapa_lib.instruments.statistics.intervals import mean_interval, share_interval

__all__ = [
    "EQUALITY_LEVEL",
    "Contrast",
    "contrast",
    "crossed_contrast",
    "crossed_interval",
    "equal_variances_p",
    "false_discovery",
    "holm",
    "mean_interval",
    "share_interval",
    "sign_flip_p",
]
