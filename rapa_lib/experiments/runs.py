"""The table of a study's runs: done or failed, how long, by which code, on what."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from rapa_lib.experiments.archive import Archive

KEPT = (
    "git_commit", "code_sha256", "rules_sha256", "package_version", "torch_version",
    "python_version", "device", "threads", "products", "data_fingerprint",
)  # fmt: skip
"""Entries of a record that the table repeats, where a record has them."""

NOT_DONE = "not done yet"
"""The error of a run that has not been begun."""

TUNED = "chosen_sha256"
"""The entry that records of tuned studies have, and the table of no other."""


def runs_table(archive: Archive) -> pd.DataFrame:
    """One row per run: experiment, name, whether it is done, its error, provenance and seconds."""
    rows = [_done(run.experiment, run.run, run.record(), run.seconds) for run in archive.runs]
    rows += [{**run, "done": False} for run in archive.failed]
    tuned = [TUNED] if any(TUNED in run.record() for run in archive.runs) else []
    columns = ["experiment", "run", "done", "error", *KEPT, *tuned, "seconds"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("experiment", key=_first_seen(rows), kind="stable", ignore_index=True)


def _done(
    experiment: str, run: str, record: Mapping[str, Any], seconds: float | None
) -> dict[str, Any]:
    known = {"experiment": experiment, "run": run, "done": True, "error": ""}
    return known | {name: record.get(name) for name in (*KEPT, TUNED)} | {"seconds": seconds}


def _first_seen(rows: list[dict[str, Any]]) -> Any:
    order = {name: i for i, name in enumerate(dict.fromkeys(row["experiment"] for row in rows))}
    return lambda names: names.map(order)
