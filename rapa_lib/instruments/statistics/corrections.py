"""Families of tests: p values corrected for their number."""

import numpy as np
from numpy.typing import ArrayLike

from rapa_lib._checks import optional


def holm(p_values: ArrayLike) -> np.ndarray:
    """P values corrected by Holm: at a level α the chance of any false rejection is at most α.

    Source: S. Holm, Scand. J. Stat. 6, 65 (1979): of m, the k-th smallest × (m − k + 1).

    Args:
        p_values: (…, tests); NaN is no test, and stays NaN.
    """
    p = np.asarray(p_values, dtype=float)
    number = np.isfinite(p).sum(-1, keepdims=True)
    order = np.argsort(p, axis=-1)  # NaN come last
    factors = np.maximum(number - np.arange(p.shape[-1]), 1)
    ranked = np.take_along_axis(p, order, -1) * factors
    ranked = np.minimum(np.maximum.accumulate(ranked, axis=-1), 1)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, ranked, -1)
    return corrected


def false_discovery(p_values: ArrayLike) -> np.ndarray:
    """P values corrected by Benjamini and Hochberg; NaN is no test, and stays NaN.

    Source: Y. Benjamini, Y. Hochberg, J. R. Stat. Soc. B 57, 289 (1995), as SciPy has it.
    """
    stats = optional("scipy.stats", "figures")

    p = np.array(p_values, dtype=float)
    tested = np.isfinite(p)
    if tested.any():
        p[tested] = stats.false_discovery_control(p[tested])
    return p
