"""Broken tiles compute what they should, and leave the network as it was."""

import copy
from contextlib import nullcontext, suppress
from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F
from reference import tiled_conv2d
from tiny import same_bits, tiny_dataset, tiny_network
from torch import nn

from rapa_lib import (
    DivergedError,
    InputScaling,
    PerforatedConv2d,
    RapaConv2d,
    RapaConvNet,
    TrainConfig,
    frozen_draws,
    train,
)
from rapa_lib.instruments.faults import (
    TileFault,
    draw_faults,
    dying_tiles,
    fine_tune,
    repair_by_copy,
    tile_faults,
)
from rapa_lib.layers.tiling import TILINGS, Tiling
from rapa_lib.runtime import balance_tiles, run_time

FIRST, SECOND, THIRD = "features.0.0", "features.1.0", "features.2.0"
TILED = ["image", "alternate", "random", "random_fixed"]
BROKEN = [
    TileFault(FIRST, 1),
    TileFault(FIRST, 2, "stuck", seed=4),
    TileFault(FIRST, 3, "drifted", 0.5),
    TileFault(SECOND, 0, "noisy", 0.3),
]
"""A fault of every kind."""


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small_layer(tiling="random", n_tiles=4, **changes):
    return RapaConv2d(2, 3, 3, padding=1, n_tiles=n_tiles, tiling=tiling, **changes)


def images(n=3, size=(6, 9)):
    return torch.randn(n, 2, *size)


def products(model, input_size):
    """The products of each convolution, by the model of run time."""
    timed = run_time(model, input_size).layers
    return {one.layer.name: one.products for one in timed if one.layer.kind != "Linear"}


def scaling():
    return InputScaling.of(tiny_dataset().train_images)


def outputs_and_state(network):
    """What a network computes from a seed, its state, and where the random stream is then."""
    network.eval()
    torch.manual_seed(5)
    x = torch.randn(4, 2, 8, 8)
    with torch.no_grad():
        return {"y": network(x), "stream": torch.rand(3), **copy.deepcopy(network.state_dict())}


# --- Without faults, and afterwards -----------------------------------------------------------


@pytest.mark.parametrize("tiling", [*TILED, "none"])
@pytest.mark.parametrize("reroute", [False, True])
def test_without_faults_no_bit_changes(tiling, reroute):
    network = tiny_network(tiling=tiling)
    before = outputs_and_state(network)
    keys, text = list(network.state_dict()), repr(network)
    with tile_faults(network, (), reroute=reroute) as inside:
        assert inside is network
        assert same_bits(before, outputs_and_state(network))
        assert repr(network) == text
    assert list(network.state_dict()) == keys


@pytest.mark.parametrize("reroute", [False, True])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_network_is_left_as_it_was(reroute, error):
    network = tiny_network()
    before, text = outputs_and_state(network), repr(network)
    raised = pytest.raises(error) if error else nullcontext()
    with raised, tile_faults(network, BROKEN, reroute=reroute):
        broken = outputs_and_state(network)
        assert not torch.equal(before["y"], broken["y"])
        assert list(broken) == list(before)  # the state dict has no new entries
        if error:
            raise error
    assert same_bits(before, outputs_and_state(network))
    assert repr(network) == text
    for layer in network.modules():
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks


def test_broken_tiles_are_no_part_of_the_state():
    network = tiny_network()
    with tile_faults(network, [TileFault(FIRST, 1)], reroute=True):
        state = network.state_dict()
        other = tiny_network(init_seed=1)
        other.load_state_dict(state)
    assert same_bits(outputs_and_state(network), outputs_and_state(other))


def test_a_copy_made_inside_keeps_the_faults():
    network = tiny_network()
    with tile_faults(network, BROKEN):
        kept, inside = copy.deepcopy(network), outputs_and_state(network)
    assert same_bits(outputs_and_state(kept), inside)


def test_drawing_faults_and_stuck_kernels_takes_nothing_from_the_callers_stream():
    network = tiny_network()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with tile_faults(network, draw_faults(network, share=0.5, kind="stuck")):
        products(network, (2, 8, 8))
        assert torch.equal(torch.rand(3), expected)


# --- Dead tiles -------------------------------------------------------------------------------


