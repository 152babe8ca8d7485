"""Tile arrays against slow references, and what they promise whatever is drawn."""

import math
from dataclasses import replace

import pytest
import torch

from rapa_lib.analog import (
    AnalogTileArray,
    ConstantStepDevice,
    IOParameters,
    SoftBoundsDevice,
    TileConfig,
    UpdateParameters,
    _crossbar,
    ideal,
    rpu_baseline,
    trace_update,
)

QUIET = IOParameters(out_noise=0)


def quantized(values, bound, res):
    """Converter: steps of 2 · bound · res within ± bound; ties to zero; and who went past it."""
    if res:
        step = 2 * bound * res
        values = torch.sign(values) * torch.ceil(values.abs() / step * (1 - 1e-6) - 0.5) * step
    return values.clamp(-bound, bound), bool((values.abs() > bound * (1 + 1e-6)).any())


def product(matrix, x, io):
    """One analog product without noise, as its definition tells it."""
    scale = float(x.abs().max()) if io.noise_management == "abs_max" else 1.0
    if scale == 0:
        return torch.zeros(len(matrix), dtype=x.dtype)
    factor = 1
    while True:
        sent, _ = quantized(x / (scale * factor), io.inp_bound, io.inp_res)
        read, exceeds = quantized(matrix @ sent, io.out_bound, io.out_res)
        factor *= 2
        limit = min(io.max_bm_factor, 0.25 / io.inp_res if io.inp_res else math.inf)
        if not exceeds or io.bound_management == "none" or factor > limit:
            return read * scale * factor / 2


def array(config=None, n_tiles=3, seed=0, dtype=torch.double):
    tiles = AnalogTileArray(n_tiles, 7, 5, config, seed=seed, dtype=dtype)
    with torch.no_grad():
        tiles.weight.normal_(0, 0.2)
        tiles.clip()
    return tiles


def vectors(n, width, dtype=torch.double):
    x = torch.randn(n, width, dtype=dtype)
    x[0] = 0
    x[1] *= 1e-3
    return x


@pytest.mark.parametrize(
    "io",
    [
        QUIET,
        replace(QUIET, noise_management="none"),
        replace(QUIET, out_bound=0.1),
        replace(QUIET, out_bound=0.1, inp_res=0),
        replace(QUIET, out_bound=0.1, out_res=0),
        replace(QUIET, out_bound=0.1, bound_management="none"),
        replace(QUIET, out_bound=1e-3, max_bm_factor=8),
        replace(QUIET, inp_bound=0.5, noise_management="none"),
        IOParameters.perfect(),
    ],
    ids=lambda io: f"{io.out_bound:g}-{io.inp_res:.3f}-{io.noise_management}",
)
def test_products_are_those_of_the_definition(io):
    torch.manual_seed(0)
    tiles = array(TileConfig(forward=io, backward=io))
    x, d = vectors(40, 7), vectors(40, 5)
    groups = torch.randint(-1, 3, (40,))
    y, back = tiles(x, groups), tiles.backward(d, groups)
    weight = tiles.read()
    for i, tile in enumerate(groups.tolist()):
        if tile < 0:
            assert not y[i].any()
            assert not back[i].any()
            continue
        torch.testing.assert_close(y[i], product(weight[tile], x[i], io))
        unmanaged = replace(io, bound_management="none")
        torch.testing.assert_close(back[i], product(weight[tile].T, d[i], unmanaged))


def test_noises_have_their_size():
    torch.manual_seed(0)
    n, x = 20_000, torch.linspace(-1, 1, 7).double()
    wires = {"inp_res": 0, "out_res": 0, "out_noise": 0}
    expected = {
        "out_noise": lambda W: torch.full((5,), 0.1).double(),
        "w_noise": lambda W: 0.1 * x.norm() * torch.ones(5).double(),
        "inp_noise": lambda W: 0.1 * W.norm(dim=1),
    }
    for name, size in expected.items():
        tiles = array(TileConfig(forward=IOParameters(**wires | {name: 0.1})), n_tiles=1)
        y = tiles(2 * x.expand(n, -1)) / 2
        torch.testing.assert_close(y.std(0), size(tiles.read()[0]), rtol=0.03, atol=0)
        exact = tiles.read()[0] @ x
        assert ((y.mean(0) - exact).abs() < 4.5 * y.std(0) / n**0.5).all()


@pytest.mark.parametrize("method", ["sequential", "exact"])
@pytest.mark.parametrize("kind", [ConstantStepDevice, SoftBoundsDevice])
def test_weights_stay_inside_every_devices_own_bounds(kind, method):
    torch.manual_seed(0)
    update = UpdateParameters(method=method)
    tiles = array(TileConfig(device=kind(dw_min=0.05), update=update), n_tiles=2)
    for sign in (1, -1):
        x, d = torch.rand(20, 7).double(), sign * torch.rand(20, 5).double()
        tiles.update(x, d, 3.0, torch.arange(20) % 2)
        points, weight = tiles.points(), tiles.read()
        assert (weight <= points.w_max).all()
        assert (weight >= points.w_min).all()
        bound = points.w_min if sign == 1 else points.w_max
        assert ((weight - bound).abs() < 0.1 * bound.abs()).double().mean() > 0.7  # they were hit


