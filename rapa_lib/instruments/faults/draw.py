"""Broken tiles: which, how, and for how long; what a network with them computes, and how fast.

Under :func:`tile_faults` a model computes as if some of its tiles were broken, and afterwards is as
it was. Faulty tiles can be rerouted around: the living ones then compute all patches, so the layer
takes longer (:func:`products_per_layer`), and what is wrong with the others no longer matters.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from rapa_lib._checks import check_bool, check_choice, check_int, check_real
from rapa_lib._seeds import mix_seeds
from rapa_lib.instruments.faults._broken_tiles import (
    drifted_tiles,
    living_tiles,
    noisy_tiles,
    stuck_tiles,
)
from rapa_lib.layers._patch_conv import PatchConv2d
from rapa_lib.layers.conv import RapaConv2d
from rapa_lib.networks.convert import count_patches

FAULT_KINDS = {"dead": None, "stuck": None, "drifted": "factor", "noisy": "relative deviation"}
"""Every kind of fault, and what its strength is; None where it has none."""


@dataclass(frozen=True)
class TileFault:
    """One broken tile.

    Args:
        layer: name of its :class:`RapaConv2d` layer, as in ``model.named_modules()``.
        tile: its index.
        kind: ``"dead"``: its outputs are zero, bias included, and no gradient reaches it.
            ``"stuck"``: kernel and bias are random ones, drawn as the layer was initialised and
            scaled to the root mean square of the tile's own.
            ``"drifted"``: kernel and bias (a column of the array) are multiplied by ``strength``.
            ``"noisy"``: its outputs get Gaussian read noise, fresh in every forward pass and held
            by :func:`frozen_draws`; the standard deviation is ``strength`` times the root mean
            square of the layer's outputs for the same image.
        strength: see ``kind``; None for a kind that has none.
        seed: of a stuck tile's kernel.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    layer: str
    tile: int
    kind: str = "dead"
    strength: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str):
            raise TypeError(f"layer: got {self.layer!r}, expected a layer's name")
        object.__setattr__(self, "tile", check_int("tile", self.tile, low=0))
        object.__setattr__(self, "strength", check_kind(self.kind, self.strength))
        object.__setattr__(self, "seed", check_int("seed", self.seed, low=0))


def check_kind(kind: str, strength: float | None) -> float | None:
    """Return the strength if the kind of fault is known and takes it; raise otherwise."""
    check_choice("kind", kind, FAULT_KINDS)
    if (strength is None) != (FAULT_KINDS[kind] is None):
        wanted = FAULT_KINDS[kind] or "None"
        raise ValueError(f"strength: got {strength}, but kind {kind!r} takes {wanted}")
    return None if strength is None else check_real("strength", strength, low=0)


