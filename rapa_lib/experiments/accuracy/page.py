"""The accuracy experiment's page: its tables and figures put together."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rapa_lib.experiments.accuracy.figures import accuracy_figure, curves_figure
from rapa_lib.experiments.accuracy.tables import (
    SETTINGS,
    accuracy_answer,
    accuracy_summary,
    accuracy_table,
    curves_table,
)
from rapa_lib.experiments.markdown import markdown_table, set_aside
from rapa_lib.experiments.plots import configuration_labels
from rapa_lib.experiments.protocol import Collected


def collect(records: Sequence[dict[str, Any]]) -> Collected:
    """See :meth:`rapa_lib.experiments.protocol.Experiment.collect`."""
    table, curves = accuracy_table(records), curves_table(records)
    labels = configuration_labels(table).set_axis(table["run"])
    named = curves.assign(label=curves["run"].map(labels))
    summary, common = set_aside(accuracy_summary(table), SETTINGS)
    return Collected(
        tables={"accuracy": table, "accuracy_curves": curves},
        figures={
            "accuracy": lambda: accuracy_figure(table),
            "accuracy_curves": lambda: curves_figure(named),
        },
        answer=accuracy_answer(table),
        body=[
            markdown_table(summary, disable_numparse=True),
            "",
            *([common, ""] if common else []),
            "Test errors in percent: means over seeds, ± half a 95 % interval by Student's t where "
            "there is more than one seed. Networks that draw assignments: mean over "
            f"{table['draws'].max()} draws, majority vote and mean softmax of the same draws; "
            "merged: mean kernels as one ordinary network, normalisation statistics re-estimated.",
            "",
            *_merged_is_the_one(table),
            "![test error by tiling](accuracy.png)",
            "",
            "![learning curves](accuracy_curves.png)",
        ],
    )


def _merged_is_the_one(table: pd.DataFrame) -> list[str]:
    """A paragraph on which error of networks with dropout to read; none where there are none."""
    if not table["tiling"].eq("dropout").any():
        return []
    return [
        "`dropout`: read *merged*. There is nothing to merge, but its statistics of normalisation "
        "are estimated anew with nothing dropped; those of the training, of outputs that were "
        "dropped in part, do not fit the network *as it is*. The figures leave these errors out.",
        "",
    ]
