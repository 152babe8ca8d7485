"""Arms compared: a weighted sum of their means, its error, and one-sided tests of it.

Everything works along the last axis of the samples, so that thousands of planted studies are judged
at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rapa_lib._checks import check_real, optional
from rapa_lib.instruments.statistics.intervals import check_confidence

EQUALITY_LEVEL = 0.10
"""Level at which the test of Brown and Forsythe rejects that arms have the same variance.

Above the usual 5 %, because what a missed difference costs (an interval too narrow) is worse than
what a false alarm costs (some degrees of freedom).
"""

MOST_FLIPPED = 20
"""Most differences of which all 2ⁿ choices of signs are tried."""


@dataclass(frozen=True)
class Contrast:
    """An estimate that follows Student's t about its true value.

    Args:
        estimate, error, freedom: of it, its standard error, the error's degrees of freedom.
        method: ``"pooled"``, ``"Welch"``, ``"paired"``, ``"one sample"`` or ``"crossed"``; an array
            where the estimate is one.
    """

    estimate: np.ndarray | float
    error: np.ndarray | float
    freedom: np.ndarray | float
    method: np.ndarray | str

    def interval(self, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Two-sided confidence interval, (low, high)."""
        stats = optional("scipy.stats", "figures")  # takes a second to import

        half = stats.t.ppf((1 + check_confidence(confidence)) / 2, self.freedom) * self.error
        return self.estimate - half, self.estimate + half

    def p_above(self, bound: float) -> np.ndarray:
        """One-sided p of "the true value is at most ``bound``": small where it is above."""
        stats = optional("scipy.stats", "figures")

        return stats.t.sf((self.estimate - bound) / self.error, self.freedom)

    def p_below(self, bound: float) -> np.ndarray:
        """One-sided p of "the true value is at least ``bound``": small where it is below."""
        stats = optional("scipy.stats", "figures")

        return stats.t.cdf((self.estimate - bound) / self.error, self.freedom)

    def p_within(self, low: float, high: float) -> np.ndarray:
        """P of two one-sided tests (TOST): small where the true value lies within (low, high).

        Source: D. J. Schuirmann, J. Pharmacokinet. Biopharm. 15, 657 (1987).
        """
        return np.maximum(self.p_above(low), self.p_below(high))


def contrast(
    samples: Sequence[ArrayLike], weights: Sequence[float], *, paired: bool = False
) -> Contrast:
    """Weighted sum of the means of independent arms, or of arms paired run by run.

    Unpaired, the variance is pooled over the arms where :func:`equal_variances_p` is at least
    :data:`EQUALITY_LEVEL`; otherwise each arm keeps its own and the degrees of freedom are those of
    Welch and Satterthwaite (B. L. Welch, Biometrika 34, 28, 1947).

    Args:
        samples: an arm each, (…, runs); at least two runs per arm.
        weights: one number per arm: (1, −1) for a difference, (1, −1, −1, 1) for a difference of
            differences, (1,) for a mean.
        paired: whether runs of the same place in each arm belong together.

    Raises:
        ValueError: if the arms do not fit together, or an arm has fewer than two runs.
    """
    arms = [np.asarray(sample, dtype=float) for sample in samples]
    factors = check_samples(arms, weights)
    if any(arm.shape[-1] < 2 for arm in arms):
        raise ValueError(f"samples: got {[a.shape[-1] for a in arms]} runs, expected at least two")
    estimate = sum(w * arm.mean(-1) for w, arm in zip(factors, arms, strict=True))
    if paired or len(arms) == 1:
        if len({arm.shape[-1] for arm in arms}) > 1:
            raise ValueError("samples: paired arms need the same number of runs")
        each = np.stack([w * arm for w, arm in zip(factors, arms, strict=True)]).sum(0)
        runs = each.shape[-1]
        error = np.sqrt(each.var(-1, ddof=1) / runs)
        return Contrast(estimate, error, runs - 1, "paired" if len(arms) > 1 else "one sample")
    variances = [arm.var(-1, ddof=1) for arm in arms]
    runs = np.array([arm.shape[-1] for arm in arms])
    shared = sum((n - 1) * v for n, v in zip(runs, variances, strict=True)) / (runs - 1).sum()
    pooled_error = np.sqrt(shared * (np.square(factors) / runs).sum())
    parts = [w**2 * v / n for w, v, n in zip(factors, variances, runs, strict=True)]
    welch_error = np.sqrt(sum(parts))
    with np.errstate(divide="ignore", invalid="ignore"):  # no spread: no freedom, and not used
        squares = sum(part**2 / (n - 1) for part, n in zip(parts, runs, strict=True))
        welch_freedom = np.where(squares > 0, sum(parts) ** 2 / squares, 1.0)
    equal = equal_variances_p(arms) >= EQUALITY_LEVEL
    return Contrast(
        estimate,
        np.where(equal, pooled_error, welch_error)[()],
        np.where(equal, (runs - 1).sum(), welch_freedom)[()],
        np.where(equal, "pooled", "Welch")[()],
    )


def equal_variances_p(samples: Sequence[np.ndarray]) -> np.ndarray:
    """P of the test that arms have the same variance; 1 where no run differs from its median.

    Source: M. B. Brown, A. B. Forsythe, J. Am. Stat. Assoc. 69, 364 (1974): analysis of variance of
    distances from the arm's median (Levene's test with the median).

    Args:
        samples: an arm each, (…, runs).
    """
    stats = optional("scipy.stats", "figures")

    spread = np.any([np.ptp(sample, axis=-1) > 0 for sample in samples], axis=0)
    if not spread.any():
        return np.ones_like(spread, dtype=float)[()]
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stats.levene(*samples, center="median", axis=-1).pvalue
    return np.where(spread & np.isfinite(p), p, 1.0)[()]


def sign_flip_p(differences: ArrayLike, *, above: bool = True) -> float:
    """Exact one-sided p that differences are symmetric about zero, by all choices of signs.

    Source: R. A. Fisher, The Design of Experiments (1935), section 21.

    Args:
        differences: one number per pair.
        above: whether the alternative is that they are above zero, or below.

    Returns:
        The share of the 2ⁿ choices whose sum is at least as far out; NaN for fewer than six
        differences, of which 1/32 is the least that can come out, and for more than
        :data:`MOST_FLIPPED`.
    """
    values = np.asarray(differences, dtype=float) * (1 if above else -1)
    if not 6 <= values.size <= MOST_FLIPPED:
        return float("nan")
    sums = np.zeros(1)
    for value in np.abs(values):
        sums = np.concatenate([sums + value, sums - value])
    tolerance = 1e-9 * np.abs(values).sum()
    return float((sums >= values.sum() - tolerance).mean())


def check_samples(
    arms: Sequence[np.ndarray], weights: Sequence[float], *, ndim: int = 1
) -> np.ndarray:
    """The weights as an array, if they fit the arms and every value is finite."""
    if len(arms) == 0 or len(arms) != len(weights):
        raise ValueError(f"weights: got {len(weights)} for {len(arms)} samples")
    for arm in arms:
        if arm.ndim < ndim or arm.size == 0 or not np.isfinite(arm).all():
            raise ValueError(f"samples: got {arm}, expected finite numbers of {ndim} axes or more")
    return np.array([check_real("weights", float(weight)) for weight in weights])