def rapa_layers(model: nn.Module) -> dict[str, RapaConv2d]:
    """The RAPA convolutions of a model by name, those of one tile included.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if it has none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected torch.nn.Module")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, RapaConv2d)}
    if not layers:
        raise ValueError("model: it has no RapaConv2d layer, so no tiles that could fail")
    return layers


def draw_faults(
    model: nn.Module,
    *,
    share: float | None = None,
    count: int | Mapping[str, int] | None = None,
    kind: str = "dead",
    strength: float | None = None,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[TileFault, ...]:
    """Pick tiles to break, at random in each layer.

    For one seed, the tiles of a smaller number are among those of a greater one, whatever else is
    broken: a layer's tiles fail in an order that depends on the seed and the layer alone.

    Args:
        model: any module with :class:`RapaConv2d` layers.
        share: share of each layer's tiles, 0 to 1; the nearest number of tiles is taken (halves
            up), but one tile of each layer is left.
        count: instead of a share, the number of tiles: one for every layer, or by layer's name.
        kind, strength: see :class:`TileFault`.
        layers: names of the layers to break; None: all with tiles.
        seed: which tiles.

    Returns:
        The faults, layer by layer.

    Raises:
        ValueError, TypeError: naming the argument; also if neither or both of share and count are
            given.
    """
    tiled = rapa_layers(model)
    check_kind(kind, strength)
    check_int("seed", seed, low=0)
    if isinstance(layers, str):
        raise TypeError(f"layers: got {layers!r}, expected a sequence of names")
    chosen = list(tiled) if layers is None else list(layers)
    for name in (*chosen, *(count if isinstance(count, Mapping) else ())):
        _check_layer(model, tiled, name)
    if (share is None) == (count is None):
        raise ValueError(f"share, count: got {share} and {count}, expected one of them")
    if share is not None:
        check_real("share", share, low=0, high=1)
    faults = []
    for i, (name, layer) in enumerate(tiled.items()):
        if name not in chosen:
            continue
        if share is not None:
            n_faulty = min(int(share * layer.n_tiles + 0.5), layer.n_tiles - 1)
        else:
            n_faulty = count.get(name, 0) if isinstance(count, Mapping) else count
            check_int(f"count (layer {name!r})", n_faulty, low=0, high=layer.n_tiles)
        generator = torch.Generator().manual_seed(mix_seeds(seed, i))
        order = torch.randperm(layer.n_tiles, generator=generator)
        faults += [
            TileFault(name, tile, kind, strength, mix_seeds(seed, i, tile) % 2**31)
            for tile in sorted(order[:n_faulty].tolist())
        ]
    return tuple(faults)


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
        layer: _route_around(layer, name, broken, reroute)
        for name, (layer, broken) in by_layer.items()
    }
    with ExitStack() as stack:
        for layer, broken in by_layer.values():
            if routes[layer] is not None:
                stack.enter_context(living_tiles(layer, routes[layer], reroute))
            if not reroute:  # else nothing asks the faulty tiles
                seeds = {f.tile: f.seed for f in broken if f.kind == "stuck"}
                stack.enter_context(stuck_tiles(layer, seeds))
                factors = {f.tile: f.strength for f in broken if f.kind == "drifted"}
                stack.enter_context(drifted_tiles(layer, factors))
                strengths = {f.tile: f.strength for f in broken if f.kind == "noisy"}
                stack.enter_context(noisy_tiles(layer, strengths))
        yield model


@dataclass(frozen=True)
class TileDeaths:
    """Tiles that die while a network is trained: a hook to be called before each epoch.

    Made by :func:`dying_tiles`. What it does depends on the epoch alone, so that a training resumed
    at a later one begins with the same dead tiles.

    Args:
        deaths: (epoch, faults) in order; the faults' tiles are dead from that epoch on.
        reroute: whether the living tiles take their patches.
    """

    deaths: tuple[tuple[int, tuple[TileFault, ...]], ...]
    reroute: bool

    def __call__(self, model: nn.Module, epoch: int) -> None:
        """Let those tiles be dead that died in or before ``epoch``, from 1."""
        by_layer = faults_by_layer(model, [fault for _, faults in self.deaths for fault in faults])
        for name, (layer, _) in by_layer.items():
            dead = {f.tile for e, fs in self.deaths if e <= epoch for f in fs if f.layer == name}
            living = [tile for tile in range(layer.n_tiles) if tile not in dead]
            layer.set_living(living, reroute=self.reroute)


@contextmanager
def dying_tiles(
    model: nn.Module, deaths: Mapping[int, Sequence[TileFault]], *, reroute: bool = False
) -> Iterator[TileDeaths]:
    """Let tiles die in the course of a training; afterwards all live again.

    ::

        with dying_tiles(network, {3: faults}, reroute=True) as on_epoch:
            train(network, data, config, on_epoch=on_epoch)
            evaluate(network, data, scaling)  # the dead are still dead

    No patch reaches a dead tile, so its gradient is zero; momentum still carries its kernel some
    steps on, and weight decay shrinks it: nothing computes with it.

    Args:
        model: the network to be trained.
        deaths: by epoch, from 1, the tiles that die before it.
        reroute: whether the living tiles take the patches of the dead.

    Yields:
        The hook to be called with the model and the number of each epoch before it.

    Raises:
        ValueError, TypeError: as :func:`tile_faults`; also for another kind than ``"dead"``, and
            for layers that have dead tiles already.
    """
    check_bool("reroute", reroute)
    if not isinstance(deaths, Mapping):
        raise TypeError(f"deaths: got {type(deaths).__name__}, expected faults by epoch")
    plan = tuple((check_int("deaths", e, low=1), tuple(deaths[e])) for e in sorted(deaths))
    by_layer = faults_by_layer(model, [fault for _, faults in plan for fault in faults])
    for name, (layer, broken) in by_layer.items():
        for fault in broken:
            if fault.kind != "dead":
                raise ValueError(f"deaths: got kind {fault.kind!r}, allowed in training: dead")
        if len(layer.living_tiles) < layer.n_tiles:
            raise ValueError(f"deaths: layer {name!r} has dead tiles already")
        _route_around(layer, name, broken, reroute)
    with ExitStack() as stack:
        for layer, _ in by_layer.values():
            stack.enter_context(living_tiles(layer, layer.living_tiles, reroute))
        yield TileDeaths(plan, reroute)


def products_per_layer(model: nn.Module, input_size: tuple[int, ...]) -> dict[str, int]:
    """Count the products that one image costs each convolution in turn: its run time.

    Tiles work at once, so this is the greatest load of a living tile: ceil(L / n_living) where
    faulty tiles are rerouted around, and ceil(L / n_tiles) where a scheme draws anew and they are
    not. Ordinary convolutions take L products, perforated ones ceil(L / n_tiles).

    Args:
        model: any module; inside :func:`tile_faults`, the dead count as dead.
        input_size: shape (C, H, W) of one input.

    Returns:
        Products by layer name, in the model's order.

    Raises:
        ValueError: if the model does not run on that input.
    """
    sizes: dict[str, tuple[int, int]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, args, name=name: sizes.update({name: tuple(args[0].shape[-2:])})
        )
        for name, layer in model.named_modules()
        if isinstance(layer, RapaConv2d)
    ]
    try:
        # Assignments are drawn and thrown away: the caller's generator must not notice.
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            patches = count_patches(model, input_size)
    finally:
        for hook in hooks:
            hook.remove()
    products = {}
    for name, n_patches in patches.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, RapaConv2d):
            n_tiles = layer.n_tiles if isinstance(layer, PatchConv2d) else 1
            products[name] = -(-n_patches // n_tiles)
        elif not layer.living_tiles:
            products[name] = 0
        elif layer.redraws or layer.reroute:
            n_tiles = len(layer.living_tiles) if layer.reroute else layer.n_tiles
            products[name] = -(-n_patches // n_tiles)
        else:
            kept = layer.assignment(1, sizes[name])
            products[name] = int(torch.bincount(kept[kept >= 0]).max())
    return products


def _check_layer(model: nn.Module, tiled: Mapping[str, RapaConv2d], name: str) -> None:
    if name not in tiled:
        there = name in dict(model.named_modules())
        why = "a layer without tiles" if there else "no layer of the model"
        allowed = ", ".join(map(repr, tiled))
        raise ValueError(f"layer: got {name!r}, which is {why}; allowed: {allowed}")


def faults_by_layer(
    model: nn.Module, faults: Sequence[TileFault]
) -> dict[str, tuple[RapaConv2d, list[TileFault]]]:
    """Layers and their faults by name, checked against the model."""
    by_layer: dict[str, tuple[RapaConv2d, list[TileFault]]] = {}
    tiled = rapa_layers(model) if faults else {}
    for fault in faults:
        if not isinstance(fault, TileFault):
            raise TypeError(f"faults: got {fault!r}, expected TileFault")
        _check_layer(model, tiled, fault.layer)
        layer = tiled[fault.layer]
        check_int(f"tile (layer {fault.layer!r})", fault.tile, low=0, high=layer.n_tiles - 1)
        broken = by_layer.setdefault(fault.layer, (layer, []))[1]
        if any(fault.tile == other.tile for other in broken):
            raise ValueError(f"faults: tile {fault.tile} of layer {fault.layer!r} is named twice")
        broken.append(fault)
    return by_layer


def _route_around(
    layer: RapaConv2d, name: str, broken: Sequence[TileFault], reroute: bool
) -> list[int] | None:
    """The tiles that take patches; None if that changes nothing."""
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
