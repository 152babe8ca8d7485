"""Error against speed-up: what more tiles cost, derived from the accuracy experiment's records."""

from collections.abc import Sequence
from typing import ClassVar

from rapa_lib.experiments.protocol import Collected, Collecting, Record
from rapa_lib.experiments.tiles_accuracy.page import collect


class TilesAccuracy(Collecting):
    """Test errors of trained networks beside the speed-up that their tiles give on arrays."""

    name: ClassVar[str] = "tiles_accuracy"

    @classmethod
    def collect(cls, records: Sequence[Record]) -> Collected:
        """See :meth:`Collecting.collect`.

        Args:
            records: of the accuracy experiment.
        """
        return collect(records)
