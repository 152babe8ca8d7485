"""Trained networks: written to a file, read from it, or made here: where experiments begin."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from rapa_lib.data import Dataset
from rapa_lib.experiments.recipe import Recipe, choose_device, recipe_of
from rapa_lib.experiments.tracking import Tracking
from rapa_lib.networks import RapaConvNet
from rapa_lib.training import InputScaling, Training, load_checkpoint, save_checkpoint, train
from rapa_lib.training.checkpoints import first_not_finite_in

_AT_RISK = 5.0  # seconds of training that an interruption may cost


@dataclass(frozen=True)
class Trained:
    """A trained network with all that belongs to it.

    Args:
        network: in evaluation mode, on the recipe's device; on ``"meta"`` where it is planned.
        scaling: from images to its input.
        recipe: what it was trained by.
        data: the images it was trained on and those it was not.
        parameters: flat, of the run that trained it: the recipe and how that run measured it.
        measurements: what was recorded of its tiles (:class:`rapa_lib.Training`).
    """

    network: RapaConvNet
    scaling: InputScaling
    recipe: Recipe
    data: Dataset
    parameters: Mapping[str, Any] = field(repr=False)
    measurements: list[dict[str, Any]] = field(repr=False)

    @classmethod
    def planned(cls, recipe: Recipe, data: Dataset, parameters: Mapping[str, Any]) -> "Trained":
        """The network that a recipe will train, as far as it is known before: its shapes."""
        network = recipe.build(data, "meta").eval()
        return cls(network, InputScaling((), ()), recipe, data, parameters, [])

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    def labels(self) -> dict[str, Any]:
        """What tells this network from the others of a study, by the names of table columns."""
        return self.recipe.labels(self.data.name, self.network.n_tiles)


def train_recipe(
    recipe: Recipe,
    data: Dataset,
    *,
    tracking: Tracking | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> tuple[RapaConvNet, Training]:
    """Build a recipe's network and train it.

    Args:
        recipe: what to train.
        data: of ``recipe.load()``.
        tracking: what is recorded of the tiles meanwhile.
        resume: a file that makes the training survive interruptions; some seconds may be lost.
        progress: show a bar.
    """
    recipe.use_threads()
    network = recipe.build(data)
    training = train(
        network, data, recipe.training, checkpoint=resume, checkpoint_seconds=_AT_RISK,
        progress=progress,
        measure=None if tracking is None else tracking.measure(recipe, data),
    )  # fmt: skip
    return network, training


def save_network(
    path: str | Path,
    network: RapaConvNet,
    scaling: InputScaling,
    data: Dataset,
    parameters: Mapping[str, Any],
) -> None:
    """Write a trained network whole or not at all.

    Args:
        path: of the file.
        network, scaling, data: of the training.
        parameters: flat, of the run that trained it.
    """
    content = {
        "parameters": dict(parameters),
        "state": network.state_dict(),
        "scaling": scaling._asdict(),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "in_channels": data.in_channels,
            "n_classes": data.n_classes,
            "image_size": list(data.image_size),
        },
    }
    save_checkpoint(path, content)


@dataclass(frozen=True)
class SavedNetwork:
    """A network file that :func:`save_network` wrote, read once.

    Args:
        path: the file.
        parameters: of the run that trained the network.
        state, scaling: of the network.
        data: name, fingerprint, in_channels, n_classes and image_size of what it was trained on.
    """

    path: Path
    parameters: dict[str, Any] = field(repr=False)
    state: dict[str, Any] = field(repr=False)
    scaling: dict[str, Sequence[float]] = field(repr=False)
    data: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, path: str | Path) -> "SavedNetwork":
        """Read a file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged or of another kind.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"path: there is no checkpoint {path}")
        saved = load_checkpoint(path)
        names = [name for name in cls.__dataclass_fields__ if name != "path"]
        if saved is None or not set(names) <= set(saved):
            raise ValueError(f"path: {path} is no undamaged network checkpoint")
        if bad := first_not_finite_in(saved["state"]):
            raise ValueError(f"path: {path}: values of {bad} are not finite")
        return cls(Path(path), **{name: saved[name] for name in names})

    def build(self, device: str = "cpu") -> tuple[RapaConvNet, InputScaling, Recipe]:
        """Make the network in evaluation mode, its input scaling and the recipe it was trained by.

        Raises:
            ValueError: if the state does not fit the network.
        """
        recipe = recipe_of(self.parameters).on(device)
        size = tuple(self.data["image_size"])
        network = recipe.untrained(self.data["in_channels"], self.data["n_classes"], size)
        try:
            network.load_state_dict(self.state)
        except RuntimeError as error:
            raise ValueError(f"path: {self.path} does not fit its own network: {error}") from error
        mean, std = (tuple(self.scaling[name]) for name in InputScaling._fields)
        return network.to(choose_device(device)).eval(), InputScaling(mean, std), recipe


