"""Training: plain SGD, seeded to the last bit, resumable after any epoch."""

import copy
import logging
import math
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from rapa_lib._checks import check_bool, check_int, check_real
from rapa_lib._files import whole_file, writable_folder
from rapa_lib._modes import evaluation_mode
from rapa_lib._seeds import Purpose, seeded
from rapa_lib.analog import AnalogSGD, AnalogTileArray
from rapa_lib.data.datasets import Dataset
from rapa_lib.layers.conv import RapaConv2d

log = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 1


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        epochs: passes over the training images.
        batch_size: images a step; the last, incomplete batch of an epoch is left out.
        learning_rate: peak of the one-cycle schedule, for a layer without tiles.
        momentum: of SGD.
        weight_decay: of kernels and the linear layer; biases and normalisation have none.
        tile_lr_power: a layer of n_t tiles learns with rate × n_t^power and weight decay ÷
            n_t^power. A tile sees 1/n_t of the patches: with 1 the mean kernel moves as an
            ordinary kernel would, to first order; with 0 it moves n_t times slower.
        mirror: mirror each image with probability 1/2.
        max_shift: shift each image by up to so many pixels both ways, reflecting its border.
        seed: of the order of images, of augmentation and of the assignments.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    tile_lr_power: float = 1.0
    mirror: bool = False
    max_shift: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        plain = {
            "epochs": check_int("epochs", self.epochs, low=1),
            "batch_size": check_int("batch_size", self.batch_size, low=2),
            "learning_rate": check_real("learning_rate", self.learning_rate, low=0, open_low=True),
            "momentum": check_real("momentum", self.momentum, low=0, high=1),
            "weight_decay": check_real("weight_decay", self.weight_decay, low=0),
            "tile_lr_power": check_real("tile_lr_power", self.tile_lr_power, low=0),
            "mirror": check_bool("mirror", self.mirror),
            "max_shift": check_int("max_shift", self.max_shift, low=0),
            "seed": check_int("seed", self.seed, low=0),
        }
        # Python's own numbers: numpy's would make checkpoints and records unreadable.
        for name, value in plain.items():
            object.__setattr__(self, name, value)


class InputScaling(NamedTuple):
    """What turns uint8 images into a network's input: per channel (image / 255 − mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> "InputScaling":
        """Take mean and standard deviation of training images (N, C, H, W), uint8."""
        counts = [
            torch.bincount(images[:, c].flatten(), minlength=256).double()
            for c in range(images.shape[1])
        ]
        level = torch.arange(256, dtype=torch.double, device=images.device) / 255
        means = [float((n * level).sum() / n.sum()) for n in counts]
        stds = [
            math.sqrt(float((n * (level - mean) ** 2).sum() / n.sum()))
            for n, mean in zip(counts, means, strict=True)
        ]
        return cls(tuple(means), tuple(max(s, 1 / 255) for s in stds))

    def __call__(self, images: Tensor) -> Tensor:
        """Scale uint8 images (N, C, H, W) to float32, channels-last."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images: got {images.dtype}, expected torch.uint8")
        like = {"dtype": torch.float32, "device": images.device}
        scale = 1 / (255 * torch.tensor(self.std, **like))
        shift = -torch.tensor(self.mean, **like) / torch.tensor(self.std, **like)
        x = images.to(torch.float32, memory_format=torch.channels_last)
        return x.mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))


Measure = Callable[[nn.Module, int, InputScaling], dict[str, Any] | None]


class DivergedError(RuntimeError):
    """The loss of a training became infinite or not a number."""


