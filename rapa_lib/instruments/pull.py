"""The pull: how strongly training draws the tiles of a layer together, at the trained network.

Scale the deviations of a layer's tiles from their mean, K_t = K̄ + s δ_t with Σ_t δ_t = 0, and let
L(s) be the training loss, expected over images and assignments, with batch statistics. Then

    P = dL/ds at s = 1 = Σ_t ⟨∂L/∂K_t, δ_t⟩

needs ordinary backward passes only: no reference network, no second derivative, no smoothness.
P > 0: descent shrinks the deviations. Beside it stand the pull of weight decay, λ Σ_t ‖δ_t‖², and
the gradient noise N that drives the tiles apart; where the three balance, with rate η and
momentum μ, P + λ Σ_t ‖δ_t‖² = η / (1 − μ) · N / 2. The derivation is in
docs/self_regularization.md.

Under a fixed assignment nothing is drawn: L is the expectation over images alone.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapa_lib._checks import check_int, check_real, check_sequence
from rapa_lib._seeds import mix_seeds, seeded
from rapa_lib.instruments.penalty import ALL_LAYERS, scale_deviations
from rapa_lib.instruments.similarity import tiled_layers
from rapa_lib.layers.conv import RapaConv2d
from rapa_lib.training.images import check_labels, count_classes

SCALES = (0.0, 0.25, 0.5, 1.0, 1.25)
"""Where :func:`loss_along_scale` looks: merged, on the way, as trained, and beyond."""

# What is drawn from a seed besides the draws, which are (seed, 1 + draw, batch).
_ORDER, _STATISTICS = (0, 1), (0, 2)


@dataclass(frozen=True)
class LayerPull:
    """What moves the tiles of one layer toward their mean and away from it.

    Args:
        layer: its name.
        n_tiles: its number of tiles n_t.
        pull: P, of kernels and biases together.
        pull_error: its standard error over batches.
        kernel_pull: the part of P that is of the kernels: what ``decay`` and ``noise`` are of.
        decay: pull of weight decay, λ Σ_t ‖δ_t‖²: d/ds of (λ/2) Σ_t ‖K_t‖² at s = 1.
        decay_rate: λ, weight_decay / n_tiles^tile_lr_power; biases have none.
        noise: N, the variance over steps of the kernels' gradients as they deviate from their
            mean over tiles, Σ_t E‖γ_t − E γ_t‖² with γ_t = g_t − ḡ; a step is one batch with one
            draw, so N is that of training where the batch size is that of training.
        squared_deviation: Σ_t ‖δ_t‖² of the kernels.
        squared_norm: Σ_t ‖K_t‖² of the kernels.
        batches, draws: how many batches, and draws of each, the means are over.
    """

    layer: str
    n_tiles: int
    pull: float
    pull_error: float
    kernel_pull: float
    decay: float
    decay_rate: float
    noise: float
    squared_deviation: float
    squared_norm: float
    batches: int
    draws: int


@dataclass(frozen=True)
class ScaledLoss:
    """The loss where the deviations of a layer's tiles are s times what they are.

    Args:
        layer: the layer whose deviations are scaled; ``"all"`` for all at once.
        scale: s.
        loss: L(s), mean over batches and draws.
        loss_error: its standard error over batches.
        change: L(s) − L(1), over the same batches and draws.
        change_error: its standard error over batches, paired.
        statistics: of normalisation: ``"batch"`` (of each batch, as in training) or
            ``"reestimated"`` (running ones, estimated anew at this s).
        batches, draws: as in :class:`LayerPull`.
    """

    layer: str
    scale: float
    loss: float
    loss_error: float
    change: float
    change_error: float
    statistics: str
    batches: int
    draws: int


@torch.enable_grad()
def tile_pull(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 128,
    draws: int = 1,
    seed: int = 0,
    weight_decay: float = 0.0,
    tile_lr_power: float = 1.0,
) -> list[LayerPull]:
    """Measure the pull on the tiles of every tiled layer, under any tiling.

    Args:
        model: a network; a copy in training mode is measured, the model is left as it is.
        images: what the model takes (N, C, H, W); augmented, if training augments. They are
            shuffled into batches; the last, incomplete batch is left out, as in training.
        labels: classes (N,).
        batch_size: images a batch; at most N / 2.
        draws: backward passes of each batch, each with fresh assignments.
        seed: of batches and draws; PyTorch's generators are left alone.
        weight_decay, tile_lr_power: those of training, see :class:`rapa_lib.TrainConfig`.

    Returns:
        One entry for every layer with at least two tiles, in the model's order.

    Raises:
        ValueError, TypeError: if an argument is not allowed, or a layer's kernels lie on analog
            tiles.

    Source: P is derived in docs/self_regularization.md.
    """
    check_int("draws", draws, low=1)
    check_real("weight_decay", weight_decay, low=0)
    check_real("tile_lr_power", tile_lr_power, low=0)
    batches = _batches(model, images, labels, batch_size, seed)
    network = copy.deepcopy(model).train().requires_grad_(False)
    tallies = {name: _Tally(name, layer) for name, layer in tiled_layers(network).items()}
    if not tallies:
        return []
    parameters = [p.requires_grad_() for tally in tallies.values() for p in tally.parameters]
    for b, index in enumerate(batches):
        for draw in range(draws):
            with seeded(seed, 1 + draw, b):
                loss = F.cross_entropy(network(images[index]), labels[index])
            gradients = iter(
                torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            )
            for tally in tallies.values():
                tally.add([next(gradients) for _ in tally.parameters])
        for tally in tallies.values():
            tally.end_batch(draws)
    return [
        tally.result(weight_decay / tally.layer.n_tiles**tile_lr_power, draws)
        for tally in tallies.values()
    ]


@torch.no_grad()
def loss_along_scale(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    scales: Sequence[float] = SCALES,
    *,
    batch_size: int = 128,
    draws: int = 1,
    seed: int = 0,
    reestimate: Callable[[nn.Module], object] | None = None,
) -> list[ScaledLoss]:
    """Measure the loss along the deviations, every layer alone and all together.

    Every s and layer sees the same batches and draws; with the seed of :func:`tile_pull` they are
    those of its pull.

    Args:
        model, images, labels, batch_size, draws, seed: as in :func:`tile_pull`.
        scales: the values of s.
        reestimate: estimates a copy's normalisation statistics in place, such as
            ``lambda network: reestimate_normalisation(network, train_images, scaling)``; the loss
            is then that of evaluation mode. None: batch statistics, training mode.

    Returns:
        For every tiled layer, and last for all of them, one entry for each s; none for a model
        without tiled layers.

    Raises:
        ValueError, TypeError: as :func:`tile_pull`.
    """
    check_int("draws", draws, low=1)
    scales = [check_real("scales", s) for s in check_sequence("scales", scales, "numbers")]
    batches = _batches(model, images, labels, batch_size, seed)
    layers = tiled_layers(model)

    def losses_at(scale: float, names: list[str]) -> Tensor:
        network = _network_at(model, scale, names, reestimate, seed)
        return _losses(network, images, labels, batches, draws, seed)

    if not layers:
        return []
    trained = losses_at(1, [])
    statistics = "batch" if reestimate is None else "reestimated"
    found = []
    for group, names in [*((name, [name]) for name in layers), (ALL_LAYERS, list(layers))]:
        for scale in scales:
            losses = trained if scale == 1 else losses_at(scale, names)
            loss, error = _mean_and_error(losses)
            change, change_error = _mean_and_error(losses - trained)
            found.append(
                ScaledLoss(
                    group, scale, loss, error, change, change_error, statistics, len(batches), draws
                )
            )
    return found


def noise_push(layer: LayerPull, *, rate: float, momentum: float = 0.0) -> float:
    """What gradient noise holds against pull and decay: η / (1 − μ) · N / 2.

    Where Σ_t ‖δ_t‖² is stationary, kernel_pull + decay equals it, to first order in the rate.

    Args:
        layer: what :func:`tile_pull` gave, measured at the batch size of training.
        rate: η of this layer: learning_rate · n_tiles^tile_lr_power.
        momentum: μ of SGD, below 1.

    Raises:
        ValueError, TypeError: if an argument is not allowed.
    """
    check_real("rate", rate, low=0)
    if check_real("momentum", momentum, low=0) >= 1:
        raise ValueError(f"momentum: got {momentum}, allowed: at least 0 and below 1")
    return rate / (1 - momentum) * layer.noise / 2


def predicted_spread(layer: LayerPull, *, rate: float, momentum: float = 0.0) -> float:
    """The Σ_t ‖δ_t‖² at which pull and decay would balance the gradient noise.

    Pull and decay are taken to grow as ‖δ‖², as near identical tiles, and the noise to stay as it
    is: the stationary value is η / (1 − μ) · N / (2 (P / ‖δ‖² + λ)).

    Args:
        layer, rate, momentum: as in :func:`noise_push`.

    Returns:
        The prediction; infinite where nothing holds the tiles together (pull + decay ≤ 0 while
        they differ), not a number for identical tiles, which show no pull.

    Raises:
        ValueError, TypeError: as :func:`noise_push`.
    """
    push = noise_push(layer, rate=rate, momentum=momentum)
    if layer.squared_deviation == 0:
        return math.nan
    held = layer.kernel_pull + layer.decay
    return layer.squared_deviation * push / held if held > 0 else math.inf


class _Tally:
    """Sums over batches and draws of what one layer's gradients give."""

    def __init__(self, name: str, layer: RapaConv2d) -> None:
        self.name, self.layer = name, layer
        self.parameters = [p for p in (layer.weight, layer.bias) if p is not None]
        self.deviations = [_deviations(p) for p in self.parameters]
        self.pulls: list[list[float]] = []  # of kernels and biases, batch by batch
        self._pull = [0.0] * len(self.parameters)
        self._batch = torch.zeros_like(self.deviations[0])
        self._total = torch.zeros_like(self._batch)
        self._step_squares = self._batch_squares = 0.0

    def add(self, gradients: list[Tensor]) -> None:
        """Take the gradients of one batch with one draw."""
        moves = [_deviations(gradient) for gradient in gradients]
        for i, (move, deviation) in enumerate(zip(moves, self.deviations, strict=True)):
            self._pull[i] += _inner(move, deviation)
        self._batch += moves[0]
        self._step_squares += _inner(moves[0], moves[0])

    def end_batch(self, draws: int) -> None:
        """Close a batch after so many draws."""
        self.pulls.append([pull / draws for pull in self._pull])
        self._batch /= draws
        self._batch_squares += _inner(self._batch, self._batch)
        self._total += self._batch
        self._pull = [0.0] * len(self.parameters)
        self._batch.zero_()

    def result(self, decay_rate: float, draws: int) -> LayerPull:
        n_batches = len(self.pulls)
        pulls = torch.tensor(self.pulls, dtype=torch.float64)  # (batches, kernels and biases)
        pull, error = _mean_and_error(pulls.sum(1))
        squared_deviation = _inner(self.deviations[0], self.deviations[0])
        weight = self.layer.weight.detach()
        # Draws of one batch share its images: variance of the batches' means, and within batches.
        mean_square = _inner(self._total, self._total) / n_batches**2
        between = (self._batch_squares - n_batches * mean_square) / (n_batches - 1)
        within = (self._step_squares / draws - self._batch_squares) / n_batches
        return LayerPull(
            layer=self.name,
            n_tiles=self.layer.n_tiles,
            pull=pull,
            pull_error=error,
            kernel_pull=float(pulls[:, 0].mean()),
            decay=decay_rate * squared_deviation,
            decay_rate=decay_rate,
            noise=max(0.0, between + within),  # below 0 by rounding alone
            squared_deviation=squared_deviation,
            squared_norm=_inner(weight, weight),
            batches=n_batches,
            draws=draws,
        )


