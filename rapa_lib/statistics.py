"""Intervals over seeds."""

import math
from collections.abc import Sequence

import numpy as np

from rapa_lib._checks import check_real


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and its confidence interval by Student's t over independent runs.

    Args:
        values: one number a run.
        confidence: coverage of the interval, between 0 and 1.

    Returns:
        (mean, low, high); low and high are NaN for a single run, which has no interval.

    Raises:
        ValueError: if there is no value, or confidence is outside (0, 1).
    """
    if check_real("confidence", confidence, low=0, high=1, open_low=True) == 1:
        raise ValueError("confidence: got 1, allowed: above 0 and below 1")
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("values: got none, expected one number a run")
    from scipy import stats  # takes a second to import

    mean = float(values.mean())
    if values.size == 1:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + confidence) / 2, values.size - 1) * stats.sem(values))
    return mean, mean - half, mean + half