@dataclass
class Training:
    """What a training left behind.

    Args:
        history: one dict an epoch: epoch (from 1), train_loss, train_error (percent, of the
            augmented images as they were trained on), test_error (percent, one draw), seconds.
        scaling: what the network's input went through.
        measurements: what ``measure`` gave, each with its epoch.
    """

    history: list[dict[str, float]] = field(default_factory=list)
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
    progress: bool = True,
    measure: Measure | None = None,
    on_epoch: Callable[[nn.Module, int], None] | None = None,
) -> Training:
    """Train a model in place, on the device where it lies.

    Every epoch draws from its own seed, so a training that was stopped and resumed from its
    checkpoint ends with the same bits as one that was not.

    Args:
        model: takes scaled images (N, C, H, W), gives logits (N, n_classes).
        dataset: its training part is trained on, its test part measured after every epoch.
        config: see :class:`TrainConfig`.
        checkpoint: file to write after every epoch, and to resume from if it exists.
        progress: show a bar.
        measure: called as ``measure(model, epoch, scaling)`` before the first epoch, with 0, and
            after every epoch; what it returns, if not None, is kept in ``measurements``. It draws
            from a seed of its own and must leave the model as it is: the training has the same
            bits with it and without.
        on_epoch: called with the model and the number of the epoch, from 1, before each epoch that
            is trained here: a resumed training begins with a later one, so what it does must depend
            on that number alone (see :func:`rapa_lib.dying_tiles`). A checkpoint belongs to
            trainings with the same ``repr`` of it (a function's qualified name).

    Returns:
        The learning curve, the input scaling and the measurements.

    Raises:
        DivergedError: at a loss that is not finite; the message says where.
        ValueError: if the checkpoint belongs to another training, or batch_size exceeds the data.
    """
    n_train = len(dataset.train_images)
    steps = n_train // config.batch_size
    if steps == 0:
        raise ValueError(
            f"batch_size: got {config.batch_size}, but {dataset.name} has {n_train} training images"
        )
    device = next(model.parameters()).device
    images, labels = dataset.train_images.to(device), dataset.train_labels.to(device)
    test_images, test_labels = dataset.test_images.to(device), dataset.test_labels.to(device)
    scaling = InputScaling.of(images)
    optimizer, scheduler = _optimizer(model, config, steps)
    result = Training(scaling=scaling)
    identity = {
        "config": asdict(config),
        "data_fingerprint": dataset.fingerprint,
        "network": repr(model),
    }
    if on_epoch is not None:  # a function's repr is not the same in the next process
        identity["network"] += f"\n{getattr(on_epoch, '__qualname__', None) or repr(on_epoch)}"
    if checkpoint is not None:
        writable_folder("checkpoint", Path(checkpoint).parent)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if checkpoint is not None and (saved := load_checkpoint(checkpoint)) is not None:
        _resume(saved, state, identity, Path(checkpoint), result)
    bar = tqdm(
        total=config.epochs * steps,
        initial=len(result.history) * steps,
        unit="batch",
        desc="training",
        disable=not progress,
    )

    def take_measurements(epoch: int) -> None:
        if measure is not None:
            with seeded(config.seed, epoch, Purpose.MEASUREMENT):
                taken = measure(model, epoch, scaling)
            if taken is not None:
                result.measurements.append({"epoch": epoch} | taken)

    if not result.history:
        take_measurements(0)
    with bar:
        for epoch in range(len(result.history) + 1, config.epochs + 1):
            if on_epoch is not None:
                on_epoch(model, epoch)
            began = time.perf_counter()
            with seeded(config.seed, epoch):
                model.train()
                losses, wrong = torch.empty(steps, device=device), 0
                for step, index in enumerate(
                    torch.randperm(n_train, device=device)[: steps * config.batch_size].split(
                        config.batch_size
                    )
                ):
                    batch = augment(images[index], config.mirror, config.max_shift)
                    logits = model(scaling(batch))
                    loss = F.cross_entropy(logits, labels[index])
                    losses[step] = loss.detach()
                    optimizer.zero_grad(set_to_none=True)
                    try:
                        loss.backward()
                        optimizer.step()
                    except ValueError as error:  # analog tiles take finite numbers only
                        _check_loss(losses[: step + 1], epoch, config)
                        raise DivergedError(
                            f"at epoch {epoch}, step {step + 1}: {error}"
                        ) from error
                    scheduler.step()
                    wrong += (logits.detach().argmax(1) != labels[index]).sum()
                    if step % 16 == 15 or step == steps - 1:  # each look waits for the device
                        _check_loss(losses[: step + 1], epoch, config)
                    bar.update()
                seconds = time.perf_counter() - began
                logits = predict(model, test_images, scaling)
            if not logits.isfinite().all():  # the last step can ruin what its loss did not show
                raise DivergedError(
                    f"the logits are not finite after epoch {epoch}, step {steps}, with "
                    f"learning_rate = {config.learning_rate} and "
                    f"tile_lr_power = {config.tile_lr_power}"
                )
            result.history.append(
                {
                    "epoch": epoch,
                    "train_loss": float(losses.mean()),
                    "train_error": 100 * float(wrong) / (steps * config.batch_size),
                    "test_error": error_percent(logits, test_labels),
                    "seconds": seconds,
                }
            )
            take_measurements(epoch)
            bar.set_postfix(test_error=f"{result.history[-1]['test_error']:.2f} %")
            if checkpoint is not None:
                save_checkpoint(
                    checkpoint,
                    identity
                    | {"history": result.history, "measurements": result.measurements}
                    | {name: part.state_dict() for name, part in state.items()},
                )
    return result


