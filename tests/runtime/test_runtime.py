"""Run time on analog arrays: counted as by hand, shared out as by trying everything."""

import dataclasses
import itertools
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torchvision import models

from rapa_lib import PerforatedConv2d, RapaConv2d, RapaConvNet, convert_to_rapa
from rapa_lib.experiments.acceleration.networks import count_networks
from rapa_lib.runtime import (
    SCHEDULES,
    AnalogArrays,
    LayerShape,
    NetworkLayers,
    balance_tiles,
    count_layers,
    reachable_speedup,
    roofline_table,
    run_time,
)
from rapa_lib.runtime._knapsack import Choices, cheapest

ATTENTION = ("vit_", "swin_", "maxvit_")
CNNS = [n for n in models.list_models(module=models) if not n.startswith(ATTENTION)]


def layer(patches, *, per_tile=1, can_tile=True, name="a", **changes):
    """A layer of which one tile takes ``per_tile`` arrays of 1 × 1."""
    patches = (patches,) if isinstance(patches, int) else tuple(patches)
    plain = LayerShape(
        name, "Conv2d" if can_tile else "Linear", patches, per_tile, 1, 1, False, 1, can_tile, 1, 1
    )
    return dataclasses.replace(plain, **changes)


def network(*layers):
    named = (dataclasses.replace(one, name=f"l{i}") for i, one in enumerate(layers))
    return NetworkLayers((1,), tuple(named), ())


TINY = AnalogArrays(1)  # arrays of one cross-point: a tile takes as many as it has weights


# --- counting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tiling", ["random", "none"])
def test_the_papers_network_by_hand(tiling):
    model = RapaConvNet(tiling=tiling, n_tiles=(16, 4, 1))
    found = run_time(
        model, (3, 32, 32), n_tiles={f"features.{i}.0": n for i, n in enumerate((16, 4, 1))}
    )
    assert found.layers == run_time(model, (3, 32, 32)).layers or tiling == "none"
    table = found.table()
    assert table["patches"].tolist() == [1024, 256, 64, 1]
    assert table["products"].tolist() == [64, 64, 64, 1]
    assert table["speedup"].tolist() == [16, 4, 1, 1]
    assert table["rows"].tolist() == [3 * 25, 32 * 25, 32 * 25, 64 * 4 * 4]
    assert table["columns"].tolist() == [32, 32, 64, 10]
    assert table["arrays"].tolist() == [16, 4 * 2, 2, 2]
    assert table["forward_us"].tolist() == pytest.approx([64 * 0.08] * 3 + [0.08])
    assert found.speedup() == 16
    assert found.speedup("sequential") == (1024 + 256 + 64 + 1) / (3 * 64 + 1)
    assert found.time_us() == pytest.approx(64 * 0.24)
    assert found.time_us("sequential", training=False) == pytest.approx(193 * 0.08)
    assert found.bottleneck.layer.name == "features.0.0"
    assert found.cross_points == 28 * 512 * 512
    used = 16 * 75 * 32 + 4 * 800 * 32 + 800 * 64 + 1024 * 10
    assert found.utilisation == used / found.cross_points


@pytest.mark.parametrize(
    ("tiling", "speedup", "arrays"), [("none", 1, 7), ("random", 16, 28), ("perforated", 16, 7)]
)
def test_the_controls_speed_up_as_much_as_they_promise(tiling, speedup, arrays):
    found = run_time(RapaConvNet(tiling=tiling, n_tiles=(16, 4, 1)), (3, 32, 32))
    assert (found.speedup(), found.arrays) == (speedup, arrays)


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 1},
    {"kernel_size": (5, 3), "padding": (2, 0), "stride": (1, 2)},
    {"kernel_size": 3, "stride": 3, "dilation": 2, "padding": 4},
    {"kernel_size": 3, "groups": 2, "padding": 1},
    {"kernel_size": 3, "groups": 6, "stride": 2, "bias": False},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
]


