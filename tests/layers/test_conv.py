import copy
import io
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conv import extra_memory
from reference import GEOMETRIES, tiled_conv2d
from torch import nn

from rapa_lib import TILINGS, RapaConv2d, frozen_draws
from rapa_lib.layers.products import compiled, gathered
from rapa_lib.layers.products import operators as ops
from rapa_lib.layers.products.geometry import Geometry


def double_layer(n_tiles=3, tiling="random", tile_init="independent", **geometry):
    arguments = {"kernel_size": 3, "dtype": torch.double} | geometry
    return RapaConv2d(4, 8, n_tiles=n_tiles, tiling=tiling, tile_init=tile_init, **arguments)


def images(dtype=torch.double, n=3, channels=4, size=(9, 8)):
    return torch.randn(n, channels, *size, dtype=dtype, requires_grad=True)


def gradients(y, *inputs):
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return torch.autograd.grad((y * weights).sum() + y.pow(2).sum() / 2, inputs)


def assert_same(a, b, **tolerance):
    """Values and gradients alike; a and b are (output, inputs) of two ways to compute."""
    torch.testing.assert_close(a[0], b[0], **tolerance)
    for one, other in zip(gradients(*_flat(a)), gradients(*_flat(b)), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def _flat(pair):
    return pair[0], *pair[1]


@pytest.fixture(autouse=True, params=["compiled", "gathered"])
def path(request, monkeypatch):
    """Every test runs on both ways to compute the products."""
    torch.manual_seed(0)
    if request.param == "gathered":
        monkeypatch.setenv("RAPA_KERNELS", "off")
    elif compiled._library() is None:
        pytest.skip("no C++ compiler is here")
    return request.param


@pytest.mark.parametrize("tiling", [name for name in TILINGS if name != "none"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_tiling_equals_the_loop_over_patches(tiling, geometry):
    layer, x = double_layer(tiling=tiling, **geometry), images(n=2)
    assignment = layer.assignment(2, (9, 8))
    inputs = (x, *layer.parameters())
    assert_same((layer(x, assignment), inputs), (tiled_conv2d(layer, x, assignment), inputs))


@pytest.mark.parametrize(
    "assignment",
    [
        torch.zeros(2, 72),  # all on one tile
        torch.full((2, 72), -1),  # all skipped
        torch.arange(144).view(2, 72) % 6 - 1,  # some skipped
        torch.arange(144).view(2, 72).pow(2) % 11 % 5,  # uneven
        torch.arange(144).view(2, 72).clamp(max=4),  # nearly all on the last tile
        torch.arange(144).view(2, 72) % 2 * 4,  # some tiles without a patch
    ],
    ids=["one", "none", "skipped", "uneven", "last", "empty"],
)
def test_any_assignment_equals_the_loop_over_patches(assignment):
    layer, x = double_layer(n_tiles=5, padding=1), images(n=2)
    inputs = (x, *layer.parameters())
    assert_same(
        (layer(x, assignment.long()), inputs), (tiled_conv2d(layer, x, assignment.long()), inputs)
    )


@pytest.mark.parametrize("chunk_bytes", [1, 3 * 36 * 72 * 8, 10**9])
def test_chunks_change_nothing(monkeypatch, chunk_bytes):
    layer, x = double_layer(n_tiles=5, padding=1), images(n=7)
    assignment = layer.assignment(7, (9, 8))
    inputs = (x, *layer.parameters())
    before = (layer(x, assignment), gradients(layer(x, assignment), *inputs))
    monkeypatch.setattr(gathered, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(compiled, "BUFFER_BYTES", chunk_bytes)
    after = (layer(x, assignment), gradients(layer(x, assignment), *inputs))
    torch.testing.assert_close(before, after)


# Conv2d, not ours, warns of the copy that it makes there.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_equal_kernels_equal_conv2d(geometry):
    arguments = {"kernel_size": 3, "dtype": torch.double} | geometry
    conv, x = nn.Conv2d(4, 8, **arguments), images()
    for tiling, n_tiles in (("random", 5), ("image", 4), ("none", 1), ("random", 1)):
        layer = RapaConv2d.from_conv2d(conv, n_tiles=n_tiles, tiling=tiling)
        y, expected = layer(x), conv(x)
        by_layer = gradients(y, x, *layer.parameters())
        by_conv = gradients(expected, x, *conv.parameters())
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(by_layer[0], by_conv[0])
        for one, other in zip(by_layer[1:], by_conv[1:], strict=True):
            torch.testing.assert_close(one.sum(0), other)
        if n_tiles == 1:
            assert torch.equal(y, expected)


@pytest.mark.parametrize("geometry", GEOMETRIES[:9], ids=str)
def test_gradcheck(geometry):
    layer = double_layer(n_tiles=2, **geometry)
    x = torch.randn(2, 4, 5, 6, dtype=torch.double, requires_grad=True)
    assignment = layer.assignment(2, (5, 6))
    bias = () if layer.bias is None else (layer.bias,)

    def convolve(x, weight, *bias):
        return layer._convolve(x, weight, bias[0] if bias else None, assignment)

    assert torch.autograd.gradcheck(convolve, (x, layer.weight, *bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(convolve, (x, layer.weight, *bias), fast_mode=True)


def test_torch_func_nests():
    layer, x = double_layer(padding=1), images(n=2).detach()
    assignment = layer.assignment(2, (9, 8))

    def loss(weight):
        parameters = {"weight": weight, "bias": layer.bias}
        return torch.func.functional_call(layer, parameters, (x, assignment)).pow(3).sum()

    weight, v = layer.weight.detach(), torch.randn_like(layer.weight)
    _, hessian_product = torch.func.vjp(torch.func.grad(loss), weight)
    weight = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
    (expected,) = torch.autograd.grad(gradient, weight, v)
    torch.testing.assert_close(hessian_product(v)[0], expected)


def test_only_needed_gradients_are_computed(monkeypatch):
    layer, x = double_layer(), images()
    calls = []
    for name in ("grad_input", "grad_weight"):
        real = getattr(ops, name)
        monkeypatch.setattr(
            ops, name, lambda *a, real=real, name=name: calls.append(name) or real(*a)
        )
    layer(x.detach()).sum().backward()
    assert calls == ["grad_weight"]
    calls.clear()
    layer.requires_grad_(False)(x).sum().backward()
    assert calls == ["grad_input"]


def test_operators_pass_torchs_own_check():
    conv = ([1, 2], [1, 0, 2, 1], [1, 1], 2)
    x, weight = torch.randn(3, 4, 6, 5), torch.randn(3, 8, 2, 3, 2)
    y_size = Geometry.of((6, 5), (3, 2), *conv[:3])
    assignment = torch.randint(-1, 3, (3, y_size.n_patches))
    y = ops.forward(x, weight, torch.randn(3, 8), assignment, *conv)
    torch.library.opcheck(ops.forward, (x, weight, None, assignment, *conv))
    torch.library.opcheck(ops.grad_input, (y, weight, assignment, [6, 5], *conv))
    torch.library.opcheck(ops.grad_weight, (y, x, assignment, 3, [3, 2], *conv))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_agree_with_double(dtype):
    layer, x = double_layer(n_tiles=4, padding=1), images(n=5)
    assignment = layer.assignment(5, (9, 8))
    expected = (layer(x, assignment), gradients(layer(x, assignment), x, *layer.parameters()))
    low, z = copy.deepcopy(layer).to(dtype), x.detach().to(dtype).requires_grad_()
    y = low(z, assignment)
    assert y.dtype == dtype
    got = (y, gradients(y, z, *low.parameters()))
    for one, other in zip((got[0], *got[1]), (expected[0], *expected[1]), strict=True):
        error = (one.double() - other).norm() / other.norm()
        assert error < 30 * torch.finfo(dtype).eps


def test_many_chunks_of_half_precision_sum_in_single(monkeypatch):
    """Kernel gradients of many images: each chunk's share must not be rounded on its own."""
    layer = RapaConv2d(1, 1, 1, bias=False, n_tiles=2).to(torch.bfloat16)
    x = torch.ones(2000, 1, 2, 2, dtype=torch.bfloat16)
    monkeypatch.setattr(gathered, "CHUNK_BYTES", 1)
    (gradient,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    assert gradient.flatten().tolist() == [4000, 4000]  # bfloat16 alone would stop at 256


def test_autocast():
    layer, x = RapaConv2d(4, 8, 3, n_tiles=4), images(torch.float32)
    assignment = layer.assignment(3, (9, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x, assignment)
    assert y.dtype == torch.bfloat16
    expected = copy.deepcopy(layer).bfloat16()(x.bfloat16(), assignment)
    assert torch.equal(y, expected)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert double_layer()(images()).dtype == torch.double


@pytest.mark.parametrize("n_tiles", [1, 4])
def test_memory_formats(n_tiles):
    layer, x = double_layer(n_tiles=n_tiles, padding=1), images()
    assignment = layer.assignment(3, (9, 8))
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(last, assignment)
    torch.testing.assert_close(y, layer(x, assignment))
    torch.testing.assert_close(gradients(y, last), gradients(layer(x, assignment), x))
    assert y.is_contiguous(memory_format=torch.channels_last)
    strided = torch.randn(3, 4, 9, 16, dtype=torch.double)[..., ::2]
    torch.testing.assert_close(layer(strided, assignment), layer(strided.clone(), assignment))


def test_assignments_and_biases_may_have_any_strides():
    layer, x = double_layer(padding=1), images()
    assignment = layer.assignment(3, (9, 8))
    expected = layer(x, assignment)
    torch.testing.assert_close(layer(x, assignment.t().contiguous().t()), expected)
    torch.testing.assert_close(layer(x, assignment.repeat_interleave(2, dim=1)[:, ::2]), expected)
    bias = torch.randn(8, 3, dtype=torch.double).t()  # (3, 8), as a cotangent may lie
    for strided in (bias, bias[:, :1].expand(3, 8)):
        by_strided = layer._convolve(x, layer.weight, strided, assignment)
        torch.testing.assert_close(
            by_strided,
            layer._convolve(
                x, layer.weight, strided.clone(memory_format=torch.contiguous_format), assignment
            ),
        )


def test_unbatched_and_empty_batches():
    layer, x = double_layer(), images()
    assignment = layer.assignment(1, (9, 8))
    one = layer(x[0], assignment)
    assert one.shape == (8, 7, 6)
    assert torch.equal(one, layer(x[:1], assignment)[0])
    assert layer(x[0]).shape == one.shape
    assert layer(x[:0]).shape == (0, 8, 7, 6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_gives_the_same_numbers_in_one_graph():
    layer, x = RapaConv2d(4, 8, 3, n_tiles=4), images(torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for forward in (layer, compiled):
        torch.manual_seed(3)
        y = forward(x)
        results.append((y, *gradients(y, x, *layer.parameters())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(compiled(x), compiled(x))  # draws are not folded into the graph


def test_draws_follow_manual_seed_and_are_fresh():
    layer, x = double_layer(), images()
    torch.manual_seed(7)
    first, second = layer(x), layer(x)
    torch.manual_seed(7)
    assert torch.equal(first, layer(x))
    assert not torch.equal(first, second)
    torch.manual_seed(7)
    assignment = layer.assignment(3, (9, 8))
    assert torch.equal(first, layer(x, assignment))
    assert not torch.equal(layer.eval()(x), layer(x))  # in test as in training


def test_frozen_draws():
    model = nn.Sequential(double_layer(padding=1), double_layer_of(8, padding=1))
    x = images()
    state = torch.get_rng_state()
    with frozen_draws(model, seed=1):
        first = model(x)
        assert torch.equal(first, model(x))
        a, b = (layer.assignment(3, (9, 8)) for layer in model)
        assert not torch.equal(a, b)  # layers draw apart
        with frozen_draws(model, seed=2):
            assert not torch.equal(first, model(x))
        assert torch.equal(first, model(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(model(x), model(x))
    with frozen_draws(model, seed=1):
        assert torch.equal(first, model(x))
    with pytest.raises(RuntimeError, match="inside"), frozen_draws(model, seed=1):
        raise RuntimeError("inside")
    assert not torch.equal(model(x), model(x))
    with frozen_draws(model):
        unseeded = model(x)
        assert torch.equal(unseeded, model(x))
    with frozen_draws(model):
        assert not torch.equal(unseeded, model(x))


def double_layer_of(channels, **geometry):
    return RapaConv2d(channels, 2, 3, dtype=torch.double, n_tiles=3, **geometry)


def test_random_fixed_keeps_its_draw_through_everything():
    layer, x = double_layer(tiling="random_fixed"), images()
    first = layer(x)
    torch.manual_seed(99)
    assert torch.equal(first, layer(x))
    assignment = layer.assignment(3, (9, 8))
    assert torch.equal(assignment[0], assignment[2])
    assert torch.equal(first, copy.deepcopy(layer)(x))
    other = double_layer(tiling="random_fixed")
    assert not torch.equal(other.assignment(1, (9, 8)), assignment[:1])
    other.load_state_dict(layer.state_dict())
    assert torch.equal(first, other(x))


def test_state_dict_round_trip_through_a_file():
    layer, x = double_layer(), images()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = double_layer()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert layer.state_dict()["weight"].shape == (3, 8, 4, 3, 3)
    assert layer.state_dict()["bias"].shape == (3, 8)
    assignment = layer.assignment(3, (9, 8))
    assert torch.equal(layer(x, assignment), other(x, assignment))
    double_layer(tiling="image").load_state_dict(layer.state_dict())  # weights fit every tiling


def test_tile_init():
    identical = RapaConv2d(3, 8, 5, n_tiles=4, tile_init="identical")
    assert (identical.weight == identical.weight[0]).all()
    assert (identical.bias == identical.bias[0]).all()
    independent = RapaConv2d(3, 80, 5, n_tiles=40)
    kernels = F.normalize(independent.weight.flatten(2), dim=2)
    cosines = torch.einsum("soi,toi->sto", kernels, kernels)
    off_diagonal = cosines[~torch.eye(40, dtype=torch.bool)]
    assert off_diagonal.mean().abs() < 0.01
    bound = (3 * 25) ** -0.5  # Conv2d draws uniformly up to 1/√fan_in
    for parameter in independent.parameters():
        assert 0.98 * bound < parameter.abs().max() <= bound
        assert abs(parameter.std() / (bound / 3**0.5) - 1) < 0.05
    torch.manual_seed(4)
    layer = RapaConv2d(3, 8, 5, n_tiles=1)
    torch.manual_seed(4)
    conv = nn.Conv2d(3, 8, 5)
    assert torch.equal(layer.weight[0], conv.weight)
    assert torch.equal(layer.bias[0], conv.bias)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_merged_is_the_mean_kernel(geometry):
    layer, x = double_layer(n_tiles=4, **geometry), images()
    merged = layer.eval().merged()
    assert type(merged) is nn.Conv2d
    assert not merged.training
    torch.testing.assert_close(merged.weight, layer.weight.mean(0))
    if layer.bias is not None:
        torch.testing.assert_close(merged.bias, layer.bias.mean(0))
    # Over all cyclic shifts of an assignment every patch sees every tile once.
    assignment = layer.assignment(3, (9, 8))
    outputs = torch.stack([layer(x, (assignment + t) % 4) for t in range(4)])
    torch.testing.assert_close(merged(x), outputs.mean(0))


def test_from_conv2d_keeps_everything_but_the_tiles():
    conv = nn.Conv2d(4, 8, (3, 2), 2, 1, 1, 2, False, "reflect", dtype=torch.double).eval()
    conv.weight.requires_grad_(False)
    layer = RapaConv2d.from_conv2d(conv, n_tiles=3, tiling="image")
    for name in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
        assert getattr(layer, name) == getattr(conv, name)
    assert not layer.training
    assert not layer.weight.requires_grad
    assert layer.weight.dtype == torch.double
    assert layer.n_tiles == 3
    fresh = RapaConv2d.from_conv2d(conv, n_tiles=2, tile_init="independent")
    assert not torch.equal(fresh.weight[0], fresh.weight[1])
    with pytest.raises(TypeError, match="conv: got Linear"):
        RapaConv2d.from_conv2d(nn.Linear(2, 2))


def test_meta_device_shapes():
    layer = RapaConv2d(3, 8, 5, padding=2, n_tiles=4, device="meta")
    assert layer(torch.empty(2, 3, 9, 9, device="meta")).shape == (2, 8, 9, 9)


def test_arguments_stand_in_conv2d_order():
    import inspect

    names = list(inspect.signature(RapaConv2d).parameters.values())
    expected = list(inspect.signature(nn.Conv2d).parameters.values())
    assert [(p.name, p.default) for p in names[:11]] == [(p.name, p.default) for p in expected]
    assert [(p.name, p.default, p.kind.name) for p in names[11:]] == [
        ("n_tiles", 16, "KEYWORD_ONLY"),
        ("tiling", "random", "KEYWORD_ONLY"),
        ("tile_init", "independent", "KEYWORD_ONLY"),
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_tiles": 0}, ValueError, "n_tiles: got 0, allowed: at least 1"),
        ({"n_tiles": 2.0}, TypeError, r"n_tiles: got 2\.0"),
        ({"tiling": "spiral"}, ValueError, "tiling: got 'spiral', allowed: none, image"),
        ({"tiling": "none"}, ValueError, "n_tiles: got 3, but tiling 'none'"),
        ({"tile_init": "zero"}, ValueError, "tile_init: got 'zero', allowed: independent"),
        ({"groups": 3}, ValueError, "groups: got 3, which does not divide in_channels = 4"),
        ({"padding": "full"}, ValueError, "padding: got 'full', allowed: same, valid"),
        ({"padding": -1}, ValueError, "padding: got -1"),
        ({"padding": "same", "stride": 2}, ValueError, "padding: 'same' needs stride 1"),
        ({"padding_mode": "wrap"}, ValueError, "padding_mode: got 'wrap'"),
        ({"kernel_size": 0}, ValueError, "kernel_size: got 0"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size: got .3, 3, 3."),
        ({"stride": 0}, ValueError, "stride: got 0"),
        ({"dilation": 1.5}, TypeError, r"dilation: got 1\.5"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        double_layer(**arguments)


def test_bad_inputs_are_named():
    layer = double_layer()
    with pytest.raises(ValueError, match=r"input: got 3 channels, this layer takes 4"):
        layer(torch.zeros(1, 3, 8, 8, dtype=torch.double))
    with pytest.raises(ValueError, match=r"input: got shape \(8, 8\)"):
        layer(torch.zeros(8, 8, dtype=torch.double))
    with pytest.raises(TypeError, match=r"input: got torch\.float32"):
        layer(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"input: 2 × 8 pixels"):
        layer(torch.zeros(1, 4, 2, 8, dtype=torch.double))
    with pytest.raises(ValueError, match=r"n_tiles: got 3.*only 2 patches; allowed: 1 to 2"):
        layer(torch.zeros(1, 4, 3, 4, dtype=torch.double))
    x = images()
    good = layer.assignment(3, (9, 8))
    for bad, error, message in (
        (good[:2], ValueError, r"assignment: got shape \(2, 42\), expected .* \(3, 42\)"),
        (good + 1, ValueError, "assignment: got indices 1 to 3, allowed: -1"),
        (good - 2, ValueError, "assignment: got indices -2 to 0"),
        (good.double(), TypeError, "assignment: got torch.float64"),
    ):
        with pytest.raises(error, match=message):
            layer(x, bad)


def test_the_backward_pass_keeps_inputs_and_never_the_unfolded_input():
    """Bytes saved for the backward pass of the network's middle layer: input, kernels, tiles."""
    layer, saved = RapaConv2d(32, 32, 5, padding=2, n_tiles=4), {}
    x = torch.randn(16, 32, 16, 16, requires_grad=True)

    def note(tensor):
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    assignment_bytes = 16 * 256 * 8
    assert sum(saved.values()) <= 4 * (x.numel() + layer.weight.numel()) + assignment_bytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("layer", "n_tiles", "batch"),
    [((3, 32, 32), 16, 128), ((32, 32, 16), 4, 128), ((32, 32, 16), 256, 512)],
)
def test_peak_memory_over_what_any_convolution_needs(path, layer, n_tiles, batch):
    assert extra_memory(layer, n_tiles, batch) < {"compiled": 64, "gathered": 200}[path]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_measure_of_memory_sees_what_is_held():
    assert extra_memory((3, 8, 16), 4, 8, hold=300) > 290


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_gpu_agrees_with_cpu(geometry):
    layer, x = double_layer(**geometry), images()
    assignment = layer.assignment(3, (9, 8))
    y = layer(x, assignment)
    expected = gradients(y, x, *layer.parameters())
    there, z = copy.deepcopy(layer).cuda(), x.detach().cuda().requires_grad_()
    y_there = there(z, assignment)
    torch.testing.assert_close(y_there.cpu(), y)
    for one, other in zip(gradients_on(y_there, z, there), expected, strict=True):
        torch.testing.assert_close(one.cpu(), other)
    torch.manual_seed(0)
    first = there(z)
    torch.manual_seed(0)
    assert torch.equal(first, there(z))
    with frozen_draws(there, seed=1):
        assert torch.equal(there(z), there(z))


def gradients_on(y, x, layer):
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).to(y.device).view_as(y)
    return torch.autograd.grad((y * weights).sum() + y.pow(2).sum() / 2, (x, *layer.parameters()))


def test_kernel_matrices_round_trip():
    for groups, kernel in itertools.product((1, 2), ((3, 3), (1, 2))):
        weight = torch.randn(3, 8, 4 // groups, *kernel)
        matrices = gathered._kernel_matrices(weight, groups)
        assert torch.equal(gathered._kernels(matrices, kernel), weight)
