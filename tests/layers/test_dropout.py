import math

import pytest
import torch
from torch import nn

from rapa_lib import DropoutConv2d, frozen_draws, merge_tiles


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def layer_with(dropout, **arguments):
    return DropoutConv2d(3, 4, 3, padding=1, dropout=dropout, **arguments)


@pytest.mark.parametrize("training", [True, False])
def test_without_dropout_it_is_an_ordinary_convolution(training):
    layer, x = layer_with(0, dtype=torch.double), torch.randn(5, 3, 6, 7, dtype=torch.double)
    state = torch.get_rng_state()
    expected = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    assert torch.equal(layer.train(training)(x), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_in_evaluation_nothing_is_dropped_and_nothing_drawn():
    layer, x = layer_with(0.7).eval(), torch.randn(2, 3, 6, 6)
    state = torch.get_rng_state()
    assert torch.equal(layer(x), layer.merged()(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert not layer.redraws


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.8])
def test_outputs_are_zero_or_divided_by_the_share_that_is_left(dropout):
    layer, x = layer_with(dropout), torch.randn(64, 3, 16, 16)
    clean, y = layer.merged()(x), layer(x)
    left = y != 0
    torch.testing.assert_close(y[left], clean[left] / (1 - dropout))
    spread = math.sqrt(dropout * (1 - dropout) / left.numel())
    assert abs(float(left.double().mean()) - (1 - dropout)) < 5 * spread
    flat = left.double().flatten(1)  # images, channels and positions independently
    assert 0 < flat.mean(0).var() < 3 * dropout * (1 - dropout) / 64
    assert not torch.equal(left[:, 0], left[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_over_draws_is_the_output_without_dropout(dtype):
    layer, x = layer_with(0.3), torch.randn(1, 3, 5, 5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        clean = layer.merged()(x)
        draws = torch.stack([layer(x) for _ in range(4000)])
        assert draws.dtype is dtype
    deviation = draws.double().std(0) / math.sqrt(4000)
    assert ((draws.double().mean(0) - clean.double()).abs() < 5 * deviation + 1e-6).all()


def test_before_a_rectifier_is_behind_it():
    layer, x = layer_with(0.4), torch.randn(4, 3, 6, 6)
    with frozen_draws(layer, 1):
        before = layer(x).relu()
        kept = layer(x) != 0
    behind = layer.merged()(x).relu() * kept / 0.6
    torch.testing.assert_close(before, behind)


def test_draws_follow_the_generator_and_can_be_frozen():
    layer, x = layer_with(0.5), torch.randn(2, 3, 6, 6)
    assert not torch.equal(layer(x), layer(x))
    with frozen_draws(layer, 1):
        first = layer(x)
        assert torch.equal(first, layer(x))
    with frozen_draws(layer, 2):
        assert not torch.equal(first, layer(x))
    torch.manual_seed(3)
    one = layer(x)
    torch.manual_seed(3)
    assert torch.equal(one, layer(x))
    assert layer(x[0]).shape == (4, 6, 6)


def test_what_is_dropped_learns_nothing():
    layer, x = layer_with(0.5, dtype=torch.double), torch.randn(2, 3, 4, 4, dtype=torch.double)
    with frozen_draws(layer, 1):
        assert torch.autograd.gradcheck(layer, x.clone().requires_grad_())
        y = layer(x)
        y.sum().backward()
    kept = (y != 0).double().sum((0, 2, 3)) / 0.5
    torch.testing.assert_close(layer.bias.grad, kept)


def test_merging_takes_the_dropout_away():
    merged, x = merge_tiles(nn.Sequential(layer_with(0.5), nn.ReLU())), torch.randn(2, 3, 5, 5)
    assert type(merged[0]) is nn.Conv2d
    assert torch.equal(merged.train()(x), merged(x))


@pytest.mark.parametrize(
    ("dropout", "error", "message"),
    [
        (-0.1, ValueError, "dropout: got -0.1, allowed: finite, at least 0 and below 1"),
        (1, ValueError, "dropout: got 1.0, allowed: finite, at least 0 and below 1"),
        (float("nan"), ValueError, "dropout: got nan"),
        ("much", TypeError, "dropout: got 'much', expected a number"),
    ],
)
def test_a_bad_rate_is_named(dropout, error, message):
    with pytest.raises(error, match=message):
        layer_with(dropout)
