"""Keep the records of a study's runs in one file, and list its runs in a table."""

import argparse
import json
from pathlib import Path

from rapa_lib.experiments.archive import ARCHIVE, Archive, KeptRun
from rapa_lib.experiments.records import write_table
from rapa_lib.experiments.runs import NOT_DONE, runs_table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("results", type=Path, help="the study's folder")
    arguments.add_argument("runs", nargs="+", help="<experiment>/<run> of all that it plans")
    arguments.add_argument("--description", required=True, help="of the study, in one line")
    arguments.add_argument("--claims", required=True, help="the rules by which it is judged")
    options = arguments.parse_args()
    folders = [options.results / "runs" / run for run in options.runs]
    done = [folder for folder in folders if (folder / "record.json").exists()]
    archive = Archive(
        options.results.name,
        options.description,
        options.claims,
        tuple(KeptRun.of(folder) for folder in done),
        tuple(
            {"experiment": folder.parent.name, "run": folder.name, "error": read_error(folder)}
            for folder in folders
            if folder not in done
        ),
        rules=Path(options.claims).read_text(encoding="utf-8"),
    )
    write_table(options.results / "runs.csv", runs_table(archive))
    archive.write(options.results / ARCHIVE)


def read_error(folder: Path) -> str:
    """Why a run left no record."""
    if not folder.exists():
        return NOT_DONE
    try:
        return json.loads((folder / "error.json").read_text(encoding="utf-8"))["error"]
    except (OSError, ValueError, KeyError, TypeError):
        return "it left neither record nor error"


if __name__ == "__main__":
    main()