def update_draws(config, x, d, lr, n=4000):
    """Weight changes of n equal tiles."""
    tiles = AnalogTileArray(n, x.shape[1], d.shape[1], config, seed=1)
    tiles.update(
        x.repeat_interleave(n, 0), d.repeat_interleave(n, 0), lr, torch.arange(n).repeat(len(x))
    )
    return tiles.read().double()


@pytest.mark.parametrize("kind", [ConstantStepDevice, SoftBoundsDevice])
def test_whole_batches_move_weights_as_single_pulses_do(kind):
    torch.manual_seed(0)
    device = kind(dw_min_dtod=0, w_max_dtod=0, w_min_dtod=0, up_down_dtod=0, up_down=0.2)
    x, d = torch.randn(6, 7), torch.randn(6, 5) / 4
    d[2] = 0
    draws = {
        m: update_draws(TileConfig(device=device, update=UpdateParameters(method=m)), x, d, 0.01)
        for m in ("sequential", "exact")
    }
    ours, theirs = draws["exact"], draws["sequential"]
    error = ((ours.var(0) + theirs.var(0)) / len(ours)).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()
    ratio = (ours.var(0).mean() / theirs.var(0).mean()).sqrt()
    assert ratio == pytest.approx(1, abs=0.03)


def test_exact_pulses_keep_the_correlations_of_a_row():
    """Devices of a row share its train: their counts are correlated."""
    torch.manual_seed(0)
    device = ConstantStepDevice(dw_min_std=0, dw_min_dtod=0, up_down_dtod=0)
    x, d = torch.ones(1, 7), torch.tensor([[0.05, 0.1, 0.2, 0.3, 1.0]])
    correlations = {}
    for method in ("sequential", "exact"):
        update = UpdateParameters(method=method)
        changes = update_draws(TileConfig(device=device, update=update), x, d, 0.02)
        row = changes[:, 3]  # fires with probability 0.3
        correlations[method] = float(torch.corrcoef(row.T)[0, 1:].mean())
    assert correlations["sequential"] > 0.9  # the columns always fire
    assert correlations["exact"] == pytest.approx(correlations["sequential"], abs=0.05)


def test_chunks_change_no_statistics(monkeypatch):
    from rapa_lib.analog import _pulses
    from rapa_lib.layers.products import gathered

    torch.manual_seed(0)
    x, d = torch.randn(30, 7), torch.randn(30, 5)
    config = TileConfig(device=ConstantStepDevice(dw_min_dtod=0, up_down_dtod=0))
    whole = update_draws(config, x, d, 0.002, n=500)
    for module, name in ((gathered, "CHUNK_BYTES"), (_pulses, "BITS_BYTES")):
        monkeypatch.setattr(module, name, 10_000)
    monkeypatch.setattr(_crossbar, "_MOVE_BYTES", 1000)
    parts = update_draws(config, x, d, 0.002, n=500)
    error = (whole.var(0) / 250).sqrt()
    assert ((whole.mean(0) - parts.mean(0)).abs() < 4.5 * error).all()
    assert parts.std(0).mean() == pytest.approx(float(whole.std(0).mean()), rel=0.1)


def test_uneven_and_empty_loads_update_their_own_tiles():
    for method in ("sequential", "exact"):
        update = UpdateParameters(method=method)
        tiles = array(TileConfig(update=update), n_tiles=4)
        before = tiles.read()
        groups = torch.tensor([0] * 50 + [2] * 3 + [-1] * 5)
        tiles.update(torch.ones(58, 7).double(), torch.ones(58, 5).double(), 0.01, groups)
        moved = (tiles.read() != before).flatten(1).any(1)
        assert moved.tolist() == [True, False, True, False]
        tiles.update(torch.ones(0, 7).double(), torch.ones(0, 5).double(), 0.01)
        assert tiles(torch.ones(0, 7).double()).shape == (0, 5)


def test_equal_seeds_give_equal_bits():
    def run(seed):
        torch.manual_seed(seed)
        tiles = array(rpu_baseline(), seed=None, dtype=torch.float)
        x = torch.randn(30, 7)
        y = tiles(x, torch.arange(30) % 3)
        tiles.update(x, y, 0.01, torch.arange(30) % 3)
        return torch.cat([y.flatten(), tiles.backward(y).flatten(), tiles.read().flatten()])

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_devices_are_drawn_from_their_seed_alone():
    torch.manual_seed(0)
    one = AnalogTileArray(2, 3, 4, seed=7)
    state = torch.get_rng_state()
    again = AnalogTileArray(2, 3, 4, seed=7)
    assert torch.equal(state, torch.get_rng_state())
    for name, values in one.points().present().items():
        assert torch.equal(values, again.points().present()[name])
    assert not torch.equal(one.points().w_max, AnalogTileArray(2, 3, 4, seed=8).points().w_max)


