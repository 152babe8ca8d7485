"""How much a network's own lots disturb the outputs of its layers."""

from typing import Any

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_int
from rapa_lib._modes import evaluation_mode
from rapa_lib.layers._hooks import hooked, layers_of
from rapa_lib.layers._patch_conv import PatchConv2d


@torch.no_grad()
def layer_noise(model: nn.Module, x: Tensor, draws: int = 8) -> dict[str, float]:
    """Measure the noise that fresh draws make on each layer's outputs.

    Args:
        model: any module; it is measured in evaluation mode.
        x: a batch of its input.
        draws: passes through each layer that draws, on the same input, at least 2.

    Returns:
        By layer name: the standard deviation over draws relative to that of the mean output over
        images and positions, mean over channels. Layers that draw nothing are missing.
    """
    check_int("draws", draws, low=2)
    noise: dict[str, float] = {}

    def measure(name: str, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        outputs = torch.stack([layer.forward(*args, **kwargs) for _ in range(draws)])
        within = outputs.var(0).mean((0, 2, 3))
        between = outputs.mean(0).var((0, 2, 3))
        noise[name] = float((within / between.clamp(min=1e-20)).sqrt().mean())

    drawing = {
        name: layer for name, layer in layers_of(model, PatchConv2d).items() if layer.redraws
    }
    with hooked(drawing, before=measure), evaluation_mode(model):
        model(x)
    return noise
