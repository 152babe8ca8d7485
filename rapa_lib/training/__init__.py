"""Training, seeded and resumable, and the test errors of what was trained."""

from rapa_lib.training.evaluation import TestErrors, evaluate, reestimate_normalisation
from rapa_lib.training.loop import DivergedError, InputScaling, TrainConfig, Training, train

__all__ = [
    "DivergedError",
    "InputScaling",
    "TestErrors",
    "TrainConfig",
    "Training",
    "evaluate",
    "reestimate_normalisation",
    "train",
]
