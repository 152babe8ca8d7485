"""What tuning has chosen for the arms of a study: a committed file that the study's runs read.

A run records the SHA-256 of the file's content. Times say nothing here, for a checkout sets them
anew; but a file that is newer than a record, with other content, has another hash than it.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rapa_lib._files import whole_file
from rapa_lib.experiments.provenance import file_hash
from rapa_lib.experiments.tuning import Tuning
from rapa_lib.experiments.yaml_files import read_yaml

FOLDER = Path("config/chosen")  # below the repository's root

BY_TILING = ("tiling",)
"""What names an arm where a tuning block says nothing."""

# What does not change which values are best, or is of one machine.
_NOT_TUNED_FOR = ("dataset", "data_root", "device", "threads")


@dataclass(frozen=True)
class Chosen:
    """The chosen values of a study's arms.

    Args:
        study: its name.
        tuning_sha256: of what the values were tuned for, see :func:`tuning_hash`.
        code_sha256: of the code that tuned.
        images: name and fingerprint of the images that the short runs of tuning saw.
        arms: by arm, the values that won.
        trials: by arm, every trial: its values, its error when short, and those at full length.
    """

    study: str
    tuning_sha256: str
    code_sha256: str
    images: Mapping[str, str]
    arms: Mapping[str, Mapping[str, Any]]
    trials: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, path: Path) -> "Chosen":
        """Read a file.

        Raises:
            ValueError: if it is damaged; it is named.
        """
        try:
            return cls(**read_yaml(path, "chosen"))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"chosen: cannot read {path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all; the same values give the same bytes."""
        head = f"# What make tune chose for the arms of {self.study}; not written by hand.\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            apart = json.loads(
                json.dumps(vars(self))
            )  # values of a trial that won are written twice
            text = yaml.safe_dump(apart, sort_keys=False, allow_unicode=True, width=100)
            part.write_text(head + text, encoding="utf-8")


def chosen_path(study: str) -> Path:
    """Where the chosen values of a study are, from the repository's root."""
    return FOLDER / f"{study}.yaml"


def chosen_hash(path: Path) -> str:
    """The hash that records carry."""
    return file_hash(path)


def arms_of(
    accuracy: Mapping[str, Any], by: Sequence[str] = BY_TILING
) -> dict[str, dict[str, Any]]:
    """The arms of a study's accuracy block: by name, the first setting of the grid that has it.

    Args:
        accuracy: the block; its parameters, but for the seed.
        by: parameters whose values name an arm.

    Raises:
        ValueError: for one of them that is set nowhere.
    """
    found: dict[str, dict[str, Any]] = {}
    common = {"tiling": "random"} | accuracy["common"]
    for block in accuracy.get("grid", [{}]):
        first = {name: values[0] for name, values in block.items() if name != "seed"}
        if unknown := [name for name in by if name not in block and name not in common]:
            raise ValueError(f"by: got {', '.join(unknown)}, allowed: what common or the grid set")
        for values in itertools.product(*(block.get(name, [common.get(name)]) for name in by)):
            own = first | dict(zip(by, values, strict=True))
            found.setdefault(arm_name(own, by), own)
    return found


def arm_name(parameters: Mapping[str, Any], by: Sequence[str] = BY_TILING) -> str:
    """The arm that a run belongs to: ``random``, or ``random 16-4-1`` by tiling and n_tiles."""
    known = {"tiling": "random"} | dict(parameters)
    values = [known.get(name) for name in by]
    return " ".join("-".join(map(str, v)) if isinstance(v, list) else str(v) for v in values)


def by_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters that name the arms of a study's configuration."""
    return tuple(config.get("tuning", {}).get("by", BY_TILING))


def confirming_seeds(accuracy: Mapping[str, Any]) -> set[int]:
    """The seeds of a study's accuracy block."""
    common = accuracy["common"].get("seed", 0)
    return {seed for block in accuracy.get("grid", [{}]) for seed in block.get("seed", [common])}


def check_tuning(tuning: Tuning, accuracy: Mapping[str, Any]) -> None:
    """Raise ValueError for seeds that tuning and confirmation share, and knobs of no arm."""
    if shared := sorted(tuning.all_seeds & confirming_seeds(accuracy)):
        raise ValueError(
            f"tuning: seeds: got {', '.join(map(str, shared))}, which the study confirms with; "
            "allowed: others"
        )
    arms = arms_of(accuracy, tuning.by)
    for name, block in (("knobs", tuning.knobs), ("judged_by", tuning.judged_by)):
        if unknown := sorted(set(block) - set(arms)):
            raise ValueError(
                f"tuning: {name}: got {', '.join(unknown)}, allowed: {', '.join(arms)}"
            )


def tuning_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of what values are tuned for: the tuning block and the arms as they are trained.

    The data set is another matter, for its name may be the path of a folder of one machine.
    """
    accuracy = config["accuracy"]
    common = {k: v for k, v in accuracy["common"].items() if k not in _NOT_TUNED_FOR}
    text = json.dumps([config["tuning"], common, arms_of(accuracy, by_of(config))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stage(
    config: Mapping[str, Any],
    name: str,
    trials: Mapping[str, list[dict[str, Any]]],
    seeds: list[int],
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    """The configuration of one stage of tuning, a study of its own.

    Args:
        config: of the study that is tuned.
        name: of the stage.
        trials: by arm, the values of its trials.
        seeds: of each trial.
        changes: parameters that the stage's runs have otherwise than the study's.
    """
    tuning, accuracy = config["tuning"], config["accuracy"]
    common = {k: v for k, v in accuracy["common"].items() if k != "n_test"} | {
        "validation": tuning["validation"],
        "eval_every": 1_000_000,  # at the end alone
        **dict.fromkeys(("similarity_every", "penalty_every", "pull_every"), 0),
    }
    grid: list[dict[str, list[Any]]] = [
        {key: [value] for key, value in {**base, **values, **changes}.items() if key != "n_test"}
        | {"seed": seeds}
        for arm, base in arms_of(accuracy, by_of(config)).items()
        for values in trials[arm]
    ]
    kept = {key: config[key] for key in ("threads", "gpu_percent", "limits") if key in config}
    return {
        "study": name,
        "description": f"Tuning of {config['study']}: {name} runs",
        **kept,
        "accuracy": {"common": common, "grid": grid},
    }
