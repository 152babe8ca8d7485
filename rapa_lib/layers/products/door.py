"""The door of the three products: nothing passes that does not fit, on whichever path it goes on.

Behind it compiled code follows raw pointers and believes every size. Attributes of a layer, its
parameters and a loaded checkpoint can be anything, so each product checks all of its arguments here
each time that it is called. In the compiled products' threads nothing may fail any more, memory
included.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rapa_lib._checks import check_memory
from rapa_lib.layers.products.geometry import Geometry

# Below this, what is needed is not compared with the memory that is there: asking takes 0.4 ms.
_ASK_BYTES = 2**28
# Compiled products number the patches of an image by 32 bits.
_MOST_PATCHES = 2**31 - 1


def check_product(
    *,
    assignment: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    x: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    grad: Tensor | None = None,
    input_size: Sequence[int] = (),
    n_tiles: int = 0,
    kernel: Sequence[int] = (),
) -> Geometry:
    """Check all that one of the three products is given.

    Of ``x``, ``weight`` and ``grad`` the product takes two and makes the third; the sizes of that
    one which do not follow from the others are integers. Values of the assignment are checked on a
    CPU alone: on a GPU that would wait for it, and the path there refuses them itself.

    Args:
        assignment: int64 (N, L), −1 … T − 1.
        stride, padding, dilation, groups: as in the operators, padding (left, right, top, bottom).
        x: (N, C, H, W), or None and ``input_size`` (H, W).
        weight: (T, O, C / groups, kh, kw), or None, ``n_tiles`` T and ``kernel`` (kh, kw).
        bias: (T, O), or None.
        grad: (N, O, H', W'), or None.

    Returns:
        Where the patches lie.

    Raises:
        ValueError, TypeError: naming the tensor or number that does not fit.
    """
    for name, tensor, n_dims in (
        ("input", x, 4), ("weight", weight, 5), ("bias", bias, 2), ("gradient", grad, 4),
        ("assignment", assignment, 2),
    ):  # fmt: skip
        if tensor is not None:
            check_plain(name, tensor, n_dims)
    some = grad if x is None else x
    assert some is not None  # of x and grad a product takes one at least
    batch, like = some.shape[0], ("gradient" if x is None else "input", some)
    if weight is not None:
        n_tiles, out_channels, per_group, *kernel = weight.shape
    else:
        assert x is not None
        assert grad is not None
        out_channels, per_group = grad.shape[1], x.shape[1] // groups if groups > 0 else 0
    channels = per_group * groups
    input_size = tuple(input_size) if x is None else tuple(x.shape[2:])
    sizes = {"channels": channels, "out_channels": out_channels, "n_tiles": n_tiles}
    _check_sizes(sizes, input_size, kernel, stride, padding, dilation, groups)
    geometry = Geometry.of(input_size, kernel, stride, padding, dilation)
    made = batch * out_channels * geometry.n_patches
    if x is None:
        made = batch * channels * math.prod(input_size)
    elif weight is None:
        made = n_tiles * out_channels * per_group * math.prod(kernel)
    item, on_cpu = some.element_size(), some.device.type == "cpu"
    _check_geometry(geometry, channels * item, made * item, on_cpu)
    check_fits("input", x, (batch, channels, *input_size), like)
    check_fits("weight", weight, (n_tiles, out_channels, per_group, *kernel), like)
    check_fits("bias", bias, (n_tiles, out_channels), like)
    check_fits("gradient", grad, (batch, out_channels, *geometry.output), like)
    _check_assignment(assignment, (batch, geometry.n_patches), n_tiles, some.device)
    return geometry


def check_plain(name: str, tensor: Tensor, n_dims: int) -> None:
    """A tensor whose numbers lie in its memory as they are."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        raise TypeError(f"{name}: got a tensor of {tensor.layout} layout, expected a dense one")
    if tensor.dim() != n_dims:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {n_dims} dimensions")
    if tensor.is_neg() or tensor.is_conj():
        raise ValueError(f"{name}: got a negated or conjugated view, expected numbers as they are")


def _check_sizes(
    sizes: Mapping[str, int],
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Integers, each as many and as large as can be."""
    pairs = {"input size": (input_size, 0), "kernel": (kernel, 1), "stride": (stride, 1),
             "dilation": (dilation, 1)}  # fmt: skip
    for name, (values, low) in pairs.items():
        if len(values) != 2 or values[0] < low or values[1] < low:
            raise ValueError(f"{name}: got {tuple(values)}, allowed: two numbers of at least {low}")
    if len(padding) != 4 or min(padding) < 0:
        raise ValueError(f"padding: got {tuple(padding)}, allowed: four numbers of at least 0")
    for name, size in (*sizes.items(), ("groups", groups)):
        if size < 1:
            raise ValueError(f"{name}: got {size}, allowed: at least 1")
    if sizes["out_channels"] % groups:
        raise ValueError(
            f"groups: got {groups}, which does not divide {sizes['out_channels']} output channels"
        )


def _check_geometry(geometry: Geometry, pixel_bytes: int, made_bytes: int, on_cpu: bool) -> None:
    """A patch at least, not too many, and room for padded images and for what is made."""
    if min(geometry.output) < 1:
        raise ValueError(
            f"input: {geometry.size[0]} × {geometry.size[1]} pixels, padding included, are fewer "
            f"than a kernel of {geometry.kernel} with dilation {geometry.dilation} needs"
        )
    if geometry.n_patches > _MOST_PATCHES:
        raise ValueError(
            f"input: got {geometry.n_patches} patches an image, allowed: {_MOST_PATCHES}"
        )
    padded = math.prod(geometry.size) * pixel_bytes
    if max(padded, made_bytes) > _ASK_BYTES and on_cpu:
        needed = padded * torch.get_num_threads() + made_bytes
        check_memory("input", needed, "the result, and a padded image for each thread,")


def check_fits(name: str, tensor: Tensor | None, shape: tuple, like: tuple[str, Tensor]) -> None:
    """A tensor of its shape, and of the type and device of another."""
    if tensor is None:
        return
    other, reference = like
    if tensor.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.dtype != reference.dtype:
        raise TypeError(f"{name}: got {tensor.dtype}, but the {other} is {reference.dtype}")
    if tensor.device != reference.device:
        raise ValueError(f"{name}: is on {tensor.device}, but the {other} on {reference.device}")


def _check_assignment(
    assignment: Tensor, shape: tuple[int, int], n_tiles: int, device: torch.device
) -> None:
    if assignment.dtype != torch.int64:
        raise TypeError(f"assignment: got {assignment.dtype}, expected torch.int64 tile indices")
    if assignment.shape != shape:
        raise ValueError(
            f"assignment: got shape {tuple(assignment.shape)}, expected (batch, patches) = {shape}"
        )
    if assignment.device != device:
        raise ValueError(f"assignment: is on {assignment.device}, but the images on {device}")
    if assignment.device.type == "cpu":
        check_tiles(assignment, n_tiles)


def check_tiles(assignment: Tensor, n_tiles: int) -> None:
    """Every tile of an assignment (N, L) exists, or is -1; on a GPU this waits for it."""
    if assignment.numel() == 0:
        return
    shared = assignment.stride(0) == 0  # one row for all images
    low, high = torch.stack(torch.aminmax(assignment[:1] if shared else assignment)).tolist()
    if low < -1 or high >= n_tiles:
        raise ValueError(
            f"assignment: got tiles {low} to {high}, allowed: -1 (no tile) to {n_tiles - 1}"
        )