@pytest.mark.parametrize("kind", [nn.Conv2d, RapaConv2d])
@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
def test_patches_and_matrices_against_unfold(kind, arguments):
    conv = kind(6, 12, **arguments, **({"n_tiles": 4} if kind is RapaConv2d else {}))
    (found,) = count_layers(nn.Sequential(nn.Identity(), conv), (6, 13, 17)).layers
    # What an array is given: the columns of the unfolded image, one after the other.
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same":
        pads = [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    else:
        pads = [conv.padding[1]] * 2 + [conv.padding[0]] * 2
    image = F.pad(torch.zeros(1, 6, 13, 17), pads)
    columns = F.unfold(image, conv.kernel_size, conv.dilation, stride=conv.stride)[0]
    assert found.patches == (columns.shape[1],)
    assert found.rows * found.groups == columns.shape[0]
    assert found.columns * found.groups == 12
    assert found.weights == conv.weight[0].numel() * (1 if kind is RapaConv2d else 12)
    assert (found.bias, found.inputs) == (conv.bias is not None, 6 * 13 * 17)
    assert found.outputs == 12 * columns.shape[1]
    assert found.n_tiles == (4 if kind is RapaConv2d else 1)


@pytest.mark.parametrize("name", CNNS)
def test_every_torchvision_cnn_has_its_published_multiplications_and_parameters(name):
    published = next(iter(models.get_model_weights(name)))
    network = count_networks([name], published.transforms.keywords["crop_size"])[name]
    macs = sum(one.macs for one in network.layers)
    assert macs / 1e9 == pytest.approx(published.meta["_ops"], abs=0.00051)
    counted = sum(one.weights + one.bias * one.columns * one.groups for one in network.layers)
    others = sum(other.n_parameters for other in network.uncounted)
    auxiliary = [other for other in network.uncounted if "aux" in other.name.lower()]
    for other in network.uncounted:
        assert other.reason == "digital" or (other in auxiliary and other.reason == "not called")
    # The published GoogLeNet comes without its auxiliary classifiers.
    without = counted + others - sum(other.n_parameters for other in auxiliary)
    assert published.meta["num_params"] in (counted + others, without)
    # ConvNeXt has its 1 × 1 convolutions as linear layers, which RAPA does not tile.
    target = min(10, reachable_speedup(network))
    assert target == 10 or name.startswith("convnext")
    tiles = balance_tiles(network, target_speedup=target)
    assert run_time(network, n_tiles=tiles).speedup() >= target


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "swin_v2_t", "maxvit_t"])
def test_attention_is_listed(name):
    network = count_networks([name], 256 if name == "swin_v2_t" else 224)[name]
    left = network.uncounted_table().query("reason != 'digital'")
    assert left["layer"].str.contains("attn|attention").any()
    assert set(left["reason"]) <= {"unknown type", "not called"}


def test_linear_layers_see_a_vector_each():
    model = nn.Sequential(nn.Linear(8, 4), nn.Flatten(), nn.Linear(20, 3))
    first, second = count_layers(model, (5, 8)).layers
    assert (first.patches, first.rows, first.columns, first.max_tiles) == ((5,), 8, 4, 1)
    assert (second.patches, second.rows, second.columns) == ((1,), 20, 3)
    assert run_time(model, (5, 8), n_tiles=4).products("sequential") == 6


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.again = self.conv

    def forward(self, x):
        return self.again(F.max_pool2d(self.conv(x), 2))


def test_each_use_of_a_shared_layer_counts():
    (shared,) = count_layers(Twice(), (2, 7, 7)).layers
    assert (shared.name, shared.patches, shared.max_tiles) == ("conv", (49, 9), 9)
    found = run_time(Twice(), (2, 7, 7), n_tiles=20)  # lowered to 9
    assert found.products() == 6 + 1
    assert found.layers[0].speedup == 58 / 7
    rapa = convert_to_rapa(Twice(), {"conv": 9}, input_size=(2, 7, 7))
    assert rapa(torch.zeros(1, 2, 7, 7)).shape == (1, 2, 3, 3)


