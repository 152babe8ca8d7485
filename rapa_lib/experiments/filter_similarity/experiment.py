"""The filter-similarity experiment: do tiles come to agree, and does the theory say so?"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pandas as pd
import torch

from rapa_lib._checks import check_int, check_real
from rapa_lib._seeds import seeded
from rapa_lib.data.datasets import Dataset
from rapa_lib.experiments.records import provenance
from rapa_lib.experiments.trained import Trained
from rapa_lib.instruments.penalty import (
    ALL_LAYERS,
    measured_penalty,
    penalty_gradient,
    predicted_penalty,
    scale_deviations,
)
from rapa_lib.instruments.similarity import (
    LayerSimilarity,
    tile_similarity,
    tiled_layers,
    unit_filters,
)
from rapa_lib.networks.network import RapaConvNet

SHOWN_FILTERS, SHOWN_TILES = 12, 8


@dataclass(frozen=True)
class FilterSimilarityRun:
    """What is measured of one trained network; checked when it is made.

    Args:
        images: training images (seeded choice) on which penalties are taken.
        draws: random assignments of the measured penalty.
        probes: random vectors of the predicted penalty.
        scales: factors on the deviations δ of the tiles from their mean; 1 is the network itself.
        seed: of all these draws.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    images: int = 200
    draws: int = 64
    probes: int = 32
    scales: Sequence[float] = (1.0, 0.5, 0.25, 0.125, 0.0625)
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.scales, str) or not isinstance(self.scales, Sequence):
            raise TypeError(f"scales: got {self.scales!r}, expected a list of numbers")
        if not self.scales:
            raise ValueError("scales: got none, expected at least one number")
        plain = {
            "images": check_int("images", self.images, low=1),
            "draws": check_int("draws", self.draws, low=2),
            "probes": check_int("probes", self.probes, low=2),
            "scales": tuple(check_real("scales", s, low=0, open_low=True) for s in self.scales),
            "seed": check_int("seed", self.seed, low=0),
        }
        # Python's own numbers: numpy's would make the record unreadable.
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def check(self, network: RapaConvNet, data: Dataset) -> None:
        """Raise now what measuring this network would raise; its shapes are enough."""
        if not tiled_layers(network):
            raise ValueError("network: no layer has several tiles, so none can be alike")
        self._check_images(data)

    def penalties(self, trained: Trained) -> pd.DataFrame:
        """Penalty of random assignment, measured and predicted, as the deviations are scaled.

        Returns:
            A row a layer and scale: ``layer``, ``scale``, ``measured``, ``measured_error``
            (standard error), ``predicted``, ``predicted_error``, ``gauss_newton``,
            ``gauss_newton_error``, ``merged_loss``. Layer ``"all"`` is measured only. No rows where
            assignments are not drawn at random: no expectation exists.
        """
        columns = [
            "layer", "scale", "measured", "measured_error", "predicted", "predicted_error",
            "gauss_newton", "gauss_newton_error", "merged_loss",
        ]  # fmt: skip
        if not self._has_expectation(trained):
            return pd.DataFrame(columns=columns)
        layers = tiled_layers(trained.network)
        images, labels = self._chosen(trained)
        predicted = {
            name: predicted_penalty(
                trained.network, images, labels, name, probes=self.probes, seed=self.seed
            )
            for name in layers
        }
        rows = []
        for scale in self.scales:
            network = scale_deviations(trained.network, scale)
            for found in measured_penalty(network, images, labels, self.draws, seed=self.seed):
                row = dict.fromkeys(columns, math.nan) | {
                    "layer": found.layer,
                    "scale": scale,
                    "measured": found.penalty,
                    "measured_error": found.standard_error,
                    "merged_loss": found.merged_loss,
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
        return pd.DataFrame(rows, columns=columns)

    def pulls(self, trained: Trained) -> dict[str, float]:
        """Cosine between ∂R/∂δ (Gauss–Newton form) and δ, by layer.

        1 is a pull straight to the mean.
        Empty where assignments are not drawn at random.
        """
        if not self._has_expectation(trained):
            return {}
        images, labels = self._chosen(trained)
        found = {}
        for name, layer in tiled_layers(trained.network).items():
            gradient, _ = penalty_gradient(
                trained.network, images, labels, name,
                curvature="gauss_newton", probes=self.probes, seed=self.seed,
            )  # fmt: skip
            weight = layer.weight.detach()
            found[name] = _cosine(gradient, weight - weight.mean(0))
        return found

    def similarities(self, trained: Trained) -> pd.DataFrame:
        """Similarity of the tiles over training, and the penalty where it was recorded.

        Returns:
            A row a recorded epoch and tiled layer: ``epoch``, the fields of
            :class:`rapa_lib.LayerSimilarity`, ``penalty``, ``penalty_error``. If nothing was
            recorded, the network as it is now stands for its last epoch.
        """
        recorded = trained.measurements
        if not any("similarity" in taken for taken in recorded):
            now = [asdict(layer) for layer in tile_similarity(trained.network, seed=self.seed)]
            recorded = [{"epoch": trained.run.epochs, "similarity": now}]
        rows = []
        for taken in recorded:
            penalties = {row["layer"]: row for row in taken.get("penalty", [])}
            for layer in taken.get("similarity", []):
                penalty = penalties.get(layer["layer"], {})
                rows.append(
                    {"epoch": taken["epoch"]}
                    | layer
                    | {
                        "penalty": penalty.get("penalty", math.nan),
                        "penalty_error": penalty.get("standard_error", math.nan),
                    }
                )
        measures = [field.name for field in fields(LayerSimilarity)]
        columns = ["epoch", *measures, "penalty", "penalty_error"]
        return pd.DataFrame(rows, columns=columns).rename(columns={"n_tiles": "layer_tiles"})

    def record(self, trained: Trained, similarities: pd.DataFrame) -> dict[str, Any]:
        """Measure what is left to measure: all that the study's tables and figures are made of.

        Args:
            trained: the network.
            similarities: what :meth:`similarities` gave.
        """
        return {
            **trained.labels(),
            "measurement": asdict(self),
            "similarities": _plain(similarities),
            "penalties": _plain(self.penalties(trained)),
            "pulls": self.pulls(trained),
            "filters": shown_filters(trained.network),
            **provenance(next(trained.network.parameters()).device),
            "data_fingerprint": trained.data.fingerprint,
            "config": trained.run.parameters(),
        }

    def _check_images(self, data: Dataset) -> None:
        if self.images > len(data.train_images):
            raise ValueError(
                f"images: got {self.images}, but {data.name} has {len(data.train_images)} training "
                "images"
            )

    @staticmethod
    def _has_expectation(trained: Trained) -> bool:
        layers = tiled_layers(trained.network).values()
        return bool(layers) and all(layer.tiling == "random" for layer in layers)

    def _chosen(self, trained: Trained):
        data, device = trained.data, next(trained.network.parameters()).device
        self._check_images(data)
        with seeded(self.seed):
            chosen = torch.randperm(len(data.train_images))[: self.images]
        images = trained.scaling(data.train_images[chosen].to(device))
        return images, data.train_labels[chosen].to(device)


def shown_filters(network) -> list:
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


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    scale = float(a.norm() * b.norm())
    return float((a * b).sum()) / scale if scale else 0.0


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows that JSON can hold: what is not a number becomes null."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
