"""What a run is: data, network and training, from which everything else of it follows.

The recipe is the one home of a run's parameters. Notebooks and papermill see it flat
(:meth:`Recipe.of`, :meth:`Recipe.flat`); inside it is composed of its parts. :data:`LABELS` are the
columns by which every table, figure and claim tells runs apart, in this order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from rapa_lib._checks import Checked, integer
from rapa_lib._seeds import Purpose, seeded
from rapa_lib.data import DataChoice, Dataset
from rapa_lib.networks import NetworkShape, RapaConvNet
from rapa_lib.training import TrainConfig

LABELS = (
    "dataset", "tiling", "n_tiles", "tile_init", "pooling", "activation", "normalisation",
    "tile_lr_power", "epochs", "seed",
)  # fmt: skip
"""What tells one trained network from another: columns of every table of networks."""

SYNCHRONISATION = ("sync_every", "coupling", "average_last")
"""Labels that only those networks have whose training brought their tiles, or the last epochs,
together: columns of the tables of studies with such networks."""

KNOBS = ("tile_lr_power", "learning_rate", "weight_decay", "noise", "dropout")
"""What each arm may have tuned for itself: arms that differ in it alone can be compared."""

ORDER = (
    *(one.name for one in fields(DataChoice)),
    *(one.name for one in fields(NetworkShape)),
    *(one.name for one in fields(TrainConfig) if one.name != "seed"),
    "draws", "similarity_every", "penalty_every", "pull_every", "seed", "device", "threads",
)  # fmt: skip
"""The order in which parameters are written."""

LATER = {
    "average_last": 0, "coupling": 0.0, "dropout": 0.1, "eval_every": 1, "precision": "float32",
    "pull_every": 0, "subset": "fixed", "sync_every": 0, "sync_reads": 1, "sync_write": "program",
    "validation": None,
}  # fmt: skip
"""Parameters that came after the first records, with what these stand for: they are written only
where they say something else, so that records of both times compare."""


@dataclass(frozen=True)
class Recipe(Checked):
    """Everything that names one trained network; checked when it is made.

    Args:
        data: which images.
        network: what is trained.
        training: how; its ``seed`` is that of everything that is drawn.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …, or ``"auto"``: a GPU if there is one.
        threads: CPU threads; 0 leaves PyTorch's choice. Bits can differ between numbers of them.

    Raises:
        ValueError, TypeError: naming the argument, before any work is done.
    """

    data: DataChoice = field(default_factory=DataChoice)
    network: NetworkShape = field(default_factory=NetworkShape)
    training: TrainConfig = field(default_factory=TrainConfig)
    device: str = "auto"
    threads: int = integer(0, low=0, high=1024)

    def _check(self) -> None:
        choose_device(self.device)

    @classmethod
    def of(cls, **parameters: Any) -> "Recipe":
        """Make a recipe of flat parameters, as a notebook has them.

        Raises:
            TypeError: for a parameter that no part of a recipe has.
            ValueError, TypeError: as the parts raise.
        """
        if unknown := sorted(set(parameters) - set(cls.names())):
            raise TypeError(f"{', '.join(unknown)}: unknown; a run has {', '.join(cls.names())}")
        parts: dict[str, Any] = {}
        for one in fields(cls):
            part = _PARTS.get(one.name)
            if part is None:
                parts |= {one.name: parameters[one.name]} if one.name in parameters else {}
            else:
                names = {f.name for f in fields(part)} & set(parameters)
                parts[one.name] = part(**{name: parameters[name] for name in names})
        return cls(**parts)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The flat parameters that a recipe has."""
        own = [one.name for one in fields(cls)]
        flat = {f.name for part in _PARTS.values() for f in fields(part)} | set(own) - set(_PARTS)
        return tuple(sorted(flat, key=lambda name: _place(name)))

    def flat(self) -> dict[str, Any]:
        """The parameters as :meth:`of` takes them and JSON holds them."""
        return in_order(
            {
                **asdict(self.data),
                **asdict(self.network),
                **asdict(self.training),
                "device": self.device,
                "threads": self.threads,
            }
        )

    @property
    def seed(self) -> int:
        """The seed of everything that is drawn."""
        return self.training.seed

    def but(self, **parameters: Any) -> "Recipe":
        """The same but for some of the flat parameters; raises as :meth:`of`."""
        return Recipe.of(**self.flat() | parameters)

    def on(self, device: str, threads: int | None = None) -> "Recipe":
        """The same on another device."""
        return replace(self, device=device, threads=self.threads if threads is None else threads)

    def load(self) -> Dataset:
        """Load the run's images: those of its seed, where these are drawn."""
        return self.data.load(self.seed)

    def build(self, data: Dataset, device: str | torch.device | None = None) -> RapaConvNet:
        """Build the network for a data set, its weights drawn from the run's seed.

        Args:
            data: gives channels, image size and classes.
            device: other than the run's; ``"meta"`` builds one that only has shapes.
        """
        network = self.untrained(data.in_channels, data.n_classes, data.image_size)
        return network.to(choose_device(self.device) if device is None else device)

    def untrained(
        self, in_channels: int, n_classes: int, image_size: int | tuple[int, int]
    ) -> RapaConvNet:
        """Build the network on the CPU, its weights drawn from the run's seed."""
        with seeded(self.seed, Purpose.NETWORK):
            return RapaConvNet(in_channels, n_classes, image_size, **vars(self.network))

    def check(self, data: Dataset) -> None:
        """Raise now what a training on this data set would raise before its first step.

        Raises:
            ValueError: naming the argument.
        """
        self.build(data, "meta")
        if self.training.batch_size > len(data.train_images):
            raise ValueError(
                f"batch_size: got {self.training.batch_size}, but {data.name} has "
                f"{len(data.train_images)} training images"
            )

    def use_threads(self) -> None:
        """Let PyTorch use the run's number of threads."""
        if self.threads:
            torch.set_num_threads(self.threads)

    def labels(self, data: str, n_tiles: Sequence[int]) -> dict[str, Any]:
        """The values of :data:`LABELS`, and those of :data:`SYNCHRONISATION` that say something.

        Args:
            data: the data set's true name.
            n_tiles: of the network as it was built.
        """
        known = self.flat() | {"dataset": data, "n_tiles": "-".join(map(str, n_tiles))}
        return {name: known[name] for name in (*LABELS, *SYNCHRONISATION) if name in known}


_PARTS: Mapping[str, type] = {
    "data": DataChoice,
    "network": NetworkShape,
    "training": TrainConfig,
}


def in_order(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as records hold them: in :data:`ORDER`, lists for tuples, :data:`LATER` ones left
    out where they say nothing new."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in sorted(parameters.items(), key=lambda item: _place(item[0]))
        if name not in LATER or value != LATER[name]
    }


def with_synchronisation(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records of networks with all of :data:`SYNCHRONISATION`; as they are where none has any."""
    if not any(name in record for record in records for name in SYNCHRONISATION):
        return [dict(record) for record in records]
    return [{name: LATER[name] for name in SYNCHRONISATION} | dict(one) for one in records]


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether the run of these parameters left its tiles, and its last epochs, alone."""
    return all(config.get(name, LATER[name]) == LATER[name] for name in SYNCHRONISATION)


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


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


def recipe_of(parameters: Mapping[str, Any]) -> Recipe:
    """The recipe among the parameters of a run, those of its measurement left out."""
    names = set(Recipe.names())
    return Recipe.of(**{name: value for name, value in parameters.items() if name in names})
