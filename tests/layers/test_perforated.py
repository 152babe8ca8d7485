import copy

import pytest
import torch
from reference import patches
from torch import nn

from rapa_lib import PerforatedConv2d, frozen_draws
from rapa_lib.layers.perforated import nearest_position
from rapa_lib.layers.products import gathered


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def slow_nearest(positions, height, width):
    """The first in row-major order among the nearest, one distance at a time."""
    answer = []
    for p in range(height * width):
        y, x = divmod(p, width)
        distances = [(y - q // width) ** 2 + (x - q % width) ** 2 for q in positions]
        answer.append(positions[distances.index(min(distances))])
    return answer


@pytest.mark.parametrize(("plane", "count"), [((5, 7), 1), ((6, 4), 5), ((8, 8), 64), ((1, 9), 3)])
def test_nearest_position_equals_the_slow_search(monkeypatch, plane, count):
    n_patches = plane[0] * plane[1]
    positions = torch.stack([torch.randperm(n_patches)[:count].sort().values for _ in range(4)])
    expected = [slow_nearest(row, *plane) for row in positions.tolist()]
    assert nearest_position(positions, *plane).tolist() == expected
    monkeypatch.setattr("rapa_lib.layers.perforated._DISTANCE_BYTES", 1)
    assert nearest_position(positions, *plane).tolist() == expected


@pytest.mark.parametrize(
    "geometry", [{}, {"padding": 1, "stride": 2}, {"groups": 2, "bias": False}], ids=str
)
@pytest.mark.parametrize("n_tiles", [2, 5, 20])
def test_equals_the_loop_over_computed_patches(geometry, n_tiles):
    layer = PerforatedConv2d(4, 6, 3, n_tiles=n_tiles, dtype=torch.double, **geometry)
    x = torch.randn(2, 4, 9, 11, dtype=torch.double, requires_grad=True)
    positions = layer.positions(2, (9, 11))
    height, width = layer.output_size((9, 11))
    assert positions.shape == (2, -(-height * width // n_tiles))
    full = layer.merged()
    rows = {}
    for image, position, patch in patches(
        x, layer.kernel_size, layer.stride, layer._pads, layer.dilation
    ):
        if position in positions[image].tolist():
            y = nn.functional.conv2d(patch[None], layer.weight, layer.bias, groups=layer.groups)
            rows[image, position] = y.flatten()
    expected = torch.stack(
        [
            torch.stack([rows[i, q] for q in slow_nearest(positions[i].tolist(), height, width)], 1)
            for i in range(2)
        ]
    ).view(2, 6, height, width)
    y = layer(x, positions)
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    for one, other in zip(
        torch.autograd.grad(y, (x, *layer.parameters()), weights),
        torch.autograd.grad(expected, (x, *layer.parameters()), weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(y, full(x))


def test_it_skips_the_compute(monkeypatch):
    """Patches that are gathered, forward and backward, are those that are computed."""
    n_rows = []
    real = gathered._gather
    monkeypatch.setenv("RAPA_KERNELS", "off")
    monkeypatch.setattr(
        gathered,
        "_gather",
        lambda geometry, padded, starts: (
            n_rows.append(len(starts)) or real(geometry, padded, starts)
        ),
    )
    layer = PerforatedConv2d(3, 4, 5, padding=2, n_tiles=16)
    layer(torch.randn(10, 3, 32, 32)).sum().backward()
    assert n_rows == [10 * 1024 // 16] * 2


def test_one_tile_computes_everything():
    layer = PerforatedConv2d(3, 4, 5, padding=2, n_tiles=1)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(layer(x), layer.merged()(x))
    everything = torch.arange(64).expand(2, -1)
    torch.testing.assert_close(layer(x, everything), layer.merged()(x))


def test_positions_are_drawn_per_image_and_uniformly():
    layer = PerforatedConv2d(1, 1, 1, n_tiles=3)
    positions = layer.positions(30_000, (4, 5))
    assert positions.shape == (30_000, 7)
    assert (positions.diff(dim=1) > 0).all()
    shares = torch.bincount(positions.flatten(), minlength=20) / 30_000
    assert (shares - 7 / 20).abs().max() < 5 * (0.25 / 30_000) ** 0.5
    torch.manual_seed(3)
    first = layer.positions(2, (4, 5))
    torch.manual_seed(3)
    assert torch.equal(first, layer.positions(2, (4, 5)))
    with frozen_draws(layer, seed=0):
        assert torch.equal(layer.positions(2, (4, 5)), layer.positions(2, (4, 5)))


def test_unbatched_copies_and_state():
    layer = PerforatedConv2d(3, 4, 3, n_tiles=4)
    x = torch.randn(3, 9, 9)
    positions = layer.positions(1, (9, 9))
    assert torch.equal(layer(x, positions), layer(x[None], positions)[0])
    assert torch.equal(copy.deepcopy(layer)(x, positions), layer(x, positions))
    conv = nn.Conv2d(3, 4, 3)
    conv.load_state_dict(layer.state_dict())
    assert torch.equal(conv.weight, layer.weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile():
    layer = PerforatedConv2d(3, 4, 3, n_tiles=4)
    x = torch.randn(2, 3, 9, 9)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PerforatedConv2d(3, 4, 3, n_tiles=0), ValueError, "n_tiles: got 0"),
        (lambda: PerforatedConv2d(3, 4, 3, n_tiles=1.5), TypeError, r"n_tiles: got 1\.5"),
        (
            lambda: PerforatedConv2d(3, 4, 3, n_tiles=5)(torch.zeros(1, 3, 4, 4)),
            ValueError,
            "n_tiles: got 5.*only 4 patches",
        ),
        (
            lambda: PerforatedConv2d(3, 4, 3)(torch.zeros(2, 3, 9, 9), torch.zeros(1, 3)),
            ValueError,
            r"positions: got shape \(1, 3\)",
        ),
        (
            lambda: PerforatedConv2d(3, 4, 3)(torch.zeros(1, 3, 9, 9), torch.tensor([[49]])),
            ValueError,
            "positions: got 49 to 49, allowed: 0 to 48",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
