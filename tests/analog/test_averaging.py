"""Averaging of analog tiles: what is read, what noise is left, what pulses can carry."""

from dataclasses import replace

import pytest
import torch

from rapa_lib.analog import (
    AnalogTileArray,
    NotFiniteError,
    average_tiles,
    ideal,
    read_tiles,
    rpu_baseline,
)

SHAPES = [(3, 5, 8), (3, 8, 5)]  # tiles, inputs, outputs: read by columns, and by rows


def tiles_of(shape, config=None, *, noise=0.0, size=0.1):
    """Tiles with small random weights, and a periphery that adds only that much noise."""
    config = rpu_baseline() if config is None else config
    quiet = {"out_noise": noise, "inp_res": 1e-6, "out_res": 1e-6}
    forward = replace(config.forward, **quiet)
    config = replace(config, forward=forward, backward=replace(config.backward, **quiet))
    torch.manual_seed(0)
    n_tiles, n_in, n_out = shape
    tiles = AnalogTileArray(n_tiles, n_in, n_out, config, seed=1)
    tiles.weight.data.uniform_(-size, size)
    return tiles


@pytest.mark.parametrize("shape", SHAPES)
def test_without_noise_what_is_read_is_what_is_there(shape):
    tiles = tiles_of(shape)
    torch.testing.assert_close(read_tiles(tiles), tiles.weight.detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reads", [1, 4])
def test_reading_noise_falls_with_the_root_of_the_reads(shape, reads):
    n_tiles, *sides = shape
    tiles = tiles_of((40 * n_tiles, *sides), noise=0.06)
    off = (read_tiles(tiles, reads) - tiles.weight.detach()).std()
    assert float(off) == pytest.approx(0.06 / reads**0.5, rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_programming_brings_all_tiles_to_their_mean(shape):
    tiles = tiles_of(shape)
    mean = tiles.weight.detach().mean(0)
    average_tiles(tiles)
    torch.testing.assert_close(
        tiles.weight.detach(), mean.expand(shape[0], -1, -1), rtol=0, atol=1e-4
    )


def test_programming_leaves_the_noise_of_a_mean_and_the_same_in_every_tile():
    tiles = tiles_of((16, 20, 20), noise=0.06)
    mean = tiles.weight.detach().mean(0)
    average_tiles(tiles)
    after = tiles.weight.detach()
    assert float((after == after.median(0).values).float().mean()) > 0.99  # few are out of bounds
    assert float((after[0] - mean).std()) == pytest.approx(0.06 / 4, rel=0.15)


def test_the_bounds_of_each_device_hold_without_a_warning():
    tiles = tiles_of((3, 6, 6))
    tiles.weight.data.fill_(2.0)
    average_tiles(tiles)
    assert torch.equal(tiles.weight.detach(), tiles.points().w_max.clamp(max=2.0))


@pytest.mark.parametrize("shape", SHAPES)
def test_pulses_go_to_the_mean_as_far_as_a_train_carries(shape):
    tiles = tiles_of(shape)
    before = tiles.weight.detach().clone()
    wanted = before.mean(0) - before
    average_tiles(tiles, write="pulses")
    moved = tiles.weight.detach() - before
    assert float(moved.abs().max()) < 31 * 0.001 * 3  # pulses, and their size in large devices
    assert float((moved * wanted).sum() / (moved.norm() * wanted.norm())) > 0.8
    for _ in range(20):
        average_tiles(tiles, write="pulses")
    spread = tiles.weight.detach() - tiles.weight.detach().mean(0)
    assert float(spread.norm()) < 0.1 * float(wanted.norm())


def test_pulses_keep_the_noise_of_their_own_tile():
    tiles = tiles_of((16, 20, 20), noise=0.02, size=0.0)
    average_tiles(tiles, write="pulses")
    own = tiles.weight.detach() - tiles.weight.detach().mean(0)
    assert 0.005 < float(own.std()) < 0.03


def test_ideal_devices_can_be_programmed_and_have_no_pulses():
    torch.manual_seed(0)
    tiles = AnalogTileArray(3, 5, 8, ideal())
    tiles.weight.data.uniform_(-0.1, 0.1)
    average_tiles(tiles)
    assert torch.equal(tiles.weight, tiles.weight[:1].expand_as(tiles.weight))
    with pytest.raises(ValueError, match=r"^device: got IdealDevice"):
        average_tiles(tiles, write="pulses")


def test_what_is_not_allowed_is_named():
    tiles = tiles_of((2, 3, 3))
    with pytest.raises(ValueError, match=r"^write: got 'ink', allowed: program, pulses"):
        average_tiles(tiles, write="ink")
    with pytest.raises(ValueError, match=r"^reads: got 0, allowed: at least 1"):
        read_tiles(tiles, 0)
    before = tiles.weight.detach().clone()
    tiles.weight.data[0, 0, 0] = torch.inf
    with pytest.raises(NotFiniteError):
        average_tiles(tiles)
    assert torch.equal(tiles.weight[1], before[1])
