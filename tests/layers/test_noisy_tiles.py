"""One kernel with RAPA's noise: its covariance is that of tiles with the same deviations."""

import pytest
import torch
from torch import nn

from rapa_lib import RapaConv2d, frozen_draws
from rapa_lib.layers import TileNoiseConv2d


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def layer_with(noise=0.5, choices=4, **arguments):
    return TileNoiseConv2d(2, 3, 3, padding=1, choices=choices, noise=noise, **arguments)


def test_it_is_the_rapa_layer_whose_tiles_are_the_kernel_and_its_deviations():
    layer, x = layer_with(dtype=torch.double), torch.randn(5, 2, 4, 4, dtype=torch.double)
    tiles = RapaConv2d(2, 3, 3, padding=1, n_tiles=4, dtype=torch.double)
    with torch.no_grad():
        tiles.weight.copy_(layer.kernels())
        tiles.bias.copy_(layer.bias.expand(4, -1))
    with frozen_draws(layer, 3):
        found = layer(x)
    with frozen_draws(tiles, 3):
        torch.testing.assert_close(found, tiles(x))


def test_deviations_add_up_to_zero_and_have_the_size_that_is_asked_for():
    layer = layer_with(0.4, choices=16)
    layer.weight.data[0] *= 10
    deviations = layer.kernels() - layer.weight
    torch.testing.assert_close(deviations.sum(0), torch.zeros(3, 2, 3, 3), rtol=0, atol=1e-5)
    size = deviations.square().mean((0, 2, 3, 4)).sqrt()
    kernel = layer.weight.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(size, 0.4 * kernel)
    torch.testing.assert_close(layer_with(0.4, choices=16).deviations, layer.deviations)


def test_channels_share_the_choice_of_a_patch():
    layer, x = layer_with(choices=2), torch.randn(1, 2, 6, 6)
    noise = torch.stack([(layer(x) - layer.merged()(x))[0] for _ in range(40)]).flatten(2)
    signs = noise.sign()  # two choices: the noise of a patch is ± one vector
    agree = signs[:, 0] * signs[:, 1]
    assert ((agree == agree[0]) | (noise[:, 0].abs() < 1e-6)).all()
    assert (signs[:, 0].mean(0).abs() < 1).all()  # and the sign is drawn anew


def test_only_the_kernel_learns_and_its_gradient_is_that_of_a_convolution():
    layer, x = layer_with(), torch.randn(4, 2, 5, 5)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    weighting = torch.randn(4, 3, 5, 5)
    (layer(x) * weighting).sum().backward()
    plain = nn.functional.conv2d(x, weight := layer.weight.detach().requires_grad_(), padding=1)
    (plain * weighting).sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quiet", [{"noise": 0.0}, {"choices": 1}])
def test_without_noise_it_is_an_ordinary_convolution(quiet):
    layer, x = layer_with(**quiet), torch.randn(2, 2, 5, 5)
    assert not layer.redraws
    torch.testing.assert_close(layer(x), layer.merged()(x))
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="choices: got 0"):
        layer_with(choices=0)
    with pytest.raises(ValueError, match="noise: got -1"):
        layer_with(noise=-1)
