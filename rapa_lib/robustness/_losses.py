"""What attacks raise: losses of logits, one number per image, higher where the answer is worse."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Keeps a ratio finite where all logits agree; as in Croce & Hein's definition.
_TINY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (N,) of logits (N, n_classes) and labels (N,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Label's logit minus the largest other (N,): below zero where the answer is wrong."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.amax(1)


def logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (N,): − margin ÷ (largest − third largest logit).

    Neither a shift nor a scale of the logits changes it. Source: F. Croce, M. Hein, ICML 2020,
    section 4.

    Args:
        logits: (N, n_classes), of at least three classes.
        labels: (N,).

    Raises:
        ValueError: with fewer than three classes, where the ratio is constant.
    """
    _check_classes(logits)
    largest = logits.topk(3, dim=1).values
    return -margin(logits, labels) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_logits_ratio(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference of logits ratio (N,): (target's − label's logit) ÷ spread.

    The spread is the largest logit less the mean of the third and the fourth largest; with three
    classes the third stands for both. Source: F. Croce, M. Hein, ICML 2020, section 4.

    Args:
        logits: (N, n_classes), of at least three classes.
        labels, targets: (N,).

    Raises:
        ValueError: with fewer than three classes.
    """
    _check_classes(logits)
    largest = logits.topk(min(4, logits.shape[1]), dim=1).values
    spread = largest[:, 0] - (largest[:, 2] + largest[:, -1]) / 2
    of_target = logits.gather(1, targets[:, None])[:, 0]
    of_label = logits.gather(1, labels[:, None])[:, 0]
    return (of_target - of_label) / (spread + _TINY)


def _check_classes(logits: Tensor) -> None:
    if logits.shape[1] < 3:
        raise ValueError(
            f"model: got {logits.shape[1]} classes, but a difference of logits ratio needs "
            "at least 3: use the loss 'ce'"
        )
