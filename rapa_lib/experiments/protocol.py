"""The protocol that every experiment speaks: settings, check, measure, collect."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from rapa_lib._checks import Checked, check_choice
from rapa_lib._files import whole_file, writable_folder
from rapa_lib.experiments.catalogue import CATALOGUE, Entry
from rapa_lib.experiments.mixing import mixed_lines, mixed_notice
from rapa_lib.experiments.plots import save_figure
from rapa_lib.experiments.recipe import Recipe
from rapa_lib.experiments.records import plain, provenance_lines, write_json, write_table

Record = dict[str, Any]
Subject = TypeVar("Subject")

ANSWER_LINES = 3


@dataclass(frozen=True)
class Collected:
    """What the records of an experiment's runs come to.

    Args:
        tables: by the names that the catalogue lists.
        figures: likewise; each is drawn from these tables alone, when it is asked for.
        answer: the experiment's question answered from the tables, in at most three lines.
        body: the rest of the page in Markdown: a summary table, what its columns mean, figures.

    Raises:
        ValueError: for an answer of more lines.
    """

    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Callable[[], Figure]]
    answer: Sequence[str]
    body: Sequence[str]

    def __post_init__(self) -> None:
        if not 1 <= len(self.answer) <= ANSWER_LINES or any("\n" in line for line in self.answer):
            raise ValueError(f"answer: got {self.answer}, expected 1 to {ANSWER_LINES} lines")


class Collecting(ABC):
    """What every experiment has: a name in the catalogue, and what is made of records.

    An experiment that has no runs of its own, only tables and figures derived from the records of
    another (``source`` in the catalogue), is no more than this.
    """

    name: ClassVar[str]

    @classmethod
    def entry(cls) -> Entry:
        """The experiment's static facts."""
        return CATALOGUE[cls.name]

    @classmethod
    @abstractmethod
    def collect(cls, records: Sequence[Record]) -> Collected:
        """Put the records of a study's runs together.

        Args:
            records: of :meth:`Experiment.measure`, each with the name of its ``run`` and the
                content of the JSON files beside it (see
                :func:`rapa_lib.experiments.records.read_runs`).
        """


