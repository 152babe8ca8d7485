"""Collect the records of the accuracy experiment into its table, figures and summary."""

import argparse
import json
from pathlib import Path

import pandas as pd

from rapa_lib._files import whole_file
from rapa_lib.accuracy import LABELS
from rapa_lib.figures import (
    accuracy_figure,
    accuracy_summary,
    configuration_labels,
    curves_figure,
    save_figure,
)
from rapa_lib.records import collect, write_table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("results", type=Path, help="the study's folder")
    arguments.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    arguments.add_argument("--description", required=True)
    arguments.add_argument("--missing", type=int, default=0, help="runs that did not finish")
    options = arguments.parse_args()
    table = collect((run / "record.json" for run in options.runs), LABELS)
    curves = collect_curves(options.runs)
    write_table(options.results / "accuracy.csv", table)
    write_table(options.results / "accuracy_curves.csv", curves)
    save_figure(accuracy_figure(table), options.results / "accuracy")
    labels = configuration_labels(table).set_axis(table["run"])
    curves["label"] = curves["run"].map(labels)
    save_figure(curves_figure(curves), options.results / "accuracy_curves")
    with whole_file(options.results / "accuracy.md") as part:
        part.write_text(summary(table, options.description, options.missing))


def collect_curves(runs: list[Path]) -> pd.DataFrame:
    """One row a run and epoch."""
    parts = []
    for run in runs:
        curve = json.loads((run / "curve.json").read_text())
        parts.append(pd.DataFrame(curve.pop("history")).assign(**curve, run=run.name))
    curves = pd.concat(parts)[[*LABELS, "epoch", "train_loss", "train_error", "test_error", "run"]]
    return curves.sort_values([*LABELS, "epoch"], ignore_index=True)


def summary(table: pd.DataFrame, description: str, missing: int) -> str:
    """The summary page in Markdown."""
    lines = [f"# {description}", ""]
    if missing:
        lines += [f"**Incomplete: {missing} of {missing + len(table)} runs did not finish.**", ""]
    lines += [
        accuracy_summary(table).to_markdown(index=False, disable_numparse=True),
        "",
        "Test errors in percent: means over seeds, ± half a 95 % interval by Student's t where "
        f"there is more than one seed. Networks that draw assignments: mean over "
        f"{table['draws'].max()} draws, majority vote and mean softmax of the same draws; merged: "
        "mean kernels as one ordinary network, normalisation statistics re-estimated.",
        "",
        "![test error by tiling](accuracy.png)",
        "",
        "![learning curves](accuracy_curves.png)",
        "",
    ]
    for label, column in {
        "Code": "git_commit", "Package": "package_version", "PyTorch": "torch_version",
        "Device": "device", "Threads a run": "threads", "Tiled products": "products",
        "Data (sha256)": "data_fingerprint",
    }.items():  # fmt: skip
        if column in table:
            lines.append(f"- {label}: {', '.join(map(str, table[column].unique()))}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
