"""The compiled products: when they serve, what takes their place, and that they repeat their bits.

That they are right is tested in test_conv.py, where every test runs on both paths.
"""

import os
import subprocess
import sys

import pytest
import torch

from rapa_lib import RapaConv2d
from rapa_lib.layers.products import compiled

needs_compiler = pytest.mark.skipif(compiled._library() is None, reason="no C++ compiler is here")

# Prints which path served, what was logged, and the numbers of a forward and backward pass.
PROBE = """
import logging, torch
logging.basicConfig(format="%(message)s")
from rapa_lib import RapaConv2d
from rapa_lib.layers.products import compiled
torch.manual_seed(0)
layer = RapaConv2d(3, 8, 3, n_tiles=4)
x = torch.randn(5, 3, 9, 9, requires_grad=True)
y = layer(x)
layer(x)  # asks again: must not announce again
y.pow(2).sum().backward()
print(compiled.serves(x), y.double().sum().item(), x.grad.double().norm().item(),
      layer.weight.grad.double().norm().item())
"""


def probe(tmp_path, **environment):
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    served, *numbers = done.stdout.split()
    return served == "True", list(map(float, numbers)), done.stderr


@needs_compiler
def test_compiling_happens_once_and_damage_is_mended(tmp_path):
    served, numbers, logged = probe(tmp_path)
    assert served
    assert logged == ""
    (kept,) = (tmp_path / "cache/rapa_lib").iterdir()
    built = kept.stat().st_mtime_ns
    assert probe(tmp_path, CXX="c++")[:2] == (True, numbers)
    assert kept.stat().st_mtime_ns == built
    kept.write_bytes(b"damaged")
    assert probe(tmp_path)[:2] == (True, numbers)
    assert kept.stat().st_size > 10_000


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    assert probe(tmp_path)[0]


