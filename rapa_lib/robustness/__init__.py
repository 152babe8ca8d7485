"""Adversarial attacks on networks that draw assignments, judged on fresh draws.

Besides foolbox's attacks there are APGD and Square, which average over a model's draws; they derive
from foolbox's base classes and serve any PyTorch model of foolbox.
"""

from rapa_lib.robustness._alarms import (
    Alarm,
    draws_curve,
    masking_alarms,
    still_falling,
    vanishing_gradients,
)
from rapa_lib.robustness._apgd import (
    L2APGDAttack,
    L2TargetedAPGDAttack,
    LinfAPGDAttack,
    LinfTargetedAPGDAttack,
)
from rapa_lib.robustness._attacking import Outcome, Target, run_attack
from rapa_lib.robustness._cascade import run_cascade
from rapa_lib.robustness._noise import layer_noise
from rapa_lib.robustness._square import L2SquareAttack, LinfSquareAttack
from rapa_lib.robustness._suite import LEVELS, NORMS, Attack, SuiteSettings, attack_suite
from rapa_lib.robustness._views import VIEWS, ImageModel, as_images, check_images, mean_correct

__all__ = [
    "LEVELS",
    "NORMS",
    "VIEWS",
    "Alarm",
    "Attack",
    "ImageModel",
    "L2APGDAttack",
    "L2SquareAttack",
    "L2TargetedAPGDAttack",
    "LinfAPGDAttack",
    "LinfSquareAttack",
    "LinfTargetedAPGDAttack",
    "Outcome",
    "SuiteSettings",
    "Target",
    "as_images",
    "attack_suite",
    "check_images",
    "draws_curve",
    "layer_noise",
    "masking_alarms",
    "mean_correct",
    "run_attack",
    "run_cascade",
    "still_falling",
    "vanishing_gradients",
]
