"""The locally connected layer against one dot product a position and channel."""

import pytest
import reference
import torch
from torch import nn

from rapa_lib.layers import LocallyConnected2d, RapaConv2d
from rapa_lib.layers.products import compiled

GEOMETRIES = [
    {},
    {"padding": 2, "kernel_size": 5},
    {"padding": (1, 0), "stride": (2, 1)},
    {"padding": "same", "dilation": (2, 1), "padding_mode": "circular"},
    {"groups": 2, "padding": 1, "bias": False},
]


@pytest.fixture(autouse=True, params=["compiled", "gathered"])
def path(request, monkeypatch):
    torch.manual_seed(0)
    if request.param == "gathered":
        monkeypatch.setenv("RAPA_KERNELS", "off")
    elif compiled._library() is None:
        pytest.skip("no C++ compiler is here")


def layer_of(**geometry):
    arguments = {"kernel_size": 3, "dtype": torch.double, "input_size": (6, 7)} | geometry
    return LocallyConnected2d(4, 6, **arguments)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_position_has_its_own_kernel(geometry):
    layer = layer_of(**geometry)
    x = torch.randn(3, 4, 6, 7, dtype=torch.double, requires_grad=True)
    height, width = layer.output_size((6, 7))
    positions = torch.arange(height * width).expand(3, -1)
    y, expected = layer(x), reference.tiled_conv2d(layer, x, positions)
    torch.testing.assert_close(y, expected)
    inputs, weights = (x, *layer.parameters()), torch.randn_like(y)
    for one, other in zip(
        torch.autograd.grad(y, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_it_is_unfold_and_a_product_for_each_position():
    layer, x = layer_of(padding=1), torch.randn(3, 4, 6, 7, dtype=torch.double)
    patches = nn.functional.unfold(x, 3, padding=1)
    y = torch.einsum("nkp,pok->nop", patches, layer.weight.flatten(2)) + layer.bias.t()
    torch.testing.assert_close(layer(x), y.view(3, 6, 6, 7))
    assert torch.equal(layer(x[1]), layer(x[1:2])[0])


def test_it_is_the_tiling_image_with_a_tile_for_each_patch():
    layer, x = layer_of(padding=1), torch.randn(3, 4, 6, 7, dtype=torch.double)
    tiled = RapaConv2d(4, 6, 3, padding=1, n_tiles=42, tiling="image", dtype=torch.double)
    tile_of = tiled.assignment(1, (6, 7))[0]
    assert len(tile_of.unique()) == 42
    layer.weight.data, layer.bias.data = tiled.weight.data[tile_of], tiled.bias.data[tile_of]
    torch.testing.assert_close(layer(x), tiled(x))


def test_kernels_differ_and_equal_ones_are_a_convolution():
    layer, x = layer_of(padding=1), torch.randn(3, 4, 6, 7, dtype=torch.double)
    assert len(layer.weight.flatten(1).unique(dim=0)) == 42
    bound = (4 * 3 * 3) ** -0.5
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    layer.weight.data[:], layer.bias.data[:] = layer.weight[:1].clone(), layer.bias[:1].clone()
    torch.testing.assert_close(layer(x), layer.merged()(x))
    assert not layer.redraws


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 6}, "input_size: got 6, expected"),
        ({"input_size": (6, 0)}, "input_size: got 0"),
        ({"input_size": (2, 7)}, "input: 2 × 7 pixels"),
        ({"groups": 3}, "groups: got 3"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        layer_of(**arguments)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="input: got images of 7 × 6, this layer takes 6 × 7"):
        layer_of()(torch.zeros(1, 4, 7, 6, dtype=torch.double))
    assert "input_size=(6, 7)" in repr(layer_of())
