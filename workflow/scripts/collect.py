"""Collect the records of one experiment into its tables, figures and page."""

import argparse
from pathlib import Path

from rapa_lib.experiments.catalogue import CATALOGUE
from rapa_lib.experiments.protocol import experiment, write_collected
from rapa_lib.experiments.records import read_runs


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("experiment", choices=CATALOGUE)
    arguments.add_argument("results", type=Path, help="the study's folder")
    arguments.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    arguments.add_argument("--description", required=True, help="of the study, in one line")
    arguments.add_argument("--missing", type=int, default=0, help="runs that did not finish")
    options = arguments.parse_args()
    entry = CATALOGUE[options.experiment]
    source = CATALOGUE[entry.source or entry.name]
    try:
        records = read_runs(options.runs, source.leaves, source.name)
    except ValueError as error:
        raise SystemExit(f"{entry.name} not collected: {error}") from error
    write_collected(
        entry.name,
        experiment(entry.name).collect(records),
        options.results,
        records,
        description=options.description,
        missing=options.missing,
    )


if __name__ == "__main__":
    main()
