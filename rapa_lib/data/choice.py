"""Which data set, and how much of it: what a run says of its data."""

from dataclasses import dataclass

from rapa_lib._checks import Checked, choice, integer, text
from rapa_lib._seeds import Purpose, mix_seeds
from rapa_lib.data.datasets import Dataset, load_dataset

SUBSETS = ("fixed", "seed")


@dataclass(frozen=True)
class DataChoice(Checked):
    """A data set, or a part of it; checked when it is made, loaded when it is asked for.

    Args:
        dataset: a name in :data:`rapa_lib.DATASETS` or the path of a folder.
        data_root: where torchvision's data sets lie; None is the variable RAPA_DATA.
        image_size: side of the square images; others are resized. None keeps the data's size.
        n_train, n_test: use a balanced part of so many images; None uses all.
        subset: which ``n_train`` images: ``"fixed"``, the same for every run, or ``"seed"``, a
            fresh draw for every seed. The test images are the same for every run.
        validation: for tuning: cut so many images off the training images, a balanced draw of
            each seed, and test on these; the test images are not looked at. None tests on them.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    dataset: str = text("mnist5k", of="a name or a path")
    data_root: str | None = text(None, of="a name or a path", optional=True)
    image_size: int | None = integer(None, low=1, optional=True)
    n_train: int | None = integer(None, low=1, optional=True)
    n_test: int | None = integer(None, low=1, optional=True)
    subset: str = choice("fixed", SUBSETS)
    validation: int | None = integer(None, low=1, optional=True)

    def _check(self) -> None:
        if self.subset == "seed" and self.n_train is None:
            raise ValueError("subset: got 'seed', but without n_train there is nothing to draw")
        if self.validation is not None and self.n_test is not None:
            raise ValueError(
                f"n_test: got {self.n_test}, allowed with validation: None; its "
                f"{self.validation} images stand for the test images"
            )

    @property
    def drawn_by_seed(self) -> bool:
        """Whether every seed has training images of its own."""
        return self.subset == "seed" or self.validation is not None

    def load(self, seed: int | None = None) -> Dataset:
        """Load the data set, or the part of it that is chosen.

        Args:
            seed: of the run, where its images are drawn by it.

        Raises:
            ValueError, FileNotFoundError: as :func:`rapa_lib.load_dataset` and :meth:`part`.
        """
        return self.part(self.whole(), seed)

    def whole(self) -> Dataset:
        """Load all of the data set."""
        return load_dataset(self.dataset, root=self.data_root, image_size=self.image_size)

    def part(self, whole: Dataset, seed: int | None = None) -> Dataset:
        """Take what is chosen of the data set.

        Args:
            whole: of :meth:`whole`.
            seed: as for :meth:`load`.

        Raises:
            ValueError: if there are fewer images than are chosen, or a seed is needed and missing.
        """
        data, train_seed = whole, 0
        if not self.drawn_by_seed:
            return whole.subset(self.n_train, self.n_test)
        if seed is None:
            raise ValueError("seed: got None, but training images are drawn by it")
        if self.validation is not None:
            data = data.validating(self.validation, mix_seeds(seed, Purpose.VALIDATION_IMAGES))
        if self.subset == "seed":
            train_seed = mix_seeds(seed, Purpose.TRAIN_IMAGES)
        return data.subset(self.n_train, self.n_test, train_seed=train_seed)
