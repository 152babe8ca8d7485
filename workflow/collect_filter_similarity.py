"""Collect the records of the filter-similarity experiment into its tables, figures and summary."""

import pandas as pd
from collecting import arguments, nested, read, write_page

from rapa_lib.experiments.filter_similarity.figures import (
    filters_figure,
    penalty_answer,
    penalty_figure,
    similarity_answer,
    similarity_figure,
    similarity_summary,
    tiles_figure,
)
from rapa_lib.experiments.plots import save_figure
from rapa_lib.experiments.records import write_table

LABELS = [
    "dataset", "tiling", "n_tiles", "tile_init", "pooling", "activation", "normalisation",
    "tile_lr_power", "epochs", "varied", "seed", "run", "git_commit", "data_fingerprint",
]  # fmt: skip
# What the first figure holds still: the kind of network of which there are most.
KIND = [
    "dataset", "n_tiles", "pooling", "activation", "normalisation", "tile_lr_power", "epochs",
    "varied",
]  # fmt: skip
# Parameters that are told elsewhere or change no network.
UNTOLD = {"data_root", "draws", "similarity_every", "penalty_every", "device", "threads", *LABELS}


def main() -> None:
    options = arguments(__doc__)
    records = with_varied(read(options.runs))
    table = nested(records, "similarities", LABELS)
    order = [name for name in LABELS if name in KIND or name in ("tiling", "seed")]
    table = table.sort_values([*order, "run", "epoch", "layer"], ignore_index=True)
    penalties = nested(records, "penalties", LABELS)
    stem = options.results / "filter_similarity"
    write_table(stem.with_suffix(".csv"), table)
    write_table(options.results / "filter_similarity_penalty.csv", penalties)
    main_kind = most_common(table, KIND)
    save_figure(similarity_figure(main_kind), stem)
    drawn = table[table["tiling"] == "random"] if "random" in set(table["tiling"]) else table
    save_figure(tiles_figure(drawn), f"{stem}_tiles")
    save_figure(penalty_figure(penalties), f"{stem}_penalty")
    shown = {
        f"{record['tiling']}, {record['tile_init']}": record["filters"]
        for record in reversed(records)
        if record["run"] in set(main_kind["run"])
    }
    save_figure(filters_figure(dict(sorted(shown.items()))), f"{stem}_filters")
    lines = summary(records, table, penalties)
    write_page("filter_similarity", options, pd.DataFrame(records), lines)


def with_varied(records: list[dict]) -> list[dict]:
    """The records, each with what no column tells, but tells it apart from the others."""
    configs = pd.DataFrame([record["config"] for record in records]).astype(str)
    names = [name for name in configs if name not in UNTOLD and configs[name].nunique() > 1]
    return [
        record | {"varied": ", ".join(f"{name} {config[name]}" for name in names)}
        for record, (_, config) in zip(records, configs.iterrows(), strict=True)
    ]


def most_common(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The rows with the combination of values that most runs have."""
    runs = table.drop_duplicates("run").set_index("run")[columns].astype(str).agg(" ".join, axis=1)
    chosen = runs.index[runs == runs.value_counts().idxmax()]
    return table[table["run"].isin(chosen)]


def summary(records: list[dict], table: pd.DataFrame, penalties: pd.DataFrame) -> list[str]:
    """The lines of the summary page, in Markdown."""
    finals = similarity_summary(table)
    finals = finals.drop(columns=[] if finals["varied"].any() else "varied")
    constant = [name for name in finals if name in LABELS and finals[name].nunique() == 1]
    pulls = [pull for record in records for pull in record["pulls"].values()]
    return [
        finals.drop(columns=constant).to_markdown(index=False, disable_numparse=True),
        "",
        "All: " + ", ".join(f"{name} {finals[name].iloc[0]}" for name in constant) + ".",
        "",
        "Similarity of the tiles of each layer at the end of training: means over seeds, ± half a "
        "95 % interval by Student's t where there is more than one. Between tiles: mean cosine of "
        "the same filter on different tiles, and its rise in training; within a tile: of different "
        "filters; variance ratio: between tiles over total; CKA and matched: measures that need no "
        "order of filters, beside their values for independent Gaussian kernels.",
        "",
        similarity_answer(table),
        penalty_answer(penalties, pulls),
        "",
        "![similarity over training](filter_similarity.png)",
        "",
        "![similarity against the number of tiles](filter_similarity_tiles.png)",
        "",
        "![predicted against measured penalty](filter_similarity_penalty.png)",
        "",
        "![filters of the first layer](filter_similarity_filters.png)",
    ]


if __name__ == "__main__":
    main()
