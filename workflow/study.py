"""A study: which runs its YAML asks for, each checked before anything is trained."""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import papermill
import yaml

ROOT = Path(__file__).resolve().parents[1]
SET_BY_STUDY = ("threads", "output")


@dataclass(frozen=True)
class Run:
    """One execution of a notebook.

    Args:
        name: names its folder; holds a hash of all its parameters.
        parameters: what papermill hands to the notebook.
    """

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A study's name, description, threads a run, and its runs of the accuracy experiment."""

    name: str
    description: str
    threads: int
    accuracy: list[Run]

    @classmethod
    def of(cls, config: dict[str, Any], data: str | None = None) -> "Study":
        """Check a study's configuration and spell out its runs.

        Args:
            config: the content of its YAML file.
            data: a data set to use instead of the configured one: a name or a folder.

        Raises:
            ValueError: for an unknown key, parameter or value, with what is allowed.
        """
        schema = yaml.safe_load((ROOT / "config/schema.yaml").read_text())
        errors = list(jsonschema.Draft202012Validator(schema).iter_errors(config))
        if errors:
            error = jsonschema.exceptions.best_match(errors)
            allowed = error.schema.get("properties")
            hint = f"; allowed keys: {', '.join(allowed)}" if allowed else ""
            raise ValueError(f"study: {error.json_path}: {error.message}{hint}")
        return cls(
            config["study"],
            config["description"],
            config["threads"],
            _runs("accuracy", config["accuracy"], config["threads"], data),
        )


def load_study(path: str | Path, data: str | None = None) -> Study:
    """Read and check a study's YAML file; see :meth:`Study.of`."""
    path = Path(path)
    if not path.is_file():
        known = {p.stem for p in (ROOT / "config").glob("*.yaml")} - {"schema"}
        raise ValueError(f"study: there is no {path}; studies here: {', '.join(sorted(known))}")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeError) as error:
        raise ValueError(f"study: {path} is no YAML: {error}") from error
    return Study.of(config, data)


def _runs(experiment: str, config: dict, threads: int, data: str | None) -> list[Run]:
    """Spell out the grid of one experiment, in order, without repetition."""
    inspected = papermill.inspect_notebook(ROOT / f"notebooks/{experiment}.ipynb")
    known = [name for name in inspected if name not in SET_BY_STUDY]
    override = {"threads": threads} | ({} if data is None else {"dataset": data})
    runs = {}
    for block in config["grid"]:
        for values in itertools.product(*block.values()):
            parameters = config["common"] | dict(zip(block, values, strict=True))
            unknown = [str(name) for name in parameters if name not in known]
            if unknown:
                raise ValueError(
                    f"study: {experiment}: notebook {experiment}.ipynb has no parameter "
                    f"{', '.join(unknown)} to set; it has {', '.join(known)}"
                )
            parameters |= override
            text = json.dumps(parameters, sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            name = f"{parameters.get('tiling', 'default')}-{parameters.get('seed', 0)}-{digest}"
            runs[name] = Run(name, parameters)
    return list(runs.values())
