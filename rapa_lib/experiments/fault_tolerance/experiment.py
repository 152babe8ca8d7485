"""The fault experiment: what broken tiles cost a trained network, and what repairs give back."""

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from rapa_lib._checks import check_bool, check_int, check_real, check_sequence
from rapa_lib._files import writable_folder
from rapa_lib._seeds import Purpose, mix_seeds, seeded
from rapa_lib.data.datasets import Dataset
from rapa_lib.experiments.accuracy.experiment import LABELS, AccuracyRun
from rapa_lib.experiments.records import provenance, write_json
from rapa_lib.instruments.faults.broken import tile_faults
from rapa_lib.instruments.faults.draw import (
    TileFault,
    check_kind,
    draw_faults,
    rapa_layers,
)
from rapa_lib.instruments.faults.repair import fine_tune, repair_by_copy
from rapa_lib.runtime import LayerRunTime, run_time
from rapa_lib.training import InputScaling, error_percent, predict


@dataclass(frozen=True)
class FaultSweep:
    """What the fault experiment does to a trained network; checked when it is made.

    Args:
        shares: shares of faulty tiles; in each layer the nearest number is broken, one is left.
        kind, strength: of the faults, see :class:`TileFault`.
        reroute: without rerouting, with it, or both.
        fault_draws: how many choices of tiles are tried for each share.
        n_images: test images, a balanced choice; None, or more than there are: all.
        repair_share: the share at which repairs are compared.
        fine_tune_steps: steps of the repair by training.
        seed: of the choice of images and tiles, of the assignments, and of repairs.
        threads: CPU threads; 0 leaves PyTorch's choice.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 0.9375)
    kind: str = "dead"
    strength: float | None = None
    reroute: Sequence[bool] = (False, True)
    fault_draws: int = 5
    n_images: int | None = 2000
    repair_share: float = 0.5
    fine_tune_steps: int = 50
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("shares", "reroute"):
            values = check_sequence(name, getattr(self, name))
            if len(values) == 0 or len(set(values)) < len(values):
                raise ValueError(f"{name}: got {tuple(values)}, expected different values")
        plain = {
            "shares": tuple(check_real("shares", s, low=0, high=1) for s in self.shares),
            "strength": check_kind(self.kind, self.strength),
            "reroute": tuple(check_bool("reroute", r) for r in self.reroute),
            "fault_draws": check_int("fault_draws", self.fault_draws, low=1),
            "repair_share": check_real("repair_share", self.repair_share, low=0, high=1),
            "fine_tune_steps": check_int("fine_tune_steps", self.fine_tune_steps, low=1),
            "seed": check_int("seed", self.seed, low=0),
            "threads": check_int("threads", self.threads, low=0),
        }
        if self.n_images is not None:
            plain["n_images"] = check_int("n_images", self.n_images, low=1)
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def check(self, network: nn.Module, data: Dataset) -> None:
        """Raise now what measuring this network would raise; its shapes are enough."""
        _layer_sets(network)

    def measure(
        self, network: nn.Module, data: Dataset, scaling: InputScaling, *, progress: bool = True
    ) -> list[dict[str, Any]]:
        """Measure the network with every share of faults, in all layers and in each alone.

        Layers of one tile stay whole. The same tiles break, and the same lots are drawn, with and
        without rerouting.

        Args:
            network: trained; it is left as it was.
            data: its test images are classified, once for each row.
            scaling: the scaling that the network was trained with.
            progress: show a bar.

        Returns:
            One row for each set of layers × share × rerouting × draw of faults: ``layers``
            (``"all"`` or a name), ``share`` (asked for), ``share_faulty`` and ``n_faulty`` (what it
            came to), ``kind``, ``strength``, ``reroute``, ``fault_draw``, ``fault_seed``,
            ``test_error`` (percent), ``products_per_layer`` (of one image), ``speed_up``
            (patches ÷ products, summed over convolutions), ``n_images``.

        Raises:
            ValueError: if no layer has more than one tile.
        """
        sets = _layer_sets(network)
        error_of = self._classifier(data, scaling)
        size = data.train_images.shape[1:]
        n_patches = sum(sum(timed.layer.patches) for timed in _convolutions(network, size))
        n_tiles = {name: layer.n_tiles for name, layer in rapa_layers(network).items()}
        known: dict[Any, tuple[float, list[int]]] = {}
        rows = []
        grid = [
            (name, layers, share, reroute, draw)
            for name, layers in sets.items()
            for share in self.shares
            for reroute in self.reroute
            for draw in range(self.fault_draws)
        ]
        for name, layers, share, reroute, draw in tqdm(
            grid, desc="faults", unit="row", disable=not progress
        ):
            fault_seed = self._fault_seed(draw)
            faults = self._draw_faults(network, share, layers, draw)
            # Shares can come to the same faults, and none are the same for all.
            key = (faults, reroute if faults else None, draw)
            if key not in known:
                with tile_faults(network, faults, reroute=reroute):
                    products = [timed.products for timed in _convolutions(network, size)]
                    known[key] = error_of(network, draw), products
            error, products = known[key]
            counts = [sum(fault.layer == layer for fault in faults) for layer in layers]
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
                    "fault_seed": fault_seed,
                    "test_error": error,
                    "products_per_layer": "-".join(map(str, products)),
                    "speed_up": n_patches / sum(products),
                    "n_images": self._n_images(data),
                }
            )
        return rows

    def measure_repairs(
        self, network: nn.Module, data: Dataset, scaling: InputScaling, *, progress: bool = True
    ) -> list[dict[str, Any]]:
        """Compare repairs at ``repair_share``, faults in all layers of more than one tile.

        Args:
            network, data, scaling, progress: as for :meth:`measure`; fine-tuning draws from the
                training images, without augmentation.

        Returns:
            One row for each repair × draw of faults: ``repair`` (``"no faults"``, ``"none"``,
            ``"rerouted"``, ``"copied kernels"``, ``"fine-tuned"``,
            ``"rerouted, fine-tuned"``), ``share``, ``n_faulty``, ``kind``, ``strength``,
            ``fault_draw``, ``fault_seed``, ``test_error`` (percent), ``products_per_layer``.
        """
        layers = _layer_sets(network)["all"]
        error_of = self._classifier(data, scaling)
        size = data.train_images.shape[1:]

        def as_it_is(model: nn.Module, _: int) -> None:
            """No repair."""

        def tune(model: nn.Module, draw: int) -> None:
            seed = mix_seeds(self.seed, Purpose.REPAIR, draw)
            batch_size = min(128, len(data.train_images))
            steps = self.fine_tune_steps
            fine_tune(model, data, scaling, steps, batch_size=batch_size, seed=seed)

        rows = []
        for draw in tqdm(
            range(self.fault_draws), desc="repairs", unit="draw", disable=not progress
        ):
            faults = self._draw_faults(network, self.repair_share, layers, draw)
            new_tiles = repair_by_copy(network, faults, seed=self._fault_seed(draw))
            counts = [sum(fault.layer == layer for fault in faults) for layer in layers]
            for repair, model, broken, reroute, mend in (
                ("no faults", network, (), False, as_it_is),
                ("none", network, faults, False, as_it_is),
                ("rerouted", network, faults, True, as_it_is),
                ("copied kernels", new_tiles, (), False, as_it_is),
                ("fine-tuned", network, faults, False, tune),
                ("rerouted, fine-tuned", network, faults, True, tune),
            ):
                model = copy.deepcopy(model)
                with tile_faults(model, broken, reroute=reroute):
                    mend(model, draw)
                    error = error_of(model, draw)
                    products = [timed.products for timed in _convolutions(model, size)]
                rows.append(
                    {
                        "repair": repair,
                        "share": self.repair_share,
                        "n_faulty": "-".join(map(str, counts)),
                        "kind": self.kind,
                        "strength": self.strength,
                        "fault_draw": draw,
                        "fault_seed": self._fault_seed(draw),
                        "test_error": error,
                        "products_per_layer": "-".join(map(str, products)),
                    }
                )
        return rows

    def _draw_faults(
        self, network: nn.Module, share: float, layers: Sequence[str], draw: int
    ) -> tuple[TileFault, ...]:
        return draw_faults(
            network, share=share, kind=self.kind, strength=self.strength, layers=layers,
            seed=self._fault_seed(draw),
        )  # fmt: skip

    def _fault_seed(self, draw: int) -> int:
        return mix_seeds(self.seed, Purpose.FAULTS, draw) % 2**31

    def _n_images(self, data: Dataset) -> int:
        there = len(data.test_images)
        return there if self.n_images is None else min(self.n_images, there)

    def _classifier(
        self, data: Dataset, scaling: InputScaling
    ) -> Callable[[nn.Module, int], float]:
        """Make what gives a model's test error for a draw: the same images and lots for all."""
        if self.threads:
            torch.set_num_threads(self.threads)
        chosen = data.subset(None, self._n_images(data), seed=self.seed)

        def test_error(model: nn.Module, draw: int) -> float:
            device = next(model.parameters()).device
            with seeded(self.seed, Purpose.FAULT_DRAWS, draw):
                logits = predict(model, chosen.test_images.to(device), scaling)
            return error_percent(logits, chosen.test_labels.to(device))

        return test_error


