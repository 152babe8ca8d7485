"""Layers whose products run on analog tiles."""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rapa_lib._checks import check_bool
from rapa_lib.analog._config import TileConfig
from rapa_lib.analog._tile_array import _PIXEL, AnalogTileArray
from rapa_lib.analog._tile_grid import AnalogTileGrid
from rapa_lib.layers.conv import RapaConv2d
from rapa_lib.layers.products import operators as ops
from rapa_lib.layers.products.geometry import Geometry, kernels_of, matrices_of


class _OnTiles(nn.Module):
    """What analog layers share: they know a digital layer's checkpoint when they see one."""

    def _load_from_state_dict(
        self,
        state: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        if prefix + "weight" in state:
            errors.append(
                f"{prefix.rstrip('.') or 'the layer'}: this is the checkpoint of a digital layer; "
                "load it into the digital network and convert that with convert_to_analog"
            )
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)


class AnalogRapaConv2d(_OnTiles, RapaConv2d):
    """A :class:`rapa_lib.RapaConv2d` whose kernel matrices lie on analog tiles.

    Forward and backward products run through the tiles' periphery. In the backward pass the tiles
    remember inputs and errors; :class:`AnalogSGD` turns them into pulses. Under an
    :class:`IdealDevice` the weight has an exact gradient instead (straight through the periphery),
    for any optimizer. Biases are digital.

    Args:
        in_channels … tile_init: as in :class:`rapa_lib.RapaConv2d`; groups lie on arrays of their
            own.
        config: what the tiles are made of; None: :func:`rpu_baseline`.
        seed: of the devices; None takes one from PyTorch's generator.

    Shape:
        - Input, output, ``weight``, ``bias``: as in :class:`rapa_lib.RapaConv2d`

    Raises:
        ValueError, TypeError: naming the argument.
    """

    def __init__(
        self, *args: Any, config: TileConfig | None = None, seed: int | None = None, **kwargs: Any
    ) -> None:
        self._make = (config, seed)  # for _register, which super() calls
        super().__init__(*args, **kwargs)
        del self._make

    def _register(
        self,
        lead: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_bool("bias", bias)
        per_patch = math.prod(self.kernel_size) * (self.in_channels // self.groups)
        (n_tiles,), (config, seed) = lead, self._make
        self.tiles = _tiles_for(
            n_tiles, per_patch, self.out_channels, config, self.groups,
            seed=seed, device=device, dtype=dtype,
        )  # fmt: skip
        if check_bool("bias", bias):
            shape = (*lead, self.out_channels)
            self.bias = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Draw kernels and biases anew; kernels are kept inside the devices' bounds."""
        if _is_view(self.tiles):
            super().reset_parameters()
            self.tiles.clip()
            return
        like = self.weight
        digital = RapaConv2d(
            self.in_channels, self.out_channels, self.kernel_size, groups=self.groups,
            bias=self.bias is not None, device=like.device, dtype=like.dtype,
            n_tiles=self.n_tiles, tile_init=self.tile_init,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*outside the bounds of their devices")
            self.program(digital.weight.detach())
        if self.bias is not None and digital.bias is not None:
            with torch.no_grad():
                self.bias.copy_(digital.bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # the parameter is the tiles' own
        """The kernels (n_tiles, out_channels, in_channels / groups, height, width).

        A view of what the tiles hold, unless that is scaled or split over several arrays.
        """
        size = (*self.kernel_size, self.in_channels // self.groups)
        weight = self.tiles.weight if _is_view(self.tiles) else self.tiles.read()
        return kernels_of(weight.transpose(1, 2).unflatten(1, size))

    def program(self, weight: Tensor) -> None:
        """Write kernels of the shape of ``weight``; see :meth:`AnalogTileArray.program`."""
        if weight.shape != self.weight.shape:
            raise ValueError(
                f"weight: got shape {tuple(weight.shape)}, expected {tuple(self.weight.shape)}"
            )
        self.tiles.program(matrices_of(weight).flatten(1, 3).transpose(1, 2))

    @property
    def redraws(self) -> bool:
        """Whether two forward passes can differ."""
        return super().redraws or self.tiles.config.forward.is_noisy

    @classmethod
    def from_digital(
        cls, conv: nn.Conv2d | RapaConv2d, config: TileConfig, *, seed: int | None = None
    ) -> "AnalogRapaConv2d":
        """Program a convolution onto tiles; an ordinary one onto a single tile.

        Weights outside the bounds of their devices are clipped, with a warning that counts them.

        Raises:
            TypeError: if ``conv`` is no such convolution.
        """
        if isinstance(conv, nn.Conv2d):
            conv = RapaConv2d.from_conv2d(conv, n_tiles=1, tiling="none")
        if not isinstance(conv, RapaConv2d):
            raise TypeError(f"conv: got {type(conv).__name__}, expected Conv2d or RapaConv2d")
        layer = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
            conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode,
            device=conv.weight.device, dtype=conv.weight.dtype, n_tiles=conv.n_tiles,
            tiling=conv.tiling, tile_init=conv.tile_init, config=config, seed=seed,
        )  # fmt: skip
        layer.program(conv.weight.detach())
        if layer.bias is not None and conv.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(conv.bias)
        layer.assignment_seed = conv.assignment_seed
        layer._living, layer._reroute = conv._living, conv._reroute
        return layer.train(conv.training)

    @classmethod
    def from_conv2d(
        cls, conv: nn.Conv2d, *, config: TileConfig | None = None, seed: int | None = None,
        **tiling: Any,
    ) -> "AnalogRapaConv2d":  # fmt: skip
        """Replicate an ordinary convolution over tiles, as :meth:`RapaConv2d.from_conv2d` does."""
        digital = RapaConv2d.from_conv2d(conv, **tiling)
        return cls.from_digital(digital, TileConfig() if config is None else config, seed=seed)

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, assignment: Tensor | None
    ) -> Tensor:
        if x.dtype != weight.dtype:
            raise TypeError(f"input: got {x.dtype}, but the layer's weight is {weight.dtype}")
        pads = self._pads
        if self.padding_mode != "zeros":
            x, pads = F.pad(x, pads, mode=self.padding_mode), (0, 0, 0, 0)
        geometry = Geometry.of(x.shape[2:], self.kernel_size, self.stride, pads, self.dilation)
        if assignment is None:  # one tile computes everything
            assignment = torch.zeros(1, geometry.n_patches, dtype=torch.long, device=x.device)
            assignment = assignment.expand(len(x), -1)
        if isinstance(self.tiles, AnalogTileArray):
            return _Product.apply(x, self.tiles.weight, bias, self.tiles, assignment, geometry)
        left, right, top, bottom = pads
        columns = F.unfold(
            F.pad(x, (left, right, top, bottom)), self.kernel_size, self.dilation, 0, self.stride
        )
        channels = self.in_channels // self.groups
        patches = columns.unflatten(1, (self.groups, channels, math.prod(self.kernel_size)))
        rows = patches.permute(0, 4, 1, 3, 2).flatten(3).flatten(0, 1)  # as kernels are laid out
        y = _product_of_grid(self.tiles, rows, bias, assignment.reshape(-1))
        return y.view(len(x), -1, self.out_channels).mT.unflatten(2, geometry.output)


class AnalogLinear(_OnTiles):
    """A ``torch.nn.Linear`` on one analog tile; the bias is digital.

    Args:
        in_features, out_features, bias, device, dtype: as in :class:`torch.nn.Linear`.
        config, seed: as in :class:`AnalogRapaConv2d`.

    Shape:
        - Input: (…, in_features)
        - Output: (…, out_features)
        - ``weight``: (out_features, in_features), a view of the tile's

    Raises:
        ValueError, TypeError: naming the argument.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        config: TileConfig | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.tiles = _tiles_for(
            1, in_features, out_features, config, seed=seed, device=device, dtype=dtype
        )
        self.in_features, self.out_features = in_features, out_features
        if check_bool("bias", bias):
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases as ``Linear`` does; weights are kept inside the bounds."""
        bound = self.in_features**-0.5
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*outside the bounds of their devices")
            if _is_view(self.tiles):
                self.weight.uniform_(-bound, bound)
                self.tiles.clip()
            else:
                self.tiles.program(torch.empty_like(self.tiles.read()).uniform_(-bound, bound))
            if self.bias is not None:
                self.bias.uniform_(-bound, bound)

    @property
    def weight(self) -> Tensor:
        """The weights (out_features, in_features); a view as in :class:`AnalogRapaConv2d`."""
        return (self.tiles.weight if _is_view(self.tiles) else self.tiles.read())[0]

    @classmethod
    def from_digital(
        cls, linear: "nn.Linear | AnalogLinear", config: TileConfig, *, seed: int | None = None
    ) -> "AnalogLinear":
        """Program a linear layer onto a tile, as :meth:`AnalogRapaConv2d.from_digital` does."""
        if not isinstance(linear, nn.Linear | AnalogLinear):
            raise TypeError(f"linear: got {type(linear).__name__}, expected torch.nn.Linear")
        weight = linear.weight
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None,
            weight.device, weight.dtype, config=config, seed=seed,
        )  # fmt: skip
        layer.tiles.program(weight.detach()[None])
        if layer.bias is not None and linear.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(linear.bias)
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"input: got shape {tuple(x.shape)}, expected (…, {self.in_features})")
        if x.dtype != self.weight.dtype:
            raise TypeError(f"input: got {x.dtype}, but the layer's weight is {self.weight.dtype}")
        rows = x.reshape(-1, self.in_features, 1, 1)
        tile = torch.zeros(1, 1, dtype=torch.long, device=x.device).expand(len(rows), -1)
        bias = None if self.bias is None else self.bias[None]
        if isinstance(self.tiles, AnalogTileArray):
            y = _Product.apply(rows, self.tiles.weight, bias, self.tiles, tile, _PIXEL)
        else:
            y = _product_of_grid(self.tiles, rows.view(len(rows), 1, -1), bias, tile[:, 0])
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"bias={self.bias is not None}"


def _tiles_for(
    n_tiles: int,
    in_features: int,
    out_features: int,
    config: TileConfig | None,
    groups: int = 1,
    **others: Any,
) -> AnalogTileArray | AnalogTileGrid:
    """Tiles for a layer: one array for each, or several."""
    if config is not None and not isinstance(config, TileConfig):
        raise TypeError(f"config: got {config!r}, expected a TileConfig")
    split = config is not None and config.mapping.splits(in_features, out_features // groups)
    if groups == 1 and not split:
        return AnalogTileArray(n_tiles, in_features, out_features, config, **others)
    return AnalogTileGrid(n_tiles, in_features, out_features, config, groups=groups, **others)


def _is_view(tiles: AnalogTileArray | AnalogTileGrid) -> bool:
    """Whether a layer's weight is the parameter of its tiles."""
    return isinstance(tiles, AnalogTileArray) and tiles.scale is None


def _product_of_grid(
    grid: AnalogTileGrid, rows: Tensor, bias: Tensor | None, tile: Tensor
) -> Tensor:
    """Multiply vectors (P, groups, K) with their tile's matrix, array by array: (P, M)."""
    sums: dict[int, Tensor] = {}
    for (group, row, col), array in zip(grid.where, grid.arrays, strict=True):
        part = rows[:, group, row, None, None]
        y = _Product.apply(part, array.weight, None, array, tile[:, None], _PIXEL).flatten(1)
        sums[col.start] = sums[col.start] + y if col.start in sums else y
    y = torch.cat([sums[start] for start in sorted(sums)], 1)
    if bias is None:
        return y
    return y + bias[tile.clamp_min(0)] * (tile >= 0)[:, None]


class _Product(torch.autograd.Function):
    """Forward and backward through tiles; the weight's part is left to pulses, or exact."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tiles: AnalogTileArray,
        assignment: Tensor,
        geometry: Geometry,
    ) -> Tensor:
        ctx.tiles, ctx.geometry, ctx.input_size = tiles, geometry, x.shape[2:]
        ctx.save_for_backward(x, weight, assignment)  # a changed weight is noticed
        if tiles.config.forward.is_perfect:
            kernels = _kernels(tiles.effective(), geometry)
            return ops.forward(x, kernels, bias, assignment, *_conv(geometry))
        return tiles.convolve(x, assignment, geometry, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, _, assignment = ctx.saved_tensors
        tiles, geometry = ctx.tiles, ctx.geometry
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            if tiles.config.backward.is_perfect:
                by_x = ops.grad_input(
                    grad, _kernels(tiles.effective(), geometry), assignment, list(ctx.input_size),
                    *_conv(geometry),
                )  # fmt: skip
            else:
                by_x = tiles.convolve_backward(grad, assignment, ctx.input_size, geometry)
        if ctx.needs_input_grad[1] and tiles.is_ideal:
            by_weight, by_bias = ops.grad_weight(
                grad, x, assignment, tiles.n_tiles, list(geometry.kernel), *_conv(geometry)
            )
            by_weight = matrices_of(by_weight).flatten(1, 3).transpose(1, 2)
        elif ctx.needs_input_grad[1] and tiles.is_pulsed:
            tiles.remember(x.detach(), grad, assignment, geometry)
        if ctx.needs_input_grad[2] and by_bias is None:
            by_bias = _sum_by_tile(grad, assignment, tiles.n_tiles)
        return by_x, by_weight, by_bias if ctx.needs_input_grad[2] else None, None, None, None


def _conv(geometry: Geometry) -> tuple:
    """Stride, padding, dilation and groups as the operators of the products take them."""
    return (*(list(part) for part in geometry[3:]), 1)


def _kernels(weight: Tensor, geometry: Geometry) -> Tensor:
    """Weights (T, O, kh · kw · C) as kernels (T, O, C, kh, kw), without a copy."""
    return kernels_of(weight.transpose(1, 2).unflatten(1, (*geometry.kernel, -1)))


def _sum_by_tile(grad: Tensor, assignment: Tensor, n_tiles: int) -> Tensor:
    """Sum errors (N, O, H', W') over the patches of each tile: (T, O)."""
    if n_tiles == 1:
        used = (assignment >= 0).view(len(grad), 1, *grad.shape[2:])
        return (grad * used).sum((0, 2, 3))[None]
    rows = grad.permute(0, 2, 3, 1).flatten(0, 2)
    total = grad.new_zeros(n_tiles + 1, grad.shape[1])
    return total.index_add_(0, assignment.flatten() + 1, rows)[1:]
