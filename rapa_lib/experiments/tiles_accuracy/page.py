"""The page of error against speed-up: its table and figure put together."""

from collections.abc import Sequence
from typing import Any

from rapa_lib.experiments.markdown import markdown_table
from rapa_lib.experiments.protocol import Collected
from rapa_lib.experiments.tiles_accuracy.figures import tradeoff_figure
from rapa_lib.experiments.tiles_accuracy.tables import (
    tiles_accuracy_table,
    tradeoff_answer,
    tradeoff_summary,
)


def collect(records: Sequence[dict[str, Any]]) -> Collected:
    """See :meth:`rapa_lib.experiments.protocol.Collecting.collect`."""
    table = tiles_accuracy_table(records)
    body = [
        markdown_table(tradeoff_summary(table), disable_numparse=True),
        "",
        "Test error (%) of trained networks beside what their tiles make faster: means over seeds, "
        "± half a 95 % interval by Student's t. Pipelined: every layer works on an image of its "
        "own; sequential: an image goes through layer after layer.",
        "",
        "![test error against speed-up](tiles_accuracy.png)",
    ]
    return Collected(
        tables={"tiles_accuracy": table},
        figures={"tiles_accuracy": lambda: tradeoff_figure(table)},
        answer=tradeoff_answer(table),
        body=body if len(table[["tiling", "n_tiles"]].drop_duplicates()) > 1 else [],
    )
