"""The accuracy experiment: one network trained and tested, as it is, voted and merged."""

from rapa_lib.experiments.accuracy.experiment import Accuracy

EXPERIMENT = Accuracy

__all__ = ["EXPERIMENT", "Accuracy"]
