"""Collect the records of the analog experiment into its tables, figures and summary."""

import pandas as pd
from collecting import arguments, read, write_page

from rapa_lib.experiments.analog_training.experiment import analog_table
from rapa_lib.experiments.analog_training.figures import (
    analog_answer,
    analog_figure,
    analog_summary,
    imperfection_figure,
)
from rapa_lib.experiments.plots import save_figure
from rapa_lib.experiments.records import write_table


def main() -> None:
    options = arguments(__doc__)
    records = sorted(read(options.runs), key=lambda record: (record["seed"], record["run"]))
    table, inference = analog_table(records), analog_table(records, "inference")
    stem = options.results / "analog_training"
    write_table(stem.with_suffix(".csv"), table)
    write_table(options.results / "analog_training_inference.csv", inference)
    save_figure(analog_figure(table, inference), stem)
    save_figure(imperfection_figure(table), f"{stem}_imperfections")
    tiles = "; ".join(
        f"{part}: "
        + ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
        for part, values in records[0]["tiles"].items()
    )
    lines = [
        analog_answer(table),
        "",
        analog_summary(table).to_markdown(index=False, disable_numparse=True),
        "",
        "Means over seeds, ± half a 95 % interval by Student's t where there is more than one; "
        "above baseline: paired by seed.",
        "",
        f"The baseline, `{records[0]['measurement']['preset']}`. {tiles}.",
        "",
        "![test error by way of training, and against read noise](analog_training.png)",
        "",
        "![test error against each imperfection](analog_training_imperfections.png)",
    ]
    write_page("analog_training", options, pd.DataFrame(records), lines)


if __name__ == "__main__":
    main()
