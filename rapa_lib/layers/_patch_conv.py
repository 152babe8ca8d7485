"""What the convolutions of the study share: Conv2d's arguments, padding, and seeded draws."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapa_lib._checks import LARGE, check_bool, check_choice, check_int, check_memory
from rapa_lib._seeds import mix_seeds
from rapa_lib.layers.products.autograd import tiled_conv2d
from rapa_lib.layers.products.geometry import Geometry, kernels_of, matrices_of
from rapa_lib.layers.tiling import check_n_tiles

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class PatchConv2d(nn.Module):
    """A convolution whose treatment of each patch is drawn: base of RAPA and perforated layers.

    Takes the arguments of :class:`torch.nn.Conv2d` in the same order and checks them. Subclasses
    add ``weight``, ``bias`` and ``n_tiles`` and call :meth:`_convolve`.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    n_tiles: int
    padding: str | tuple[int, int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, low=1)
        self.out_channels = check_int("out_channels", out_channels, low=1)
        self.kernel_size = _pair("kernel_size", kernel_size, low=1)
        self.stride = _pair("stride", stride, low=1)
        self.dilation = _pair("dilation", dilation, low=1)
        self.groups = check_int("groups", groups, low=1)
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % groups:
                raise ValueError(
                    f"groups: got {groups}, which does not divide {name} = {getattr(self, name)}"
                )
        self.padding_mode = check_choice("padding_mode", padding_mode, PADDING_MODES)
        if isinstance(padding, str):
            self.padding = check_choice("padding", padding, ("same", "valid"))
            if padding == "same" and self.stride != (1, 1):
                raise ValueError(f"padding: 'same' needs stride 1, got stride {self.stride}")
        else:
            self.padding = _pair("padding", padding, low=0)
        self._pads = self._margins()
        self._frozen_seed: int | None = None

    def _margins(self) -> tuple[int, int, int, int]:
        """Pixels of padding (left, right, top, bottom)."""
        if self.padding == "valid":
            return (0, 0, 0, 0)
        if isinstance(self.padding, str):  # "same"
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            (top, left), (height, width) = [t // 2 for t in total], total
            return (left, width - left, top, height - top)
        height, width = self.padding
        return (width, width, height, height)

    def _register(
        self,
        lead: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Make ``weight`` and ``bias`` with the leading dimensions ``lead`` before Conv2d's."""
        channels = self.in_channels // self.groups
        check_bool("bias", bias)
        per_patch = channels * math.prod(self.kernel_size)
        check_kernels(math.prod(lead), per_patch, self.out_channels, device, dtype)
        empty = partial(torch.empty, device=device, dtype=dtype)
        if lead:
            matrices = empty((*lead, *self.kernel_size, channels, self.out_channels))
            self.weight = nn.Parameter(kernels_of(matrices))
        else:
            self.weight = nn.Parameter(empty((self.out_channels, channels, *self.kernel_size)))
        if bias:
            self.bias = nn.Parameter(empty((*lead, self.out_channels)))
        else:
            self.register_parameter("bias", None)

    def _draw_like_conv2d(self, n_kernels: int) -> None:
        """Draw n_kernels kernels and biases as ``Conv2d`` does; tiles beyond copy the first."""
        weight = self.weight if self.weight.dim() == 5 else self.weight[None]
        with torch.no_grad():
            drawn = torch.empty_like(weight[:n_kernels], memory_format=torch.contiguous_format)
            nn.init.kaiming_uniform_(drawn.flatten(0, 1), a=5**0.5)
            weight[:n_kernels] = drawn
            weight[n_kernels:] = drawn[:1]
            if self.bias is not None:
                bias = self.bias.view(-1, self.out_channels)
                bound = weight[0, 0].numel() ** -0.5
                nn.init.uniform_(bias[:n_kernels], -bound, bound)
                bias[n_kernels:] = bias[:1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # ``model.to(memory_format=torch.channels_last)`` converts what has four dimensions and
        # refuses five. Kernels of tiles keep their own layout: they are shown to fn as a vector.
        def apply(tensor: Tensor) -> Tensor:
            if tensor.dim() != 5:
                return fn(tensor)
            matrices = matrices_of(tensor)
            return kernels_of(fn(matrices.flatten()).view(matrices.shape))

        return super()._apply(apply, recurse)

    def output_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output for an input of ``input_size`` (height, width).

        Raises:
            ValueError: if the kernel is larger than the padded input.
        """
        geometry = Geometry.of(input_size, self.kernel_size, self.stride, self._pads, self.dilation)
        if min(geometry.output) < 1:
            raise ValueError(
                f"input: {input_size[0]} × {input_size[1]} pixels with padding {self.padding} are "
                f"fewer than a kernel of {self.kernel_size} with dilation {self.dilation} needs"
            )
        return geometry.output

    def _output_size_for_tiles(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """The output's size, if it has a patch for every tile; ValueError otherwise."""
        size = self.output_size(input_size)
        check_n_tiles(self.n_tiles, *size)
        return size

    def _check_input(self, x: Tensor) -> None:
        if x.dim() not in (3, 4):
            raise ValueError(
                f"input: got shape {tuple(x.shape)}, expected (N, C, H, W) or (C, H, W)"
            )
        if x.shape[-3] != self.in_channels:
            raise ValueError(
                f"input: got {x.shape[-3]} channels, this layer takes {self.in_channels}"
            )
        height, width = self.output_size(plane_of(x))
        batch = len(x) if x.dim() == 4 else 1
        needed = batch * self.out_channels * height * width * x.element_size()
        if needed > LARGE and x.device.type == "cpu":
            what = f"{batch:,} outputs of {self.out_channels:,} × {height:,} × {width:,} numbers"
            check_memory("input", needed, what)

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, assignment: Tensor | None
    ) -> Tensor:
        """Convolve x (N, C, H, W) with tiles ``weight`` (T, …) under an assignment (N, L).

        An assignment of None stands for one tile that computes everything: an ordinary
        convolution, and computed as one.
        """
        x, weight, bias = _autocast(x, weight, bias)
        if x.dtype != weight.dtype:
            raise TypeError(f"input: got {x.dtype}, but the layer's weight is {weight.dtype}")
        left, right, top, bottom = pads = self._pads
        if self.padding_mode != "zeros":
            x, pads = F.pad(x, pads, mode=self.padding_mode), (0, 0, 0, 0)
        elif assignment is None and (left, top) != (right, bottom):
            x, pads = F.pad(x, pads), (0, 0, 0, 0)
        if assignment is None:
            if len(weight) != 1 or (bias is not None and len(bias) != 1):
                tiles = [len(one) for one in (weight, bias) if one is not None]
                raise ValueError(f"weight, bias: got those of {tiles} tiles, expected one tile's")
            bias = None if bias is None else bias[0]
            padding = (pads[2], pads[0])
            return F.conv2d(x, weight[0], bias, self.stride, padding, self.dilation, self.groups)
        return tiled_conv2d(
            x, weight, bias, assignment, self.stride, pads, self.dilation, self.groups
        )

    def merged(self) -> nn.Conv2d:
        """Make the ordinary convolution that is closest to this layer."""
        raise NotImplementedError

    def _merged(self, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
        """Make an ordinary convolution of this layer's geometry with the given kernel."""
        conv = nn.utils.skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias is not None,
            self.padding_mode,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(weight)
            if bias is not None:
                conv.bias.copy_(bias)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        parts += [
            f"{name}={getattr(self, name)}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


class OneKernelConv2d(PatchConv2d):
    """What the controls share: one kernel, drawn as ``Conv2d``'s, and merged by taking it."""

    def reset_parameters(self) -> None:
        """Draw kernel and bias anew as ``Conv2d`` does."""
        self._draw_like_conv2d(1)

    def merged(self) -> nn.Conv2d:
        """Make the ordinary convolution with this kernel, which disturbs and leaves out nothing."""
        return self._merged(self.weight, self.bias)

    def _ordinary(self, x: Tensor) -> Tensor:
        """The outputs of images (N, C, H, W) as ``Conv2d`` has them."""
        bias = None if self.bias is None else self.bias[None]
        return self._convolve(x, self.weight[None], bias, None)


def check_kernels(
    n_tiles: int,
    rows: int,
    columns: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    """Check what kernel matrices are made of, and that there is memory for them.

    Args:
        n_tiles, rows, columns: of the matrices.
        device, dtype: as in ``Conv2d``.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    try:
        place = torch.get_default_device() if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        allowed = "cpu, cuda, cuda:0 …, meta, or a torch.device"
        raise ValueError(f"device: got {device!r}, allowed: {allowed}") from None
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: got {dtype!r}, expected a torch.dtype")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: got {dtype}, allowed: floating-point types")
    needed = n_tiles * rows * columns * dtype.itemsize
    if needed > LARGE and place.type == "cpu":
        what = f"{n_tiles:,} kernel matrices of {rows:,} × {columns:,} numbers"
        check_memory("n_tiles, channels, kernel size", needed, what)


@contextmanager
def frozen_draws(model: nn.Module, seed: int | None = None) -> Iterator[nn.Module]:
    """Freeze the draws of every layer of a model: equal batches then get equal assignments.

    Inside the context a layer's draw depends on the seed, on the layer and on the batch's size
    alone, not on PyTorch's generator, so the model is a deterministic function. Contexts nest; the
    innermost one counts.

    Args:
        model: any module; its :class:`RapaConv2d` and :class:`PerforatedConv2d` layers are frozen.
        seed: which draws; None takes a fresh seed from PyTorch's generator.

    Yields:
        The model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected torch.nn.Module")
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    seed = check_int("seed", seed, low=0)
    layers = [layer for layer in model.modules() if isinstance(layer, PatchConv2d)]
    before = [layer._frozen_seed for layer in layers]
    try:
        for i, layer in enumerate(layers):
            layer._frozen_seed = mix_seeds(seed, i)
        yield model
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer._frozen_seed = old


def plane_of(images: Tensor) -> tuple[int, int]:
    """Height and width of images (…, H, W)."""
    height, width = images.shape[-2:]
    return height, width


def _pair(name: str, value: Any, *, low: int) -> tuple[int, int]:
    values = (value, value) if not isinstance(value, tuple | list) else tuple(value)
    if len(values) != 2:
        raise ValueError(f"{name}: got {value!r}, expected one integer or two (height, width)")
    height, width = (check_int(name, v, low=low) for v in values)
    return height, width


def _autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast to the autocast type where autocast is on for the input's device, as Conv2d does."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or x.dtype == torch.float64:
        return x, weight, bias
    if not torch.is_autocast_enabled(device):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
