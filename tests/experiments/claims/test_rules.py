"""Rules are checked when they are read, and say what they ask."""

import copy
from pathlib import Path

import pytest
import yaml

from rapa_lib.experiments.claims import Arm, read_claims

ROOT = Path(__file__).parents[3]

GOOD = {
    "min_seeds": 4,
    "gates": {
        "enough": {
            "says": "enough",
            "table": "accuracy",
            "of": {"value": "test_error"},
            "at_least": 10,
        }
    },
    "claims": [
        {
            "id": "C3",
            "claim": "better",
            "primary": {
                "endpoint": "random − none",
                "table": "accuracy",
                "of": {
                    "value": "merged",
                    "where": {"tiling": "random", "share": 0.5},
                    "less": {"where": {"share": 0}},
                },
                "minus": {"where": {"tiling": "none"}},
                "expects": "less",
                "sesoi": 0.5,
                "gates": ["enough"],
            },
        }
    ],
}


def test_another_arm_is_like_the_first_but_for_what_it_says():
    rules = read_claims(GOOD)
    assert (rules.min_seeds, rules.level) == (4, 0.05)
    (minus,) = rules.claims[0].primary.minus
    assert (minus.name, minus.value) == ("none", "merged")
    assert minus.where == {"tiling": "none", "share": 0.5}
    assert minus.less == Arm("merged", {"tiling": "none", "share": 0})


def test_a_difference_of_differences_has_four_arms():
    content = copy.deepcopy(GOOD)
    content["claims"][0]["primary"] |= {
        "beyond": {
            "of": {"where": {"tiling": "a"}},
            "minus": {"where": {"share": 1}},
        }
    }
    first, second = read_claims(content).claims[0].primary.beyond
    assert first.where == {"tiling": "a", "share": 0.5}
    assert second.where == {"tiling": "a", "share": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expects": "better"}, "expects: got 'better', allowed: less, greater"),
        ({"sesoi": None}, "sesoi: missing; less needs sesoi alone"),
        ({"sesoi": 0}, "sesoi: got 0.0, allowed: finite, above 0"),
        ({"sesoi": "0"}, "sesoi: got '0', expected a number"),
        ({"bound": 3}, "bound: got 3.0; less needs sesoi alone"),
        ({"expects": "alike", "sesoi": None, "within": [2, 1]}, "within: got (2.0, 1.0)"),
        ({"pool": "median"}, "pool: got 'median', allowed: mean, slope, reach"),
        ({"pool": "slope"}, "against: got '', needed for pool: slope alone"),
        ({"beneath": 0}, "beneath"),
        ({"of": {"values": "test_error"}}, "arm: got values"),
        ({"of": {"where": {}}}, "value: missing"),
        ({"gates": ["luck"]}, "gates: got luck, allowed: enough"),
    ],
)
def test_a_bad_rule_is_refused_with_its_claim(change, words):
    bad = copy.deepcopy(GOOD)
    bad["claims"][0]["primary"] |= change
    with pytest.raises(ValueError, match="claims: C3: ") as caught:
        read_claims(bad)
    assert words in str(caught.value)


def test_a_bad_gate_is_refused_with_its_name():
    bad = copy.deepcopy(GOOD)
    bad["gates"]["enough"]["below"] = 3
    with pytest.raises(ValueError, match="gates: enough: at_least, below: got 10"):
        read_claims(bad)


def test_a_claim_has_a_primary_endpoint():
    bad = copy.deepcopy(GOOD)
    del bad["claims"][0]["primary"]
    with pytest.raises(ValueError, match="claims: C3: primary: missing"):
        read_claims(bad)


@pytest.mark.parametrize("path", sorted((ROOT / "config/claims").glob("*.yaml")))
def test_the_rules_here_are_good(path):
    rules = read_claims(yaml.safe_load(path.read_text()))
    ids = [claim.id for claim in rules.claims]
    assert ids == ["C1", "C2a", "C2b", "C3", "C4", "C5", "C6", "C7", "C8", "N1", "N2", "N3"]
    assert rules.min_seeds >= 3
