"""Contrasts of arms and their tests agree with SciPy's, and with what they promise of new seeds."""

import itertools

import numpy as np
import pytest
from scipy import stats

from rapa_lib.instruments.statistics import (
    EQUALITY_LEVEL,
    contrast,
    crossed_contrast,
    crossed_interval,
    equal_variances_p,
    false_discovery,
    holm,
    sign_flip_p,
)

RNG = np.random.default_rng(5)
ALIKE = [RNG.normal(20, 1, 7), RNG.normal(18, 1, 5)]
UNLIKE = [RNG.normal(20, 0.1, 12), RNG.normal(18, 3, 9)]


@pytest.mark.parametrize(("arms", "pooled"), [(ALIKE, True), (UNLIKE, False)])
def test_a_difference_is_tested_as_by_scipy(arms, pooled):
    found = contrast(arms, (1, -1))
    assert found.method == ("pooled" if pooled else "Welch")
    expected = stats.ttest_ind(*arms, equal_var=pooled)
    interval = expected.confidence_interval(0.95)
    assert found.interval() == pytest.approx((interval.low, interval.high))
    assert found.freedom == pytest.approx(expected.df)
    above = stats.ttest_ind(*arms, equal_var=pooled, alternative="greater")
    assert found.p_above(0) == pytest.approx(above.pvalue)
    assert found.p_below(0) == pytest.approx(1 - above.pvalue)


def test_equality_of_variances_is_scipys_test_with_the_median():
    for arms in (ALIKE, UNLIKE):
        assert equal_variances_p(arms) == pytest.approx(stats.levene(*arms, center="median").pvalue)
    assert equal_variances_p(UNLIKE) < EQUALITY_LEVEL <= equal_variances_p(ALIKE)
    assert equal_variances_p([np.ones(3), np.ones(3)]) == 1


def test_a_paired_difference_is_tested_as_by_scipy():
    mine, others = RNG.normal(size=6), RNG.normal(size=6)
    found, expected = contrast([mine, others], (1, -1), paired=True), stats.ttest_rel(mine, others)
    interval = expected.confidence_interval(0.95)
    assert found.interval() == pytest.approx((interval.low, interval.high))
    assert (found.method, found.freedom) == ("paired", 5)


def test_a_mean_alone_is_tested_as_by_scipy():
    found = contrast([ALIKE[0]], (1,))
    above = stats.ttest_1samp(ALIKE[0], 19.5, alternative="greater")
    assert found.p_above(19.5) == pytest.approx(above.pvalue)
    assert found.method == "one sample"


def test_equivalence_is_two_one_sided_tests():
    found = contrast(ALIKE, (1, -1))
    low = stats.ttest_ind(ALIKE[0] - 1, ALIKE[1], alternative="greater").pvalue
    high = stats.ttest_ind(ALIKE[0] - 4, ALIKE[1], alternative="less").pvalue
    assert found.p_within(1, 4) == pytest.approx(max(low, high))


@pytest.mark.parametrize("spreads", [(1, 1, 1, 1), (0.2, 3, 0.2, 3)])
def test_a_difference_of_differences_covers_new_seeds(spreads):
    means, covered = (4, 3, 2, 0.5), 0
    rng = np.random.default_rng(1)
    arms = [rng.normal(m, s, (4000, 4)) for m, s in zip(means, spreads, strict=True)]
    low, high = contrast(arms, (1, -1, -1, 1)).interval()
    covered = ((low <= -0.5) & (high >= -0.5)).mean()
    assert 0.935 < covered < 0.98


def test_many_studies_at_once_are_each_alone():
    arms = [RNG.normal(0, spread, (40, 5)) for spread in (1, 4)]
    together = contrast(arms, (1, -1))
    for i in range(40):
        alone = contrast([arm[i] for arm in arms], (1, -1))
        assert (alone.estimate, alone.error, alone.freedom) == pytest.approx(
            (together.estimate[i], together.error[i], together.freedom[i])
        )
        assert alone.method == together.method[i]
    assert set(together.method) == {"pooled", "Welch"}


