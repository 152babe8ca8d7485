"""The products through Triton: right in its interpreter, where no GPU is, and right on a GPU.

Those that need one or the other take ``device``. One test starts a process in which Triton
interprets kernels, as it must be told before it is imported, and runs them there on tiny sizes.
"""

import importlib.util
import logging
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from bounds import check_bounds, results
from reference import GEOMETRIES

from rapa_lib import RapaConv2d
from rapa_lib.layers.products import compiled, gathered, gpu
from rapa_lib.layers.products import operators as ops

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SINGLE, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
# The unit of rounding, and half of the least number. The interpreter cuts bfloat16 off.
UNITS = {SINGLE: (2**-24, 0), BFLOAT: (2**-7 if INTERPRETED else 2**-8, 0), HALF: (2**-11, 2**-25)}


@pytest.fixture
def device(monkeypatch):
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or Triton's interpreter")
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    if INTERPRETED:
        monkeypatch.setattr(gpu, "serves", lambda tensor: tensor.dtype in UNITS)
    for path in (compiled, gathered):  # which must not take its place
        monkeypatch.setattr(path, "forward", None)
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def small_blocks(monkeypatch):
    """So that tiny products take several blocks every way, and tiles are shared out."""
    monkeypatch.setattr(gpu, "_MOST_ROWS", 16)
    monkeypatch.setattr(gpu, "_MOST_COLUMNS", 16)
    monkeypatch.setattr(gpu, "_DEPTH_BYTES", 64)
    monkeypatch.setattr(gpu, "_LEAST_SHARE", 16)


def inputs(device, dtype, channels, outputs, batch=2, size=(6, 5), n_tiles=3, **arguments):
    """A layer, images and an assignment: uneven, and some patches are of no tile."""
    layer = RapaConv2d(channels, outputs, n_tiles=n_tiles, **arguments).to(device, dtype)
    x = torch.randn(batch, channels, *size).to(device, dtype)
    height, width = layer.output_size(size)
    tiles = torch.randint(-1, n_tiles, (batch, height * width))
    tiles = torch.where(torch.rand(tiles.shape) < 0.4, 0, tiles)
    return layer, x, tiles.to(device)


def recorded(monkeypatch):
    """The compile-time constants of every kernel that is started from here on."""
    launch, found = gpu._launch, []

    def record(name, *arguments, **constants):
        found.append(constants)
        launch(name, *arguments, **constants)

    monkeypatch.setattr(gpu, "_launch", record)
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("geometry", [g for g in GEOMETRIES if "padding_mode" not in g], ids=str)
def test_every_geometry_is_within_the_bound(device, geometry):
    case = inputs(device, SINGLE, 4, 4, **({"kernel_size": 3} | geometry))
    check_bounds(*case, *UNITS[SINGLE])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "groups", "n_tiles"),
    [(1, 1, (1, 1), 1, 20), (3, 17, (3, 2), 1, 1), (18, 34, (2, 1), 2, 2)],
)
def test_sizes_around_those_of_blocks_are_within_the_bound(
    device, small_blocks, dtype, channels, outputs, kernel, groups, n_tiles
):
    case = inputs(
        device,
        dtype,
        channels,
        outputs,
        kernel_size=kernel,
        groups=groups,
        n_tiles=n_tiles,
        size=(5, 4),
    )
    check_bounds(*case, *UNITS[dtype])


@pytest.mark.gpu
def test_a_tile_is_shared_out(device, monkeypatch):
    monkeypatch.setattr(gpu, "_LEAST_SHARE", 64)
    constants = recorded(monkeypatch)
    layer, x, assignment = inputs(device, BFLOAT, 1, 1, size=(20, 30), kernel_size=1, n_tiles=1)
    y = layer(torch.ones_like(x), assignment)
    by_weight, by_bias = torch.autograd.grad(y.sum(), tuple(layer.parameters()))
    served = int((assignment >= 0).sum())
    rounded = float(torch.tensor(served).to(BFLOAT))  # added up in that type it would stop at 256
    assert served > 512
    assert by_weight.item() == by_bias.item() == rounded
    assert max(found.get("SHARES", 0) for found in constants) > 8