@pytest.mark.parametrize("tiling", TILED)
@pytest.mark.parametrize("dead", [[0], [1, 3], [0, 1, 2, 3]])
def test_dead_tiles_leave_zeros_as_the_slow_reference_does(tiling, dead):
    layer, x = small_layer(tiling).double(), images(2).double().requires_grad_()
    with frozen_draws(layer, 1):
        assignment = layer.assignment(2, (6, 9))
        for tile in dead:
            assignment = assignment.where(assignment != tile, torch.tensor(-1))
        with tile_faults(layer, [TileFault("", tile) for tile in dead]):
            y = layer(x)
    expected = tiled_conv2d(layer, x, assignment)
    torch.testing.assert_close(y, expected)
    assert y[:, 0][assignment.view(2, 6, 9) < 0].abs().max() == 0  # the bias too
    inputs = (x, *layer.parameters())
    for one, other in zip(
        torch.autograd.grad(y.pow(2).sum(), inputs),
        torch.autograd.grad(expected.pow(2).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tiling", [*TILED, "none"])
def test_the_only_tile_of_a_layer_can_die_but_not_be_rerouted_around(tiling):
    layer = small_layer(tiling, n_tiles=1)
    with tile_faults(layer, [TileFault("", 0)]):
        assert layer(images()).abs().max() == 0
        assert products(nn.Sequential(layer), (2, 6, 9)) == {"0": 0}
        assert run_time(nn.Sequential(layer), (2, 6, 9)).speedup() == float("inf")
    with (
        pytest.raises(ValueError, match="faults: no tile of layer '' lives"),
        tile_faults(layer, [TileFault("", 0)], reroute=True),
    ):
        raise AssertionError


@pytest.mark.parametrize("tiling", TILED)
@pytest.mark.parametrize("lives", [0, 3])
def test_one_living_tile_is_an_ordinary_convolution(tiling, lives):
    layer, x = small_layer(tiling), images()
    dead = [TileFault("", tile) for tile in range(4) if tile != lives]
    with tile_faults(layer, dead, reroute=True):
        torch.testing.assert_close(
            layer(x), F.conv2d(x, layer.weight[lives], layer.bias[lives], padding=1)
        )
        assert not layer.redraws


@pytest.mark.parametrize("tiling", TILED)
@pytest.mark.parametrize("n_tiles", [2, 4, 7, 13])
def test_loads_of_living_tiles_differ_by_at_most_one_patch(tiling, n_tiles):
    layer = small_layer(tiling, n_tiles)  # 54 patches
    for n_dead in range(1, n_tiles):
        faults = draw_faults(layer, count=n_dead, seed=n_dead)
        living = sorted(set(range(n_tiles)) - {fault.tile for fault in faults})
        with tile_faults(layer, faults, reroute=True):
            for row in layer.assignment(3, (6, 9)):
                loads = torch.bincount(row, minlength=n_tiles)
                assert int(loads[living].sum()) == 54
                assert int(loads[living].max()) == -(-54 // len(living))
                assert int(loads[living].max() - loads[living].min()) <= 1


@pytest.mark.parametrize("redraw", [False, True])
def test_somebody_elses_tiling_is_rerouted_too(monkeypatch, redraw):
    def mine(batch, height, width, n_tiles, generator):
        start = torch.randint(n_tiles, (batch, 1), generator=generator)
        return (torch.arange(height * width) + start) % n_tiles

    monkeypatch.setitem(TILINGS, "mine", Tiling("mine", mine, redraw))
    layer = small_layer("mine", 5)
    with tile_faults(layer, [TileFault("", 1), TileFault("", 2)], reroute=True):
        loads = torch.stack(
            [torch.bincount(row, minlength=5) for row in layer.assignment(4, (6, 9))]
        )
    assert loads.tolist() == [[18, 0, 0, 18, 18]] * 4


def test_rerouted_draws_are_fresh_and_uniform():
    layer = small_layer("random", 8)
    with tile_faults(layer, draw_faults(layer, count=5, seed=1), reroute=True):
        living = layer.living_tiles
        drawn = layer.assignment(6000, (2, 5))
    assert len(living) == 3
    for tile in living:
        shares = (drawn == tile).double().mean(0)
        assert (shares - 1 / 3).abs().max() < 0.03  # five standard errors


@pytest.mark.parametrize("kind", ["stuck", "drifted", "noisy"])
def test_rerouted_around_it_matters_not_what_is_wrong(kind):
    strength = None if kind == "stuck" else 0.7
    results = []
    for fault in (TileFault(FIRST, 2), TileFault(FIRST, 2, kind, strength)):
        network = tiny_network()
        with tile_faults(network, [fault], reroute=True):
            results.append(outputs_and_state(network))
    assert same_bits(*results)


# --- Other faults -----------------------------------------------------------------------------


def outputs_by_tile(layer, x, faults):
    """Outputs with and without faults under one assignment, and that assignment."""
    with frozen_draws(layer, 1), torch.no_grad():
        assignment = layer.assignment(len(x), tuple(x.shape[2:]))
        whole = layer(x)
        with tile_faults(layer, faults):
            return whole, layer(x), assignment.view(len(x), 1, *whole.shape[2:])


def test_a_drifted_tiles_outputs_are_scaled():
    layer, x = small_layer(), images()
    whole, broken, tile = outputs_by_tile(layer, x, [TileFault("", 2, "drifted", 0.25)])
    torch.testing.assert_close(broken, torch.where(tile == 2, 0.25 * whole, whole))


@pytest.mark.parametrize("bias", [True, False])
def test_a_stuck_tile_has_a_random_kernel_of_the_trained_scale(bias):
    layer = RapaConv2d(3, 64, 5, n_tiles=3, bias=bias)
    with torch.no_grad():
        layer.weight[1] *= 7  # as if trained
        before = layer.weight.clone()
        with tile_faults(layer, [TileFault("", 1, "stuck", seed=3)]):
            stuck = layer.weight.clone()
        with tile_faults(layer, [TileFault("", 1, "stuck", seed=4)]):
            assert not torch.equal(layer.weight[1], stuck[1])
        with tile_faults(layer, [TileFault("", 1, "stuck", seed=3)]):
            assert torch.equal(layer.weight, stuck)
    assert torch.equal(stuck[[0, 2]], before[[0, 2]])
    scale = before[1].pow(2).mean().sqrt()
    torch.testing.assert_close(stuck[1].pow(2).mean().sqrt(), scale)
    # Uniform, as Conv2d draws: the greatest is √3 times the root mean square.
    torch.testing.assert_close(stuck[1].abs().max(), 3**0.5 * scale, rtol=0.02, atol=0)
    assert F.cosine_similarity(stuck[1].flatten(), before[1].flatten(), dim=0).abs() < 0.1


def test_a_noisy_tile_has_noise_of_the_size_asked_for():
    layer, x = small_layer(), images(200)
    x[0] *= 10  # noise goes with each image's own outputs
    whole, broken, tile = outputs_by_tile(layer, x, [TileFault("", 2, "noisy", 0.5)])
    noise, here = broken - whole, (tile == 2).expand_as(whole)
    assert noise[~here].abs().max() == 0
    relative = noise / whole.pow(2).mean((1, 2, 3), keepdim=True).sqrt()
    assert float(relative[here].std()) == pytest.approx(0.5, rel=0.03)
    assert abs(float(relative[here].mean())) < 0.02
    assert float(relative[0][here[0]].std()) == pytest.approx(0.5, rel=0.4)


def test_noise_is_fresh_unless_draws_are_frozen():
    layer, x = small_layer("image"), images()
    with tile_faults(layer, [TileFault("", 0, "noisy", 1.0)]), torch.no_grad():
        assert not torch.equal(layer(x), layer(x))
        with frozen_draws(layer, 3):
            held = layer(x)
            assert torch.equal(layer(x), held)
        with frozen_draws(layer, 4):
            assert not torch.equal(layer(x), held)
        torch.manual_seed(1)
        first = layer(x)
        torch.manual_seed(1)
        assert torch.equal(layer(x), first)


def test_noise_takes_one_image_a_given_assignment_and_keywords():
    layer, x = small_layer(), images(1)
    with tile_faults(layer, [TileFault("", 0, "noisy", 1.0)]), frozen_draws(layer, 3):
        assignment = layer.assignment(1, (6, 9))
        expected = layer(x)
        assert torch.equal(layer(x[0]), expected[0])
        assert torch.equal(layer(x, assignment), expected)
        assert torch.equal(layer(assignment=assignment, x=x), expected)
        none = torch.full_like(assignment, -1)
        assert layer(x, none).abs().max() == 0
        with pytest.raises(ValueError, match="input: got shape"):
            layer(x[0, 0])


def test_somebody_elses_hook_does_not_change_the_noise():
    """Nor does it matter when the hook came; contexts of ours draw noise of their own."""
    noisy, x = [TileFault("", 0, "noisy", 1.0)], images()

    def outputs(layer, before=(), between=()):
        layer = copy.deepcopy(layer)
        for hook in before:
            layer.register_forward_hook(hook)
        with tile_faults(layer, noisy), frozen_draws(layer, 3), torch.no_grad():
            for hook in between:
                layer.register_forward_hook(hook)
            once = layer(x)
            with tile_faults(layer, noisy):
                return once, layer(x)

    def nothing(*_):
        return None

    layer = small_layer("image")
    alone = outputs(layer)
    for hooks in ({"before": [nothing]}, {"between": [nothing]}, {"before": [nothing] * 3}):
        for one, other in zip(alone, outputs(layer, **hooks), strict=True):
            assert torch.equal(one, other)


# --- Contexts in contexts ---------------------------------------------------------------------


def test_contexts_add_up():
    one, two, three = TileFault(FIRST, 0), TileFault(FIRST, 2), TileFault(SECOND, 1, "stuck")
    for reroute in (False, True):
        network = tiny_network()
        before = outputs_and_state(network)
        with tile_faults(network, [one, two, three], reroute=reroute):
            together = outputs_and_state(network)
        with tile_faults(network, [one], reroute=reroute):
            alone = outputs_and_state(network)
            with tile_faults(network, [two, three], reroute=reroute):
                assert same_bits(together, outputs_and_state(network))
            assert same_bits(alone, outputs_and_state(network))
        assert same_bits(before, outputs_and_state(network))


def test_drifts_in_nested_contexts_multiply():
    layer, x = small_layer(), images()
    _, broken, _ = outputs_by_tile(layer, x, [TileFault("", 2, "drifted", 0.125)])
    with tile_faults(layer, [TileFault("", 2, "drifted", 0.5)]):
        _, nested, _ = outputs_by_tile(layer, x, [TileFault("", 2, "drifted", 0.25)])
    torch.testing.assert_close(nested, broken)


def test_nested_noise_is_independent_where_draws_are_frozen():
    layer, x = small_layer(n_tiles=1), images(200)
    noisy = [TileFault("", 0, "noisy", 0.1)]
    with (
        tile_faults(layer, noisy), tile_faults(layer, noisy), frozen_draws(layer, 1),
        torch.no_grad(),
    ):  # fmt: skip
        twice = layer(x)
        whole = F.conv2d(x, layer.weight[0], layer.bias[0], padding=1)
    relative = (twice - whole) / whole.pow(2).mean((1, 2, 3), keepdim=True).sqrt()
    assert float(relative.std()) == pytest.approx(0.1 * 2**0.5, rel=0.05)


@pytest.mark.parametrize("outer", [False, True])
def test_a_layer_is_rerouted_in_all_contexts_or_in_none(outer):
    network = tiny_network()
    with tile_faults(network, [TileFault(FIRST, 0)], reroute=outer):
        before = outputs_and_state(network)
        with (
            pytest.raises(ValueError, match=f"reroute: got {not outer}, but layer '{FIRST}'"),
            tile_faults(network, [TileFault(FIRST, 1)], reroute=not outer),
        ):
            raise AssertionError
        with tile_faults(network, [TileFault(SECOND, 1)], reroute=not outer):
            pass  # another layer may be
        assert same_bits(before, outputs_and_state(network))


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "asleep"}, ValueError, "kind: got 'asleep', allowed: dead, stuck, drifted, noi"),
        ({"tile": -1}, ValueError, "tile: got -1, allowed: at least 0"),
        ({"tile": 1.0}, TypeError, "tile: got 1.0"),
        ({"layer": 3}, TypeError, "layer: got 3"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"strength": 0.5}, ValueError, "strength: got 0.5, but kind 'dead' takes None"),
        ({"kind": "noisy"}, ValueError, "strength: got None, but kind 'noisy' takes relative"),
        ({"kind": "drifted", "strength": -1}, ValueError, "strength: got -1"),
        ({"kind": "drifted", "strength": "a"}, TypeError, "strength: got 'a'"),
    ],
)
def test_a_wrong_fault_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        TileFault(**{"layer": FIRST, "tile": 0} | arguments)


