"""Markdown of tables and of texts from outside."""

import re
from typing import Any

import pandas as pd


def plain_text(text: str) -> str:
    """Text from outside, as part of a line of Markdown that shows it letter by letter."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&$-])", r"\\\1", " ".join(str(text).split()))


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


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return " ".join(value.splitlines()).replace("|", r"\|")
