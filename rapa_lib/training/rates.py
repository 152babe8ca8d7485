"""Rates: the optimizer and its schedule, learning rate and weight decay tile by tile."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rapa_lib.analog import AnalogSGD, AnalogTileArray
from rapa_lib.layers.conv import RapaConv2d
from rapa_lib.training.config import TrainConfig

Scheduler = torch.optim.lr_scheduler.LRScheduler

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def one_cycle_sgd(model: nn.Module, config: TrainConfig, steps: int) -> tuple[AnalogSGD, Scheduler]:
    """SGD under a one-cycle schedule, as a training takes it.

    Args:
        model: the network.
        config: see :class:`TrainConfig`.
        steps: number of batches in an epoch.

    Raises:
        ValueError: if momentum is 1 and weights lie on analog tiles.
    """
    optimizer = _sgd(model, config, built_tiles)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=config.epochs * steps + 1,  # the last step ends on the schedule's end
        cycle_momentum=False,
    )
    return optimizer, scheduler


def one_cycle_rates(config: TrainConfig, steps: int) -> list[float]:
    """The rates of a training's schedule between its epochs, for a layer without tiles.

    Args:
        config: see :class:`TrainConfig`.
        steps: number of batches in an epoch.

    Returns:
        The rate of the next step after 0, 1, … ``config.epochs`` epochs.
    """
    optimizer, scheduler = one_cycle_sgd(nn.Linear(1, 1), config, steps)
    optimizer.step()  # without gradients nothing moves; the schedule wants to come after it
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(config.epochs):
        for _ in range(steps):
            scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def falling_sgd(model: nn.Module, config: TrainConfig, steps: int) -> tuple[AnalogSGD, Scheduler]:
    """SGD whose rate falls linearly to zero in so many steps, as fine-tuning takes it.

    The rate of a layer goes with the tiles that take patches: what is dead learns nothing.

    Args:
        model, config: as for :func:`one_cycle_sgd`.
        steps: number of batches until the rate is zero.

    Raises:
        ValueError: as :func:`one_cycle_sgd`.
    """
    optimizer = _sgd(model, config, working_tiles)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    return optimizer, scheduler


def built_tiles(layer: nn.Module) -> int:
    """The tiles of a layer, broken or not; 1 for a layer without."""
    return layer.n_tiles if isinstance(layer, RapaConv2d | AnalogTileArray) else 1


def working_tiles(layer: nn.Module) -> int:
    """The tiles of a layer that take patches, at least 1."""
    return max(len(layer.living_tiles), 1) if isinstance(layer, RapaConv2d) else built_tiles(layer)


def _sgd(model: nn.Module, config: TrainConfig, tiles_of: Callable[[nn.Module], int]) -> AnalogSGD:
    """SGD whose rate and weight decay are scaled tile by tile.

    Weights on analog tiles are written by pulses. These keep no velocity, so their rate is that
    of a velocity's sum, learning_rate / (1 − momentum).
    """
    alike: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}
    for layer in model.modules():
        pulsed = isinstance(layer, AnalogTileArray) and layer.is_pulsed
        if pulsed and config.momentum == 1:
            raise ValueError("momentum: got 1.0, allowed for weights on analog tiles: below 1")
        for name, parameter in layer.named_parameters(recurse=False):
            decays = name == "weight" and not isinstance(layer, _NORMALISATIONS)
            alike.setdefault((tiles_of(layer), decays, pulsed), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": config.learning_rate
            * n_tiles**config.tile_lr_power
            / (1 - config.momentum if pulsed else 1),
            "weight_decay": config.weight_decay / n_tiles**config.tile_lr_power if decays else 0,
        }
        for (n_tiles, decays, pulsed), parameters in alike.items()
    ]
    return AnalogSGD(model, params=groups, lr=config.learning_rate, momentum=config.momentum)
