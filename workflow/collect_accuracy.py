"""Collect the records of the accuracy experiment into its table, figures and summary."""

import json
from pathlib import Path

import pandas as pd
from collecting import arguments, write_page

from rapa_lib.experiments.accuracy.experiment import LABELS
from rapa_lib.experiments.accuracy.figures import accuracy_figure, accuracy_summary, curves_figure
from rapa_lib.experiments.plots import configuration_labels, save_figure
from rapa_lib.experiments.records import collect, write_table


def main() -> None:
    options = arguments(__doc__)
    table = collect((run / "record.json" for run in options.runs), LABELS)
    curves = collect_curves(options.runs)
    write_table(options.results / "accuracy.csv", table)
    write_table(options.results / "accuracy_curves.csv", curves)
    save_figure(accuracy_figure(table), options.results / "accuracy")
    labels = configuration_labels(table).set_axis(table["run"])
    curves["label"] = curves["run"].map(labels)
    save_figure(curves_figure(curves), options.results / "accuracy_curves")
    lines = [
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
    ]
    write_page("accuracy", options, table, lines)


def collect_curves(runs: list[Path]) -> pd.DataFrame:
    """One row a run and epoch."""
    parts = []
    for run in runs:
        curve = json.loads((run / "curve.json").read_text())
        parts.append(pd.DataFrame(curve.pop("history")).assign(**curve, run=run.name))
    curves = pd.concat(parts)[[*LABELS, "epoch", "train_loss", "train_error", "test_error", "run"]]
    return curves.sort_values([*LABELS, "epoch"], ignore_index=True)


if __name__ == "__main__":
    main()
