"""Whether what a run left is whole, and as it was left.

A full disk or a copy cut short leaves half a file; a hand or a disk changes one.
"""

import json
import zipfile
from pathlib import Path

from study import Study

from rapa_lib._files import SUMS, changed_files, write_sums
from rapa_lib.experiments.catalogue import CATALOGUE
from rapa_lib.experiments.schemas import check_file


def is_whole(path: Path) -> bool:
    """Whether an existing file of a run can be read to its end, and holds what it must.

    Args:
        path: a JSON object, a notebook, or a network, which is a zip archive.
    """
    try:
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        if path.suffix == ".json":
            check_file(path.parent.parent.name, path.name, content, str(path))
    except (PermissionError, IsADirectoryError):
        raise
    except Exception:  # a damaged archive raises whatever its bytes happen to mean
        return False
    return isinstance(content, dict) and (path.suffix != ".ipynb" or "cells" in content)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def remove_damaged(study: Study, folder: Path) -> list[Path]:
    """Remove the damaged files of a study's runs, that these are run again; return their paths.

    Damaged is what is not whole, and what is not what its run wrote, by the checksums beside it.
    """
    damaged = []
    for experiment, runs in study.runs.items():
        for run in runs:
            place = folder / "runs" / experiment / run.name
            changed = changed_files(place)
            for name in (SUMS, *run_files(experiment)):
                path = place / name
                if path in changed or (name != SUMS and path.exists() and not is_whole(path)):
                    damaged.append(path)
    for path in damaged:
        path.unlink()
    return damaged


def run_files(experiment: str) -> tuple[str, ...]:
    """The files that a run of an experiment leaves."""
    return ("record.json", *CATALOGUE[experiment].leaves, f"{experiment}.ipynb")


def collected_files() -> list[str]:
    """The files that a study collects."""
    ends = ["runs.csv", "claims.csv", "claims.md", "report.html", "records.jsonl.xz"]
    return [name for entry in CATALOGUE.values() for name in entry.files] + ends


def remove_changed(folder: Path) -> list[Path]:
    """Remove what a study collected and somebody changed, that it is made again; return paths."""
    changed = changed_files(folder)
    for path in changed:
        path.unlink()
    return [path for path in changed if path.name != SUMS]


def seal(folder: Path) -> None:
    """Write the checksums of what a study collected."""
    there = {name: folder / name for name in collected_files() if (folder / name).is_file()}
    write_sums(folder, there)
