"""Collect the records of the robustness experiment into its table, figures and summary."""

from pathlib import Path

import pandas as pd
from collecting import arguments, read, write_page

from rapa_lib.experiments.adversarial_robustness.experiment import robustness_table
from rapa_lib.experiments.adversarial_robustness.figures import (
    draws_figure,
    examples_figure,
    robustness_answer,
    robustness_figure,
    robustness_summary,
    strongest_by_seed,
)
from rapa_lib.experiments.plots import save_figure
from rapa_lib.experiments.records import write_table

ORDER = ["tiling", "n_tiles", "tile_init", "pooling", "tile_lr_power", "seed"]
BY_IMAGE = ["correct", "clean", "norms"]  # in the records; a table has their means


def main() -> None:
    options = arguments(__doc__)
    records = sorted(read(options.runs), key=lambda record: [str(record[name]) for name in ORDER])
    table = robustness_table(records)
    table["config"] = [record["config"] for record in records for _ in record["rows"]]
    stem = options.results / "adversarial_robustness"
    write_table(stem.with_suffix(".csv"), table.drop(columns=[*BY_IMAGE, "config"]))
    write_table(Path(f"{stem}_strongest.csv"), strongest_by_seed(table))
    save_figure(robustness_figure(table), stem)
    save_figure(draws_figure(table), f"{stem}_draws")
    save_figure(examples_figure(records), f"{stem}_examples")
    noise = pd.DataFrame(
        {"tiling": record["tiling"], "seed": record["seed"], **record["noise"]}
        for record in records
        if record["noise"]
    )
    attacked = records[0]["measurement"]
    lines = [
        robustness_answer(table, records),
        "",
        "Robust accuracy in percent, with 95 % intervals over images and seeds: the mean share of "
        f"{attacked['judge_draws']} fresh draws that classify the perturbed images correctly, "
        f"{attacked['images']} test images, by the attack that leaves least (in brackets). Below: "
        "the median perturbation that misleads most draws, by seed.",
        "",
        robustness_summary(table).set_index("network").T.to_markdown(disable_numparse=True),
        "",
        "Noise that fresh lots make on the outputs of each layer, relative to these:",
        "",
        noise.round(2).to_markdown(index=False) if len(noise) else "None draws lots.",
        "",
        "![robust accuracy against ε](adversarial_robustness.png)",
        "",
        "![robust accuracy against the number of draws](adversarial_robustness_draws.png)",
        "",
        "![perturbed images and answers](adversarial_robustness_examples.png)",
    ]
    write_page("adversarial_robustness", options, pd.DataFrame(records), lines)


if __name__ == "__main__":
    main()
