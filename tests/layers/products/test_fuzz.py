"""Whatever a layer is made into, it says what is wrong, or computes what the slow reference does.

The normal run is short. ``make test-fuzz`` runs the same properties for ten minutes on compiled
products with an address and an undefined behaviour sanitizer in them, which end the process at the
first access outside a tensor.
"""

import contextlib
import copy
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import reference
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn

from rapa_lib import RapaConv2d
from rapa_lib.analog import (
    AnalogTileArray,
    ConstantStepDevice,
    IOParameters,
    TileConfig,
    _compiled,
)
from rapa_lib.layers.products import compiled
from rapa_lib.layers.products import operators as ops

QUICK = settings(
    max_examples=25, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -O1 -g1"
OURS = (ValueError, TypeError)
SIZES = st.sampled_from([1, 2, 3, 5, 8, 17])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


@st.composite
def layers(draw):
    """A layer of random geometry and type."""
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    return RapaConv2d(
        groups * draw(SIZES), groups * draw(SIZES), draw(pair), draw(pair),
        draw(st.tuples(st.integers(0, 2), st.integers(0, 2))), draw(pair), groups,
        draw(st.booleans()), n_tiles=draw(st.integers(1, 6)), dtype=draw(DTYPES),
    )  # fmt: skip


@st.composite
def like(draw, tensor):
    """Random numbers of a tensor's shape, in one of the ways that they can lie in memory."""
    values = torch.randn_like(tensor, memory_format=torch.contiguous_format)
    order = draw(st.permutations(range(tensor.dim())))
    back = [order.index(i) for i in range(tensor.dim())]
    match draw(st.sampled_from(["permuted", "strided", "expanded", "offset"])):
        case "permuted":
            return values.permute(order).contiguous().permute(back)
        case "strided":
            return torch.stack([values, values + 1], -1)[..., 1]
        case "expanded":
            return values[:1].expand_as(values)
        case _:
            return torch.cat([values.flatten(), values.flatten()[:1]])[1:].view(values.shape)


@st.composite
def misfits(draw, tensor):
    """A tensor of another shape or type."""
    shape = list(tensor.shape)
    match draw(st.sampled_from(["size", "less", "more", "type", "sparse"])):
        case "size":
            shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(0, 9))
            return torch.randn(shape, dtype=tensor.dtype)
        case "less":
            return torch.randn(shape[1:], dtype=tensor.dtype)
        case "more":
            return torch.randn([1, *shape], dtype=tensor.dtype)
        case "type":
            return torch.randn(shape).to(draw(st.sampled_from([torch.half, *DTYPES.elements])))
        case _:
            return torch.randn(shape, dtype=tensor.dtype).to_sparse()


def compare(layer, x, assignment):
    """Output and gradients against the reference, in float64 of the same numbers."""
    y = layer(x, assignment)
    exact = copy.deepcopy(layer).double()
    z = x.detach().double().requires_grad_()
    expected = reference.tiled_conv2d(exact, z, assignment)
    weights = torch.randn_like(y)
    pairs = zip(
        (y, *torch.autograd.grad(y, (x, *layer.parameters()), weights)),
        (expected, *torch.autograd.grad(expected, (z, *exact.parameters()), weights.double())),
        strict=True,
    )
    for one, other in pairs:
        if y.dtype == torch.bfloat16:  # PyTorch alone rounds what it adds up; test_bfloat16 bounds
            assert (one.double() - other).norm() <= 0.02 * other.norm() + 0.02
            continue
        close = {"rtol": 1e-3, "atol": 1e-3} if y.dtype == torch.float32 else {}
        torch.testing.assert_close(one.double(), other, **close)


@pytest.fixture(scope="module", params=["compiled", "gathered"])
def path(request):
    """Both ways to compute the products."""
    if request.param == "compiled" and compiled._library() is None:
        pytest.skip("no C++ compiler is here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPA_KERNELS", "auto" if request.param == "compiled" else "off")
        yield request.param