def test_programming_clips_and_counts():
    tiles = array(n_tiles=2)
    weight = torch.zeros(2, 5, 7).double()
    weight[0, 0, :3] = 9.0
    weight[1, 1, 1] = -9.0
    with pytest.warns(UserWarning, match="4 of 70 weights are outside the bounds"):
        tiles.program(weight)
    points = tiles.points()
    assert torch.equal(tiles.read()[0, 0, :3], points.w_max[0, 0, :3])
    assert tiles.read()[1, 1, 1] == points.w_min[1, 1, 1]
    tiles.program(torch.zeros(2, 5, 7).double())
    assert not tiles.read().any()
    one = array(ideal(), n_tiles=2)
    one.program(weight)
    assert torch.equal(one.read(), weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, x, d: t(x * math.nan), "input: got numbers that are not finite"),
        (lambda t, x, d: t.backward(d / 0), "input: got numbers that are not finite"),
        (lambda t, x, d: t.update(x, d * math.nan, 0.1), "error: got numbers that are not finite"),
        (lambda t, x, d: t.update(x * math.inf, d, 0.1), "input: got numbers that are not finite"),
        (lambda t, x, d: t.update(x, d, -0.1), r"lr: got -0\.1, allowed: .*at least 0"),
        (lambda t, x, d: t.update_pending(-0.1), r"lr: got -0\.1, allowed: .*at least 0"),
        (lambda t, x, d: t(d), r"x: got shape \(4, 5\), expected \(vectors, 7\)"),
        (lambda t, x, d: t.update(x, x, 0.1), r"d: got shape \(4, 7\), expected \(vectors, 5\)"),
        (lambda t, x, d: t(x, torch.tensor([0, 1, 2, 3])), "groups: got indices 0 to 3, allowed"),
        (lambda t, x, d: t(x, torch.tensor([0])), r"groups: got shape \(1,\), expected 4"),
        (lambda t, x, d: t.program(x), "weight: got shape"),
        (lambda t, x, d: t.program(t.read() * math.nan), "weight: got numbers that are not finite"),
        (lambda t, x, d: array(ideal()).update(x, d, 0.1), "device: got IdealDevice"),
        (lambda t, x, d: AnalogTileArray(0, 1, 1), "n_tiles: got 0"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(call, message):
    tiles = array()
    before = tiles.read()
    with pytest.raises(ValueError, match=message):
        call(tiles, torch.ones(4, 7).double(), torch.ones(4, 5).double())
    assert torch.equal(tiles.read(), before)


def test_bad_types_are_named():
    tiles = array()
    with pytest.raises(TypeError, match=r"x: got torch.float32, but the weights are torch.float64"):
        tiles(torch.ones(4, 7))
    with pytest.raises(TypeError, match=r"groups: got torch.float32, expected torch.int64"):
        tiles(torch.ones(4, 7).double(), torch.ones(4))
    with pytest.raises(TypeError, match="config: got 'ideal', expected a TileConfig"):
        AnalogTileArray(1, 2, 3, "ideal")
    with pytest.raises(TypeError, match=r"dtype: got torch.float16, allowed"):
        AnalogTileArray(1, 2, 3, dtype=torch.half)


@pytest.mark.parametrize("device", [ConstantStepDevice(), SoftBoundsDevice(dw_min=0.01)])
def test_a_traced_update_is_the_sequential_one(device):
    config = TileConfig(device=device, update=UpdateParameters(method="sequential"))
    made, traced = (AnalogTileArray(3, 4, 5, config, seed=1) for _ in range(2))
    x, d = torch.randn(4), torch.randn(5)
    torch.manual_seed(2)
    made.update(x[None], d[None], 0.02, torch.tensor([2]))
    torch.manual_seed(2)
    trace = trace_update(traced, x, d, 0.02, tile=2)
    assert torch.equal(traced.weight, made.weight)
    assert torch.equal(trace.weights[-1], made.weight[2])
    assert len(trace.weights) == len(trace.x) + 1 == len(trace.d) + 1
    moved = (trace.weights[1:] != trace.weights[:-1]).nonzero().tolist()
    met = (trace.d[:, :, None] * trace.x[:, None, :]).nonzero().tolist()
    assert moved == met  # a device steps where, and only where, two pulses meet
    assert (trace.x * x >= 0).all()
    assert (trace.d * d >= 0).all()


def test_what_cannot_be_traced_is_refused():
    tiles = AnalogTileArray(2, 4, 5)
    x, d = torch.ones(4), torch.ones(5)
    with pytest.raises(ValueError, match="tiles: got IdealDevice"):
        trace_update(AnalogTileArray(1, 4, 5, ideal()), x, d, 0.1)
    for wrong in ({"x": torch.ones(5)}, {"d": torch.ones(4)}, {"lr": 0.0}, {"tile": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            trace_update(tiles, **({"x": x, "d": d, "lr": 0.1} | wrong))
