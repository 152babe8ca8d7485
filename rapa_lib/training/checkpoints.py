"""Checkpoints: files that are whole or absent, and belong to one training."""

import copy
import logging
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from rapa_lib._files import whole_file, writable_folder
from rapa_lib.data.datasets import Dataset
from rapa_lib.training.config import TrainConfig

log = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 1


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    with whole_file(path) as part:
        torch.save({"format": CHECKPOINT_FORMAT} | content, part)


def load_checkpoint(path: str | Path) -> dict[str, Any] | None:
    """Read a checkpoint; None, with a logged warning, where it is missing or damaged.

    Raises:
        ValueError: if it was written in a format that this version does not know.
    """
    if not Path(path).exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:  # torch compares no checksums
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        log.warning("checkpoint %s is damaged and is not used: %s", path, error)
        return None
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"checkpoint: {path} is in no format that this version knows")
    return content


def first_not_finite_in(state: Any) -> str | None:
    """The name of the first tensor of a state dict with a NaN or an infinity; None for none."""
    for name, value in state.items() if isinstance(state, Mapping) else ():
        numbers = isinstance(value, torch.Tensor) and value.is_floating_point()
        if numbers and not bool(value.isfinite().all()):
            return str(name)
    return None


def identity(
    model: nn.Module, dataset: Dataset, config: TrainConfig, on_epoch: Callable | None
) -> dict[str, Any]:
    """What a training must share with a checkpoint to go on from it."""
    network = repr(model)
    if on_epoch is not None:  # a function's repr is not the same in the next process
        network += f"\n{getattr(on_epoch, '__qualname__', None) or repr(on_epoch)}"
    return {
        "config": asdict(config),
        "data_fingerprint": dataset.fingerprint,
        "network": network,
    }


class Stateful(Protocol):
    """A network, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class ResumeFile:
    """The file of one training, written after every epoch.

    Args:
        path: the file; its folder is made and proved to be writable.
        identity: see :func:`identity`.
        parts: by name, what is trained and what trains it.

    Raises:
        ValueError: if the folder cannot be written to.
    """

    path: Path
    identity: Mapping[str, Any]
    parts: Mapping[str, Stateful]

    def __post_init__(self) -> None:
        writable_folder("checkpoint", self.path.parent)

    def save(self, history: list, measurements: list) -> None:
        """Write the state of all parts, and what was recorded so far."""
        save_checkpoint(
            self.path,
            {
                **self.identity,
                "history": history,
                "measurements": measurements,
                **{name: part.state_dict() for name, part in self.parts.items()},
            },
        )

    def resume(self) -> tuple[list, list]:
        """Give all parts their saved state.

        Returns:
            History and measurements of the epochs that were trained; none without a usable file.

        Raises:
            ValueError: if the file belongs to another training; nothing is changed then.
        """
        saved = load_checkpoint(self.path)
        if saved is None:
            return [], []
        self._check(saved)
        before = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}
        try:
            self._load(saved)
        except (RuntimeError, ValueError) as error:
            self._load(before)
            raise ValueError(
                f"checkpoint: {self.path} does not fit this network: {error}"
            ) from error
        log.info("resumed %s after epoch %d", self.path, len(saved["history"]))
        return list(saved["history"]), list(saved["measurements"])

    def _check_epochs(self, history: Any) -> None:
        epochs = [row.get("epoch") if isinstance(row, dict) else None for row in history]
        if not isinstance(history, list) or epochs != list(range(1, len(history) + 1)):
            n = len(history) if isinstance(history, list) else 0
            raise ValueError(
                f"checkpoint: {self.path}: its history is not of epochs 1 to {n}, one after another"
            )
        if len(history) > (asked := self.identity["config"]["epochs"]):
            raise ValueError(
                f"checkpoint: {self.path} holds {len(history)} epochs, but this training has "
                f"{asked}"
            )

    def _load(self, states: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(states[name])

    def _check(self, saved: Mapping[str, Any]) -> None:
        needed = {*self.identity, *self.parts, "history", "measurements"}
        if missing := sorted(needed - set(saved)):
            raise ValueError(
                f"checkpoint: {self.path} is not a training checkpoint: it lacks {missing}"
            )
        self._check_epochs(saved["history"])
        if bad := first_not_finite_in(saved["model"]):
            raise ValueError(f"checkpoint: {self.path}: values of {bad} are not finite")
        for theirs, ours in ((saved["config"], self.identity["config"]), (saved, self.identity)):
            for key, value in ours.items():
                if theirs.get(key) != value:
                    raise ValueError(
                        f"checkpoint: {self.path} belongs to another training: its {key} is "
                        f"{theirs.get(key)}, this one's {value}"
                    )
