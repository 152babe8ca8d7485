"""Planted studies get the verdicts that were planted, claim by claim."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from planted import EQUAL, HOLDS, REFUTED, planted

from rapa_lib.experiments.claims import VERDICTS, judge_claims, read_claims, verdicts
from rapa_lib.experiments.claims.evidence import p_values
from rapa_lib.experiments.claims.judge import decide, shown_beside
from rapa_lib.instruments.statistics import contrast, holm

ROOT = Path(__file__).parents[3]
RULES = read_claims(yaml.safe_load((ROOT / "config/claims/paper.yaml").read_text()))
CLAIMS = [claim.id for claim in RULES.claims]
TWO_SIDED = [c.id for c in RULES.claims if c.primary.expects in ("less", "greater")]


def verdict_of(tables):
    judged = verdicts(judge_claims(RULES, tables))
    return dict(zip(judged["id"], judged["verdict"], strict=True))


def row_of(tables, claim):
    """The deciding row of a claim, judged as if it were the only one."""
    alone = replace(RULES, claims=tuple(one for one in RULES.claims if one.id == claim))
    return verdicts(judge_claims(alone, tables)).iloc[0]


def test_a_study_that_shows_every_claim_holds_them_all():
    judged = judge_claims(RULES, planted())
    assert dict(zip(verdicts(judged)["id"], verdicts(judged)["verdict"], strict=True)) == (
        dict.fromkeys(CLAIMS, HOLDS)
    )
    assert set(judged["verdict"]) <= set(VERDICTS)
    assert not judged["reason"].str.contains("The tables:").any()
    agreement = judged[judged["endpoint"].str.startswith("measured ÷ predicted")]
    assert (agreement["verdict"] == HOLDS).all()
    assert agreement["estimate"].iloc[0] == pytest.approx(1, abs=0.02)


def test_a_study_that_contradicts_every_claim_refutes_them_all():
    refuted = dict.fromkeys(CLAIMS, REFUTED) | {"C3": EQUAL}  # C4's gate: like accuracies
    assert verdict_of(planted(refuted)) == refuted


@pytest.mark.parametrize("claim", CLAIMS)
def test_each_claim_is_refuted_by_its_own_endpoint_alone(claim):
    assert verdict_of(planted({claim: REFUTED})) == dict.fromkeys(CLAIMS, HOLDS) | {claim: REFUTED}


@pytest.mark.parametrize("claim", TWO_SIDED)
def test_arms_that_are_alike_are_equivalent(claim):
    assert row_of(planted({claim: EQUAL}), claim)["verdict"] == EQUAL


def test_two_seeds_decide_nothing_but_what_is_exact():
    found = verdict_of(planted(seeds=2))
    assert found.pop("C1") == HOLDS
    assert set(found.values()) == {"undecided"}
    assert row_of(planted(seeds=2), "C3")["reason"] == "2 of at least 3 seeds per arm."


def test_one_seed_has_a_number_and_no_interval():
    row = row_of(planted(seeds=1), "C3")
    assert row["estimate"] == pytest.approx(-1.5, abs=0.5)
    assert np.isnan(row["low"])
    assert row["verdict"] == "undecided"


def test_a_difference_within_its_spread_is_undecided():
    row = row_of(planted({"C3": HOLDS}, spread=3.0, seeds=3, rng=1), "C3")
    assert row["low"] < 0 < row["high"]
    assert row["verdict"] == "undecided"
    assert "seeds per arm would decide" in row["reason"]


@pytest.mark.parametrize(
    ("claim", "without"),
    [("C2a", "random_fixed"), ("C3", "none"), ("C4", "none"), ("C6", "none"), ("C7", "none"),
     ("C8", "noisy"), ("C3", "random"), ("N1", "random")],
)  # fmt: skip
def test_a_missing_arm_is_not_measured_and_named(claim, without):
    row = row_of(planted(without=[without]), claim)
    assert row["verdict"] == "not measured"
    assert without in row["reason"] or "no rows" in row["reason"]


@pytest.mark.parametrize("claim", ["C2b", "C5", "N1"])
def test_a_claim_against_all_rivals_cannot_hold_without_one_but_can_be_refuted(claim):
    row = row_of(planted(without=["alternate"]), claim)
    assert row["verdict"] == "undecided"
    assert "alternate" in row["reason"]
    refuted = planted({claim: REFUTED}, without=["alternate"])
    assert row_of(refuted, claim)["verdict"] == REFUTED


def test_a_claim_against_all_rivals_is_judged_by_the_hardest():
    tables = planted()
    accuracy = tables["accuracy"]
    ahead = accuracy["tiling"] == "image"
    accuracy.loc[ahead, "test_error"] -= 4
    row = row_of(tables, "C5")
    assert (row["verdict"], row["against"]) == (REFUTED, "hardest: image")
    assert row["estimate"] == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    ("claims", "change"),
    [(("C2a", "C3", "C6"), {"train_error": 20.0}), (("C4",), {"outcomes": {"C3": REFUTED}})],
)
def test_a_closed_gate_makes_a_claim_untestable_and_says_why(claims, change):
    tables = planted(**change)
    if "C4" in claims:
        random = tables["accuracy"]["tiling"] == "random"
        tables["accuracy"].loc[random, "test_error"] += 1
    found = verdict_of(tables)
    untestable = {claim for claim, verdict in found.items() if verdict == "not testable here"}
    assert untestable == set(claims)
    for claim in claims:
        assert row_of(tables, claim)["reason"].startswith("Needed: ")


@pytest.mark.parametrize(
    ("number", "shown"), [(9.96, "9.96"), (9.94, "9.9"), (9.9999, "9.9999"), (-3, "-3.0")]
)
def test_a_number_that_misses_a_gate_is_seen_to_miss_it(number, shown):
    gate = RULES.gates["something_to_regularize"]
    assert not gate.passed(number)
    assert shown_beside(gate, number) == shown


def test_a_gate_without_numbers_stays_closed():
    tables = planted()
    del tables["accuracy_curves"]
    row = row_of(tables, "C3")
    assert row["verdict"] == "not testable here"
    assert "no numbers to show it" in row["reason"]


@pytest.mark.parametrize("table", ["acceleration_costs", "filter_similarity_pull"])
def test_a_table_that_is_not_there_yet_is_not_measured(table):
    tables = planted()
    del tables[table]
    claim = {"acceleration_costs": "C1", "filter_similarity_pull": "C2a"}[table]
    assert row_of(tables, claim)["verdict"] == "not measured"


def test_settings_that_are_empty_equal_themselves_after_a_csv_file(tmp_path):
    tables = {}
    for name, table in planted().items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        tables[name] = pd.read_csv(tmp_path / f"{name}.csv")
    assert verdict_of(tables) == dict.fromkeys(CLAIMS, HOLDS)


def test_seeds_without_any_spread_decide_nothing():
    tables = planted(spread=0.0)
    assert row_of(tables, "C3")["verdict"] == "undecided"
    assert "do not differ" in row_of(tables, "C3")["reason"]


def test_the_primary_setting_is_the_preferred_one_and_others_are_shown():
    tables = planted()
    accuracy = tables["accuracy"]
    random = accuracy[accuracy["tiling"] == "random"]
    config = random["config"].str.replace('"tile_lr_power": 1.0', '"tile_lr_power": 0.5')
    slower = random.assign(config=config, test_error=random["test_error"] + 9)
    tables["accuracy"] = pd.concat([slower, accuracy])  # the first in the table is not preferred
    judged = judge_claims(RULES, tables)
    c3 = judged[(judged["id"] == "C3") & judged["endpoint"].eq("test error, random − none")]
    assert c3["role"].tolist() == ["primary", "secondary"]
    assert c3["setting"].tolist() == ["rate × n_tiles", "rate × √n_tiles"]
    assert c3["verdict"].tolist() == [HOLDS, REFUTED]


def test_rows_that_nothing_tells_apart_decide_nothing_and_are_named():
    tables = planted()
    tables["accuracy"] = pd.concat([tables["accuracy"]] * 2)
    row = row_of(tables, "C3")
    assert row["verdict"] == "undecided"
    assert "several rows of random in accuracy have the same seed" in row["reason"]


def test_primary_endpoints_are_corrected_by_holm_and_others_by_their_own():
    judged = judge_claims(RULES, planted(seeds=8))
    primary = verdicts(judged)
    tested = primary["p"].notna()
    assert primary["p_corrected"][tested].to_numpy() == pytest.approx(
        holm(primary["p"][tested].to_numpy())
    )
    others = judged[(judged["role"] == "secondary") & judged["p_corrected"].notna()]
    assert (others["p_corrected"] >= others["p"] - 1e-12).all()
    assert primary.set_index("id")["p_sign_flip"]["C3"] == 1 / 256


def test_verdicts_exclude_one_another_in_order():
    yes, no = 0.01, 0.5
    p = np.array([[yes, yes, yes], [no, yes, yes], [no, no, yes], [no, no, no], [np.nan, no, yes]])
    assert decide(*p.T, level=0.05).tolist() == [EQUAL, HOLDS, REFUTED, "undecided", REFUTED]


LATER = {"N2", "N3"}
"""Claims that came after these studies were run."""


# --- Planted studies by the thousand ------------------------------------------------------------


def simulated(effect, seeds, studies, rng=0):
    """Verdicts (studies, claims) where all endpoints have an effect of so many SESOI.

    Seeds differ by one SESOI. A claim against several rivals is met by one that is hard to beat.
    """
    rng = np.random.default_rng(rng)
    questions = []
    for claim in RULES.claims:
        endpoint = claim.primary
        if endpoint.expects == "at_least":
            continue
        weights = (1, -1, -1, 1) if endpoint.beyond else (1, -1)
        arms = [rng.normal(0, endpoint.sesoi, (studies, seeds)) for _ in weights]
        sign = 1 if endpoint.expects == "greater" else -1
        arms[0] += sign * effect * endpoint.sesoi
        if endpoint.expects == "no_more":
            arms[0] += endpoint.sesoi  # costs as much as it may: the edge of what the claim says
        found = p_values(endpoint, contrast(arms, weights))
        questions.append([np.broadcast_to(p, (studies,)) for p in found])
    holds, equal, refuted = (holm(np.stack(p, axis=-1)) for p in zip(*questions, strict=True))
    return decide(equal, holds, refuted, RULES.level)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_without_an_effect_at_most_one_study_in_twenty_holds_any_claim(seeds):
    found = simulated(0, seeds, studies=20_000)  # 2,000 would leave ± 1 % to chance
    assert found.shape == (20_000, 11)
    assert 0.04 < (found == HOLDS).any(axis=1).mean() <= 0.05


def test_an_effect_of_two_sesoi_is_found_with_ten_seeds(capsys):
    found = simulated(2, 10, studies=2000)
    power = (found == HOLDS).mean()
    with capsys.disabled():
        print(f"\npower for 2 SESOI, 10 seeds, spread 1 SESOI: {power:.3f}", end=" ")
    assert power > 0.9
    assert (found == REFUTED).mean() < 0.001


@pytest.mark.parametrize(
    ("study", "unmeasured"),
    [("standard", {"C2a"}), ("mnist5k", {"C2a", "C2b", "C4", "C5", "C8", "N1"})],
)
def test_a_committed_study_is_judged_in_all_that_it_ran(study, unmeasured):
    tables = {
        path.stem: pd.read_csv(path, low_memory=False)
        for path in (ROOT / "results" / study).glob("*.csv")
    }
    judged = judge_claims(RULES, tables)
    primary = verdicts(judged)
    assert set(primary[primary["verdict"] == "not measured"]["id"]) == unmeasured | LATER
    assert not judged["reason"].str.startswith("The tables:").any()
    if study == "standard":
        kept = pd.read_csv(ROOT / "results/standard/claims.csv")
        judged = judged[~judged["id"].isin(LATER - set(kept["id"]))]
        assert judged["verdict"].tolist() == kept["verdict"].tolist()
        assert judged["estimate"].to_numpy() == pytest.approx(kept["estimate"], nan_ok=True)