class Crops(nn.Module):
    """Looks at the four quarters of an image as a batch of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.conv(x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 1, 4, 4))


def test_a_batch_inside_the_network_is_so_many_uses():
    assert count_layers(Crops(), (1, 8, 8)).layers[0].patches == (16,) * 4


class Assorted(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.PReLU(4)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.line = nn.Conv1d(1, 1, 3)
        self.never = nn.Conv2d(1, 1, 1)
        self.table = nn.Embedding(10, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.mixed = nn.ParameterList([torch.zeros(2, 2)])
        self.scale = Scale()
        self.head = parametrizations.weight_norm(nn.Linear(4, 2))

    def forward(self, x):
        x = self.scale(self.act(self.norm(self.up(self.conv(x)))))
        x = x.flatten(2).transpose(1, 2)
        return self.head(x + self.attention(x, x, x)[0])


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return self.gamma * x


def test_what_is_in_no_count_is_listed():
    network = count_layers(Assorted(), (3, 8, 8))
    assert [(one.name, one.patches) for one in network.layers] == [("conv", (36,)), ("head", (49,))]
    listed = network.uncounted_table().set_index("layer")
    assert listed["reason"].to_dict() == {
        "norm": "digital",
        "act": "digital",
        "scale": "digital",
        "up": "unknown type",
        "line": "unknown type",
        "table": "unknown type",
        "attention": "unknown type",
        "mixed": "unknown type",
        "attention.out_proj": "not called",
        "never": "not called",
    }
    assert listed.loc["line", ["kind", "n_parameters"]].tolist() == ["Conv1d", 4]
    assert run_time(Assorted(), (3, 8, 8)).uncounted == network.uncounted


def test_only_what_convert_to_rapa_takes_can_be_tiled():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 1, 3)), nn.Conv2d(1, 1, 3))
    assert [one.can_tile for one in count_layers(model, (1, 9, 9)).layers] == [False, True]
    assert balance_tiles(model, (1, 9, 9), max_products=49) == {"1": 1}


def test_perforated_convolutions_compute_fewer_patches_on_one_tile():
    model = nn.Sequential(PerforatedConv2d(1, 2, 3, n_tiles=4), nn.Conv2d(2, 2, 1))
    first, second = run_time(model, (1, 7, 7)).layers
    assert (first.n_tiles, first.layer.can_tile, first.arrays) == (1, False, 1)
    assert (first.products, first.speedup, first.layer.macs) == (7, 25 / 7, 7 * 9 * 2)
    assert (second.products, second.speedup) == (25, 1)
    assert balance_tiles(model, (1, 7, 7), target_speedup=25 / 7) == {"1": 4}
    with pytest.raises(ValueError, match=r"layer '0' \(PerforatedConv2d\) takes at least 7"):
        balance_tiles(model, (1, 7, 7), max_products=6)


class Moody(nn.Module):
    """Its path depends on values: shapes alone cannot run it."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() == 0 else self.other(x)


def test_a_model_that_needs_values_is_run_on_zeros():
    network = count_layers(Moody(), (1, 5, 5))
    assert [one.name for one in network.layers] == ["conv"]
    with pytest.raises(ValueError, match=r"input_size: the model fails on \(1, 5, 5\)"):
        count_layers(Moody().to("meta"), (1, 5, 5))


@pytest.mark.parametrize("make", [RapaConvNet, Moody])
def test_counting_leaves_model_and_random_numbers_alone(make):
    model = make().train()
    size = (3, 32, 32) if make is RapaConvNet else (1, 5, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    count_layers(model, size)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_models_on_the_meta_device_and_of_other_types_count_the_same():
    usual = count_layers(RapaConvNet(tiling="none"), (3, 32, 32))
    assert count_layers(RapaConvNet(tiling="none").to("meta"), (3, 32, 32)) == usual
    assert count_layers(RapaConvNet(tiling="none").to(torch.bfloat16), (3, 32, 32)) == usual
    assert count_layers(RapaConvNet(tiling="none").double(), (3, 32, 32)) == usual


def test_a_model_that_fails_tells_its_own_error_and_the_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"fails on \(3, 6, 6\): mat1 and mat2 shapes"):
        count_layers(model, (3, 6, 6))
    with pytest.raises(ValueError, match=r"networks: inception_v3: .*\(3, 32, 32\)"):
        count_networks(["inception_v3"], 32)


# --- arrays and time ----------------------------------------------------------------------------


def arrays_by_cutting(rows, columns, groups, size):
    """Cut each group's matrix into blocks, one after the other."""
    blocks = 0
    for _ in range(groups):
        for _ in range(0, rows, size[0]):
            for _ in range(0, columns, size[1]):
                blocks += 1
    return blocks


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (27, 8), (28, 8), (26, 9), (1000, 1000)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_arrays_by_cutting_matrices(size, groups):
    conv = nn.Conv2d(12, 32, 3, groups=groups)
    found = run_time(conv, (12, 9, 9), n_tiles=3, hardware=AnalogArrays(size)).layers[0]
    rows, columns = 108 // groups, 32 // groups
    assert found.arrays == 3 * arrays_by_cutting(rows, columns, groups, size)
    assert found.used_cross_points == 3 * rows * columns * groups
    assert found.utilisation == found.used_cross_points / (found.arrays * size[0] * size[1])
    if size == (1, 1):
        assert found.arrays == 3 * conv.weight.numel()
        assert found.utilisation == 1


