"""What does not fit is refused at the operators' door, on both paths in the same words."""

import re

import pytest
import torch
from torch import nn

from rapa_lib import RapaConv2d
from rapa_lib.analog import AnalogTileArray, _compiled
from rapa_lib.layers.products import compiled
from rapa_lib.layers.products import operators as ops
from rapa_lib.layers.products.gathered import Blocks


@pytest.fixture(autouse=True, params=["compiled", "gathered"])
def path(request, monkeypatch):
    torch.manual_seed(0)
    if request.param == "gathered":
        monkeypatch.setenv("RAPA_KERNELS", "off")
    elif compiled._library() is None:
        pytest.skip("no C++ compiler is here")


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape))


@pytest.mark.parametrize(
    ("tampering", "error", "message"),
    [
        ({"n_tiles": 8}, ValueError, "assignment: got tiles 0 to 7, allowed: -1 (no tile) to 3"),
        ({"weight": parameter(2, 4, 3, 3, 3)}, ValueError, "bias: got shape (4, 4), exp"),
        ({"weight": parameter(4, 4, 2, 3, 3)}, ValueError, "input: got shape (2, 3, 8, 8), e"),
        ({"weight": parameter(4, 4, 3, 1, 1)}, ValueError, "assignment: got shape (2, 36), exp"),
        ({"weight": parameter(4, 4, 27)}, ValueError, "weight: got shape (4, 4, 27), expected 5"),
        ({"bias": parameter(4, 4).double()}, TypeError, "bias: got torch.float64, but the input"),
        ({"bias": parameter(4, 1)}, ValueError, "bias: got shape (4, 1), expected (4, 4)"),
        ({"groups": 3}, ValueError, "groups: got 3, which does not divide 4 output channels"),
        ({"stride": (0, 1)}, ValueError, "stride: got (0, 1), allowed: two numbers of at least 1"),
        ({"_pads": (-1, 0, 0, 0)}, ValueError, "padding: got (-1, 0, 0, 0), allowed"),
    ],
)  # fmt: skip
def test_a_layer_tampered_with_is_refused(tampering, error, message):
    layer = RapaConv2d(3, 4, 3, n_tiles=4)
    assignment = None if "n_tiles" in tampering else layer.assignment(2, (8, 8))
    for name, value in tampering.items():
        if isinstance(value, torch.Tensor):
            value = nn.Parameter(value.detach())
        setattr(layer, name, value)
    if "stride" in tampering or "_pads" in tampering:
        with pytest.raises(error, match=re.escape(message)):
            ops.forward(
                torch.randn(2, 3, 8, 8), layer.weight, None, assignment, list(layer.stride),
                list(layer._pads), [1, 1], 1,
            )  # fmt: skip
        return
    with pytest.raises(error, match=re.escape(message)):
        layer(torch.randn(2, 3, 8, 8), assignment)


def test_derivatives_have_the_same_door():
    weight, assignment = torch.randn(4, 8, 3, 2, 2), torch.randint(0, 4, (2, 20))
    conv = ([1, 1], [0, 0, 0, 0], [1, 1], 1)
    with pytest.raises(ValueError, match=r"gradient: got shape \(2, 8, 5, 5\), expected"):
        ops.grad_input(torch.randn(2, 8, 5, 5), weight, assignment, [6, 5], *conv)
    with pytest.raises(ValueError, match="gradient: got shape"):
        ops.grad_weight(
            torch.randn(2, 8, 5, 4), torch.randn(2, 3, 7, 5), assignment, 4, [2, 2], *conv
        )
    with pytest.raises(ValueError, match=r"assignment: got tiles 0 to 3, allowed: .* to 1"):
        ops.grad_weight(
            torch.randn(2, 8, 5, 4), torch.randn(2, 3, 6, 5), assignment, 2, [2, 2], *conv
        )


def test_a_padded_image_that_has_no_room_is_refused_with_numbers():
    pads, assignment = [10**7] * 4, torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(
        ValueError, match=r"input: the result, and a padded image.* need [\d,.]+ GB"
    ):
        ops.forward(
            torch.randn(1, 3, 8, 8), torch.randn(1, 4, 3, 1, 1), None, assignment, [10**8] * 2,
            pads, [1, 1], 1,
        )  # fmt: skip


def test_views_that_are_negated_lazily_count_as_what_they_are():
    layer = RapaConv2d(3, 4, 3, n_tiles=4)
    x = torch.randn(2, 3, 8, 8, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assignment = layer.assignment(2, (8, 8))
    torch.testing.assert_close(layer(x, assignment), layer(x.resolve_neg(), assignment))


def test_a_tile_that_is_none_is_refused_where_values_are_not_looked_at():
    """As on a GPU."""
    with pytest.raises(ValueError, match=r"assignment: got tile 4, allowed: .* to 3"):
        Blocks.of(torch.tensor([[0, 1, 4, 2]]), 4)
    with pytest.raises(RuntimeError):
        Blocks.of(torch.tensor([[0, 1, -2, 2]]), 4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", parameter(1, 5, 7), "weight: got shape (1, 5, 7), expected (4, 5, 7)"),
        (
            "weight",
            nn.Parameter(torch.zeros(1, 5, 7).expand(4, 5, 7)),
            "weight: got an expanded tensor, expected a number for each device",
        ),
        ("n_tiles", 8, "weight: got shape (4, 5, 7), expected (8, 5, 7)"),
        ("w_max", torch.zeros(4, 5, 6), "w_max: got shape (4, 5, 6), expected (4, 5, 7)"),
        ("w_min", torch.zeros(4, 5, 7).double(), "w_min: got torch.float64, but the weight is"),
    ],
)
def test_analog_tiles_tampered_with_are_refused(name, value, message):
    tiles = AnalogTileArray(4, 7, 5)
    setattr(tiles, name, value)
    x, groups = torch.randn(9, 7), torch.arange(9) % 4
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        tiles.update(x, torch.randn(9, 5), 0.1, groups)


def test_analog_tiles_take_weights_of_any_layout():
    x, d, groups = torch.randn(9, 7), torch.randn(9, 5), torch.arange(9) % 4
    results = []
    for relay in (lambda t: t, lambda t: t.contiguous()):
        tiles = AnalogTileArray(4, 7, 5, seed=1)
        tiles.program(torch.linspace(-0.01, 0.01, 140).view(4, 5, 7))
        tiles.weight = nn.Parameter(relay(tiles.weight.detach()))
        tiles.w_max = relay(tiles.w_max)
        torch.manual_seed(1)
        results.append((tiles(x, groups), tiles.backward(d, groups)))
        tiles.update(x, d, 0.1, groups)
        if _compiled.serves(x):  # PyTorch draws in the order of the memory
            results[-1] += (tiles.read(),)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
