"""Adversarial attacks on networks that draw lots: foolbox's, judged on fresh draws."""

from rapa_lib.robustness._alarms import (
    Alarm,
    draws_curve,
    masking_alarms,
    still_falling,
    vanishing_gradients,
)
from rapa_lib.robustness._attacking import Outcome, Target, run_attack
from rapa_lib.robustness._noise import layer_noise
from rapa_lib.robustness._suite import LEVELS, NORMS, Attack, SuiteSettings, attack_suite
from rapa_lib.robustness._views import VIEWS, ImageModel, as_images, check_images, mean_correct

__all__ = [
    "LEVELS",
    "NORMS",
    "VIEWS",
    "Alarm",
    "Attack",
    "ImageModel",
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
    "still_falling",
    "vanishing_gradients",
]
