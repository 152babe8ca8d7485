"""Records: one JSON file per run, with the provenance of its numbers; pandas collects them."""

import functools
import json
import math
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rapa_lib._files import whole_file
from rapa_lib.experiments.provenance import CHOSEN_VARIABLE, RULES_VARIABLE, code_hash
from rapa_lib.experiments.schemas import check_file
from rapa_lib.layers.products.operators import served_by

PACKAGE = "rapa-convnets"


def provenance(device: torch.device) -> dict[str, Any]:
    """Say what computed a result: code, rules, versions, device, threads, which tiled products.

    The rules are those that a study judges by; a run by hand has none. Runs of a tuned study say
    what was chosen for its arms.
    """
    chosen = os.environ.get(CHOSEN_VARIABLE)
    return {
        "git_commit": git_commit(),
        "code_sha256": code_hash(),
        "rules_sha256": os.environ.get(RULES_VARIABLE),
        **({"chosen_sha256": chosen} if chosen else {}),
        "package_version": package_version(),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "products": served_by(torch.empty(0, device=device)),
    }


@functools.cache
def git_commit() -> str:
    """The commit of the code that runs, with ``-dirty`` if files differ from it.

    Results do not count as code. ``unknown`` outside a checkout.
    """
    root = Path(__file__).resolve().parents[2]
    code = ["rapa_lib", "notebooks", "workflow", "config"]

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=root, capture_output=True, encoding="utf-8", timeout=30, check=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return "unknown"  # installed somewhere inside another project's checkout
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", *code)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def package_version() -> str:
    """The installed version of this package; ``uninstalled`` if it was only put on the path."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "uninstalled"


def device_name(device: torch.device) -> str:
    """The device as results name it: ``cpu`` or the GPU's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; numbers that are not finite are refused."""
    text = json.dumps(content, indent=1, allow_nan=False)
    with whole_file(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """A value as JSON holds it: tuples become lists, tables rows, what is not finite null.

    Args:
        value: dicts, sequences, tables, numbers and strings, nested.
    """
    if isinstance(value, pd.DataFrame):
        return plain(value.astype(object).where(value.notna(), None).to_dict("records"))
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_runs(
    folders: Iterable[str | Path], leaves: Iterable[str] = (), experiment: str = ""
) -> list[dict[str, Any]]:
    """Read the records of runs.

    Args:
        folders: of finished runs.
        leaves: names of files beside the record; JSON files are read as well, their content is
            under the name without suffix.
        experiment: whose runs they are, for the schema of its files; empty: none is checked.

    Returns:
        The records, each with its folder's name as ``run``.

    Raises:
        ValueError: if there is none, or a file is missing, damaged or not what it must be (see
            :mod:`rapa_lib.experiments.schemas`); it is named.
    """
    records, beside = [], [name for name in leaves if name.endswith(".json")]
    for folder in map(Path, folders):
        files = {name: read_object(folder / name) for name in ("record.json", *beside)}
        for name, content in files.items() if experiment else ():
            check_file(experiment, name, content, str(folder / name))
        record = files["record.json"]
        record |= {name.removesuffix(".json"): files[name] for name in beside}
        records.append(record | {"run": folder.name})
    if not records:
        raise ValueError("records: none to collect")
    return records


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: if the file is missing, damaged or no object; it is named.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, got {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise ValueError(f"record: cannot read {path}: {error}") from error
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"got {constant} where a number belongs")


def flat_table(records: Iterable[Mapping[str, Any]], without: Iterable[str] = ()) -> pd.DataFrame:
    """One row per record; nested values become JSON text.

    Args:
        records: of one experiment.
        without: entries that are left out.

    Raises:
        ValueError: if there is none, or one lacks what the others have; it is named.
    """
    rows: list[dict[str, Any]] = []
    left_out = set(without)
    for record in records:
        row = {
            key: json.dumps(value) if isinstance(value, dict | list) else value
            for key, value in record.items()
            if key not in left_out
        }
        rows.append(row)
    if not rows:
        raise ValueError("records: none to collect")
    # What most have is right: one bad record must not put the blame on the good ones.
    usual = set(Counter(frozenset(row) for row in rows).most_common(1)[0][0])
    for row in rows:
        if set(row) != usual:
            raise ValueError(
                f"record: {row.get('run')} differs from the others in {sorted(set(row) ^ usual)}"
            )
    return pd.DataFrame(rows)


def nested_table(
    records: Iterable[Mapping[str, Any]], part: str, labels: Iterable[str]
) -> pd.DataFrame:
    """One row per entry of each record's list ``part``, with the record's labels before it.

    Args:
        records: of one experiment.
        part: name of a list of rows in each.
        labels: entries of the record that every row gets; a nested one becomes JSON text.
    """
    names = list(labels)
    rows = []
    for record in records:
        common = {
            name: json.dumps(record[name]) if isinstance(record[name], dict) else record[name]
            for name in names
        }
        rows += [common | row for row in record[part]]
    return pd.DataFrame(rows, columns=None if rows else names)


PROVENANCE = {
    "Code": "git_commit", "Package": "package_version", "PyTorch": "torch_version",
    "Device": "device", "Threads per run": "threads", "Tiled products": "products",
    "Data (sha256)": "data_fingerprint",
}  # fmt: skip
"""Entries of a record that say where its numbers come from, by their words on a page."""


def provenance_lines(
    records: Iterable[Mapping[str, Any]], entries: Mapping[str, str] = PROVENANCE
) -> list[str]:
    """Markdown lines that say where the numbers of records come from.

    Of several hashes the first digits; tables have them whole.

    Args:
        records: or rows of the table of a study's runs.
        entries: what is said of them, by its words.
    """
    table = pd.DataFrame([{c: r.get(c) for c in entries.values()} for r in records])
    lines = []
    for words, column in entries.items():
        known = [str(value) for value in table[column].dropna().unique()]
        if len(known) > 1 and words.endswith("(sha256)"):
            known = [value[:12] for value in known]
        if known:
            lines.append(f"- {words}: {', '.join(known)}")
    return lines


def without_provenance(markdown: str) -> str:
    """A page without its :func:`provenance_lines`; a report says once where all is from."""
    heads = tuple(f"- {words}: " for words in PROVENANCE)
    return "\n".join(line for line in markdown.splitlines() if not line.startswith(heads)) + "\n"


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all."""
    with whole_file(path) as part:
        table.to_csv(part, index=False)
