"""Collect the records of the fault experiment into its tables, figure and summary."""

import pandas as pd
from collecting import arguments, read, write_page

from rapa_lib.experiments.fault_tolerance.experiment import fault_table
from rapa_lib.experiments.fault_tolerance.figures import fault_figure, fault_summary, repair_summary
from rapa_lib.experiments.plots import save_figure
from rapa_lib.experiments.records import write_table


def main() -> None:
    options = arguments(__doc__)
    records = read(options.runs)
    table, repairs = fault_table(records), fault_table(records, "repairs")
    order = ["tiling", "tile_init", "n_tiles", "pooling", "seed"]
    table = table.sort_values(order, kind="stable", ignore_index=True)
    repairs = repairs.sort_values(order, kind="stable", ignore_index=True)
    stem = options.results / "fault_tolerance"
    write_table(stem.with_suffix(".csv"), table)
    write_table(options.results / "fault_tolerance_repairs.csv", repairs)
    save_figure(fault_figure(table), stem)
    lines = [
        "The greatest share of broken tiles, of those tried, up to which the mean test error stays "
        "less than one point above that without faults; what it adds there, and how many times as "
        "fast as with one tile the convolutions still are:",
        "",
        fault_summary(table).to_markdown(index=False, disable_numparse=True),
        "",
        f"Test error (%) with {100 * repairs['share'].iloc[0]:.0f} % of the tiles of all layers "
        f"{repairs['kind'].iloc[0]}; means over seeds (of their mean over draws of faults), ± half "
        "a 95 % interval by Student's t where there is more than one seed:",
        "",
        repair_summary(repairs).to_markdown(index=False, disable_numparse=True),
        "",
        "![test error against the share of broken tiles](fault_tolerance.png)",
    ]
    write_page("fault_tolerance", options, pd.DataFrame(records), lines)


if __name__ == "__main__":
    main()
