"""What a trained network's pull and its loss along the deviations come to, as rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

from torch import nn

from rapa_lib.experiments.recipe import Recipe
from rapa_lib.experiments.tracking import PullBatches, measured_pull
from rapa_lib.experiments.trained import Trained
from rapa_lib.instruments.pull import LayerPull, loss_along_scale, noise_push
from rapa_lib.training import one_cycle_rates, reestimate_normalisation

_FIELDS = tuple(one.name for one in fields(LayerPull))


def pull_rows(subject: Trained, *, images: int, draws: int, seed: int) -> list[dict[str, Any]]:
    """The pull as it was recorded in training, and of the trained network.

    Args:
        subject: a network with tiled layers.
        images: training images that the trained network is measured on; all where there are fewer.
        draws: of each batch of them.
        seed: of these images, batches and draws.

    Returns:
        One row per epoch and layer, the trained network's own measurement standing for the last
        epoch: ``epoch``, ``layer``, ``layer_tiles`` (n_t), the other fields of
        :class:`rapa_lib.instruments.pull.LayerPull`, ``batch_size``, ``rate`` (η of the layer's
        next step) and ``push`` (of the noise: η / (1 − μ) · N / 2, against kernel_pull + decay;
        missing where the batches were smaller than those of training, whose noise is less).
    """
    batches = PullBatches.choose(subject.recipe, subject.data, images, seed=seed)
    batches = batches.to(subject.device)
    last = subject.recipe.training.epochs
    found = [
        (taken["epoch"], row)
        for taken in subject.measurements
        for row in taken.get("pull", [])
        if taken["epoch"] != last
    ]
    now = measured_pull(
        subject.network, batches, subject.recipe, subject.scaling, draws=draws, seed=seed
    )
    found += [(last, row) for row in now]
    push = _pushes(subject.recipe, len(subject.data.train_images))
    return [
        {"epoch": epoch, "layer": row["layer"], "layer_tiles": row["n_tiles"]}
        | {name: row[name] for name in (*_FIELDS, "batch_size") if name not in ("layer", "n_tiles")}
        | push(row, epoch)
        for epoch, row in found
    ]


def scale_rows(
    subject: Trained, scales: Sequence[float], *, images: int, draws: int, seed: int
) -> list[dict[str, Any]]:
    """The loss along the deviations, with either statistics of normalisation.

    Args:
        subject, images, draws, seed: as for :func:`pull_rows`: the same images, batches and draws.
        scales: of the deviations; none: nothing is measured.

    Returns:
        One row per statistics, layer (last ``"all"``) and scale: the fields of
        :class:`rapa_lib.instruments.pull.ScaledLoss`. Statistics are ``"batch"``, or
        ``"reestimated"`` on these images at every scale.
    """
    if not scales:
        return []
    batches = PullBatches.choose(subject.recipe, subject.data, images, seed=seed)
    batches = batches.to(subject.device)

    def reestimate(network: nn.Module) -> None:
        reestimate_normalisation(network, batches.images, subject.scaling)

    rows = []
    for how in (None, reestimate):
        rows += loss_along_scale(
            subject.network, subject.scaling(batches.images), batches.labels, scales,
            batch_size=batches.batch_size, draws=draws, seed=seed, reestimate=how,
        )  # fmt: skip
    return [asdict(row) for row in rows]


def _pushes(recipe: Recipe, n_train: int) -> Callable[[dict[str, Any], int], dict[str, float]]:
    """What gives a recorded pull's ``rate`` and ``push`` at an epoch."""
    training = recipe.training
    rates = one_cycle_rates(training, n_train // training.batch_size)

    def push(row: dict[str, Any], epoch: int) -> dict[str, float]:
        layer = LayerPull(**{name: row[name] for name in _FIELDS})
        rate = rates[epoch] * layer.n_tiles**training.tile_lr_power
        same = row["batch_size"] == training.batch_size and training.momentum < 1
        pushed = noise_push(layer, rate=rate, momentum=training.momentum) if same else math.nan
        return {"rate": rate, "push": pushed}

    return push
