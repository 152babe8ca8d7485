"""Claims are judged by the rules that were written down, from the tables alone."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from rapa_lib.experiments.claim_tables import tests_html as html_of_tests
from rapa_lib.experiments.claim_tables import verdicts_html, verdicts_markdown
from rapa_lib.experiments.claims import (
    Arm,
    Claim,
    ClaimTest,
    judge_claims,
    measured,
    overall,
    read_claims,
)

ROOT = Path(__file__).parents[2]
NONE = [20.0, 21.0, 19.0, 20.5]
RANDOM = [18.0, 19.5, 17.5, 18.0]


def table(**errors):
    """One row per tiling and seed."""
    return pd.DataFrame(
        {"tiling": tiling, "seed": seed, "test_error": error, "n_tiles": "16-4-1"}
        for tiling, values in errors.items()
        for seed, error in enumerate(values)
    )


def better(**changes):
    known = {
        "test": "random − none",
        "table": "accuracy",
        "of": Arm("test_error", {"tiling": "random"}),
        "minus": Arm("test_error", {"tiling": "none"}),
        "below": 0,
    }
    return ClaimTest(**known | changes)


def judged(test, frame, min_seeds=3):
    return judge_claims([Claim("C3", "better", (test,))], {"accuracy": frame}, min_seeds)


def test_a_difference_has_the_interval_of_the_paired_t_test():
    (row,) = judged(better(), table(none=NONE, random=RANDOM)).to_dict("records")
    reference = stats.ttest_rel(RANDOM, NONE)
    expected = reference.confidence_interval(0.95)
    assert row["mean"] == pytest.approx(np.mean(RANDOM) - np.mean(NONE))
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert row["effect"] == pytest.approx(reference.statistic / math.sqrt(len(NONE)))
    assert (row["seeds"], row["verdict"]) == (4, "held")


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ({"below": 0}, "held"),
        ({"below": -2}, "undecided"),
        ({"below": -5}, "did not hold"),
        ({"above": -5, "below": None}, "held"),
        ({"above": -2, "below": None}, "undecided"),
        ({"above": 0, "below": None}, "did not hold"),
    ],
)
def test_the_verdict_is_where_the_whole_interval_lies(rule, verdict):
    (row,) = judged(better(**rule), table(none=NONE, random=RANDOM)).to_dict("records")
    assert row["verdict"] == verdict


def test_fewer_seeds_have_an_interval_but_no_verdict():
    (row,) = judged(better(), table(none=NONE[:2], random=[10.0, 10.5])).to_dict("records")
    assert row["high"] < 20
    assert (row["seeds"], row["verdict"]) == (2, "no verdict")
    (row,) = judged(better(), table(none=NONE[:1], random=[10.0])).to_dict("records")
    assert math.isnan(row["low"])


def test_only_seeds_that_both_have_are_paired():
    frame = table(none=NONE, random=RANDOM)
    frame = frame.drop(frame.index[0])
    (values,) = measured(better(), frame).values()
    assert values.to_dict() == {1: -1.5, 2: -1.5, 3: -2.5}


def test_every_setting_is_judged_and_a_control_without_tiles_serves_all():
    frame = table(none=NONE, random=RANDOM)
    frame.loc[frame["tiling"] == "none", "n_tiles"] = "1-1-1"
    many = frame[frame["tiling"] == "random"].assign(n_tiles="64-16-4", test_error=30.0)
    found = measured(better(), pd.concat([frame, many]))
    assert {name: values.mean() for name, values in found.items()} == {
        "n_tiles 16-4-1": pytest.approx(-1.875),
        "n_tiles 64-16-4": pytest.approx(9.875),
    }


def test_a_control_that_varies_is_compared_setting_by_setting():
    frame = table(image=[30.0, 31.0], random=[20.0, 21.0]).assign(tile_init="identical")
    apart = table(image=[40.0, 41.0], random=[25.0, 26.0]).assign(tile_init="independent")
    against = better(minus=Arm("test_error", {"tiling": "image"}))
    found = measured(against, pd.concat([frame, apart]))
    assert {name: values.tolist() for name, values in found.items()} == {
        "tile_init identical": [-10.0, -10.0],
        "tile_init independent": [-15.0, -15.0],
    }


@pytest.mark.parametrize(
    ("tiling", "setting", "values"),
    [
        ("image", "pooling", ("max", "avg")),
        ("none", "pooling", ("max", "avg")),
        ("none", "epochs", (30, 100)),
        ("image", "tile_init", ("identical", "independent")),
        ("image", "n_tiles", ("16-4-1", "64-16-4")),
    ],
)
def test_no_control_is_one_for_a_setting_in_which_it_was_not_trained(tiling, setting, values):
    frame = table(**{tiling: NONE, "random": RANDOM}).assign(**{setting: values[0]})
    other = frame[frame["tiling"] == "random"].assign(**{setting: values[1]}, test_error=30.0)
    against = better(minus=Arm("test_error", {"tiling": tiling}))
    (found,) = measured(against, pd.concat([frame, other])).values()
    assert found.mean() == pytest.approx(-1.875)


def test_a_control_of_the_same_size_serves_no_other_size():
    frame = table(enlarged=NONE, random=RANDOM)
    frame.loc[frame["tiling"] == "enlarged", "n_tiles"] = "1-1-1"
    frame["config"] = json.dumps({"n_tiles": [16, 4, 1], "tile_lr_power": 1.0})
    half = frame[frame["tiling"] == "random"].assign(
        config=json.dumps({"n_tiles": [16, 4, 1], "tile_lr_power": 0.5}), test_error=21.0
    )
    many = frame[frame["tiling"] == "random"].assign(
        n_tiles="64-16-4", config=json.dumps({"n_tiles": [64, 16, 4], "tile_lr_power": 0.5})
    )
    against = better(minus=Arm("test_error", {"tiling": "enlarged"}))
    found = measured(against, pd.concat([frame, half, many]))
    assert {name: values.mean() for name, values in found.items()} == {
        "n_tiles 16-4-1, tile_lr_power 1.0": pytest.approx(-1.875),
        "n_tiles 16-4-1, tile_lr_power 0.5": pytest.approx(0.875),
    }


def test_parameters_of_the_runs_tell_rows_apart():
    frame = table(none=NONE, random=RANDOM)
    frame["config"] = [json.dumps({"tile_lr_power": 1.0, "seed": s}) for s in frame["seed"]]
    half = frame[frame["tiling"] == "random"].assign(test_error=10.0)
    half["config"] = [json.dumps({"tile_lr_power": 0.5, "seed": s}) for s in half["seed"]]
    frame = pd.concat([frame, half])
    assert set(measured(better(), frame)) == {"tile_lr_power 1.0", "tile_lr_power 0.5"}
    chosen = better(of=Arm("test_error", {"tiling": "random", "tile_lr_power": 0.5}))
    (values,) = measured(chosen, frame).values()
    assert values.tolist() == [-10.0, -11.0, -9.0, -10.5]


def test_rows_that_nothing_tells_apart_are_no_sample():
    frame = table(none=NONE, random=RANDOM)
    twice = pd.concat([frame, frame])
    with pytest.raises(ValueError, match="several rows of accuracy have the same seed"):
        measured(better(), twice)


def test_a_control_that_varies_otherwise_is_taken_where_it_is_alike():
    frame = table(none=NONE, random=RANDOM)
    more = frame[frame["tiling"] == "none"].assign(n_tiles="1-1-1", test_error=99.0)
    (values,) = measured(better(), pd.concat([frame, more])).values()
    assert values.mean() == pytest.approx(-1.875)


def test_a_study_without_the_rows_in_question_measured_nothing():
    frame = table(none=NONE, image=RANDOM)
    assert measured(better(), frame) == {}
    assert measured(better(minus=Arm("test_error", {"tiling": "noisy"})), frame) == {}


def test_draws_of_one_seed_are_pooled():
    frame = pd.DataFrame(
        {"seed": [0, 0, 1, 1], "fault_draw": [0, 1, 0, 1], "test_error": [1.0, 3.0, 5.0, 9.0]}
    )
    alone = better(of=Arm("test_error"), minus=None, over=("fault_draw",))
    (values,) = measured(alone, frame).values()
    assert values.to_dict() == {0: 2.0, 1: 7.0}
    (values,) = measured(
        better(of=Arm("test_error"), minus=None, over=("fault_draw",), pool="max", times=100), frame
    ).values()
    assert values.to_dict() == {0: 300.0, 1: 900.0}


def test_first_and_last_are_of_each_run():
    frame = pd.DataFrame(
        {
            "run": ["a", "a", "a", "b", "b"],
            "seed": [0, 0, 0, 1, 1],
            "epoch": [0, 1, 2, 0, 5],
            "alike": [0.1, 0.2, 0.4, 0.0, 0.5],
        }
    )
    rise = better(of=Arm("alike", {"epoch": "last"}), minus=Arm("alike", {"epoch": "first"}))
    (values,) = measured(rise, frame).values()
    assert values.to_dict() == pytest.approx({0: 0.3, 1: 0.5})


def test_an_exact_number_needs_no_seeds():
    frame = pd.DataFrame({"n_tiles": [16, 64], "speedup": [16.0, 32.0]})
    ratio = better(
        of=Arm("speedup"), minus=None, per="n_tiles", pool="min", over=("n_tiles",), above=0.9,
        below=None, exact=True,
    )  # fmt: skip
    (row,) = judged(ratio, frame).to_dict("records")
    assert (row["mean"], row["low"], row["high"], row["verdict"]) == (0.5, 0.5, 0.5, "did not hold")


@pytest.mark.parametrize("frames", [{}, {"accuracy": table(none=NONE)}])
def test_what_a_study_did_not_measure_is_said(frames):
    (row,) = judge_claims([Claim("C3", "better", (better(),))], frames).to_dict("records")
    assert (row["verdict"], row["seeds"]) == ("not measured", 0)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["held", "held", "not measured"], "held"),
        (["held", "undecided"], "held partly"),
        (["held", "did not hold"], "held partly"),
        (["undecided", "did not hold"], "did not hold"),
        (["undecided", "undecided"], "undecided"),
        (["no verdict", "not measured"], "no verdict"),
        (["no verdict", "held"], "held"),
        (["not measured"], "not measured"),
    ],
)
def test_a_claim_is_what_its_tests_say(verdicts, expected):
    tests = pd.DataFrame({"id": "C3", "claim": "better", "verdict": verdicts})
    (row,) = overall(tests).to_dict("records")
    assert row["overall"] == expected
    assert [row[name] for name in dict.fromkeys(verdicts)] == [
        verdicts.count(name) for name in dict.fromkeys(verdicts)
    ]


GOOD = {
    "min_seeds": 3,
    "claims": [
        {
            "id": "C3",
            "claim": "better",
            "tests": [
                {
                    "test": "random − none",
                    "table": "accuracy",
                    "of": {"value": "test_error", "where": {"tiling": "random", "epochs": 2}},
                    "minus": {"where": {"tiling": "none"}},
                    "below": 0,
                }
            ],
        }
    ],
}


def test_the_other_arm_is_like_the_first_but_for_what_it_says():
    ((claim,), min_seeds) = read_claims(GOOD)
    assert min_seeds == 3
    assert claim.tests[0].minus == Arm("test_error", {"tiling": "none", "epochs": 2})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"below": None}, "above, below: got None and None, expected one of them"),
        ({"above": 1}, "above, below: got 1 and 0"),
        ({"below": "0"}, "above or below: got '0', expected a number"),
        ({"pool": "median"}, "pool: got 'median', allowed: mean, min, max"),
        ({"over": ["luck"]}, "over: got luck, allowed: dataset"),
        ({"beneath": 0}, "beneath"),
        ({"of": {"values": "test_error"}}, "values"),
    ],
)
def test_a_bad_rule_is_refused_with_its_claim(change, words):
    bad = json.loads(json.dumps(GOOD))
    bad["claims"][0]["tests"][0] |= change
    with pytest.raises(ValueError, match="claims: C3: ") as caught:
        read_claims(bad)
    assert words in str(caught.value)


def test_a_column_that_is_not_there_is_named():
    frame = table(none=NONE, random=RANDOM)
    with pytest.raises(ValueError, match="table accuracy has no column luck"):
        measured(better(of=Arm("luck")), frame)
    (row,) = judged(better(of=Arm("luck")), frame).to_dict("records")
    assert (row["verdict"], row["setting"]) == (
        "not measured", "claims: table accuracy has no column luck",
    )  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "config/claims").glob("*.yaml")))
def test_the_rules_here_are_good(path):
    claims, min_seeds = read_claims(yaml.safe_load(path.read_text()))
    assert [c.id for c in claims] == ["C1", "C2a", "C2b", "C3", "C4", "C5", "C6", "C7", "C8", "N1"]
    assert min_seeds >= 3


def test_pages_say_the_same_as_the_numbers():
    tests = judged(better(figure="accuracy"), table(none=NONE, random=RANDOM))
    claims = overall(tests)
    text = verdicts_markdown(claims, tests)
    assert "| C3   | better  | held      | 1 of 1" in text
    (row,) = tests.to_dict("records")
    interval = f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    for page in (text, html_of_tests(tests)):
        assert interval in page
    assert '<a href="#accuracy">random − none</a>' in html_of_tests(tests)
    assert '<span class="verdict held">held</span>' in verdicts_html(claims)


def test_words_are_no_markup():
    tests = judged(better(test="<b>&"), table(none=NONE, random=RANDOM))
    assert "&lt;b&gt;&amp;" in html_of_tests(tests)
