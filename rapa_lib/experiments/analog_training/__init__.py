"""The analog experiment: three ways of training for analog tiles, one imperfection at a time."""

from rapa_lib.experiments.analog_training.experiment import AnalogTraining

EXPERIMENT = AnalogTraining

__all__ = ["EXPERIMENT", "AnalogTraining"]
