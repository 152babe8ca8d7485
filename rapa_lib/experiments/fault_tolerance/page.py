"""The fault experiment's page: its tables and figure put together."""

from collections.abc import Sequence
from typing import Any

from rapa_lib.experiments.fault_tolerance.figures import fault_figure
from rapa_lib.experiments.fault_tolerance.tables import (
    POINTS,
    fault_answer,
    fault_summary,
    fault_table,
    repair_summary,
)
from rapa_lib.experiments.markdown import markdown_table
from rapa_lib.experiments.protocol import Collected


def collect(records: Sequence[dict[str, Any]]) -> Collected:
    """See :meth:`rapa_lib.experiments.protocol.Experiment.collect`."""
    table, repairs = fault_table(records), fault_table(records, "repairs")
    return Collected(
        tables={"fault_tolerance": table, "fault_tolerance_repairs": repairs},
        figures={"fault_tolerance": lambda: fault_figure(table)},
        answer=fault_answer(table, repairs),
        body=[
            "The greatest share of broken tiles, of those tried, up to which the mean test error "
            f"stays less than {POINTS:g} point above that without faults; what it adds there, and "
            "how many times as fast as with one tile the convolutions still are. With statistics "
            "re-estimated: what it adds there if normalisation statistics are estimated anew after "
            "rerouting, without faults too; nothing is retrained.",
            "",
            markdown_table(fault_summary(table), disable_numparse=True),
            "",
            f"Test error (%) with {100 * repairs['share'].iloc[0]:.0f} % of the tiles of all "
            f"layers {repairs['kind'].iloc[0]}; means over seeds (of their mean over draws of "
            "faults), ± half a 95 % interval by Student's t where there is more than one seed:",
            "",
            markdown_table(repair_summary(repairs), disable_numparse=True),
            "",
            "![test error against the share of broken tiles](fault_tolerance.png)",
        ],
    )
