"""The fault experiment: from a trained network to the record of what broken tiles cost it."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from tqdm.auto import tqdm

from rapa_lib._checks import check_bool, check_real, integer, real, several
from rapa_lib._seeds import Purpose, mix_seeds, seeded
from rapa_lib.experiments.fault_tolerance.page import collect
from rapa_lib.experiments.protocol import Collected, Experiment, Record
from rapa_lib.experiments.recipe import in_order
from rapa_lib.experiments.records import provenance
from rapa_lib.experiments.trained import Trained
from rapa_lib.instruments.faults.broken import tile_faults
from rapa_lib.instruments.faults.draw import (
    TileFault,
    check_kind,
    draw_faults,
    rapa_layers,
)
from rapa_lib.instruments.faults.repair import fine_tune, repair_by_copy
from rapa_lib.runtime import LayerRunTime, run_time
from rapa_lib.training import (
    error_percent,
    normalises_batches,
    predict,
    reestimate_normalisation,
)

COPIED = "copied kernels"

REPAIRS = {
    "no faults": (False, False, None),
    "no faults, fine-tuned": (False, False, "tune"),
    "none": (True, False, None),
    "rerouted": (True, True, None),
    "rerouted, statistics re-estimated": (True, True, "reestimate"),
    COPIED: (False, False, None),
    "fine-tuned": (True, False, "tune"),
    "rerouted, fine-tuned": (True, True, "tune"),
}
"""Repairs by name: whether tiles are broken, whether they are rerouted around, what follows."""


@dataclass(frozen=True)
class FaultTolerance(Experiment[Trained]):
    """What is done to a trained network; checked when it is made.

    Args:
        shares: shares of faulty tiles; in each layer the nearest number is broken, one is left.
        kind, strength: of the faults, see :class:`rapa_lib.instruments.faults.TileFault`.
        reroute: without rerouting, with it, or both.
        fault_draws: how many choices of tiles are tried for each share.
        n_images: test images, a balanced choice; None, or more than there are: all.
        repair_share: the share at which repairs are compared.
        fine_tune_steps: steps of the repair by training.
        reestimate_images: training images, a balanced choice, on which normalisation statistics
            are estimated anew after rerouting; all where there are fewer.
        seed: of the choice of images and tiles, of the assignments, and of repairs.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    name: ClassVar[str] = "fault_tolerance"

    shares: Sequence[float] = several(
        (0.0, 0.25, 0.5, 0.75, 0.9375),
        partial(check_real, low=0, high=1),
        of="shares from 0 to 1",
        distinct=True,
    )
    kind: str = "dead"
    strength: float | None = None
    reroute: Sequence[bool] = several((False, True), check_bool, of="True and False", distinct=True)
    fault_draws: int = integer(5, low=1)
    n_images: int | None = integer(2000, low=1, optional=True)
    repair_share: float = real(0.5, low=0, high=1)
    fine_tune_steps: int = integer(50, low=1)
    reestimate_images: int = integer(2000, low=1)
    seed: int = integer(0, low=0)

    def _check(self) -> None:
        object.__setattr__(self, "strength", check_kind(self.kind, self.strength))

    def check(self, subject: Trained) -> None:
        """Raise now what measuring this network would raise; its shapes are enough.

        Raises:
            ValueError: if no layer has more than one tile.
        """
        _layer_sets(subject.network)

    def errors(self, subject: Trained, *, progress: bool = True) -> list[dict[str, Any]]:
        """Measure the network with every share of faults, in all layers and in each alone.

        Layers of one tile stay whole. The same tiles break, and the same assignments are drawn,
        with and without rerouting.

        Args:
            subject: its test images are classified once per row; its network is left as it was.
            progress: show a bar.

        Returns:
            One row per set of layers × share × rerouting × draw of faults: ``layers`` (``"all"`` or
            a name), ``share`` (asked for), ``share_faulty`` and ``n_faulty`` (what it came to),
            ``kind``, ``strength``, ``reroute``, ``fault_draw``, ``fault_seed``, ``test_error``
            (percent), ``test_error_reestimated`` (with normalisation statistics estimated anew
            after rerouting, nothing retrained; None where not rerouted or there is no batch
            normalisation), ``products_per_layer`` (of one image), ``speed_up`` (patches ÷
            products, summed over convolutions), ``n_images``.

        Raises:
            ValueError: if no layer has more than one tile.
        """
        network, size = subject.network, subject.data.train_images.shape[1:]
        sets = _layer_sets(network)
        error_of, reestimated = self._classifier(subject), self._reestimating(subject)
        n_patches = sum(sum(timed.layer.patches) for timed in _convolutions(network, size))
        n_tiles = {name: layer.n_tiles for name, layer in rapa_layers(network).items()}
        known: dict[Any, tuple[float, float | None, list[int]]] = {}
        rows = []
        cells = list(self._cells(sets))
        for name, share, reroute, draw in tqdm(
            cells, desc="faults", unit="row", disable=not progress
        ):
            layers = sets[name]
            faults = self._draw_faults(network, share, layers, draw)
            # Shares can come to the same faults, and no faults are the same for all.
            key = (faults, reroute, draw)
            if key not in known:
                whole = known.get((faults, not reroute, draw)) if not faults else None
                with tile_faults(network, faults, reroute=reroute):
                    products = [timed.products for timed in _convolutions(network, size)]
                    error = error_of(network, draw) if whole is None else whole[0]
                    anew = reestimated(network, draw) if reroute else None
                    known[key] = error, None if anew is None else error_of(anew, draw), products
            error, error_anew, products = known[key]
            counts = _counts(faults, layers)
            rows.append(
                {
                    "layers": name,
                    "share": share,
                    "share_faulty": sum(counts) / sum(n_tiles[layer] for layer in layers),
                    "n_faulty": "-".join(map(str, counts)),
                    "kind": self.kind,
                    "strength": self.strength,
                    "reroute": reroute,
                    "fault_draw": draw,
                    "fault_seed": self._fault_seed(draw),
                    "test_error": error,
                    "test_error_reestimated": error_anew,
                    "products_per_layer": "-".join(map(str, products)),
                    "speed_up": n_patches / sum(products),
                    "n_images": self._n_images(subject),
                }
            )
        return rows

    def repairs(self, subject: Trained, *, progress: bool = True) -> list[dict[str, Any]]:
        """Compare repairs at ``repair_share``, faults in all layers of more than one tile.

        Args:
            subject, progress: as for :meth:`errors`; fine-tuning draws from the training images,
                without augmentation.

        Returns:
            One row per repair × draw of faults: ``repair`` (:data:`REPAIRS`; without batch
            normalisation there are no statistics to re-estimate, and no such row), ``share``,
            ``n_faulty``, ``kind``, ``strength``, ``fault_draw``, ``fault_seed``, ``test_error``
            (percent), ``products_per_layer``.

        Raises:
            ValueError: if no layer has more than one tile.
        """
        network, size = subject.network, subject.data.train_images.shape[1:]
        layers = _layer_sets(network)["all"]
        error_of, reestimated = self._classifier(subject), self._reestimating(subject)
        rows = []
        draws = range(self.fault_draws)
        for draw in tqdm(draws, desc="repairs", unit="draw", disable=not progress):
            faults = self._draw_faults(network, self.repair_share, layers, draw)
            new_tiles = repair_by_copy(network, faults, seed=self._fault_seed(draw))
            for repair, (broken, reroute, after) in REPAIRS.items():
                model = copy.deepcopy(new_tiles if repair == COPIED else network)
                with tile_faults(model, faults if broken else (), reroute=reroute):
                    if after == "tune":
                        self._tune(model, subject, draw)
                    anew = reestimated(model, draw) if after == "reestimate" else model
                    if anew is None:
                        continue
                    error = error_of(anew, draw)
                    products = [timed.products for timed in _convolutions(anew, size)]
                rows.append(
                    {
                        "repair": repair,
                        "share": self.repair_share,
                        "n_faulty": "-".join(map(str, _counts(faults, layers))),
                        "kind": self.kind,
                        "strength": self.strength,
                        "fault_draw": draw,
                        "fault_seed": self._fault_seed(draw),
                        "test_error": error,
                        "products_per_layer": "-".join(map(str, products)),
                    }
                )
        return rows

    def _measure(self, subject: Trained, folder: Path | None, progress: bool) -> Record:
        subject.recipe.use_threads()
        return {
            **subject.labels(),
            **provenance(subject.device),
            "data_fingerprint": subject.data.fingerprint,
            "config": in_order(subject.parameters),
            "sweep": self.settings(),
            "rows": self.errors(subject, progress=progress),
            "repairs": self.repairs(subject, progress=progress),
        }

    @classmethod
    def collect(cls, records: Sequence[Record]) -> Collected:
        """See :meth:`Experiment.collect`."""
        return collect(records)

    def _cells(self, sets: dict[str, list[str]]) -> Iterator[tuple[str, float, bool, int]]:
        for name in sets:
            for share in self.shares:
                for reroute in self.reroute:
                    for draw in range(self.fault_draws):
                        yield name, share, reroute, draw

    def _tune(self, model: nn.Module, subject: Trained, draw: int) -> None:
        seed = mix_seeds(self.seed, Purpose.REPAIR, draw)
        batch_size = min(128, len(subject.data.train_images))
        steps = self.fine_tune_steps
        fine_tune(model, subject.data, subject.scaling, steps, batch_size=batch_size, seed=seed)

    def _draw_faults(
        self, network: nn.Module, share: float, layers: Sequence[str], draw: int
    ) -> tuple[TileFault, ...]:
        return draw_faults(
            network, share=share, kind=self.kind, strength=self.strength, layers=layers,
            seed=self._fault_seed(draw),
        )  # fmt: skip

    def _fault_seed(self, draw: int) -> int:
        return mix_seeds(self.seed, Purpose.FAULTS, draw) % 2**31

    def _n_images(self, subject: Trained) -> int:
        there = len(subject.data.test_images)
        return there if self.n_images is None else min(self.n_images, there)

    def _classifier(self, subject: Trained) -> Callable[[nn.Module, int], float]:
        """What gives a model's test error for a draw: the same images and assignments for all."""
        chosen = subject.data.subset(None, self._n_images(subject), seed=self.seed)

        def test_error(model: nn.Module, draw: int) -> float:
            device = next(model.parameters()).device
            with seeded(self.seed, Purpose.FAULT_DRAWS, draw):
                logits = predict(model, chosen.test_images.to(device), subject.scaling)
            return error_percent(logits, chosen.test_labels.to(device))

        return test_error

    def _reestimating(self, subject: Trained) -> Callable[[nn.Module, int], nn.Module | None]:
        """What gives a copy of a model, faults and all, with normalisation statistics of its own.

        None for a model without batch normalisation.
        """
        there = len(subject.data.train_images)
        chosen = subject.data.subset(min(self.reestimate_images, there), None, seed=self.seed)

        def reestimated(model: nn.Module, draw: int) -> nn.Module | None:
            if not normalises_batches(model):
                return None
            anew = copy.deepcopy(model)
            images = chosen.train_images.to(next(anew.parameters()).device)
            with seeded(self.seed, Purpose.FAULT_STATISTICS, draw):
                reestimate_normalisation(anew, images, subject.scaling)
            return anew

        return reestimated


def _counts(faults: Sequence[TileFault], layers: Sequence[str]) -> list[int]:
    return [sum(fault.layer == layer for fault in faults) for layer in layers]


def _convolutions(network: nn.Module, size: Sequence[int]) -> list[LayerRunTime]:
    """The run time of each convolution, its tiles as they are."""
    return [timed for timed in run_time(network, size).layers if timed.layer.kind != "Linear"]


def _layer_sets(network: nn.Module) -> dict[str, list[str]]:
    """``"all"`` layers of more than one tile, and, if there are several, each of them alone."""
    layers = [name for name, layer in rapa_layers(network).items() if layer.n_tiles > 1]
    if not layers:
        raise ValueError("network: every layer has one tile, so none can fail and leave another")
    return {"all": layers} | ({name: [name] for name in layers} if len(layers) > 1 else {})