def fault_record(
    sweep: FaultSweep,
    run: AccuracyRun,
    network: nn.Module,
    data: Dataset,
    rows: Sequence[dict[str, Any]],
    repairs: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Make the record: what was measured of which network, and by what.

    Args:
        sweep: what was done to the network.
        run: the run that trained the network; ``seed`` of the record is its seed.
        network: the network that was measured.
        data: the data set that it was measured on.
        rows, repairs: of :meth:`FaultSweep.measure` and :meth:`FaultSweep.measure_repairs`.
    """
    n_tiles = [layer.n_tiles for layer in rapa_layers(network).values()]
    told = run.parameters() | {"dataset": data.name, "n_tiles": "-".join(map(str, n_tiles))}
    return {
        **{name: told[name] for name in LABELS},
        **provenance(next(network.parameters()).device),
        "data_fingerprint": data.fingerprint,
        "config": run.parameters(),
        "sweep": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(sweep).items()
        },
        "rows": list(rows),
        "repairs": list(repairs),
    }


def save_faults(folder: str | Path, record: dict[str, Any]) -> None:
    """Write a record as ``record.json`` to a folder, which is made if it is not there.

    Raises:
        ValueError: if the folder cannot be written to.
    """
    write_json(writable_folder("output", folder) / "record.json", record)


def fault_table(records: Iterable[dict[str, Any] | str | Path], part: str = "rows") -> pd.DataFrame:
    """Put the rows of fault records under one another, each with its record's labels.

    Args:
        records: of :func:`fault_record`, or files of :func:`save_faults`.
        part: ``"rows"`` or ``"repairs"``.

    Raises:
        ValueError: if there is none, or a file is none of a record; it is named.
    """
    rows = []
    for source in records:
        try:
            record = source if isinstance(source, dict) else json.loads(Path(source).read_text())
            labels = {name: record[name] for name in (*LABELS, "git_commit")}
            labels["config"] = json.dumps(record["config"])
            rows += [labels | row for row in record[part]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"record: cannot read {source}: {error!r}") from error
    if not rows:
        raise ValueError("records: none to collect")
    return pd.DataFrame(rows)


def tolerated_share(table: pd.DataFrame, points: float = 1.0) -> pd.DataFrame:
    """The share of tiles that can fail for less than so many points of test error.

    Args:
        table: rows of one network or of several of one configuration, a share of 0 among them.
        points: percentage points above the mean test error without faults.

    Returns:
        One row for each ``layers`` × ``reroute``: ``share_faulty``, the greatest share measured up
        to which every mean test error stays below; ``added_error``, what it costs in points;
        ``speed_up``, its mean there.

    Raises:
        ValueError: if there are no rows without faults.
    """
    rows = []
    for (layers, reroute), part in table.groupby(["layers", "reroute"], sort=False):
        means = part.groupby("share_faulty")[["test_error", "speed_up"]].mean().sort_index()
        if means.index[0] != 0:
            raise ValueError(f"table: it has no rows without faults for layers {layers!r}")
        added = means["test_error"] - means["test_error"].iloc[0]
        kept = added[(added < points).cummin()].index[-1]
        rows.append(
            {
                "layers": layers,
                "reroute": reroute,
                "share_faulty": kept,
                "added_error": added[kept],
                "speed_up": means["speed_up"][kept],
            }
        )
    return pd.DataFrame(rows)


def _convolutions(network: nn.Module, size: Sequence[int]) -> list[LayerRunTime]:
    """The run time of each convolution, its tiles as they are."""
    return [timed for timed in run_time(network, size).layers if timed.layer.kind != "Linear"]


def _layer_sets(network: nn.Module) -> dict[str, list[str]]:
    """``"all"`` layers of more than one tile, and, if there are several, each of them alone."""
    layers = [name for name, layer in rapa_layers(network).items() if layer.n_tiles > 1]
    if not layers:
        raise ValueError("network: every layer has one tile, so none can fail and leave another")
    return {"all": layers} | ({name: [name] for name in layers} if len(layers) > 1 else {})
