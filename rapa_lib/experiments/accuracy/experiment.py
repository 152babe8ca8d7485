"""The accuracy experiment: from parameters to a trained network and the record of its errors."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from rapa_lib._checks import integer
from rapa_lib._seeds import Purpose, seeded
from rapa_lib.data import Dataset
from rapa_lib.experiments.accuracy.page import collect
from rapa_lib.experiments.protocol import Collected, Experiment, Record
from rapa_lib.experiments.recipe import Recipe, choose_device, in_order
from rapa_lib.experiments.records import provenance
from rapa_lib.experiments.tracking import Tracking
from rapa_lib.experiments.trained import save_network, train_recipe
from rapa_lib.networks import RapaConvNet, count_parameters
from rapa_lib.runtime import (
    SCHEDULES,
    WRITES,
    AveragingSide,
    NetworkLayers,
    averaging_cost,
    count_layers,
    network_cost,
    run_time,
)
from rapa_lib.training import InputScaling, TestErrors, TrainConfig, Training, evaluate


@dataclass(frozen=True)
class Accuracy(Experiment[Dataset]):
    """Everything that names one run of the accuracy experiment; checked when it is made.

    Args:
        recipe: data, network and training.
        draws: forward passes with fresh assignments when the test error is measured.
        similarity_every, penalty_every, pull_every: see
            :class:`rapa_lib.experiments.tracking.Tracking`.

    Raises:
        ValueError, TypeError: naming the argument, before any work is done.
    """

    name: ClassVar[str] = "accuracy"
    resume_files: ClassVar[tuple[str, ...]] = ("resume.pt",)

    recipe: Recipe = field(default_factory=Recipe)
    draws: int = integer(5, low=1)
    similarity_every: int = integer(1, low=0)
    penalty_every: int = integer(0, low=0)
    pull_every: int = integer(0, low=0)

    def check(self, subject: Dataset) -> None:
        """Raise now what a run on this data set would raise before its first step."""
        self.recipe.check(subject)

    def parameters(self) -> dict[str, Any]:
        """The run's parameters as a notebook takes them and a record holds them."""
        return in_order(self.settings())

    def train(
        self, data: Dataset, *, folder: str | Path | None = None, progress: bool = True
    ) -> tuple[RapaConvNet, Training]:
        """Train the network, going on from what an interrupted training left in the folder."""
        tracking = Tracking(self.similarity_every, self.penalty_every, self.pull_every)
        resume = Path(folder) / "resume.pt" if folder else None
        return train_recipe(self.recipe, data, tracking=tracking, resume=resume, progress=progress)

    def test(self, network: RapaConvNet, data: Dataset, scaling: InputScaling) -> TestErrors:
        """Measure the test errors, draws seeded by the run's seed."""
        self.recipe.use_threads()
        with seeded(self.recipe.seed, Purpose.EVALUATION):
            seed = int(torch.randint(2**31, ()))
        precision = self.recipe.training.precision
        return evaluate(network, data, scaling, draws=self.draws, seed=seed, precision=precision)

    def _measure(self, subject: Dataset, folder: Path | None, progress: bool) -> Record:
        network, training = self.train(subject, folder=folder, progress=progress)
        assert training.scaling is not None  # a training that ended has one
        errors = self.test(network, subject, training.scaling)
        record = self.record(network, subject, training, errors)
        if folder is not None:
            path = folder / "network.pt"
            save_network(path, network, training.scaling, subject, self.parameters())
        labels = {name: record[name] for name in COLUMNS}
        return record | {
            "curve": labels | {"history": training.history},
            "similarity": labels | {"measurements": training.measurements},
        }

    def record(
        self, network: RapaConvNet, data: Dataset, training: Training, errors: TestErrors
    ) -> Record:
        """One row of the accuracy table, and what other tables are derived from."""
        layers = count_layers(network, (data.in_channels, *data.image_size))
        timed = run_time(layers)
        return {
            **self._labels(network, data),
            **asdict(errors),
            "n_parameters": count_parameters(network),
            "train_seconds": round(training.seconds, 3),
            **provenance(choose_device(self.recipe.device)),
            "data_fingerprint": data.fingerprint,
            "config": self.parameters(),
            "speedups": {schedule: timed.speedup(schedule) for schedule in SCHEDULES},
            "times_us": training_times(layers, self.recipe.training),
        }

    def _labels(self, network: RapaConvNet, data: Dataset) -> dict[str, Any]:
        labels = self.recipe.labels(data.name, network.n_tiles)
        return {name: labels[name] for name in COLUMNS}

    @classmethod
    def collect(cls, records: Sequence[Record]) -> Collected:
        """See :meth:`Experiment.collect`."""
        return collect(records)


def training_times(layers: NetworkLayers, training: TrainConfig) -> dict[str, Any]:
    """Times of training on analog arrays with a digital side, pipelined, in µs.

    Args:
        layers: of the network.
        training: its batches, and how often arrays are read when tiles are averaged.

    Returns:
        ``single``: of an image, in the same network on one tile per layer that computes every
        patch; ``image``: of an image in this network; ``averaging``: of one averaging of its tiles,
        by the way in which the mean is written.
    """
    dense = tuple(replace(one, n_tiles=1, perforation=1, loads=None) for one in layers.layers)
    single = run_time(replace(layers, layers=dense))
    side, timed = AveragingSide(reads=training.sync_reads), run_time(layers)
    averaging = {
        write: averaging_cost(timed, None, side, batch_size=training.batch_size, write=write)
        for write in WRITES
    }
    return {
        "single": network_cost(single, None, access="random", schedule="pipelined").time_us,
        "image": averaging[WRITES[0]].cost.time_us,
        "averaging": {write: cost.averaging_us for write, cost in averaging.items()},
    }


COLUMNS = ("dataset", "tiling", "n_tiles", "tile_init", "pooling", "seed", "epochs")
"""Labels that have a column of their own in the accuracy table; the others are in ``config``."""
