"""Averaged tiles: what they cost in time and give in accuracy, from the accuracy records."""

from rapa_lib.experiments.synchronisation.experiment import Synchronisation

EXPERIMENT = Synchronisation

__all__ = ["EXPERIMENT", "Synchronisation"]
