"""Rules written before the runs are told from those written after, by what the runs recorded."""

import pandas as pd
import pytest

from rapa_lib.experiments.claims import written_before

RUNS = pd.DataFrame(
    {"done": [True, True, False], "rules_sha256": ["r", "r", None], "code_sha256": ["c", "c", None]}
)


def test_runs_under_these_rules_and_one_code_are_verified():
    assert written_before(RUNS, "r") == (True, "rules written before the runs: verified")
    assert written_before(RUNS.assign(chosen_sha256=["t", "t", None]), "r")[0]


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (None, "no list of runs"),
        (RUNS.drop(columns="rules_sha256"), "did not record the hash of their rules"),
        (RUNS.drop(columns="code_sha256"), "did not record the hash of their code"),
        (RUNS.assign(rules_sha256=["r", None, None]), "1 of 2 runs did not record the hash"),
        (RUNS.assign(rules_sha256=["r", "s", None]), "1 of 2 runs were made under other rules"),
        (RUNS.assign(code_sha256=["c", "d", None]), "made by 2 versions of the code"),
        (RUNS.assign(chosen_sha256=["t", "u", None]), "made with 2 choices of tuned values"),
        (RUNS.assign(chosen_sha256=["t", None, None]), "made with 2 choices of tuned values"),
        (RUNS.assign(done=False), "0 of 0 runs did not record"),
    ],
)
def test_anything_else_is_exploratory_and_says_why(runs, why):
    verified, words = written_before(runs, "r")
    assert not verified
    assert words.startswith("exploratory: ")
    assert why in words
