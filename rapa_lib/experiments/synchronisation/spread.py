"""How far tiles part between averagings, as local SGD predicts it and as training shows it."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from rapa_lib.experiments.recipe import recipe_of
from rapa_lib.experiments.synchronisation.tables import NEVER, synchronisation_of
from rapa_lib.instruments.local_sgd import spread_after, stationary_spread
from rapa_lib.training import TrainConfig, one_cycle_rates

COLUMNS = [
    "dataset", "epochs", "tiling", "n_tiles", "sync_every", "seed", "run", "epoch", "layer",
    "layer_tiles", "averagings", "rate", "peak_rate", "noise", "decay_rate", "pull_rate",
    "squared_norm", "measured", "predicted_free", "predicted",
]  # fmt: skip

# Rates after epochs depend on the steps of an epoch in the third digit alone.
_STEPS = 64

STEADY = 0.05
"""Share of the greatest rate that an epoch must have to be compared with theory."""


def spread_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Σ_t ‖δ_t‖² of every tiled layer, measured and predicted, after the epochs with a pull.

    Args:
        records: of the accuracy experiment, those of :func:`chosen_records`.

    Returns:
        One row per run, epoch and layer, coupled tiles and means over time left out: dataset,
        epochs, tiling, n_tiles, sync_every (k; 0: never), seed, run, epoch, layer, layer_tiles
        (n_t), averagings (in that epoch), rate (η of the layer), peak_rate (its greatest), noise
        (N), decay_rate (λ), pull_rate (κ = P / ‖δ‖² of the kernels, where P exceeds two standard
        errors, else 0), squared_norm (Σ_t ‖K_t‖²),
        ``measured`` (mean Σ_t ‖δ_t‖² just before the averagings of that epoch; never averaged:
        after the epoch), ``predicted_free`` (from gradient noise and decay alone) and ``predicted``
        (with the pull as well). Epochs without an averaging, and the last one of tiles that are
        never averaged, whose rate is zero, have no row.
    """
    rows = [row for record in records if record["tiling"] == "random" for row in _rows(record)]
    order = ["n_tiles", "sync_every", "seed", "run", "epoch", "layer"]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(order, ignore_index=True)


def _rows(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    config, own = record["config"], synchronisation_of(record["config"])
    training = recipe_of(config).training
    if own["coupling"] or own["average_last"] or training.momentum >= 1:
        return
    every = own["sync_every"]
    history = {row["epoch"]: row for row in record["curve"]["history"]}
    labels = {name: record[name] for name in ("dataset", "epochs", "tiling", "n_tiles", "seed")}
    labels |= {"sync_every": every, "run": record["run"]}
    for taken in record["similarity"]["measurements"]:
        epoch = taken["epoch"]
        if epoch == 0 or (every == NEVER and epoch == training.epochs):
            continue
        met = {row["layer"]: row for row in history[epoch].get("averagings", [])}
        for pull in taken.get("pull", []):
            if pull["batch_size"] != training.batch_size or (every and pull["layer"] not in met):
                continue
            yield labels | {"epoch": epoch} | _row(pull, met.get(pull["layer"]), training, epoch)


def _row(
    pull: Mapping[str, Any], met: Mapping[str, Any] | None, training: TrainConfig, epoch: int
) -> dict[str, Any]:
    """One layer after one epoch: ``met`` is what its averagings met, None if there are none."""
    if met is None:
        scale = pull["n_tiles"] ** training.tile_lr_power
        rate, measured = _rates(replace(training, seed=0))[epoch] * scale, pull["squared_deviation"]
    else:
        rate, measured = math.sqrt(met["squared_rate"]), met["squared_deviation"]
    apart, sure = pull["squared_deviation"], pull["pull"] > 2 * pull["pull_error"]
    pull_rate = max(0.0, pull["kernel_pull"] / apart) if apart > 0 and sure else 0.0
    predictions = {}
    for name, held in (("predicted_free", 0.0), ("predicted", pull_rate)):
        held += pull["decay_rate"]
        known = {"rate": rate, "noise": pull["noise"], "momentum": training.momentum}
        if met is None:
            predictions[name] = stationary_spread(held=held, **known)
        else:
            predictions[name] = spread_after(training.sync_every, held=held, **known)
    return {
        "layer": pull["layer"],
        "layer_tiles": pull["n_tiles"],
        "averagings": 0 if met is None else met["averagings"],
        "rate": rate,
        "peak_rate": training.learning_rate * pull["n_tiles"] ** training.tile_lr_power,
        "noise": pull["noise"],
        "decay_rate": pull["decay_rate"],
        "pull_rate": pull_rate,
        "squared_norm": pull["squared_norm"],
        "measured": measured,
        **{
            name: value if math.isfinite(value) else math.nan for name, value in predictions.items()
        },
    }


@functools.lru_cache(maxsize=16)
def _rates(training: TrainConfig) -> list[float]:
    return one_cycle_rates(training, _STEPS)


def steady(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of epochs whose rate is :data:`STEADY` of the greatest in training, or more.

    At the end of training the rate falls by orders of magnitude within a few steps, and theory
    knows one rate alone.

    Args:
        table: rows of ``synchronisation_spread.csv``; maybe none.
    """
    return table[table["rate"] >= STEADY * table["peak_rate"]]


def spread_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Measured ÷ predicted by number of tiles, k and layer: geometric means, as strings.

    Args:
        table: rows of ``synchronisation_spread.csv``, maybe none; :func:`steady` ones count.
    """
    rows = []
    shown = steady(table)
    shown = shown[shown["measured"] > 0]
    for keys, part in shown.groupby(["n_tiles", "sync_every", "layer"], sort=True):
        row = dict(zip(("n_tiles", "k", "layer"), keys, strict=True))
        row["k"] = row["k"] or "never"
        for name, words in (("predicted_free", "without pull"), ("predicted", "with pull")):
            known = part[part[name] > 0]
            ratio = known["measured"] / known[name]
            text = f"{math.exp(ratio.map(math.log).mean()):.2f}" if len(known) else "–"
            row[f"measured ÷ predicted, {words}"] = text
        rows.append(row)
    return pd.DataFrame(rows)