def test_a_bias_on_the_array_is_one_more_row():
    conv = nn.Conv2d(2, 4, 4)
    assert run_time(conv, (2, 9, 9), hardware=AnalogArrays(32)).arrays == 1
    with_bias = run_time(conv, (2, 9, 9), hardware=AnalogArrays(32, analog_bias=True))
    assert (with_bias.arrays, with_bias.used_cross_points) == (2, 33 * 4)
    bare = nn.Conv2d(2, 4, 4, bias=False)
    assert run_time(bare, (2, 9, 9), hardware=AnalogArrays(32, analog_bias=True)).arrays == 1


@pytest.mark.parametrize(
    ("size", "arrays"), [((64, 64), 2), ((9, 1), 10), ((8, 1), 20), ((27, 2), 5), ((90, 10), 1)]
)
def test_groups_can_share_arrays_along_the_diagonal(size, arrays):
    depthwise = nn.Conv2d(10, 10, 3, groups=10)  # ten matrices of 9 × 1
    packed = AnalogArrays(size, pack_groups=True)
    assert run_time(depthwise, (10, 9, 9), hardware=packed).arrays == arrays
    own = run_time(depthwise, (10, 9, 9), hardware=AnalogArrays(size))
    assert own.arrays == arrays_by_cutting(9, 1, 10, size)
    assert own.products() == 49


@pytest.mark.parametrize("n_tiles", [1, 2, 3, 7, 48, 49])
def test_products_where_tiles_do_not_divide_patches(n_tiles):
    found = run_time(nn.Conv2d(1, 1, 3), (1, 9, 9), n_tiles=n_tiles)
    # Deal the patches out one by one: the fullest tile takes the time.
    piles = [0] * n_tiles
    for patch in range(49):
        piles[patch % n_tiles] += 1
    assert found.products() == max(piles)


def test_time_is_products_times_cycles():
    hardware = AnalogArrays(forward_ns=10, backward_ns=20, update_ns=70)
    found = run_time(
        nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)), (1, 8, 8), hardware=hardware
    )
    assert found.time_us("pipelined") == pytest.approx(36 * 0.1)
    assert found.time_us("sequential") == pytest.approx((36 + 16) * 0.1)
    assert found.time_us("sequential", training=False) == pytest.approx((36 + 16) * 0.01)
    table = found.table()
    assert table["backward_us"].tolist() == pytest.approx([0.72, 0.32])
    assert table["update_us"].tolist() == pytest.approx([2.52, 1.12])
    assert found.layers[1].time_us() == pytest.approx(1.6)


def test_one_number_is_lowered_and_names_are_held_to_patches():
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(16, 2))
    tiles = [one.n_tiles for one in run_time(model, (1, 8, 8), n_tiles=20).layers]
    assert tiles == [20, 16, 1]
    with pytest.raises(ValueError, match=r"n_tiles\['1'\]: got 17, allowed: 1 to 16"):
        run_time(model, (1, 8, 8), n_tiles={"1": 17})
    with pytest.raises(ValueError, match=r"n_tiles: no convolution that ran is called '3'.* 0, 1"):
        run_time(model, (1, 8, 8), n_tiles={"3": 1})


def test_roofline_by_hand():
    conv = nn.Conv2d(2, 4, 3, bias=False)
    macs, weights, moved = 16 * 18 * 4, 72, 2 * 36 + 4 * 16
    table = roofline_table(conv, (2, 6, 6), flops_per_s=1e9, bytes_per_s=1e12)
    assert table.loc[0, ["macs", "bytes", "bound"]].tolist() == [
        macs,
        4 * (weights + moved),
        "compute",
    ]
    assert table["time_us"][0] == pytest.approx(2 * macs / 1e3)
    slow = roofline_table(
        conv, (2, 6, 6), flops_per_s=1e15, bytes_per_s=1e9, bytes_per_number=2, batch_size=8,
        training=True,
    )  # fmt: skip
    assert slow["bound"][0] == "memory"
    assert slow["time_us"][0] == pytest.approx(3 * 2 * (weights / 8 + moved) / 1e3)
    assert slow["macs"][0] == 3 * macs


