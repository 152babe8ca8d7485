"""Every number of the replication report comes from a table, and its words agree with them."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from fill import STUDIES, TEMPLATE, Tables, fill, load

ROOT = Path(__file__).parents[2]
RIVAL = "test error, random − an ordinary network with dropout"


@pytest.fixture(scope="module")
def studies():
    return load()


@pytest.fixture(scope="module")
def standard():
    return Tables(ROOT / "results/standard", ROOT / "config/standard.yaml")


def prose(template):
    """What the template says itself: without expressions, code, and references."""
    text = re.sub(r"\{[{%].*?[%}]\}|<!--.*?-->", "", template, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text.partition("## References")[0])
    return re.sub(r"\b(C\d\w?|N\d)\b|\[\d\]", "", text)  # claims and citations


def test_the_template_has_no_number_of_its_own():
    assert re.findall(r"\d\S*", prose(TEMPLATE.read_text(encoding="utf-8"))) == []
    assert re.findall(r"\d\S*", prose("C3 {{ t.x(3) }} was 8.3 [1] `n=4`")) == ["8.3"]


def test_the_committed_report_is_the_tables(studies):
    assert (ROOT / "paper/paper.md").read_text(encoding="utf-8") == fill(studies)


def test_it_is_of_confirming_studies(studies):
    for study in studies.values():
        assert study.status == "Rules written before the runs: verified."
        missing = int((~study.runs["done"]).sum())
        assert f"{missing} of {len(study.runs)} runs" in study.incomplete or not missing
        assert study.incomplete in fill(studies)
        assert study.study["confirmatory"]


def test_what_the_abstract_and_the_discussion_say_in_words_is_so(studies):
    for name in ("digits", "small", "full"):
        study = studies[name]
        assert study.further("C6", "test error, vote − single passes of")["verdict"] == "holds"
        assert study.further("C3", RIVAL)["verdict"] == "does not hold"
        assert study.further("C3", RIVAL)["low"] > 0
        fixed = study.further("C5", "test error", "random_fixed") if name == "digits" else None
        assert (fixed or study.claim("C5"))["high"] < 0  # alone there, so the primary endpoint
    for name in ("attacked_digits", "small"):
        assert studies[name].claim("C4")["verdict"] == "not testable here"
        assert "clean accuracies" in studies[name].claim("C4")["reason"]
    assert studies["digits"].claim("C5")["against"] == "hardest: perforated_dense"


def test_numbers_follow_the_tables(studies, tmp_path):
    for name in STUDIES:
        shutil.copytree(
            ROOT / "results" / name, tmp_path / "results" / name,
            ignore=lambda _, names: [n for n in names if not n.endswith((".csv", ".md"))],
        )  # fmt: skip
    path = tmp_path / "results/small/accuracy.csv"
    errors = pd.read_csv(path)
    errors.loc[errors["tiling"] == "none", "test_error"] = [10.0, 11.0, 12.0, 13.0, 14.0]
    errors.to_csv(path, index=False)
    path = tmp_path / "results/digits/claims.csv"
    claims = pd.read_csv(path)
    claims.loc[(claims["id"] == "C3") & (claims["role"] == "primary"), "estimate"] = -7.654
    claims.to_csv(path, index=False)
    page = fill(load(tmp_path))
    assert "| `none` | 12.0 ± 2.0 |" in page
    assert page.count("−7.65 [") == 2
    assert page != fill(studies)


def test_a_mean_over_unlike_runs_is_refused(standard):
    with pytest.raises(ValueError, match="expected one a seed"):
        standard.error("random")
    with pytest.raises(ValueError, match="got 0 runs"):
        standard.error("none", tile_lr_power=7.0)
    with pytest.raises(ValueError, match="config: tiling has"):
        standard.config("tiling")


def test_an_endpoint_that_is_not_alone_is_refused(studies):
    with pytest.raises(ValueError, match="got 0 endpoints of C3 that begin with 'pears'"):
        studies["digits"].further("C3", "pears")
    with pytest.raises(ValueError, match="got 2 endpoints of C3"):
        studies["digits"].further("C3", "test error, random − ")
