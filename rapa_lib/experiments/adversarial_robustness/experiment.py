"""The robustness experiment: settings, the attacks they ask for, and the record of what is left."""

import hashlib
import itertools
import json
import math
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rapa_lib._checks import check_choice, integer, several
from rapa_lib._seeds import Purpose, mix_seeds, seeded
from rapa_lib.experiments._progress import Progress
from rapa_lib.experiments.adversarial_robustness.page import collect
from rapa_lib.experiments.protocol import Collected, Experiment, Record
from rapa_lib.experiments.records import provenance
from rapa_lib.experiments.trained import Trained, load_network
from rapa_lib.instruments.statistics import share_interval
from rapa_lib.robustness import (
    LEVELS,
    Attack,
    ImageModel,
    Outcome,
    SuiteSettings,
    Target,
    as_images,
    attack_suite,
    draws_curve,
    layer_noise,
    masking_alarms,
    mean_correct,
    run_attack,
    run_cascade,
    still_falling,
    vanishing_gradients,
)
from rapa_lib.training import InputScaling
from rapa_lib.training.evaluation import redraws

SHOWN_IMAGES = 6

# Merging needs statistics of the training images: so many of them.
_TRAIN_IMAGES = 5000

# What a copy may have otherwise than the network under attack.
_COPYS_OWN = ("seed", "device", "threads", "data_root")


def _level(name: str, value: Any) -> str:
    return check_choice(name, value, LEVELS)


def _path(name: str, value: Any) -> str:
    if not isinstance(value, str | Path):
        raise TypeError(f"{name}: got {value!r}, expected a path")
    return str(value)


@dataclass(frozen=True)
class Attacked:
    """A network under attack, and the images that it is attacked on.

    Args:
        target: the network, and what an attacker may use besides.
        raw: test images (N, C, H, W), uint8.
        images: the same in [0, 1].
        labels: (N,), the right answers.
        clean: (N,) share of draws in which each image is right as it is.
        classes: the names of the labels.
    """

    target: Target
    raw: Tensor
    images: Tensor
    labels: Tensor
    clean: Tensor
    classes: Sequence[str]


