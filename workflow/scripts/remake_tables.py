"""Make a study's tables, figures and report again from its kept records alone, without training.

The runs' folders are restored as far as the records go, with those networks that were kept: the
study can then be continued from them.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from study import ROOT
from whole import seal

from rapa_lib.experiments.archive import ARCHIVE, Archive, kept_networks
from rapa_lib.experiments.catalogue import CATALOGUE
from rapa_lib.experiments.protocol import experiment, write_collected
from rapa_lib.experiments.records import write_table
from rapa_lib.experiments.runs import runs_table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("results", type=lambda path: Path(path).absolute(), help="its folder")
    options = arguments.parse_args()
    try:
        archive = Archive.read(options.results / ARCHIVE)
        archive.check_records()
        networks = kept_networks(options.results)
    except ValueError as error:
        raise SystemExit(f"tables not made: {error}") from error
    restore(archive, options.results, networks)
    collect(archive, options.results)
    report(archive, options.results)
    seal(options.results)
    print(f"{archive.study}: tables, figures and report of {len(archive.runs)} runs made again")
    print(f"  {options.results / 'report.html'}")


def restore(archive: Archive, results: Path, networks: Mapping[str, Path]) -> None:
    """Write the files of runs that are not there."""
    for run in archive.runs:
        folder = results / "runs" / run.experiment / run.run
        if not (folder / "record.json").exists():
            trained = run.experiment == "accuracy"
            run.restore(folder, networks.get(run.run) if trained else None)


def collect(archive: Archive, results: Path) -> None:
    """Make every table, figure and page."""
    for name, entry in CATALOGUE.items():
        records = archive.records(name)
        if entry.concerns(record.get("config", {}) for record in records):
            write_collected(
                name, experiment(name).collect(records), results, records,
                description=archive.description, missing=archive.missing(name),
            )  # fmt: skip
    write_table(results / "runs.csv", runs_table(archive))


def report(archive: Archive, results: Path) -> None:
    """Judge the claims by the rules that were kept, and export the page."""
    executed, claims = str(results / "runs/report/report.ipynb"), archive.claims
    if archive.rules:
        rules = results / "runs/report/rules.yaml"
        rules.parent.mkdir(parents=True, exist_ok=True)
        rules.write_text(archive.rules, encoding="utf-8")
        claims = str(rules)
    parameters = {"results": str(results), "claims": claims, "output": str(results)}
    run_script(
        "run_notebook.py", "notebooks/report.ipynb", executed,
        "--parameters", json.dumps(parameters),
    )  # fmt: skip
    run_script("export_report.py", executed, str(results / "report.html"))


def run_script(name: str, *arguments: str) -> None:
    """Run a script beside this one; what it complains of ends this one too."""
    command = [sys.executable, str(Path(__file__).with_name(name)), *arguments]
    environment = os.environ | {"PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"report not made: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
