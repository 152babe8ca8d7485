"""Phase-change memory: against aihwkit 1.2.0, against its formulas, and drift with compensation."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_analog_agreement import assert_agrees
from test_device_agreement import REFERENCE, reference
from tiny import same_bits, tiny_network
from torch import nn

from rapa_lib.analog import (
    AnalogSGD,
    AnalogTileArray,
    IOParameters,
    MappingParameters,
    PCMLikeNoiseModel,
    TileConfig,
    convert_to_analog,
    drift,
    rpu_baseline,
)
from rapa_lib.runtime import AnalogArrays

TIMES = {"programmed": None, "t25": 25, "t3600": 3600, "t86400": 86400, "t3.15e+07": 3.15e7}
DRAWS = 4000


def on_memory(weight, seed=0, **changes):
    """Tiles (T, M, K) on phase-change memory, read without converters and noise."""
    config = TileConfig(forward=IOParameters.perfect(), device=PCMLikeNoiseModel(**changes))
    tiles = AnalogTileArray(*(weight.shape[i] for i in (0, 2, 1)), config, seed=seed)
    tiles.program(weight)
    return tiles


@pytest.mark.skipif(not Path(REFERENCE).is_file(), reason="no reference beside the checkout")
@pytest.mark.parametrize("name", TIMES)
def test_conductances_have_the_means_and_spreads_of_the_reference(name):
    weight = reference()["pcm/w"]
    # One array of all draws, as the reference was measured: its largest weight sets the scale.
    tiles = on_memory(weight.expand(1, DRAWS, -1), drift_compensation=False)
    if TIMES[name] is not None:
        tiles.drift(TIMES[name], seed=1)
    mean, std = (reference()[f"pcm/{name}/{part}"].double() for part in ("mean", "std"))
    draws = tiles.read()[0].double()
    for some in (slice(0, None, 2), slice(1, None, 2)):  # looked at in building, and not
        assert_agrees(draws[:, some], mean[some], std[some], 4000, rounding=1e-6)


def test_without_noise_drift_is_a_power_law_that_compensation_undoes_for_like_devices():
    torch.manual_seed(0)
    weight = 0.5 * (2.0 * (torch.rand(2, 6, 8) > 0.5) - 1)  # all of the same magnitude
    quiet = {"prog_noise_scale": 0, "read_noise_scale": 0}
    tiles = on_memory(weight, drift_compensation=False, **quiet)
    torch.testing.assert_close(tiles.read(), weight)
    nu = torch.where(weight > 0, tiles._pairs.nu[0], tiles._pairs.nu[1])
    assert nu.mean() == pytest.approx(0.049, abs=0.005)
    tiles.drift(1000.0)
    torch.testing.assert_close(tiles.read(), weight * (1020 / 20) ** -nu)
    tiles.drift(1000.0)  # calls do not add up
    torch.testing.assert_close(tiles.read(), weight * (1020 / 20) ** -nu)
    tiles = on_memory(weight, **quiet)
    tiles.drift(1e6)
    y = tiles(torch.eye(8), torch.zeros(8, dtype=torch.long))
    assert y.abs().mean() == pytest.approx(0.5, rel=1e-4)
    assert tiles.read().abs().mean() < 0.35


def test_read_noise_grows_with_the_logarithm_of_time():
    model = PCMLikeNoiseModel()
    one = torch.full((100_000,), 25.0)
    normal = torch.randn_like(one)
    read = model.read(one, torch.zeros_like(one), 100.0, lambda: normal)
    wanted = 0.0088 * math.sqrt(math.log((120 + 250e-9) / 500e-9))
    assert (read / 25).std() == pytest.approx(wanted, rel=0.01)


def test_the_noise_of_reading_hardly_moves_the_compensation():
    torch.manual_seed(0)
    weight = 0.05 * torch.randn(3, 20, 60)
    weight[:, 0, 0] = 1.0  # the others are small beside it, and beside the noise of one read
    factors = []
    for forward in (IOParameters.perfect(), IOParameters()):
        config = TileConfig(forward=forward, device=PCMLikeNoiseModel(read_noise_scale=0))
        tiles = AnalogTileArray(3, 60, 20, config, seed=0)
        tiles.program(weight)
        tiles.drift(3.15e7)
        factors.append(tiles._pairs.compensation)
    assert (factors[0] > 1.5).all()
    torch.testing.assert_close(factors[1], factors[0], rtol=0.05, atol=0)


def network_on_memory(seed=3, **mapping):
    torch.manual_seed(0)
    config = replace(
        rpu_baseline(), device=PCMLikeNoiseModel(), mapping=MappingParameters(**mapping)
    )
    return convert_to_analog(tiny_network(), config, seed=seed)


@pytest.mark.parametrize("mapping", [{}, {"arrays": AnalogArrays(max_size=16)}])
def test_networks_drift_by_their_seed(mapping):
    network = network_on_memory(**mapping)
    assert same_bits(network.state_dict(), network_on_memory(**mapping).state_dict())
    other = network_on_memory(seed=4, **mapping)
    assert not same_bits(network.state_dict(), other.state_dict())
    fresh = copy.deepcopy(network)
    for one in (network, fresh):
        torch.manual_seed(0)
        assert drift(one, 3600.0, seed=1) is one
    assert same_bits(network.state_dict(), fresh.state_dict())
    weights = [tiles.weight.clone() for tiles in network.modules() if hasattr(tiles, "drift")]
    drift(network, 3600.0, seed=2)
    after = [tiles.weight for tiles in network.modules() if hasattr(tiles, "drift")]
    assert not any(map(torch.equal, weights, after))


@pytest.mark.parametrize("mapping", [{}, {"arrays": AnalogArrays(max_size=16)}])
def test_seeds_alone_decide_what_is_written_and_compensated(mapping):
    """Whatever was drawn before: a resumed run has drawn less than one that was not stopped."""
    found = []
    for drawn_before in (1, 2):
        torch.manual_seed(0)
        network = tiny_network()
        torch.manual_seed(drawn_before)
        config = replace(
            rpu_baseline(), device=PCMLikeNoiseModel(), mapping=MappingParameters(**mapping)
        )
        placed = drift(convert_to_analog(network, config, seed=3), 3600.0, seed=1)
        tiles = [one for one in placed.modules() if isinstance(one, AnalogTileArray)]
        found.append([(one.weight, one._pairs.compensation) for one in tiles])
    assert len(found[0]) == len(found[1]) > 1
    for (weight, factor), (again, its_factor) in zip(*found, strict=True):
        assert torch.equal(weight, again)
        assert torch.equal(factor, its_factor)
        assert not torch.equal(factor, torch.ones_like(factor))


def test_memory_is_not_trained_and_what_is_not_allowed_is_named():
    network = network_on_memory()
    before = copy.deepcopy(network.state_dict())
    network.eval()
    network(torch.randn(4, 2, 8, 8)).sum().backward()
    assert not any(layer._pending for layer in network.modules() if hasattr(layer, "_pending"))
    tiles = next(layer for layer in network.modules() if isinstance(layer, AnalogTileArray))
    AnalogSGD(tiles, lr=0.1).step()
    assert same_bits(before, network.state_dict())
    with pytest.raises(ValueError, match="got PCMLikeNoiseModel, for inference"):
        tiles.update(torch.ones(1, tiles.in_features), torch.ones(1, tiles.out_features), 0.1)
    with pytest.raises(ValueError, match="t_inference: got -1"):
        drift(network, -1.0)
    with pytest.raises(ValueError, match="model: it has no layer on phase-change memory"):
        drift(nn.Linear(2, 2), 1.0)
    with pytest.raises(ValueError, match="device: got ConstantStepDevice, allowed: PCM"):
        AnalogTileArray(1, 2, 3).drift(1.0)
    with pytest.raises(ValueError, match="g_max: got 0"):
        PCMLikeNoiseModel(g_max=0)
    config = TileConfig(device=PCMLikeNoiseModel(prog_coeff=[0.1, 0.2]))
    assert TileConfig.from_yaml(config.to_yaml()).device == config.device
