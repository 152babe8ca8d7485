"""The acceleration experiment: networks on analog arrays, tiles from one to a thousand."""

from rapa_lib.experiments.acceleration.experiment import Acceleration

EXPERIMENT = Acceleration

__all__ = ["EXPERIMENT", "Acceleration"]
