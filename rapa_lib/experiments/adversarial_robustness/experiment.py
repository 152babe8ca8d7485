"""The robustness experiment: attacks of every level on one network, judged on fresh draws."""

import hashlib
import json
import math
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from rapa_lib._checks import check_choice, check_int, check_real, check_sequence
from rapa_lib._seeds import Purpose, mix_seeds, seeded
from rapa_lib.data.datasets import Dataset
from rapa_lib.experiments._progress import Progress
from rapa_lib.experiments.accuracy.experiment import load_network
from rapa_lib.experiments.records import provenance
from rapa_lib.experiments.trained import Trained
from rapa_lib.instruments.statistics import share_interval
from rapa_lib.robustness import (
    LEVELS,
    Attack,
    ImageModel,
    Outcome,
    Target,
    as_images,
    attack_suite,
    draws_curve,
    layer_noise,
    masking_alarms,
    mean_correct,
    run_attack,
    still_falling,
    vanishing_gradients,
)
from rapa_lib.training import InputScaling
from rapa_lib.training.evaluation import draws_lots

SHOWN_IMAGES = 6

# Merging needs statistics of the training images: so many of them.
_TRAIN_IMAGES = 5000


_CONFIG_OF_ITS_OWN = ("seed", "device", "threads", "data_root")


