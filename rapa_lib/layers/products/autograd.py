"""The tiled convolution as a differentiable function.

Each of the three products of :mod:`rapa_lib.layers.products.operators` is linear in each of its
two tensors, so the derivative of each is made of the other two, to any order: the regulariser that
RAPA implies is a second derivative. ``torch.func.grad`` and ``vjp`` nest; forward mode is left out,
because ``torch.compile`` does not take functions that have it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rapa_lib.layers.products import operators as ops

# Stride, padding, dilation and groups, as the operators take them.
_Conv = tuple[list[int], list[int], list[int], int]


def tiled_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """Convolve each patch with the kernel of its tile.

    Args:
        x: images (N, C, H, W).
        weight: kernels (T, O, C / groups, kh, kw).
        bias: (T, O) or None.
        assignment: LongTensor (N, L), the tile of every output position; -1 gives zero.
        stride, dilation: (height, width).
        padding: zeros to add at the (left, right, top, bottom).
        groups: as in ``Conv2d``.

    Returns:
        (N, O, H', W'), channels-last.
    """
    conv = (list(stride), list(padding), list(dilation), groups)
    return _Forward.apply(x, weight, bias, assignment, conv)


class _Forward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, assignment: Tensor, conv: _Conv
    ) -> Tensor:
        return ops.forward(x, weight, bias, assignment, *conv)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, bias, assignment, ctx.conv = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight, assignment)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, assignment = ctx.saved_tensors
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = _GradInput.apply(grad, weight, assignment, x.shape[2:], ctx.conv)
        if any(ctx.needs_input_grad[1:3]):
            by_weight, by_bias = _GradWeight.apply(
                grad, x, assignment, len(weight), weight.shape[3:], ctx.conv
            )
        return by_x, by_weight, by_bias if ctx.has_bias else None, None, None


class _GradInput(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, weight: Tensor, assignment: Tensor, input_size: Sequence[int], conv: _Conv
    ) -> Tensor:
        return ops.grad_input(grad, weight, assignment, list(input_size), *conv)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, weight, assignment, ctx.input_size, ctx.conv = inputs
        ctx.save_for_backward(grad, weight, assignment)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight, assignment = ctx.saved_tensors
        by_grad = by_weight = None
        if ctx.needs_input_grad[0]:
            by_grad = _Forward.apply(v, weight, None, assignment, ctx.conv)
        if ctx.needs_input_grad[1]:
            by_weight, _ = _GradWeight.apply(
                grad, v, assignment, len(weight), weight.shape[3:], ctx.conv
            )
        return by_grad, by_weight, None, None, None


class _GradWeight(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor,
        x: Tensor,
        assignment: Tensor,
        n_tiles: int,
        kernel: Sequence[int],
        conv: _Conv,
    ) -> tuple[Tensor, Tensor]:
        return ops.grad_weight(grad, x, assignment, n_tiles, list(kernel), *conv)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, x, assignment, ctx.n_tiles, ctx.kernel, ctx.conv = inputs
        ctx.save_for_backward(grad, x, assignment)

    @staticmethod
    def backward(ctx: Any, v: Tensor, v_bias: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, assignment = ctx.saved_tensors
        by_grad = by_x = None
        if ctx.needs_input_grad[0]:
            by_grad = _Forward.apply(x, v, v_bias, assignment, ctx.conv)
        if ctx.needs_input_grad[1]:
            by_x = _GradInput.apply(grad, v, assignment, x.shape[2:], ctx.conv)
        return by_grad, by_x, None, None, None, None
