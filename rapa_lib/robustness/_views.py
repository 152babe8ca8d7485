"""A network as attacks see it: a function of images in [0, 1] under one way of drawing."""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_choice, check_int
from rapa_lib.layers._patch_conv import frozen_draws
from rapa_lib.networks.convert import merge_tiles
from rapa_lib.training import InputScaling
from rapa_lib.training.evaluation import redraws, reestimate_normalisation, vote

VIEWS = ("fresh", "frozen", "mean", "vote", "merged")


class ImageModel(nn.Module):
    """A trained network that takes images in [0, 1] and normalises them itself.

    Args:
        network: takes scaled images, gives logits; it is put into evaluation mode, and its
            parameters are no longer part of gradients.
        scaling: the scaling that the network was trained with.
        view: what one call answers:
            ``"fresh"``: the logits of one forward pass, assignments drawn anew;
            ``"frozen"``: the same with the draws of ``seed``, so that it is one fixed function;
            ``"mean"``: the logarithm of the mean softmax over ``draws`` passes, whose gradient is
            the one that an attacker takes who knows of the draws (expectation over transformation,
            Athalye, Carlini & Wagner, ICML 2018);
            ``"vote"``: the votes of ``draws`` passes (:func:`rapa_lib.training.evaluation.vote`),
            which have no gradient.
            ``"merged"``: the logits of the merged network.
        draws: forward passes of ``"mean"`` and ``"vote"``. A network that draws nothing needs one.
        seed: freezes the draws of ``"mean"`` and ``"vote"`` too; None draws them anew in each call.
        train_images: uint8 images that re-estimate the merged network's normalisation.

    Shape:
        - Input: (N, C, H, W), in [0, 1]
        - Output: (N, n_classes)

    Raises:
        ValueError, TypeError: naming the argument.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        scaling: InputScaling,
        view: str = "fresh",
        *,
        draws: int = 1,
        seed: int | None = None,
        train_images: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.view = check_choice("view", view, VIEWS)
        check_int("draws", draws, low=1)
        if view == "frozen" and seed is None:
            raise ValueError("seed: got None, but view 'frozen' has the draws of a seed")
        if seed is not None:
            check_int("seed", seed, low=0)
        if view == "merged":
            network = merge_tiles(network)
            if train_images is not None:
                reestimate_normalisation(network, train_images, scaling)
        averages = view in ("mean", "vote") and redraws(network)
        self.draws = draws if averages else 1
        self.seed = seed
        self.network = network.eval().requires_grad_(False)
        first = next(network.parameters())
        for name, values in (("mean", scaling.mean), ("std", scaling.std)):
            channels = torch.tensor(values, dtype=first.dtype, device=first.device)
            self.register_buffer(name, channels.view(-1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        x = (images - self.mean) / self.std
        if self.draws > 1:
            x = x.repeat(self.draws, 1, 1, 1)
        frozen = nullcontext() if self.seed is None else frozen_draws(self.network, self.seed)
        with frozen:
            logits = self.network(x).unflatten(0, (self.draws, -1))
        if self.view == "vote":
            return vote(logits)
        if self.draws == 1:
            return logits[0]
        return logits.log_softmax(2).logsumexp(0) - math.log(self.draws)


def as_images(images: Tensor) -> Tensor:
    """Turn uint8 images (N, C, H, W) into float32 ones in [0, 1]."""
    return images.float() / 255


def check_images(images: Tensor) -> None:
    """Raise ValueError or TypeError unless these are images (N, C, H, W) in [0, 1]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: got {kind}, expected floating-point images in [0, 1]")
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(f"images: got shape {tuple(images.shape)}, expected (N, C, H, W), N ≥ 1")
    n_bad = int((~images.isfinite()).sum())
    if n_bad:
        raise ValueError(f"images: {n_bad} values are not finite, allowed: 0 to 1")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ValueError(f"images: got values from {low:g} to {high:g}, allowed: 0 to 1")


@torch.no_grad()
def mean_correct(
    model: ImageModel, images: Tensor, labels: Tensor, draws: int, *, batch_size: int = 500
) -> Tensor:
    """Judge images: the share of fresh draws in which each is classified as its label.

    Args:
        model: of view ``"fresh"`` (or any other that is to judge).
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        draws: forward passes, from PyTorch's generator; a network that draws nothing is asked once.

    Returns:
        (N,) float64 in [0, 1], on the CPU.
    """
    draws = draws if redraws(model) else 1
    correct = torch.zeros(len(images), dtype=torch.double)
    for _ in range(draws):
        answers = [model(part).argmax(1) for part in images.split(batch_size)]
        correct += (torch.cat(answers) == labels).cpu()
    return correct / draws
