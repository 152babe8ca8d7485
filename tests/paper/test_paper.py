"""Every number of the replication report comes from a table."""

import re
from pathlib import Path

import pandas as pd
import pytest
from fill import TEMPLATE, Tables, fill

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "config/standard.yaml"


@pytest.fixture(scope="module")
def tables():
    return Tables(ROOT / "results/standard", STUDY)


def prose(template):
    """What the template says itself: without expressions, code, and references."""
    text = re.sub(r"\{[{%].*?[%}]\}|<!--.*?-->", "", template, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text.partition("## References")[0])
    return re.sub(r"\b(C\d\w?|N1)\b|\[\d\]", "", text)  # claims and citations


def test_the_template_has_no_number_of_its_own():
    assert re.findall(r"\d\S*", prose(TEMPLATE.read_text(encoding="utf-8"))) == []
    assert re.findall(r"\d\S*", prose("C3 {{ t.x(3) }} was 8.3 [1] `n=4`")) == ["8.3"]


def test_the_committed_report_is_the_tables(tables):
    assert (ROOT / "paper/paper.md").read_text(encoding="utf-8") == fill(tables)


def test_numbers_follow_the_tables(tables, tmp_path):
    for path in (ROOT / "results/standard").glob("*.*"):
        if path.suffix in (".csv", ".md"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    errors = pd.read_csv(tmp_path / "accuracy.csv")
    errors.loc[errors["tiling"] == "none", "test_error"] = [11.0, 12.0, 13.0]
    errors.to_csv(tmp_path / "accuracy.csv", index=False)
    claims = pd.read_csv(tmp_path / "claims.csv")
    claims.loc[(claims["id"] == "C3") & (claims["role"] == "primary"), "estimate"] = -7.654
    claims.to_csv(tmp_path / "claims.csv", index=False)
    page = fill(Tables(tmp_path, STUDY))
    assert "| `none` | 12.0 ± 2.5 |" in page
    assert "−7.65 [" in page
    assert page != fill(tables)


def test_a_mean_over_unlike_runs_is_refused(tables):
    with pytest.raises(ValueError, match="expected one a seed"):
        tables.error("random")
    with pytest.raises(ValueError, match="got 0 runs"):
        tables.error("none", tile_lr_power=7.0)
    with pytest.raises(ValueError, match="config: tiling has"):
        tables.config("tiling")
