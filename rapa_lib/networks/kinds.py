"""Kinds of convolution that the study's network is built of: every tiling, and its controls.

A kind says how its convolutions are built, whether they stand on one array, and which settings of a
network it heeds. Every registered tiling is a kind; a control is one entry of :data:`CONTROLS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rapa_lib._checks import check_choice
from rapa_lib.layers import (
    TILINGS,
    DropoutConv2d,
    NoisyConv2d,
    PerforatedConv2d,
    RapaConv2d,
    TileNoiseConv2d,
)


@dataclass(frozen=True)
class Site:
    """One convolution of a network to be built: its arguments, whatever kind it will be of.

    Args:
        in_channels, out_channels, kernel_size: as in ``Conv2d``; the padding keeps the size.
        n_tiles: its tiles.
        tile_init: how they start, see :class:`rapa_lib.RapaConv2d`.
        noise: relative noise on its outputs, see :class:`rapa_lib.NoisyConv2d`.
        dropout: probability that an output is dropped, see :class:`rapa_lib.DropoutConv2d`.
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    n_tiles: int
    tile_init: str
    noise: float
    dropout: float


@dataclass(frozen=True)
class Kind:
    """A kind of convolution.

    Args:
        name: what users call it, where a network takes a tiling.
        build: makes the convolution of a site.
        heeds: the settings, of ``n_tiles``, ``tile_init``, ``tile_lr_power``, ``noise`` and
            ``dropout``, that make a difference to its networks.
        one_tile: whether its convolutions have one tile whatever ``n_tiles`` says.
        enlarged: whether channels are raised until the parameters are those of ``n_tiles`` tiles.
        expectation: whether its function is random with a defined mean over assignments (see
            :class:`rapa_lib.layers.tiling.Tiling`).
    """

    name: str
    build: Callable[[Site], nn.Module]
    heeds: frozenset[str] = frozenset()
    one_tile: bool = True
    enlarged: bool = False
    expectation: bool = False


def _ordinary(site: Site) -> nn.Module:
    return nn.Conv2d(site.in_channels, site.out_channels, site.kernel_size, padding="same")


def _perforated(site: Site) -> nn.Module:
    return PerforatedConv2d(
        site.in_channels, site.out_channels, site.kernel_size, padding="same", n_tiles=site.n_tiles
    )


def _noisy(site: Site) -> nn.Module:
    return NoisyConv2d(
        site.in_channels, site.out_channels, site.kernel_size, padding="same", noise=site.noise
    )


def _dropout(site: Site) -> nn.Module:
    return DropoutConv2d(
        site.in_channels, site.out_channels, site.kernel_size, padding="same", dropout=site.dropout
    )


def _tile_noise(site: Site) -> nn.Module:
    return TileNoiseConv2d(
        site.in_channels, site.out_channels, site.kernel_size, padding="same",
        choices=site.n_tiles, noise=site.noise,
    )  # fmt: skip


CONTROLS = {
    "perforated": Kind("perforated", _perforated, frozenset({"n_tiles"}), one_tile=False),
    "enlarged": Kind("enlarged", _ordinary, frozenset({"n_tiles"}), enlarged=True),
    "noisy": Kind("noisy", _noisy, frozenset({"noise"})),
    "dropout": Kind("dropout", _dropout, frozenset({"dropout"})),
    "tile_noise": Kind("tile_noise", _tile_noise, frozenset({"n_tiles", "noise"}), one_tile=False),
}
"""Networks to compare tilings with; a network takes their names where it takes a tiling's."""

_ORDINARY = Kind("none", _ordinary)


def _tiled(tiling: str) -> Kind:
    def build(site: Site) -> nn.Module:
        return RapaConv2d(
            site.in_channels, site.out_channels, site.kernel_size, padding="same",
            n_tiles=site.n_tiles, tiling=tiling, tile_init=site.tile_init,
        )  # fmt: skip

    heeds = frozenset({"n_tiles", "tile_init", "tile_lr_power"})
    return Kind(tiling, build, heeds, one_tile=False, expectation=TILINGS[tiling].exchangeable)


def kind_names() -> tuple[str, ...]:
    """The names of all kinds, in the order in which the study names them."""
    return (*TILINGS, *CONTROLS)


def network_kind(name: str) -> Kind:
    """A kind by its name.

    Raises:
        ValueError: for an unknown name.
    """
    check_choice("tiling", name, kind_names())
    if name in CONTROLS:
        return CONTROLS[name]
    return _ORDINARY if name == _ORDINARY.name else _tiled(name)
