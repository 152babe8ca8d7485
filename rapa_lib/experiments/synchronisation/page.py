"""The page of averaged tiles: its tables and figures put together."""

from collections.abc import Sequence
from typing import Any

from rapa_lib.experiments.protocol import Collected
from rapa_lib.experiments.synchronisation.figures import (
    errors_figure,
    frontier_figure,
    spread_figure,
)
from rapa_lib.experiments.synchronisation.spread import STEADY, spread_summary, spread_table
from rapa_lib.experiments.synchronisation.tables import (
    chosen_records,
    synchronisation_answer,
    synchronisation_summary,
    synchronisation_table,
)


def collect(records: Sequence[dict[str, Any]]) -> Collected:
    """See :meth:`rapa_lib.experiments.protocol.Collecting.collect`."""
    table, spreads = synchronisation_table(records), spread_table(chosen_records(records))
    body = [
        synchronisation_summary(table).to_markdown(index=False, disable_numparse=True),
        "",
        "Test error (%) of networks whose tiles are averaged in training, beside the speed-up of "
        "that training on analog arrays (pipelined, with digital logic that must keep up) where "
        "the mean is programmed onto the arrays, and where it is written by pulses: means over "
        "seeds, ± half a 95 % interval by Student's t. Perforation is tested with every patch "
        "computed.",
        "",
        "![test error against the steps between averagings](synchronisation.png)",
        "",
        "![test error against speed-up](synchronisation_frontier.png)",
    ]
    if len(spreads):
        body += [
            "",
            spread_summary(spreads).to_markdown(index=False, disable_numparse=True),
            "",
            "Σ‖δ‖² of the tiles just before they are averaged, over what local SGD predicts of "
            "gradient noise, rate and weight decay, without and with the measured pull: geometric "
            f"means over epochs whose rate is {100 * STEADY:g} % of the greatest or more.",
            "",
            "![how far tiles part](synchronisation_spread.png)",
        ]
    return Collected(
        tables={"synchronisation": table, "synchronisation_spread": spreads},
        figures={
            "synchronisation": lambda: errors_figure(table),
            "synchronisation_frontier": lambda: frontier_figure(table),
            "synchronisation_spread": lambda: spread_figure(spreads),
        },
        answer=synchronisation_answer(table),
        body=body if len(table) else [],
    )
