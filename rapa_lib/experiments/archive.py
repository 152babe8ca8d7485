"""The records of a finished study in one compressed file: what its tables are made of, kept.

A line of JSON on the study, then one per run, compressed with xz: its experiment and name, the
record, the JSON files beside it, and the seconds that it took. Networks and executed notebooks are
not in it; networks can be kept beside it, as ``networks/<run>.pt``.
"""

import json
import lzma
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapa_lib._files import changed_files, copy_whole, whole_file, write_sums
from rapa_lib.experiments.catalogue import CATALOGUE
from rapa_lib.experiments.records import read_object, write_json
from rapa_lib.experiments.schemas import check_file

ARCHIVE = "records.jsonl.xz"
"""Name of the file in a study's folder."""

MOST_BYTES = 2**30
"""That an archive is written out to; the records of the largest study here have a tenth."""

RESTORED = "restored"
"""Name of the file that says that a run's folder was made from an archive: an executed notebook
is not there, nor a network unless it was kept, and they are not missed."""

NETWORKS = "networks"
"""Name of the folder of kept networks in a study's folder."""


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

    def restore(self, folder: str | Path, network: Path | None = None) -> None:
        """Write the run's files to a folder, the record last.

        Args:
            folder: to write to.
            network: the run's trained network, if it was kept.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: folder / name for name in self.files}
        if network:
            files["network.pt"] = folder / "network.pt"
            copy_whole(network, folder / "network.pt")
        (folder / RESTORED).write_text(json.dumps({"seconds": self.seconds}), encoding="utf-8")
        for name, content in sorted(self.files.items(), key=lambda item: item[0] == "record.json"):
            write_json(folder / name, content)
        write_sums(folder, files)


def keep_networks(results: str | Path) -> list[Path]:
    """Copy the trained networks of a study's runs to where they are kept, checksums beside them.

    Networks that are kept already stay: those of runs that were restored without one too.
    """
    folder = Path(results) / NETWORKS
    for path in sorted(Path(results).glob("runs/accuracy/*/network.pt")):
        folder.mkdir(exist_ok=True)
        copy_whole(path, folder / f"{path.parent.name}.pt")
    kept = sorted(folder.glob("*.pt"))
    if kept:
        write_sums(folder, {path.name: path for path in kept})
    return kept


def kept_networks(results: str | Path) -> dict[str, Path]:
    """The networks that are kept of a study, by run.

    Raises:
        ValueError: if one is not what was kept; it is named.
    """
    folder = Path(results) / NETWORKS
    if changed := changed_files(folder):
        raise ValueError(f"networks: {changed[0]} is not the file that was kept")
    return {path.stem: path for path in sorted(folder.glob("*.pt"))}


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


def _decompressed(path: Path) -> str:
    decompressor = lzma.LZMADecompressor()
    content = decompressor.decompress(path.read_bytes(), MOST_BYTES)
    if not decompressor.eof:
        if len(content) < MOST_BYTES:
            raise ValueError("it is cut off")
        raise ValueError(f"it holds more than {MOST_BYTES:,} bytes")
    return content.decode()


@dataclass(frozen=True)
class Archive:
    """The kept runs of a study, and what else its tables need.

    Args:
        study, description: of the study.
        claims: the file of rules by which it is judged, from the repository's root.
        runs: in the order in which they are collected.
        failed: of runs without a record, experiment, name and error.
        rules: the text of that file when the study was kept: rules that change later are for later
            studies. Empty: it was not kept.
    """

    study: str
    description: str
    claims: str
    runs: tuple[KeptRun, ...]
    failed: tuple[dict[str, str], ...] = ()
    rules: str = ""

    def records(self, experiment: str) -> list[dict[str, Any]]:
        """The records of an experiment, or of the one that it is derived from."""
        source = CATALOGUE[experiment].source or experiment
        return [run.record() for run in self.runs if run.experiment == source]

    def missing(self, experiment: str) -> int:
        """How many runs of it, or of its source, have no record."""
        source = CATALOGUE[experiment].source or experiment
        return sum(run["experiment"] == source for run in self.failed)

    def _check(self) -> None:
        """Raise for names that lead elsewhere: an archive may come from anyone."""
        if not re.fullmatch(r"config/claims/[a-z0-9][a-z0-9_-]*\.yaml", self.claims):
            raise ValueError(f"claims: got {self.claims!r}, allowed: a file of config/claims")
        if not isinstance(self.rules, str):
            raise TypeError(f"rules: got {type(self.rules).__name__}, expected text")
        if not re.fullmatch(r"[^\r\n]+", self.description):
            raise ValueError(f"description: got {self.description!r}, allowed: one line")
        for run in (*(vars(run) for run in self.runs), *self.failed):
            if run["experiment"] not in CATALOGUE:
                raise ValueError(f"experiment: got {run['experiment']!r}, allowed: those here")
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", run["run"]):
                raise ValueError(f"run: got {run['run']!r}, allowed: the name of a folder")
        for kept in self.runs:
            names = {"record.json", *json_leaves(kept.experiment)}
            if set(kept.files) != names:
                raise ValueError(f"files of {kept.run}: got {sorted(kept.files)}")

    def check_records(self) -> None:
        """Raise ValueError for a file that does not hold what it must; it is named."""
        for run in self.runs:
            for name, content in run.files.items():
                check_file(run.experiment, name, content, f"{run.experiment}/{run.run}/{name}")

    def write(self, path: str | Path) -> None:
        """Write the archive, whole or not at all; the same runs give the same bytes."""
        names = ("study", "description", "claims", "failed", *(("rules",) if self.rules else ()))
        head = {name: getattr(self, name) for name in names}
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
            head, *lines = map(json.loads, _decompressed(Path(path)).splitlines())
            head["failed"] = tuple(head["failed"])
            archive = cls(runs=tuple(KeptRun(**line) for line in lines), **head)
            archive._check()
            return archive
        except (OSError, lzma.LZMAError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"archive: cannot read {path}: {error}") from error