def load_network(path: str | Path, device: str = "cpu") -> tuple[RapaConvNet, InputScaling, Recipe]:
    """Load a network that :func:`save_network` wrote.

    Returns:
        The network in evaluation mode, its input scaling and the recipe it was trained by.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or of another kind.
    """
    return SavedNetwork.read(path).build(device)


def load_or_train(
    network: str | Path = "",
    training: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    threads: int = 0,
    progress: bool = True,
) -> Trained:
    """Load a network that the accuracy experiment wrote, or train one.

    Args:
        network: path of its ``network.pt``; empty: train.
        training: parameters of a recipe (:meth:`Recipe.of`) for a network to train, and of
            :class:`rapa_lib.experiments.tracking.Tracking`.
        device, threads: see :class:`Recipe`.
        progress: show a bar while training.

    Raises:
        FileNotFoundError, ValueError: if the file is missing or damaged, or its data set is here
            another one than the network was trained on.
        TypeError: for a parameter that neither has.
    """
    if not network:
        given = {**(training or {}), "device": device, "threads": threads}
        tracking, others = Tracking.split(given)
        recipe = Recipe.of(**others)
        data = recipe.load()
        built, result = train_recipe(recipe, data, tracking=tracking, progress=progress)
        parameters = recipe.flat() | vars(tracking)
        assert result.scaling is not None  # a training that ended has one
        return Trained(built.eval(), result.scaling, recipe, data, parameters, result.measurements)
    saved = SavedNetwork.read(network)
    loaded, scaling, recipe = saved.build(device)
    recipe = recipe.on(device, threads)
    recipe.use_threads()
    data = recipe.load()
    if saved.data["fingerprint"] != data.fingerprint:
        raise ValueError(
            f"network: {network} was trained on {saved.data['name']} with fingerprint "
            f"{saved.data['fingerprint'][:12]}…, but {recipe.data.dataset} has here "
            f"{data.fingerprint[:12]}…"
        )
    parameters = saved.parameters | {"device": device, "threads": threads}
    return Trained(loaded, scaling, recipe, data, parameters, _recorded(Path(network)))


def trained_among(variables: Mapping[str, Any]) -> Trained:
    """Load or train the network that a notebook's parameters name.

    Args:
        variables: ``globals()`` of the notebook: ``network`` (see :func:`load_or_train`),
            ``training_seed``, ``device``, ``threads``, and those parameters of a recipe and of
            :class:`rapa_lib.experiments.tracking.Tracking` that it has. Its ``seed`` is that of
            what is done with the network, not of the training.

    Raises:
        KeyError: if one of the four is missing.
        FileNotFoundError, ValueError, TypeError: as :func:`load_or_train`.
    """
    names = {*Recipe.names(), *(one.name for one in fields(Tracking))}
    names -= {"seed", "device", "threads"}
    training = {name: variables[name] for name in names if name in variables}
    training["seed"] = variables["training_seed"]
    return load_or_train(
        variables["network"], training, device=variables["device"], threads=variables["threads"]
    )


def _recorded(network: Path) -> list[dict[str, Any]]:
    """What was recorded of the tiles while the network learned."""
    path = network.with_name("similarity.json")
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))["measurements"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"network: {path} beside it is damaged: {error!r}") from error
