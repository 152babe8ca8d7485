"""The tiled convolution's products compiled for the CPU at hand: float32, float64 and bfloat16.

``kernels.cpp``, and for bfloat16 ``bfloat16.cpp``, is compiled when the first product is asked for
(some seconds, once a machine) and kept in the user's cache folder, with a checksum: only a whole
file is loaded. The compiler is that
of the variable CXX, which may hold options as well; RAPA_KERNELS_FLAGS adds some, such as those of
a sanitizer. Without a C++ compiler :mod:`rapa_lib.layers.products.gathered` does the work, which is
logged once; with the variable RAPA_KERNELS set to ``off`` it does so silently.

Bfloat16 needs a CPU's matrix units (AMX) or its vector instructions AVX512_BF16; the best of them
serves. The variable RAPA_BFLOAT16 holds it to less: ``avx512`` or ``off``. On other CPUs PyTorch
does the work, which is logged once.

Everything that is handed over as a raw pointer was checked by
:mod:`rapa_lib.layers.products.door`.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rapa_lib._files import copy_whole
from rapa_lib.layers.products.geometry import Geometry, kernels_of, matrices_of, pixels_of

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("kernels.cpp")
_BFLOAT16_SOURCE = Path(__file__).with_name("bfloat16.cpp")
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
_SUFFIXES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16"}

# What multiplies bfloat16, as the source numbers it.
_UNITS = {"off": 0, "avx512": 1, "amx": 2}

_MOST_KEYS = 2**31 - 1  # of a row: counted by 32 bits

# For padded images, over all threads. Small images could do with less; more gained nothing.
BUFFER_BYTES = 16 * 2**20


class _Layer(ctypes.Structure):
    """``struct Layer`` of the source."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "batch", "channels", "height", "width",
            "padded_height", "padded_width", "top", "left",
            "out_height", "out_width", "out_channels",
            "kernel_height", "kernel_width", "stride_h", "stride_w", "dilation_h", "dilation_w",
            "stride_n", "stride_c", "stride_y", "stride_x",
            "n_tiles", "assignment_stride", "threads", "buffer_bytes", "groups", "units",
        )
    ]  # fmt: skip


def serves(tensor: Tensor) -> bool:
    """Whether the compiled products can take a convolution of this tensor's type and device."""
    if tensor.device.type != "cpu" or tensor.dtype not in _SUFFIXES:
        return False
    if os.environ.get("RAPA_KERNELS", "auto") == "off":
        return False
    if tensor.dtype == torch.bfloat16:
        return bfloat16_units() != "off"
    return _library() is not None


def bfloat16_units() -> str:
    """What multiplies bfloat16 here: ``amx``, ``avx512``, or ``off``, which leaves it to PyTorch.

    Raises:
        ValueError: if the variable RAPA_BFLOAT16 has no such value.
    """
    asked = os.environ.get("RAPA_BFLOAT16") or "amx"
    if asked not in _UNITS:
        raise ValueError(f"RAPA_BFLOAT16: got {asked!r}, allowed: {', '.join(_UNITS)}")
    return asked if asked == "off" else min(asked, _best_units(), key=_UNITS.__getitem__)


@functools.cache
def _best_units() -> str:
    """The best of this CPU, which the operating system lets the process use."""
    library = _library(_BFLOAT16_SOURCE)
    if library is None:
        return "off"
    library.rapa_bfloat16_units.restype = ctypes.c_int64
    number = library.rapa_bfloat16_units()
    if number == 0:
        log.warning(
            "tiled convolutions in bfloat16 run in PyTorch alone, slower: this CPU or its compiler "
            "has no AVX512_BF16; float32 takes a fraction of the time here"
        )
    return next(name for name, n in _UNITS.items() if n == number)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    geometry: Geometry,
    groups: int,
) -> Tensor:
    """See :func:`rapa_lib.layers.products.operators.forward`."""
    y = x.new_empty(len(x), *geometry.output, weight.shape[1])
    assignment = _rows(assignment)
    bias = None if bias is None else bias.contiguous()
    layer = _layer(x.shape, weight.shape[1], len(weight), assignment, geometry, x.stride(), groups)
    _call("forward", layer, x, matrices_of(weight), bias, assignment, y)
    return y.permute(0, 3, 1, 2)


def grad_input(
    grad: Tensor,
    weight: Tensor,
    assignment: Tensor,
    input_size: tuple[int, int],
    geometry: Geometry,
    groups: int,
) -> Tensor:
    """See :func:`rapa_lib.layers.products.operators.grad_input`."""
    size = (len(grad), weight.shape[2] * groups, *input_size)
    grad_x = grad.new_empty(size[0], *input_size, size[1])
    assignment = _rows(assignment)
    layer = _layer(size, weight.shape[1], len(weight), assignment, geometry, groups=groups)
    _call("grad_input", layer, pixels_of(grad), matrices_of(weight), assignment, grad_x)
    return grad_x.permute(0, 3, 1, 2)