@QUICK
@given(st.data())
def any_layer_is_right(data):
    layer = data.draw(layers())
    images = torch.zeros(data.draw(st.integers(1, 3)), layer.in_channels, 9, 8).to(layer.weight)
    x = data.draw(like(images)).requires_grad_()
    for parameter in layer.parameters():
        parameter.data = data.draw(like(parameter.data))
    n_patches = layer.output_size((9, 8))
    size = (len(x), n_patches[0] * n_patches[1])
    tiles = torch.randint(-1, layer.n_tiles, size)
    assignment = tiles[:1].expand(size) if data.draw(st.booleans()) else tiles.t().contiguous().t()
    compare(layer, x, assignment)


@QUICK
@given(st.data())
def any_tampered_layer_is_refused_or_right(data):
    layer = data.draw(layers())
    x = torch.randn(2, layer.in_channels, 9, 8, dtype=layer.weight.dtype, requires_grad=True)
    for name in data.draw(st.lists(st.sampled_from(["weight", "bias", *ATTRIBUTES]), max_size=2)):
        if name in ATTRIBUTES:
            setattr(layer, name, data.draw(ATTRIBUTES[name]))
        elif (old := getattr(layer, name)) is not None:
            setattr(layer, name, nn.Parameter(data.draw(misfits(old.detach()))))
    try:
        y = layer(x)
        y.sum().backward()
    except OURS:
        return
    except RuntimeError:  # one tile is an ordinary convolution, PyTorch's, and its own words
        assert layer.n_tiles == 1
        return
    if layer.n_tiles > 1 and not layer.weight.is_sparse:
        compare(layer, x, torch.randint(-1, layer.n_tiles, layer.assignment(2, (9, 8)).shape))


ATTRIBUTES = {
    "n_tiles": st.integers(1, 9),
    "groups": st.integers(-1, 3),
    "in_channels": st.integers(0, 9),
    "stride": st.tuples(st.integers(-1, 10**9), st.integers(0, 3)),
    "dilation": st.tuples(st.integers(-1, 3), st.integers(0, 10**9)),
    "_pads": st.tuples(*[st.sampled_from([-1, 0, 1, 2, 40])] * 4),
}


@QUICK
@given(st.data())
def any_call_of_an_operator_is_refused_or_safe(data):
    number = st.one_of(st.integers(-1, 4), st.sampled_from([0, 2**31, 2**62]))
    tensors = [torch.randn(2, 3, 6, 5), torch.randn(4, 8, 3, 2, 2), torch.randn(4, 8)]
    grad = torch.randn(2, 8, 5, 4)
    assignment = torch.randint(-1, 4, (2, 20))
    conv = [[1, 1], [0, 0, 0, 0], [1, 1], 1]
    which = data.draw(st.integers(0, 9))
    if which < 3:
        tensors[which] = data.draw(misfits(tensors[which]))
    elif which == 3:
        grad = data.draw(misfits(grad))
    elif which < 7:
        part = conv[which - 4]
        part[data.draw(st.integers(0, len(part) - 1))] = data.draw(number)
    elif which == 7:
        conv[3] = data.draw(number)
    elif which == 8:
        assignment[1, 3] = data.draw(st.sampled_from([-(2**62), -2, 4, 2**31, 2**62]))
    else:
        assignment = data.draw(st.sampled_from([assignment[:1], assignment.int(), assignment[0]]))
    x, weight, bias = tensors
    size, kernel = (data.draw(st.lists(number, max_size=3)) for _ in range(2))
    for call in (
        lambda: ops.forward(x, weight, bias, assignment, *conv),
        lambda: ops.grad_input(grad, weight, assignment, [6, 5], *conv),
        lambda: ops.grad_weight(grad, x, assignment, 4, [2, 2], *conv),
        lambda: ops.grad_input(grad, weight, assignment, size, *conv),
        lambda: ops.grad_weight(grad, x, assignment, data.draw(number), kernel, *conv),
    ):
        with contextlib.suppress(OURS):
            call()