# --- balancing ----------------------------------------------------------------------------------


def every_assignment(layers, max_tiles):
    limits = [min(one.max_tiles, max_tiles or one.max_tiles) for one in layers]
    for tiles in itertools.product(*(range(1, limit + 1) for limit in limits)):
        products = [
            sum(math.ceil(n / t) for n in one.patches) for one, t in zip(layers, tiles, strict=True)
        ]
        arrays = sum(one.rows * t for one, t in zip(layers, tiles, strict=True))
        yield {"pipelined": max(products), "sequential": sum(products)}, arrays


def random_network(rng):
    layers = [
        layer(
            [rng.randint(1, 12) for _ in range(rng.choice([1, 1, 1, 2]))],
            per_tile=rng.choice([1, 1, 2, 3, 5, 17]),
            can_tile=rng.random() > 0.2,
        )
        for _ in range(rng.randint(1, 4))
    ]
    return network(*layers)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", range(60))
def test_balance_against_trying_everything(case, schedule):
    rng = random.Random(case)
    net = random_network(rng)
    max_tiles = rng.choice([None, None, 3])
    options = list(every_assignment(net.layers, max_tiles))
    fewest = {}  # arrays by products: the best for each
    for products, arrays in options:
        fewest[products[schedule]] = min(arrays, fewest.get(products[schedule], arrays))
    single = run_time(net, n_tiles=1).products(schedule)
    common = {"schedule": schedule, "hardware": TINY, "max_tiles": max_tiles}

    def outcome(**target):
        tiles = balance_tiles(net, **target, **common)
        assert set(tiles) == {one.name for one in net.layers if one.can_tile}
        timed = run_time(net, n_tiles=tiles, hardware=TINY)
        for one in timed.layers:  # no tile that changes nothing
            assert one.n_tiles == 1 or one.layer.products(one.n_tiles - 1) > one.products
            assert max_tiles is None or one.n_tiles <= max_tiles
        return timed.products(schedule), timed.arrays

    for limit in range(1, single + 2):
        allowed = [arrays for products, arrays in fewest.items() if products <= limit]
        if allowed:
            products, arrays = outcome(max_products=limit)
            assert products <= limit
            assert arrays == min(allowed)
        else:
            with pytest.raises(ValueError, match=f"max_products: got {limit}, but layer 'l"):
                outcome(max_products=limit)
    for speedup in {1, 1.1, 1.5, 2, 2.5, 3, 4, *(single / p for p in fewest)}:
        allowed = [arrays for p, arrays in fewest.items() if single / p >= speedup]
        if allowed:
            products, arrays = outcome(target_speedup=speedup)
            assert single / products >= speedup
            assert arrays == min(allowed)
        else:
            with pytest.raises(ValueError, match=r"target_speedup: got .* but layer 'l"):
                outcome(target_speedup=speedup)
    for budget in range(sum(one.rows for one in net.layers), max(fewest.values()) + 2):
        fastest = min(p for p, arrays in fewest.items() if arrays <= budget)
        assert outcome(max_arrays=budget) == (fastest, fewest[fastest])
    reachable = reachable_speedup(net, schedule=schedule, max_tiles=max_tiles)
    assert reachable == single / min(fewest)


@pytest.mark.parametrize("scale", [1, 2**40])  # beyond 2**62 the bound is made coarser
def test_the_knapsack_against_trying_everything(scale):
    rng = random.Random(1)
    for _ in range(80):
        items = []
        for _ in range(rng.randint(1, 4)):
            n = rng.randint(1, 5)
            load, cost = (np.array(sorted(rng.sample(range(1, 15), n))) for _ in range(2))
            items.append(Choices(load, scale * cost[::-1]))
        fits = {}  # least cost by load
        for picks in itertools.product(*(range(len(item.load)) for item in items)):
            load, cost = totals(items, picks)
            fits[load] = min(cost, fits.get(load, cost))
        for limit in range(max(fits) + 2):
            chosen = cheapest(items, limit)
            allowed = [cost for load, cost in fits.items() if load <= limit]
            assert (chosen is None) == (not allowed)
            if allowed:
                load, cost = totals(items, chosen)
                assert load <= limit
                assert cost == min(allowed)


def totals(items, picks):
    pairs = [(item.load[k], item.cost[k]) for item, k in zip(items, picks, strict=True)]
    return tuple(int(sum(column)) for column in zip(*pairs, strict=True))