def grad_weight(
    grad: Tensor,
    x: Tensor,
    assignment: Tensor,
    n_tiles: int,
    geometry: Geometry,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """See :func:`rapa_lib.layers.products.operators.grad_weight`."""
    out_channels = grad.shape[1]
    # Zeros: an empty batch writes nothing.
    make = grad.new_empty if len(x) else grad.new_zeros
    matrices = make(n_tiles, *geometry.kernel, x.shape[1] // groups, out_channels)
    by_bias = make(n_tiles, out_channels)
    assignment = _rows(assignment)
    layer = _layer(x.shape, out_channels, n_tiles, assignment, geometry, x.stride(), groups)
    _call("grad_weight", layer, pixels_of(grad), x, assignment, matrices, by_bias)
    return kernels_of(matrices), by_bias


def argsort_rows(keys: Tensor) -> Tensor:
    """Stable order of each row of keys (rows, n), none negative: what drawing a permutation needs.

    Compiled for float32 on a CPU: drawing the assignment of 128 images of 1024 patches took 6.6 ms
    with PyTorch's sort and 1.4 ms with this one (medians of interleaved runs, two threads).
    """
    if keys.dim() != 2:
        raise ValueError(f"keys: got shape {tuple(keys.shape)}, expected (rows, n)")
    served = keys.dtype == torch.float32 and serves(keys) and keys.layout is torch.strided
    if not served or keys.is_neg() or keys.shape[1] > _MOST_KEYS:
        return keys.argsort(dim=1, stable=True)
    keys = keys.contiguous()
    order = torch.empty(keys.shape, dtype=torch.long)
    sizes = [ctypes.c_int64(n) for n in (*keys.shape, torch.get_num_threads())]
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (keys, order)]
    _loaded().rapa_argsort_rows(pointers[0], *sizes, pointers[1])
    return order


def _rows(assignment: Tensor) -> Tensor:
    """The assignment with each image's tiles in one stretch; images may share theirs."""
    return assignment if assignment.stride(1) == 1 else assignment.contiguous()


def _layer(
    size: Sequence[int],
    out_channels: int,
    n_tiles: int,
    assignment: Tensor,
    geometry: Geometry,
    strides: Sequence[int] = (0, 0, 0, 0),
    groups: int = 1,
) -> _Layer:
    left, _, top, _ = geometry.padding
    return _Layer(
        *size, *geometry.size, top, left, *geometry.output, out_channels, *geometry.kernel,
        *geometry.stride, *geometry.dilation, *strides, n_tiles, assignment.stride(0),
        torch.get_num_threads(), BUFFER_BYTES, groups, 0,
    )  # fmt: skip


def _call(product: str, layer: _Layer, first: Tensor, *rest: Tensor | None) -> None:
    """Call a compiled product; its type is that of the first tensor."""
    source = _SOURCE
    if first.dtype == torch.bfloat16:
        source, layer.units = _BFLOAT16_SOURCE, _UNITS[bfloat16_units()]
    function = getattr(_loaded(source), f"rapa_{product}_{_SUFFIXES[first.dtype]}")
    pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in (first, *rest)]
    function(ctypes.byref(layer), *pointers)


def _loaded(source: Path = _SOURCE) -> ctypes.CDLL:
    """The compiled products, where :func:`serves` found them."""
    library = _library(source)
    assert library is not None
    return library


@functools.cache
def _library(source: Path = _SOURCE) -> ctypes.CDLL | None:
    """Load compiled products, compiling them if need be; None where that is not possible.

    Another source than this module's may include it.
    """
    try:
        command = _command()
        kept = _cache_folder() / _file_name(command, source)
        with tempfile.TemporaryDirectory(prefix="rapa_lib-") as folder:
            if _is_whole(kept):
                return ctypes.CDLL(str(kept))
            built = Path(folder) / kept.name
            _build(command, source, built)
            _keep(built, kept)
            return ctypes.CDLL(str(built))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("tiled convolutions run in PyTorch alone, slower: %s", reason)
        return None


def _command() -> list[str]:
    """What compiles: the compiler's path and options, those of the environment included.

    Raises:
        ValueError: naming the variable, if there is no such compiler or quotes are left open.
    """
    words = []
    for name, default in (("CXX", "c++"), ("RAPA_KERNELS_FLAGS", "")):
        text = os.environ.get(name) or default
        try:
            words += shlex.split(text)
        except ValueError as error:
            raise ValueError(f"{name}: got {text!r}, expected words of a shell ({error})") from None
    path = shutil.which(words[0]) if words else None
    if path is None:
        raise ValueError(
            f"CXX: got {os.environ.get('CXX') or 'c++'!r}, expected a C++ compiler that is here"
        )
    return [path, *words[1:]]


def _build(command: list[str], source: Path, path: Path) -> None:
    """Compile the products into a library that ends in the checksum of what precedes it."""
    subprocess.run(
        [command[0], *_FLAGS, *command[1:], "-o", str(path), str(source)],
        capture_output=True, check=True, encoding="utf-8", errors="replace", timeout=300,
    )  # fmt: skip
    with path.open("r+b") as file:  # what follows the last section, loaders pass over
        digest = hashlib.sha256(file.read()).digest()
        file.write(digest)


def _is_whole(path: Path) -> bool:
    """Whether a library is there and as it was built: a loader dies of one that is cut off."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    size = hashlib.sha256().digest_size
    return hashlib.sha256(content[:-size]).digest() == content[-size:]


def _keep(built: Path, path: Path) -> None:
    """Copy a library into the cache folder if that can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        copy_whole(built, path)
    except OSError as error:
        log.info("compiled products are not kept: %s", error)


def _file_name(command: list[str], source: Path) -> str:
    """A name that tells sources, flags, compiler and CPU."""
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
    # What a source may include counts as well.
    included = sorted({*_SOURCE.parent.glob("*.cpp"), *source.parent.glob("*.cpp")})
    sources = b"".join(path.read_bytes() for path in (source, *included))
    flags = shlex.join((*_FLAGS, *command[1:])).encode()
    parts = (sources, flags, version, _cpu())
    return f"kernels-{hashlib.sha256(bytes(0).join(parts)).hexdigest()[:16]}.so"


def _cache_folder() -> Path:
    """Where libraries are kept; without a home, a folder that no one has."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rapa_lib"
    except RuntimeError:
        return Path(os.devnull) / "rapa_lib"


def _cpu() -> bytes:
    """What ``-march=native`` depends on: a home folder may serve several kinds of machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})).encode()
