"""Whether a study's rules and code were fixed before its runs, by what every run recorded."""

import pandas as pd

VERIFIED, EXPLORATORY = "rules written before the runs: verified", "exploratory"


def written_before(runs: pd.DataFrame | None, rules_sha256: str) -> tuple[bool, str]:
    """Compare the rules that judge a study with those that its runs recorded when they started.

    Args:
        runs: ``runs.csv``, one row per run, with ``rules_sha256`` and ``code_sha256``; None where a
            study has none.
        rules_sha256: of the rules that it is judged by, see
            :func:`rapa_lib.experiments.provenance.rules_hash`.

    Returns:
        (whether it is verified, the sentence for the report).
    """
    why = _why_not(runs, rules_sha256)
    return (False, f"{EXPLORATORY}: {why}") if why else (True, VERIFIED)


def _why_not(runs: pd.DataFrame | None, rules_sha256: str) -> str:
    if runs is None or runs.empty:
        return "no list of runs says by which rules and code they were made"
    if "done" in runs:
        runs = runs[runs["done"].astype(bool)]
    for column, what in (("rules_sha256", "rules"), ("code_sha256", "code")):
        if column not in runs:
            return f"its runs did not record the hash of their {what}"
        if (missing := int(runs[column].isna().sum())) or runs.empty:
            return f"{missing} of {len(runs)} runs did not record the hash of their {what}"
    other = int((runs["rules_sha256"] != rules_sha256).sum())
    if other:
        return f"{other} of {len(runs)} runs were made under other rules"
    if (codes := runs["code_sha256"].nunique()) > 1:
        return f"its runs were made by {codes} versions of the code"
    if "chosen_sha256" in runs and (n := runs["chosen_sha256"].nunique(dropna=False)) > 1:
        return f"its runs were made with {n} choices of tuned values"
    return ""
