"""A merged network whose layers can be moved: what second-order expansions are made of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapa_lib.layers._hooks import hooked
from rapa_lib.layers.conv import RapaConv2d


@dataclass
class Deviation:
    """What the tiles of a layer differ by from their mean: δ_t, for weights and biases."""

    layer: RapaConv2d
    weight: Tensor
    bias: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, layer: RapaConv2d) -> "Deviation":
        weight, bias = layer.weight.detach(), layer.bias
        return cls(layer, weight - weight.mean(0), None if bias is None else bias - bias.mean(0))

    def assigned(self, x: Tensor, assignment: Tensor) -> Tensor:
        """ε_p = δ_{a(p)} x_p, shaped as the layer's output."""
        return self.layer._convolve(x, self.weight, self.bias, assignment)

    def mixed(self, x: Tensor, factors: Tensor) -> Tensor:
        """Σ_t factor_t δ_t x_p: one convolution, since it is linear in the kernels."""
        weight = torch.einsum("t,t...->...", factors, self.weight)[None]
        bias = None if self.bias is None else (factors @ self.bias)[None]
        return self.layer._convolve(x, weight, bias, None)


class Taps:
    """A merged network, the inputs and outputs of whose layers can be seen and moved."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        self.network = network.requires_grad_(False)
        self.layers = {name: network.get_submodule(name) for name in names}

    def run(self, batch: Tensor, moves: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, with outputs moved by so much, and every layer's input."""
        inputs: dict[str, Tensor] = {}

        def move(name: str, _: nn.Module, args: tuple, __: dict, output: Tensor) -> Tensor:
            if name in inputs:
                raise ValueError(f"layer: {name!r} runs more than once in a forward pass")
            inputs[name] = args[0]
            return output + moves[name] if name in moves else output

        with hooked(self.layers, after=move):
            return self.network(batch), inputs

    def output_zeros(self, batch: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            _, inputs = self.run(batch, {})
        return {name: torch.zeros_like(layer(inputs[name])) for name, layer in self.layers.items()}

    def first_order(
        self, batch: Tensor, labels: Tensor
    ) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
        """Loss (a sum), inputs of the layers, and its gradients with respect to their outputs."""
        moves = {name: zero.requires_grad_() for name, zero in self.output_zeros(batch).items()}
        logits, inputs = self.run(batch, moves)
        loss = loss_of(logits, labels)
        slopes = torch.autograd.grad(loss, list(moves.values())) if moves else ()
        inputs = {name: x.detach() for name, x in inputs.items()}
        return float(loss.detach()), inputs, dict(zip(moves, slopes, strict=True))


def linearise(
    taps: Taps, batch: Tensor, labels: Tensor, name: str, zero: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The maps z → Hz and z → Gz of one batch. Reverse mode only: every layer has it."""

    def logits(move: Tensor) -> Tensor:
        return taps.run(batch, {name: move})[0]

    def loss(move: Tensor) -> Tensor:
        return loss_of(logits(move), labels)

    _, hessian = _vjp(torch.func.grad(loss), zero)  # H is symmetric
    scores, transposed = _vjp(logits, zero)
    # u → Jᵀu is linear: its own transpose is z → Jz.
    _, jacobian = _vjp(lambda u: transposed(u)[0], torch.zeros_like(scores))
    p = scores.detach().softmax(1)

    def products(z: Tensor) -> tuple[Tensor, Tensor]:
        (u,) = jacobian(z)
        u = p * u - p * (p * u).sum(1, keepdim=True)  # the Hessian of the cross-entropy
        return hessian(z)[0].detach(), transposed(u)[0].detach()

    return products


@contextmanager
def imposed(network: nn.Module, assignments: dict[str, Tensor]) -> Iterator[None]:
    """Make layers use given assignments."""

    def impose(name: str, _: nn.Module, args: tuple, __: dict) -> tuple[tuple, dict]:
        return (args[0], assignments[name]), {}

    layers = {name: network.get_submodule(name) for name in assignments}
    with hooked(layers, before=impose):
        yield


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def _vjp(
    function: Callable[[Tensor], Tensor], at: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """The value of a function and the map from its cotangents to those of its argument."""
    value, pull = torch.func.vjp(function, at)  # type: ignore[misc]  # a third only with has_aux
    return value, pull
