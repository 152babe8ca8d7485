"""A collected table made ready for the rules: settings as text that equals itself."""

import json
from typing import Any

import numpy as np
import pandas as pd

from rapa_lib.experiments.recipe import KNOBS, LATER, SYNCHRONISATION
from rapa_lib.runtime import PERFORATED_DENSE

SETTINGS = (
    "dataset", "n_train", "mirror", "max_shift", "network", "n_tiles", "tile_init", "pooling",
    "activation", "normalisation", "tile_lr_power", "epochs", "layer", "layers", "layer_tiles",
    "schedule", "assignment", "access", "varied", "level", "norm", "epsilon", "scale", "share",
    "kind", "strength", "reroute", "method", "imperfection", "value", "fault_draw", "out_noise",
    "epoch", "repair", *SYNCHRONISATION,
)  # fmt: skip
"""Columns that may tell two rows of one seed apart, beside every parameter in ``config``."""

NO_SETTINGS = (
    "seed", "device", "threads", "draws", "similarity_every", "penalty_every", "pull_every",
    "eval_every", "data_root", "tiling", "subset",
)  # fmt: skip
"""Parameters of runs that say nothing of the setting."""

_ONE_TILE = (
    "tile_init", "tile_lr_power", "sync_every", "coupling", "sync_write", "sync_reads"
)  # fmt: skip
UNHEEDED = {
    "none": ("n_tiles", *_ONE_TILE),
    **dict.fromkeys(
        ("enlarged", "noisy", "perforated", PERFORATED_DENSE, "tile_noise", "dropout"), _ONE_TILE
    ),
}
"""By tiling without tiles, the settings that say nothing of it: any value serves."""

HEEDED_BY = {"noise": ("noisy", "tile_noise"), "dropout": ("dropout",)}
"""Settings that say something of some tilings alone."""

NOT_GIVEN = ""


class Prepared:
    """A table with the parameters of its runs as columns.

    A network on one tile that is a control for so many tiles counts as having them; a parameter
    that a run of older code does not name is what it stands for where that is known
    (:data:`rapa_lib.experiments.recipe.LATER`), else the one that the tiling's other seeds have.

    Args:
        table: as collected; ``config``, where it has it, holds a run's parameters as JSON.
    """

    def __init__(self, table: pd.DataFrame):
        frame = table.reset_index(drop=True)
        self._texts: dict[str, np.ndarray] = {}
        self._numbers: dict[str, np.ndarray] = {}
        parameters: list[str] = []
        if "config" in frame:
            given = _parameters(frame.pop("config"))
            if {"n_tiles", "tiling"} <= set(frame) and "n_tiles" in given:
                controls = frame["tiling"].isin(list(UNHEEDED))
                tiles = canonical_column(frame["n_tiles"]).where(~controls, given["n_tiles"])
                frame["n_tiles"] = tiles
            parameters = [name for name in given if name not in frame]
            frame = frame.join(given[parameters])
            for name in parameters:
                frame[name] = _filled(frame, name)
        self.frame = frame
        known = {*SETTINGS, *KNOBS, *parameters} - set(NO_SETTINGS)
        self.settings = [name for name in frame if name in known]

    def __contains__(self, name: str) -> bool:
        return name in self.frame

    def text(self, name: str) -> np.ndarray:
        """A column in canonical text, one per row."""
        if name not in self._texts:
            texts = canonical_column(self.frame[name]).to_numpy()
            if name in HEEDED_BY and "tiling" in self.frame:
                heeded = self.frame["tiling"].isin(HEEDED_BY[name]).to_numpy()
                texts = np.where(heeded, texts, NOT_GIVEN)
            self._texts[name] = texts
        return self._texts[name]

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers, or of true and false, one per row; NaN where there is none."""
        if name not in self._numbers:
            self._numbers[name] = pd.to_numeric(self.frame[name]).to_numpy(float, na_value=np.nan)
        return self._numbers[name]


def canonical(value: Any) -> str:
    """A setting as text that equals itself: what is not given is empty, 1.0 is 1."""
    if isinstance(value, list | tuple):
        return "-".join(canonical(one) for one in value)
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return NOT_GIVEN
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | float | np.number):
        return f"{float(value):.12g}"
    return str(value)


def canonical_column(column: pd.Series) -> pd.Series:
    """A column in canonical text."""
    codes, values = pd.factorize(column, use_na_sentinel=True)
    texts = np.array([*map(canonical, values), NOT_GIVEN], dtype=object)  # code −1 is the last
    return pd.Series(texts[codes], column.index, dtype=object)


_ABSENT = "\0"
"""A parameter that a run does not name, which is not the same as one that is not given."""


def _parameters(configs: pd.Series) -> pd.DataFrame:
    """Parameters of runs, in canonical text."""
    codes, texts = pd.factorize(configs)
    runs = [json.loads(text) if isinstance(text, str) else text for text in texts]
    names = list(dict.fromkeys(name for run in runs for name in run))
    stands_for = {name: canonical(LATER[name]) if name in LATER else _ABSENT for name in names}
    each = [
        [canonical(run[name]) if name in run else stands_for[name] for name in names]
        for run in runs
    ]  # fmt: skip
    given = pd.DataFrame(each, columns=names, dtype=object).iloc[codes]
    unasked = [name for name in NO_SETTINGS if name != "subset"]  # which tells what runs share
    return given.set_index(configs.index).drop(columns=unasked, errors="ignore")


def _filled(frame: pd.DataFrame, name: str) -> pd.Series:
    """A parameter, where runs do not name it, as the runs of the tiling's other seeds have it.

    Where runs of the same seed name it, to leave it out means something else: it is not given.
    """
    column = frame[name]
    absent = column == _ABSENT
    if not absent.any():
        return column
    tilings = frame["tiling"] if "tiling" in frame else pd.Series("", frame.index)
    seeds = frame["seed"] if "seed" in frame else pd.Series(0, frame.index)
    filled = column.where(~absent, NOT_GIVEN)
    for _, rows in frame.groupby(tilings):
        without = absent.loc[rows.index]
        named, its_seeds = column.loc[rows.index][~without].unique(), seeds.loc[rows.index]
        if len(named) == 1 and set(its_seeds[without]).isdisjoint(its_seeds[~without]):
            filled.loc[rows.index] = named[0]
    return filled
