"""What broken tiles do to one layer: contexts that put it right again when they are left."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rapa_lib._seeds import mix_seeds, seeded_generator
from rapa_lib.layers.conv import RapaConv2d


@contextmanager
def living_tiles(layer: RapaConv2d, tiles: Sequence[int], reroute: bool) -> Iterator[None]:
    """Let only these tiles take patches."""
    before = layer.living_tiles, layer.reroute
    layer.set_living(tiles, reroute=reroute)
    try:
        yield
    finally:
        layer.set_living(before[0], reroute=before[1])


@contextmanager
def stuck_tiles(layer: RapaConv2d, seeds: Mapping[int, int]) -> Iterator[None]:
    """Put random kernels and biases in the place of tiles', each from its seed.

    They are drawn as ``Conv2d`` does, on the CPU, and scaled to the root mean square of the tile's
    own kernel or bias.
    """
    with _kernels_given_back(layer, seeds):
        for tile, seed in seeds.items():
            for parameter, drawn in zip(_parameters(layer), _fresh(layer, seed), strict=True):
                scale = _rms(parameter[tile]) / _rms(drawn).to(parameter)
                parameter[tile].copy_(drawn.to(parameter) * scale)
        yield


@contextmanager
def drifted_tiles(layer: RapaConv2d, factors: Mapping[int, float]) -> Iterator[None]:
    """Multiply tiles' kernels and biases, each by its factor."""
    with _kernels_given_back(layer, factors):
        for tile, factor in factors.items():
            for parameter in _parameters(layer):
                parameter[tile].mul_(factor)
        yield


@contextmanager
def noisy_tiles(layer: RapaConv2d, strengths: Mapping[int, float]) -> Iterator[None]:
    """Add Gaussian noise to tiles' outputs in every forward pass.

    Its standard deviation is a tile's strength × the root mean square of the layer's outputs for
    the same image.
    """
    if not strengths:
        yield
        return
    # Contexts that nest must not draw the same noise where draws are frozen.
    draw, add = _noise_hooks(layer.n_tiles, strengths, len(layer._forward_hooks))
    hooks = [
        layer.register_forward_pre_hook(draw, with_kwargs=True),
        layer.register_forward_hook(add, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _noise_hooks(
    n_tiles: int, strengths: Mapping[int, float], salt: int
) -> tuple[Callable, Callable]:
    """Make a hook that draws the assignment before the layer does, and one that adds the noise."""

    def draw(layer: RapaConv2d, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given = dict(zip(("x", "assignment"), args, strict=False)) | kwargs
        x, assignment = given["x"], given.get("assignment")
        layer._check_input(x)
        if assignment is None:
            n_images = len(x) if x.dim() == 4 else 1
            assignment = layer.assignment(n_images, tuple(x.shape[-2:]))
        return (x,), {"assignment": assignment}

    def add(layer: RapaConv2d, args: tuple, kwargs: dict, y: Tensor) -> Tensor:
        images = y if y.dim() == 4 else y[None]
        by_tile = images.new_zeros(n_tiles + 1)  # the last is that of "tile" -1: none
        for tile, strength in strengths.items():
            by_tile[tile] = strength
        assignment = kwargs["assignment"].to(y.device)
        deviation = by_tile[assignment].view(len(images), 1, *images.shape[2:])
        deviation = deviation * images.detach().pow(2).mean((1, 2, 3), keepdim=True).sqrt()
        seed = None if layer._frozen_seed is None else mix_seeds(layer._frozen_seed, salt)
        generator = seeded_generator(seed, y.device)
        noise = torch.randn(images.shape, generator=generator, device=y.device, dtype=y.dtype)
        noisy = images + noise * deviation
        return noisy if y.dim() == 4 else noisy[0]

    return draw, add


@contextmanager
def _kernels_given_back(layer: RapaConv2d, tiles: Mapping[int, object]) -> Iterator[None]:
    """Give tiles their own kernels and biases back after."""
    before = [[p[tile].clone() for p in _parameters(layer)] for tile in tiles]
    try:
        yield
    finally:
        for tile, values in zip(tiles, before, strict=True):
            for parameter, value in zip(_parameters(layer), values, strict=True):
                parameter[tile].copy_(value)


def _parameters(layer: RapaConv2d) -> list[Tensor]:
    """Kernels and, if there are any, biases as they are now; writing to them is not recorded."""
    return [p.detach() for p in (layer.weight, layer.bias) if p is not None]


def _fresh(layer: RapaConv2d, seed: int) -> list[Tensor]:
    """A kernel and, if the layer has one, a bias for one tile, drawn as ``Conv2d`` does."""
    conv: nn.Conv2d = layer.merged().cpu()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        conv.reset_parameters()
    return [p.detach() for p in (conv.weight, conv.bias) if p is not None]


def _rms(values: Tensor) -> Tensor:
    return values.pow(2).mean().sqrt()
