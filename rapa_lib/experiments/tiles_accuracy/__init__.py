"""Error against speed-up: what more tiles cost, derived from the accuracy experiment's records."""

from rapa_lib.experiments.tiles_accuracy.experiment import TilesAccuracy

EXPERIMENT = TilesAccuracy

__all__ = ["EXPERIMENT", "TilesAccuracy"]
