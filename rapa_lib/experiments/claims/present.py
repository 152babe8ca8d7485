"""Judged claims as tables, for a page in a browser and for Markdown."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from rapa_lib.experiments.markdown import markdown_table

LOOK = {
    "holds": "held",
    "equivalent": "same",
    "does not hold": "not",
    "not testable here": "gate",
}
METHODS = {
    "pooled": "unpaired, variance pooled",
    "Welch": "unpaired, Welch",
    "paired": "paired by seed",
    "one sample": "one arm",
    "crossed": "over seeds and images",
    "exact": "exact, no seeds",
}


def verdicts_html(judged: pd.DataFrame) -> str:
    """The table of claims: verdict, one number with its interval, what would change it.

    Claims of which a study measured nothing are named in a line below it.

    Args:
        judged: of :func:`rapa_lib.experiments.claims.judge_claims`.
    """
    known = measured(judged)
    rows = [
        f'<tr><td><a href="#claim-{escape(row["id"])}"><b>{escape(row["id"])}</b></a> '
        f"{escape(row['claim'])}</td><td>{_badge(row['verdict'])}</td>"
        f"<td>{escape(number_text(row))}"
        f'<div class="what">{escape(_shown_as(row))}</div></td>'
        f"<td>{escape(row['reason'])}</td></tr>"
        for row in _rows(judged, primary=True)
        if row["id"] in known
    ]
    others = [
        f'<span id="claim-{escape(row["id"])}"><b>{escape(row["id"])}</b> '
        f"{escape(row['claim'])}</span>"
        for row in _rows(judged, primary=True)
        if row["id"] not in known
    ]
    table = _table(
        "claims", ["claim", "verdict", "primary endpoint", "why, and what would change it"], rows
    )
    line = f"<p>Not measured in this study: {'; '.join(others)}.</p>" if others else ""
    return (table if rows else "") + line


def measured(judged: pd.DataFrame) -> list[str]:
    """The claims of which a study measured any endpoint, in their order.

    Args:
        judged: of :func:`rapa_lib.experiments.claims.judge_claims`.
    """
    return list(judged.loc[judged["verdict"] != "not measured", "id"].unique())


def endpoints_html(judged: pd.DataFrame) -> str:
    """The endpoints of one claim: the primary one, and folded away those that do not decide.

    Args:
        judged: rows of :func:`rapa_lib.experiments.claims.judge_claims`, of one claim.
    """
    (first,), others = _rows(judged, primary=True), _rows(judged, primary=False)
    parts = [f"<p>{_badge(first['verdict'])} <b>{_linked(first)}</b>{_in_setting(first)}: "]
    if number := number_text(first):
        parts.append(f"<b>{escape(number)}</b>; claimed: {escape(first['rule'])}")
        parts.append(f" ({escape(_details(first))})" if _details(first) else "")
        parts.append(". ")
    parts.append(f"{escape(first['reason'])}</p>")
    if others:
        body = [
            f"<tr><td>{_linked(row)}</td><td>{escape(row['setting'])}</td>"
            f"<td>{escape(number_text(row))}</td>{_labelled('claimed', row['rule'])}"
            f"{_labelled('corrected p', _p(row['p_corrected']))}<td>{_badge(row['verdict'])}"
            f'<div class="what">{escape(row["reason"])}</div></td></tr>'
            for row in others
        ]
        names = ["endpoint", "setting", "number [95 %]", "claimed", "corrected p", "verdict, why"]
        words = "other setting or secondary endpoint" if len(others) == 1 else (
            "other settings and secondary endpoints"
        )  # fmt: skip
        parts.append(f"<details><summary>{len(others)} {words}: shown, not deciding</summary>")
        parts.append(_table("endpoints", names, body) + "</details>")
    return "".join(parts)


def verdicts_markdown(judged: pd.DataFrame) -> str:
    """Both tables in Markdown: one row per claim, then one per secondary endpoint and setting."""
    first = [
        {
            "id": row["id"],
            "claim": row["claim"],
            "verdict": row["verdict"],
            "difference [95 % interval]": number_text(row),
            "primary endpoint": _shown_as(row),
            "why, and what would change it": row["reason"],
            "made by": _details(row),
        }
        for row in _rows(judged, primary=True)
    ]
    second = [
        {
            "claim": row["id"],
            "secondary endpoint": _words(row),
            "setting": row["setting"],
            "difference [95 % interval]": number_text(row),
            "claimed": row["rule"],
            "corrected p": _p(row["p_corrected"]),
            "verdict": row["verdict"],
            "why": row["reason"],
        }
        for row in _rows(judged, primary=False)
    ]
    return "\n\n".join(
        markdown_table(pd.DataFrame(rows), disable_numparse=True)
        for rows in (first, second)
        if rows
    )


def number_text(row: Mapping[str, Any]) -> str:
    """An estimate with its interval and unit; alone where it is exact, or has none."""
    if math.isnan(row["estimate"]):
        return ""
    unit = f" {row['unit']}" if row["unit"] else ""
    if row["method"] == "exact":
        return f"{row['estimate']:,.0f}{unit}"
    if math.isnan(row["low"]):
        return f"{_number(row['estimate'])}{unit}"
    return f"{_number(row['estimate'])} [{_number(row['low'])}, {_number(row['high'])}]{unit}"


def _rows(judged: pd.DataFrame, *, primary: bool) -> list[dict[str, Any]]:
    """Rows as dicts; text that a CSV file left empty is empty text."""
    texts = [name for name in judged if name in _TEXTS]
    whole = judged.astype(dict.fromkeys(texts, object))
    whole[texts] = whole[texts].fillna("")
    return whole[(whole["role"] == "primary") == primary].to_dict("records")


_TEXTS = ("against", "setting", "unit", "method", "seeds", "reason", "figure")


def _number(value: float) -> str:
    size = abs(value)
    digits = 3 if size < 0.0995 else 2 if size < 9.995 else 1
    return f"{value:.{digits}f}".replace("-", "−")


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _details(row: Mapping[str, Any]) -> str:
    """How the number was made: seeds, method, p values."""
    seeds = row["seeds"] if isinstance(row["seeds"], str) else f"{row['seeds']:g}"
    parts = [f"{seeds} seeds per arm"] if seeds else []
    parts += [METHODS[row["method"]]] if row["method"] else []
    if not math.isnan(row["sesoi"]) and row["method"]:
        unit = f" {row['unit']}" if row["unit"] else ""
        parts.append(f"smallest effect of interest {row['sesoi']:g}{unit}")
    if not math.isnan(row["p"]):
        verdict = " of the verdict" if row["verdict"] in LOOK else ""
        parts.append(f"one-sided p{verdict} {_p(row['p'])}")
    if not math.isnan(row["p_corrected"]):
        parts.append(f"corrected {_p(row['p_corrected'])}")
    if not math.isnan(row["p_sign_flip"]):
        parts.append(f"that it holds, by sign flips {_p(row['p_sign_flip'])}")
    return ", ".join(parts)


def _words(row: Mapping[str, Any]) -> str:
    if row["against"].startswith("hardest"):
        return f"{row['endpoint']}; {row['against']}"
    return f"{row['endpoint']}: against {row['against']}" if row["against"] else row["endpoint"]


def _shown_as(row: Mapping[str, Any]) -> str:
    """An endpoint in words, with its setting and what the claim says of it."""
    setting = f" ({row['setting']})" if row["setting"] else ""
    return f"{_words(row)}{setting}; claimed: {row['rule']}"


def _in_setting(row: Mapping[str, Any]) -> str:
    return f" ({escape(row['setting'])})" if row["setting"] else ""


def _badge(verdict: str) -> str:
    return f'<span class="verdict {LOOK.get(verdict, "open")}">{escape(verdict)}</span>'


def _labelled(label: str, text: str) -> str:
    """A cell that carries its column's name, where a narrow page has no header."""
    return f'<td data-label="{label}">{escape(text)}</td>' if text else "<td></td>"


def _linked(row: Mapping[str, Any]) -> str:
    """The endpoint in words, linked to the figure that shows it, if one does."""
    words = escape(_words(row))
    if not row["figure"] or row["verdict"] == "not measured":
        return words
    return f'<a href="#{escape(row["figure"])}">{words}</a>'


def _table(kind: str, names: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(rows)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