@QUICK
@given(st.data())
def any_tampered_tile_array_is_refused_or_right(data):
    device = ConstantStepDevice(dw_min_std=0.0, w_min_dtod=0.0, w_max_dtod=0.0)
    config = TileConfig(forward=IOParameters.perfect(), device=device)
    tiles = AnalogTileArray(
        data.draw(st.integers(1, 4)), data.draw(SIZES), data.draw(SIZES), config
    )
    names = ["weight", "n_tiles", "in_features", "out_features", "w_max"]
    name = data.draw(st.sampled_from(["nothing", *names]))
    if name in ("weight", "w_max"):
        old = getattr(tiles, name).detach()
        new = data.draw(st.one_of(misfits(old), like(old)))
        setattr(tiles, name, nn.Parameter(new) if name == "weight" else new)
    elif name != "nothing":
        setattr(tiles, name, data.draw(st.integers(1, 9)))
    x = data.draw(like(torch.zeros(7, tiles.in_features)))
    d = data.draw(like(torch.zeros(7, tiles.out_features)))
    groups = torch.randint(-1, tiles.n_tiles, (7,))
    try:
        y = tiles(x, groups)
        tiles.backward(d, groups)
        tiles.update(x, d, 0.01, groups)
        y = tiles(x, groups)
    except OURS:
        return
    expected = torch.zeros(7, tiles.out_features)
    for i, tile in enumerate(groups.tolist()):
        if tile >= 0:
            expected[i] = tiles.weight[tile].detach() @ x[i]
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)


PROPERTIES = (
    any_layer_is_right,
    any_tampered_layer_is_refused_or_right,
    any_call_of_an_operator_is_refused_or_safe,
    any_tampered_tile_array_is_refused_or_right,
)


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_whatever_comes_is_refused_or_right(path, check):
    torch.manual_seed(0)
    check()


def fuzz(seconds: float) -> None:
    """Check the properties again and again with fresh examples; run under the sanitizers."""
    assert compiled._library() is not None
    assert _compiled.serves(torch.zeros(1))  # compiles, which is not to count
    began, rounds = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        for check in PROPERTIES:
            torch.manual_seed(rounds)
            fresh = settings(QUICK, derandomize=False, max_examples=10, phases=[Phase.generate])
            seed(rounds)(fresh(given(st.data())(check.hypothesis.inner_test)))()
        rounds += 1
    print(rounds, "rounds of", 10 * len(PROPERTIES), "examples")


@pytest.mark.fuzz
def test_ten_minutes_under_sanitizers_are_clean():
    """RAPA_FUZZ_SECONDS sets another time."""
    compiler = os.environ.get("CXX", "c++").split()
    # libstdc++ as well: the sanitizer must know what throws, and Python does not link it.
    preload = []
    for name in ("libasan.so", "libstdc++.so"):
        found = subprocess.run(
            [*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(found).is_absolute():
            pytest.skip(f"the compiler has no {name}")
        preload.append(found)
    seconds = float(os.environ.get("RAPA_FUZZ_SECONDS", 600))
    done = subprocess.run(
        [sys.executable, "-c", f"import test_fuzz; test_fuzz.fuzz({seconds})"],
        env=os.environ
        | {
            "LD_PRELOAD": " ".join(preload),
            "RAPA_KERNELS": "auto",
            "RAPA_KERNELS_FLAGS": SANITIZERS,
            # Python and PyTorch leave memory behind; theirs is none of our concern.
            "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parents[2]), str(Path(__file__).parent), *sys.path]
            ),
        },
        capture_output=True,
        text=True,
        timeout=seconds + 600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[:8000] + done.stderr[-2000:]
    print(done.stdout)