def augment(images: Tensor, mirror: bool, max_shift: int) -> Tensor:
    """Mirror and shift each image at random.

    Args:
        images: (N, C, H, W), any type.
        mirror: mirror left and right with probability 1/2.
        max_shift: greatest shift in pixels, either way in both directions; borders reflect.

    Returns:
        (N, C, H, W), the same type.
    """
    if not mirror and max_shift == 0:
        return images
    n, _, height, width = images.shape
    device = images.device
    shifts = torch.randint(-max_shift, max_shift + 1, (2, n, 1), device=device)
    rows = _reflect(torch.arange(height, device=device) + shifts[0], height)
    cols = _reflect(torch.arange(width, device=device) + shifts[1], width)
    if mirror:
        flip = torch.rand(n, 1, device=device) < 0.5
        cols = torch.where(flip, cols.flip(1), cols)
    image = torch.arange(n, device=device)[:, None, None]
    # Indices on both sides of the channels put these last: the format the network wants.
    return images[image, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def predict(
    model: nn.Module, images: Tensor, scaling: InputScaling, *, batch_size: int = 500
) -> Tensor:
    """Logits (N, n_classes) of uint8 images (N, C, H, W), in evaluation mode."""
    with evaluation_mode(model):
        return torch.cat([model(scaling(part)) for part in images.split(batch_size)])


def error_percent(scores: Tensor, labels: Tensor) -> float:
    """Share of images, in percent, whose greatest score is not at their label."""
    return 100 * float((scores.argmax(1) != labels).double().mean())


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


def _optimizer(model: nn.Module, config: TrainConfig, steps: int):
    """SGD whose rate and weight decay are scaled tile by tile, under a one-cycle schedule.

    Weights on analog tiles are written by pulses. These keep no velocity, so their rate is that
    of a velocity's sum, learning_rate / (1 − momentum).
    """
    tiles = {}
    for layer in model.modules():
        n_tiles = layer.n_tiles if isinstance(layer, RapaConv2d | AnalogTileArray) else 1
        pulsed = isinstance(layer, AnalogTileArray) and not layer.is_ideal
        if pulsed and config.momentum == 1:
            raise ValueError("momentum: got 1.0, allowed for weights on analog tiles: below 1")
        for name, parameter in layer.named_parameters(recurse=False):
            decays = name == "weight" and not isinstance(
                layer, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm
            )
            tiles.setdefault((n_tiles, decays, pulsed), []).append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": config.learning_rate
            * n_tiles**config.tile_lr_power
            / (1 - config.momentum if pulsed else 1),
            "weight_decay": config.weight_decay / n_tiles**config.tile_lr_power if decays else 0,
        }
        for (n_tiles, decays, pulsed), parameters in tiles.items()
    ]
    optimizer = AnalogSGD(model, params=groups, lr=config.learning_rate, momentum=config.momentum)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in groups],
        total_steps=config.epochs * steps + 1,  # the last step ends on the schedule's end
        cycle_momentum=False,
    )
    return optimizer, scheduler


def _resume(saved, state, identity, path: Path, result: Training) -> None:
    if missing := sorted({*identity, *state, "history", "measurements"} - set(saved)):
        raise ValueError(f"checkpoint: {path} is none of a training: it lacks {missing}")
    for theirs, ours in ((saved["config"], identity["config"]), (saved, identity)):
        for key, value in ours.items():
            if theirs.get(key) != value:
                raise ValueError(
                    f"checkpoint: {path} belongs to another training: its {key} is "
                    f"{theirs.get(key)}, this one's {value}"
                )
    before = {name: copy.deepcopy(part.state_dict()) for name, part in state.items()}
    try:
        for name, part in state.items():
            part.load_state_dict(saved[name])
    except (RuntimeError, ValueError) as error:
        for name, part in state.items():
            part.load_state_dict(before[name])
        raise ValueError(f"checkpoint: {path} does not fit this network: {error}") from error
    result.history = list(saved["history"])
    result.measurements = list(saved["measurements"])
    log.info("resumed %s after epoch %d", path, len(result.history))


def _check_loss(losses: Tensor, epoch: int, config: TrainConfig) -> None:
    if not (finite := losses.isfinite()).all():
        step = int(finite.int().argmin())
        raise DivergedError(
            f"the loss is {float(losses[step])} at epoch {epoch}, step {step + 1}, with "
            f"learning_rate = {config.learning_rate} and tile_lr_power = {config.tile_lr_power}"
        )


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror indices that lie outside 0 … size − 1 at the border, the border pixel not doubled."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * size - 2)
    return torch.minimum(index, 2 * size - 2 - index)