@dataclass(frozen=True)
class RobustnessRun:
    """How one trained network is attacked; checked when it is made.

    Args:
        levels: which of :data:`rapa_lib.robustness.LEVELS`.
        images: test images, a balanced choice.
        linf, l2, steps, draws, restarts, focus, draws_curve, query_steps, query_images: see
            :func:`rapa_lib.robustness.attack_suite`; ``linf`` must hold ``focus``.
        judge_draws: fresh draws that judge each perturbed image.
        seed: of the choice of images and of everything that is drawn.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    levels: Sequence[str] = ("published", "adaptive")
    images: int = 100
    linf: Sequence[float] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    l2: Sequence[float] = (0.25, 0.5, 1.0)
    steps: int = 20
    draws: int = 8
    restarts: int = 2
    focus: float = 2 / 255
    draws_curve: Sequence[int] = (1, 4, 16, 64)
    query_steps: int = 10
    query_images: int = 50
    judge_draws: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("levels", "linf", "l2", "draws_curve"):
            object.__setattr__(self, name, tuple(check_sequence(name, getattr(self, name))))
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels: got {self.levels}, expected different ones of {LEVELS}")
        for level in self.levels:
            check_choice("levels", level, LEVELS)
        for name in ("images", "query_images", "judge_draws"):
            object.__setattr__(self, name, check_int(name, getattr(self, name), low=1))
        object.__setattr__(self, "seed", check_int("seed", self.seed, low=0))
        focus = check_real("focus", self.focus, low=0, open_low=True)
        if focus not in self.linf:
            raise ValueError(f"focus: got {focus:g}, expected one of linf, {self.linf}")
        self.attacks(copies=True)

    def attacks(self, *, lots: bool = True, copies: bool = False) -> list[Attack]:
        """The attacks of all levels, in the order in which they are run.

        Args:
            lots: whether the network draws; numbers of draws matter only then.
            copies: whether there are copies to transfer from.
        """
        further = [m for m in self.draws_curve if m != self.draws] if lots else []
        return [
            attack
            for level in LEVELS
            if level in self.levels
            for attack in attack_suite(
                level,
                linf=self.linf,
                l2=self.l2,
                steps=self.steps,
                draws=self.draws if lots else 1,
                restarts=self.restarts,
                focus=self.focus,
                draws_curve=further,
                copies=copies,
                query_steps=self.query_steps,
                query_images=self.query_images,
            )
        ]

    def check(self, network: nn.Module, data: Dataset) -> None:
        """Raise now what attacking this network would raise."""
        if self.images > len(data.test_images):
            raise ValueError(
                f"images: got {self.images}, but {data.name} has {len(data.test_images)} test "
                "images"
            )

    def measure(
        self,
        trained: Trained,
        copies: Sequence[str | Path] = (),
        *,
        resume: str | Path | None = None,
        progress: bool = True,
    ) -> dict[str, Any]:
        """Attack a network with everything, and make the record of it.

        Each attack draws from its own seed, and is written to ``resume`` when it has ended: what
        was interrupted goes on there and ends with the same bits.

        Args:
            trained: the network.
            copies: files of networks that differ from it in their seeds alone, to transfer from.
            resume: a file that is made, gone on from, and left for the caller to remove.
            progress: show bars.

        Returns:
            The record: labels, ``measurement`` (these settings), ``rows`` (one an attack and
            budget, ``correct`` and ``norms`` for each image), ``alarms``, ``noise`` of each layer
            that draws, ``examples``, provenance.

        Raises:
            ValueError: for copies of another kind, or a ``resume`` file of another measurement.
        """
        self.check(trained.network, trained.data)
        network, data = (
            trained.network.eval(),
            trained.data.subset(None, self.images, seed=self.seed),
        )
        device = next(network.parameters()).device
        x, labels = as_images(data.test_images.to(device)), data.test_labels.to(device)
        with seeded(self.seed, Purpose.MERGE_IMAGES):
            some = torch.randperm(len(trained.data.train_images))[:_TRAIN_IMAGES]
        others = [load_copy(path, trained) for path in copies]
        train_images = trained.data.train_images[some].to(device)
        target = Target(network, trained.scaling, train_images, others)
        with seeded(self.seed, Purpose.CLEAN_ACCURACY):
            clean = mean_correct(target.judge(), x, labels, self.judge_draws)
        attacks = self.attacks(lots=draws_lots(network), copies=bool(others))
        kept = Progress(resume, {"settings": asdict(self), "network": _fingerprint(network)})
        rows, examples = [], {}
        for attack in attacks:
            if attack.purpose == "draws" and not self._goes_on(rows):
                continue
            n_images = min(attack.images or len(x), len(x))
            for epsilon in attack.epsilons or (None,):
                key = json.dumps([asdict(attack), epsilon])
                if key not in kept.done:
                    began = time.perf_counter()
                    outcome = run_attack(
                        attack, epsilon, target, x[:n_images], labels[:n_images],
                        judge_draws=self.judge_draws, progress=progress,
                        seed=mix_seeds(self.seed, Purpose.ATTACK_SUITE, zlib.crc32(key.encode())),
                    )  # fmt: skip
                    row = self._row(attack, epsilon, outcome, clean[:n_images])
                    row["seconds"] = round(time.perf_counter() - began, 2)
                    shown = None
                    if self._is_shown(attack, epsilon):
                        with seeded(self.seed, Purpose.SHOWN_IMAGES):
                            shown = _examples(
                                target, x, outcome, labels, data.classes, self.judge_draws
                            )
                    kept.add(key, [row, shown])
                row, shown = kept.done[key]
                rows.append(row)
                examples = shown or examples
        with seeded(self.seed, Purpose.LAYER_NOISE):
            noise = layer_noise(network, trained.scaling(data.test_images.to(device)))
            flat = vanishing_gradients(target.judge(), x, labels)
        alarms = masking_alarms(rows, flat if "adaptive" in self.levels else None)
        return {
            **trained.labels(),
            "measurement": asdict(self),
            "rows": rows,
            "alarms": [asdict(alarm) for alarm in alarms],
            "noise": noise,
            "examples": examples,
            **provenance(device),
            "data_fingerprint": trained.data.fingerprint,
            "config": trained.run.parameters(),
        }

    def _goes_on(self, rows: list[dict[str, Any]]) -> bool:
        """Whether another number of draws can still tell something: not once two agreed."""
        curve = sorted(draws_curve(rows), key=lambda row: row["draws"])
        return len(curve) < 3 or still_falling(*curve[-2:])

    def _is_shown(self, attack: Attack, epsilon: float | None) -> bool:
        wanted = ("PGD", "linf", "suite", "mean")
        is_it = (attack.name, attack.norm, attack.purpose, attack.source) == wanted
        return is_it and epsilon == self.focus

    def _row(
        self, attack: Attack, epsilon: float | None, outcome: Outcome, clean: Tensor
    ) -> dict[str, Any]:
        low, high = share_interval(outcome.correct)
        return {
            "level": attack.level,
            "attack": attack.name,
            "norm": attack.norm,
            "epsilon": epsilon,
            "purpose": attack.purpose,
            "kind": attack.kind,
            "source": attack.source,
            "draws": attack.draws,
            "steps": attack.steps,
            "restarts": attack.restarts,
            "n_images": len(outcome.correct),
            "judge_draws": self.judge_draws,
            "clean_accuracy": float(clean.mean()),
            "robust_accuracy": float(outcome.correct.mean()),
            "low": low,
            "high": high,
            "median_norm": None if epsilon is not None else _median_norm(outcome, clean),
            "claimed": outcome.claimed,
            "failed": outcome.failed,
            "correct": _short(outcome.correct),
            "clean": _short(clean),
            "norms": None if epsilon is not None else _short(outcome.norms),
        }


def load_copy(path: str | Path, trained: Trained) -> tuple[nn.Module, InputScaling]:
    """Load a network that differs from a trained one in its seed alone.

    Raises:
        FileNotFoundError, ValueError: if there is none, it is damaged, or differs in more.
    """
    device = next(trained.network.parameters()).device
    network, scaling, run = load_network(path, str(device))
    mine, its = trained.run.parameters(), run.parameters()
    other = [k for k in mine if mine[k] != its[k] and k not in _CONFIG_OF_ITS_OWN]
    if other:
        told = ", ".join(f"{k} {its[k]!r} instead of {mine[k]!r}" for k in other)
        raise ValueError(f"copies: {path} is no copy of the network under attack: {told}")
    if run.seed == trained.run.seed:
        raise ValueError(f"copies: {path} was trained from the same seed, {run.seed}")
    return network, scaling


def robustness_table(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Put the rows of records under one another, each with its record's labels.

    Args:
        records: of :meth:`RobustnessRun.measure`, perhaps with a ``run``.

    Raises:
        ValueError: if there are none.
    """
    rows = [
        {
            name: value
            for name, value in record.items()
            if name not in ("rows", "alarms", "noise", "examples", "measurement", "config")
        }
        | row
        for record in records
        for row in record["rows"]
    ]
    if not rows:
        raise ValueError("records: none to collect")
    return pd.DataFrame(rows)


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + np.ascontiguousarray(value.cpu().numpy()).tobytes())
    return digest.hexdigest()


