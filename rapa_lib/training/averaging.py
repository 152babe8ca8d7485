"""Averaging of the tiles of a layer, now and then in training: RAPA with a memory of convolution.

With identical start, rates × n_tiles and tiles averaged after every step a tiled layer is the
ordinary convolution: the mean of the steps rate · n_t · g_t is rate · Σ_t g_t. Averaged every k
steps it is local SGD with n_t workers inside a layer (Stich, "Local SGD converges fast and
communicates little", ICLR 2019); never, it is RAPA. The pull of every tile to the mean at every
step is elastic averaging (Zhang, Choromanska & LeCun, NeurIPS 2015), its centre being the mean
itself. See docs/synchronisation.md.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rapa_lib.analog import AnalogTileArray
from rapa_lib.analog import average_tiles as average_analog_tiles
from rapa_lib.layers.conv import RapaConv2d
from rapa_lib.training.config import TrainConfig


@dataclass
class TileAveraging:
    """What brings the tiles of a network together after each step of its optimizer.

    It knows from the number of steps alone what is due, so that a resumed training goes on as one
    that was never stopped.

    Args:
        model: the network; its convolutions with at least two tiles are averaged.
        optimizer: SGD, whose velocities are averaged with what they move.
        config: of the training.

    Raises:
        ValueError: if tiles on analog arrays are to be coupled, which would read and write every
            array in every step.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    _met: dict[str, list[tuple[float, Tensor]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.config.coupling and _pulsed_arrays(self.model):
            raise ValueError(
                f"coupling: got {self.config.coupling}, allowed for weights on analog tiles: 0"
            )

    @property
    def is_idle(self) -> bool:
        """Whether every tile is left alone."""
        return not (self.config.sync_every or self.config.coupling)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Do what is due after a step of the optimizer.

        Args:
            step: how many there were, from 1.

        Raises:
            ValueError: if some tiles of an analog layer that is to be averaged are dead.
            NotFiniteError: if what was read of analog tiles is not finite.
        """
        every, coupling = self.config.sync_every, self.config.coupling
        averages = every > 0 and step % every == 0
        if not (averages or coupling):
            return
        for name, layer, living in _shared(self.model):
            if coupling:
                for parameter in _digital(layer):
                    _average(parameter, living, coupling)
            if averages:
                met = self._rate(layer) ** 2, _spread(layer, living)
                self._met.setdefault(name, []).append(met)
                self._synchronise(name, layer, living)

    def take_report(self) -> list[dict[str, Any]]:
        """What the averagings since the last report met, and forget it.

        Returns:
            One entry per layer that was averaged: ``layer``, ``n_tiles``, ``averagings`` (their
            number), and means over them: ``squared_rate`` (η² of its kernels) and
            ``squared_deviation`` (Σ_t ‖δ_t‖² of its kernels just before).
        """
        layers = dict(self.model.named_modules())
        report = [
            {
                "layer": name,
                "n_tiles": layers[name].n_tiles,
                "averagings": len(met),
                "squared_rate": sum(rate for rate, _ in met) / len(met),
                "squared_deviation": float(torch.stack([spread for _, spread in met]).mean()),
            }
            for name, met in self._met.items()
        ]
        self._met.clear()
        return report

    def _rate(self, layer: RapaConv2d) -> float:
        """The learning rate of a layer's kernels."""
        kernels = next(_kernels(layer))
        for group in self.optimizer.param_groups:  # a checkpoint replaces them
            if any(parameter is kernels for parameter in group["params"]):
                return float(group["lr"])
        return 0.0  # nothing moves them

    def _synchronise(self, name: str, layer: RapaConv2d, living: Tensor | None) -> None:
        arrays = _pulsed_arrays(layer)
        if arrays and living is not None:
            raise ValueError(
                f"sync_every: tiles of layer {name!r} are dead; allowed for weights on analog "
                "tiles: none dead"
            )
        for tiles in arrays:
            average_analog_tiles(tiles, write=self.config.sync_write, reads=self.config.sync_reads)
        for parameter in _digital(layer):
            _average(parameter, living)
            velocity = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if velocity is not None:
                _average(velocity, living)


class TimeAverage:
    """The mean over steps of every parameter of a network (stochastic weight averaging).

    Source: Izmailov, Podoprikhin, Garipov, Vetrov & Wilson, "Averaging weights leads to wider
    optima and better generalization" (UAI 2018). The running mean is float64: it does not depend
    on how many steps there were.

    Args:
        model: the network.

    Raises:
        ValueError: if weights lie on analog tiles, which nobody reads in every step.
    """

    def __init__(self, model: nn.Module) -> None:
        if _pulsed_arrays(model):
            raise ValueError("average_last: allowed for weights on analog tiles: 0")
        self.model, self.steps = model, 0
        self._means = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in self._parameters()}

    def _parameters(self) -> list[tuple[str, Tensor]]:
        return [(name, p.detach()) for name, p in self.model.named_parameters()]

    def after_step(self) -> None:
        """Take the parameters of this step into the mean."""
        self.steps += 1
        for name, parameter in self._parameters():
            mean = self._means[name]
            mean += (parameter - mean) / self.steps

    def apply(self) -> None:
        """Give the network the means; normalisation statistics must be estimated anew."""
        for name, parameter in self._parameters():
            parameter.copy_(self._means[name])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"steps": self.steps, "means": copy.deepcopy(self._means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.steps = state["steps"]
        for name, mean in self._means.items():
            mean.copy_(state["means"][name])


def _pulsed_arrays(model: nn.Module) -> list[AnalogTileArray]:
    """The arrays of tiles in a model that are written by pulses."""
    return [m for m in model.modules() if isinstance(m, AnalogTileArray) and not m.is_ideal]


def _shared(model: nn.Module) -> Iterator[tuple[str, RapaConv2d, Tensor | None]]:
    """The layers with at least two tiles that take patches, and these tiles; None: all."""
    for name, layer in model.named_modules():
        if not isinstance(layer, RapaConv2d) or len(layer.living_tiles) < 2:
            continue
        some = len(layer.living_tiles) < layer.n_tiles
        device = layer.weight.device
        yield name, layer, torch.tensor(layer.living_tiles, device=device) if some else None


def _kernels(layer: RapaConv2d) -> Iterator[nn.Parameter]:
    """The parameters that hold a layer's kernels: its own, or those of its arrays."""
    return (p for name, p in layer.named_parameters() if name.rpartition(".")[2] == "weight")


def _digital(layer: RapaConv2d) -> list[Tensor]:
    """The parameters of a layer, a tile first, that an ordinary optimizer moves."""
    pulsed = {id(tiles.weight) for tiles in _pulsed_arrays(layer)}
    return [parameter for parameter in layer.parameters() if id(parameter) not in pulsed]


def _spread(layer: RapaConv2d, living: Tensor | None) -> Tensor:
    """Σ_t ‖δ_t‖² of a layer's kernels."""
    weight = layer.weight.detach()
    moved = _offsets(weight if living is None else weight[living])
    return moved.sub_(moved.mean(0)).square_().sum(dtype=torch.float64)


def _average(values: Tensor, living: Tensor | None, share: float = 1.0) -> None:
    """Move values (n_tiles, …) of the living tiles a share of the way to their mean, in place.

    Equal tiles stay as they are, to the bit.
    """
    values = values.detach()
    taken = values if living is None else values[living]
    offsets = _offsets(taken)
    mean = offsets.mean(0)
    moved = taken[:1] + (mean if share == 1 else offsets.lerp(mean.expand_as(offsets), share))
    if living is None:
        values.copy_(moved.expand_as(values))
    else:
        values[living] = moved.expand_as(taken)


def _offsets(values: Tensor) -> Tensor:
    """Values less those of the first tile: exactly 0 where all are equal."""
    return values - values[:1]
