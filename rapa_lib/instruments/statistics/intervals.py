"""Intervals of one sample: a mean over seeds, a share of images."""

import math

import numpy as np
from numpy.typing import ArrayLike

from rapa_lib._checks import check_real, optional


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and its confidence interval by Student's t over independent runs.

    Args:
        values: one number per run.
        confidence: coverage of the interval, between 0 and 1.

    Returns:
        (mean, low, high); low and high are NaN for a single run, which has no interval.

    Raises:
        ValueError: if there is no value, or confidence is outside (0, 1).
    """
    confidence = check_confidence(confidence)
    sample = np.asarray(values, dtype=float)
    if sample.size == 0:
        raise ValueError("values: got none, expected one number per run")
    stats = optional("scipy.stats", "figures")  # takes a second to import

    mean = float(sample.mean())
    if sample.size == 1:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + confidence) / 2, sample.size - 1) * stats.sem(sample))
    return mean, mean - half, mean + half


def share_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's confidence interval of a mean of values in [0, 1].

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22, 209 (1927). It is of a binomial share; values
    between 0 and 1 vary less, so it is then too wide rather than too narrow.

    Args:
        values: one number in [0, 1] per image.
        confidence: coverage of the interval, between 0 and 1.

    Returns:
        (low, high).

    Raises:
        ValueError: if there is no value, or one outside [0, 1], or confidence is outside (0, 1).
    """
    confidence = check_confidence(confidence)
    sample = np.asarray(values, dtype=float)
    if sample.size == 0 or not ((sample >= 0) & (sample <= 1)).all():
        raise ValueError(f"values: got {sample}, expected numbers from 0 to 1")
    stats = optional("scipy.stats", "figures")

    z2 = stats.norm.ppf((1 + confidence) / 2) ** 2
    n, mean = sample.size, sample.mean()
    centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (mean * (1 - mean) + z2 / (4 * n)) / n) / (1 + z2 / n)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def check_confidence(confidence: float) -> float:
    if check_real("confidence", confidence, low=0, high=1, open_low=True) == 1:
        raise ValueError("confidence: got 1, allowed: above 0 and below 1")
    return float(confidence)
