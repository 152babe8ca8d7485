"""The fault experiment: what broken tiles cost a trained network, and what repairs give back."""

from rapa_lib.experiments.fault_tolerance.experiment import FaultTolerance

EXPERIMENT = FaultTolerance

__all__ = ["EXPERIMENT", "FaultTolerance"]