def test_a_fault_is_frozen():
    with pytest.raises(FrozenInstanceError):
        TileFault(FIRST, 0).tile = 1


@pytest.mark.parametrize(
    ("faults", "error", "message"),
    [
        ([TileFault("features.9", 0)], ValueError, "'features.9', which is no layer of the model"),
        ([TileFault("classifier", 0)], ValueError, "layer: got 'classifier', .*a layer without"),
        ([TileFault(FIRST, 4)], ValueError, rf"tile \(layer '{FIRST}'\): got 4, allowed: 0 to 3"),
        ([TileFault(FIRST, 1), TileFault(FIRST, 1, "stuck")], ValueError, "is named twice"),
        ([(FIRST, 1)], TypeError, "faults: got .*expected TileFault"),
        ([TileFault(FIRST, i) for i in range(4)], ValueError, f"no tile of layer '{FIRST}' lives"),
    ],
)
def test_wrong_faults_are_refused_before_anything_changes(faults, error, message):
    network = tiny_network()
    before = outputs_and_state(network)
    with (
        pytest.raises(error, match=message),
        tile_faults(network, [TileFault(SECOND, 0), *faults], reroute=True),
    ):
        raise AssertionError
    assert same_bits(before, outputs_and_state(network))


def test_models_without_tiles_and_wrong_flags_are_refused():
    for model in (nn.Conv2d(2, 3, 3), PerforatedConv2d(2, 3, 3)):
        with pytest.raises(ValueError, match="model: it has no RapaConv2d layer"):
            draw_faults(model, share=0.5)
    with pytest.raises(TypeError, match="model: got int"):
        draw_faults(3, share=0.5)
    with (
        pytest.raises(TypeError, match="reroute: got 1"),
        tile_faults(tiny_network(), (), reroute=1),
    ):
        raise AssertionError


