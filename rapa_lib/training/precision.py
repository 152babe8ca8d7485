"""In which numbers a forward pass computes."""

import torch
from torch import Tensor, nn

PRECISIONS = ("float32", "bfloat16")


def logits_of(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    """The logits of scaled images, at the network's own precision or under autocast.

    Under ``"bfloat16"`` convolutions and the linear layer take their inputs and weights rounded to
    bfloat16, for this pass alone. Parameters, their gradients and the statistics of normalisation
    stay float32, and the logits come back as float32, so that a loss of them is float32 too.

    Args:
        model: takes images (N, C, H, W), gives logits (N, n_classes).
        x: images (N, C, H, W).
        precision: one of :data:`PRECISIONS`.
    """
    if precision == "float32":
        return model(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        logits = model(x)
    return logits.float()
