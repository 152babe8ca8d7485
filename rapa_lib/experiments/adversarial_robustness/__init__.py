"""The robustness experiment: attacks of every level on one network, judged on fresh draws."""

from rapa_lib.experiments.adversarial_robustness.experiment import AdversarialRobustness

EXPERIMENT = AdversarialRobustness

__all__ = ["EXPERIMENT", "AdversarialRobustness"]
