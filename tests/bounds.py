"""Within the error that rounding allows: layers against float64 of the same numbers.

A sum of n products in float32, in any order, is off by at most γ_n Σ|a||b| with
γ_n = n u / (1 - n u), u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
section 4.2), and rounding it once to a type by the type's unit of its size. Units that set numbers
below 2⁻¹²⁶ to zero add as much for each term.
"""

import copy

import torch
from reference import tiled_conv2d


def results(layer, x, assignment, weights, convolve=None):
    """Output, and gradients of input and parameters."""
    x = x.detach().requires_grad_()
    y = layer(x, assignment) if convolve is None else convolve(layer, x, assignment)
    return y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), weights)


def check_bounds(layer, x, assignment, unit, least=0.0):
    """Output and gradients of a layer, each number within its bound.

    ``unit`` is that of the rounding to the layer's type, ``least`` the half of its least number.
    """
    height_width = layer.output_size(tuple(x.shape[2:]))
    weights = torch.randn(len(x), layer.out_channels, *height_width).to(x.dtype)
    got = results(layer, x, assignment, weights.to(x.device))
    exact, x, assignment = copy.deepcopy(layer).cpu().double(), x.cpu().double(), assignment.cpu()
    expected = results(exact, x, assignment, weights.double(), tiled_conv2d)
    for parameter in exact.parameters():
        parameter.data.abs_()
    sizes = results(exact, x.abs(), assignment, weights.double().abs(), tiled_conv2d)
    per_patch = layer.weight[0, 0].numel() + 1
    per_pixel = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels * 2
    terms = [per_patch, per_pixel, *[assignment.numel()] * 2]
    for one, other, size, n in zip(got, expected, sizes, terms, strict=False):
        assert one.dtype == layer.weight.dtype
        gamma = n * 2**-24 / (1 - n * 2**-24)
        allowed = unit * other.abs() + (1 + unit) * (gamma * size + n * 2**-126) + least
        assert ((one.cpu().double() - other).abs() <= allowed).all()
