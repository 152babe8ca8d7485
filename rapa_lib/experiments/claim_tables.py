"""Judged claims as tables, for a page in a browser and for Markdown."""

import math
from html import escape

import pandas as pd

LOOK = {"held": "held", "held partly": "partly", "did not hold": "not"}


def verdicts_html(claims: pd.DataFrame) -> str:
    """The table of claims, each with its verdict and a link to its tests.

    Args:
        claims: of :func:`rapa_lib.claims.overall`.
    """
    rows = [
        f'<tr><td><a href="#tests-{escape(row["id"])}">{escape(row["id"])}</a></td>'
        f"<td>{escape(row['claim'])}</td><td>{_badge(row['overall'])}</td>"
        f'<td class="number">{_counts(row)}</td></tr>'
        for row in claims.to_dict("records")
    ]
    return _table(["", "claim", "verdict", "tests held"], rows)


def tests_html(tests: pd.DataFrame) -> str:
    """The tests of one claim, with numbers, intervals, rules and verdicts.

    Args:
        tests: rows of :func:`rapa_lib.claims.judge_claims`.
    """
    rows = [
        f"<tr><td>{_linked(row)}</td><td>{escape(row['setting'])}</td>"
        f'<td class="number">{interval_text(row)}</td>'
        f'<td class="number">{_number(row["effect"])}</td>'
        f'<td class="number">{row["seeds"] or ""}</td><td>{escape(row["rule"])}</td>'
        f"<td>{_badge(row['verdict'])}</td></tr>"
        for row in tests.to_dict("records")
    ]
    names = ["test", "setting", "mean [95 % interval]", "effect", "seeds", "holds if", "verdict"]
    return _table(names, rows)


def verdicts_markdown(claims: pd.DataFrame, tests: pd.DataFrame) -> str:
    """Both tables in Markdown: one row per claim, then one row per test and setting."""
    first = claims.assign(**{"tests held": [_counts(row) for row in claims.to_dict("records")]})
    first = first[["id", "claim", "overall", "tests held"]].rename(columns={"overall": "verdict"})
    second = pd.DataFrame(
        {
            "claim": row["id"],
            "test": row["test"],
            "setting": row["setting"],
            "mean [95 % interval]": interval_text(row),
            "effect": _number(row["effect"]),
            "seeds": row["seeds"] or "",
            "holds if": row["rule"],
            "verdict": row["verdict"],
        }
        for row in tests.to_dict("records")
    )
    return "\n\n".join(
        table.to_markdown(index=False, disable_numparse=True) for table in (first, second)
    )


def interval_text(row: dict) -> str:
    """A mean with its interval; alone where it is exact, or has none."""
    if math.isnan(row["mean"]):
        return ""
    if math.isnan(row["low"]) or not row["seeds"]:
        return _number(row["mean"])
    return f"{_number(row['mean'])} [{_number(row['low'])}, {_number(row['high'])}]"


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def _counts(row: dict) -> str:
    measured = row["held"] + row["did not hold"] + row["undecided"] + row["no verdict"]
    return f"{row['held']} of {measured}" if measured else ""


def _badge(verdict: str) -> str:
    return f'<span class="verdict {LOOK.get(verdict, "open")}">{escape(verdict)}</span>'


def _linked(row: dict) -> str:
    """The test in words, linked to the figure that shows it, if one does."""
    words = escape(row["test"])
    if not row["figure"] or row["verdict"] == "not measured":
        return words
    return f'<a href="#{escape(row["figure"])}">{words}</a>'


def _table(names: list[str], rows: list[str]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
