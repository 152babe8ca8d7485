"""Collect what every run of a study was: done or failed, how long, by which code, on what."""

import argparse
import json
from pathlib import Path

import pandas as pd

from rapa_lib.experiments.records import write_table

KEPT = [
    "git_commit", "package_version", "torch_version", "python_version", "device", "threads",
    "products", "data_fingerprint",
]  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("results", type=Path, help="the study's folder")
    arguments.add_argument("runs", nargs="+", help="<experiment>/<run> of all that it plans")
    options = arguments.parse_args()
    rows = [row(options.results / "runs" / run) for run in options.runs]
    write_table(options.results / "runs.csv", pd.DataFrame(rows))


def row(folder: Path) -> dict:
    """A run's experiment, name, whether it is done, wall time in seconds, provenance and error."""
    experiment = folder.parent.name
    known = {"experiment": experiment, "run": folder.name, "done": False, "error": ""}
    if (folder / "record.json").exists():
        record = json.loads((folder / "record.json").read_text())
        known |= {"done": True} | {name: record.get(name) for name in KEPT}
        notebook = json.loads((folder / f"{experiment}.ipynb").read_text())
        known["seconds"] = notebook["metadata"].get("papermill", {}).get("duration")
    elif (folder / "error.json").exists():
        known["error"] = json.loads((folder / "error.json").read_text())["error"]
    else:
        known["error"] = "it left neither record nor error"
    return known


if __name__ == "__main__":
    main()
