"""Which data set, and how much of it: what a run says of its data."""

from dataclasses import dataclass

from rapa_lib._checks import Checked, integer, text
from rapa_lib.data.datasets import Dataset, load_dataset


@dataclass(frozen=True)
class DataChoice(Checked):
    """A data set, or a part of it; checked when it is made, loaded when it is asked for.

    Args:
        dataset: a name in :data:`rapa_lib.DATASETS` or the path of a folder.
        data_root: where torchvision's data sets lie; None is the variable RAPA_DATA.
        image_size: side of the square images; others are resized. None keeps the data's size.
        n_train, n_test: use a balanced part of so many images; None uses all.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    dataset: str = text("mnist5k", of="a name or a path")
    data_root: str | None = text(None, of="a name or a path", optional=True)
    image_size: int | None = integer(None, low=1, optional=True)
    n_train: int | None = integer(None, low=1, optional=True)
    n_test: int | None = integer(None, low=1, optional=True)

    def load(self) -> Dataset:
        """Load the data set, or the part of it that is chosen.

        Raises:
            ValueError, FileNotFoundError: as :func:`rapa_lib.load_dataset`.
        """
        data = load_dataset(self.dataset, root=self.data_root, image_size=self.image_size)
        if self.n_train is None and self.n_test is None:
            return data
        return data.subset(self.n_train, self.n_test)
