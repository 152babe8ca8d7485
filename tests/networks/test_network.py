"""The network is the one that was asked for, and says what is wrong with an impossible one."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rapa_lib import (
    TILINGS,
    DropoutConv2d,
    MixedPool2d,
    NoisyConv2d,
    PerforatedConv2d,
    RapaConv2d,
    RapaConvNet,
    count_parameters,
    count_patches,
    frozen_draws,
    merge_tiles,
)
from rapa_lib.layers import TileNoiseConv2d
from rapa_lib.networks.kinds import CONTROLS
from rapa_lib.networks.pooling import POOLINGS
from rapa_lib.networks.shape import ACTIVATIONS, NORMALISATIONS

ALL = (*TILINGS, *CONTROLS)


def images(n=4, channels=3, height=32, width=32, seed=0):
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def parameters_by_hand(
    n_tiles, channels=(32, 32, 64), kernels=(5, 5, 5), in_channels=3, classes=10, size=(32, 32)
):
    """Kernels and biases of every tile, two numbers a normalised channel, the linear layer."""
    total = 0
    height, width = size
    for tiles, out, k in zip(n_tiles, channels, kernels, strict=True):
        total += tiles * (out * in_channels * k * k + out) + 2 * out
        in_channels, height, width = out, (height + 1) // 2, (width + 1) // 2
    return total + classes * (in_channels * height * width + 1)


# --- What is built ----------------------------------------------------------------------------


@pytest.mark.parametrize("tiling", ALL)
def test_every_tiling_builds_runs_and_trains_all_its_parameters(tiling):
    torch.manual_seed(0)
    network = RapaConvNet(tiling=tiling)
    logits = network(images(8))
    assert logits.shape == (8, 10)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        per_tile = parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[None]
        assert (per_tile.abs().sum(1) > 0).all(), f"{name}: a tile or row learns nothing"


@pytest.mark.parametrize("tiling", ALL)
def test_layers_are_of_the_kind_and_have_the_tiles_that_the_tiling_says(tiling):
    network = (
        RapaConvNet(tiling=tiling, n_tiles=(16, 4, 2), tile_init="identical")
        if tiling != "none"
        else RapaConvNet(tiling=tiling)
    )
    convolutions = [block[0] for block in network.features]
    if tiling in ("none", "enlarged", "noisy", "dropout"):
        kind = {"noisy": NoisyConv2d, "dropout": DropoutConv2d}.get(tiling, nn.Conv2d)
        assert [type(c) for c in convolutions] == [kind] * 3
        assert network.n_tiles == (1, 1, 1)
    elif tiling == "tile_noise":
        assert [type(c) for c in convolutions] == [TileNoiseConv2d] * 3
        assert [c.choices for c in convolutions] == [16, 4, 2] == list(network.n_tiles)
    else:
        kind = PerforatedConv2d if tiling == "perforated" else RapaConv2d
        assert [type(c) for c in convolutions] == [kind] * 3
        assert [c.n_tiles for c in convolutions] == [16, 4, 2] == list(network.n_tiles)
    if tiling in TILINGS and tiling != "none":
        assert {c.tiling for c in convolutions} == {tiling}
        assert {c.tile_init for c in convolutions} == {"identical"}
        assert all(torch.equal(c.weight[0], c.weight[-1]) for c in convolutions)
    assert network.tiling == tiling


def test_each_block_convolves_then_activates_then_normalises_then_pools():
    torch.manual_seed(0)
    network = RapaConvNet(tiling="none").eval()
    x = expected = images(3)
    for block in network.features:
        norm = block[2]
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        y = F.conv2d(expected, block[0].weight, block[0].bias, padding=2).relu()
        y = (y - norm.running_mean[:, None, None]) / (norm.running_var + 1e-5).sqrt()[:, None, None]
        expected = F.max_pool2d(y, 3, stride=2, padding=1)
    expected = expected.flatten(1) @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tiling", [t for t in TILINGS if t != "none"])
def test_tiled_network_is_its_tiles_and_nothing_else(tiling):
    """With equal tiles the assignment cannot matter: the merged network is the same function."""
    torch.manual_seed(0)
    network = RapaConvNet(tiling=tiling, tile_init="identical", normalisation="group").eval()
    x = images(3)
    torch.testing.assert_close(network(x), merge_tiles(network)(x), rtol=1e-4, atol=1e-5)


def test_tiles_that_differ_make_the_random_network_draw_lots_and_the_fixed_ones_not():
    x = images(3)
    for tiling, draws in {"random": True, "random_fixed": False, "image": False}.items():
        network = RapaConvNet(tiling=tiling).eval()
        assert (not torch.equal(network(x), network(x))) == draws
        with frozen_draws(network, 3):
            assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (32, [1024, 256, 64]),
        ((32, 32), [1024, 256, 64]),
        (28, [784, 196, 49]),
        ((9, 17), [153, 45, 15]),
        ((8, 64), [512, 128, 32]),
        (4, [16, 4, 1]),
    ],
)
@pytest.mark.parametrize("tiling", ["none", "random", "perforated"])
def test_patches_of_each_convolution(tiling, size, expected):
    network = RapaConvNet(1, 5, size, tiling=tiling, n_tiles=(4, 2, 1), channels=(2, 3, 4))
    height, width = (size, size) if isinstance(size, int) else size
    assert list(count_patches(network, (1, height, width)).values()) == expected
    assert network(images(2, 1, height, width)).shape == (2, 5)


@pytest.mark.parametrize(
    ("channels", "kernels", "n_tiles", "size"),
    [
        ((7,), (1,), (36,), (6, 6)),
        ((4, 5), (3, 7), (9, 4), (7, 9)),
        ((2, 3, 4, 5), (5, 3, 1, 3), (16, 8, 4, 1), (16, 16)),
    ],
)
def test_other_depths_kernels_and_channels(channels, kernels, n_tiles, size):
    arguments = {"n_tiles": n_tiles, "channels": channels, "kernel_sizes": kernels}
    network = RapaConvNet(2, 4, size, **arguments)
    convolutions = [block[0] for block in network.features]
    assert [c.out_channels for c in convolutions] == list(channels) == list(network.channels)
    assert [c.kernel_size for c in convolutions] == [(k, k) for k in kernels]
    assert network(images(3, 2, *size)).shape == (3, 4)
    by_hand = parameters_by_hand(n_tiles, channels, kernels, 2, 4, size)
    assert count_parameters(network) == by_hand


def test_lists_are_as_good_as_tuples():
    network = RapaConvNet(1, 2, [8, 6], n_tiles=[2, 1], channels=[2, 3], kernel_sizes=[3, 3])
    assert network(images(2, 1, 8, 6)).shape == (2, 2)
    assert (network.n_tiles, network.channels) == ((2, 1), (2, 3))


def test_default_network_has_a_parameter_count_known_by_hand():
    # 16·(32·75+32) + 4·(32·800+32) + (64·800+64) + 2·128 + 10·(1024+1)
    assert count_parameters(RapaConvNet()) == 38_912 + 102_528 + 51_264 + 256 + 10_250
    assert count_parameters(RapaConvNet()) == parameters_by_hand((16, 4, 1))


def test_none_takes_no_notice_of_n_tiles():
    assert count_parameters(RapaConvNet(tiling="none", n_tiles=(64, 9, 3))) == parameters_by_hand(
        (1, 1, 1)
    )


def test_count_parameters_leaves_out_what_is_not_trained():
    layer = nn.Linear(3, 4)
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 12


@pytest.mark.parametrize("tiling", ALL)
def test_a_network_of_shapes_alone_can_be_built(tiling):
    n_tiles = (1024, 256, 64)
    with torch.device("meta"):
        network = RapaConvNet(tiling=tiling, n_tiles=n_tiles)
    assert {p.device.type for p in network.parameters()} == {"meta"}


# --- Enlarged ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n_tiles",
    [(1, 1, 1), (2, 1, 1), (16, 4, 1), (64, 1, 1), (1, 1, 64), (128, 32, 8), (1024, 256, 64)],
)
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_enlarged_has_the_parameters_of_the_tiled_network(n_tiles, classes):
    with torch.device("meta"):
        network = RapaConvNet(3, classes, tiling="enlarged", n_tiles=n_tiles)
    target = parameters_by_hand(n_tiles, classes=classes)
    assert abs(count_parameters(network) - target) <= 0.02 * target
    growth = [c / c0 for c, c0 in zip(network.channels, (32, 32, 64), strict=True)]
    assert min(growth) >= 1
    assert max(growth) / min(growth) < 1.2  # all layers grow alike
    assert [c.out_channels for c, *_ in network.features] == list(network.channels)


def test_enlarged_with_one_tile_a_layer_is_the_ordinary_network():
    assert RapaConvNet(tiling="enlarged", n_tiles=(1, 1, 1)).channels == (32, 32, 64)


@pytest.mark.parametrize(
    ("size", "channels", "kernels", "n_tiles"),
    [
        ((28, 28), (16, 32), (5, 3), (49, 7)),
        ((16, 24), (8, 8, 8), (3, 3, 3), (16, 8, 4)),
        ((8, 8), (4, 4, 6), (3, 3, 3), (4, 2, 1)),
    ],
)
def test_enlarged_fits_other_shapes(size, channels, kernels, n_tiles):
    with torch.device("meta"):
        network = RapaConvNet(
            1, 7, size, tiling="enlarged", channels=channels, kernel_sizes=kernels, n_tiles=n_tiles
        )
    target = parameters_by_hand(n_tiles, channels, kernels, 1, 7, size)
    assert abs(count_parameters(network) - target) <= 0.02 * target


def test_enlarged_that_cannot_fit_says_so():
    # One channel more makes 4 numbers more: 8 lies between 6 and 10.
    arguments = {"channels": (1,), "kernel_sizes": (1,), "n_tiles": (2,)}
    with pytest.raises(ValueError, match=r"channels: .*\(1,\).* 2 % .*8 parameters .*\(2,\)"):
        RapaConvNet(1, 2, 2, tiling="enlarged", **arguments)


# --- Pooling, activation, normalisation -------------------------------------------------------


def pool_by_hand(x, how):
    """Windows of 3 × 3 around every second pixel, what lies outside the image left out."""
    n, channels, height, width = x.shape
    out = x.new_empty(n, channels, (height + 1) // 2, (width + 1) // 2)
    for i, j in itertools.product(range(out.shape[2]), range(out.shape[3])):
        rows, cols = (slice(max(0, 2 * k - 1), 2 * k + 2) for k in (i, j))
        window = x[:, :, rows, cols].flatten(2)
        out[:, :, i, j] = window.amax(2) if how == "max" else window.mean(2)
    return out


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 4)])
def test_poolings_against_loops(size):
    x = images(2, 3, *size) - 2  # mostly negative: a padded zero would be seen
    largest, mean = pool_by_hand(x, "max"), pool_by_hand(x, "avg")
    torch.testing.assert_close(POOLINGS["max"]()(x), largest)
    torch.testing.assert_close(POOLINGS["avg"]()(x), mean)
    torch.testing.assert_close(POOLINGS["mixed"]()(x), (largest + mean) / 2)


def test_mixed_pooling_weighs_maximum_against_average_and_learns_the_weight():
    x = images(2, 3, 8, 8)
    pool = MixedPool2d()
    with torch.no_grad():
        pool.logit.fill_(1.5)
    w = 1 / (1 + torch.tensor(-1.5).exp())
    largest, mean = pool_by_hand(x, "max"), pool_by_hand(x, "avg")
    torch.testing.assert_close(pool(x), w * largest + (1 - w) * mean)
    pool(x).sum().backward()
    by_hand = w * (1 - w) * (largest - mean).sum()
    torch.testing.assert_close(pool.logit.grad, by_hand, rtol=1e-4, atol=0)
    network = RapaConvNet(pooling="mixed")
    network(x := images(4)).square().sum().backward()
    logits = [p for name, p in network.named_parameters() if name.endswith("logit")]
    assert len(logits) == 3
    assert all(p.grad != 0 for p in logits)


@pytest.mark.parametrize(
    ("argument", "kinds"),
    [
        ("pooling", {"max": nn.MaxPool2d, "avg": nn.AvgPool2d, "mixed": MixedPool2d}),
        ("activation", {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}),
        ("normalisation", {"batch": nn.BatchNorm2d, "group": nn.GroupNorm, "none": nn.Identity}),
    ],
)
def test_choices_change_every_block_and_the_output(argument, kinds):
    place = {"activation": 1, "normalisation": 2, "pooling": 3}[argument]
    registered = {"pooling": POOLINGS, "activation": ACTIVATIONS, "normalisation": NORMALISATIONS}
    assert set(kinds) == set(registered[argument])
    outputs = []
    for name, kind in kinds.items():
        torch.manual_seed(0)
        network = RapaConvNet(tiling="none", **{argument: name})
        assert [type(block[place]) for block in network.features] == [kind] * 3
        outputs.append(network(images()))
    for one, other in itertools.combinations(outputs, 2):
        assert (one - other).abs().max() > 1e-3


# --- Errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels: got 0, allowed: at least 1"),
        ({"in_channels": 1.0}, TypeError, "in_channels: got 1.0, expected an integer"),
        ({"n_classes": 1}, ValueError, "n_classes: got 1, allowed: at least 2"),
        ({"n_classes": True}, TypeError, "n_classes: got True, expected an integer"),
        ({"n_classes": "10"}, TypeError, "n_classes: got '10', expected an integer"),
        ({"image_size": 0}, ValueError, "image_size: got 0, allowed: at least 1"),
        ({"image_size": -32}, ValueError, "image_size: got -32, allowed: at least 1"),
        ({"image_size": 32.0}, TypeError, "image_size: got 32.0, expected"),
        ({"image_size": None}, TypeError, "image_size: got None, expected"),
        ({"image_size": "32"}, TypeError, "image_size: got '32', expected"),
        ({"image_size": (32,)}, ValueError, r"image_size: got \(32,\), expected 2 numbers"),
        ({"image_size": (3, 32, 32)}, ValueError, r"image_size: got \(3, 32, 32\), expected 2"),
        ({"image_size": (32, 1.5)}, TypeError, "image_size: got 1.5, expected an integer"),
        ({"tiling": "Random"}, ValueError, "tiling: got 'Random', allowed: .*random.*perforated"),
        ({"tiling": None}, ValueError, "tiling: got None, allowed: none, image, .*enlarged"),
        ({"n_tiles": 16}, TypeError, "n_tiles: got 16, expected a sequence"),
        ({"n_tiles": None}, TypeError, "n_tiles: got None, expected a sequence"),
        ({"n_tiles": "16 4 1"}, TypeError, "n_tiles: got '16 4 1', expected a sequence"),
        ({"n_tiles": ()}, ValueError, r"n_tiles: got \(\), expected at least one"),
        ({"n_tiles": (16, 4)}, ValueError, r"n_tiles: got \(16, 4\), expected 3 numbers"),
        ({"n_tiles": (16, 4, 1, 1)}, ValueError, r"n_tiles: got .*, expected 3 numbers"),
        ({"n_tiles": (16, 0, 1)}, ValueError, "n_tiles: got 0, allowed: at least 1"),
        ({"n_tiles": (16, -4, 1)}, ValueError, "n_tiles: got -4, allowed: at least 1"),
        ({"n_tiles": (16, 4.0, 1)}, TypeError, "n_tiles: got 4.0, expected an integer"),
        ({"n_tiles": (16, True, 1)}, TypeError, "n_tiles: got True, expected an integer"),
        (
            {"n_tiles": (16, 257, 1)},
            ValueError,
            "n_tiles: got 257 for convolution 2, allowed: 1 to 256",
        ),
        (
            {"n_tiles": (1025, 4, 1), "tiling": "perforated"},
            ValueError,
            "n_tiles: got 1025 for convolution 1, allowed: 1 to 1024",
        ),
        (
            {"n_tiles": (16, 4, 65), "tiling": "enlarged"},
            ValueError,
            "n_tiles: got 65 for convolution 3, allowed: 1 to 64",
        ),
        (
            {"image_size": (3, 5), "n_tiles": (16, 1, 1)},
            ValueError,
            "n_tiles: got 16 for convolution 1, allowed: 1 to 15",
        ),
        ({"tile_init": "zeros"}, ValueError, "tile_init: got 'zeros', allowed: .*identical"),
        ({"channels": ()}, ValueError, r"channels: got \(\), expected at least one"),
        ({"channels": (32, 0, 64)}, ValueError, "channels: got 0, allowed: at least 1"),
        ({"channels": (32, 32.0, 64)}, TypeError, "channels: got 32.0, expected an integer"),
        ({"channels": 32}, TypeError, "channels: got 32, expected a sequence"),
        ({"kernel_sizes": (5, 4, 5)}, ValueError, r"kernel_sizes: got \(5, 4, 5\), allowed: odd"),
        ({"kernel_sizes": (5, 5)}, ValueError, r"kernel_sizes: got \(5, 5\), expected 3 numbers"),
        ({"kernel_sizes": (5, -1, 5)}, ValueError, "kernel_sizes: got -1, allowed: at least 1"),
        ({"kernel_sizes": 5}, TypeError, "kernel_sizes: got 5, expected a sequence"),
        ({"pooling": "min"}, ValueError, "pooling: got 'min', allowed: max, avg, mixed"),
        ({"activation": "elu"}, ValueError, "activation: got 'elu', allowed: relu, tanh, gelu"),
        (
            {"normalisation": "layer"},
            ValueError,
            "normalisation: got 'layer', allowed: batch, group, none",
        ),
        ({"noise": 0.5}, TypeError, "noise: got 0.5, expected a sequence"),
        ({"noise": (0.5, -1, 0)}, ValueError, "noise: got -1.0, allowed: finite, at least 0"),
        ({"dropout": 1.0}, ValueError, "dropout: got 1.0, allowed: finite, at least 0 and below 1"),
        ({"noise": (0.5,), "tiling": "noisy"}, ValueError, r"noise: got \(0.5,\), expected 3"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        RapaConvNet(**arguments)


def test_an_image_of_the_wrong_channels_is_refused():
    with pytest.raises(ValueError, match="got 1 channels, this layer takes 3"):
        RapaConvNet()(images(2, 1))


@pytest.mark.parametrize(
    "arguments",
    [{"image_size": 10**6}, {"channels": (10**9, 32, 64)}, {"n_tiles": (10**12, 4, 1)}],
)
def test_a_network_that_has_no_room_is_refused_with_numbers(arguments):
    arguments = {"image_size": 10**6} | arguments
    with pytest.raises(ValueError, match=r"image_size.*need [\d,.]+ GB of memory, allowed: the "):
        RapaConvNet(**arguments)


def test_a_network_without_memory_may_have_any_size():
    with torch.device("meta"):
        assert RapaConvNet(image_size=10**4).classifier.weight.is_meta
