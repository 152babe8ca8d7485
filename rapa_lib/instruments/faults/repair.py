"""Cheap repairs of a network with broken tiles: a copied kernel, or a few steps of training."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from rapa_lib._checks import check_bool, check_int
from rapa_lib._modes import evaluation_mode
from rapa_lib._seeds import mix_seeds, seeded
from rapa_lib.analog import NotFiniteError
from rapa_lib.data.datasets import Dataset
from rapa_lib.instruments.faults.draw import TileFault, faults_by_layer
from rapa_lib.training import DivergedError, InputScaling, TrainConfig, TrainingStep, falling_sgd
from rapa_lib.training.step import with_rates


def repair_by_copy(
    model: nn.Module, faults: Sequence[TileFault], *, seed: int = 0, inplace: bool = False
) -> nn.Module:
    """Replace broken tiles by new ones that hold copies of living tiles' kernels and biases.

    Needs no data and no training: tiles that learnt the same are interchangeable. The layers run at
    full speed again.

    Args:
        model: any module with :class:`RapaConv2d` layers, its kernels as they were trained.
        faults: the broken tiles, of any kind.
        seed: which living tile serves which; none serves twice before all have served once.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        The repaired model.

    Raises:
        ValueError, TypeError: as :func:`tile_faults`; also if no tile of a layer lives.
    """
    check_int("seed", seed, low=0)
    check_bool("inplace", inplace)
    faults = tuple(faults)
    donors = {}
    for i, (name, (layer, broken)) in enumerate(faults_by_layer(model, faults).items()):
        out = {fault.tile for fault in broken}
        living = [tile for tile in layer.living_tiles if tile not in out]
        if not living:
            raise ValueError(f"faults: no tile of layer {name!r} lives that could be copied")
        generator = torch.Generator().manual_seed(mix_seeds(seed, i))
        order = torch.randperm(len(living), generator=generator).tolist()
        donors[name] = [living[k] for k in order]
    model = model if inplace else copy.deepcopy(model)
    for name, (layer, broken) in faults_by_layer(model, faults).items():
        for i, fault in enumerate(broken):
            for parameter in layer.parameters(recurse=False):
                values = parameter.detach()
                values[fault.tile].copy_(values[donors[name][i % len(donors[name])]])
    return model


def fine_tune(
    model: nn.Module,
    dataset: Dataset,
    scaling: InputScaling,
    steps: int = 50,
    *,
    batch_size: int = 128,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    tile_lr_power: float = 1.0,
    mirror: bool = False,
    max_shift: int = 0,
    seed: int = 0,
) -> list[float]:
    """Train a network some steps further, in place, with its tiles as they are.

    Inside :func:`tile_faults` the dead tiles stay dead and the others adapt. Plain SGD without
    weight decay; the rate falls linearly to zero.

    Args:
        model: the network; its modules keep their modes.
        dataset: its training images are drawn from, each at most once a pass.
        scaling: the scaling that the network was trained with.
        steps: number of batches.
        batch_size: images a step.
        learning_rate: at the first step, for a layer without tiles.
        momentum: of SGD.
        tile_lr_power: a layer with n tiles that take patches learns with rate × n^power.
        mirror, max_shift: augmentation, see :class:`TrainConfig`.
        seed: of the order of images, of augmentation and of the assignments.

    Returns:
        The loss of each step.

    Raises:
        DivergedError: if a loss is not finite.
        ValueError, TypeError: naming the argument.
    """
    check_int("steps", steps, low=1)
    n_train = len(dataset.train_images)
    check_int("batch_size", batch_size, low=2, high=n_train)
    config = TrainConfig(
        batch_size=batch_size, learning_rate=learning_rate, momentum=momentum, weight_decay=0,
        tile_lr_power=tile_lr_power, mirror=mirror, max_shift=max_shift, seed=seed,
    )  # fmt: skip
    device = next(model.parameters()).device
    images, labels = dataset.train_images.to(device), dataset.train_labels.to(device)
    step = TrainingStep(
        model, scaling, *falling_sgd(model, config, steps), config.mirror, config.max_shift
    )
    losses = torch.zeros(steps, device=device)
    with seeded(seed), evaluation_mode(model):
        model.train()
        index = torch.empty(0, dtype=torch.long, device=device)
        for i in range(steps):
            if len(index) < batch_size:
                index = torch.randperm(n_train, device=device)
            batch, index = index[:batch_size], index[batch_size:]
            where = f"step {i + 1} of fine-tuning"
            try:
                step(images[batch], labels[batch], losses[i])
            except NotFiniteError as error:  # analog tiles take finite numbers only
                raise DivergedError(f"at {where}: {error}") from error
            if not losses[i].isfinite():
                loss = float(losses[i])
                raise DivergedError(f"the loss is {loss} at {where}, {with_rates(config)}")
    return losses.tolist()
