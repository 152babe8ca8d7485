"""The filter-similarity experiment: from a trained network to the record of its tiles."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from rapa_lib._checks import check_real, integer, several
from rapa_lib._seeds import seeded
from rapa_lib.experiments.filter_similarity.page import collect
from rapa_lib.experiments.filter_similarity.pulls import pull_rows, scale_rows
from rapa_lib.experiments.protocol import Collected, Experiment, Record
from rapa_lib.experiments.recipe import in_order
from rapa_lib.experiments.records import plain, provenance
from rapa_lib.experiments.trained import Trained
from rapa_lib.instruments.penalty import (
    ALL_LAYERS,
    measured_penalty,
    penalty_gradient,
    predicted_penalty,
    scale_deviations,
)
from rapa_lib.instruments.pull import SCALES
from rapa_lib.instruments.similarity import (
    LayerSimilarity,
    tile_similarity,
    tiled_layers,
    unit_filters,
)
from rapa_lib.instruments.smoothness import penalty_applies

SHOWN_FILTERS, SHOWN_TILES = 12, 8

_PENALTY_COLUMNS = [
    "layer", "scale", "measured", "measured_error", "predicted", "predicted_error", "gauss_newton",
    "gauss_newton_error", "merged_loss", "applies",
]  # fmt: skip


@dataclass(frozen=True)
class FilterSimilarity(Experiment[Trained]):
    """What is measured of one trained network; checked when it is made.

    Args:
        images: training images (seeded choice) on which penalties are taken.
        draws: random assignments of the measured penalty.
        probes: random vectors of the predicted penalty.
        scales: factors on the deviations δ of the tiles from their mean; 1 is the network itself.
        pull_images: training images (seeded choice) on which the pull and the loss along the
            deviations are taken; all where there are fewer.
        pull_draws: random assignments of each batch of them.
        loss_scales: factors on the deviations at which the loss is taken; none: it is not.
        seed: of all these draws.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    name: ClassVar[str] = "filter_similarity"

    images: int = integer(200, low=1)
    draws: int = integer(64, low=2)
    probes: int = integer(32, low=2)
    scales: Sequence[float] = several(
        (1.0, 0.5, 0.25, 0.125, 0.0625),
        partial(check_real, low=0, open_low=True),
        of="numbers above 0",
    )
    pull_images: int = integer(512, low=2)
    pull_draws: int = integer(1, low=1)
    loss_scales: Sequence[float] = several(SCALES, check_real, of="numbers", empty=True)
    seed: int = integer(0, low=0)

    def check(self, subject: Trained) -> None:
        """Raise now what measuring this network would raise; its shapes are enough.

        Raises:
            ValueError: if no layer has several tiles, or there are fewer training images.
        """
        if not tiled_layers(subject.network):
            raise ValueError("network: no layer has several tiles, so none can be alike")
        self._check_images(subject)

    def similarities(self, subject: Trained) -> pd.DataFrame:
        """Similarity of the tiles over training, and the penalty where it was recorded.

        Returns:
            One row per recorded epoch and tiled layer: ``epoch``, the fields of
            :class:`rapa_lib.LayerSimilarity`, ``penalty``, ``penalty_error``. If nothing was
            recorded, the network as it is now stands for its last epoch.
        """
        recorded = subject.measurements
        if not any("similarity" in taken for taken in recorded):
            now = [asdict(layer) for layer in tile_similarity(subject.network, seed=self.seed)]
            recorded = [{"epoch": subject.recipe.training.epochs, "similarity": now}]
        rows = []
        for taken in recorded:
            penalties = {row["layer"]: row for row in taken.get("penalty", [])}
            for layer in taken.get("similarity", []):
                penalty = penalties.get(layer["layer"], {})
                own = {
                    "penalty": penalty.get("penalty", math.nan),
                    "penalty_error": penalty.get("standard_error", math.nan),
                }
                rows.append({"epoch": taken["epoch"]} | layer | own)
        measures = [field.name for field in fields(LayerSimilarity)]
        columns = ["epoch", *measures, "penalty", "penalty_error"]
        return pd.DataFrame(rows, columns=columns).rename(columns={"n_tiles": "layer_tiles"})

    def penalties(self, subject: Trained) -> pd.DataFrame:
        """Penalty of random assignment, measured and predicted, as the deviations are scaled.

        Returns:
            One row per layer and scale: ``layer``, ``scale``, ``measured``, ``measured_error``
            (standard error), ``predicted``, ``predicted_error``, ``gauss_newton``,
            ``gauss_newton_error``, ``merged_loss``, ``applies``. Layer ``"all"`` is measured only.
            No rows where assignments are not drawn at random: no expectation exists. Where
            ``applies`` is false, the prediction is no limit of the measurement (see
            :func:`rapa_lib.instruments.smoothness.penalty_applies`): they need not agree.

        Raises:
            ValueError: if there are fewer training images.
        """
        if not _has_expectation(subject):
            return pd.DataFrame(columns=_PENALTY_COLUMNS)
        images, labels = self._chosen(subject)
        predicted = {
            name: predicted_penalty(
                subject.network, images, labels, name, probes=self.probes, seed=self.seed
            )
            for name in tiled_layers(subject.network)
        }
        rows, applies = [], penalty_applies(subject.network)
        for scale in self.scales:
            network = scale_deviations(subject.network, scale)
            for found in measured_penalty(network, images, labels, self.draws, seed=self.seed):
                row = dict.fromkeys(_PENALTY_COLUMNS, math.nan) | {
                    "layer": found.layer,
                    "scale": scale,
                    "measured": found.penalty,
                    "measured_error": found.standard_error,
                    "merged_loss": found.merged_loss,
                    "applies": applies,
                }
                if found.layer != ALL_LAYERS:
                    layer = predicted[found.layer]
                    row |= {  # R is quadratic in δ, and scaling leaves the mean kernels alone
                        "predicted": scale**2 * layer.penalty,
                        "predicted_error": scale**2 * layer.standard_error,
                        "gauss_newton": scale**2 * layer.gauss_newton,
                        "gauss_newton_error": scale**2 * layer.gauss_newton_standard_error,
                    }
                rows.append(row)
        return pd.DataFrame(rows, columns=_PENALTY_COLUMNS)

    def pulls(self, subject: Trained) -> dict[str, float]:
        """Cosine between ∂R/∂δ (Gauss–Newton form) and δ, by layer.

        Returns:
            1 is a pull straight to the mean; empty where assignments are not drawn at random.

        Raises:
            ValueError: if there are fewer training images.
        """
        if not _has_expectation(subject):
            return {}
        images, labels = self._chosen(subject)
        found = {}
        for name, layer in tiled_layers(subject.network).items():
            gradient, _ = penalty_gradient(
                subject.network, images, labels, name,
                curvature="gauss_newton", probes=self.probes, seed=self.seed,
            )  # fmt: skip
            weight = layer.weight.detach()
            found[name] = _cosine(gradient, weight - weight.mean(0))
        return found

    def tile_pulls(self, subject: Trained) -> list[dict[str, Any]]:
        """The pull on the tiles along training and at its end: see :func:`pull_rows`."""
        return pull_rows(subject, images=self.pull_images, draws=self.pull_draws, seed=self.seed)

    def scaled_losses(self, subject: Trained) -> list[dict[str, Any]]:
        """The loss along the deviations of the trained network: see :func:`scale_rows`."""
        return scale_rows(
            subject, self.loss_scales, images=self.pull_images, draws=self.pull_draws,
            seed=self.seed,
        )  # fmt: skip

    def _measure(self, subject: Trained, folder: Path | None, progress: bool) -> Record:
        subject.recipe.use_threads()
        return {
            **subject.labels(),
            "measurement": self.settings(),
            "similarities": plain(self.similarities(subject)),
            "penalties": plain(self.penalties(subject)),
            "pulls": self.pulls(subject),
            "tile_pulls": plain(self.tile_pulls(subject)),
            "scaled_losses": plain(self.scaled_losses(subject)),
            "filters": shown_filters(subject.network),
            **provenance(subject.device),
            "data_fingerprint": subject.data.fingerprint,
            "config": in_order(subject.parameters),
        }

    @classmethod
    def collect(cls, records: Sequence[Record]) -> Collected:
        """See :meth:`Experiment.collect`."""
        return collect(records)

    def _check_images(self, subject: Trained) -> None:
        there = len(subject.data.train_images)
        if self.images > there:
            raise ValueError(
                f"images: got {self.images}, but {subject.data.name} has {there} training images"
            )

    def _chosen(self, subject: Trained) -> tuple[Tensor, Tensor]:
        data, device = subject.data, subject.device
        self._check_images(subject)
        with seeded(self.seed):
            chosen = torch.randperm(len(data.train_images))[: self.images]
        images = subject.scaling(data.train_images[chosen].to(device))
        return images, data.train_labels[chosen].to(device)


