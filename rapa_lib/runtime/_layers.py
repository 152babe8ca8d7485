"""The layers of a network as matrix products: what each asks of arrays, whatever these are."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

from rapa_lib._checks import check_int, optional
from rapa_lib._modes import evaluation_mode
from rapa_lib.layers._hooks import layers_of, shapes_seen
from rapa_lib.layers._patch_conv import PatchConv2d
from rapa_lib.layers.conv import RapaConv2d
from rapa_lib.layers.perforated import PerforatedConv2d

if TYPE_CHECKING:
    import pandas as pd

# What normalises, activates or scales has parameters, but no matrix to put on an array.
_DIGITAL = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
)


@dataclass(frozen=True)
class LayerShape:
    """A layer as matrix-vector products.

    Args:
        name: as in ``model.named_modules()``.
        kind: name of the layer's type.
        patches: vectors of one image in each use of the layer: a layer that is called twice in
            a forward pass has two numbers. Output positions L of a convolution, input vectors of
            a linear layer.
        rows: length of a patch, C_in / groups · kernel height · kernel width, without bias.
        columns: outputs of a patch, C_out / groups.
        groups: kernel matrices of a tile; all of them take their part of the patch at once.
        bias: whether it has one.
        n_tiles: tiles that the layer has now; 1 unless it is a ``RapaConv2d``.
        can_tile: whether RAPA can replicate it (a convolution, not a perforated one).
        inputs, outputs: numbers that it reads and writes an image, over all uses.
        perforation: it computes one patch of so many; 1 unless it is a ``PerforatedConv2d``.
        loads: where tiles are dead, the patches of the busiest living tile in each use, as they
            are divided now; None where all tiles work, which share them evenly.
    """

    name: str
    kind: str
    patches: tuple[int, ...]
    rows: int
    columns: int
    groups: int
    bias: bool
    n_tiles: int
    can_tile: bool
    inputs: int
    outputs: int
    perforation: int = 1
    loads: tuple[int, ...] | None = None

    @property
    def max_tiles(self) -> int:
        """The most tiles that it can have: one a patch; a layer that cannot be tiled has one."""
        return min(self.patches) if self.can_tile else 1

    @property
    def weights(self) -> int:
        """Numbers of one tile's kernel matrices, without bias."""
        return self.rows * self.columns * self.groups

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.products(1) * self.weights

    @overload
    def products(self, n_tiles: int) -> int: ...
    @overload
    def products(self, n_tiles: np.ndarray) -> np.ndarray: ...
    def products(self, n_tiles: Any) -> Any:
        """Products that each of n working tiles computes in turn for an image: Σ ceil(L / n)."""
        return sum(-(-n_patches // (n_tiles * self.perforation)) for n_patches in self.patches)


@dataclass(frozen=True)
class Uncounted:
    """A module with parameters of its own that is in no count.

    Args:
        name: as in ``model.named_modules()``.
        kind: name of its type.
        n_parameters: parameters of its own, without its children's.
        reason: ``"digital"``: normalisation, activation or scaling, which needs no array; ``"not
            called"``: it did not run (or its parent used its weight directly); ``"unknown type"``:
            this model of run time does not know how it would lie on arrays.
    """

    name: str
    kind: str
    n_parameters: int
    reason: str


@dataclass(frozen=True)
class NetworkLayers:
    """What :func:`count_layers` found.

    Args:
        input_size: shape of one input, without batch.
        layers: in the order in which they first ran.
        uncounted: every other module that has parameters.
    """

    input_size: tuple[int, ...]
    layers: tuple[LayerShape, ...]
    uncounted: tuple[Uncounted, ...]

    def uncounted_table(self) -> "pd.DataFrame":
        """The uncounted modules, one a row: layer, kind, n_parameters, reason."""
        rows = [(u.name, u.kind, u.n_parameters, u.reason) for u in self.uncounted]
        return optional("pandas", "figures").DataFrame(
            rows, columns=["layer", "kind", "n_parameters", "reason"]
        )


def count_layers(model: nn.Module, input_size: Sequence[int]) -> NetworkLayers:
    """Find the matrix products of a network: of its convolutions and linear layers.

    A copy of the model is run once in evaluation mode on one input, with tensors that have shapes
    and no values: that takes no memory, works for models on the meta device too, and leaves the
    model and the random numbers alone. A model that needs values (its path depends on its input)
    is run itself, on zeros.

    Args:
        model: any module with ``Conv2d``, ``RapaConv2d``, ``PerforatedConv2d`` or ``Linear``
            layers; what else has parameters is listed as uncounted.
        input_size: shape of one input without batch, (C, H, W) for images.

    Raises:
        TypeError: if ``model`` is no module or ``input_size`` no sequence of integers.
        ValueError: if the model does not run on that input (the message holds its own error), a
            layer is lazy, or none of the known layers runs.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected torch.nn.Module")
    given: Any = input_size
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"input_size: got {input_size!r}, expected a shape such as (3, 224, 224)")
    if not input_size:
        raise ValueError("input_size: got (), expected a shape such as (3, 224, 224)")
    size = tuple(check_int("input_size", side, low=1) for side in input_size)
    for name, layer in model.named_modules():
        # What a lazy layer becomes keeps the base class, but has nothing uninitialised left.
        lazy = isinstance(layer, nn.modules.lazy.LazyModuleMixin)
        if lazy and layer.has_uninitialized_params():
            raise ValueError(f"model: layer {name!r} is lazy; run the model once before")
    calls = _calls(model, size)
    layers = tuple(_shape(name, model.get_submodule(name), uses) for name, uses in calls.items())
    uncounted = tuple(_uncounted(model, set(calls)))
    if not layers:
        others = ", ".join(f"{u.name!r} ({u.kind}, {u.reason})" for u in uncounted) or "none"
        raise ValueError(
            f"model: no convolution or linear layer ran on {size}; other layers with parameters: "
            f"{others}"
        )
    return NetworkLayers(size, layers, uncounted)


def as_layers(model: nn.Module | NetworkLayers, input_size: Sequence[int] | None) -> NetworkLayers:
    """Count a model's layers, or take them as they were counted."""
    if not isinstance(model, NetworkLayers):
        if input_size is None:
            raise TypeError("input_size: got None, expected a shape such as (3, 224, 224)")
        return count_layers(model, input_size)
    if input_size is not None and tuple(input_size) != model.input_size:
        raise ValueError(
            f"input_size: got {tuple(input_size)}, but the layers were counted at "
            f"{model.input_size}; leave it out"
        )
    return model


# Of each layer that ran the shapes (input, output) of each use.
_Uses = list[tuple[torch.Size, torch.Size]]


def _calls(model: nn.Module, size: tuple[int, ...]) -> dict[str, _Uses]:
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        shapes_only = _without_values(model, fake)
        with fake:
            return _run(shapes_only, size)
    except Exception as error:
        failure = error  # whatever a model may raise
    tensors = [*model.parameters(), *model.buffers()]
    if not any(tensor.is_meta for tensor in tensors):
        devices = {tensor.device for tensor in tensors if tensor.is_cuda}
        try:
            with torch.random.fork_rng(devices):
                return _run(model, size)
        except Exception as error:
            failure = error
    raise ValueError(f"input_size: the model fails on {size}: {failure}") from failure


def _without_values(model: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """Copy a model, its parameters and buffers as CPU tensors without values."""
    memo = {}
    with fake:
        for tensor in (*model.parameters(), *model.buffers()):
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = empty
    return copy.deepcopy(model, memo)


def _run(model: nn.Module, size: tuple[int, ...]) -> dict[str, _Uses]:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    with (
        shapes_seen(layers_of(model, nn.Conv2d, nn.Linear, PatchConv2d)) as uses,
        evaluation_mode(model),
        torch.no_grad(),
    ):
        model(torch.zeros(1, *size, device=like.device, dtype=like.dtype))
    return uses


def _shape(name: str, layer: nn.Module, uses: _Uses) -> LayerShape:
    assert isinstance(layer, nn.Conv2d | nn.Linear | PatchConv2d)  # what _run looks for
    common: dict[str, Any] = {
        "name": name,
        "kind": type(layer).__name__,
        "bias": layer.bias is not None,
        "inputs": sum(math.prod(x) for x, _ in uses),
        "outputs": sum(math.prod(y) for _, y in uses),
    }
    if isinstance(layer, nn.Linear):
        return LayerShape(
            patches=tuple(math.prod(y[:-1]) for _, y in uses),
            rows=layer.in_features,
            columns=layer.out_features,
            groups=1,
            n_tiles=1,
            can_tile=False,
            **common,
        )
    patches: list[int] = []
    for _, y in uses:
        # A batch inside the network (crops of the image, say) is so many uses.
        patches += [y[-2] * y[-1]] * math.prod(y[:-3])
    plain = isinstance(layer, nn.Conv2d) and not parametrize.is_parametrized(layer)
    return LayerShape(
        patches=tuple(patches),
        rows=layer.in_channels // layer.groups * math.prod(layer.kernel_size),
        columns=layer.out_channels // layer.groups,
        groups=layer.groups,
        n_tiles=layer.n_tiles if isinstance(layer, RapaConv2d) else 1,
        can_tile=isinstance(layer, RapaConv2d) or plain,
        perforation=layer.n_tiles if isinstance(layer, PerforatedConv2d) else 1,
        loads=_loads(layer, uses) if isinstance(layer, RapaConv2d) else None,
        **common,
    )


def _loads(layer: RapaConv2d, uses: _Uses) -> tuple[int, ...] | None:
    """The patches of the busiest living tile in each use; None where no tile is dead."""
    n_living = len(layer.living_tiles)
    if n_living == layer.n_tiles:
        return None
    loads: list[int] = []
    for x, y in uses:
        if n_living == 0:
            busiest = 0
        elif layer.reroute or layer.redraws:
            # Drawn anew, any tile may be among those with one patch more.
            busiest = -(-y[-2] * y[-1] // (n_living if layer.reroute else layer.n_tiles))
        else:
            kept = layer.assignment(1, (x[-2], x[-1]))
            busiest = int(torch.bincount(kept[kept >= 0]).max())
        loads += [busiest] * math.prod(y[:-3])
    return tuple(loads)


def _uncounted(model: nn.Module, counted: set[str]) -> Iterator[Uncounted]:
    for name, layer in model.named_modules():
        own = list(layer.parameters(recurse=False))
        # The parameters of a parametrization are those of the layer that it makes.
        if not own or name in counted or isinstance(layer, parametrize.ParametrizationList):
            continue
        if isinstance(layer, nn.Conv2d | nn.Linear | PatchConv2d):
            reason = "not called"
        elif isinstance(layer, _DIGITAL) or _only_scales(layer, own):
            reason = "digital"
        else:
            reason = "unknown type"
        yield Uncounted(name, type(layer).__name__, sum(p.numel() for p in own), reason)


def _only_scales(layer: nn.Module, own: list[Tensor]) -> bool:
    """Whether a module that is not PyTorch's holds no matrix, only numbers to scale or shift by."""
    foreign = not type(layer).__module__.startswith("torch.nn.")
    return foreign and all(sum(side > 1 for side in p.shape) <= 1 for p in own)