@dataclass(frozen=True)
class AdversarialRobustness(Experiment[Trained]):
    """How one trained network is attacked; checked when it is made.

    Args:
        suite: budgets, steps, draws; its ``linf`` must hold its ``focus``.
        levels: which of :data:`rapa_lib.robustness.LEVELS`.
        images: test images, a balanced choice.
        judge_draws: fresh draws that judge each perturbed image.
        copies: files of networks that differ in their seeds alone, to transfer attacks from.
        seed: of the choice of images and of everything that is drawn.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    name: ClassVar[str] = "adversarial_robustness"
    resume_files: ClassVar[tuple[str, ...]] = ("resume.json",)

    suite: SuiteSettings = field(
        default_factory=lambda: SuiteSettings(draws_curve=(1, 4, 16, 64), query_images=50)
    )
    levels: Sequence[str] = several(
        ("published", "adaptive"), _level, of="levels", distinct=True
    )  # fmt: skip
    images: int = integer(100, low=1)
    judge_draws: int = integer(10, low=1)
    copies: Sequence[str] = several((), _path, of="paths", empty=True)
    seed: int = integer(0, low=0)

    def _check(self) -> None:
        if self.suite.focus not in self.suite.linf:
            raise ValueError(
                f"focus: got {self.suite.focus:g}, expected one of linf, {self.suite.linf}"
            )
        self.attacks()

    def settings(self) -> dict[str, Any]:
        """See :meth:`Experiment.settings`; copies are files of one machine and are left out."""
        return {name: value for name, value in super().settings().items() if name != "copies"}

    def attacks(self, *, redrawn: bool = True) -> list[Attack]:
        """The attacks of all levels, in the order in which they are run.

        Args:
            redrawn: whether the network draws; numbers of draws matter only then.
        """
        curve = tuple(m for m in self.suite.draws_curve if m != self.suite.draws)
        suite = replace(self.suite, draws_curve=curve) if redrawn else self.suite.undrawn()
        return [
            attack
            for level in LEVELS
            if level in self.levels
            for attack in attack_suite(level, suite, copies=bool(self.copies))
        ]

    def check(self, subject: Trained) -> None:
        """Raise now what attacking this network would raise; copies are looked at by then."""
        data = subject.data
        if self.images > len(data.test_images):
            raise ValueError(
                f"images: got {self.images}, but {data.name} has {len(data.test_images)} test "
                "images"
            )
        if "standard" in self.levels and len(data.classes) < 3:
            raise ValueError(
                f"levels: got 'standard', whose difference of logits ratio needs 3 classes, but "
                f"{data.name} has {len(data.classes)}"
            )

    def _measure(self, subject: Trained, folder: Path | None, progress: bool) -> Record:
        """Attack with everything; each attack draws from its own seed and is kept when it ended."""
        attacked = self.attacked(subject)
        identity = {
            "settings": self.settings(),
            "network": _fingerprint(subject.network),
            "copies": [_fingerprint(network) for network, _ in attacked.target.copies],
        }
        kept = Progress(None if folder is None else folder / "resume.json", identity)
        rows, examples = self._attack(attacked, kept, progress)
        with seeded(self.seed, Purpose.LAYER_NOISE):
            noise = layer_noise(subject.network, subject.scaling(attacked.raw))
            flat = vanishing_gradients(attacked.target.judge(), attacked.images, attacked.labels)
        climbs = {"adaptive", "standard"} & set(self.levels)
        alarms = masking_alarms(rows, flat if climbs else None)
        return {
            **subject.labels(),
            "measurement": self.settings(),
            "rows": rows,
            "alarms": [asdict(alarm) for alarm in alarms],
            "noise": noise,
            "examples": examples,
            **provenance(subject.device),
            "data_fingerprint": subject.data.fingerprint,
            "config": dict(subject.parameters),
        }

    def attacked(self, subject: Trained) -> Attacked:
        """Choose the images, load the copies, and see how the network does without attack."""
        network, data, device = subject.network, subject.data, subject.device
        chosen = data.subset(None, self.images, seed=self.seed)
        raw, labels = chosen.test_images.to(device), chosen.test_labels.to(device)
        images = as_images(raw)
        with seeded(self.seed, Purpose.MERGE_IMAGES):
            some = torch.randperm(len(data.train_images))[:_TRAIN_IMAGES]
        copies = [load_copy(path, subject) for path in self.copies]
        train_images = data.train_images[some].to(device)
        target = Target(network.eval(), subject.scaling, train_images, copies)
        with seeded(self.seed, Purpose.CLEAN_ACCURACY):
            clean = mean_correct(target.judge(), images, labels, self.judge_draws)
        return Attacked(target, raw, images, labels, clean, chosen.classes)

    def _attack(
        self, attacked: Attacked, kept: Progress, progress: bool
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Run every attack at every budget; return the rows and the examples."""
        rows: list[dict[str, Any]] = []
        examples: dict[str, Any] = {}
        for attacks, epsilon in groups(self.attacks(redrawn=redraws(attacked.target.network))):
            if attacks[0].purpose == "draws" and not goes_on(rows):
                continue
            key = json.dumps([*map(asdict, attacks), epsilon])
            if key not in kept.done:
                seed = mix_seeds(self.seed, Purpose.ATTACK_SUITE, zlib.crc32(key.encode()))
                kept.add(key, self._attack_once(attacks, epsilon, attacked, seed, progress))
            found, shown = kept.done[key]
            rows += found
            examples = shown or examples
        return rows, examples

    def _attack_once(
        self,
        attacks: tuple[Attack, ...],
        epsilon: float | None,
        attacked: Attacked,
        seed: int,
        progress: bool,
    ) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """The rows of one attack or cascade at one budget, and the examples if they are of it."""
        began = time.perf_counter()
        n_images = min(attacks[0].images or self.images, len(attacked.images))
        images, labels = attacked.images[:n_images], attacked.labels[:n_images]
        how: dict[str, Any] = {
            "judge_draws": self.judge_draws, "progress": progress, "seed": seed,
        }  # fmt: skip
        if epsilon is not None and is_cascade(attacks[0]):
            outcomes = run_cascade(
                attacks, epsilon, attacked.target, images, labels, **how,
                choice_draws=max(self.judge_draws, self.suite.apgd_draws),
            )  # fmt: skip
        else:
            (attack,) = attacks
            outcomes = [run_attack(attack, epsilon, attacked.target, images, labels, **how)]
        seconds = round((time.perf_counter() - began) / len(attacks), 2)
        rows = [
            self._row(attack, epsilon, outcome, attacked.clean[:n_images]) | {"seconds": seconds}
            for attack, outcome in zip(attacks, outcomes, strict=True)
        ]
        shown = self._is_shown(attacks[-1], epsilon)
        return rows, self._examples(attacked, outcomes[-1]) if shown else None

    def _is_shown(self, attack: Attack, epsilon: float | None) -> bool:
        name = "Square" if "standard" in self.levels else "PGD"
        wanted = (name, "linf", "suite")
        is_it = (attack.name, attack.norm, attack.purpose) == wanted
        return is_it and attack.level != "gradient_free" and epsilon == self.suite.focus

    def _row(
        self, attack: Attack, epsilon: float | None, outcome: Outcome, clean: Tensor
    ) -> dict[str, Any]:
        low, high = share_interval(outcome.correct.tolist())
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
            "held": _short(outcome.held),
            "clean": _short(clean),
            "norms": None if epsilon is not None else _short(outcome.norms),
        }

    @torch.no_grad()
    def _examples(self, attacked: Attacked, outcome: Outcome) -> dict[str, Any]:
        """The first images, clean and perturbed, and what most draws answer to them."""
        target, names = attacked.target, attacked.classes
        judge = ImageModel(target.network, target.scaling, "vote", draws=self.judge_draws)
        pictures = {"clean": attacked.images, "perturbed": outcome.images}
        shown: dict[str, Any] = {
            "labels": [names[i] for i in attacked.labels[:SHOWN_IMAGES].tolist()],
            "withstood": _short(outcome.correct[:SHOWN_IMAGES]),
        }
        with seeded(self.seed, Purpose.SHOWN_IMAGES):
            for kind, images in pictures.items():
                images = images[:SHOWN_IMAGES]
                shown[f"{kind}_answers"] = [names[i] for i in judge(images).argmax(1).tolist()]
                shown[kind] = (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).tolist()
        return shown

    @classmethod
    def collect(cls, records: Sequence[Record]) -> Collected:
        """See :meth:`Experiment.collect`."""
        return collect(records)


