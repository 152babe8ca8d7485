"""Kinds of network speak for themselves: what they heed, their tiles, whether a mean exists."""

import pytest
import torch
from tiny import SHAPE, same_bits, tiny_network

from rapa_lib import (
    TILINGS,
    DropoutConv2d,
    NoisyConv2d,
    PerforatedConv2d,
    RapaConv2d,
    register_tiling,
)
from rapa_lib.layers import TileNoiseConv2d
from rapa_lib.networks import CONTROLS, kind_names, network_kind
from rapa_lib.networks.kinds import Site

TILED = {"n_tiles", "tile_init", "tile_lr_power"}
# By name: settings that make a difference, one tile whatever n_tiles says, an expectation.
EXPECTED = {
    "none": (set(), True, False),
    "image": (TILED, False, False),
    "alternate": (TILED, False, False),
    "random": (TILED, False, True),
    "random_fixed": (TILED, False, False),
    "perforated": ({"n_tiles"}, False, False),
    "enlarged": ({"n_tiles"}, True, False),
    "noisy": ({"noise"}, True, False),
    "dropout": ({"dropout"}, True, False),
    "tile_noise": ({"n_tiles", "noise"}, False, False),
}


def test_every_kind_is_listed_here_in_the_study_s_order():
    assert list(kind_names()) == list(EXPECTED) == [*TILINGS, *CONTROLS]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_kind_says_what_it_is(name):
    kind = network_kind(name)
    assert kind.name == name
    assert (set(kind.heeds), kind.one_tile, kind.expectation) == EXPECTED[name]
    assert kind.enlarged == (name == "enlarged")


def test_an_unknown_kind_is_named_with_those_there_are():
    match = r"^tiling: got 'randon', allowed: none, image, .*dropout, tile_noise$"
    with pytest.raises(ValueError, match=match):
        network_kind("randon")


CHANGES = {
    "n_tiles": {"n_tiles": (8, 2, 1)},
    "tile_init": {"tile_init": "identical"},
    "noise": {"noise": (0.1, 0.2, 0.3)},
    "dropout": {"dropout": 0.3},
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("setting", CHANGES)
def test_what_a_kind_heeds_changes_its_network_and_nothing_else_does(name, setting):
    one, other = tiny_network(tiling=name), tiny_network(tiling=name, **CHANGES[setting])
    equal = str(one) == str(other) and same_bits(one.state_dict(), other.state_dict())
    assert equal == (setting not in network_kind(name).heeds)


@pytest.mark.parametrize("name", EXPECTED)
def test_only_tiles_that_learn_side_by_side_have_rates_of_their_own(name):
    layers = [type(block[0]) for block in tiny_network(tiling=name).features]
    assert ("tile_lr_power" in network_kind(name).heeds) == (layers[0] is RapaConv2d)


@pytest.mark.parametrize("name", EXPECTED)
def test_one_tile_is_one_whatever_is_asked_for(name):
    network = tiny_network(tiling=name)
    one_tile = network_kind(name).one_tile
    assert network.n_tiles == ((1, 1, 1) if one_tile else SHAPE["n_tiles"])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_kind_builds_the_convolution_of_a_site(name):
    site = Site(2, 5, 3, n_tiles=4, tile_init="identical", noise=0.25, dropout=0.5)
    layer = network_kind(name).build(site)
    assert layer(torch.zeros(1, 2, 6, 7)).shape == (1, 5, 6, 7)
    expected = {"perforated": PerforatedConv2d, "noisy": NoisyConv2d, "tile_noise": TileNoiseConv2d}
    expected["dropout"] = DropoutConv2d
    expected |= dict.fromkeys(("none", "enlarged"), torch.nn.Conv2d)
    assert type(layer) is expected.get(name, RapaConv2d)
    if type(layer) is RapaConv2d:
        assert (layer.tiling, layer.n_tiles, layer.tile_init) == (name, 4, "identical")
    if name == "perforated":
        assert layer.n_tiles == 4
    if name in ("noisy", "tile_noise"):
        assert layer.noise == 0.25
    if name == "dropout":
        assert layer.dropout == 0.5
    if name == "tile_noise":
        assert layer.choices == 4


# --- Tilings of somebody else -----------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch):
    """A copy of the registry, to which tests may add."""
    added = set(TILINGS)
    yield TILINGS
    for name in set(TILINGS) - added:
        del TILINGS[name]


def scheme(batch, height, width, n_tiles, generator):
    return (torch.arange(height * width) % n_tiles).expand(batch, -1)


@pytest.mark.parametrize("exchangeable", [False, True])
def test_a_registered_tiling_is_a_kind_and_says_whether_a_mean_exists(registry, exchangeable):
    register_tiling("mine", redraw=True, exchangeable=exchangeable)(scheme)
    kind = network_kind("mine")
    assert (kind.expectation, kind.one_tile, set(kind.heeds)) == (exchangeable, False, TILED)
    assert list(kind_names()) == [*list(EXPECTED)[:5], "mine", *CONTROLS]
    network = tiny_network(tiling="mine")
    assert network.features[0][0].tiling == "mine"
    assert network(torch.zeros(2, 2, 8, 8)).shape == (2, 3)


def test_a_tiling_is_not_exchangeable_unless_it_says_so(registry):
    register_tiling("mine", redraw=True)(scheme)
    assert not TILINGS["mine"].exchangeable
    assert [name for name, tiling in TILINGS.items() if tiling.exchangeable] == ["random"]


def test_what_does_not_draw_cannot_be_exchangeable(registry):
    with pytest.raises(ValueError, match=r"^exchangeable: got True, but the scheme does not draw"):
        register_tiling("mine", exchangeable=True)
    with pytest.raises(TypeError, match=r"^exchangeable: got 1, expected True or False"):
        register_tiling("mine", redraw=True, exchangeable=1)
    assert "mine" not in registry
