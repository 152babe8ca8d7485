"""What is recorded of the tiles while a network learns."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from rapa_lib._checks import Checked, integer
from rapa_lib._seeds import Purpose, seeded
from rapa_lib.data import Dataset
from rapa_lib.experiments.recipe import Recipe, choose_device
from rapa_lib.instruments.penalty import measured_penalty
from rapa_lib.instruments.pull import tile_pull
from rapa_lib.instruments.similarity import tile_similarity, tiled_layers
from rapa_lib.training import InputScaling, Measure, augment

# The penalty of random assignment is recorded on so many training images with so many draws.
PENALTY_IMAGES, PENALTY_DRAWS = 32, 8

PULL_IMAGES = 512
"""The pull is recorded on so many training images, more where they are no two batches."""


@dataclass(frozen=True)
class PullBatches:
    """Training images as a training takes them, for the pull and the loss along the deviations.

    Args:
        images: uint8 (N, C, H, W), augmented as the training augments.
        labels: classes (N,).
        batch_size: that of the training; half of the images where these are no two batches.
    """

    images: Tensor
    labels: Tensor
    batch_size: int

    @classmethod
    def choose(cls, recipe: Recipe, data: Dataset, limit: int, *, seed: int) -> "PullBatches":
        """Choose images.

        Args:
            recipe: of the training.
            data: its training images are chosen from.
            limit: how many, at least 2; all where there are fewer.
            seed: of the choice and of the augmentation.
        """
        training = recipe.training
        with seeded(seed, Purpose.PULL_IMAGES):
            chosen = torch.randperm(len(data.train_images))[:limit]
            images = augment(data.train_images[chosen], training.mirror, training.max_shift)
        batch_size = min(training.batch_size, len(chosen) // 2)
        return cls(images, data.train_labels[chosen], batch_size)

    def to(self, device: torch.device) -> "PullBatches":
        """The same on a device."""
        return PullBatches(self.images.to(device), self.labels.to(device), self.batch_size)


@dataclass(frozen=True)
class Tracking(Checked):
    """How often the tiles are measured in training; each also before the first, after the last.

    Args:
        similarity_every: record the similarity of tiles every so many epochs; 0 never.
        penalty_every: likewise the penalty of random assignment, where an expectation over
            assignments exists.
        pull_every: likewise the pull on the tiles, under every tiling.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    similarity_every: int = integer(1, low=0)
    penalty_every: int = integer(0, low=0)
    pull_every: int = integer(0, low=0)

    @classmethod
    def split(cls, parameters: Mapping[str, Any]) -> tuple["Tracking", dict[str, Any]]:
        """Take its own out of flat parameters; return the rest beside it."""
        names = {one.name for one in fields(cls)}
        own = {name: value for name, value in parameters.items() if name in names}
        return cls(**own), {n: value for n, value in parameters.items() if n not in names}

    def measure(self, recipe: Recipe, data: Dataset) -> Measure:
        """What :func:`rapa_lib.train` takes as ``measure``.

        Args:
            recipe: of the training.
            data: its images are what penalties and pulls are taken on, seeded choices.
        """
        device = choose_device(recipe.device)
        with seeded(recipe.seed, Purpose.PENALTY_IMAGES):
            chosen = torch.randperm(len(data.train_images))[:PENALTY_IMAGES]
        images, labels = data.train_images[chosen], data.train_labels[chosen]
        images, labels = images.to(device), labels.to(device)
        pulls = self._pull_batches(recipe, data, device)
        expectation = recipe.network.kind.expectation

        def due(epoch: int, every: int) -> bool:
            return every > 0 and (epoch % every == 0 or epoch == recipe.training.epochs)

        def measure(network: nn.Module, epoch: int, scaling: InputScaling) -> dict[str, Any] | None:
            taken: dict[str, Any] = {}
            if not tiled_layers(network):
                return None
            if due(epoch, self.similarity_every):
                taken["similarity"] = [asdict(row) for row in tile_similarity(network)]
            if due(epoch, self.penalty_every) and expectation:
                seed = int(torch.randint(2**31, ()))
                rows = measured_penalty(network, scaling(images), labels, PENALTY_DRAWS, seed=seed)
                taken["penalty"] = [asdict(row) for row in rows]
            if pulls is not None and due(epoch, self.pull_every):
                seed = int(torch.randint(2**31, ()))
                taken["pull"] = measured_pull(network, pulls, recipe, scaling, draws=1, seed=seed)
            return taken or None

        return measure

    def _pull_batches(
        self, recipe: Recipe, data: Dataset, device: torch.device
    ) -> PullBatches | None:
        if not self.pull_every:
            return None
        limit = max(PULL_IMAGES, 2 * recipe.training.batch_size)
        return PullBatches.choose(recipe, data, limit, seed=recipe.seed).to(device)


def measured_pull(
    network: nn.Module,
    batches: PullBatches,
    recipe: Recipe,
    scaling: InputScaling,
    *,
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The pull on the tiles of every tiled layer, with what of it belongs to the training.

    Args:
        network: of the recipe; it is left as it is.
        batches: of its training images.
        recipe: gives weight decay and ``tile_lr_power``.
        scaling: of the training.
        draws: of each batch.
        seed: of batches and draws.

    Returns:
        The fields of each layer's :class:`rapa_lib.instruments.pull.LayerPull`, and ``batch_size``.
    """
    found = tile_pull(
        network, scaling(batches.images), batches.labels, batch_size=batches.batch_size,
        draws=draws, seed=seed, weight_decay=recipe.training.weight_decay,
        tile_lr_power=recipe.training.tile_lr_power,
    )  # fmt: skip
    return [asdict(row) | {"batch_size": batches.batch_size} for row in found]
