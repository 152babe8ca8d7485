"""Which tiles break, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rapa_lib._checks import Checked, check_choice, check_int, check_real, integer, text
from rapa_lib._seeds import mix_seeds
from rapa_lib.layers.conv import RapaConv2d

FAULT_KINDS = {"dead": None, "stuck": None, "drifted": "factor", "noisy": "relative deviation"}
"""Every kind of fault, and what its strength is; None where it has none."""


@dataclass(frozen=True)
class TileFault(Checked):
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

    layer: str = text(of="a layer's name")
    tile: int = integer(low=0)
    kind: str = "dead"
    strength: float | None = None
    seed: int = integer(0, low=0)

    def _check(self) -> None:
        object.__setattr__(self, "strength", check_kind(self.kind, self.strength))


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
            wanted = count.get(name, 0) if isinstance(count, Mapping) else count
            n_faulty = check_int(f"count (layer {name!r})", wanted, low=0, high=layer.n_tiles)
        generator = torch.Generator().manual_seed(mix_seeds(seed, i))
        order = torch.randperm(layer.n_tiles, generator=generator)
        faults += [
            TileFault(name, tile, kind, strength, mix_seeds(seed, i, tile) % 2**31)
            for tile in sorted(order[:n_faulty].tolist())
        ]
    return tuple(faults)


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
