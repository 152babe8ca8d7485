"""The records of a finished study in one compressed file: what its tables are made of, kept.

A line of JSON on the study, then one per run, compressed with xz: its experiment and name, the
record, the JSON files beside it, and the seconds that it took. Networks and executed notebooks are
not in it.
"""

import json
import lzma
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapa_lib._files import whole_file
from rapa_lib.experiments.catalogue import CATALOGUE
from rapa_lib.experiments.records import read_object, write_json

ARCHIVE = "records.jsonl.xz"
"""Name of the file in a study's folder."""

RESTORED = "restored"
"""Name of the file that says that a run's folder was made from an archive: a network and an
executed notebook are not there, and are not missed."""


@dataclass(frozen=True)
class KeptRun:
    """What is kept of one run.

    Args:
        experiment, run: its names.
        seconds: of wall time, if they are known.
        files: contents of ``record.json`` and of the other JSON files by name.
    """

    experiment: str
    run: str
    seconds: float | None
    files: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, folder: str | Path) -> "KeptRun":
        """Read a finished run's folder, ``…/<experiment>/<run>``.

        Raises:
            ValueError: if a file is missing or damaged; it is named.
        """
        folder = Path(folder)
        experiment = folder.parent.name
        names = ["record.json", *json_leaves(experiment)]
        files = {name: read_object(folder / name) for name in names}
        return cls(experiment, folder.name, read_seconds(folder), files)

    def record(self) -> dict[str, Any]:
        """The record as :meth:`Experiment.collect` takes it."""
        beside = {
            name.removesuffix(".json"): content
            for name, content in self.files.items()
            if name != "record.json"
        }
        return self.files["record.json"] | beside | {"run": self.run}

    def restore(self, folder: str | Path) -> None:
        """Write the run's files to a folder, the record last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESTORED).write_text(json.dumps({"seconds": self.seconds}), encoding="utf-8")
        for name, content in sorted(self.files.items(), key=lambda item: item[0] == "record.json"):
            write_json(folder / name, content)


def json_leaves(experiment: str) -> list[str]:
    """The JSON files that a run of an experiment leaves beside its record."""
    return [name for name in CATALOGUE[experiment].leaves if name.endswith(".json")]


def read_seconds(folder: Path) -> float | None:
    """The wall time that a run took, by its notebook or the archive; None where neither says."""
    for path, places in (
        (folder / f"{folder.parent.name}.ipynb", ("metadata", "papermill", "duration")),
        (folder / RESTORED, ("seconds",)),
    ):
        try:
            value: Any = json.loads(path.read_text(encoding="utf-8"))
            for place in places:
                value = value[place]
            return None if value is None else float(value)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


@dataclass(frozen=True)
class Archive:
    """The kept runs of a study, and what else its tables need.

    Args:
        study, description: of the study.
        claims: the file of rules by which it is judged, from the repository's root.
        runs: in the order in which they are collected.
        failed: of runs without a record, experiment, name and error.
    """

    study: str
    description: str
    claims: str
    runs: tuple[KeptRun, ...]
    failed: tuple[dict[str, str], ...] = ()

    def records(self, experiment: str) -> list[dict[str, Any]]:
        """The records of an experiment, or of the one that it is derived from."""
        source = CATALOGUE[experiment].source or experiment
        return [run.record() for run in self.runs if run.experiment == source]

    def missing(self, experiment: str) -> int:
        """How many runs of it, or of its source, have no record."""
        source = CATALOGUE[experiment].source or experiment
        return sum(run["experiment"] == source for run in self.failed)

    def write(self, path: str | Path) -> None:
        """Write the archive, whole or not at all; the same runs give the same bytes."""
        head = {n: getattr(self, n) for n in ("study", "description", "claims", "failed")}
        lines = [json.dumps(head), *(json.dumps(asdict(run), allow_nan=False) for run in self.runs)]
        content = "".join(f"{line}\n" for line in lines).encode()
        with whole_file(path) as part:
            part.write_bytes(lzma.compress(content, preset=6))

    @classmethod
    def read(cls, path: str | Path) -> "Archive":
        """Read an archive.

        Raises:
            ValueError: if the file is missing, damaged or of another kind.
        """
        try:
            text = lzma.decompress(Path(path).read_bytes()).decode()
            head, *lines = map(json.loads, text.splitlines())
            head["failed"] = tuple(head["failed"])
            return cls(runs=tuple(KeptRun(**line) for line in lines), **head)
        except (OSError, lzma.LZMAError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"archive: cannot read {path}: {error}") from error
