"""Records: one JSON file a run, with the provenance of its numbers; pandas collects them."""

import functools
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rapa_lib._files import whole_file
from rapa_lib.layers.products.compiled import serves

PACKAGE = "rapa-convnets"


def provenance(device: torch.device) -> dict[str, Any]:
    """Say what computed a result: commit, versions, device, threads, and which tiled products."""
    return {
        "git_commit": git_commit(),
        "package_version": package_version(),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "products": "compiled" if serves(torch.empty(0, device=device), 1) else "PyTorch",
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
            ["git", *args], cwd=root, capture_output=True, text=True, timeout=30, check=True
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
        part.write_text(text + "\n")


def collect(records: Iterable[str | Path], sort_by: Iterable[str]) -> pd.DataFrame:
    """Read records into a table, one row each.

    Args:
        records: JSON files; nested values become JSON text, the folder's name is column ``run``.
        sort_by: columns that order the rows.

    Raises:
        ValueError: if there is none, or one is damaged or lacks what the others have; it is named.
    """
    rows = []
    for path in map(Path, records):
        try:
            row = json.loads(path.read_text())
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, got {type(row).__name__}")
        except (OSError, ValueError) as error:
            raise ValueError(f"record: cannot read {path}: {error}") from error
        row["run"] = path.parent.name
        if rows and set(row) != set(rows[0]):
            raise ValueError(
                f"record: {path} differs from the others in {sorted(set(row) ^ set(rows[0]))}"
            )
        rows.append(row)
    if not rows:
        raise ValueError("records: none to collect")
    for row in rows:
        for key, value in row.items():
            if isinstance(value, dict | list):
                row[key] = json.dumps(value)
    return pd.DataFrame(rows).sort_values(list(sort_by), ignore_index=True)


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all."""
    with whole_file(path) as part:
        table.to_csv(part, index=False)
