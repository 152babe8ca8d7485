"""How to train: the parameters of a training, checked when they are given."""

from dataclasses import dataclass

from rapa_lib._checks import Checked, choice, flag, integer, real
from rapa_lib.analog import WRITES
from rapa_lib.training.precision import PRECISIONS


@dataclass(frozen=True)
class TrainConfig(Checked):
    """How to train.

    Args:
        epochs: passes over the training images.
        batch_size: images per step; the last, incomplete batch of an epoch is left out.
        learning_rate: peak of the one-cycle schedule, for a layer without tiles.
        momentum: of SGD.
        weight_decay: of kernels and the linear layer; biases and normalisation have none.
        tile_lr_power: a layer of n_t tiles learns with rate × n_t^power and weight decay ÷
            n_t^power. A tile sees 1/n_t of the patches: with 1 the mean kernel moves as an
            ordinary kernel would, to first order; with 0 it moves n_t times slower.
        mirror: mirror each image with probability 1/2.
        max_shift: shift each image by up to so many pixels both ways, reflecting its border.
        seed: of the order of images, of augmentation and of the assignments.
        eval_every: measure the test error after every so many epochs, and after the last. It does
            not change what is learnt.
        precision: of forward and backward passes, in training and test alike: ``"float32"``, or
            ``"bfloat16"`` for mixed precision (see :func:`rapa_lib.training.precision.logits_of`).
        sync_every: k: after every k steps the tiles of every tiled layer, and their velocities,
            are replaced by their mean; 0: never (RAPA). With 1, identical start and a
            ``tile_lr_power`` of 1 a tiled network learns as the ordinary one does.
        coupling: λ: after every step each tile goes this share of the way to the mean of its
            layer; velocities do not. 0: none.
        average_last: the trained network has the mean over the steps of so many last epochs of
            every parameter, and normalisation statistics that fit it; 0: those of the last step.
        sync_write, sync_reads: how tiles on analog arrays are averaged, see
            :func:`rapa_lib.analog.average_tiles`; others are averaged exactly.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    epochs: int = integer(10, low=1)
    batch_size: int = integer(128, low=2)
    learning_rate: float = real(0.05, low=0, open_low=True)
    momentum: float = real(0.9, low=0, high=1)
    weight_decay: float = real(5e-4, low=0)
    tile_lr_power: float = real(1.0, low=0)
    mirror: bool = flag(False)
    max_shift: int = integer(0, low=0)
    seed: int = integer(0, low=0, high=2**63 - 1)
    eval_every: int = integer(1, low=1)
    precision: str = choice("float32", PRECISIONS)
    sync_every: int = integer(0, low=0)
    coupling: float = real(0.0, low=0, high=1)
    average_last: int = integer(0, low=0)
    sync_write: str = choice("program", WRITES)
    sync_reads: int = integer(1, low=1)

    def _check(self) -> None:
        if self.average_last > self.epochs:
            raise ValueError(
                f"average_last: got {self.average_last}, allowed: at most epochs = {self.epochs}"
            )

    def is_tested(self, epoch: int) -> bool:
        """Whether the test error is measured after an epoch, counted from 1."""
        return epoch % self.eval_every == 0 or epoch == self.epochs