@needs_compiler
def test_no_file_that_was_cut_off_is_loaded(tmp_path):
    """A loader dies of a library that is cut off (SIGBUS), or takes it with half its code."""
    folder = compiled._cache_folder()
    kept = folder / compiled._file_name(compiled._command(), compiled._SOURCE)
    whole = kept.read_bytes()
    assert compiled._is_whole(kept)
    path = tmp_path / "cut.so"
    for share in (0, 1, 10, 30, 50, 80, 99):
        path.write_bytes(whole[: len(whole) * share // 100])
        assert not compiled._is_whole(path), share
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    assert not compiled._is_whole(path)
    assert not compiled._is_whole(tmp_path)


@needs_compiler
def test_a_library_that_was_cut_off_is_built_again(tmp_path):
    served, numbers, _ = probe(tmp_path)
    assert served
    (kept,) = (tmp_path / "cache/rapa_lib").iterdir()
    whole = kept.read_bytes()
    # A compiler that hands out the library built before: the real one takes ten seconds.
    compiler = tmp_path / "compiler"
    compiler.write_text(f"""#!/bin/sh
[ "$1" = --version ] && exec c++ --version
while [ "$1" != -o ]; do shift; done
head -c -32 {tmp_path}/whole > "$2"
""")
    compiler.chmod(0o755)
    (tmp_path / "whole").write_bytes(whole)
    kept.unlink()
    for share in (100, 0, 1, 50, 99):
        if share < 100:
            (kept,) = (tmp_path / "cache/rapa_lib").iterdir()
            kept.write_bytes(whole[: len(whole) * share // 100])
        assert probe(tmp_path, CXX=str(compiler)) == (True, numbers, "")
    assert kept.read_bytes() == whole


@needs_compiler
def test_a_compiler_may_come_with_options(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "c++ -pipe")
    monkeypatch.setenv("RAPA_KERNELS_FLAGS", "-O1 '-DNAME=a b'")
    command = compiled._command()
    assert command[1:] == ["-pipe", "-O1", "-DNAME=a b"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int answer() { return NAME; }'.replace("NAME", "42"))
    assert compiled._library.__wrapped__(source).answer() == 42
    assert len(list((tmp_path / "rapa_lib").iterdir())) == 1


@pytest.mark.parametrize("name", ["CXX", "RAPA_KERNELS_FLAGS"])
def test_words_that_are_none_are_one_line(monkeypatch, caplog, name):
    monkeypatch.setenv(name, "c++ 'open")
    assert compiled._library.__wrapped__() is None
    assert f"""{name}: got "c++ 'open", expected""" in caplog.text
    monkeypatch.setenv(name, "no-such-thing -m64")
    if name == "CXX":
        assert compiled._library.__wrapped__() is None
        assert "CXX: got 'no-such-thing -m64'" in caplog.text


def test_without_a_compiler_pytorch_does_the_same_and_says_so_once(tmp_path):
    served, numbers, logged = probe(tmp_path, CXX="no-such-compiler")
    assert not served
    assert logged.count("PyTorch alone") == 1
    silent = probe(tmp_path, RAPA_KERNELS="off")
    assert silent == (False, numbers, "")
    compiled = probe(tmp_path)
    assert compiled[1] == pytest.approx(numbers, rel=1e-5)


def test_a_compiler_that_fails_is_quoted(tmp_path):
    compiler = tmp_path / "failing"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] || { echo "broken indeed" >&2; exit 1; }\n'
    )
    compiler.chmod(0o755)
    served, _, logged = probe(tmp_path, CXX=str(compiler))
    assert not served
    assert "broken indeed" in logged


@needs_compiler
def test_what_is_served():
    assert compiled.serves(torch.zeros(1))
    assert compiled.serves(torch.zeros(1, dtype=torch.double))
    assert not compiled.serves(torch.zeros(1, dtype=torch.half))
    assert not compiled.serves(torch.zeros(1, device="meta"))


@needs_compiler
@pytest.mark.parametrize("n_tiles", [3, 100])
def test_the_same_bits_again_and_nearly_the_same_with_other_threads(n_tiles):
    layer = RapaConv2d(3, 20, 5, padding=2, n_tiles=n_tiles)
    x = torch.randn(37, 3, 11, 13, requires_grad=True)
    assignment = layer.assignment(37, (11, 13))
    results, before = [], torch.get_num_threads()
    try:
        for threads in (2, 2, 2, 1, 5):
            torch.set_num_threads(threads)
            y = layer(x, assignment)
            grad = torch.sin(torch.arange(y.numel(), dtype=torch.float)).view_as(y)
            results.append((y, *torch.autograd.grad(y, (x, *layer.parameters()), grad)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:3]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    for other in results[3:]:
        torch.testing.assert_close(results[0], other)


@needs_compiler
def test_groups_that_fill_a_vector_together_touch_only_their_own(monkeypatch):
    """Two groups of half the outputs taken at once: a row of both is as long as a vector's copy."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # groups in their order
    layer = RapaConv2d(2, 32, 3, groups=2, bias=False, n_tiles=2)
    x, grad = torch.randn(3, 2, 8, 8), torch.randn(3, 32, 6, 6)
    x[:, 1] = float("inf")  # times the zeros that fill a vector up, it would show
    (gradient,) = torch.autograd.grad(layer(x), layer.weight, grad)
    assert gradient[:, :16].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("shape", [(5, 1024), (3, 1), (0, 7), (200, 65)])
def test_sorting_is_pytorchs(shape):
    keys = torch.rand(shape)
    keys[:, : shape[1] // 2] = keys[:, -(shape[1] // 2) :]  # ties
    assert torch.equal(compiled.argsort_rows(keys), keys.argsort(dim=1, stable=True))
    small = torch.tensor([[0.0, 1e-38, 0.25, 0.0, 1.0, 1e-45]])
    assert compiled.argsort_rows(small).tolist() == [[0, 3, 5, 1, 2, 4]]


@needs_compiler
def test_kernels_keep_the_layout_that_needs_no_copy():
    """A copy of 1,024 kernel matrices in every pass would cost as much as the products."""
    layer = RapaConv2d(3, 32, 5, n_tiles=4)
    x = torch.randn(2, 3, 9, 9)

    def is_native(tensor):
        return tensor.permute(0, 3, 4, 2, 1).is_contiguous()

    layer(x).sum().backward()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    assert is_native(layer.weight)
    assert is_native(layer.weight.grad)
    assert is_native(optimizer.state[layer.weight]["momentum_buffer"])
    layer.double().to(memory_format=torch.channels_last)
    assert is_native(layer.weight)
    state = layer.state_dict()
    state["weight"] = state["weight"].contiguous() + 1
    layer.load_state_dict(state)
    assert is_native(layer.weight)
