"""One way to look into the layers of a model, and to change what goes in and comes out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

Before = Callable[[str, nn.Module, tuple, dict[str, Any]], tuple[tuple, dict[str, Any]] | None]
After = Callable[[str, nn.Module, tuple, dict[str, Any], Any], Any]


@contextmanager
def hooked(
    layers: Mapping[str, nn.Module], *, before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Call functions around the forward passes of layers inside.

    Args:
        layers: by name.
        before: called with name, layer, arguments and keyword arguments before a pass; returns
            those to take in their place, or None.
        after: called with the same and the output after a pass; returns the output to take in
            its place, or None.
    """
    with ExitStack() as stack:
        for name, layer in layers.items():
            if before is not None:
                hook = partial(_with_name, before, name)
                handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            if after is not None:
                hook = partial(_with_name, after, name)
                handle = layer.register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        yield


@contextmanager
def shapes_seen(
    layers: Mapping[str, nn.Module],
) -> Iterator[dict[str, list[tuple[torch.Size, torch.Size]]]]:
    """Record the shapes (input, output) of every forward pass of layers inside.

    Yields:
        By name, one pair per pass, layers in the order in which they first ran; those that did not
        run are missing.
    """
    seen: dict[str, list[tuple[torch.Size, torch.Size]]] = {}

    def note(name: str, _: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        x = next(iter((*args, *kwargs.values())))
        seen.setdefault(name, []).append((x.shape, output.shape))

    with hooked(layers, after=note):
        yield seen


def layers_of(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """The layers of a model of some kinds, by name as in ``named_modules``."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}


def _with_name(function: Callable, name: str, layer: nn.Module, *rest: Any) -> Any:
    return function(name, layer, *rest)
