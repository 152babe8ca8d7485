"""A study: which runs its YAML asks for, each checked before anything is trained."""

import ast
import functools
import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import papermill
from chosen import BY_TILING, Chosen, arm_name, by_of, check_tuning, chosen_path

from rapa_lib.experiments.catalogue import CATALOGUE
from rapa_lib.experiments.tuning import Tuning
from rapa_lib.experiments.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "workflow/schemas/study.schema.yaml"
LONGEST = 400
"""Characters of what is said of a wrong value."""

MOST_RUNS = 5_000
"""Of a study; each is planned, checked and listed before the first begins."""

SET_BY_STUDY = ("threads", "output", "network", "copies")


def schema() -> dict[str, Any]:
    """The schema of a study's YAML: that of the file, with a key for every experiment that runs."""
    content = read_yaml(SCHEMA, "schema")
    for entry in CATALOGUE.values():
        if entry.needs != "records":
            kind = "following" if entry.needs == "network" else "experiment"
            content["properties"][entry.name] = {"$ref": f"#/$defs/{kind}"}
    return content


@dataclass(frozen=True)
class Run:
    """One execution of a notebook.

    Args:
        name: names its folder; holds a hash of all its parameters.
        parameters: what papermill hands to the notebook.
        network: name of the accuracy run whose trained network it starts from, if it needs one.
        copies: name of an accuracy run that differs from that one in its seed alone, if its
            notebook asks for copies and there is one.
        block: place of the block of the grid that it is of, or that its network is of; earlier ones
            are begun first.
    """

    name: str
    parameters: dict[str, Any]
    network: str | None = None
    copies: tuple[str, ...] = ()
    block: int = 0


@dataclass(frozen=True)
class Limits:
    """What one run may take; nothing here changes what it computes, nor its name.

    Args:
        minutes: of wall time; None is no limit.
        memory_gb: of resident memory, in 10⁹ bytes, at the first attempt; None is no limit.
        retries: attempts after the first that failed.

    Raises:
        ValueError: for what is not a number.
    """

    minutes: float | None = None
    memory_gb: float | None = None
    retries: int = 0

    def __post_init__(self) -> None:
        for name in ("minutes", "memory_gb"):
            value = getattr(self, name)
            if value is not None and math.isnan(value):  # no bound of the schema is beyond it
                raise ValueError(f"study: limits: {name}: got {value}, allowed: above 0")


@dataclass(frozen=True)
class Study:
    """A study: its experiments' runs and their limits, and the rules by which it is judged.

    ``gpu_percent`` is the share of one GPU that a run takes, 0 if it asks for none. A
    ``confirmatory`` study runs by rules and code that are fixed before its first record. Of a study
    with ``tuning``, ``chosen`` is the file of the values that its runs take, None while there is
    none.
    """

    name: str
    description: str
    threads: int
    runs: dict[str, list[Run]]
    limits: dict[str, Limits]
    claims: str = "config/claims/paper.yaml"
    gpu_percent: int = 0
    confirmatory: bool = False
    tuning: Tuning | None = None
    chosen: str | None = None

    @property
    def n_runs(self) -> int:
        """How many runs there are."""
        return sum(map(len, self.runs.values()))

    @property
    def collected(self) -> dict[str, str]:
        """Every experiment that leaves tables, by its name the one whose runs it collects."""
        found = {}
        for entry in CATALOGUE.values():
            source = entry.source or entry.name
            if entry.concerns(run.parameters for run in self.runs.get(source, [])):
                found[entry.name] = source
        return found

    @classmethod
    def of(cls, config: dict[str, Any], data: str | None = None) -> "Study":
        """Check a study's configuration and spell out its runs.

        Args:
            config: the content of its YAML file.
            data: a data set to use instead of the configured one: a name or a folder, which is
                spelled as :func:`from_checkout` does.

        Raises:
            ValueError: for an unknown key, parameter or value, with what is allowed.
        """
        _check_schema(config)
        data = from_checkout(data)
        threads, tuning, chosen = config["threads"], *_tuned(config)
        values = Chosen.read(ROOT / chosen).arms if chosen else {}
        runs = {
            "accuracy": _grid("accuracy", config["accuracy"], threads, data, values, by_of(config))
        }
        for experiment in CATALOGUE:
            if experiment in config and experiment != "accuracy":
                block = config[experiment]
                own_data = data if "networks" not in block else None
                settings = _grid(experiment, block, threads, own_data)
                if "networks" not in block:
                    runs[experiment] = settings
                    continue
                networks = _chosen(experiment, block["networks"], runs["accuracy"])
                copied = "copies" in _parameters(experiment)
                _check_number(experiment, len(networks) * len(settings))
                runs[experiment] = [
                    Run(
                        f"{network.name}-{own.name}",
                        own.parameters,
                        network.name,
                        _copies(network, runs["accuracy"]) if copied else (),
                        network.block,
                    )
                    for network in networks
                    for own in settings
                ]
        claims = f"config/claims/{config.get('claims', 'paper')}.yaml"
        if not (ROOT / claims).is_file():
            known = sorted(path.stem for path in (ROOT / "config/claims").glob("*.yaml"))
            raise ValueError(
                f"study: claims: got {config['claims']!r}, allowed: {', '.join(known)}"
            )
        limits = {
            experiment: Limits(**config.get("limits", {}) | config[experiment].get("limits", {}))
            for experiment in runs
        }
        share = config.get("gpu_percent", 0)
        confirms = config.get("confirmatory", False)
        return cls(
            config["study"], config["description"], threads, runs, limits, claims, share, confirms,
            tuning, chosen,
        )  # fmt: skip


