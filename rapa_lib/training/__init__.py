"""Training, seeded and resumable, and the test errors of what was trained."""

from rapa_lib.training.checkpoints import load_checkpoint, save_checkpoint
from rapa_lib.training.config import TrainConfig
from rapa_lib.training.evaluation import (
    TestErrors,
    evaluate,
    normalises_batches,
    reestimate_normalisation,
)
from rapa_lib.training.images import InputScaling, augment, error_percent, predict
from rapa_lib.training.loop import Measure, Training, train
from rapa_lib.training.rates import falling_sgd, one_cycle_rates, one_cycle_sgd
from rapa_lib.training.step import DivergedError, TrainingStep

__all__ = [
    "DivergedError",
    "InputScaling",
    "Measure",
    "TestErrors",
    "TrainConfig",
    "Training",
    "TrainingStep",
    "augment",
    "error_percent",
    "evaluate",
    "falling_sgd",
    "load_checkpoint",
    "normalises_batches",
    "one_cycle_rates",
    "one_cycle_sgd",
    "predict",
    "reestimate_normalisation",
    "save_checkpoint",
    "train",
]