# --- Draws of faults --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "counts"),
    [(0, (0, 0, 0)), (0.25, (1, 1, 0)), (0.5, (2, 1, 0)), (0.9, (3, 1, 0)), (1, (3, 1, 0))],
)
def test_a_share_is_the_nearest_number_that_leaves_a_tile(share, counts):
    faults = draw_faults(tiny_network(), share=share, kind="drifted", strength=0.5)
    found = [[f.tile for f in faults if f.layer == name] for name in (FIRST, SECOND, THIRD)]
    assert tuple(map(len, found)) == counts
    assert all(len(set(tiles)) == len(tiles) for tiles in found)
    assert {(f.kind, f.strength) for f in faults} <= {("drifted", 0.5)}


def test_faults_follow_seed_and_layer_and_grow():
    network = tiny_network(n_tiles=(16, 8, 1))
    few, many = (set(draw_faults(network, share=s, seed=3)) for s in (0.25, 0.75))
    assert few < many
    assert set(draw_faults(network, share=0.25, seed=4)) != few
    alone = draw_faults(network, share=0.25, seed=3, layers=[SECOND])
    assert set(alone) == {fault for fault in few if fault.layer == SECOND}
    named = draw_faults(network, count={SECOND: 2}, seed=3)
    assert named == alone
    drawn = [f.tile for s in range(400) for f in draw_faults(network, count={FIRST: 4}, seed=s)]
    counts = torch.bincount(torch.tensor(drawn), minlength=16)
    assert (counts - 100).abs().max() < 5 * 75**0.5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "share, count: got None and None, expected one of them"),
        ({"share": 0.5, "count": 1}, ValueError, "share, count: got 0.5 and 1"),
        ({"share": 1.1}, ValueError, "share: got 1.1"),
        ({"count": 3}, ValueError, rf"count \(layer '{SECOND}'\): got 3, allowed: 0 to 2"),
        ({"count": -1}, ValueError, "count .*: got -1"),
        ({"count": {"x": 1}}, ValueError, "layer: got 'x'"),
        ({"share": 0.5, "layers": ["classifier"]}, ValueError, "layer: got 'classifier'"),
        ({"share": 0.5, "layers": FIRST}, TypeError, "layers: got 'features.0.0'"),
        ({"share": 0.5, "kind": "lost"}, ValueError, "kind: got 'lost'"),
        ({"share": 0.5, "kind": "noisy"}, ValueError, "strength: got None"),
        ({"share": 0.5, "seed": -1}, ValueError, "seed: got -1"),
    ],
)
def test_wrong_draws_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        draw_faults(tiny_network(), **arguments)


