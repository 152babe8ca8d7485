"""Whole models: replicate the convolutions of any network over tiles, and merge them again."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from rapa_lib._checks import check_bool, check_int
from rapa_lib._modes import evaluation_mode
from rapa_lib.layers._hooks import layers_of, shapes_seen
from rapa_lib.layers._patch_conv import PatchConv2d
from rapa_lib.layers.conv import RapaConv2d


def convert_to_rapa(
    model: nn.Module,
    n_tiles: int | Mapping[str, int] = 16,
    tiling: str = "random",
    *,
    tile_init: str = "identical",
    input_size: tuple[int, ...] | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Replace convolutions of a model by RAPA convolutions.

    Args:
        model: any module with ``torch.nn.Conv2d`` layers.
        n_tiles: one number for every convolution, or a number for each named layer (names as in
            ``model.named_modules()``), the others staying as they are.
        tiling: a name in :data:`rapa_lib.TILINGS`.
        tile_init: ``"identical"`` keeps the model's function, ``"independent"`` draws new kernels.
        input_size: shape (C, H, W) of one input. If given, the model is run once on zeros to learn
            each layer's number of patches L: a single ``n_tiles`` is then lowered to L where a
            layer has fewer patches, and a named one above L is an error at once. If not, a layer
            with more tiles than patches says so in its first forward pass.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        The converted model. A convolution used in several places stays shared.

    Raises:
        ValueError: for a name that is no convolution of the model, a number of tiles out of range,
            an unknown tiling, a parametrized, pruned or lazy convolution, one with hooks or a
            forward of its own, or a model without convolutions.
        TypeError: if an argument is of the wrong type.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected torch.nn.Module")
    check_bool("inplace", inplace)
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if not convs:
        raise ValueError("model: it has no torch.nn.Conv2d layer to convert")
    tiles = _tiles_by_layer(convs, n_tiles)
    for name in tiles:
        if isinstance(convs[name], nn.modules.lazy.LazyModuleMixin):
            raise ValueError(f"model: layer {name!r} is lazy; run the model once before")
        check_plain(name, convs[name])
    if input_size is not None:
        patches = count_patches(model, input_size)
        for name, count in tiles.items():
            if name in patches and count > patches[name]:
                if isinstance(n_tiles, Mapping):
                    raise ValueError(
                        f"n_tiles: got {count} for layer {name!r}, which has {patches[name]} "
                        f"patches at input size {tuple(input_size)}"
                    )
                tiles[name] = patches[name]

    def replicate(name: str, layer: nn.Module) -> nn.Module | None:
        if name not in tiles or not isinstance(layer, nn.Conv2d):
            return None
        return RapaConv2d.from_conv2d(
            layer, n_tiles=tiles[name], tiling=tiling, tile_init=tile_init
        )

    return _replace(model if inplace else copy.deepcopy(model), replicate)


def merge_tiles(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Replace the RAPA and perforated convolutions of a model by their merged ``Conv2d``.

    Averaging kernels that differ shrinks the outputs of a layer, so the statistics of the
    normalisation layers must be estimated again (:func:`rapa_lib.reestimate_normalisation`).

    Args:
        model: any module.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        The merged model; a model without such layers comes back as it is (copied).

    Raises:
        ValueError: for such a layer with hooks or a forward of its own.
        TypeError: if an argument is of the wrong type.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected torch.nn.Module")

    def merge(name: str, layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, PatchConv2d):
            return None
        if type(layer).merged is _base(layer).merged:  # otherwise it knows what it is merged into
            check_plain(name, layer)
        return layer.merged()

    return _replace(model if check_bool("inplace", inplace) else copy.deepcopy(model), merge)


def count_patches(model: nn.Module, input_size: tuple[int, ...]) -> dict[str, int]:
    """Count the output positions L of every convolution.

    Args:
        model: any module; it is run once, in evaluation mode, on a batch of two zero images.
        input_size: shape (C, H, W) of one input.

    Returns:
        Patches by layer name (as in ``named_modules``); layers that did not run are missing.

    Raises:
        ValueError: if the model does not run on that input; the message holds its own error.
    """
    parameter = next(model.parameters())
    try:
        with (
            shapes_seen(layers_of(model, nn.Conv2d, PatchConv2d)) as seen,
            evaluation_mode(model),
            torch.no_grad(),
        ):
            model(torch.zeros(2, *input_size, device=parameter.device, dtype=parameter.dtype))
    except Exception as error:  # whatever a model may raise
        raise ValueError(f"input_size: the model fails on {tuple(input_size)}: {error}") from error
    return {name: y[-2] * y[-1] for name, (*_, (_, y)) in seen.items()}


def _tiles_by_layer(
    convs: Mapping[str, nn.Conv2d], n_tiles: int | Mapping[str, int]
) -> dict[str, int]:
    if not isinstance(n_tiles, Mapping):
        return dict.fromkeys(convs, check_int("n_tiles", n_tiles, low=1))
    unknown = [name for name in n_tiles if name not in convs]
    if unknown:
        raise ValueError(
            f"n_tiles: no convolution is called {', '.join(map(repr, unknown))}; "
            f"the model has {', '.join(convs)}"
        )
    return {name: check_int(f"n_tiles[{name!r}]", n, low=1) for name, n in n_tiles.items()}


def check_plain(name: str, layer: nn.Module) -> None:
    """Raise ValueError if a layer that is to be replaced computes more than its kind does.

    Args:
        name: of the layer in its model.
        layer: a convolution or linear layer of PyTorch or of this package, or of a class derived
            from one.
    """
    if parametrize.is_parametrized(layer):
        raise ValueError(f"model: layer {name!r} is parametrized; remove that before")
    base = _base(layer)
    for method in ("forward", "_conv_forward"):
        if method in vars(layer) or getattr(type(layer), method, None) is not getattr(
            base, method, None
        ):
            raise ValueError(
                f"model: layer {name!r} ({type(layer).__name__}) has its own {method}, which its "
                f"replacement would not run; allowed: {base.__name__}'s"
            )
    _check_hooks(name, layer)


def _base(layer: nn.Module) -> Any:
    """The class of PyTorch or of this package that a layer's class is derived from."""
    known = (nn.Conv2d, nn.Linear)
    ours = __name__.split(".")[0] + "."
    return next(
        kind for kind in type(layer).__mro__ if kind in known or kind.__module__.startswith(ours)
    )


def _check_hooks(name: str, layer: nn.Module) -> None:
    """Raise ValueError if a layer that is to be replaced does more than its forward says."""
    if any(key.endswith("_mask") for key in layer._buffers):
        raise ValueError(
            f"model: layer {name!r} is pruned; make that permanent before "
            "(torch.nn.utils.prune.remove)"
        )
    for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
        if getattr(layer, kind):
            raise ValueError(
                f"model: layer {name!r} has hooks ({kind.strip('_')}), which its replacement would "
                "not have; remove them before"
            )


def _replace(model: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Swap modules for what ``make(name, module)`` returns; None keeps one. Sharing is kept."""
    found = {}
    for name, layer in model.named_modules():
        new = make(name, layer)
        if new is not None:
            _check_hooks(name, layer)
            found[layer] = new
    if model in found:
        return found[model]
    for parent in list(model.modules()):
        # Not named_children: it lists a module held under two names once.
        for child_name, child in parent._modules.items():
            if child in found:
                parent._modules[child_name] = found[child]
    return model
