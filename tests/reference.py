"""Slow, obviously right references: one patch at a time."""

import itertools

import torch
import torch.nn.functional as F

from rapa_lib.layers._patch_conv import PADDING_MODES

# Of a convolution of 4 to 8 channels, kernel 3 × 3 unless it says otherwise.
GEOMETRIES = [
    {},
    {"padding": 2},
    {"padding": (1, 0), "stride": (2, 1)},
    {"padding": "same", "dilation": (2, 1)},
    {"padding": "valid", "dilation": 2},
    {"padding": "same", "kernel_size": (4, 2)},
    {"groups": 2, "padding": 1, "bias": False},
    {"groups": 4, "stride": 3},
    {"kernel_size": 1},
    *({"padding": 2, "padding_mode": mode} for mode in PADDING_MODES),
    {"padding": "same", "kernel_size": (4, 2), "padding_mode": "circular"},
]


def patches(x, kernel_size, stride, pads, dilation, padding_mode="zeros"):
    """Yield (image, position, patch (C, kh, kw)) for every patch of x (N, C, H, W)."""
    mode = "constant" if padding_mode == "zeros" else padding_mode
    x = F.pad(x, pads, mode=mode)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    rows = range(0, x.shape[2] - reach[0] + 1, stride[0])
    cols = range(0, x.shape[3] - reach[1] + 1, stride[1])
    for image in range(len(x)):
        for position, (top, left) in enumerate(itertools.product(rows, cols)):
            bottom, right = top + reach[0], left + reach[1]
            patch = x[image, :, top : bottom : dilation[0], left : right : dilation[1]]
            yield image, position, patch


def tiled_conv2d(layer, x, assignment):
    """What RapaConv2d computes, one dot product a patch, tile, group and channel."""
    height, width = layer.output_size(tuple(x.shape[2:]))
    rows = [[None] * (height * width) for _ in range(len(x))]
    for image, position, patch in patches(
        x, layer.kernel_size, layer.stride, layer._pads, layer.dilation, layer.padding_mode
    ):
        tile = int(assignment[image, position])
        if tile < 0:
            nothing = 0 * (patch.sum() + sum(p.sum() for p in layer.parameters()))
            rows[image][position] = nothing.expand(layer.out_channels)
            continue
        parts = patch.chunk(layer.groups)
        kernels = layer.weight[tile].chunk(layer.groups)
        y = torch.cat(
            [
                torch.stack([(kernel * part).sum() for kernel in group])
                for group, part in zip(kernels, parts, strict=True)
            ]
        )
        rows[image][position] = y if layer.bias is None else y + layer.bias[tile]
    y = torch.stack([torch.stack(row, 1) for row in rows])
    return y.view(len(x), layer.out_channels, height, width)