@pytest.mark.gpu
def test_images_in_any_layout_and_a_shared_row_of_tiles(device):
    layer, x, _ = inputs(device, SINGLE, 3, 5, kernel_size=3, padding=1)
    assignment = layer.assignment(1, (6, 5)).to(device).expand(2, -1)
    x = x[:1].expand(2, -1, -1, -1)
    weights = torch.randn(2, 5, 6, 5, device=device)
    wide = torch.zeros(2, 6, 12, 5, device=device)
    wide[:, ::2, ::2] = x
    expected = results(layer, x.contiguous(), assignment.contiguous(), weights)
    channels_last = torch.channels_last
    for images in (x, wide[:, ::2, ::2], x.contiguous(memory_format=channels_last)):
        got = results(layer, images, assignment, weights.to(memory_format=channels_last))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.gpu
def test_the_same_bits_again_and_in_chunks_within_rounding(device, small_blocks, monkeypatch):
    layer, x, assignment = inputs(device, SINGLE, 4, 20, kernel_size=2, n_tiles=2)
    weights = torch.randn(2, 20, 5, 4, device=device)
    first, again = (results(layer, x, assignment, weights) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for name in ("CHUNK_BYTES", "GPU_CHUNK_BYTES"):
        monkeypatch.setattr(gathered, name, 1)
    for a, b in zip(first, results(layer, x, assignment, weights), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
def test_what_is_not_finite_stays_where_it_belongs(device):
    layer, x, _ = inputs(device, HALF, 3, 5, kernel_size=3, padding=1)
    assignment = layer.assignment(2, (6, 5)).to(device)
    weights = torch.ones(2, 5, 6, 5, device=device, dtype=HALF)
    clean = results(layer, x, assignment, weights)
    x[1, :, 3, 3] = float("nan")
    y, by_x, by_weight, by_bias = results(layer, x, assignment, weights)
    touched = torch.zeros(2, 5, 6, 5, dtype=torch.bool, device=device)
    touched[1, :, 2:5, 2:5] = True
    assert torch.equal(y.isnan(), touched)
    assert torch.equal(y[~touched], clean[0][~touched])
    assert torch.equal(by_x, clean[1])
    assert by_weight.isnan().any()
    assert torch.equal(by_bias, clean[3])


@pytest.mark.gpu
def test_no_images_give_nothing(device):
    layer, x, assignment = inputs(device, SINGLE, 3, 5, kernel_size=3)
    y, by_x, *by_parameters = results(layer, x[:0], assignment[:0], x.new_zeros(0, 5, 4, 3))
    assert y.shape == (0, 5, 4, 3)
    assert by_x.shape == (0, 3, 6, 5)
    assert all(not gradient.any() for gradient in by_parameters)


@pytest.mark.gpu
def test_operators_foretell_what_they_make(device):
    """Shapes, strides and types of the fake operators, which ``torch.compile`` goes by."""
    layer, x, assignment = inputs(device, BFLOAT, 4, 6, kernel_size=3, groups=2)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    conv = ([1, 1], [0, 0, 0, 0], [1, 1], 2)
    y = ops.forward(x, weight, bias, assignment, *conv)
    for operator, arguments in (
        (ops.forward, (x, weight, bias, assignment, *conv)),
        (ops.grad_input, (y, weight, assignment, [6, 5], *conv)),
        (ops.grad_weight, (y, x, assignment, 3, [3, 3], *conv)),
    ):
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(operator, arguments, test_utils=checks)


@pytest.mark.gpu
def test_a_tile_that_does_not_exist_is_refused(device):
    layer, x, assignment = inputs(device, SINGLE, 3, 5, kernel_size=3)
    for tile in (3, -2, 2**16):  # 2**16 is 0 in the 16 bits that are sorted
        assignment[1, 1] = tile
        with pytest.raises(ValueError, match=r"assignment: got .* allowed: -1 \(no tile\) to 2"):
            layer(x, assignment)
        with pytest.raises(ValueError, match=r"assignment: got tiles .* -1 \(no tile\) to 2"):
            gpu._Sorted.of(assignment, 3)


@pytest.mark.gpu
def test_single_is_multiplied_as_conv2d_does(device, monkeypatch):
    constants = recorded(monkeypatch)
    layer, x, assignment = inputs(device, SINGLE, 1, 1, kernel_size=1)
    for setting in ("ieee", "tf32"):
        monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", setting)
        layer(x, assignment)
    assert [found["PRECISION"] for found in constants] == ["ieee", "tf32"]


def test_all_of_this_holds_in_the_interpreter():
    if INTERPRETED:
        pytest.skip("here it is")
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d\d passed, \d deselected in", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled here")
@pytest.mark.parametrize(
    ("capability", "dtype", "setting", "unit"),
    [(80, SINGLE, "tf32", "mma.sync"), (90, BFLOAT, "tf32", "wgmma.mma_async")],
)
def test_a_compiler_for_gpus_takes_every_kernel(
    capability, dtype, setting, unit, monkeypatch, tmp_path
):
    """Down to machine code, without a GPU; blocks fit, and matrix units multiply them."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import mangle_type

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", setting)
    monkeypatch.setattr(gpu, "serves", lambda tensor: True)
    found = {}

    def launch(name, grid, *arguments, **constants):
        kernel = getattr(gpu._kernels(), name)
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        types = {key: mangle_type(value, specialize=True) for key, value in named.items()}
        constants |= {key: named[key] for key, kind in types.items() if kind == "constexpr"}
        source = triton.compiler.ASTSource(
            kernel, types | dict.fromkeys(constants, "constexpr"), constants
        )
        found[name] = triton.compile(source, target=GPUTarget("cuda", capability, 32))

    monkeypatch.setattr(gpu, "_launch", launch)
    layer = RapaConv2d(32, 64, 5, padding=2, n_tiles=4).to(dtype)
    x = torch.zeros(16, 32, 16, 16, dtype=dtype, requires_grad=True)
    layer(x, torch.arange(256).expand(16, -1) % 4).sum().backward()
    assert set(found) == {"forward", "grad_patches", "fold", "grad_weight"}
    for name, kernel in found.items():
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= 99 * 2**10  # of compute capability 8.6, the least
        assert (unit in kernel.asm["ptx"]) == (name != "fold")


@pytest.fixture
def on_gpu(monkeypatch):
    """A tensor that says it is on a GPU, which nobody has asked for anything yet."""
    gpu._works.cache_clear()
    yield SimpleNamespace(is_cuda=True, dtype=SINGLE, device=torch.device("cuda", 0))
    gpu._works.cache_clear()


@pytest.mark.parametrize(
    ("capability", "cuda", "reason"),
    [
        ((7, 5), "13.0", "got compute capability (7, 5), needed: (8, 0) or later"),
        ((9, 4), None, "the kernels are written for NVIDIA's GPUs"),
        ((9, 0), "13.0", "import of triton halted"),
    ],
)
def test_without_what_it_needs_pytorch_does_the_work(
    on_gpu, capability, cuda, reason, monkeypatch, caplog
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location(gpu.__name__, gpu.__file__)
    afresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(afresh)  # nothing is missing until a tensor on a GPU comes
    monkeypatch.setattr(ops, "gpu", afresh)
    monkeypatch.delitem(sys.modules, "rapa_lib.layers.products.gpu_kernels", raising=False)
    monkeypatch.delattr("rapa_lib.layers.products.gpu_kernels", raising=False)
    with caplog.at_level(logging.WARNING):
        assert ops._path(on_gpu) is ops._path(on_gpu) is gathered
    assert len(caplog.records) == 1  # not for each product
    assert reason in caplog.text


def test_what_serves_which_tensors(on_gpu, monkeypatch, caplog):
    probed = []
    monkeypatch.setattr(gpu, "_require", lambda device: None)
    monkeypatch.setattr(gpu, "_kernels", lambda: None)
    monkeypatch.setattr(gpu, "_probe", probed.append)
    assert ops._path(on_gpu) is gpu
    assert ops.served_by(on_gpu) == "Triton"
    assert probed == [torch.device("cuda", 0)]
    assert ops.served_by(torch.zeros(1, dtype=HALF)) == "PyTorch"
    on_gpu.dtype = torch.float64
    assert ops._path(on_gpu) is gathered
    on_gpu.dtype = SINGLE
    monkeypatch.setenv("RAPA_KERNELS", "off")
    assert ops._path(on_gpu) is gathered
    assert not caplog.records
