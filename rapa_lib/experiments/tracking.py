"""What is recorded of the tiles while a network learns."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn

from rapa_lib._checks import Checked, integer
from rapa_lib._seeds import Purpose, seeded
from rapa_lib.data import Dataset
from rapa_lib.experiments.recipe import Recipe, choose_device
from rapa_lib.instruments.penalty import measured_penalty
from rapa_lib.instruments.similarity import tile_similarity, tiled_layers
from rapa_lib.training import InputScaling, Measure

# The penalty of random assignment is recorded on so many training images with so many draws.
PENALTY_IMAGES, PENALTY_DRAWS = 32, 8


@dataclass(frozen=True)
class Tracking(Checked):
    """How often the tiles are measured in training; both also before the first and after the last.

    Args:
        similarity_every: record the similarity of tiles every so many epochs; 0 never.
        penalty_every: likewise the penalty of random assignment, where an expectation over
            assignments exists.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    similarity_every: int = integer(1, low=0)
    penalty_every: int = integer(0, low=0)

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
            data: its images are what penalties are taken on, a seeded choice.
        """
        device = choose_device(recipe.device)
        with seeded(recipe.seed, Purpose.PENALTY_IMAGES):
            chosen = torch.randperm(len(data.train_images))[:PENALTY_IMAGES]
        images, labels = data.train_images[chosen], data.train_labels[chosen]
        images, labels = images.to(device), labels.to(device)
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
            return taken or None

        return measure
