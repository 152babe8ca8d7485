"""Trained networks on phase-change memory: their test errors after a second, a day, a year."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rapa_lib._seeds import Purpose, mix_seeds, seeded
from rapa_lib.analog import PCMLikeNoiseModel, TileConfig, convert_to_analog, drift
from rapa_lib.data import Dataset
from rapa_lib.networks.convert import merge_tiles
from rapa_lib.training import InputScaling, error_percent, predict
from rapa_lib.training.evaluation import redraws, reestimate_normalisation, vote

SINGLE, VOTE, MERGED = "single", "vote", "merged"

Row = dict[str, Any]


def drift_rows(
    network: nn.Module,
    data: Dataset,
    scaling: InputScaling,
    tiles: TileConfig,
    times: Sequence[float],
    draws: int,
    seed: int,
) -> list[Row]:
    """Read a trained network, and its merged kernels, on phase-change memory at several times.

    Args:
        network: digital or hardware-aware.
        data: its test part is measured; its training part gives the merged network's statistics.
        scaling: of the network's input.
        tiles: periphery and mapping; the devices are those of :class:`PCMLikeNoiseModel`.
        times: seconds after the first read.
        draws: forward passes of each error, and of each vote.
        seed: of the devices, of the noise at each time, and of the draws.

    Returns:
        Rows of ``reading``, ``t_seconds`` and ``test_error`` (percent): ``"single"``, the mean over
        draws; ``"vote"`` over them, where the network draws assignments; ``"merged"``, the mean
        kernels as one tile, where there are several.
    """
    device = next(network.parameters()).device
    images, labels = data.test_images.to(device), data.test_labels.to(device)
    subjects = {SINGLE: network}
    if any(count > 1 for count in network.n_tiles):  # type: ignore[union-attr]  # a RapaConvNet
        subjects[MERGED] = merge_tiles(network)
        reestimate_normalisation(subjects[MERGED], data.train_images.to(device), scaling)
    rows = []
    for name, subject in subjects.items():
        config = replace(tiles, device=PCMLikeNoiseModel())
        placed = convert_to_analog(subject, config, seed=mix_seeds(seed, Purpose.ANALOG_DEVICES))
        for number, t in enumerate(times):
            drift(placed, t, seed=mix_seeds(seed, Purpose.ANALOG_DRIFT, number))
            with seeded(seed, Purpose.ANALOG_EVALUATION):
                logits = torch.stack([predict(placed, images, scaling) for _ in range(draws)])
            rows.append({"reading": name, "t_seconds": t, "test_error": _mean(logits, labels)})
            if name == SINGLE and redraws(subject) and len(subjects) > 1:
                error = error_percent(vote(logits), labels)
                rows.append({"reading": VOTE, "t_seconds": t, "test_error": error})
    return rows


def _mean(logits: Tensor, labels: Tensor) -> float:
    errors = [error_percent(one, labels) for one in logits]
    return sum(errors) / len(errors)
