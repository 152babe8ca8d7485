"""The analog experiment's page: its tables and figures put together."""

from collections.abc import Sequence
from typing import Any

from rapa_lib.experiments.analog_training.figures import (
    analog_figure,
    drift_figure,
    imperfection_figure,
)
from rapa_lib.experiments.analog_training.imperfections import BASELINE
from rapa_lib.experiments.analog_training.tables import (
    analog_answer,
    analog_summary,
    analog_table,
    drift_answer,
    drift_table,
    in_order,
    inference_table,
)
from rapa_lib.experiments.markdown import lines_if, markdown_table
from rapa_lib.experiments.protocol import ANSWER_LINES, Collected


def collect(records: Sequence[dict[str, Any]]) -> Collected:
    """See :meth:`rapa_lib.experiments.protocol.Experiment.collect`."""
    records = in_order(records)
    table, inference, later = (f(records) for f in (analog_table, inference_table, drift_table))
    varied = bool((table["imperfection"] != BASELINE).any())
    return Collected(
        tables={
            "analog_training": table,
            "analog_training_inference": inference,
            "analog_training_drift": later,
        },
        figures={
            "analog_training": lambda: analog_figure(table, inference),
            "analog_training_imperfections": lambda: imperfection_figure(table),
            "analog_training_drift": lambda: drift_figure(later),
        },
        answer=_with(analog_answer(table), drift_answer(later)),
        body=[
            markdown_table(analog_summary(table), disable_numparse=True),
            "",
            "Means over seeds, ± half a 95 % interval by Student's t where there is more than one"
            + ("; above baseline: paired by seed." if varied else "."),
            "",
            f"The baseline, `{records[0]['measurement']['preset']}`. {_tiles(records[0])}.",
            "",
            "![test error by way of training, and against read noise](analog_training.png)",
            *lines_if(
                varied,
                "![test error against each imperfection](analog_training_imperfections.png)",
            ),
            *lines_if(
                len(later) > 0,
                "![test error on phase-change memory over time](analog_training_drift.png)",
            ),
        ],
    )


def _with(lines: list[str], more: str) -> list[str]:
    """Lines of an answer and one more; there is room for three."""
    if not more:
        return lines
    return [*lines, more] if len(lines) < ANSWER_LINES else [*lines[:-1], f"{lines[-1]} {more}"]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tiles(record: dict[str, Any]) -> str:
    """The tiles' configuration in words."""
    return "; ".join(
        f"{part}: "
        + ", ".join(
            f"{name} {_short(value)}" for name, value in values.items() if value is not None
        )
        for part, values in record["tiles"].items()
    )
