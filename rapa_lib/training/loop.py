"""Training: plain SGD, seeded to the last bit, resumable after any epoch."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_real
from rapa_lib._seeds import Purpose, seeded
from rapa_lib.analog import AnalogTileArray, NotFiniteError
from rapa_lib.data.datasets import Dataset
from rapa_lib.training.averaging import TileAveraging, TimeAverage
from rapa_lib.training.checkpoints import ResumeFile, Stateful, first_not_finite_in, identity
from rapa_lib.training.config import TrainConfig
from rapa_lib.training.evaluation import reestimate_normalisation
from rapa_lib.training.images import InputScaling, error_percent, predict
from rapa_lib.training.rates import one_cycle_sgd
from rapa_lib.training.step import DivergedError, TrainingStep, first_not_finite, with_rates

Measure = Callable[[nn.Module, int, InputScaling], dict[str, Any] | None]
Bar = Any  # tqdm's, or what takes its place
OnEpoch = Callable[[nn.Module, int], None]

_LOOK_EVERY = 16  # steps between looks at the losses: each look waits for the device


@dataclass
class Training:
    """What a training left behind.

    Args:
        history: one dict per epoch: epoch (from 1), train_loss, train_error (percent, of the
            augmented images as they were trained on), test_error (percent, one draw; None after an
            epoch without a test), seconds; of trainings whose tiles are averaged also averagings:
            what they met (:meth:`rapa_lib.training.averaging.TileAveraging.take_report`).
        scaling: what the network's input went through.
        measurements: what ``measure`` gave, each with its epoch.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    scaling: InputScaling | None = None
    measurements: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time of all epochs, over interruptions, their tests left out."""
        return sum(row["seconds"] for row in self.history)


def train(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 0.0,
    progress: bool = True,
    measure: Measure | None = None,
    on_epoch: OnEpoch | None = None,
) -> Training:
    """Train a model in place, on the device where it lies.

    Every epoch draws from its own seed, so a training that was stopped and resumed from its
    checkpoint ends with the same bits as one that was not.

    Args:
        model: takes scaled images (N, C, H, W), gives logits (N, n_classes).
        dataset: its training part is trained on, its test part measured every
            ``config.eval_every`` epochs and after the last.
        config: see :class:`TrainConfig`.
        checkpoint: file to write after every epoch, and to resume from if it exists.
        checkpoint_seconds: leave out what would be written so soon after the last: short epochs
            then do not spend their time on it. The first epoch of a call and the last of the
            training are always written.
        progress: show a bar, where tqdm is installed.
        measure: called as ``measure(model, epoch, scaling)`` before the first epoch, with 0, and
            after every epoch; what it returns, if not None, is kept in ``measurements``. It draws
            from a seed of its own and must leave the model as it is: the training has the same
            bits with it and without.
        on_epoch: called with the model and the number of the epoch, from 1, before each epoch that
            is trained here: a resumed training begins with a later one, so what it does must depend
            on that number alone (see :func:`rapa_lib.instruments.faults.dying_tiles`). A checkpoint
            belongs to trainings with the same ``repr`` of it (a function's qualified name).

    Returns:
        The learning curve, the input scaling and the measurements.

    Raises:
        DivergedError: at a loss that is not finite; the message says where.
        ValueError: if the checkpoint belongs to another training, checkpoint_seconds is negative,
            batch_size exceeds the data, or weights lie on analog tiles and ``config.precision`` is
            not float32, or tiles are to be coupled or parameters averaged over time.
    """
    check_real("checkpoint_seconds", checkpoint_seconds, low=0)
    loop = _Loop.of(model, dataset, config)
    training = Training(scaling=loop.step.scaling)
    file, written = None, -math.inf
    if checkpoint is not None:
        same = identity(model, dataset, config, on_epoch)
        file = ResumeFile(Path(checkpoint), same, loop.parts())
        training.history, training.measurements = file.resume()
    if not training.history:
        _take_measurements(training, model, config, measure)
    with _bar(config, loop.n_steps, len(training.history), progress) as bar:
        for epoch in range(len(training.history) + 1, config.epochs + 1):
            if on_epoch is not None:
                on_epoch(model, epoch)
            training.history.append(loop.epoch(epoch, bar))
            _take_measurements(training, model, config, measure)
            if file is not None and (
                epoch == config.epochs or time.monotonic() - written >= checkpoint_seconds
            ):
                file.save(training.history, training.measurements)
                written = time.monotonic()
    return training


@dataclass(frozen=True)
class _Loop:
    """One epoch of a training, and its test: everything lies on the model's device.

    Args:
        config: of the training.
        step: what is done with each batch.
        averaging: what brings the tiles together after each step.
        time_average: the mean of all parameters over the last epochs; None: not asked for.
        n_steps: batches in an epoch.
        images, labels, test_images, test_labels: of the data set.
    """

    config: TrainConfig
    step: TrainingStep
    averaging: TileAveraging
    time_average: TimeAverage | None
    n_steps: int
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def of(cls, model: nn.Module, dataset: Dataset, config: TrainConfig) -> "_Loop":
        n_train = len(dataset.train_images)
        n_steps = n_train // config.batch_size
        if n_steps == 0:
            raise ValueError(
                f"batch_size: got {config.batch_size}, but {dataset.name} has {n_train} training "
                "images"
            )
        if config.precision != "float32" and _is_analog(model):
            raise ValueError(
                f"precision: got {config.precision!r}, allowed for weights on analog tiles: float32"
            )
        device = next(model.parameters()).device
        images, labels = dataset.train_images.to(device), dataset.train_labels.to(device)
        step = TrainingStep(
            model, InputScaling.of(images), *one_cycle_sgd(model, config, n_steps),
            config.mirror, config.max_shift, config.precision,
        )  # fmt: skip
        test = dataset.test_images.to(device), dataset.test_labels.to(device)
        averaging = TileAveraging(model, step.optimizer, config)
        time_average = TimeAverage(model) if config.average_last else None
        return cls(config, step, averaging, time_average, n_steps, images, labels, *test)

    def parts(self) -> dict[str, Stateful]:
        """By name, all that changes from step to step."""
        step = self.step
        parts: dict[str, Stateful] = {
            "model": step.model, "optimizer": step.optimizer, "scheduler": step.scheduler
        }  # fmt: skip
        return parts | ({} if self.time_average is None else {"time_average": self.time_average})

    def epoch(self, epoch: int, bar: Bar) -> dict[str, Any]:
        """Train for one epoch, counted from 1, and test if it is time; return its row."""
        with seeded(self.config.seed, epoch):
            row = self.train_epoch(epoch, bar)
            self._check_state(epoch)
            if self.time_average is not None and epoch == self.config.epochs:
                self.time_average.apply()
                self.reestimate()
            if self.config.is_tested(epoch):
                row["test_error"] = self.test_error(epoch)
                bar.set_postfix(test_error=f"{row['test_error']:.2f} %")
        return row

    def train_epoch(self, epoch: int, bar: Bar) -> dict[str, Any]:
        """Train on every whole batch of a new order once; return the epoch's row, untested."""
        began = time.perf_counter()
        self.step.model.train()
        losses = torch.zeros(self.n_steps, device=self.images.device)
        wrong = torch.zeros((), dtype=torch.long, device=self.images.device)
        for i, batch in enumerate(self._batches()):
            labels = self.labels[batch]
            try:
                logits = self.step(self.images[batch], labels, losses[i])
                self._average(epoch, i)
            except NotFiniteError as error:  # analog tiles take finite numbers only
                self._check_losses(losses[: i + 1], epoch)
                raise DivergedError(f"at epoch {epoch}, step {i + 1}: {error}") from error
            wrong += (logits.argmax(1) != labels).sum()
            if i % _LOOK_EVERY == _LOOK_EVERY - 1 or i == self.n_steps - 1:
                self._check_losses(losses[: i + 1], epoch)
            bar.update()
        row = {
            "epoch": epoch,
            "train_loss": float(losses.mean()),
            "train_error": 100 * float(wrong) / (self.n_steps * self.config.batch_size),
            "test_error": None,
            "seconds": time.perf_counter() - began,
        }
        return row if self.averaging.is_idle else row | {"averagings": self.averaging.take_report()}

    def reestimate(self) -> None:
        """Estimate normalisation statistics anew, on the training images as they are."""
        reestimate_normalisation(
            self.step.model, self.images, self.step.scaling, precision=self.config.precision
        )

    def test_error(self, epoch: int) -> float:
        """Test error in percent, of one draw."""
        where = f"after epoch {epoch}, step {self.n_steps}"
        try:
            logits = predict(
                self.step.model, self.test_images, self.step.scaling,
                precision=self.config.precision,
            )  # fmt: skip
        except NotFiniteError as error:
            raise DivergedError(f"{where}: {error}") from error
        if not logits.isfinite().all():  # the last step can ruin what its loss did not show
            raise DivergedError(f"the logits are not finite {where}, {with_rates(self.config)}")
        return error_percent(logits, self.test_labels)

    def _average(self, epoch: int, i: int) -> None:
        """What is averaged after the step on batch i of an epoch."""
        self.averaging.after_step((epoch - 1) * self.n_steps + i + 1)
        if self.time_average is not None and epoch > self.config.epochs - self.config.average_last:
            self.time_average.after_step()

    def _batches(self) -> tuple[Tensor, ...]:
        """Indices of the images of each step; what is left over is left out."""
        order = torch.randperm(len(self.images), device=self.images.device)
        size = self.config.batch_size
        return order[: self.n_steps * size].split(size)

    def _check_state(self, epoch: int) -> None:
        """Statistics of normalisation can overflow while every loss is finite."""
        if bad := first_not_finite_in(self.step.model.state_dict()):
            raise DivergedError(
                f"values of {bad} are not finite after epoch {epoch}, {with_rates(self.config)}"
            )

    def _check_losses(self, losses: Tensor, epoch: int) -> None:
        if (step := first_not_finite(losses)) is not None:
            raise DivergedError(
                f"the loss is {float(losses[step])} at epoch {epoch}, step {step + 1}, "
                f"{with_rates(self.config)}"
            )


def _is_analog(model: nn.Module) -> bool:
    return any(isinstance(layer, AnalogTileArray) for layer in model.modules())


def _take_measurements(
    training: Training, model: nn.Module, config: TrainConfig, measure: Measure | None
) -> None:
    """Keep what ``measure`` finds after the epochs trained so far; it has a seed of its own."""
    if measure is None or training.scaling is None:
        return
    epoch = len(training.history)
    with seeded(config.seed, epoch, Purpose.MEASUREMENT):
        taken = measure(model, epoch, training.scaling)
    if taken is not None:
        training.measurements.append({"epoch": epoch} | taken)


class _NoBar:
    """In the place of a bar where tqdm is not installed."""

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self) -> None:
        pass

    def set_postfix(self, **shown: str) -> None:
        pass


def _bar(config: TrainConfig, n_steps: int, epochs_done: int, progress: bool) -> Bar:
    try:
        from tqdm.auto import tqdm  # a convenience of notebooks; the library does without
    except ModuleNotFoundError:
        return _NoBar()
    return tqdm(
        total=config.epochs * n_steps,
        initial=epochs_done * n_steps,
        unit="batch",
        desc="training",
        disable=not progress,
    )
