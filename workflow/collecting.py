"""What the scripts that collect an experiment share: their arguments, and the summary page."""

import argparse
import json
from pathlib import Path

import pandas as pd

from rapa_lib._files import whole_file

PROVENANCE = {
    "Code": "git_commit", "Package": "package_version", "PyTorch": "torch_version",
    "Device": "device", "Threads a run": "threads", "Tiled products": "products",
    "Data (sha256)": "data_fingerprint",
}  # fmt: skip


def arguments(doc: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("results", type=Path, help="the study's folder")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--description", required=True)
    parser.add_argument("--missing", type=int, default=0, help="runs that did not finish")
    parser.add_argument(
        "--accuracy", type=Path, nargs="*", default=[], help="runs of the accuracy experiment"
    )
    return parser.parse_args()


def nested(records: list[dict], key: str, labels: list[str]) -> pd.DataFrame:
    """One row an entry of each record's list ``key``, with the record's labels."""
    rows = [
        {label: record[label] for label in labels} | entry
        for record in records
        for entry in record[key]
    ]
    return pd.DataFrame(rows, columns=None if rows else labels)


def read(runs: list[Path]) -> list[dict]:
    """The runs' records, each with the name of its run."""
    return [json.loads((run / "record.json").read_text()) | {"run": run.name} for run in runs]


def write_page(
    experiment: str, options: argparse.Namespace, table: pd.DataFrame, lines: list[str]
) -> None:
    """Write an experiment's summary: its study's description, the lines, where they come from.

    Args:
        experiment: names the page.
        options: of :func:`arguments`.
        table: a row a run, with what :data:`PROVENANCE` names.
        lines: in Markdown.
    """
    head = [f"# {options.description}", ""]
    if options.missing:
        n_runs = options.missing + len(options.runs)
        head += [f"**Incomplete: {options.missing} of {n_runs} runs did not finish.**", ""]
    with whole_file(options.results / f"{experiment}.md") as part:
        part.write_text("\n".join([*head, *lines, "", *_provenance(table)]) + "\n")


def _provenance(table: pd.DataFrame) -> list[str]:
    """A line for everything that says where the numbers come from."""
    return [
        f"- {label}: {', '.join(map(str, table[column].unique()))}"
        for label, column in PROVENANCE.items()
        if column in table
    ]
