"""What must keep up with the arrays: counted patch by patch, step by step and slot by slot."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from reference import patches as slow_patches
from torch import nn
from torchvision import models

from rapa_lib import PerforatedConv2d, RapaConv2d, RapaConvNet
from rapa_lib.runtime import (
    ACCESSES,
    LIMITS,
    PACKINGS,
    SCHEDULES,
    AnalogArrays,
    DigitalSide,
    LayerShape,
    NetworkLayers,
    count_layers,
    layer_costs,
    network_cost,
    run_time,
    stale_images,
)

UNLIMITED = DigitalSide(None)
POWERS = [2**i for i in range(11)]


def one_layer(n_patches, *, rows=9, columns=2, inputs=None, n_tiles=1, name="a", **changes):
    uses = (n_patches,) if isinstance(n_patches, int) else tuple(n_patches)
    inputs = rows * sum(uses) if inputs is None else inputs
    layer = LayerShape(
        name, "Conv2d", uses, rows, columns, 1, False, n_tiles, True, inputs, columns * sum(uses)
    )
    return replace(layer, **changes)


def network(*layers):
    named = (replace(one, name=f"l{i}") for i, one in enumerate(layers))
    return NetworkLayers((1,), tuple(named), ())


def costs(layers, digital=UNLIMITED, *, n_tiles=1, hardware=None, access="random", **schedule):
    timed = run_time(layers, n_tiles=n_tiles, hardware=hardware)
    schedule = schedule or {"schedule": "sequential"}
    return network_cost(timed, digital, access=access, **schedule)


def cost(layer, digital=UNLIMITED, **settings):
    (found,) = costs(network(layer), digital, **settings).layers
    return found


@pytest.fixture(scope="module")
def paper():
    return count_layers(RapaConvNet(tiling="none"), (3, 32, 32))


@pytest.fixture(scope="module")
def networks(paper):
    with torch.device("meta"):
        return {"paper": paper, "resnet18": count_layers(models.resnet18(), (3, 96, 96))}


# --- values to move -----------------------------------------------------------------------------


@pytest.mark.parametrize(("n_tiles", "values"), [(16, 2.1e10), (1024, 1.4e12)])
def test_the_first_layer_moves_what_arithmetic_says(paper, n_tiles, values):
    first = layer_costs(paper, n_tiles=n_tiles, digital=UNLIMITED).iloc[0]
    assert first["values_per_patch"] == 3 * 25 + 32
    assert first["values_per_s"] == pytest.approx(n_tiles * (3 * 25 + 32) / 80e-9)
    assert first["values_per_s"] == pytest.approx(values, rel=0.03)


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (5, 3), "padding": (2, 0), "stride": (2, 1)},
    {"kernel_size": 3, "stride": 3},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "groups": 2, "padding": 1},
    {"kernel_size": 3, "groups": 4, "stride": 2},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 2, "stride": 5},
]


@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
def test_reads_are_those_of_walking_over_the_patches(arguments):
    conv = RapaConv2d(4, 8, n_tiles=2, **arguments)
    counted = count_layers(nn.Sequential(conv), (4, 11, 13))
    names = torch.arange(1.0, 4 * 11 * 13 + 1).view(1, 4, 11, 13)  # padding is 0
    whole, buffer, n_patches = 0, set(), 0
    for _, _, patch in slow_patches(
        names, conv.kernel_size, conv.stride, conv._pads, conv.dilation
    ):
        whole += patch.numel()
        buffer |= set(patch.flatten().tolist()) - {0.0}
        n_patches += 1
    found = {
        access: costs(counted, n_tiles=2, access=access).layers[0].reads_per_patch * n_patches
        for access in ACCESSES
    }
    assert found["random"] == whole
    # An input that no patch holds counts as read, so the buffer's reads are an upper bound.
    assert len(buffer) <= found["contiguous"] + 1e-9
    assert found["contiguous"] == pytest.approx(min(whole, 4 * 11 * 13))
    if len(buffer) == 4 * 11 * 13:
        assert found["contiguous"] == pytest.approx(len(buffer))


def test_large_images_read_stride_squared_values_per_patch_and_channel():
    for stride in (1, 2, 3):
        conv = nn.Conv2d(6, 8, 5, stride=stride, padding=2)
        counted = count_layers(conv, (6, 600, 600))
        reads = costs(counted, n_tiles=8, access="contiguous").layers[0].reads_per_patch
        assert reads == pytest.approx(6 * stride**2, rel=0.01)


def test_without_a_line_buffer_and_in_random_order_patches_are_read_whole(paper):
    reads = {
        (access, buffer): layer_costs(
            paper, n_tiles=4, digital=DigitalSide(line_buffer=buffer), access=access
        )["reads_per_patch"].tolist()
        for access in ACCESSES
        for buffer in (True, False)
    }
    contiguous = reads.pop(("contiguous", True))
    assert contiguous == [3, 32, 32, 64 * 16]
    assert all(whole == [75, 800, 800, 64 * 16] for whole in reads.values())


def test_one_tile_reads_in_order_whatever_the_access(paper):
    first, second = (layer_costs(paper, n_tiles=1, access=access) for access in ACCESSES)
    assert first.equals(second)


def test_a_perforated_layer_moves_only_the_patches_that_it_computes():
    model = nn.Sequential(PerforatedConv2d(2, 3, 3, n_tiles=4, padding=1))
    (found,) = costs(count_layers(model, (2, 9, 9))).layers
    assert found.patches == (21,)  # ceil(81 / 4)
    assert found.values == pytest.approx(3 * (2 * 81 + 21 * 3))


# --- time, step by step -------------------------------------------------------------------------


def slow_parts(layer, n_tiles, arrays, one_at_a_time, per_patch, bandwidth, cycles):
    """Every step of an image: each tile (or array, in turn) takes the next patch of its own."""
    parts = dict.fromkeys(LIMITS, 0.0)
    for n_patches in layer.patches:
        queues = {}
        for patch in range(-(-n_patches // layer.perforation)):
            tile = patch % n_tiles
            queues.setdefault(tile % arrays if one_at_a_time else tile, []).append(patch)
        while any(queues.values()):
            active = sum(bool(queue and queue.pop() is not None) for queue in queues.values())
            for cycle in cycles:
                moving = 1e9 * active * per_patch / bandwidth
                if moving > sum(cycle.values()):
                    parts["bandwidth"] += moving / 1000
                else:
                    for part, time_ns in cycle.items():
                        parts[part] += time_ns / 1000
    return parts


@pytest.mark.parametrize("seed", range(40))
def test_time_is_that_of_every_step_of_an_image(seed):
    draw = random.Random(seed)
    layer = one_layer(
        [draw.randint(3, 40) for _ in range(draw.randint(1, 2))],
        rows=draw.randint(1, 9),
        columns=draw.randint(1, 9),
        perforation=draw.choice([1, 1, 3]),
    )
    n_tiles = draw.randint(1, min(layer.patches))
    hardware = AnalogArrays(
        draw.randint(9, 30),
        forward_ns=draw.uniform(60, 90),
        backward_ns=draw.uniform(60, 90),
        update_ns=draw.uniform(60, 90),
    )
    digital = DigitalSide(
        values_per_second=10 ** draw.uniform(8, 11),
        adc_share=draw.randint(1, 8),
        dac_share=draw.randint(1, 8),
        bl=draw.randint(1, 40),
        pulse_ns=draw.uniform(0.5, 5),
        packing=draw.choice(PACKINGS),
    )
    found = cost(layer, digital, n_tiles=n_tiles, hardware=hardware)
    shared = digital.packing == "dense" and found.per_array > 1
    expected = slow_parts(
        layer, n_tiles, found.arrays, shared, found.values_per_patch, digital.values_per_second,
        found._cycles_ns,
    )  # fmt: skip
    assert found.parts_us == pytest.approx(expected)
    assert found.time_us == pytest.approx(sum(expected.values()))
    assert found.limit == max(LIMITS, key=lambda part: round(expected[part], 9))


def test_converters_take_turns_for_the_lines_in_use():
    hardware = AnalogArrays(512, forward_ns=100, backward_ns=100, update_ns=50)
    for adc_share, dac_share in itertools.product((1, 3, 8, 600), repeat=2):
        digital = DigitalSide(None, adc_share=adc_share, dac_share=dac_share, adc_ns=30, dac_ns=7)
        found = cost(one_layer(1, rows=5, columns=2), digital, hardware=hardware)

        def turns(lines, share):
            """The most lines in use that belong to one converter."""
            return max(len(range(i, min(lines, i + share))) for i in range(0, lines, share))

        forward = 100 + 7 * (turns(5, dac_share) - 1) + 30 * (turns(2, adc_share) - 1)
        backward = 100 + 7 * (turns(2, dac_share) - 1) + 30 * (turns(5, adc_share) - 1)
        assert found.time_us == pytest.approx((forward + backward + max(50, 31 * 2.5)) / 1000)


def test_converters_see_the_lines_of_packed_tiles_and_groups_too():
    slow = DigitalSide(None, adc_share=8, dac_share=1, adc_ns=10)
    depthwise = one_layer(4, rows=3, columns=1, groups=4)
    waits = {}
    for pack in (False, True):
        hardware = AnalogArrays(16, pack_groups=pack)
        waits[pack] = cost(depthwise, slow, hardware=hardware)._cycles_ns[0]["converters"]
    assert waits == {False: 0, True: 30}  # a column alone; four columns at one converter
    packed = replace(slow, packing="diagonal")
    layer = one_layer(4, rows=3, columns=1)
    assert cost(layer, packed, n_tiles=2, hardware=AnalogArrays(16))._cycles_ns[0] == {
        "arrays": 80, "converters": 10
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bl", "pulse_ns", "update_ns"), [(31, 1, 80), (31, 2.5, 80), (31, 10, 310), (10, 10, 100)]
)
def test_an_update_takes_its_pulse_train(bl, pulse_ns, update_ns):
    found = cost(one_layer(1), DigitalSide(None, bl=bl, pulse_ns=pulse_ns))
    assert found.parts_us["update"] == pytest.approx(update_ns / 1000)
    assert found.time_us == pytest.approx((160 + update_ns) / 1000)
    assert found.limit == ("update" if update_ns > 160 else "arrays")


def most_blocks(size, block, disjoint):
    """Place blocks on a grid one by one, wherever their lines are free (or their cells)."""
    free_rows, free_columns = set(range(size[0])), set(range(size[1]))
    taken, placed = set(), 0
    for top in range(0, size[0] - block[0] + 1, block[0]):
        for left in range(0, size[1] - block[1] + 1, block[1]):
            rows, columns = range(top, top + block[0]), range(left, left + block[1])
            if disjoint and not (free_rows >= set(rows) and free_columns >= set(columns)):
                continue
            cells = set(itertools.product(rows, columns))
            assert not cells & taken
            taken |= cells
            free_rows -= set(rows)
            free_columns -= set(columns)
            placed += 1
    return placed


@pytest.mark.parametrize("size", [(16, 16), (20, 9), (7, 30), (5, 2)])
@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_tiles_lie_beside_one_another(size, packing):
    layer, hardware = one_layer(64, rows=5, columns=2), AnalogArrays(size)
    blocks = {
        "separate": 1,
        "diagonal": most_blocks(size, (5, 2), True),
        "dense": most_blocks(size, (5, 2), False),
    }[packing]
    for n_tiles in (1, 2, 7, 64):
        found = cost(layer, replace(UNLIMITED, packing=packing), n_tiles=n_tiles, hardware=hardware)
        assert found.per_array == min(blocks, n_tiles)
        assert found.arrays == math.ceil(n_tiles / blocks)
        # On the diagonal all work at the same time; densely packed, one tile of an array does.
        together = found.arrays if packing == "dense" else n_tiles
        assert found.workers == together
        assert sum(found.steps.values()) == pytest.approx(64 / together, abs=blocks)


def test_what_takes_several_arrays_is_not_packed():
    big = one_layer(16, rows=20, columns=2)
    for packing in PACKINGS:
        side = replace(UNLIMITED, packing=packing)
        found = cost(big, side, n_tiles=4, hardware=AnalogArrays(16))
        assert (found.per_array, found.arrays, found.time_us) == (1, 8, pytest.approx(4 * 0.24))


# --- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_staleness_by_walking_through_the_slots_of_a_pipeline(depth):
    n_images = 30
    versions = [[] for _ in range(depth)]  # of each layer: the images that have updated it
    seen = {}
    for slot in range(n_images + 2 * depth):
        for place in range(1, depth + 1):  # forward first, as an image's own update needs it
            seen[slot - place, place] = len(versions[place - 1])
        for place in range(1, depth + 1):
            image = slot - (2 * depth - place)
            if 0 <= image < n_images:
                late = len(versions[place - 1]) - seen[image, place]
                if image >= 2 * depth:  # the pipeline is full
                    assert late == stale_images(depth)[place - 1]
                versions[place - 1].append(image)
    assert all(version == list(range(n_images)) for version in versions)


def test_a_shared_bandwidth_holds_up_all_layers_of_a_pipeline_together():
    layers = network(one_layer(100, rows=8, columns=2), one_layer(50, rows=5, columns=5))
    values = 3 * (100 * 10 + 50 * 10)
    for bandwidth in (1e7, 1e8, 1e9):
        for shared in (True, False):
            side = DigitalSide(bandwidth, shared=shared)
            found = costs(layers, side, schedule="pipelined")
            alone = [3 * n * max(0.08, 1e6 * 10 / bandwidth) for n in (100, 50)]
            moving = 1e6 * values / bandwidth
            expected = max(*alone, moving) if shared else max(alone)
            assert found.time_us == pytest.approx(expected)
            in_turn = costs(layers, side, schedule="sequential")
            assert in_turn.time_us == pytest.approx(sum(alone))
            assert in_turn.values_per_s == pytest.approx(10 / 80e-9)
            share = 1.5 if shared else 1
            assert found.values_per_s == pytest.approx(share * 10 / 80e-9)
    found = costs(layers, DigitalSide(1.4e8), schedule="pipelined")  # enough for each alone
    assert all(layer.limit == "arrays" for layer in found.layers)
    assert (found.limit, found.limiting_layer.timed.layer.name) == ("bandwidth", "l0")
    wide = network(one_layer(100, rows=8, columns=2), one_layer(50, rows=20, columns=5))
    found = costs(wide, DigitalSide(2.4e8), schedule="pipelined")  # 3 · 2250 values take 28 µs
    assert [layer.time_us for layer in found.layers] == pytest.approx([24, 15.6], abs=0.1)
    assert found.limiting_layer.timed.layer.name == "l1"  # moves most values


def test_the_limit_is_named_with_its_layer():
    layers = network(
        one_layer(60, rows=2, columns=2), one_layer(10, rows=80, columns=2), one_layer(50)
    )
    for schedule, side, expected in [
        ("pipelined", UNLIMITED, ("arrays", "l0")),
        ("sequential", UNLIMITED, ("arrays", "l0")),
        ("pipelined", DigitalSide(1e8, shared=False), ("bandwidth", "l1")),
        ("sequential", DigitalSide(1e8), ("bandwidth", "l1")),
        ("pipelined", DigitalSide(None, pulse_ns=10), ("update", "l0")),
        ("sequential", DigitalSide(None, adc_share=40), ("converters", "l2")),
    ]:
        found = costs(layers, side, schedule=schedule)
        assert (found.limit, found.limiting_layer.timed.layer.name) == expected, (schedule, side)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("access", ACCESSES)
def test_more_bandwidth_never_hurts(networks, schedule, access):
    for layers, n_tiles in itertools.product(networks.values(), (7, 64, 1024)):
        speedups, times = [], []
        for exponent in range(7, 16):
            side = DigitalSide(10.0**exponent)
            base, tiled = (
                costs(layers, side, n_tiles=n, access=access, schedule=schedule)
                for n in (1, n_tiles)
            )
            times.append(tiled.time_us)
            speedups.append(base.time_us / tiled.time_us)
        assert all(a >= b * (1 - 1e-9) for a, b in itertools.pairwise(times))
        assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(speedups))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values_per_second": 0}, "values_per_second: got 0.0, allowed: finite, above 0"),
        ({"values_per_second": "fast"}, "values_per_second: got 'fast', expected a number"),
        ({"adc_share": 0}, "adc_share: got 0, allowed: at least 1"),
        ({"bl": 2.5}, "bl: got 2.5, expected an integer"),
        ({"pulse_ns": -1}, "pulse_ns: got -1.0, allowed: finite, above 0"),
        ({"line_buffer": 1}, "line_buffer: got 1, expected True or False"),
        ({"packing": "loose"}, "packing: got 'loose', allowed: separate, diagonal, dense"),
    ],
)
def test_constants_check_themselves(arguments, message):
    with pytest.raises((ValueError, TypeError)) as error:
        DigitalSide(**arguments)
    assert str(error.value) == message


def test_other_arguments_are_refused_too(paper):
    with pytest.raises(ValueError, match="access: got 'linear', allowed: random, contiguous"):
        costs(paper, access="linear")
    with pytest.raises(ValueError, match="schedule: got 'parallel', allowed: pipelined"):
        costs(paper, schedule="parallel")
    with pytest.raises(ValueError, match="depth: got 0, allowed: at least 1"):
        stale_images(0)
