import numpy as np
import pytest
from scipy import stats

from rapa_lib.instruments.statistics import crossed_interval, mean_interval, share_interval


@pytest.mark.parametrize(("k", "n"), [(0, 20), (7, 20), (20, 20), (499, 500)])
def test_a_share_has_wilsons_interval(k, n):
    values = [1.0] * k + [0.0] * (n - k)
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert share_interval(values) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_crossed_interval_covers_new_seeds_and_new_images():
    rng, covered, halves = np.random.default_rng(0), 0, []
    for _ in range(1000):
        seeds, images = rng.normal(0, 0.3, (3, 1)), rng.normal(0, 1, (1, 50))
        _, low, high = crossed_interval(seeds + images + rng.normal(0, 0.5, (3, 50)))
        covered += low <= 0 <= high
        halves.append((high - low) / 2)
    assert 925 < covered < 985
    assert np.median(halves) < 2  # by seeds alone it would be wider: t is 4.3 with two degrees


def test_without_a_difference_between_seeds_the_interval_is_that_of_images():
    images = np.random.default_rng(0).normal(size=40)
    values = np.stack([images, images, images])
    _, low, high = mean_interval(images)
    assert crossed_interval(values) == pytest.approx((images.mean(), low, high))


def test_one_seed_has_the_images_interval_and_one_image_the_seeds():
    values = [0.1, 0.4, 0.7, 0.2]
    assert crossed_interval([values]) == mean_interval(values)
    assert crossed_interval([[v] for v in values]) == mean_interval(values)


def test_equal_values_have_no_width():
    assert crossed_interval(np.ones((2, 5))) == (1, 1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: share_interval([]), "values: got"),
        (lambda: share_interval([0.5, 1.2]), "values: got .*expected numbers from 0 to 1"),
        (lambda: share_interval([0.5], 1), "confidence: got 1"),
        (lambda: crossed_interval([0.1, 0.2]), r"values: got shape \(2,\), expected \(seeds"),
        (lambda: crossed_interval([[0.1, 0.2]], 0), "confidence: got 0"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
