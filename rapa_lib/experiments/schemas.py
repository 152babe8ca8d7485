"""What a record must hold: the schema of each experiment's files, checked whenever one is read.

A file that is whole JSON may still be wrong: edited by hand, of another program, or of another run.
This module imports neither PyTorch nor pandas: the workflow checks with it before anything runs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Value = Any


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Args:
        words: what it is, for messages.
        holds: whether a value is of it.
    """

    words: str
    holds: Callable[[Value], bool]


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


NUMBER = Kind("a finite number", _is_number)
COUNT = Kind("a whole number of at least 0", _is_count)
PERCENT = Kind("a number from 0 to 100", lambda value: _is_number(value) and 0 <= value <= 100)
SHARE = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
TEXT = Kind("a text", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def maybe(kind: Kind) -> Kind:
    """The same, or null."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


@dataclass(frozen=True)
class Rows:
    """A list of objects, each with at least these entries."""

    columns: Mapping[str, Kind]


Fields = Mapping[str, Kind | Rows]

_PROVENANCE: Fields = {"git_commit": TEXT, "torch_version": TEXT, "device": TEXT, "threads": COUNT}
_LABELS: Fields = {"dataset": TEXT, "tiling": TEXT, "n_tiles": TEXT, "seed": COUNT, "epochs": COUNT}
_OF_DATA: Fields = {**_PROVENANCE, "data_fingerprint": TEXT}
_FOLLOWING: Fields = {**_OF_DATA, **_LABELS, "config": OBJECT}

SCHEMAS: Mapping[str, Mapping[str, Fields]] = MappingProxyType(
    {
        "accuracy": {
            "record.json": {
                **_FOLLOWING,
                "test_error": PERCENT,
                "test_error_std_draws": NUMBER,
                "test_error_vote": PERCENT,
                "test_error_softmax": PERCENT,
                "test_error_merged": PERCENT,
                "test_error_merged_raw": PERCENT,
                "draws": COUNT,
                "n_parameters": COUNT,
                "train_seconds": NUMBER,
                "speedups": OBJECT,
            },
            "curve.json": {
                **_LABELS,
                "history": Rows(
                    {
                        "epoch": COUNT,
                        "train_loss": NUMBER,
                        "train_error": PERCENT,
                        "test_error": maybe(PERCENT),
                    }
                ),
            },
            "similarity.json": {**_LABELS, "measurements": Rows({"epoch": COUNT})},
        },
        "filter_similarity": {
            "record.json": {
                **_FOLLOWING,
                "similarities": Rows({"epoch": COUNT, "layer": TEXT, "variance_ratio": NUMBER}),
                "penalties": Rows({"layer": TEXT, "scale": NUMBER, "measured": NUMBER}),
            }
        },
        "fault_tolerance": {
            "record.json": {
                **_FOLLOWING,
                "rows": Rows({"layers": TEXT, "share": SHARE, "test_error": PERCENT}),
                "repairs": Rows({"repair": TEXT, "share": SHARE, "test_error": PERCENT}),
            }
        },
        "adversarial_robustness": {
            "record.json": {
                **_FOLLOWING,
                "rows": Rows(
                    {
                        "level": TEXT,
                        "attack": TEXT,
                        "norm": TEXT,
                        "epsilon": maybe(NUMBER),
                        "clean_accuracy": SHARE,
                        "robust_accuracy": SHARE,
                        "low": SHARE,
                        "high": SHARE,
                    }
                ),
            }
        },
        "analog_training": {
            "record.json": {
                **_OF_DATA,
                "dataset": TEXT,
                "seed": COUNT,
                "measurement": OBJECT,
                "rows": Rows({"tiling": TEXT, "method": TEXT, "test_error": maybe(PERCENT)}),
                "inference": Rows({"tiling": TEXT, "method": TEXT, "test_error": maybe(PERCENT)}),
            }
        },
        "acceleration": {
            "record.json": {
                **_PROVENANCE,
                "config": OBJECT,
                "rows": Rows({"network": TEXT, "n_tiles": COUNT, "speedup": NUMBER}),
                "costs": Rows({"network": TEXT, "n_tiles": COUNT, "speedup": NUMBER}),
            }
        },
    }
)
"""By experiment and file, what must be there; more may be."""


def check_file(experiment: str, name: str, content: Value, where: str) -> None:
    """Raise ValueError for a file of a run that does not hold what it must.

    Beside the experiment's schema (one that has none is not asked for more): no number is infinite
    or NaN, and the rows of a list hold in one column values of one kind, or null.

    Args:
        experiment: in the catalogue.
        name: of the file: ``record.json`` or another JSON file of the run.
        content: what was read from it.
        where: the file, for the message.
    """
    if not isinstance(content, dict):
        raise ValueError(f"record: {where}: got {_short(content)}, expected an object")
    for field, kind in SCHEMAS.get(experiment, {}).get(name, {}).items():
        if field not in content:
            raise ValueError(f"record: {where}: {field} is missing")
        if isinstance(kind, Rows):
            _check_rows(content[field], kind, f"record: {where}: {field}")
        elif not kind.holds(content[field]):
            got = _short(content[field])
            raise ValueError(f"record: {where}: {field}: got {got}, expected {kind.words}")
    for field, value in content.items():
        _check_values(value, f"record: {where}: {field}")


def _check_rows(rows: Value, kind: Rows, place: str) -> None:
    if not isinstance(rows, list):
        raise ValueError(f"{place}: got {_short(rows)}, expected a list of rows")
    for i, row in enumerate(rows):
        for column, wanted in kind.columns.items():
            if not isinstance(row, dict) or column not in row:
                raise ValueError(f"{place}[{i}]: {column} is missing")
            if not wanted.holds(row[column]):
                got = _short(row[column])
                raise ValueError(f"{place}[{i}].{column}: got {got}, expected {wanted.words}")


def _check_values(value: Value, place: str) -> None:
    """Raise for a number that is not finite, and for rows whose columns hold several kinds."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}: got {value}, expected a finite number")
    if isinstance(value, dict):
        for key, one in value.items():
            _check_values(one, f"{place}.{key}")
    elif isinstance(value, list):
        _check_columns([one for one in value if isinstance(one, dict)], place)
        for i, one in enumerate(value):
            if isinstance(one, float | list | dict):
                _check_values(one, f"{place}[{i}]")


def _check_columns(rows: list[dict], place: str) -> None:
    """Raise for a column whose values are of several kinds, null apart."""
    kinds: dict[str, str] = {}
    for i, row in enumerate(rows):
        for column, entry in row.items():
            kind = _kind(entry)
            if kind != "null" and kind != kinds.setdefault(column, kind):
                got = f"{_short(entry)} ({kind}), where others are {kinds[column]}"
                raise ValueError(f"{place}[{i}].{column}: got {got}")


def _kind(value: Value) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "numbers"
    if isinstance(value, str):
        return "texts"
    return "lists" if isinstance(value, list) else "objects"


def _short(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
