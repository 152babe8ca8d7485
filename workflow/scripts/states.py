"""Whether the records that a study has are of the code and the data that it would go on with."""

import json
from pathlib import Path
from typing import Any

from study import Study
from whole import is_whole

from rapa_lib.data import Dataset
from rapa_lib.experiments.mixing import ALLOWED_BY, mixed_lines
from rapa_lib.experiments.provenance import code_hash
from rapa_lib.experiments.recipe import Recipe

Place = tuple[str, str]
"""An experiment and the name of one of its runs."""


def check_unmixed(study: Study, folder: Path, data: dict[Place, tuple[Recipe, Dataset]]) -> None:
    """Raise if numbers of several states of the code, or of the data, would share the tables.

    Args:
        study: its runs; those without a record are to be made by the code and data of now.
        folder: the study's.
        data: of each run.
    """
    rows: list[dict[str, Any]] = []
    for kind, runs in study.runs.items():
        for run in runs:
            path = folder / "runs" / kind / run.name / "record.json"
            if path.exists() and is_whole(path):
                rows.append(json.loads(path.read_text(encoding="utf-8")))
                continue
            row: dict[str, Any] = {"code_sha256": code_hash()}
            if (kind, run.name) in data:
                recipe, images = data[kind, run.name]
                row |= {"config": recipe.flat(), "data_fingerprint": images.fingerprint}
            rows.append(row)
    if lines := mixed_lines(rows):
        raise ValueError(
            f"mixed: its tables would hold {' and '.join(lines)}; give the study another NAME= "
            f"(--name), remove {folder / 'runs'}, or allow it by {ALLOWED_BY}: every page then "
            "says so"
        )
