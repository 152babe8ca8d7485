"""Losses of a network under random assignments of some of its layers, the others being merged."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rapa_lib.instruments._linearisation import Deviation, imposed, loss_of
from rapa_lib.instruments.similarity import tiled_layers
from rapa_lib.layers._patch_conv import plane_of


@dataclass(frozen=True)
class Expansion:
    """A batch, and the merged network's first order on it.

    Args:
        images: (N, C, H, W).
        labels: (N,).
        inputs: by layer's name, its input.
        slopes: by layer's name, the gradient of the batch's loss with respect to its output.
    """

    images: Tensor
    labels: Tensor
    inputs: Mapping[str, Tensor]
    slopes: Mapping[str, Tensor]


class PartlyTiled:
    """A network whose tiles are alike but in the layers looked at."""

    def __init__(self, model: nn.Module, alike: nn.Module) -> None:
        self._model, self._alike = model, alike
        self._network = copy.deepcopy(alike)
        self._layers = tiled_layers(model)

    @torch.no_grad()
    def losses(self, names: Sequence[str], at: Expansion, draws: int) -> Tensor:
        """Losses (draws,), sums over a batch, their first-order terms of mean zero taken off.

        Args:
            names: the layers whose tiles differ and whose assignments are drawn.
            at: the batch.
            draws: number of assignments, from PyTorch's generator.
        """
        _take_layers(self._network, self._alike)
        _take_layers(self._network, self._model, names)
        deviations = {name: Deviation.of(self._layers[name]) for name in names}
        losses = torch.zeros(draws, dtype=torch.float64)
        for draw in range(draws):
            assignments = self._assignments(names, at)
            with imposed(self._network, assignments):
                loss = float(loss_of(self._network(at.images), at.labels))
            for name, assignment in assignments.items():
                if self._layers[name].tiling == "random":  # others may prefer some tiles
                    epsilon = deviations[name].assigned(at.inputs[name], assignment)
                    loss -= float((epsilon * at.slopes[name]).sum(dtype=torch.float64))
            losses[draw] = loss
        return losses

    def _assignments(self, names: Sequence[str], at: Expansion) -> dict[str, Tensor]:
        return {
            name: self._layers[name].assignment(len(at.images), plane_of(at.inputs[name]))
            for name in names
        }


def _take_layers(network: nn.Module, source: nn.Module, names: Sequence[str] | None = None) -> None:
    """Give tiled layers of a network the weights of those of another."""
    theirs = tiled_layers(source)
    for name, layer in tiled_layers(network).items():
        if names is None or name in names:
            layer.load_state_dict(theirs[name].state_dict())
