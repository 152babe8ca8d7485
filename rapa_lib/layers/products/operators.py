"""The tiled convolution's three products, as PyTorch operators.

With patches x_p of an image, kernel matrices K_t, biases b_t and an assignment a,

    forward       y_p = K_a(p) x_p + b_a(p)          (0 where a(p) = -1: the patch is skipped)
    grad_input    x̄   = Σ_p scatter_p(K_a(p)ᵀ ȳ_p)
    grad_weight   K̄_t = Σ_{p: a(p)=t} ȳ_p x_pᵀ,   b̄_t = Σ_{p: a(p)=t} ȳ_p

Three paths compute them: compiled code on a CPU (:mod:`rapa_lib.layers.products.compiled`) and
Triton on a GPU (:mod:`rapa_lib.layers.products.gpu`) where they serve, else PyTorch alone
(:mod:`rapa_lib.layers.products.gathered`). They agree up to the order of sums.
What they are given is checked by :mod:`rapa_lib.layers.products.door` before any path sees it.
To ``torch.compile`` these custom operators are opaque: one graph, the same numbers. Derivatives are
in :mod:`rapa_lib.layers.products.autograd`.
"""

from types import ModuleType

import torch
from torch import Tensor

from rapa_lib.layers.products import compiled, gathered, gpu
from rapa_lib.layers.products.door import check_product
from rapa_lib.layers.products.geometry import Geometry, kernels_of


def served_by(tensor: Tensor) -> str:
    """What computes the products of a tensor of this type and device, as records name it."""
    return {compiled: "compiled", gpu: "Triton", gathered: "PyTorch"}[_path(tensor)]


def _path(tensor: Tensor) -> ModuleType:
    return next((path for path in (gpu, compiled) if path.serves(tensor)), gathered)


@torch.library.custom_op("rapa_lib::forward", mutates_args=())
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Convolve x (N, C, H, W) with kernels (T, O, C/g, kh, kw) under an assignment (N, L).

    ``padding`` is (left, right, top, bottom). The result (N, O, H', W') is channels-last.
    """
    geometry = check_product(
        x=x, weight=weight, bias=bias, assignment=assignment,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    return _path(x).forward(x, weight, bias, assignment, geometry, groups)


@torch.library.custom_op("rapa_lib::grad_input", mutates_args=())
def grad_input(
    grad: Tensor,
    weight: Tensor,
    assignment: Tensor,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Derivative by the input: grad (N, O, H', W') to (N, C, H, W), channels-last."""
    geometry = check_product(
        grad=grad, weight=weight, assignment=assignment, input_size=input_size,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    return _path(grad).grad_input(grad, weight, assignment, input_size, geometry, groups)


@torch.library.custom_op("rapa_lib::grad_weight", mutates_args=())
def grad_weight(
    grad: Tensor,
    x: Tensor,
    assignment: Tensor,
    n_tiles: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Derivative by kernels and biases: (T, O, C/g, kh, kw), as kernel matrices in memory, and
    (T, O)."""
    geometry = check_product(
        grad=grad, x=x, assignment=assignment, n_tiles=n_tiles, kernel=kernel,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    return _path(grad).grad_weight(grad, x, assignment, n_tiles, geometry, groups)


@forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    geometry = Geometry.of(x.shape[2:], weight.shape[3:], stride, padding, dilation)
    return x.new_empty(len(x), *geometry.output, weight.shape[1]).permute(0, 3, 1, 2)


@grad_input.register_fake
def _(
    grad: Tensor,
    weight: Tensor,
    assignment: Tensor,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return grad.new_empty(len(grad), *input_size, weight.shape[2] * groups).permute(0, 3, 1, 2)


@grad_weight.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    assignment: Tensor,
    n_tiles: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    matrices = grad.new_empty(n_tiles, *kernel, x.shape[1] // groups, grad.shape[1])
    return kernels_of(matrices), grad.new_empty(n_tiles, grad.shape[1])