# --- Run time ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tiling", TILED)
def test_products_are_the_greatest_loads(tiling):
    network = tiny_network(tiling=tiling, n_tiles=(7, 3, 1))  # of 64, 16 and 4 patches
    assert products(network, (2, 8, 8)) == {FIRST: 10, SECOND: 6, THIRD: 4}
    faults = draw_faults(network, count={FIRST: 2, SECOND: 2})
    with tile_faults(network, faults, reroute=True):
        assert products(network, (2, 8, 8)) == {FIRST: 13, SECOND: 16, THIRD: 4}
    with tile_faults(network, faults):
        found = products(network, (2, 8, 8))
        for name, size in ((FIRST, (8, 8)), (SECOND, (4, 4))):
            drawn = network.get_submodule(name).assignment(300, size)
            loads = [torch.bincount(row[row >= 0]).max() for row in drawn]
            assert found[name] == max(loads)


def test_dead_tiles_cost_time_and_no_arrays_and_a_number_asked_for_is_of_working_tiles():
    network = tiny_network(n_tiles=(8, 2, 1))  # of 64, 16 and 4 patches
    whole = run_time(network, (2, 8, 8))
    with tile_faults(network, [TileFault(FIRST, 0), TileFault(FIRST, 5)], reroute=True):
        broken = run_time(network, (2, 8, 8))
        assert [one.products for one in broken.layers] == [11, 8, 4, 1]
        assert broken.layers[0].speedup == 64 / 11
        assert broken.products("pipelined") == 11
        assert broken.arrays == whole.arrays
        assert list(broken.table()["n_tiles"]) == [8, 2, 1, 1]
        assert [one.products for one in run_time(network, (2, 8, 8), n_tiles=8).layers] == [
            8, 2, 1, 1,
        ]  # fmt: skip
        mapped = run_time(network, (2, 8, 8), n_tiles={SECOND: 4})
        assert [one.products for one in mapped.layers] == [11, 4, 4, 1]
        assert balance_tiles(network, (2, 8, 8), max_products=8)[FIRST] == 8
    assert run_time(network, (2, 8, 8)) == whole