def fewest_arrays_by_table(layers, hardware, limit):
    """The plain dynamic programme: least arrays for every sum of products up to the limit."""
    least = np.full(limit + 1, 10**12)
    least[0] = 0
    for one in layers:
        new = np.full(limit + 1, 10**12)
        for n in range(1, one.max_tiles + 1):
            products = one.products(n)
            if products <= limit:
                cost = n * hardware.per_tile(one)
                shifted = least[: limit + 1 - products] + cost
                np.minimum(new[products:], shifted, out=new[products:])
        least = new
    return int(least.min())


@pytest.mark.parametrize("size", [16, 512])
@pytest.mark.parametrize("speedup", [1.3, 4, 30])
def test_sequential_balance_of_a_real_network_against_a_plain_table(size, speedup):
    net = count_networks(["resnet18"], 96)["resnet18"]
    hardware = AnalogArrays(size)
    tiles = balance_tiles(net, target_speedup=speedup, schedule="sequential", hardware=hardware)
    found = run_time(net, n_tiles=tiles, hardware=hardware)
    limit = int(run_time(net).products("sequential") / speedup)
    assert found.speedup("sequential") >= speedup
    assert found.arrays == fewest_arrays_by_table(net.layers, hardware, limit)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_balanced_converts_and_runs_as_planned(schedule):
    model = models.resnet18(num_classes=5)
    size = (3, 64, 64)
    tiles = balance_tiles(model, size, target_speedup=6, schedule=schedule)
    planned = run_time(model, size, n_tiles=tiles)
    rapa = convert_to_rapa(model, tiles, input_size=size)
    assert rapa.eval()(torch.zeros(1, *size)).shape == (1, 5)
    found = run_time(rapa, size)
    assert found.table().drop(columns="kind").equals(planned.table().drop(columns="kind"))
    assert found.speedup(schedule) >= 6


def test_equal_numbers_give_the_papers_tiles():
    tiles = balance_tiles(RapaConvNet(tiling="none"), (3, 32, 32), max_products=64)
    assert list(tiles.values()) == [16, 4, 1]


def test_large_networks_are_balanced_in_no_time():
    import time

    nets = count_networks(["resnet50", "vgg16"])
    start = time.perf_counter()
    for net in nets.values():
        for target in ({"target_speedup": 20}, {"max_arrays": 3000}):
            balance_tiles(net, schedule="sequential", **target)
    assert time.perf_counter() - start < 10  # takes 0.05 s where nothing else runs


# --- bad input ----------------------------------------------------------------------------------

