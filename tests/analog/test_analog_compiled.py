"""The compiled analog products and pulses against those in PyTorch alone."""

from dataclasses import replace

import pytest
import torch
from test_analog_layers import GEOMETRIES, QUIET, WIDE, pair

from rapa_lib.analog import (
    AnalogTileArray,
    ChoppedTransferCompound,
    ConstantStepDevice,
    IOParameters,
    SoftBoundsDevice,
    TileConfig,
    UpdateParameters,
    _compiled,
)

needs_compiler = pytest.mark.skipif(
    not _compiled.serves(torch.zeros(1)), reason="no C++ compiler is here"
)


@pytest.fixture
def both(monkeypatch):
    """Call something on the compiled path, then in PyTorch alone."""

    def run(call):
        compiled = call()
        monkeypatch.setenv("RAPA_KERNELS", "off")
        assert not _compiled.serves(torch.zeros(1))
        alone = call()
        monkeypatch.delenv("RAPA_KERNELS")
        return compiled, alone

    return run


@needs_compiler
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(
    "io",
    [QUIET, replace(QUIET, inp_res=0, out_res=0), replace(QUIET, noise_management="none")],
    ids=["quiet", "no-converters", "no-scale"],
)
def test_products_without_noise_agree(both, io, geometry):
    torch.manual_seed(0)
    _, layer, x = pair(TileConfig(io, io, device=WIDE), dtype=torch.float, **geometry)
    assignment = layer.assignment(3, (9, 8))
    assignment[1, 2] = -1
    grad = torch.randn_like(layer(x, assignment))

    def products():
        y = layer(x, assignment)
        return y.detach(), torch.autograd.grad(y, x, grad)[0]

    for ours, theirs in zip(*both(products), strict=True):
        # A sum in another order can fall on the other side of a converter's tie: one step.
        step = 3 * float(theirs.abs().max()) * max(io.out_res, 1e-5)
        assert ((ours - theirs).abs() > 1e-4).double().mean() < 0.01
        assert (ours - theirs).abs().max() < max(step, 0.1)


@needs_compiler
@pytest.mark.parametrize("desired_bl", [5, 31])
@pytest.mark.parametrize("kind", [ConstantStepDevice, SoftBoundsDevice])
def test_updates_agree(both, kind, desired_bl):
    torch.manual_seed(0)
    device = kind(dw_min_dtod=0, w_max_dtod=0, w_min_dtod=0, up_down_dtod=0, up_down=0.1)
    update = UpdateParameters(desired_bl)
    x, d, n = torch.randn(7, 37), torch.randn(7, 19) / 3, 2000
    x[1], d[2] = 0, 0
    x = x.repeat_interleave(n, 0)
    d = d.repeat_interleave(n, 0)

    def draws():
        tiles = AnalogTileArray(n, 37, 19, TileConfig(device=device, update=update), seed=0)
        tiles.update(x, d, 0.01, torch.arange(n).repeat(7))
        return tiles.read()

    ours, theirs = both(draws)
    error = ((ours.var(0) + theirs.var(0)) / n).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error + 1e-7).all()
    ratio = (ours.var(0).mean() / theirs.var(0).mean()).sqrt()
    assert float(ratio) == pytest.approx(1, abs=0.01)


@needs_compiler
@pytest.mark.parametrize("kind", [ConstantStepDevice, SoftBoundsDevice])
def test_signs_of_inputs_turn_pulses_round(both, kind):
    """All steps of a device are of one size, and all pulses certain: nothing is left to chance."""
    same = {"dw_min": 0.01, "dw_min_dtod": 0, "dw_min_std": 0, "w_max_dtod": 0, "w_min_dtod": 0}
    device = kind(**same, up_down_dtod=0)
    compound = ChoppedTransferCompound(fast_device=device, slow_device=device, transfer_every=0)
    update = UpdateParameters(5, update_management=False, update_bl_management=False)
    torch.manual_seed(0)
    x, d = torch.randn(4, 37).sign(), torch.randn(4, 19).sign()
    signs, groups = torch.randn(3, 37).sign(), torch.tensor([0, 1, 1, 2])

    def moved():
        tiles = AnalogTileArray(3, 37, 19, TileConfig(device=compound, update=update), seed=0)
        tiles._compound.signs.copy_(signs)
        tiles.update(x, d, 0.05, groups)
        return tiles._compound.fast.clone()

    ours, theirs = both(moved)
    torch.testing.assert_close(ours, theirs)
    if kind is ConstantStepDevice:  # every patch: five pulses of one step
        expected = torch.zeros(3, 37, 19)
        for patch, tile in enumerate(groups):
            expected[tile] -= 0.05 * torch.outer(x[patch] * signs[tile], d[patch])
        torch.testing.assert_close(ours, expected)


@needs_compiler
def test_threads_change_no_bit():
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            tiles = AnalogTileArray(5, 30, 20, seed=0)
            x, groups = torch.randn(200, 30), torch.arange(200) % 5
            y = tiles(x, groups)
            tiles.update(x, y / 10, 0.01, groups)
            results.append(torch.cat([y.flatten(), tiles.read().flatten()]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@needs_compiler
def test_normal_draws_are_normal():
    torch.manual_seed(0)
    io = IOParameters(inp_res=0, out_res=0, out_noise=1.0, noise_management="none")
    tile = AnalogTileArray(1, 1, 32, TileConfig(forward=io))
    z = tile(torch.ones(40_000, 1)).double()
    z = (z - tile.read()[0, :, 0]).flatten()
    n = len(z)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((z**power).mean() - moment) < 4 * (variance / n) ** 0.5, power
    for at in (1, 2, 3, 4):
        p = 2 * float(torch.special.ndtr(torch.tensor(-float(at), dtype=torch.double)))
        assert abs((z.abs() > at).double().mean() - p) < 4 * (p / n) ** 0.5, at
    pairs = z.view(-1, 32)
    correlations = torch.corrcoef(pairs.T) - torch.eye(32)
    assert correlations.abs().max() < 4.5 / 40_000**0.5
    assert abs((pairs[1:] * pairs[:-1]).mean()) < 4 / n**0.5


MEMORY = """
import torch
from rapa_lib.analog import AnalogRapaConv2d, AnalogSGD

def memory(kind):
    for line in open("/proc/self/status"):
        if line.startswith(kind):
            return int(line.split()[1]) / 1024

layer = AnalogRapaConv2d(32, 32, 5, padding=2, n_tiles=256)
optimizer = AnalogSGD(layer, lr=0.01)
x = torch.randn(128, 32, 16, 16, requires_grad=True)
d = torch.randn(128, 32, 16, 16) / 1000
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
layer(x).backward(d)
optimizer.step()
print(memory("VmHWM") - before)
"""


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_memory_of_a_step_at_batch_128(run_python, monkeypatch, kernels):
    monkeypatch.setenv("RAPA_KERNELS", kernels)
    assert float(run_python(MEMORY)) < 500
