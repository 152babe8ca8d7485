"""Whether numbers of several states of the code, or of the data, would stand side by side."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

ALLOWED_BY = "MIX=1 (--mix)"
"""What a user says to have them side by side all the same."""

_CHOICE = ("dataset", "data_root", "image_size", "n_train", "n_test", "validation")


def mixed_lines(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say what is mixed in records, or in rows of a table of them, a phrase each; [] if nothing.

    Args:
        records: their ``code_sha256``, ``data_fingerprint`` and parameters (``config`` or
            ``measurement``, an object or its JSON) are compared. One that lacks the hash of its
            code is of a state of its own; one that lacks its data's is left out.
    """
    rows = list(records)
    return mixed_code(rows) + mixed_data(rows)


def mixed_code(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """See :func:`mixed_lines`."""
    states = _counted(row.get("code_sha256") for row in rows)
    return [f"{len(states)} states of the code ({_list(states)})"] if len(states) > 1 else []


def mixed_data(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """See :func:`mixed_lines`; the same choice of data must always be the same images."""
    found: dict[str, tuple[str, list[Any]]] = {}
    for row in rows:
        if isinstance(fingerprint := row.get("data_fingerprint"), str):
            choice = _choice(row)
            key = json.dumps(choice, sort_keys=True)
            found.setdefault(key, (str(choice.get("dataset")), []))[1].append(fingerprint)
    lines = []
    for name, fingerprints in found.values():
        states = _counted(fingerprints)
        if len(states) > 1:
            lines.append(f"{len(states)} states of the data {name} ({_list(states)})")
    return lines


def mixed_notice(lines: list[str]) -> list[str]:
    """What a page says at its top, in Markdown; [] if nothing is mixed."""
    if not lines:
        return []
    return [f"**Mixed: these numbers come from {' and from '.join(lines)}.**", ""]


def _choice(row: Mapping[str, Any]) -> dict[str, Any]:
    """Which data a row says that it is of."""
    for name in ("config", "measurement"):
        parameters = row.get(name)
        if isinstance(parameters, str):
            parameters = json.loads(parameters)
        if isinstance(parameters, Mapping) and "dataset" in parameters:
            choice = {key: parameters.get(key) for key in _CHOICE}
            if parameters.get("subset") == "seed" or choice["validation"] is not None:
                choice |= {"subset": parameters.get("subset"), "seed": parameters.get("seed")}
            return choice
    return {"dataset": row.get("dataset")}


def _counted(hashes: Iterable[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in hashes:
        key = f"{one[:12]}…" if isinstance(one, str) else "not recorded"
        counts[key] = counts.get(key, 0) + 1
    return counts


def _list(states: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {n} run{'s' * (n > 1)}" for name, n in states.items())
