"""Test errors of a network that draws assignments: as it is, voted, averaged, and merged."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapa_lib._checks import check_int
from rapa_lib._modes import evaluation_mode
from rapa_lib._seeds import seeded
from rapa_lib.data.datasets import Dataset
from rapa_lib.layers._patch_conv import PatchConv2d
from rapa_lib.networks.convert import merge_tiles
from rapa_lib.training.images import InputScaling, error_percent, predict
from rapa_lib.training.precision import logits_of


@dataclass(frozen=True)
class TestErrors:
    """Test errors in percent.

    Args:
        test_error: mean over draws of the network as it is.
        test_error_std_draws: standard deviation over draws (n − 1); 0 for one draw.
        test_error_vote: of the majority vote over the draws; ties go to the class with the
            greater mean softmax among those tied.
        test_error_softmax: of the mean of the draws' softmax outputs.
        test_error_merged: of the merged network, normalisation statistics re-estimated.
        test_error_merged_raw: the same with the statistics as they were.
        draws: number of draws; 1 if the network draws nothing.
    """

    __test__ = False  # no test class, whatever pytest thinks of the name

    test_error: float
    test_error_std_draws: float
    test_error_vote: float
    test_error_softmax: float
    test_error_merged: float
    test_error_merged_raw: float
    draws: int


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    scaling: InputScaling,
    *,
    draws: int = 5,
    seed: int = 0,
    precision: str = "float32",
) -> TestErrors:
    """Measure every test error of a network.

    Args:
        model: a trained network; it is left as it was.
        dataset: its test part is measured, its training part re-estimates statistics.
        scaling: the scaling that the network was trained with.
        draws: number of forward passes with fresh assignments.
        seed: of the draws.
        precision: of every pass, see :class:`TrainConfig`.

    Raises:
        ValueError: if draws < 1.
    """
    check_int("draws", draws, low=1)
    device = next(model.parameters()).device
    images, labels = dataset.test_images.to(device), dataset.test_labels.to(device)
    if not redraws(model):
        draws = 1

    def classify(network: nn.Module) -> Tensor:
        return predict(network, images, scaling, precision=precision)

    with seeded(seed):
        logits = torch.stack([classify(model) for _ in range(draws)])
    errors = torch.tensor([error_percent(one, labels) for one in logits], dtype=torch.double)
    softmax = F.softmax(logits.double(), dim=2).mean(0)
    merged = merge_tiles(model)
    merged_raw = error_percent(classify(merged), labels)
    train_images = dataset.train_images.to(device)
    reestimate_normalisation(merged, train_images, scaling, precision=precision)
    return TestErrors(
        test_error=float(errors.mean()),
        test_error_std_draws=float(errors.std()) if draws > 1 else 0.0,
        test_error_vote=error_percent(vote(logits), labels),
        test_error_softmax=error_percent(softmax, labels),
        test_error_merged=error_percent(classify(merged), labels),
        test_error_merged_raw=merged_raw,
        draws=draws,
    )


def redraws(model: nn.Module) -> bool:
    """Whether two forward passes of a model can differ."""
    return any(isinstance(m, PatchConv2d) and m.redraws for m in model.modules())


def vote(logits: Tensor) -> Tensor:
    """Count votes.

    Args:
        logits: (draws, N, n_classes).

    Returns:
        Scores (N, n_classes): the number of draws that chose a class, plus its mean softmax, which
        is below 1 and so decides ties alone.
    """
    votes = F.one_hot(logits.argmax(2), logits.shape[2]).sum(0)
    return votes + 0.999 * F.softmax(logits.double(), dim=2).mean(0)


@torch.no_grad()
def reestimate_normalisation(
    model: nn.Module,
    images: Tensor,
    scaling: InputScaling,
    *,
    batch_size: int = 500,
    precision: str = "float32",
) -> None:
    """Estimate the statistics of a model's batch normalisation layers anew, in place.

    Args:
        model: any module; without such layers nothing happens.
        images: uint8 training images (N, C, H, W), all of which are used.
        scaling: the scaling of the model's input.
        batch_size: images per pass; statistics are means over passes.
        precision: of the passes, see :class:`TrainConfig`; statistics are float32.

    Raises:
        ValueError, TypeError: for no images, or images that the scaling does not take.
    """
    check_int("batch_size", batch_size, low=1)
    if len(images) == 0:
        raise ValueError("images: got none, expected at least one")
    layers = _batch_normalisations(model)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    try:
        with evaluation_mode(model):
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # a plain mean over passes
                layer.train()
            # Parts of nearly equal size, so that none weighs more than its images.
            for part in images.tensor_split(max(1, len(images) // batch_size)):
                logits_of(model, scaling(part), precision)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def normalises_batches(model: nn.Module) -> bool:
    """Whether a model has statistics of batch normalisation that could be estimated anew."""
    return bool(_batch_normalisations(model))


def _batch_normalisations(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [layer for layer in layers if layer.track_running_stats]
