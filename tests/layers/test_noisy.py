import pytest
import torch
from torch import nn

from rapa_lib import NoisyConv2d, frozen_draws, merge_tiles
from rapa_lib.layers.noisy import _MOMENTUM


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def layer_with(noise, **arguments):
    return NoisyConv2d(3, 4, 3, padding=1, noise=noise, **arguments)


def test_without_noise_it_is_an_ordinary_convolution():
    layer, x = layer_with(0, dtype=torch.double), torch.randn(5, 3, 6, 7, dtype=torch.double)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    assert torch.equal(layer(x), expected)
    assert not layer.redraws
    torch.testing.assert_close(layer.merged()(x), expected)


def test_noise_of_a_batch_has_the_asked_share_of_each_channels_deviation():
    layer, x = layer_with(0.5), torch.randn(64, 3, 16, 16)
    layer.weight.data[0] *= 10  # channels of different size
    clean = layer.merged()(x)
    noise = layer(x) - clean
    share = noise.std((0, 2, 3)) / clean.std((0, 2, 3))
    torch.testing.assert_close(share, torch.full((4,), 0.5), rtol=0.03, atol=0)
    assert noise.mean((0, 2, 3)).abs().max() < 0.03 * clean.std()
    flat = noise.flatten(1)
    assert flat[:, 0].var() > 0  # images and positions are disturbed independently
    assert torch.corrcoef(flat.T[:2])[0, 1].abs() < 0.5


def test_evaluation_uses_the_running_variance_and_leaves_it():
    layer, x = layer_with(0.5), 3 * torch.randn(64, 3, 16, 16)
    variance = layer.merged()(x).var((0, 2, 3), correction=0)
    layer(x)
    running = 1 + _MOMENTUM * (variance - 1)
    torch.testing.assert_close(layer.variance, running)
    layer.eval()
    noise = layer(x) - layer.merged()(x)
    torch.testing.assert_close(noise.std((0, 2, 3)), 0.5 * running.sqrt(), rtol=0.03, atol=0)
    torch.testing.assert_close(layer.variance, running)
    again = layer_with(0.5)
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again.variance, running)


def test_draws_follow_the_generator_and_can_be_frozen():
    layer, x = layer_with(1.0).eval(), torch.randn(2, 3, 6, 6)
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
    torch.manual_seed(3)
    assert torch.equal(one[0], layer(x)[0])
    assert layer(x[0]).shape == (4, 6, 6)


def test_noise_is_no_path_of_the_gradient():
    layer, x = layer_with(0.7, dtype=torch.double), torch.randn(2, 3, 4, 4, dtype=torch.double)
    layer.eval()
    with frozen_draws(layer, 1):
        assert torch.autograd.gradcheck(layer, x.requires_grad_())
    layer.train()(x).sum().backward()
    assert torch.allclose(layer.bias.grad, torch.full((4,), 32.0, dtype=torch.double))


def test_merging_takes_the_noise_away():
    model = nn.Sequential(layer_with(1.0), nn.ReLU()).eval()
    merged, x = merge_tiles(model), torch.randn(2, 3, 5, 5)
    assert type(merged[0]) is nn.Conv2d
    assert torch.equal(merged(x), merged(x))


@pytest.mark.parametrize(
    ("noise", "error", "message"),
    [
        (-0.1, ValueError, "noise: got -0.1, allowed: finite, at least 0"),
        (float("nan"), ValueError, "noise: got nan"),
        ("much", TypeError, "noise: got 'much', expected a number"),
    ],
)
def test_bad_noise_is_named(noise, error, message):
    with pytest.raises(error, match=message):
        layer_with(noise)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="input: got 2 channels, this layer takes 3"):
        layer_with(1.0)(torch.zeros(1, 2, 4, 4))