def test_a_layer_used_twice_counts_the_loads_of_both_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = RapaConv2d(2, 2, 3, padding=1, n_tiles=4, tiling="image")

        def forward(self, x):
            return self.layer(self.layer(x)[:, :, ::2])

    model = Twice()
    with tile_faults(model, [TileFault("layer", 1)]):
        assert products(model, (2, 6, 9)) == {"layer": 14 + 7}  # of 54 and 27 patches
    with tile_faults(model, [TileFault("layer", 1)], reroute=True):
        assert products(model, (2, 6, 9)) == {"layer": 18 + 9}


def test_other_convolutions_have_products_too():
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1),
        PerforatedConv2d(2, 2, 3, padding=1, n_tiles=5),
        small_layer(),
    )
    assert products(model, (2, 6, 9)) == {"0": 54, "1": 11, "2": 14}
    with tile_faults(model, [TileFault("2", 1, "noisy", 1.0)]):
        assert products(model, (2, 6, 9)) == {"0": 54, "1": 11, "2": 14}
    with pytest.raises(ValueError, match="input_size: the model fails"):
        products(model, (5, 6, 9))
    assert not any(layer._forward_pre_hooks for layer in model.modules())


# --- Dying in training ------------------------------------------------------------------------

DEATHS = {2: [TileFault(FIRST, 1)], 3: [TileFault(FIRST, 0), TileFault(SECOND, 1)]}


def test_tiles_die_when_they_should_whatever_came_before():
    network = tiny_network()
    layer = network.get_submodule(FIRST)
    text = repr(network)
    with dying_tiles(network, DEATHS, reroute=True) as on_epoch:
        for epoch, living in ((1, (0, 1, 2, 3)), (3, (2, 3)), (2, (0, 2, 3)), (7, (2, 3))):
            on_epoch(network, epoch)
            assert layer.living_tiles == living
            assert layer.reroute
        assert "TileFault(layer='features.0.0', tile=1" in repr(on_epoch)
    assert layer.living_tiles == (0, 1, 2, 3)
    assert repr(network) == text


@pytest.mark.parametrize("reroute", [False, True])
def test_no_patch_reaches_a_dead_tile(reroute):
    network = tiny_network().train()
    with dying_tiles(network, DEATHS, reroute=reroute) as on_epoch:
        on_epoch(network, 2)
        network(torch.randn(4, 2, 8, 8)).pow(2).sum().backward()
    layer = network.get_submodule(FIRST)
    assert layer.weight.grad[1].abs().max() == 0
    assert layer.bias.grad[1].abs().max() == 0
    assert all(layer.weight.grad[tile].abs().max() > 0 for tile in (0, 2, 3))


CONFIG = TrainConfig(epochs=4, batch_size=16, seed=3)


def train_with_deaths(reroute, deaths=DEATHS, checkpoint=None, stop_before=None):
    """Train a network while its tiles die; return it, its training and what lived in each epoch."""
    network, seen = tiny_network(), []
    with dying_tiles(network, deaths, reroute=reroute) as on_epoch:

        class Watched:
            """The hook, as checkpoints know it, and an eye on it."""

            def __repr__(self):
                return repr(on_epoch)

            def __call__(self, model, epoch):
                on_epoch(model, epoch)
                seen.append((epoch, model.get_submodule(FIRST).living_tiles))
                if epoch == stop_before:
                    raise KeyboardInterrupt

        training = None
        with suppress(KeyboardInterrupt):
            training = train(
                network, tiny_dataset(), CONFIG,
                checkpoint=checkpoint, progress=False, on_epoch=Watched(),
            )  # fmt: skip
    assert network.get_submodule(FIRST).living_tiles == (0, 1, 2, 3)
    return network, training, seen