CONV = nn.Conv2d(1, 1, 3)
LINEAR = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(2), nn.Linear(36, 2))
SIZE = (1, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: count_layers("resnet18", SIZE), TypeError, "model: got str"),
        (lambda: count_layers(CONV, 8), TypeError, "input_size: got 8"),
        (lambda: count_layers(CONV, ()), ValueError, r"input_size: got \(\)"),
        (lambda: count_layers(CONV, (1, 0, 8)), ValueError, "input_size: got 0, allowed"),
        (lambda: count_layers(CONV, (1, 8.0, 8)), TypeError, r"input_size: got 8\.0"),
        (lambda: count_layers(nn.ReLU(), SIZE), ValueError, "model: no convolution .*: none"),
        (lambda: count_layers(nn.Conv1d(8, 1, 3), (8, 8)), ValueError, r"Conv1d, unknown type"),
        (lambda: run_time(CONV), TypeError, "input_size: got None"),
        (lambda: run_time(count_layers(CONV, SIZE), (1, 9, 9)), ValueError, r"got \(1, 9, 9\)"),
        (lambda: run_time(CONV, SIZE, n_tiles=0), ValueError, "n_tiles: got 0"),
        (lambda: run_time(CONV, SIZE, n_tiles=1.5), TypeError, r"n_tiles: got 1\.5"),
        (lambda: run_time(CONV, SIZE, hardware=512), TypeError, "hardware: got int"),
        (lambda: run_time(CONV, SIZE).speedup("parallel"), ValueError, "schedule: got 'parallel'"),
        (lambda: run_time(CONV, SIZE).time_us(training=1), TypeError, "training: got 1"),
        (lambda: AnalogArrays(0), ValueError, "max_size: got 0"),
        (lambda: AnalogArrays((512,)), ValueError, r"max_size: got \(512,\)"),
        (lambda: AnalogArrays(2.5), TypeError, r"max_size: got 2\.5"),
        (lambda: AnalogArrays(forward_ns=-1), ValueError, r"forward_ns: got -1\.0, allowed"),
        (lambda: AnalogArrays(update_ns=0), ValueError, r"update_ns: got 0\.0"),
        (lambda: AnalogArrays(backward_ns=math.inf), ValueError, "backward_ns: got inf"),
        (lambda: AnalogArrays(analog_bias=1), TypeError, "analog_bias: got 1"),
        (lambda: AnalogArrays(pack_groups=None), TypeError, "pack_groups: got None"),
        (lambda: balance_tiles(CONV, SIZE), ValueError, "target: got none, expected exactly one"),
        (
            lambda: balance_tiles(CONV, SIZE, max_products=3, target_speedup=2),
            ValueError,
            "target: got max_products, target_speedup, expected exactly one",
        ),
        (lambda: balance_tiles(CONV, SIZE, max_products=0), ValueError, "max_products: got 0"),
        (lambda: balance_tiles(CONV, SIZE, max_arrays=0), ValueError, "max_arrays: got 0"),
        (lambda: balance_tiles(CONV, SIZE, max_arrays=2.0), TypeError, r"max_arrays: got 2\.0"),
        (lambda: balance_tiles(CONV, SIZE, target_speedup=0.5), ValueError, r"speedup: got 0\.5"),
        (lambda: balance_tiles(CONV, SIZE, target_speedup="2"), TypeError, "speedup: got '2'"),
        (
            lambda: balance_tiles(CONV, SIZE, target_speedup=2, schedule="fast"),
            ValueError,
            "schedule: got 'fast', allowed: pipelined, sequential",
        ),
        (
            lambda: balance_tiles(CONV, SIZE, target_speedup=2, max_tiles=0),
            ValueError,
            "max_tiles: got 0",
        ),
        (lambda: balance_tiles(4, SIZE, target_speedup=2), TypeError, "model: got int"),
        (
            lambda: balance_tiles(LINEAR, SIZE, max_products=3),
            ValueError,
            r"max_products: got 3, but layer '2' \(Linear\) takes at least 4 products, and RAPA "
            r"tiles convolutions only; pipelined, reachable: 4",
        ),
        (
            lambda: balance_tiles(LINEAR, SIZE, target_speedup=9.5),
            ValueError,
            "target_speedup: got 9.5, but layer '2' .*reachable: 9$",
        ),
        (
            lambda: balance_tiles(LINEAR, SIZE, max_products=4, schedule="sequential"),
            ValueError,
            "at least 4 products of the 5 that all layers need.*sequential, reachable: 5",
        ),
        (
            lambda: balance_tiles(LINEAR, SIZE, max_products=4, max_tiles=2),
            ValueError,
            "layer '0' .* at least 18 products, with max_tiles = 2; .*reachable: 18",
        ),
        (
            lambda: balance_tiles(Twice(), (2, 8, 8), max_products=1),
            ValueError,
            r"layer 'conv' \(Conv2d, used 2 times\) takes at least 5 products, with a tile for",
        ),
        (
            lambda: balance_tiles(LINEAR, SIZE, max_arrays=1),
            ValueError,
            "max_arrays: got 1, but one tile per layer takes 2 arrays of 512 × 512",
        ),
        (
            lambda: roofline_table(CONV, SIZE, flops_per_s=0, bytes_per_s=1),
            ValueError,
            r"flops_per_s: got 0\.0",
        ),
        (
            lambda: roofline_table(CONV, SIZE, flops_per_s=1, bytes_per_s=-1),
            ValueError,
            r"bytes_per_s: got -1\.0",
        ),
        (
            lambda: roofline_table(CONV, SIZE, flops_per_s=1, bytes_per_s=1, batch_size=0),
            ValueError,
            "batch_size: got 0",
        ),
        (lambda: count_networks(["lenet"]), ValueError, "networks: got 'lenet', allowed: rapa"),
        (lambda: count_networks([]), ValueError, "networks: got none"),
        (lambda: count_networks(["rapa"], 0), ValueError, "image_size: got 0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_lazy_layers_are_named_until_they_have_run():
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(ValueError, match="model: layer '0' is lazy"):
        count_layers(model, SIZE)
    model(torch.zeros(1, *SIZE))
    assert count_layers(model, SIZE).layers[0].patches == (36,)
