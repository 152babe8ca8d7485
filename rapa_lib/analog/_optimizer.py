"""SGD that writes analog weights by pulses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from rapa_lib._checks import check_real
from rapa_lib.analog._tile_array import AnalogTileArray


class AnalogSGD(torch.optim.SGD):
    """Stochastic gradient descent: pulses for weights on analog tiles, ordinary SGD for the rest.

    In :meth:`step` every tile array sends the pulses of the backward passes since the last step, at
    its group's learning rate. Momentum and weight decay are of digital parameters alone: a tile
    keeps no gradient.

    Args:
        model: the network; its analog layers are found by their tile arrays.
        lr: learning rate, also of the pulses.
        params: parameters or parameter groups, as in :class:`torch.optim.SGD`; None: all of the
            model.
        others: as in :class:`torch.optim.SGD`.

    Raises:
        ValueError: if lr, momentum or weight_decay is negative or not finite, when built or, for
            lr, after a schedule, in a step.
        TypeError: if the model is none, or one of these no number.
    """

    def __init__(
        self, model: nn.Module, lr: float = 1e-3, *, params: ParamsT | None = None, **others: Any
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, expected torch.nn.Module")
        check_real("lr", lr, low=0)
        for name in ("momentum", "weight_decay"):
            if name in others:
                check_real(name, others[name], low=0)
        super().__init__(model.parameters() if params is None else params, lr=lr, **others)
        self._tiles = {
            layer.weight: layer
            for layer in model.modules()
            if isinstance(layer, AnalogTileArray) and layer.is_pulsed
        }

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # of two overloads
        """Send the pulses, then take an ordinary step with the digital parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self._tiles:
                    self._tiles[parameter].update_pending(group["lr"])
        super().step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients and what tiles remember."""
        super().zero_grad(set_to_none)
        for tiles in getattr(self, "_tiles", {}).values():
            tiles.forget()
