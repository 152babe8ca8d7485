"""Compiled products in bfloat16: within the error that rounding allows, on each kind of units.

Products of two bfloat16 numbers are exact in float32; sums are rounded once, by at most 2⁻⁸ of
their size. See :mod:`bounds`.
"""

import os
import subprocess
import sys

import pytest
import torch
from bounds import check_bounds, results
from reference import GEOMETRIES

from rapa_lib import RapaConv2d
from rapa_lib.layers.products import compiled, gathered

UNITS = [name for name, number in compiled._UNITS.items() if number]


@pytest.fixture(params=UNITS)
def units(request, monkeypatch):
    torch.manual_seed(0)
    if compiled._UNITS[request.param] > compiled._UNITS[compiled._best_units()]:
        pytest.skip(f"no {request.param} is here")
    monkeypatch.setenv("RAPA_BFLOAT16", request.param)
    monkeypatch.setattr(gathered, "forward", None)  # which must not take its place
    return request.param


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_geometry_is_within_the_bound(units, geometry):
    zeros = geometry.get("padding_mode", "zeros") == "zeros"
    if not zeros and units != UNITS[-1]:
        pytest.skip("padding by PyTorch comes before the product")
    arguments = {"kernel_size": 3, "dtype": torch.bfloat16} | geometry
    layer, x = RapaConv2d(4, 8, n_tiles=3, **arguments), torch.randn(2, 4, 9, 8).bfloat16()
    if not zeros:
        layer.padding_mode = "zeros"  # its gradient, folded back in bfloat16, is PyTorch's
    height, width = layer.output_size((9, 8))
    check_bounds(layer, x, torch.randint(-1, 3, (2, height * width)), 2**-8)


# Around the sizes of squares: 16 rows or columns, 32 summed over, 32 patches, 128 at once.
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "groups", "n_tiles"),
    [
        (1, 1, (1, 1), 1, 2),
        (3, 33, (5, 5), 1, 1),
        (16, 16, (2, 1), 1, 70),
        (17, 31, (3, 2), 1, 4),
        (32, 64, (3, 3), 1, 2),
        (45, 90, (2, 2), 3, 2),
        (70, 20, (3, 3), 1, 2),
    ],
)
def test_sizes_around_those_of_squares_are_within_the_bound(
    units, channels, outputs, kernel, groups, n_tiles
):
    layer = RapaConv2d(
        channels, outputs, kernel, groups=groups, n_tiles=n_tiles, dtype=torch.bfloat16
    )
    x = torch.randn(2, channels, 11, 10).bfloat16()
    height, width = layer.output_size((11, 10))
    # Most patches go to the first tile, some to none: loads are uneven.
    tiles = torch.randint(-1, n_tiles, (2, height * width))
    check_bounds(layer, x, torch.where(torch.rand(tiles.shape) < 0.6, 0, tiles), 2**-8)


def test_chunks_keep_their_sums_in_single(units, monkeypatch):
    """The sum is 4000, a number of bfloat16; added up in that type it would stop at 256."""
    layer = RapaConv2d(1, 1, 1, n_tiles=2, dtype=torch.bfloat16)
    x = torch.ones(2000, 1, 2, 2, dtype=torch.bfloat16)
    for room in (2**16, compiled.BUFFER_BYTES):
        monkeypatch.setattr(compiled, "BUFFER_BYTES", room)
        for gradient in torch.autograd.grad(layer(x).sum(), tuple(layer.parameters())):
            assert gradient.flatten().tolist() == [4000, 4000]


@pytest.mark.parametrize("n_tiles", [3, 100])
def test_the_same_bits_again_and_chunked_within_rounding(units, n_tiles, monkeypatch):
    layer = RapaConv2d(5, 20, 5, padding=2, n_tiles=n_tiles, dtype=torch.bfloat16)
    x, assignment = torch.randn(19, 5, 11, 13).bfloat16(), layer.assignment(19, (11, 13))
    weights, before = torch.randn(19, 20, 11, 13).bfloat16(), torch.get_num_threads()
    found = []
    try:
        for threads, room in ((2, 2**24), (2, 2**24), (1, 2**24), (5, 2**24), (2, 2**14)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(compiled, "BUFFER_BYTES", room)
            found.append(results(layer, x, assignment, weights))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found[:2], strict=True))
    for other in found[2:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a.float() - b.float()).norm() <= 2**-7 * a.float().norm()


def test_what_is_not_finite_stays_where_it_belongs(units):
    """Filled-up squares multiply by zero what is not there: it must be nothing, not NaN."""
    layer = RapaConv2d(3, 5, 3, padding=1, n_tiles=2, dtype=torch.bfloat16)
    x = torch.randn(3, 3, 7, 7).bfloat16()
    assignment = layer.assignment(3, (7, 7))
    clean = results(layer, x, assignment, torch.ones(3, 5, 7, 7).bfloat16())
    x[1, :, 3, 3] = float("nan")
    y, by_x, by_weight, by_bias = results(layer, x, assignment, torch.ones(3, 5, 7, 7).bfloat16())
    touched = torch.zeros(3, 5, 7, 7, dtype=torch.bool)
    touched[1, :, 2:5, 2:5] = True
    assert torch.equal(y.isnan(), touched)
    assert torch.equal(y[~touched], clean[0][~touched])
    assert torch.equal(by_x, clean[1])
    assert by_weight.isnan().any()
    assert torch.equal(by_bias, clean[3])


def test_autocast_takes_this_path(units, monkeypatch):
    called = []
    call = compiled._call

    def record(product, layer, first, *rest):
        call(product, layer, first, *rest)
        called.append((product, first.dtype, layer.units))

    monkeypatch.setattr(compiled, "_call", record)
    layer, x = RapaConv2d(4, 8, 3, n_tiles=4), torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    y.float().pow(2).sum().backward()
    expected = ("forward", "grad_input", "grad_weight")
    assert called == [(name, torch.bfloat16, compiled._UNITS[units]) for name in expected]
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32


def test_a_value_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv("RAPA_BFLOAT16", "gpu")
    with pytest.raises(ValueError, match="RAPA_BFLOAT16: got 'gpu', allowed: off, avx512, amx"):
        compiled.bfloat16_units()


PROBE = """
import logging, torch
logging.basicConfig(format="%(message)s")
from rapa_lib import RapaConv2d
from rapa_lib.layers.products import compiled
torch.manual_seed(0)
layer = RapaConv2d(3, 8, 3, n_tiles=4, dtype=torch.bfloat16)
x = torch.randn(5, 3, 9, 9).bfloat16()
assignment = torch.arange(49).expand(5, -1) % 4  # drawing one asks for float32's products
print(compiled.bfloat16_units(), layer(x, assignment).double().norm().item())
layer(x, assignment)
"""


@pytest.mark.skipif(compiled._library() is None, reason="no C++ compiler is here")
def test_other_cpus_fall_back_and_say_so_once(tmp_path):
    def probe(**environment):
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | environment,
            capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
        served, norm = done.stdout.split()
        return served, float(norm), done.stderr

    off = probe(RAPA_BFLOAT16="off")
    assert off[0] == "off"
    assert off[2] == ""
    served, norm, logged = probe(RAPA_KERNELS_FLAGS="-march=x86-64-v3 -O0")
    assert served == "off"
    assert norm == off[1]
    assert logged.count("in bfloat16 run in PyTorch alone") == 1