@pytest.mark.parametrize("reroute", [False, True])
@pytest.mark.parametrize("stop_before", [2, 3, 4])
def test_a_training_in_which_tiles_die_resumes_with_the_same_bits(tmp_path, reroute, stop_before):
    whole, training, seen = train_with_deaths(reroute)
    living = [(1, (0, 1, 2, 3)), (2, (0, 2, 3)), (3, (2, 3)), (4, (2, 3))]
    assert seen == living
    path = tmp_path / "resume.pt"
    assert train_with_deaths(reroute, checkpoint=path, stop_before=stop_before)[1] is None
    resumed, again, seen = train_with_deaths(reroute, checkpoint=path)
    assert seen == living[stop_before - 1 :]
    assert same_bits(whole.state_dict(), resumed.state_dict())
    for one, other in zip(training.history, again.history, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    without = tiny_network()
    train(without, tiny_dataset(), CONFIG, progress=False)
    assert not same_bits(whole.state_dict(), without.state_dict())


def test_a_checkpoint_belongs_to_the_deaths_that_it_was_trained_with(tmp_path):
    path = tmp_path / "resume.pt"
    train_with_deaths(True, checkpoint=path, stop_before=3)
    for reroute, deaths in ((False, DEATHS), (True, {4: DEATHS[2]})):
        with pytest.raises(ValueError, match="belongs to another training: its network"):
            train_with_deaths(reroute, deaths, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another training: its network"):
        train(tiny_network(), tiny_dataset(), CONFIG, checkpoint=path, progress=False)


def test_a_hook_that_draws_changes_no_training():
    states = []
    for on_epoch in (None, lambda model, epoch: torch.rand(epoch)):
        network = tiny_network()
        train(network, tiny_dataset(), CONFIG, progress=False, on_epoch=on_epoch)
        states.append(network.state_dict())
    assert same_bits(*states)


def test_tiles_dead_from_the_first_epoch_learn_nothing():
    network = tiny_network()
    layer = network.get_submodule(FIRST)
    before = layer.weight.detach().clone()
    config = TrainConfig(epochs=1, batch_size=16, weight_decay=0)
    with dying_tiles(network, {1: [TileFault(FIRST, 2)]}, reroute=True) as on_epoch:
        train(network, tiny_dataset(), config, progress=False, on_epoch=on_epoch)
    assert torch.equal(layer.weight[2], before[2])
    assert all(not torch.equal(layer.weight[tile], before[tile]) for tile in (0, 1, 3))


@pytest.mark.parametrize(
    ("deaths", "error", "message"),
    [
        ([TileFault(FIRST, 1)], TypeError, "deaths: got list"),
        ({0: [TileFault(FIRST, 1)]}, ValueError, "deaths: got 0"),
        ({1: [TileFault(FIRST, 1, "stuck")]}, ValueError, "deaths: got kind 'stuck'"),
        ({1: [TileFault(FIRST, 1)], 2: [TileFault(FIRST, 1)]}, ValueError, "named twice"),
        ({1: [TileFault("x", 1)]}, ValueError, "layer: got 'x'"),
        ({i: [TileFault(FIRST, i - 1)] for i in range(1, 5)}, ValueError, "no tile of layer"),
    ],
)
def test_wrong_deaths_are_refused(deaths, error, message):
    with pytest.raises(error, match=message), dying_tiles(tiny_network(), deaths, reroute=True):
        raise AssertionError


def test_tiles_dead_already_cannot_die_in_training():
    network = tiny_network()
    with (
        tile_faults(network, [TileFault(FIRST, 3)]),
        pytest.raises(ValueError, match=f"deaths: layer '{FIRST}' has dead tiles already"),
        dying_tiles(network, DEATHS),
    ):
        raise AssertionError


# --- Repairs ----------------------------------------------------------------------------------


def test_copied_kernels_come_from_living_tiles_each_in_turn():
    network = tiny_network(n_tiles=(7, 2, 1))
    before = copy.deepcopy(network.state_dict())
    faults = draw_faults(network, count={FIRST: 5, SECOND: 1})
    repaired = repair_by_copy(network, faults, seed=2)
    assert same_bits(before, network.state_dict())
    for name in (FIRST, SECOND):
        old, new = network.get_submodule(name), repaired.get_submodule(name)
        broken = [fault.tile for fault in faults if fault.layer == name]
        living = sorted(set(range(old.n_tiles)) - set(broken))
        uses = dict.fromkeys(living, 0)
        for tile in living:
            assert torch.equal(new.weight[tile], old.weight[tile])
        for tile in broken:
            (donor,) = [t for t in living if torch.equal(new.weight[tile], old.weight[t])]
            assert torch.equal(new.bias[tile], old.bias[donor])
            uses[donor] += 1
        assert max(uses.values()) - min(uses.values()) <= 1
    again = repair_by_copy(network, faults, seed=2, inplace=True)
    assert again is network
    assert same_bits(again.state_dict(), repaired.state_dict())


def test_copying_restores_a_network_of_equal_tiles():
    network = tiny_network(tile_init="identical")
    faults = draw_faults(network, share=0.75)
    before = outputs_and_state(network)
    with torch.no_grad():
        for fault in faults:
            network.get_submodule(fault.layer).weight[fault.tile] = 0
    assert same_bits(before, outputs_and_state(repair_by_copy(network, faults)))


def test_nothing_to_copy_is_an_error():
    network = tiny_network()
    faults = [TileFault(SECOND, 0), TileFault(SECOND, 1)]
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=f"faults: no tile of layer '{SECOND}' lives"):
        repair_by_copy(network, [TileFault(FIRST, 0), *faults], inplace=True)
    with (
        tile_faults(network, faults[:1], reroute=True),
        pytest.raises(ValueError, match=f"faults: no tile of layer '{SECOND}' lives"),
    ):
        repair_by_copy(network, faults[1:])
    assert same_bits(before, network.state_dict())


def test_fine_tuning_lowers_the_loss_repeats_and_spares_dead_tiles():
    states = []
    for _ in range(2):
        network = tiny_network().eval()
        dead = network.get_submodule(FIRST).weight[1].clone()
        torch.manual_seed(9)
        with tile_faults(network, [TileFault(FIRST, 1)], reroute=True):
            losses = fine_tune(
                network, tiny_dataset(), scaling(), 30, batch_size=16, learning_rate=0.02, seed=3
            )
        assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.manual_seed(9)))
        assert not network.training
        assert len(losses) == 30
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
        assert torch.equal(network.get_submodule(FIRST).weight[1], dead)
        assert not torch.equal(network.get_submodule(FIRST).weight[0], dead)
        states.append(network.state_dict())
    assert same_bits(*states)
    other = tiny_network()
    fine_tune(other, tiny_dataset(), scaling(), 30, batch_size=16, learning_rate=0.02, seed=4)
    assert not same_bits(states[0], other.state_dict())


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_tile_learns_faster_the_fewer_patches_it_gets(power):
    steps = []
    for living in ((0, 1, 2, 3), (0, 1)):
        network = tiny_network(normalisation="none", tile_init="identical")
        before = network.get_submodule(FIRST).weight.clone()
        network.get_submodule(FIRST).set_living(living)
        fine_tune(
            network, tiny_dataset(), scaling(), 1,
            batch_size=48, learning_rate=1e-3, tile_lr_power=power,
        )  # fmt: skip
        change = (network.get_submodule(FIRST).weight - before).detach()
        steps.append(change.sum(0) / len(living) ** power)
    # Tiles are equal, so their summed gradient is the same for any assignment.
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-3, atol=1e-6)


def test_fine_tuning_says_when_it_diverges_and_what_is_wrong():
    network = tiny_network(normalisation="none")
    with pytest.raises(DivergedError, match=r"step \d+ of fine-tuning, with learning_rate = 1000"):
        fine_tune(network, tiny_dataset(), scaling(), 20, batch_size=16, learning_rate=1e9)
    for name, value in (("steps", 0), ("batch_size", 49), ("learning_rate", 0), ("momentum", 2)):
        with pytest.raises(ValueError, match=f"{name}: got {value}"):
            fine_tune(network, tiny_dataset(), scaling(), **{"batch_size": 16} | {name: value})


def test_what_a_big_network_takes():
    """Rerouting keeps the network's own size: three layers, two of them broken."""
    network = RapaConvNet()
    with tile_faults(network, draw_faults(network, share=0.5), reroute=True):
        assert list(products(network, (3, 32, 32)).values()) == [128, 128, 64]
