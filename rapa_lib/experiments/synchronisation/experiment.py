"""Averaged tiles: what they cost in time and give in accuracy, from the accuracy records."""

from collections.abc import Sequence
from typing import ClassVar

from rapa_lib.experiments.protocol import Collected, Collecting, Record
from rapa_lib.experiments.synchronisation.page import collect


class Synchronisation(Collecting):
    """Test errors of networks whose tiles are averaged every k steps, beside their speed-up."""

    name: ClassVar[str] = "synchronisation"

    @classmethod
    def collect(cls, records: Sequence[Record]) -> Collected:
        """See :meth:`Collecting.collect`.

        Args:
            records: of the accuracy experiment.
        """
        return collect(records)
