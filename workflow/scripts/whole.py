"""Whether what a run left is whole: a full disk or a copy cut short leaves half a file."""

import json
import zipfile
from pathlib import Path

from study import Study

from rapa_lib.experiments.catalogue import CATALOGUE


def is_whole(path: Path) -> bool:
    """Whether an existing file of a run can be read to its end.

    Args:
        path: a JSON object, a notebook, or a network, which is a zip archive.
    """
    try:
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (PermissionError, IsADirectoryError):
        raise
    except Exception:  # a damaged archive raises whatever its bytes happen to mean
        return False
    return isinstance(content, dict) and (path.suffix != ".ipynb" or "cells" in content)


def remove_damaged(study: Study, folder: Path) -> list[Path]:
    """Remove the damaged files of a study's runs, that these are run again; return their paths."""
    damaged = [
        path
        for experiment, runs in study.runs.items()
        for run in runs
        for name in ("record.json", *CATALOGUE[experiment].leaves, f"{experiment}.ipynb")
        if (path := folder / "runs" / experiment / run.name / name).exists() and not is_whole(path)
    ]
    for path in damaged:
        path.unlink()
    return damaged
