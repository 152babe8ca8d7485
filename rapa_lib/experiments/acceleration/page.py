"""The acceleration experiment's page: its table and figures put together."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from rapa_lib.experiments.acceleration.figures import (
    bandwidth_figure,
    layer_time_figure,
    pareto_figure,
    rivals_figure,
    speedup_figure,
)
from rapa_lib.experiments.acceleration.tables import (
    PROPORTIONAL,
    acceleration_answer,
    acceleration_summary,
)
from rapa_lib.experiments.markdown import markdown_table
from rapa_lib.experiments.protocol import Collected
from rapa_lib.runtime import RIVAL_COLUMNS


def collect(records: Sequence[dict[str, Any]]) -> Collected:
    """See :meth:`rapa_lib.experiments.protocol.Experiment.collect`.

    Raises:
        ValueError: for more records than one: their networks could stand on different arrays.
    """
    if len(records) != 1:
        raise ValueError(f"records: got {len(records)}, expected one: acceleration has one run")
    (record,) = records
    table, layers = pd.DataFrame(record["rows"]), pd.DataFrame(record["layers"])
    costs, bandwidth = pd.DataFrame(record["costs"]), pd.DataFrame(record["bandwidth"])
    # Records of before the rivals were measured have none.
    rivals = pd.DataFrame(record.get("rivals", ()), columns=RIVAL_COLUMNS)
    return Collected(
        tables={
            "acceleration": table,
            "acceleration_costs": costs,
            "acceleration_bandwidth": bandwidth,
            "acceleration_rivals": rivals,
        },
        figures={
            "acceleration": lambda: speedup_figure(table),
            "acceleration_layers": lambda: layer_time_figure(layers),
            "acceleration_pareto": lambda: pareto_figure(table),
            "acceleration_bandwidth": lambda: bandwidth_figure(bandwidth),
            "acceleration_rivals": lambda: rivals_figure(rivals),
        },
        answer=acceleration_answer(table),
        body=[
            markdown_table(acceleration_summary(table).round(1)),
            "",
            "Speed-up over one tile per layer with the same number of tiles for every convolution; "
            f"proportional: at least {100 * PROPORTIONAL:g} % of the number of tiles. A model of "
            f"analog arrays, no measurement: {_model_text(record['config'])}.",
            "",
            "![speed-up and cross-points against tiles](acceleration.png)",
            "",
            "![time of each layer](acceleration_layers.png)",
            "",
            "![speed-up against cross-points](acceleration_pareto.png)",
            "",
            "What digital logic must move limits the tiles that are worth having: the number of "
            "tiles up to which the speed-up stays proportional, against the values per second that "
            "it moves. The model and its constants, most of them assumptions: docs/run_time.md.",
            "",
            "![tiles with proportional speed-up against bandwidth](acceleration_bandwidth.png)",
            "",
            "A rival needs no tiles at all: trained perforated (one patch in n is computed, the "
            "others take their neighbours' outputs) and tested dense, each layer keeps its one "
            "array. It trains as fast, and asks for no more values per second than one tile does; "
            "tested, it is as slow as the ordinary network. What it costs in test error: "
            "`perforated_dense` in the section on error against speed-up.",
            "",
            "![speed-up of RAPA and of perforation against arrays](acceleration_rivals.png)",
        ],
    )


def _model_text(config: Mapping[str, Any]) -> str:
    """The constants of the model in a line."""
    return ", ".join(f"{name} {_value_text(value)}" for name, value in config.items())


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
