"""Broken tiles imposed on a network: contexts that put it right again when they are left.

Under :func:`tile_faults` a model computes as if some of its tiles were broken, and afterwards is as
it was. Faulty tiles can be rerouted around: the living ones then compute all patches, so the layer
takes longer (:func:`rapa_lib.runtime.run_time`), and what is wrong with the others no longer
matters.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_bool
from rapa_lib._seeds import mix_seeds, seeded_generator
from rapa_lib.instruments.faults.draw import TileFault, faults_by_layer
from rapa_lib.layers._hooks import After, hooked
from rapa_lib.layers.conv import RapaConv2d


@contextmanager
def tile_faults(
    model: nn.Module, faults: Iterable[TileFault], *, reroute: bool = False
) -> Iterator[nn.Module]:
    """Let a model compute with broken tiles inside; leave it as it was.

    What is trained inside stays trained, but for the kernels of stuck and drifted tiles. A copy
    made inside keeps the faults. Contexts nest and their faults add up; a layer's dead tiles are
    either rerouted around in all of them or in none.

    Args:
        model: any module with :class:`RapaConv2d` layers; without faults nothing changes.
        faults: the broken tiles, each named once.
        reroute: whether the living tiles take the patches of the faulty ones, of whatever kind.
            If not, dead tiles leave zeros, and the others compute wrongly.

    Yields:
        The model.

    Raises:
        ValueError, TypeError: before anything is changed, naming what is wrong: an unknown layer,
            one without tiles, a tile out of range or named twice, or, rerouted, a layer without a
            living tile.
    """
    faults = tuple(faults)
    check_bool("reroute", reroute)
    by_layer = faults_by_layer(model, faults)
    routes = {
        layer: living_after(layer, name, broken, reroute)
        for name, (layer, broken) in by_layer.items()
    }
    with ExitStack() as stack:
        for layer, broken in by_layer.values():
            living = routes[layer]
            if living is not None:
                stack.enter_context(living_tiles(layer, living, reroute))
            if not reroute:  # else nothing asks the faulty tiles
                seeds = {f.tile: f.seed for f in broken if f.kind == "stuck"}
                stack.enter_context(stuck_tiles(layer, seeds))
                stack.enter_context(drifted_tiles(layer, _strengths(broken, "drifted")))
                stack.enter_context(noisy_tiles(layer, _strengths(broken, "noisy")))
        yield model


def _strengths(faults: Sequence[TileFault], kind: str) -> dict[int, float]:
    """The strengths of the faults of one kind by tile."""
    return {f.tile: f.strength for f in faults if f.kind == kind and f.strength is not None}


def living_after(
    layer: RapaConv2d, name: str, broken: Sequence[TileFault], reroute: bool
) -> list[int] | None:
    """The tiles of a layer that take patches after faults; None if that changes nothing.

    Raises:
        ValueError: if the layer is rerouted and not at once, or none is left to reroute to.
    """
    out = {fault.tile for fault in broken if reroute or fault.kind == "dead"}
    if not out:
        return None
    before = layer.living_tiles
    if len(before) < layer.n_tiles and layer.reroute != reroute:
        raise ValueError(
            f"reroute: got {reroute}, but layer {name!r} has dead tiles with reroute = "
            f"{layer.reroute} already"
        )
    living = [tile for tile in before if tile not in out]
    if reroute and not living:
        raise ValueError(
            f"faults: no tile of layer {name!r} lives, so there is none to reroute to; leave at "
            f"least one of its {layer.n_tiles}"
        )
    return living


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
    the same image. Contexts nest; each has noise of its own where draws are frozen.
    """
    if not strengths:
        yield
        return
    depth = int(getattr(layer, "_noise_depth", 0))
    layer._noise_depth = depth + 1  # type: ignore[assignment]
    try:
        with hooked({"": layer}, before=_draw_first, after=_adder(strengths, depth)):
            yield
    finally:
        layer._noise_depth = depth  # type: ignore[assignment]


def _draw_first(
    _: str, layer: Any, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Draw the assignment before the layer does, so that the noise can follow it."""
    given = dict(zip(("x", "assignment"), args, strict=False)) | kwargs
    x, assignment = given["x"], given.get("assignment")
    layer._check_input(x)
    if assignment is None:
        n_images = len(x) if x.dim() == 4 else 1
        assignment = layer.assignment(n_images, tuple(x.shape[-2:]))
    return (x,), {"assignment": assignment}


def _adder(strengths: Mapping[int, float], depth: int) -> After:
    """Make the hook that adds the noise of the context that lies in so many others."""

    def add(_: str, layer: Any, args: tuple, kwargs: dict[str, Any], y: Tensor) -> Tensor:
        images = y if y.dim() == 4 else y[None]
        by_tile = images.new_zeros(layer.n_tiles + 1)  # the last is that of "tile" -1: none
        for tile, strength in strengths.items():
            by_tile[tile] = strength
        assignment = kwargs["assignment"].to(y.device)
        deviation = by_tile[assignment].view(len(images), 1, *images.shape[2:])
        deviation = deviation * images.detach().pow(2).mean((1, 2, 3), keepdim=True).sqrt()
        seed = None if layer._frozen_seed is None else mix_seeds(layer._frozen_seed, depth)
        generator = seeded_generator(seed, y.device)
        noise = torch.randn(images.shape, generator=generator, device=y.device, dtype=y.dtype)
        noisy = images + noise * deviation
        return noisy if y.dim() == 4 else noisy[0]

    return add


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
