"""The analog experiment: three ways of training for analog tiles, one imperfection at a time."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from rapa_lib._checks import check_choice, check_real, choice, flag, integer, real, several
from rapa_lib._seeds import Purpose, seeded
from rapa_lib.analog import (
    COMPOUNDS,
    PRESETS,
    AnalogLinear,
    MappingParameters,
    MixedPrecisionCompound,
    PulsedDevice,
    TileConfig,
    convert_to_analog,
)
from rapa_lib.analog._io_config import PULSE_METHODS
from rapa_lib.data import Dataset
from rapa_lib.experiments._progress import Progress
from rapa_lib.experiments.analog_training.drift import drift_rows
from rapa_lib.experiments.analog_training.imperfections import (
    BASELINE,
    IMPERFECTIONS,
    METHODS,
    baseline_values,
    check_imperfection,
)
from rapa_lib.experiments.analog_training.page import collect
from rapa_lib.experiments.protocol import Collected, Experiment, Record
from rapa_lib.experiments.recipe import Recipe, choose_device
from rapa_lib.experiments.records import plain, provenance
from rapa_lib.layers import RapaConv2d
from rapa_lib.runtime import AnalogArrays
from rapa_lib.training import (
    DivergedError,
    InputScaling,
    TrainConfig,
    Training,
    error_percent,
    predict,
    train,
)

Row = dict[str, Any]

# Parameters that came after the first records, with what these stand for: they are written only
# where they say something else, so that records of both times compare.
_LATER: dict[str, Any] = {
    "plain_sgd": False,
    "digital_rate": 1.0,
    "hardware_aware_rate": 1.0,
    "tiki_taka_rate": 1.0,
    "compound": "BufferedTransferCompound",
    "n_reads_per_transfer": 1,
    "weight_scaling_omega": 0.0,
    "max_array_size": 0,
    "drift_times": [],
}


def _tiling(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {value!r}, expected a name")
    return value


def _method(name: str, value: Any) -> str:
    return check_choice(name, value, METHODS)


class Cell(NamedTuple):
    """One training: of which network, which way, with which imperfection of which value."""

    tiling: str
    method: str
    imperfection: str = BASELINE
    value: float | None = None


@dataclass(frozen=True)
class AnalogTraining(Experiment[Dataset]):
    """Which networks are trained, and how; checked when it is made.

    Args:
        recipe: data, network and training; its tiling is replaced by each of ``tilings``.
        tilings: networks to compare, names as there.
        methods: ``"digital"``: ordinary training, and ordinary products in the test.
            ``"hardware_aware"``: noisy and quantized products forward, exact errors and updates;
            then programmed onto devices. ``"analog"``: all products and all updates on tiles.
            ``"tiki_taka"``: likewise, the devices in pairs (``compound``).
        preset: the baseline, a name in :data:`rapa_lib.analog.PRESETS`.
        analog_rate: factor on the learning rate of analog training, which is ``learning_rate`` for
            what is digital, and that of a velocity's sum, ÷ (1 − momentum), for the pulses.
        plain_sgd: momentum 0 and weight decay 0 for every method, so that digital and analog
            training differ by hardware alone; pulses then have the learning rate itself.
        digital_rate, hardware_aware_rate, tiki_taka_rate: likewise factors on the learning rate.
        compound: of ``"tiki_taka"``, a name in :data:`rapa_lib.analog.COMPOUNDS`.
        n_reads_per_transfer: columns of an array that it transfers after each mini-batch: one would
            need as many mini-batches as there are columns.
        weight_scaling_omega: see :class:`rapa_lib.analog.MappingParameters`.
        max_array_size: rows and columns of an array; 0: as large as its matrix.
        drift_times: seconds after which digital and hardware-aware networks, written to
            phase-change memory, are read: singly, voted and merged.
        update_method: of the pulses, see :class:`rapa_lib.analog.UpdateParameters`.
        imperfections: pairs of a name in
            :data:`rapa_lib.experiments.analog_training.imperfections.IMPERFECTIONS` and a value;
            each is one more training of every tiling by ``imperfect_methods``.
        imperfect_methods: these.
        noise_levels: output noises at which digital and hardware-aware networks, programmed onto
            tiles, are read without training anew.
        draws: forward passes of each test error.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    name: ClassVar[str] = "analog_training"
    resume_files: ClassVar[tuple[str, ...]] = ("resume.json", "training.pt")

    recipe: Recipe = field(
        default_factory=lambda: Recipe.of(
            tile_init="identical", epochs=5, batch_size=32, tile_lr_power=0.5
        )
    )
    tilings: Sequence[str] = several(("none", "random"), _tiling, of="tilings")
    methods: Sequence[str] = several(METHODS[:3], _method, of="methods")
    preset: str = choice("rpu_baseline", PRESETS)
    analog_rate: float = real(0.3, low=0, open_low=True)
    update_method: str = choice("exact", PULSE_METHODS)
    imperfections: Sequence[tuple[str, float]] = several(
        (), check_imperfection, of="pairs of a name and a value", empty=True
    )
    imperfect_methods: Sequence[str] = several(("analog",), _method, of="methods", empty=True)
    noise_levels: Sequence[float] = several(
        (0.0, 0.06, 0.12, 0.24), partial(check_real, low=0), of="numbers", empty=True
    )
    draws: int = integer(3, low=1)
    plain_sgd: bool = flag(False)
    digital_rate: float = real(1.0, low=0, open_low=True)
    hardware_aware_rate: float = real(1.0, low=0, open_low=True)
    tiki_taka_rate: float = real(1.0, low=0, open_low=True)
    compound: str = choice("BufferedTransferCompound", COMPOUNDS)
    n_reads_per_transfer: int = integer(1, low=1)
    weight_scaling_omega: float = real(0.0, low=0)
    max_array_size: int = integer(0, low=0)
    drift_times: Sequence[float] = several((), partial(check_real, low=0), of="seconds", empty=True)

    def _check(self) -> None:
        if (precision := self.recipe.training.precision) != "float32":
            raise ValueError(f"precision: got {precision!r}, allowed on analog tiles: float32")
        for tiling in self.tilings:
            self.recipe_of(tiling)
        if "tiki_taka" in (*self.methods, *self.imperfect_methods):
            self._in_pairs(self.tiles())
        for name, value in (*self.imperfections, *(("out_noise", v) for v in self.noise_levels)):
            self.tiles(name, value)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """See :meth:`Experiment.names`; there are ``tilings`` instead of a tiling."""
        return tuple(name for name in super().names() if name != "tiling")

    def settings(self) -> dict[str, Any]:
        """See :meth:`Experiment.settings`; there are ``tilings`` instead of a tiling."""
        settings = super().settings()
        same = [name for name, value in _LATER.items() if settings[name] == value]
        return {name: v for name, v in settings.items() if name not in ("tiling", *same)}

    def recipe_of(self, tiling: str) -> Recipe:
        """The recipe of one tiling's network."""
        return self.recipe.but(tiling=tiling)

    def tiles(self, imperfection: str = BASELINE, value: float | None = None) -> TileConfig:
        """The tiles' configuration: the baseline, but for one imperfection."""
        config = PRESETS[self.preset]()
        config = replace(config, update=replace(config.update, method=self.update_method))
        if self.weight_scaling_omega or self.max_array_size:
            arrays = AnalogArrays(max_size=self.max_array_size) if self.max_array_size else None
            config = replace(
                config, mapping=MappingParameters(self.weight_scaling_omega, arrays=arrays)
            )
        if imperfection == BASELINE or value is None:
            return config
        return IMPERFECTIONS[imperfection](config, value)

    def _in_pairs(self, config: TileConfig) -> TileConfig:
        """Tiles whose devices are those of a compound."""
        device = config.device
        if not isinstance(device, PulsedDevice):
            raise ValueError(
                f"methods: got 'tiki_taka', allowed with single pulsed devices, not "
                f"with those of preset {self.preset!r}"
            )
        kind = COMPOUNDS[self.compound]
        if kind is MixedPrecisionCompound:
            return replace(config, device=MixedPrecisionCompound(device))
        how = {"units_in_mbatch": True, "n_reads_per_transfer": self.n_reads_per_transfer}
        return replace(config, device=kind(device, device, **how))

    def _training(self, method: str) -> TrainConfig:
        """How a method trains."""
        config = self.recipe.training
        rate = getattr(self, f"{method}_rate") * config.learning_rate
        config = replace(config, learning_rate=rate)
        return replace(config, momentum=0.0, weight_decay=0.0) if self.plain_sgd else config

    def check(self, subject: Dataset) -> None:
        """Raise now what a training on this data set would raise before its first step."""
        for tiling in self.tilings:
            self.recipe_of(tiling).check(subject)

    def cells(self) -> list[Cell]:
        """Every training, in order."""
        plain_ones = [Cell(t, m) for t in self.tilings for m in self.methods]
        changed = [
            Cell(tiling, method, name, value)
            for name, value in self.imperfections
            for tiling in self.tilings
            for method in self.imperfect_methods
        ]
        return plain_ones + changed

    def _measure(self, subject: Dataset, folder: Path | None, progress: bool) -> Record:
        """Train and test everything; beside the record is what is done, and a checkpoint."""
        resume, checkpoint = (folder and folder / name for name in self.resume_files)
        identity = {"settings": self.settings(), "data": subject.fingerprint}
        kept = Progress(resume, identity)
        rows: list[Row] = []
        inference: list[Row] = []
        drifting: list[Row] = []
        for cell in self.cells():
            key = "-".join(map(str, cell))
            if key not in kept.done:
                done = self._train(cell, subject, checkpoint, progress)
                if checkpoint is not None:  # first: the next training would take it for its own
                    checkpoint.unlink(missing_ok=True)
                kept.add(key, done)
            row, levels, *later = kept.done[key]
            rows.append(row)
            inference += levels
            drifting += later[0] if later else []
        tiles = self.tiles()
        return {
            "dataset": subject.name,
            "epochs": self.recipe.training.epochs,
            "seed": self.recipe.seed,
            "measurement": self.settings(),
            "tiles": plain(tiles.to_dict()),
            **{f"baseline_{name}": v for name, v in plain(baseline_values(tiles)).items()},
            "rows": rows,
            "inference": inference,
            **({"drift": drifting} if self.drift_times else {}),
            **provenance(choose_device(self.recipe.device)),
            "data_fingerprint": subject.fingerprint,
        }

    def _train(
        self, cell: Cell, data: Dataset, checkpoint: Path | None, progress: bool
    ) -> tuple[Row, list[Row], list[Row]]:
        """The row of one training, and those of its network read with growing noise and later."""
        recipe, tiles = self.recipe_of(cell.tiling), self.tiles(cell.imperfection, cell.value)
        recipe.use_threads()
        network: nn.Module = recipe.build(data)
        clipped = 0
        if cell.method == "tiki_taka":
            tiles = self._in_pairs(tiles)
        if cell.method != "digital":
            placed = tiles.hardware_aware() if cell.method == "hardware_aware" else tiles
            network, clipped = self._on_tiles(network, placed)
        labels = _labels(cell, network)
        began = time.perf_counter()
        config = self._training(cell.method)
        try:
            training = train(network, data, config, checkpoint=checkpoint, progress=progress)
        except DivergedError:
            lost = {"test_error": None, "train_error": None, "clipped": clipped, "diverged": True}
            return labels | lost | {"seconds": round(time.perf_counter() - began, 2)}, [], []
        seconds = time.perf_counter() - began
        tested = network
        if cell.method == "hardware_aware":
            tested, clipped = self._on_tiles(network, tiles)
        row = labels | {
            "test_error": self._test_error(tested, data, training.scaling),
            "train_error": training.history[-1]["train_error"],
            "clipped": clipped,
            "diverged": False,
            "seconds": round(seconds, 2),
        }
        if cell.method not in METHODS[:2] or cell.imperfection != BASELINE:
            return row, [], []
        read = self._read(network, labels, data, training)
        return row, read, self._let_drift(network, labels, data, training)

    def _let_drift(
        self, network: nn.Module, labels: Row, data: Dataset, training: Training
    ) -> list[Row]:
        """The test errors of a trained network on phase-change memory, at later times."""
        if not self.drift_times or training.scaling is None:
            return []
        own = {name: labels[name] for name in ("tiling", "n_tiles", "method")}
        found = drift_rows(
            network, data, training.scaling, self.tiles(), self.drift_times, self.draws,
            self.recipe.seed,
        )  # fmt: skip
        return [own | row for row in found]

    def _read(
        self, network: nn.Module, labels: Row, data: Dataset, training: Training
    ) -> list[Row]:
        """The test errors of a trained network on tiles with growing noise."""
        rows = []
        for level in self.noise_levels:
            read, clipped = self._on_tiles(network, self.tiles("out_noise", level))
            error = self._test_error(read, data, training.scaling)
            own = {name: labels[name] for name in ("tiling", "n_tiles", "method")}
            rows.append(own | {"out_noise": level, "test_error": error, "clipped": clipped})
        return rows

    def _on_tiles(self, network: nn.Module, config: TileConfig) -> tuple[nn.Module, int]:
        """A network on tiles, and how many of its weights their devices could not hold."""
        with seeded(self.recipe.seed, Purpose.ANALOG_DEVICES):
            seed = int(torch.randint(2**31, ()))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*outside the bounds of their devices")
            placed = convert_to_analog(network, config, seed=seed)
        before = [layer.weight for layer in _with_matrices(network)]
        after = [layer.weight for layer in _with_matrices(placed)]
        changed = [
            int((~torch.isclose(b.detach().reshape(-1), a.detach().reshape(-1))).sum())
            if config.mapping.weight_scaling_omega
            else int((b.detach().reshape(-1) != a.detach().reshape(-1)).sum())
            for b, a in zip(before, after, strict=True)
        ]
        return placed, sum(changed)

    def _test_error(self, network: nn.Module, data: Dataset, scaling: InputScaling | None) -> float:
        assert scaling is not None  # a training that ended has one
        device = next(network.parameters()).device
        images, labels = data.test_images.to(device), data.test_labels.to(device)
        with seeded(self.recipe.seed, Purpose.ANALOG_EVALUATION):
            errors = [
                error_percent(predict(network, images, scaling), labels) for _ in range(self.draws)
            ]
        return sum(errors) / len(errors)

    @classmethod
    def collect(cls, records: Sequence[Record]) -> Collected:
        """See :meth:`Experiment.collect`."""
        return collect(records)


def _labels(cell: Cell, network: Any) -> Row:
    return {
        "tiling": cell.tiling,
        "n_tiles": "-".join(map(str, network.n_tiles)),
        "method": cell.method,
        "imperfection": cell.imperfection,
        "value": cell.value,
        "n_weights": sum(layer.weight.numel() for layer in _with_matrices(network)),
    }


def _with_matrices(network: nn.Module) -> list[Any]:
    """The layers that :func:`convert_to_analog` converts, or has converted."""
    kinds = (nn.Conv2d, nn.Linear, RapaConv2d, AnalogLinear)
    return [layer for layer in network.modules() if isinstance(layer, kinds)]
