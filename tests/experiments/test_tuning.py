"""Every arm gets the same number of trials from one seeded plan, and the best of them."""

import math

import pytest

from rapa_lib.experiments.tuning import Range, Tuning, ranked

BLOCK = {
    "trials": 32,
    "best": 4,
    "seed": 1000,
    "seeds": [1001, 1002],
    "validation": 100,
    "ranges": {
        "learning_rate": {"low": 0.01, "high": 1.0, "scale": "log"},
        "weight_decay": {"low": 1e-5, "high": 1e-3, "scale": "log"},
    },
    "knobs": {
        "random": {"tile_lr_power": {"low": 0, "high": 1}},
        "noisy": {"noise": {"low": 0.5, "high": 2.0, "scale": "log", "times": [0.8, 1.0, 0.0]}},
    },
    "judged_by": {"perforated": "test_error_merged"},
}


def tuning(**changes):
    return Tuning.of(BLOCK | changes)


def test_all_arms_have_the_same_trials_but_for_their_own_knob():
    known = tuning()
    arms = {arm: known.trials_of(arm) for arm in ("none", "random", "noisy")}
    assert {len(trials) for trials in arms.values()} == {32}
    shared = [
        [{k: v for k, v in trial.items() if k in BLOCK["ranges"]} for trial in trials]
        for trials in arms.values()
    ]
    assert shared[0] == shared[1] == shared[2] == arms["none"]
    assert all(set(trial) == {*BLOCK["ranges"], "tile_lr_power"} for trial in arms["random"])
    assert all(trial["noise"][2] == 0 and len(trial["noise"]) == 3 for trial in arms["noisy"])


def test_a_plan_has_a_seed_and_is_longer_by_more_trials():
    assert tuning().plan() == tuning().plan()
    assert tuning().plan() != tuning(seed=1).plan()
    longer = tuning(trials=40).plan()
    assert longer[:32] == tuning().plan()
    assert len(longer) == 40


def test_the_plan_is_even_in_every_coordinate():
    """In any eight neighbouring cells of a coordinate lie about as many points as in others."""
    points = tuning().plan()
    for axis in range(3):
        cells = [0] * 8
        for point in points:
            assert 0 <= point[axis] < 1
            cells[int(8 * point[axis])] += 1
        assert max(cells) <= 6  # 4 on average
        assert min(cells) >= 2


def test_values_cover_their_range_on_their_scale():
    rates = sorted(trial["learning_rate"] for trial in tuning().trials_of("none"))
    assert 0.01 <= rates[0] < 0.02
    assert 0.5 < rates[-1] <= 1
    assert abs(math.log10(rates[16]) + 1) < 0.2  # the middle of a log scale


@pytest.mark.parametrize(
    ("known", "u", "value"),
    [
        (Range(0, 1), 0.123456, 0.123),
        (Range(2, 4), 0.5, 3),
        (Range(0.01, 100, "log"), 0.5, 1),
        (Range(1e-5, 1e-3, "log"), 0, 1e-5),
        (Range(0, 2, times=(0.85, 0.95, 0)), 0.5, [0.85, 0.95, 0]),
    ],
)
def test_a_share_of_a_range_by_hand(known, u, value):
    assert known.at(u) == value


def test_ranks_are_by_error_and_what_diverged_has_none():
    assert ranked([3.0, 1.0, math.inf, 2.0, 1.0, math.nan]) == [1, 4, 3, 0]
    assert ranked([math.inf]) == []


def test_arms_are_judged_by_what_is_said():
    assert tuning().judged("perforated") == "test_error_merged"
    assert tuning().judged("none") == "test_error"
    assert tuning().all_seeds == {1000, 1001, 1002}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"best": 33}, ValueError, "best: got 33, allowed: 1 to 32, the trials"),
        ({"trials": 0}, ValueError, "trials: got 0, allowed: at least 1"),
        ({"seeds": [1, 1]}, ValueError, r"seeds: got \(1, 1\), expected different seeds"),
        ({"seeds": []}, ValueError, r"seeds: got \(\), expected at least one"),
        ({"ranges": {}}, ValueError, "ranges: got none"),
        ({"ranges": {"epochs": {"low": 2, "high": 1}}}, ValueError, "epochs: high: got 1, allowed"),
        (
            {"ranges": {"x": {"low": 0, "high": 1, "scale": "log"}}}, ValueError,
            "x: low: got 0, allowed on a log scale: above 0",
        ),
        ({"ranges": {"x": {"low": "a", "high": 1}}}, TypeError, "x: low: got 'a'"),
        (
            {"knobs": {"random": {"learning_rate": {"low": 0, "high": 1}}}}, ValueError,
            "knobs: got learning_rate for random, allowed: one parameter that is not among ranges",
        ),
    ],
)  # fmt: skip
def test_a_bad_block_is_named(changes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        tuning(**changes)
