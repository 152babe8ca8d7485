"""The analog experiment: three ways of training for analog tiles, one imperfection at a time."""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from rapa_lib._checks import check_choice, check_int, check_real, check_sequence
from rapa_lib._seeds import Purpose, seeded
from rapa_lib.analog import (
    PRESETS,
    AnalogLinear,
    IdealDevice,
    TileConfig,
    convert_to_analog,
    resolution,
)
from rapa_lib.analog._config import PULSE_METHODS
from rapa_lib.data.datasets import Dataset
from rapa_lib.experiments._progress import Progress
from rapa_lib.experiments.accuracy.experiment import AccuracyRun, choose_device
from rapa_lib.experiments.records import provenance
from rapa_lib.layers.conv import RapaConv2d
from rapa_lib.training import DivergedError, InputScaling, error_percent, predict, train

METHODS = ("digital", "hardware_aware", "analog")
BASELINE = "baseline"

# An ADC has two bits more than its DAC, as in the baseline (7 and 9).
_MORE_BITS = 2


def _periphery(config: TileConfig, **changes: float) -> TileConfig:
    return replace(
        config,
        forward=replace(config.forward, **changes),
        backward=replace(config.backward, **changes),
    )


def _device(config: TileConfig, **changes: float) -> TileConfig:
    if isinstance(config.device, IdealDevice):
        raise ValueError(f"imperfections: preset has ideal devices, without {', '.join(changes)}")
    return replace(config, device=replace(config.device, **changes))


def baseline_values(config: TileConfig) -> dict[str, float]:
    """The value of each of :data:`IMPERFECTIONS` that a configuration has already."""
    step = config.forward.inp_res
    values = {
        "out_noise": config.forward.out_noise,
        "bits": math.log2(1 / step + 2) if step else math.inf,
    }
    if not isinstance(config.device, IdealDevice):
        values |= {
            "dw_min": config.device.dw_min,
            "dtod": config.device.dw_min_dtod,
            "asymmetry": config.device.up_down_dtod,
        }
    return values


IMPERFECTIONS = {
    "out_noise": lambda config, value: _periphery(config, out_noise=value),
    "bits": lambda config, value: _periphery(
        config, inp_res=resolution(int(value)), out_res=resolution(int(value) + _MORE_BITS)
    ),
    "dw_min": lambda config, value: _device(config, dw_min=value),
    "dtod": lambda config, value: _device(
        config, dw_min_dtod=value, w_max_dtod=value, w_min_dtod=value
    ),
    "asymmetry": lambda config, value: _device(config, up_down_dtod=value),
}
"""What can be made worse, or better, with everything else at the baseline.

``out_noise``: of the products, in units of weight × scaled input. ``bits``: of the DAC; the ADC has
two more. ``dw_min``: the devices' mean step. ``dtod``: relative spread of steps and bounds over
devices. ``asymmetry``: spread over devices of the difference of steps up and down.
"""


