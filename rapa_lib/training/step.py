"""One training step, the same for training, fine-tuning and benchmarks; and what ends it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapa_lib.training.config import TrainConfig
from rapa_lib.training.images import InputScaling, augment
from rapa_lib.training.precision import logits_of
from rapa_lib.training.rates import Scheduler


class DivergedError(RuntimeError):
    """The loss of a training became infinite or not a number."""


@dataclass(frozen=True)
class TrainingStep:
    """Augmentation, scaling, network, loss, optimizer and schedule of one batch.

    Args:
        model: takes scaled images (N, C, H, W), gives logits (N, n_classes).
        scaling: of the network's input.
        optimizer, scheduler: of :func:`one_cycle_sgd` or :func:`falling_sgd`.
        mirror, max_shift: augmentation, see :class:`TrainConfig`.
        precision: of the passes, likewise.
    """

    model: nn.Module
    scaling: InputScaling
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    mirror: bool = False
    max_shift: int = 0
    precision: str = "float32"

    def __call__(self, images: Tensor, labels: Tensor, loss_out: Tensor) -> Tensor:
        """Take the step; draws follow PyTorch's generator.

        Args:
            images: uint8 (N, C, H, W).
            labels: classes (N,).
            loss_out: a scalar that receives the cross-entropy, before the network is changed: it
                is there even where the errors or the pulses are refused.

        Returns:
            The logits (N, n_classes), detached.

        Raises:
            NotFiniteError: if tiles got numbers that are not finite.
        """
        scaled = self.scaling(augment(images, self.mirror, self.max_shift))
        logits = logits_of(self.model, scaled, self.precision)
        loss = F.cross_entropy(logits, labels)
        loss_out.copy_(loss.detach())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return logits.detach()


def first_not_finite(losses: Tensor) -> int | None:
    """The index of the first loss that is not finite; None if all are. Waits for the device."""
    finite = losses.isfinite()
    return None if finite.all() else int(finite.int().argmin())


def with_rates(config: TrainConfig) -> str:
    """The rates that a message about divergence names."""
    return f"with learning_rate = {config.learning_rate} and tile_lr_power = {config.tile_lr_power}"
