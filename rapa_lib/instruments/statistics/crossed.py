"""Intervals over two random factors at once: seeds and images, or seeds and training subsets."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rapa_lib._checks import optional
from rapa_lib.instruments.statistics.contrasts import Contrast, check_samples
from rapa_lib.instruments.statistics.intervals import check_confidence, mean_interval


def crossed_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds and images, with an interval for other seeds and other images.

    Every seed's network answers to the same images. Seeds and images are random factors of a
    crossed design without repetition, Var(mean) = (MS_seeds + MS_images − MS_rest) / (seeds ·
    images), with Satterthwaite's degrees of freedom (F. E. Satterthwaite, Biometrics 2, 110, 1946).

    Args:
        values: (seeds, images), differences perhaps.
        confidence: coverage of the interval, between 0 and 1.

    Returns:
        (mean, low, high); with one seed the interval is for other images alone, and with one image
        low and high are NaN.

    Raises:
        ValueError: if the values are no table, or confidence is outside (0, 1).
    """
    confidence = check_confidence(confidence)
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"values: got shape {table.shape}, expected (seeds, images)")
    mean = float(table.mean())
    n_seeds, n_images = table.shape
    if n_images == 1 or n_seeds == 1:
        return mean_interval(table.ravel(), confidence)
    stats = optional("scipy.stats", "figures")

    by_seed, by_image = table.mean(1), table.mean(0)
    rest = table - by_seed[:, None] - by_image + mean
    freedoms = np.array([n_seeds - 1, n_images - 1, (n_seeds - 1) * (n_images - 1)])
    squares = np.array(
        [
            n_images * by_seed.var(ddof=1),
            n_seeds * by_image.var(ddof=1),
            (rest**2).sum() / freedoms[2],
        ]
    )
    if squares[0] > squares[2]:
        variance = squares @ (1, 1, -1)
        freedom = max(1.0, variance**2 / float((squares**2 / freedoms).sum()))
    else:  # seeds differ by no more than chance: what is left is the images
        variance, freedom = squares[1], n_images - 1
    half = float(stats.t.ppf((1 + confidence) / 2, freedom) * math.sqrt(variance / table.size))
    return mean, mean - half, mean + half


def crossed_contrast(samples: Sequence[ArrayLike], weights: Sequence[float]) -> Contrast:
    """Weighted sum of arms' means over their own seeds and over images that all arms share.

    Seeds of different arms are independent; images (or training subsets) are the same for all, so
    the arms are compared image by image. Var = Σ_a w_a² MS_seeds,a / (n_a m) + Var_images −
    Σ_a w_a² MS_rest,a / (n_a m), where Var_images is the variance of the contrast's image means
    ÷ m, for a crossed design without repetition; Satterthwaite's degrees of freedom, as in
    :func:`crossed_interval`.

    Args:
        samples: an arm each, (seeds, images); the number of images is the same.
        weights: one number per arm, +1 and −1 for a difference.

    Raises:
        ValueError: if the arms do not fit together, or an arm has fewer than two seeds or images.
    """
    arms = [np.asarray(sample, dtype=float) for sample in samples]
    factors = check_samples(arms, weights, ndim=2)
    n_images = arms[0].shape[1]
    if any(arm.shape[1] != n_images for arm in arms):
        raise ValueError(
            f"samples: got {[arm.shape[1] for arm in arms]} images, expected the same number"
        )
    if n_images < 2 or any(len(arm) < 2 for arm in arms):
        raise ValueError("samples: expected at least two seeds and two images per arm")
    by_image = np.stack([w * arm.mean(0) for w, arm in zip(factors, arms, strict=True)]).sum(0)
    parts, freedoms = [by_image.var(ddof=1) / n_images], [n_images - 1]
    rest_variance, rest_freedom = 0.0, 0
    for weight, arm in zip(factors, arms, strict=True):
        n = len(arm)
        parts.append(weight**2 * arm.mean(1).var(ddof=1) / n)
        freedoms.append(n - 1)
        rest = arm - arm.mean(1, keepdims=True) - arm.mean(0) + arm.mean()
        degrees = (n - 1) * (n_images - 1)
        rest_variance += weight**2 * (rest**2).sum() / degrees / (n * n_images)
        rest_freedom += degrees
    if sum(parts[1:]) > rest_variance:
        variance = sum(parts) - rest_variance
        squares = [*(part**2 / f for part, f in zip(parts, freedoms, strict=True))]
        squares.append(rest_variance**2 / rest_freedom)
        freedom = max(1.0, variance**2 / sum(squares))
    else:  # seeds differ by no more than chance: what is left is the images
        variance, freedom = parts[0], n_images - 1
    return Contrast(by_image.mean(), math.sqrt(variance), freedom, "crossed")