def _check_schema(config: Any) -> None:
    errors = list(jsonschema.Draft202012Validator(schema()).iter_errors(config))
    if errors:
        error = jsonschema.exceptions.best_match(errors)
        message = " ".join(error.message.split())
        if len(message) > LONGEST:  # a value of any length
            message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
        allowed = error.schema.get("properties")
        hint = f"; allowed keys: {', '.join(allowed)}" if allowed else ""
        raise ValueError(f"study: {error.json_path}: {message}{hint}")


def from_checkout(data: str | None) -> str | None:
    """The path of a folder in the checkout or beside it, as it is spelled from the checkout.

    Parameters, which name a run, and records then say the same of the same folder wherever the
    checkout lies. Names, and paths of other folders, stay as they are.
    """
    if data is None or not Path(data).is_absolute():
        return data
    relative = Path(os.path.relpath(data, ROOT))
    return data if relative.parts[:2] == ("..", "..") else str(relative)


def load_study(path: str | Path, data: str | None = None, name: str | None = None) -> Study:
    """Read and check a study's YAML file; see :meth:`Study.of` and :func:`read_config`."""
    return Study.of(read_config(path, name), data)


def read_config(path: str | Path, name: str | None = None) -> Any:
    """Read a study's YAML file, unchecked.

    Args:
        name: of the study and its folder, instead of the file's: the same study on other data.
    """
    path = Path(path)
    if not path.is_file():
        known = {p.stem for p in (ROOT / "config").glob("*.yaml")}
        raise ValueError(f"study: there is no {path}; studies here: {', '.join(sorted(known))}")
    config = read_yaml(path)
    if name is not None and isinstance(config, dict):
        config["study"] = name
    return config


def _tuned(config: dict[str, Any]) -> tuple[Tuning | None, str | None]:
    """The tuning that a study asks for, and the file of what it chose, as far as there are any."""
    if "tuning" not in config:
        return None, None
    try:
        tuning = Tuning.of(config["tuning"])
        check_tuning(tuning, config["accuracy"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"study: tuning: {str(error).removeprefix('tuning: ')}") from error
    path = chosen_path(config["study"])
    return tuning, str(path) if (ROOT / path).is_file() else None


@functools.cache
def _parameters(experiment: str) -> dict[str, Any]:
    """The parameters of an experiment's notebook, read once a process."""
    return papermill.inspect_notebook(ROOT / f"notebooks/{experiment}.ipynb")


def _copies(network: Run, runs: list[Run]) -> tuple[str, ...]:
    """The first accuracy run that differs from one in its seed alone.

    One, so that the cost of attacks that transfer grows with the number of seeds, not its square.
    """

    def but_seed(run: Run) -> dict[str, Any]:
        return {name: value for name, value in run.parameters.items() if name != "seed"}

    others = (run.name for run in runs if run is not network and but_seed(run) == but_seed(network))
    return tuple(itertools.islice(others, 1))


def _grid(
    experiment: str,
    config: dict,
    threads: int,
    data: str | None = None,
    chosen: Mapping[str, Mapping[str, Any]] | None = None,
    by: Sequence[str] = BY_TILING,
) -> list[Run]:
    """Spell out the grid of one experiment, in order, without repetition.

    Args:
        chosen: by arm, values that tuning has found: instead of the common ones, but for what
            a block of the grid says itself.
        by: parameters whose values name an arm.
    """
    inspected = _parameters(experiment)
    known = [name for name in inspected if name not in SET_BY_STUDY]
    override: dict[str, Any] = {"threads": threads} if "threads" in inspected else {}
    if data is not None and "dataset" in inspected:
        override["dataset"] = data
    runs: dict[str, Run] = {}
    blocks = config.get("grid", [{}])
    _check_number(experiment, sum(math.prod(map(len, block.values())) for block in blocks))
    for place, block in enumerate(blocks):
        for values in itertools.product(*block.values()):
            own = dict(zip(block, values, strict=True))
            parameters = config["common"] | own
            found = (chosen or {}).get(arm_name(parameters, by), {})
            parameters |= {name: value for name, value in found.items() if name not in own}
            unknown = [str(name) for name in parameters if name not in known]
            if unknown:
                raise ValueError(
                    f"study: {experiment}: notebook {experiment}.ipynb has no parameter "
                    f"{', '.join(unknown)} to set; it has {', '.join(known)}"
                )
            parameters |= override
            text = json.dumps(parameters, sort_keys=True)
            name = hashlib.sha256(text.encode()).hexdigest()[:8]
            if experiment == "accuracy":
                tiling, seed = parameters.get("tiling", "default"), parameters.get("seed", 0)
                name = f"{tiling}-{seed}-{name}"
            runs.setdefault(name, Run(name, parameters, block=place))
    return list(runs.values())


def _check_number(experiment: str, n_runs: int) -> None:
    """Raise for more runs of an experiment than are planned."""
    if n_runs > MOST_RUNS:
        raise ValueError(
            f"study: {experiment}: its grid has {n_runs:,} runs, allowed: at most {MOST_RUNS:,}"
        )


def _chosen(experiment: str, wanted: dict[str, list], runs: list[Run]) -> list[Run]:
    """The accuracy runs that have one of the wanted values of every parameter named."""
    inspected = _parameters("accuracy")
    if unknown := [str(name) for name in wanted if name not in inspected]:
        raise ValueError(
            f"study: {experiment}: networks: notebook accuracy.ipynb has no parameter "
            f"{', '.join(unknown)}; it has {', '.join(inspected)}"
        )
    default = {name: ast.literal_eval(inspected[name]["default"]) for name in wanted}
    chosen = [
        run
        for run in runs
        if all((default | run.parameters)[name] in values for name, values in wanted.items())
    ]
    if not chosen:
        raise ValueError(
            f"study: {experiment}: networks: no run of the accuracy experiment has {wanted}"
        )
    return chosen
