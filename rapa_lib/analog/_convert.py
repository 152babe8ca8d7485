"""The conversion of whole networks to analog tiles."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from rapa_lib._checks import check_bool, check_int
from rapa_lib._seeds import mix_seeds
from rapa_lib.analog._config import TileConfig
from rapa_lib.analog._layers import AnalogLinear, AnalogRapaConv2d
from rapa_lib.analog._pcm import PCMLikeNoiseModel
from rapa_lib.analog._tile_array import AnalogTileArray
from rapa_lib.layers._patch_conv import PatchConv2d
from rapa_lib.layers.conv import RapaConv2d
from rapa_lib.networks.convert import _replace, check_plain


def drift(model: nn.Module, t_inference: float, *, seed: int | None = None) -> nn.Module:
    """Let the weights of a network on phase-change memory be as they are after some time.

    Each device drifts by the exponent that it was written with; the 1/f noise of reading is drawn
    anew. Calls do not add up: the time counts from the first read, t_0 after writing.

    Args:
        model: converted with a :class:`PCMLikeNoiseModel` as the tiles' device; changed in place.
        t_inference: that time, s.
        seed: of the noise; None: PyTorch's generator.

    Returns:
        The model.

    Raises:
        ValueError: if no layer lies on phase-change memory, or for a negative time.
    """
    tiles = [layer for layer in model.modules() if isinstance(layer, AnalogTileArray)]
    tiles = [layer for layer in tiles if isinstance(layer.config.device, PCMLikeNoiseModel)]
    if not tiles:
        raise ValueError("model: it has no layer on phase-change memory (PCMLikeNoiseModel)")
    seed = None if seed is None else check_int("seed", seed, low=0)
    for number, layer in enumerate(tiles):
        layer.drift(t_inference, None if seed is None else mix_seeds(seed, number))
    return model


def convert_to_analog(
    model: nn.Module, config: TileConfig, *, seed: int | None = None, inplace: bool = False
) -> nn.Module:
    """Put every convolution and linear layer of a model on analog tiles.

    Weights are programmed as they are; those outside the bounds of their devices are clipped, with
    a warning a layer that counts them. Layers that are analog already are programmed onto new
    tiles: this is how a network trained with ``config.hardware_aware()`` moves to real devices.

    Args:
        model: a module with ``Conv2d``, ``RapaConv2d`` or ``Linear`` layers.
        config: what the tiles are made of.
        seed: of the devices; None takes one from PyTorch's generator.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        The converted model. A layer used in several places stays shared.

    Raises:
        ValueError: if the model has no such layer, a perforated or noisy convolution, or a layer
            that is parametrized or pruned, or has hooks or a forward of its own.
        TypeError: if an argument is of the wrong type.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected torch.nn.Module")
    if not isinstance(config, TileConfig):
        raise TypeError(f"config: got {config!r}, expected a TileConfig")
    check_bool("inplace", inplace)
    seed = int(torch.randint(2**31, ())) if seed is None else check_int("seed", seed, low=0)
    kinds: dict[type[nn.Module], Callable[..., nn.Module]] = {
        nn.Conv2d: AnalogRapaConv2d.from_digital, RapaConv2d: AnalogRapaConv2d.from_digital,
        nn.Linear: AnalogLinear.from_digital, AnalogLinear: AnalogLinear.from_digital,
    }  # fmt: skip
    found = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, (*kinds, PatchConv2d))
    ]
    if not found:
        raise ValueError("model: it has no Conv2d, RapaConv2d or Linear layer to convert")
    for name, layer in found:
        if not isinstance(layer, tuple(kinds)):  # a control's convolution
            what = type(layer).__name__
            raise ValueError(f"model: layer {name!r} ({what}) cannot be put on analog tiles")
        check_plain(name, model.get_submodule(name))
    number = {name: i for i, (name, _) in enumerate(found)}

    def convert(name: str, layer: nn.Module) -> nn.Module | None:
        if name not in number:
            return None
        program = next(make for digital, make in kinds.items() if isinstance(layer, digital))
        return program(layer, config, seed=mix_seeds(seed, number[name]))

    return _replace(model if inplace else copy.deepcopy(model), convert)