class Experiment(Checked, Collecting, Generic[Subject]):
    """One experiment's settings, which are checked when they are made, and what is done by them.

    A subclass is a frozen dataclass in a folder of :mod:`rapa_lib.experiments`, named by
    :attr:`name` in the catalogue. Its subject is what the catalogue says that it needs: a
    :class:`rapa_lib.data.Dataset`, a :class:`rapa_lib.experiments.trained.Trained` network, or
    None.

    A field with a ``default_factory`` is a part: a :class:`Recipe` or another frozen dataclass.
    Notebooks and records have what is in it flat, beside the experiment's own parameters, and what
    a notebook leaves out is as in the part that the factory makes.
    """

    @classmethod
    def of(cls, **parameters: Any) -> Self:
        """Make settings of flat parameters, as a notebook has them.

        Those of a part go there.

        Raises:
            TypeError: for a parameter that the experiment does not have.
            ValueError, TypeError: naming a parameter that is not allowed.
        """
        if unknown := sorted(set(parameters) - set(cls.names())):
            raise TypeError(
                f"{cls.name}: {', '.join(unknown)}: unknown; it takes {', '.join(cls.names())}"
            )
        own = set(cls._own())
        given = {name: value for name, value in parameters.items() if name in own}
        for name, part in cls._parts().items():
            its = {n: parameters[n] for n in _part_names(part) if n in parameters and n not in own}
            given[name] = part.but(**its) if isinstance(part, Recipe) else replace(part, **its)
        return cls(**given)

    @classmethod
    def among(cls, variables: Mapping[str, Any]) -> Self:
        """Make settings of those parameters that are among a notebook's variables.

        Args:
            variables: ``globals()`` of the notebook; what the experiment does not take is left.
        """
        return cls.of(**{name: variables[name] for name in cls.names() if name in variables})

    @classmethod
    def _own(cls) -> list[str]:
        """The names of the experiment's own fields."""
        return [one.name for one in fields(cls)]  # type: ignore[arg-type]  # a dataclass

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The flat parameters that :meth:`of` takes."""
        own = cls._own()
        parts = cls._parts()
        flat = [name for part in parts.values() for name in _part_names(part) if name not in own]
        return (*flat, *(name for name in own if name not in parts))

    @classmethod
    def _parts(cls) -> dict[str, Any]:
        """The fields that are parts, as they are where nothing is given."""
        factories = {one.name: one.default_factory for one in fields(cls)}  # type: ignore[arg-type]  # a dataclass
        return {name: make() for name, make in factories.items() if make is not MISSING}

    def check(self, subject: Subject) -> None:
        """Raise now what measuring this subject would raise; of a network, its shapes are enough.

        Raises:
            ValueError: naming what does not fit.
        """

    def measure(
        self, subject: Subject, folder: str | Path | None = None, *, progress: bool = True
    ) -> Record:
        """Measure a subject and make the record of it.

        Args:
            subject: see the class.
            folder: where the record goes, as ``record.json``, after all else that the run leaves;
                and where what is done is kept meanwhile, so that an interrupted measurement goes
                on there and ends with the same bits. None or empty: nothing is written.
            progress: show bars.

        Returns:
            The record as :meth:`collect` takes it: with the name of its ``run``, and the content
            of the JSON files that the run leaves beside it under their names.

        Raises:
            ValueError: if the subject does not fit, or the folder cannot be written to.
        """
        self.check(subject)
        if not folder:
            return self._measure(subject, None, progress) | {"run": "this run"}
        folder = writable_folder("output", folder)
        record = self._measure(subject, folder, progress)
        beside = {name.removesuffix(".json"): name for name in self.entry().leaves}
        for key, name in beside.items():
            if name.endswith(".json"):
                write_json(folder / name, record[key])
        write_json(folder / "record.json", {k: v for k, v in record.items() if k not in beside})
        for name in self.resume_files:
            (folder / name).unlink(missing_ok=True)
        return record | {"run": folder.name}

    resume_files: ClassVar[tuple[str, ...]] = ()
    """Files that :meth:`_measure` keeps in its folder to go on from; removed once the record is."""

    @abstractmethod
    def _measure(self, subject: Subject, folder: Path | None, progress: bool) -> Record:
        """Measure; write what is no JSON to the folder, if there is one."""

    def settings(self) -> dict[str, Any]:
        """The settings as JSON holds them, flat as :meth:`of` takes them."""
        own = {name: getattr(self, name) for name in self._own()}
        flat: dict[str, Any] = {}
        for name in self._parts():
            part = own.pop(name)
            flat |= part.flat() if isinstance(part, Recipe) else vars(part)
        return plain(flat | own)


def _part_names(part: Any) -> tuple[str, ...]:
    """The flat parameters of a part."""
    return part.names() if isinstance(part, Recipe) else tuple(one.name for one in fields(part))


def experiment(name: str) -> type[Collecting]:
    """The class of an experiment by its name in the catalogue: an :class:`Experiment` if it has
    runs.

    Raises:
        ValueError: for an unknown name.
    """
    check_choice("experiment", name, CATALOGUE)
    return import_module(f"rapa_lib.experiments.{name}").EXPERIMENT


def write_collected(
    name: str,
    collected: Collected,
    folder: str | Path,
    records: Sequence[Record],
    *,
    description: str,
    missing: int = 0,
) -> None:
    """Write an experiment's tables, figures and page to a study's folder.

    Args:
        name: of the experiment.
        collected: of :meth:`Experiment.collect`.
        folder: the study's.
        records: what was collected, for the page to say where it comes from.
        description: of the study, in one line.
        missing: number of runs that did not finish.

    Raises:
        ValueError: if tables or figures are others than the catalogue says.
    """
    entry, folder = CATALOGUE[name], Path(folder)
    for kind in ("tables", "figures"):
        found, listed = set(getattr(collected, kind)), set(getattr(entry, kind))
        if found != listed:
            raise ValueError(
                f"{name}: its {kind} are {sorted(found)}, the catalogue has {sorted(listed)}"
            )
    for stem, table in collected.tables.items():
        write_table(folder / f"{stem}.csv", table)
    for stem, draw in collected.figures.items():
        save_figure(draw(), folder / stem)
    head = [f"# {description}", "", *mixed_notice(mixed_lines(records))]
    if missing:
        n_runs = missing + len(records)
        head += [f"**Incomplete: {missing} of {n_runs} runs did not finish.**", ""]
    lines = [*head, *answer_lines(collected), *collected.body, "", *provenance_lines(records)]
    with whole_file(folder / f"{name}.md") as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def answer_lines(collected: Collected) -> list[str]:
    """The answer in Markdown: a paragraph, or a list where it has several lines."""
    answer = collected.answer
    return [*(f"- {line}" for line in answer), ""] if len(answer) > 1 else [*answer, ""]
