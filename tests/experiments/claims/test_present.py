"""Pages say the same as the numbers."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from planted import REFUTED, planted

from rapa_lib.experiments.claims import (
    endpoints_html,
    judge_claims,
    measured,
    read_claims,
    verdicts,
    verdicts_html,
    verdicts_markdown,
)
from rapa_lib.experiments.claims.present import number_text

ROOT = Path(__file__).parents[3]
RULES = read_claims(yaml.safe_load((ROOT / "config/claims/paper.yaml").read_text()))


@pytest.fixture(scope="module")
def judged():
    return judge_claims(RULES, planted({"C5": REFUTED}, seeds=6))


def test_every_claim_has_its_verdict_and_number_on_the_page(judged):
    page, text = verdicts_html(judged), verdicts_markdown(judged)
    for row in verdicts(judged).to_dict("records"):
        assert f'href="#claim-{row["id"]}"' in page
        assert number_text(row) in page
        assert number_text(row) in text
    assert page.count('<span class="verdict held">holds</span>') == 11
    assert page.count('<span class="verdict not">does not hold</span>') == 1
    assert "hardest: " in page


def test_claims_of_which_nothing_was_measured_stand_in_a_line():
    one = judge_claims(RULES, {name: t for name, t in planted().items() if "fault" not in name})
    page = verdicts_html(one)
    table, line = page.split("</table>")
    assert "N1" not in measured(one)
    assert measured(one)[0] == "C1"
    assert "#claim-N1" not in table
    assert line.startswith('<p>Not measured in this study: <span id="claim-N1"><b>N1</b> ')
    assert "not measured" not in table
    nothing = verdicts_html(judge_claims(RULES, {}))
    assert "<table" not in nothing
    assert nothing.count("<span id=") == len(RULES.claims)


def test_the_endpoint_that_decides_comes_first_and_others_are_folded(judged):
    part = judged[judged["id"] == "C3"]
    page = endpoints_html(part)
    first, folded = page.split("<details>")
    assert '<a href="#accuracy">test error, random − none</a>' in first
    assert "6 seeds per arm, unpaired, variance pooled" in first
    assert "smallest effect of interest 0.5 points" in first
    assert "one-sided p of the verdict &lt; 0.001" in first
    assert "by sign flips 0.016" in first
    assert "dropout" in folded
    assert "dropout" not in first


def test_pages_from_a_csv_file_are_the_same(judged, tmp_path):
    judged.to_csv(tmp_path / "claims.csv", index=False)
    read = pd.read_csv(tmp_path / "claims.csv")
    assert verdicts_html(read) == verdicts_html(judged)
    assert verdicts_markdown(read) == verdicts_markdown(judged)


def test_words_are_no_markup():
    claim = RULES.claims[3]
    odd = replace(
        claim, claim="<b>&", primary=replace(claim.primary, endpoint="<i>&"), secondary=()
    )
    judged = judge_claims(replace(RULES, claims=(odd,)), planted())
    for page in (verdicts_html(judged), endpoints_html(judged)):
        assert "<i>" not in page
        assert "&lt;i&gt;&amp;" in page


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((1.234, 0.5, 2.0), "1.23 [0.50, 2.00] points"),
        ((-12.34, -20.0, 0.01), "−12.3 [−20.0, 0.010] points"),
        ((1.5, float("nan"), float("nan")), "1.50 points"),
        ((float("nan"),) * 3, ""),
    ],
)
def test_numbers_have_their_interval_and_unit(numbers, text):
    row = dict(zip(("estimate", "low", "high"), numbers, strict=True))
    assert number_text(row | {"unit": "points", "method": "pooled"}) == text
