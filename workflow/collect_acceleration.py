"""Collect the acceleration experiment, and the test errors that its speed-ups cost."""

import json

import pandas as pd
from collecting import arguments, read, write_page

from rapa_lib.experiments.acceleration.figures import (
    acceleration_summary,
    layer_time_figure,
    pareto_figure,
    speedup_figure,
    tradeoff_figure,
    tradeoff_summary,
)
from rapa_lib.experiments.plots import save_figure
from rapa_lib.experiments.records import write_table
from rapa_lib.experiments.tiles_accuracy.tables import tiles_accuracy


def main() -> None:
    options = arguments(__doc__)
    records = read(options.runs)
    if len(records) != 1:
        raise SystemExit(f"acceleration: got {len(records)} runs, expected one")
    (record,) = records
    table, layers = pd.DataFrame(record["rows"]), pd.DataFrame(record["layers"])
    trade = tiles_accuracy(options.accuracy)
    stem = options.results / "acceleration"
    write_table(stem.with_suffix(".csv"), table)
    write_table(options.results / "tiles_accuracy.csv", trade)
    save_figure(speedup_figure(table), stem)
    save_figure(layer_time_figure(layers), f"{stem}_layers")
    save_figure(pareto_figure(table), f"{stem}_pareto")
    save_figure(tradeoff_figure(trade), options.results / "tiles_accuracy")
    lines = [
        acceleration_summary(table).round(1).to_markdown(index=False),
        "",
        "Speed-up over one tile per layer with the same number of tiles for every convolution; "
        "proportional: at least 90 % of the number of tiles. A model of analog arrays, no "
        "measurement: " + json.dumps(record["config"]) + ".",
        "",
        "![speed-up and cross-points against tiles](acceleration.png)",
        "",
        "![time of each layer](acceleration_layers.png)",
        "",
        "![speed-up against cross-points](acceleration_pareto.png)",
        "",
        tradeoff_summary(trade).to_markdown(index=False, disable_numparse=True),
        "",
        "Test error (%) of trained networks beside what their tiles make faster: means over seeds, "
        "± half a 95 % interval by Student's t. Pipelined: every layer works on an image of its "
        "own; sequential: an image goes through layer after layer.",
        "",
        "![test error against speed-up](tiles_accuracy.png)",
    ]
    write_page("acceleration", options, pd.DataFrame(records), lines)


if __name__ == "__main__":
    main()
