"""The networks that the acceleration experiment knows by name, and the count of their layers."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rapa_lib._checks import check_choice, check_int
from rapa_lib.networks import RapaConvNet
from rapa_lib.runtime import NetworkLayers, count_layers

RAPA = "rapa"
"""The name that stands for the study's own network among torchvision's."""


def count_networks(names: Iterable[str], image_size: int = 224) -> dict[str, NetworkLayers]:
    """Count the layers of networks known by name; no weight is drawn.

    Args:
        names: ``"rapa"`` for :class:`RapaConvNet` on 3 × 32 × 32 images with one tile per layer,
            or a classification network of torchvision.
        image_size: side of the images for torchvision's networks, with three channels.

    Returns:
        Layers by name.

    Raises:
        ValueError: for an unknown name, or an image size on which a network does not run.
    """
    check_int("image_size", image_size, low=1)
    networks = {}
    for name in names:
        model = _build(name)
        side = 32 if name == RAPA else image_size
        try:
            networks[name] = count_layers(model, (3, side, side))
        except ValueError as error:
            raise ValueError(f"networks: {name}: {error}") from error
    if not networks:
        raise ValueError("networks: got none, expected at least one name")
    return networks


def check_network(name: str, value: Any) -> str:
    """Return the name of a network if there is one of that name; raise ValueError otherwise.

    Args:
        name: of the argument.
        value: what was given for it.
    """
    from torchvision import models

    return check_choice(name, value, (RAPA, *models.list_models(module=models)))


def _build(name: str) -> nn.Module:
    from torchvision import models

    check_network("networks", name)
    with warnings.catch_warnings(), _WithoutWeights():
        # GoogLeNet and Inception announce that their initial weights will change: there are none.
        warnings.simplefilter("ignore", FutureWarning)
        return RapaConvNet(tiling="none") if name == RAPA else models.get_model(name, weights=None)


class _WithoutWeights(TorchFunctionMode):
    """Give new layers weights on the meta device.

    ``with torch.device("meta")`` would take all other tensors along, with which some constructors
    (RegNet's) compute.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
