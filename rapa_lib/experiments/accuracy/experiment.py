"""The accuracy experiment: one configuration trained and measured, from parameters to record."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from rapa_lib._checks import check_int
from rapa_lib._files import writable_folder
from rapa_lib._seeds import Purpose, seeded
from rapa_lib.data.datasets import Dataset, load_dataset
from rapa_lib.experiments.records import provenance, write_json
from rapa_lib.instruments.penalty import measured_penalty
from rapa_lib.instruments.similarity import tile_similarity, tiled_layers
from rapa_lib.layers.tiling import TILINGS
from rapa_lib.networks.network import RapaConvNet, check_shape, count_parameters
from rapa_lib.training import (
    InputScaling,
    Measure,
    TrainConfig,
    Training,
    load_checkpoint,
    save_checkpoint,
    train,
)
from rapa_lib.training.evaluation import TestErrors, evaluate

# What tells the runs of a study apart, in records and curves.
LABELS = ("dataset", "tiling", "n_tiles", "tile_init", "pooling", "epochs", "seed")

# What of the training a run chooses: every epoch is tested.
_TRAINING = tuple(name for name in TrainConfig.__dataclass_fields__ if name != "eval_every")

# The penalty of random assignment is recorded on so many training images with so many draws.
PENALTY_IMAGES, PENALTY_DRAWS = 32, 8


@dataclass(frozen=True)
class AccuracyRun:
    """Everything that names one run of the accuracy experiment; checked when it is made.

    Args:
        dataset: a name in :data:`rapa_lib.DATASETS` or the path of a folder.
        data_root: where torchvision's data sets lie; None is the variable RAPA_DATA.
        image_size: side of the square images; others are resized. None keeps the data's size.
        n_train, n_test: use a balanced part of so many images; None uses all.
        tiling, n_tiles, tile_init, channels, kernel_sizes, pooling, activation, normalisation,
            noise: see :class:`RapaConvNet`.
        epochs, batch_size, learning_rate, momentum, weight_decay, tile_lr_power, mirror,
            max_shift: see :class:`TrainConfig`.
        draws: forward passes with fresh assignments when the test error is measured.
        similarity_every: record the similarity of tiles every so many epochs, and before the
            first and after the last; 0 never.
        penalty_every: likewise the penalty of random assignment, where assignments are random.
        seed: of everything that is drawn.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …, or ``"auto"``: a GPU if there is one.
        threads: CPU threads; 0 leaves PyTorch's choice. Bits can differ between numbers of them.

    Raises:
        ValueError, TypeError: naming the argument, before any work is done.
    """

    dataset: str = "mnist5k"
    data_root: str | None = None
    image_size: int | None = None
    n_train: int | None = None
    n_test: int | None = None
    tiling: str = "random"
    n_tiles: Sequence[int] = (16, 4, 1)
    tile_init: str = "independent"
    channels: Sequence[int] = (32, 32, 64)
    kernel_sizes: Sequence[int] = (5, 5, 5)
    pooling: str = "max"
    activation: str = "relu"
    normalisation: str = "batch"
    noise: Sequence[float] = (0.85, 0.95, 0.0)
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    tile_lr_power: float = 1.0
    mirror: bool = False
    max_shift: int = 0
    draws: int = 5
    similarity_every: int = 1
    penalty_every: int = 0
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    _device: torch.device = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        training = self.training_config()
        plain = {name: getattr(training, name) for name in _TRAINING}
        plain["draws"] = check_int("draws", self.draws, low=1)
        plain["threads"] = check_int("threads", self.threads, low=0)
        for name in ("similarity_every", "penalty_every"):
            plain[name] = check_int(name, getattr(self, name), low=0)
        for name in ("n_train", "n_test", "image_size"):
            if getattr(self, name) is not None:
                plain[name] = check_int(name, getattr(self, name), low=1)
        for name in ("dataset", "data_root"):
            value = getattr(self, name)
            if not isinstance(value, str | Path) and (name == "dataset" or value is not None):
                raise TypeError(f"{name}: got {value!r}, expected a name or a path")
            plain[name] = None if value is None else str(value)
        checked = check_shape(
            self.tiling, self.n_tiles, self.tile_init, self.channels, self.kernel_sizes,
            self.pooling, self.activation, self.normalisation, self.noise,
        )  # fmt: skip
        plain |= zip(("channels", "kernel_sizes", "n_tiles", "noise"), checked, strict=True)
        # Python's own numbers: numpy's would make the record and the network file unreadable.
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_device", choose_device(self.device))

    def training_config(self) -> TrainConfig:
        return TrainConfig(**{name: getattr(self, name) for name in _TRAINING})

    def load_data(self) -> Dataset:
        """Load the data set, or the part of it that the run uses."""
        data = load_dataset(self.dataset, root=self.data_root, image_size=self.image_size)
        if self.n_train is None and self.n_test is None:
            return data
        return data.subset(self.n_train, self.n_test)

    def build_network(self, data: Dataset, device: str | torch.device | None = None) -> RapaConvNet:
        """Build the network for a data set, its weights drawn from the run's seed.

        Args:
            data: gives channels, image size and classes.
            device: other than the run's; ``"meta"`` builds one that only has shapes.
        """
        network = self._untrained(data.in_channels, data.n_classes, data.image_size)
        return network.to(self._device if device is None else device)

    def _untrained(self, in_channels: int, n_classes: int, image_size) -> RapaConvNet:
        with seeded(self.seed, Purpose.NETWORK):
            return RapaConvNet(
                in_channels,
                n_classes,
                image_size,
                tiling=self.tiling,
                n_tiles=self.n_tiles,
                tile_init=self.tile_init,
                channels=self.channels,
                kernel_sizes=self.kernel_sizes,
                pooling=self.pooling,
                activation=self.activation,
                normalisation=self.normalisation,
                noise=self.noise,
            )

    def check(self, data: Dataset) -> None:
        """Raise now what a run on this data set would raise before its first step."""
        self.build_network(data, "meta")
        if self.batch_size > len(data.train_images):
            raise ValueError(
                f"batch_size: got {self.batch_size}, but {data.name} has "
                f"{len(data.train_images)} training images"
            )

    def train(
        self, network: RapaConvNet, data: Dataset, *, resume: Path | None = None, progress=True
    ) -> Training:
        """Train the network; a ``resume`` file makes the training survive interruptions."""
        self.use_threads()
        return train(
            network, data, self.training_config(), checkpoint=resume, progress=progress,
            measure=self._measure(data),
        )  # fmt: skip

    def _measure(self, data: Dataset) -> Measure:
        """What is recorded of the tiles every few epochs."""
        with seeded(self.seed, Purpose.PENALTY_IMAGES):
            chosen = torch.randperm(len(data.train_images))[:PENALTY_IMAGES]
        images, labels = data.train_images[chosen], data.train_labels[chosen]
        images, labels = images.to(self._device), labels.to(self._device)

        def due(epoch: int, every: int) -> bool:
            return every > 0 and (epoch % every == 0 or epoch == self.epochs)

        def measure(network, epoch: int, scaling: InputScaling) -> dict[str, Any] | None:
            tiled = tiled_layers(network)
            taken = {}
            if tiled and due(epoch, self.similarity_every):
                taken["similarity"] = [asdict(row) for row in tile_similarity(network)]
            if tiled and due(epoch, self.penalty_every) and TILINGS[self.tiling].redraw:
                seed = int(torch.randint(2**31, ()))
                rows = measured_penalty(network, scaling(images), labels, PENALTY_DRAWS, seed=seed)
                taken["penalty"] = [asdict(row) for row in rows]
            return taken or None

        return measure

    def evaluate(self, network: RapaConvNet, data: Dataset, scaling: InputScaling) -> TestErrors:
        """Measure the test errors, draws seeded by the run's seed."""
        self.use_threads()
        with seeded(self.seed, Purpose.EVALUATION):
            seed = int(torch.randint(2**31, ()))
        return evaluate(network, data, scaling, draws=self.draws, seed=seed)

    def use_threads(self) -> None:
        """Let PyTorch use the run's number of threads."""
        if self.threads:
            torch.set_num_threads(self.threads)

    def record(
        self, network: RapaConvNet, data: Dataset, training: Training, errors: TestErrors
    ) -> dict[str, Any]:
        """One row of the accuracy table."""
        return {
            "dataset": data.name,
            "tiling": self.tiling,
            "n_tiles": "-".join(map(str, network.n_tiles)),
            "tile_init": self.tile_init,
            "pooling": self.pooling,
            "seed": self.seed,
            "epochs": self.epochs,
            **asdict(errors),
            "n_parameters": count_parameters(network),
            "train_seconds": round(training.seconds, 3),
            **provenance(self._device),
            "data_fingerprint": data.fingerprint,
            "config": self.parameters(),
        }

    def parameters(self) -> dict[str, Any]:
        """The run's parameters as a notebook takes them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name != "_device"
        }


def save_run(
    folder: str | Path,
    run: AccuracyRun,
    network: RapaConvNet,
    data: Dataset,
    training: Training,
    errors: TestErrors,
) -> dict[str, Any]:
    """Write a run's files to a folder: the network, what was recorded, and, last, the record.

    These are ``network.pt``, ``curve.json``, ``similarity.json`` and ``record.json``.

    Returns:
        The record.
    """
    folder = writable_folder("output", folder)
    record = run.record(network, data, training, errors)
    save_checkpoint(
        folder / "network.pt",
        {
            "parameters": run.parameters(),
            "state": network.state_dict(),
            "scaling": training.scaling._asdict(),
            "data": {
                "name": data.name,
                "fingerprint": data.fingerprint,
                "in_channels": data.in_channels,
                "n_classes": data.n_classes,
                "image_size": list(data.image_size),
            },
        },
    )
    labels = {key: record[key] for key in LABELS}
    write_json(folder / "curve.json", labels | {"history": training.history})
    write_json(folder / "similarity.json", labels | {"measurements": training.measurements})
    write_json(folder / "record.json", record)
    return record


@dataclass(frozen=True)
class SavedNetwork:
    """A network file that :func:`save_run` wrote, read once.

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
        return cls(Path(path), **{name: saved[name] for name in names})

    def build(self, device: str = "cpu") -> tuple[RapaConvNet, InputScaling, AccuracyRun]:
        """Make the network in evaluation mode, its input scaling and the run that trained it.

        Raises:
            ValueError: if the state does not fit the network.
        """
        run = AccuracyRun(**self.parameters | {"device": device})
        size = tuple(self.data["image_size"])
        network = run._untrained(self.data["in_channels"], self.data["n_classes"], size)
        try:
            network.load_state_dict(self.state)
        except RuntimeError as error:
            raise ValueError(f"path: {self.path} does not fit its own network: {error}") from error
        scaling = InputScaling(*(tuple(self.scaling[name]) for name in InputScaling._fields))
        return network.to(choose_device(device)).eval(), scaling, run


def load_network(
    path: str | Path, device: str = "cpu"
) -> tuple[RapaConvNet, InputScaling, AccuracyRun]:
    """Load a network that :func:`save_run` wrote: where later experiments begin.

    Returns:
        The network in evaluation mode, its input scaling and the run that trained it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or of another kind.
    """
    return SavedNetwork.read(path).build(device)


def choose_device(name: str) -> torch.device:
    """Turn ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"`` into a device that is there.

    Raises:
        ValueError: if the name is none of these or asks for a GPU where there is none.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ["auto", "cpu", *(["cuda"] if n_gpus else []), *(f"cuda:{i}" for i in range(n_gpus))]
    if name not in allowed:
        why = "" if n_gpus else " (this machine has no usable GPU)"
        raise ValueError(f"device: got {name!r}, allowed: {', '.join(allowed)}{why}")
    if name == "auto":
        name = "cuda" if n_gpus else "cpu"
    return torch.device(name)