def _median_norm(outcome: Outcome, clean: Tensor) -> float | None:
    """Median of the perturbation that misleads most draws: 0 where they are wrong as they are.

    None if it is infinite: fewer than half of the images could be made to mislead.
    """
    norms = torch.where(outcome.correct < 0.5, outcome.norms, torch.inf)
    norms = torch.where(clean < 0.5, 0.0, norms)
    median = float(norms.quantile(0.5, interpolation="lower"))
    return None if math.isinf(median) else median


@torch.no_grad()
def _examples(
    target: Target, x: Tensor, outcome: Outcome, labels: Tensor, names: Sequence[str], draws: int
) -> dict[str, Any]:
    """The first images, clean and perturbed, and what most draws say to them."""
    judge = ImageModel(target.network, target.scaling, "vote", draws=draws)
    pictures = {"clean": x[:SHOWN_IMAGES], "perturbed": outcome.images[:SHOWN_IMAGES]}
    shown: dict[str, Any] = {
        "labels": [names[i] for i in labels[:SHOWN_IMAGES].tolist()],
        "withstood": _short(outcome.correct[:SHOWN_IMAGES]),
    }
    for kind, images in pictures.items():
        shown[f"{kind}_answers"] = [names[i] for i in judge(images).argmax(1).tolist()]
        shown[kind] = (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).tolist()
    return shown


def _short(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
