"""Data sets: images as uint8 tensors, with names and fingerprints derived from the data."""

from rapa_lib.data.choice import DataChoice
from rapa_lib.data.datasets import DATASETS, Dataset, load_dataset

__all__ = [
    "DATASETS",
    "DataChoice",
    "Dataset",
    "load_dataset",
]