def _deviations(values: Tensor) -> Tensor:
    """Values (n_tiles, …) minus their mean over tiles; exactly 0 where all are equal."""
    values = values.detach() - values.detach()[:1]
    return values.sub_(values.mean(0))


def _inner(a: Tensor, b: Tensor) -> float:
    """Inner product of two tensors, summed in float64."""
    return float((a * b).sum(dtype=torch.float64))


def _network_at(
    model: nn.Module,
    scale: float,
    names: list[str],
    reestimate: Callable[[nn.Module], object] | None,
    seed: int,
) -> nn.Module:
    """A copy with the deviations of some layers scaled, in the mode that its loss is taken in."""
    exact = scale == 1  # moved by 0, weights would be rounded
    network = copy.deepcopy(model) if exact else scale_deviations(model, scale, layers=names)
    network.train()
    if reestimate is not None:
        with seeded(seed, *_STATISTICS):
            reestimate(network)
        network.eval()
    return network


def _losses(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    batches: list[Tensor],
    draws: int,
    seed: int,
) -> Tensor:
    """Cross-entropies (batches,), means over images and draws, float64."""
    losses = torch.zeros(len(batches), dtype=torch.float64)
    for b, index in enumerate(batches):
        for draw in range(draws):
            with seeded(seed, 1 + draw, b):
                losses[b] += float(F.cross_entropy(network(images[index]), labels[index])) / draws
    return losses


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of one value a batch, and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _batches(
    model: nn.Module, images: Tensor, labels: Tensor, batch_size: int, seed: int
) -> list[Tensor]:
    """Check all; indices of the images of each batch, shuffled; the incomplete one is left out."""
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"images: got {images.dtype} of shape {tuple(images.shape)}, expected floating-point "
            "(N, C, H, W), scaled as the model takes them"
        )
    check_int("batch_size", batch_size, low=1)
    n_batches = len(images) // batch_size
    if n_batches < 2:
        raise ValueError(
            f"batch_size: got {batch_size} for {len(images)} images, allowed: at most "
            f"{len(images) // 2}, for errors are over batches and need two"
        )
    generator = torch.Generator().manual_seed(mix_seeds(seed, *_ORDER))
    for name, layer in tiled_layers(model).items():
        _check_digital(name, layer)
    check_labels(labels, len(images), count_classes(model, images))
    order = torch.randperm(len(images), generator=generator).to(images.device)
    return list(order[: n_batches * batch_size].split(batch_size))


def _check_digital(name: str, layer: RapaConv2d) -> None:
    if not isinstance(layer.weight, nn.Parameter):
        raise ValueError(
            f"model: the kernels of layer {name!r} ({type(layer).__name__}) are no parameters; "
            "the pull is measured of digital layers"
        )