@dataclass(frozen=True)
class AnalogTraining:
    """Which networks are trained, and how; checked when it is made.

    Args:
        dataset, data_root, image_size, n_train, n_test, n_tiles, tile_init, channels,
            kernel_sizes, pooling, activation, normalisation, epochs, batch_size, learning_rate,
            momentum, weight_decay, tile_lr_power, mirror, max_shift, device, threads: see
            :class:`rapa_lib.AccuracyRun`.
        tilings: networks to compare, names as there.
        methods: ``"digital"``: ordinary training, and ordinary products in the test.
            ``"hardware_aware"``: noisy and quantized products forward, exact errors and updates;
            then programmed onto devices. ``"analog"``: all products and all updates on tiles.
        preset: the baseline, a name in :data:`rapa_lib.analog.PRESETS`.
        analog_rate: factor on the learning rate of analog training, which is ``learning_rate`` for
            what is digital, and that of a velocity's sum, ÷ (1 − momentum), for the pulses.
        update_method: of the pulses, see :class:`rapa_lib.UpdateParameters`.
        imperfections: pairs of a name in :data:`IMPERFECTIONS` and a value; each is one more
            training of every tiling by ``imperfect_methods``.
        imperfect_methods: these.
        noise_levels: output noises at which digital and hardware-aware networks, programmed onto
            tiles, are read without training anew.
        draws: forward passes of each test error.
        seed: of everything that is drawn.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    dataset: str = "mnist5k"
    data_root: str | None = None
    image_size: int | None = None
    n_train: int | None = None
    n_test: int | None = None
    tilings: Sequence[str] = ("none", "random")
    n_tiles: Sequence[int] = (16, 4, 1)
    tile_init: str = "identical"
    channels: Sequence[int] = (32, 32, 64)
    kernel_sizes: Sequence[int] = (5, 5, 5)
    pooling: str = "max"
    activation: str = "relu"
    normalisation: str = "batch"
    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    tile_lr_power: float = 0.5
    mirror: bool = False
    max_shift: int = 0
    methods: Sequence[str] = METHODS
    preset: str = "rpu_baseline"
    analog_rate: float = 0.3
    update_method: str = "exact"
    imperfections: Sequence[Sequence] = ()
    imperfect_methods: Sequence[str] = ("analog",)
    noise_levels: Sequence[float] = (0.0, 0.06, 0.12, 0.24)
    draws: int = 3
    seed: int = 0
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("tilings", "methods", "imperfections", "imperfect_methods", "noise_levels"):
            check_sequence(name, getattr(self, name))
        for name, allowed in (("methods", METHODS), ("imperfect_methods", METHODS)):
            for value in getattr(self, name):
                check_choice(name, value, allowed)
        check_choice("preset", self.preset, PRESETS)
        check_choice("update_method", self.update_method, PULSE_METHODS)
        check_int("draws", self.draws, low=1)
        check_real("analog_rate", self.analog_rate, low=0, open_low=True)
        plain = {
            "noise_levels": tuple(
                check_real("noise_levels", level, low=0) for level in self.noise_levels
            ),
            "imperfections": tuple(map(_checked_imperfection, self.imperfections)),
            "tilings": tuple(self.tilings),
            "methods": tuple(self.methods),
            "imperfect_methods": tuple(self.imperfect_methods),
        }
        if not self.tilings or not self.methods:
            raise ValueError("tilings, methods: got none, expected at least one of each")
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        for tiling in self.tilings:
            self.network_run(tiling)
        for name, value in (*self.imperfections, *(("out_noise", v) for v in self.noise_levels)):
            self.tiles(name, value)

    def network_run(self, tiling: str) -> AccuracyRun:
        """The parameters of one tiling's network and training."""
        names = set(AccuracyRun.__dataclass_fields__) & set(asdict(self))
        return AccuracyRun(
            tiling=tiling, similarity_every=0, **{name: getattr(self, name) for name in names}
        )

    def tiles(self, imperfection: str = BASELINE, value: float | None = None) -> TileConfig:
        """The tiles' configuration: the baseline, but for one imperfection."""
        config = PRESETS[self.preset]()
        config = replace(config, update=replace(config.update, method=self.update_method))
        return config if imperfection == BASELINE else IMPERFECTIONS[imperfection](config, value)

    def load_data(self) -> Dataset:
        """Load the data set, or the part of it that is used."""
        return self.network_run(self.tilings[0]).load_data()

    def check(self, data: Dataset) -> None:
        """Raise now what a training on this data set would raise before its first step."""
        for tiling in self.tilings:
            self.network_run(tiling).check(data)

    def cells(self) -> list[tuple[str, str, str, float | None]]:
        """Every training: (tiling, method, imperfection, value)."""
        plain = [(t, m, BASELINE, None) for t in self.tilings for m in self.methods]
        changed = [
            (t, m, name, value)
            for name, value in self.imperfections
            for t in self.tilings
            for m in self.imperfect_methods
        ]
        return plain + changed

    def measure(
        self, data: Dataset, *, folder: str | Path | None = None, progress: bool = True
    ) -> dict[str, Any]:
        """Train and test everything.

        Args:
            data: of :meth:`load_data`.
            folder: where what is done is kept, so that an interrupted measurement goes on there
                and ends with the same bits: ``resume.json``, which is left for the caller to
                remove, and the checkpoint of the training that is under way.
            progress: show bars.

        Returns:
            The record: ``rows`` (one a training, see :func:`analog_table`), ``inference`` (one a
            network and noise level), ``measurement`` (these settings), provenance.
        """
        folder = None if folder is None else Path(folder)
        kept = Progress(
            None if folder is None else folder / "resume.json",
            {"settings": asdict(self), "data": data.fingerprint},
        )
        rows, inference = [], []
        for tiling, method, imperfection, value in self.cells():
            key = f"{tiling}-{method}-{imperfection}-{value}"
            if key not in kept.done:
                checkpoint = None if folder is None else folder / "training.pt"
                done = self._train(tiling, method, imperfection, value, data, checkpoint, progress)
                kept.add(key, done)
                if checkpoint is not None:
                    checkpoint.unlink(missing_ok=True)
            row, levels = kept.done[key]
            rows.append(row)
            inference += levels
        return {
            "dataset": data.name,
            "epochs": self.epochs,
            "seed": self.seed,
            "measurement": asdict(self),
            "tiles": _finite(self.tiles().to_dict()),
            **{f"baseline_{k}": v for k, v in _finite(baseline_values(self.tiles())).items()},
            "rows": rows,
            "inference": inference,
            **provenance(choose_device(self.device)),
            "data_fingerprint": data.fingerprint,
        }

    def _train(
        self, tiling, method, imperfection, value, data: Dataset, checkpoint, progress: bool
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        run, tiles = self.network_run(tiling), self.tiles(imperfection, value)
        run.use_threads()
        network = run.build_network(data)
        clipped = 0
        if method != "digital":
            placed = tiles.hardware_aware() if method == "hardware_aware" else tiles
            network, clipped = self._on_tiles(network, placed)
        began = time.perf_counter()
        config = run.training_config()
        if method == "analog":
            config = replace(config, learning_rate=self.analog_rate * config.learning_rate)
        labels = {
            "tiling": tiling,
            "n_tiles": "-".join(map(str, network.n_tiles)),
            "method": method,
            "imperfection": imperfection,
            "value": value,
            "n_weights": sum(layer.weight.numel() for layer in _with_matrices(network)),
        }
        try:
            training = train(network, data, config, checkpoint=checkpoint, progress=progress)
        except DivergedError:
            lost = {"test_error": None, "train_error": None, "clipped": clipped, "diverged": True}
            return labels | lost | {"seconds": round(time.perf_counter() - began, 2)}, []
        seconds = time.perf_counter() - began
        tested = network
        if method == "hardware_aware":
            tested, clipped = self._on_tiles(network, tiles)
        row = labels | {
            "test_error": self._test_error(tested, data, training.scaling),
            "train_error": training.history[-1]["train_error"],
            "clipped": clipped,
            "diverged": False,
            "seconds": round(seconds, 2),
        }
        levels = []
        if method != "analog" and imperfection == BASELINE:
            for level in self.noise_levels:
                read, clipped = self._on_tiles(network, self.tiles("out_noise", level))
                error = self._test_error(read, data, training.scaling)
                told = {name: labels[name] for name in ("tiling", "n_tiles", "method")}
                levels.append(told | {"out_noise": level, "test_error": error, "clipped": clipped})
        return row, levels

    def _on_tiles(self, network: nn.Module, config: TileConfig) -> tuple[nn.Module, int]:
        """A network on tiles, and how many of its weights their devices could not hold."""
        with seeded(self.seed, Purpose.ANALOG_DEVICES):
            seed = int(torch.randint(2**31, ()))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*outside the bounds of their devices")
            placed = convert_to_analog(network, config, seed=seed)
        before = [layer.weight for layer in _with_matrices(network)]
        after = [layer.weight for layer in _with_matrices(placed)]
        changed = [
            int((b.detach().reshape(-1) != a.detach().reshape(-1)).sum())
            for b, a in zip(before, after, strict=True)
        ]
        return placed, sum(changed)

    def _test_error(self, network: nn.Module, data: Dataset, scaling: InputScaling) -> float:
        device = next(network.parameters()).device
        images, labels = data.test_images.to(device), data.test_labels.to(device)
        with seeded(self.seed, Purpose.ANALOG_EVALUATION):
            errors = [
                error_percent(predict(network, images, scaling), labels) for _ in range(self.draws)
            ]
        return sum(errors) / len(errors)


def analog_table(records: Sequence[dict[str, Any]], part: str = "rows") -> pd.DataFrame:
    """Put the rows of records under one another, each with its record's labels.

    Args:
        records: of :meth:`AnalogTraining.measure`, perhaps with a ``run``.
        part: ``"rows"``: ``tiling``, ``n_tiles``, ``method``, ``imperfection``, ``value``,
            ``test_error`` and ``train_error`` (percent), ``clipped`` (weights that their devices
            could not hold when they were programmed), ``n_weights``, ``diverged`` (then there are
            no errors), ``seconds``.
            ``"inference"``: ``tiling``, ``n_tiles``, ``method``, ``out_noise``, ``test_error``,
            ``clipped``.

    Raises:
        ValueError: if there are none.
    """
    left_out = ("rows", "inference", "measurement", "tiles")
    rows = [
        {name: value for name, value in record.items() if name not in left_out} | row
        for record in records
        for row in record[part]
    ]
    if not rows:
        raise ValueError("records: none to collect")
    return pd.DataFrame(rows)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Values that JSON can hold: what is infinite becomes null."""
    return {
        key: _finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and math.isinf(value)
        else value
        for key, value in values.items()
    }


def _with_matrices(network: nn.Module) -> list[nn.Module]:
    """The layers that :func:`convert_to_analog` converts, or has converted."""
    kinds = (nn.Conv2d, nn.Linear, RapaConv2d, AnalogLinear)
    return [layer for layer in network.modules() if isinstance(layer, kinds)]


def _checked_imperfection(pair: Sequence) -> tuple[str, float]:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"imperfections: got {pair!r}, expected pairs of a name and a value")
    name = check_choice("imperfections", pair[0], IMPERFECTIONS)
    return name, check_real("imperfections", pair[1], low=0)
