"""Markdown of tables and of texts from outside."""

import re
from collections.abc import Collection
from typing import Any

import pandas as pd


def plain_text(text: str) -> str:
    """Text from outside, as part of a line of Markdown that shows it letter by letter."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&$-])", r"\\\1", " ".join(str(text).split()))


def lines_if(known: bool, text: str) -> list[str]:
    """A line and an empty one before it, where there is something to show."""
    return ["", text] if known else []


def markdown_table(table: pd.DataFrame, *, index: bool = False, **options: Any) -> str:
    """A table in Markdown; a bar in a cell does not begin another one.

    Args:
        table: to write.
        index: whether its index is a column.
        options: of :meth:`pandas.DataFrame.to_markdown`.
    """
    texts = table.map(_cell).rename(columns=_cell)
    if index:
        texts = texts.rename(index=_cell)
    return texts.to_markdown(index=index, **options)


def set_aside(table: pd.DataFrame, names: Collection[str]) -> tuple[pd.DataFrame, str]:
    """A table without those of some columns that are the same in every row, and these as a line.

    Args:
        table: ready to print.
        names: of the columns that may go.
    """
    same = [name for name in table if name in names and table[name].nunique(dropna=False) == 1]
    if not same or len(table) == 1:
        return table, ""
    told = ", ".join(f"{name} {plain_text(table[name].iloc[0])}" for name in same)
    return table.drop(columns=same), f"All: {told}."


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return " ".join(value.splitlines()).replace("|", r"\|")