def is_cascade(attack: Attack) -> bool:
    """Whether an attack is run on what others of its kind left."""
    return attack.level == "standard" and attack.purpose in ("suite", "frozen")


def groups(attacks: Sequence[Attack]) -> Iterator[tuple[tuple[Attack, ...], float | None]]:
    """What is run together, at each budget: an attack alone, or the attacks of a cascade."""

    def together(place: int) -> tuple[Any, ...]:
        one = attacks[place]
        return (one.norm, one.purpose) if is_cascade(one) else (place,)

    for _, places in itertools.groupby(range(len(attacks)), together):
        these = tuple(attacks[place] for place in places)
        for epsilon in these[0].epsilons or (None,):
            yield these, epsilon


def goes_on(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether another number of draws can still change something: not once two agreed."""
    curve = sorted(draws_curve(rows), key=lambda row: row["draws"])
    return len(curve) < 3 or still_falling(*curve[-2:])


def load_copy(path: str | Path, trained: Trained) -> tuple[nn.Module, InputScaling]:
    """Load a network that differs from a trained one in its seed alone.

    Raises:
        FileNotFoundError, ValueError: if there is none, it is damaged, or differs in more.
    """
    network, scaling, recipe = load_network(path, str(trained.device))
    mine, its = trained.recipe.flat(), recipe.flat()
    other = [k for k in mine | its if mine.get(k) != its.get(k) and k not in _COPYS_OWN]
    if other:
        differs = ", ".join(f"{k} {its.get(k)!r} instead of {mine.get(k)!r}" for k in other)
        raise ValueError(f"copies: {path} is no copy of the network under attack: {differs}")
    if recipe.seed == trained.recipe.seed:
        raise ValueError(f"copies: {path} was trained from the same seed, {recipe.seed}")
    return network, scaling


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


def _short(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