def slow_sign_flip(values):
    sums = [np.dot(signs, values) for signs in itertools.product((1, -1), repeat=len(values))]
    return np.mean([s >= sum(values) - 1e-9 for s in sums])


def test_signs_are_flipped_in_every_way():
    values = [0.5, 1.0, -0.2, 0.7, 0.7, 0.1, 0.3]
    assert sign_flip_p(values) == slow_sign_flip(values)
    assert sign_flip_p(values, above=False) == slow_sign_flip([-v for v in values])
    assert sign_flip_p([1.0] * 6) == 1 / 64
    assert np.isnan(sign_flip_p([1.0] * 5))
    assert np.isnan(sign_flip_p([1.0] * 21))


def test_holm_multiplies_the_least_by_all_and_never_swaps():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, np.nan, 0.01])[[0, 2]].tolist() == pytest.approx([0.5, 0.02])
    assert np.isnan(holm([0.5, np.nan])[1])
    rows = RNG.uniform(0, 0.2, (3, 5))
    assert holm(rows) == pytest.approx(np.array([holm(row) for row in rows]))
    assert holm([0.9, 0.8]).max() <= 1


def test_false_discoveries_are_corrected_among_what_was_tested():
    p = [0.01, np.nan, 0.04, 0.03]
    expected = stats.false_discovery_control([0.01, 0.04, 0.03])
    assert false_discovery(p)[[0, 2, 3]] == pytest.approx(expected)
    assert np.isnan(false_discovery(p)[1])
    assert np.isnan(false_discovery([np.nan])).all()


def test_a_crossed_contrast_of_one_arm_is_the_crossed_interval():
    values = RNG.normal(0, 1, (4, 1)) + RNG.normal(0, 1, (1, 30)) + RNG.normal(0, 0.3, (4, 30))
    _, low, high = crossed_interval(values)
    assert crossed_contrast([values], (1,)).interval() == pytest.approx((low, high))


def test_a_crossed_contrast_covers_new_seeds_and_new_images():
    rng, covered, by_seeds = np.random.default_rng(2), 0, 0
    for _ in range(800):
        images = rng.normal(0, 1, (1, 40))  # hard for both arms: gone in the difference
        own = [rng.normal(0, 0.5, (1, 40)) for _ in range(2)]
        arms = [
            images + its + rng.normal(0, 0.2, (3, 1)) + rng.normal(0, 0.3, (3, 40)) for its in own
        ]
        low, high = crossed_contrast(arms, (1, -1)).interval()
        covered += low <= 0 <= high
        low, high = contrast([arm.mean(1) for arm in arms], (1, -1)).interval()
        by_seeds += low <= 0 <= high
    assert 740 < covered < 795
    assert by_seeds < covered


@pytest.mark.parametrize(
    ("samples", "weights", "words"),
    [
        ([[1.0, 2.0]], (1, -1), "weights: got 2 for 1 samples"),
        ([[1.0], [2.0, 3.0]], (1, -1), "expected at least two"),
        ([[1.0, np.nan], [2.0, 3.0]], (1, -1), "expected finite numbers"),
        ([], (), "weights: got 0 for 0"),
    ],
)
def test_samples_that_cannot_be_compared_are_refused(samples, weights, words):
    with pytest.raises(ValueError, match=words):
        contrast(samples, weights)


def test_paired_arms_have_the_same_runs():
    with pytest.raises(ValueError, match="same number of runs"):
        contrast([[1.0, 2.0], [1.0, 2.0, 3.0]], (1, -1), paired=True)
    with pytest.raises(ValueError, match="images, expected the same number"):
        crossed_contrast([np.ones((2, 3)), np.ones((2, 4))], (1, -1))