def shown_filters(network: nn.Module) -> list[Any]:
    """Filters of the first tiled layer as pictures: the most alike and the least alike over tiles.

    Returns:
        Nested lists (filters, tiles, channels, height, width) of at most 12 filters, by falling
        mean cosine between tiles, in the first at most 8 tiles, each scaled to a greatest absolute
        weight of 1; empty where no layer has several tiles.
    """
    layers = tiled_layers(network)
    if not layers:
        return []
    weight = next(iter(layers.values())).weight.detach().cpu()
    unit = unit_filters(weight.flatten(2)).transpose(0, 1)
    alike = unit.sum(1).square().sum(-1)
    order = alike.argsort(descending=True)
    if len(order) > SHOWN_FILTERS:
        half = SHOWN_FILTERS // 2
        order = torch.cat([order[:half], order[-half:]])
    shown = weight.transpose(0, 1)[order, :SHOWN_TILES]
    shown = shown / shown.abs().amax((2, 3, 4), keepdim=True).clamp(min=1e-12)
    return torch.round(shown, decimals=3).double().mul(1000).round().div(1000).tolist()


def _has_expectation(subject: Trained) -> bool:
    return subject.recipe.network.kind.expectation and bool(tiled_layers(subject.network))


def _cosine(a: Tensor, b: Tensor) -> float:
    scale = float(a.norm() * b.norm())
    return float((a * b).sum()) / scale if scale else 0.0
