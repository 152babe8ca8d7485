"""The attacks of each level of honesty: foolbox's, and this package's, which are of its kind."""

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, replace
from functools import partial
from typing import Any

import foolbox

from rapa_lib._checks import (
    Checked,
    check_choice,
    check_int,
    check_real,
    check_sequence,
    checked,
    choice,
    integer,
    real,
    several,
    text,
)
from rapa_lib.robustness._apgd import (
    L2APGDAttack,
    L2TargetedAPGDAttack,
    LinfAPGDAttack,
    LinfTargetedAPGDAttack,
)
from rapa_lib.robustness._square import L2SquareAttack, LinfSquareAttack

LEVELS = ("published", "adaptive", "gradient_free", "standard")
SOURCES = ("fresh", "frozen", "mean", "vote", "merged", "copies")
NORMS = {"linf": "L∞", "l2": "L2"}

# The range of an image bounds every pixel's change.
HIGHEST = {"linf": 1.0, "l2": math.inf}
_OWN = {
    kind.__name__: kind
    for kind in (
        LinfAPGDAttack, L2APGDAttack, LinfTargetedAPGDAttack, L2TargetedAPGDAttack,
        LinfSquareAttack, L2SquareAttack,
    )
}  # fmt: skip

# Where an ε cannot matter any more: no image keeps its content.
UNBOUNDED = {"linf": 0.5, "l2": 20.0}


def budget(name: str, value: Any, high: float = math.inf) -> float:
    """Return a budget ε as a float above 0; a quotient in a string, ``"8/255"``, is one.

    Args:
        name: of the argument.
        value: to check.
        high: the most that is allowed: in L∞ 1, the range of an image.
    """
    if isinstance(value, str):
        quotient = re.fullmatch(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", value.replace(" ", ""))
        if quotient is None or float(quotient[2]) == 0:
            raise ValueError(f"{name}: got {value!r}, allowed: numbers, quotients such as '8/255'")
        value = float(quotient[1]) / float(quotient[2])
    return check_real(name, value, low=0, high=high, open_low=True)


@dataclass(frozen=True)
class Attack(Checked):
    """An attack, and how the study uses it.

    Args:
        level: one of :data:`LEVELS`, see :func:`attack_suite`.
        name: as tables show it.
        kind: name of the class, in ``foolbox.attacks`` or in this package.
        norm: ``"linf"`` or ``"l2"``.
        source: which model is attacked: a view of the network itself (see :class:`ImageModel`), or
            ``"copies"``: networks of the same kind that were trained from other seeds.
        epsilons: budgets, in units of the image's range [0, 1]; none for a minimum-norm attack.
        draws: forward passes of each gradient or vote.
        options: arguments of the class.
        restarts: how often it is run; of each image the strongest result counts.
        purpose: ``"suite"``, or what a run is for besides: ``"draws"`` (another number of draws),
            ``"restarts"``, ``"unbounded"`` (an ε that leaves no content), ``"frozen"`` (attack and
            judge see the same draws).
        images: only so many of the images, for attacks that ask very often; None: all.

    Raises:
        ValueError, TypeError: for what is not allowed, an attack that foolbox lacks included.
    """

    level: str = choice(MISSING, LEVELS)
    name: str = text()
    kind: str = text(of="the name of a class")
    norm: str = choice(MISSING, NORMS)
    source: str = choice(MISSING, SOURCES)
    epsilons: Sequence[float] = several((), budget, of="budgets", empty=True)
    draws: int = integer(1, low=1)
    options: dict[str, Any] = field(default_factory=dict)
    restarts: int = integer(1, low=1)
    purpose: str = "suite"
    images: int | None = integer(None, low=1, optional=True)

    def _check(self) -> None:
        for epsilon in self.epsilons:
            budget("epsilons", epsilon, HIGHEST[self.norm])
        made = self.make()
        if not isinstance(made, foolbox.attacks.base.AttackWithDistance):
            raise ValueError(f"attack: {self.kind} minimises no distance")
        minimises = isinstance(made, foolbox.attacks.base.MinimizationAttack)
        if minimises == bool(self.epsilons):
            wanted = "no epsilons: it looks for the smallest" if minimises else "epsilons"
            raise ValueError(f"epsilons: got {self.epsilons}, but {self.kind} takes {wanted}")

    def make(self) -> foolbox.attacks.base.Attack:
        """Make the attack."""
        kind: Any = _OWN.get(self.kind) or getattr(foolbox.attacks, self.kind, None)
        known = isinstance(kind, type) and issubclass(kind, foolbox.attacks.base.Attack)
        if not known or inspect.isabstract(kind):
            raise ValueError(f"attack: foolbox {foolbox.__version__} has none called {self.kind!r}")
        return kind(**self.options)

    @property
    def steps(self) -> int:
        """Steps of the attack; 1 for those that take a single one."""
        return getattr(self.make(), "steps", 1)


def _budgets(name: str, values: Any) -> tuple[float, ...]:
    """Return budgets ascending, without repetition; the name is that of their norm."""
    found = {
        budget(name, value, HIGHEST[name]) for value in check_sequence(name, values, "budgets")
    }
    if not found:
        raise ValueError(f"{name}: got no budget, expected at least one")
    return tuple(sorted(found))


def _numbers_of_draws(name: str, values: Any) -> tuple[int, ...]:
    """Return numbers of draws ascending, without repetition."""
    counts = {check_int(name, m, low=1) for m in check_sequence(name, values, "integers")}
    return tuple(sorted(counts))


@dataclass(frozen=True)
class SuiteSettings(Checked):
    """How strong the attacks of :func:`attack_suite` are; checked when it is made.

    Args:
        linf, l2: budgets ε in each norm, in units of the image's range [0, 1]; numbers, or
            quotients such as ``"8/255"``.
        steps: of projected gradient descent; minimum-norm attacks take twice as many.
        draws: of each gradient, and of each vote.
        restarts, focus: at the budget ``focus`` (L∞), descent is also run from so many starts.
        draws_curve: further numbers of draws, at the budget ``focus``.
        query_steps: of HopSkipJump; the boundary attack takes a hundred times as many.
        query_images: number of images for the attacks of the level ``"gradient_free"`` that ask
            very often; None: all.
        queries: of Square, calls of the network for each image.
        apgd_steps, apgd_draws, apgd_restarts: of APGD in the level ``"standard"``: gradient steps,
            draws of each gradient, starts; Square takes the same draws and starts.
        targets: classes that targeted APGD goes for.
        give_up: in the level ``"standard"`` an image leaves an attack where its margin would have
            to fall by more than so many times what it fell in the first fifth or so of the steps
            (see :class:`LinfAPGDAttack`); None: never.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    linf: Sequence[float] = checked((1 / 255, 2 / 255, 4 / 255, 8 / 255), _budgets)
    l2: Sequence[float] = checked((0.25, 0.5, 1.0), _budgets)
    steps: int = integer(20, low=1)
    draws: int = integer(8, low=1)
    restarts: int = integer(2, low=1)
    focus: float = checked(2 / 255, partial(budget, high=HIGHEST["linf"]))
    draws_curve: Sequence[int] = checked((), _numbers_of_draws)
    query_steps: int = integer(10, low=1)
    query_images: int | None = integer(None, low=1, optional=True)
    queries: int = integer(5000, low=1)
    apgd_steps: int = integer(100, low=1)
    apgd_draws: int = integer(20, low=1)
    apgd_restarts: int = integer(1, low=1)
    targets: int = integer(3, low=1)
    give_up: float | None = real(0.5, low=0, optional=True)

    def undrawn(self) -> "SuiteSettings":
        """The same for a network that draws nothing: one draw is all."""
        return replace(self, draws_curve=(), draws=1, apgd_draws=1)


def attack_suite(
    level: str, settings: SuiteSettings | None = None, *, copies: bool = False
) -> tuple[Attack, ...]:
    """The attacks of a level, the cheapest first.

    Args:
        level: ``"published"``: single gradients of one draw. ``"adaptive"``: many steps with
            gradients averaged over draws (projected gradient descent, step 2.5 ε / steps: Madry et
            al., ICLR 2018), minimum-norm attacks (DDN: Rony et al., CVPR 2019; FMN: Pintor et al.,
            NeurIPS 2021), transfer from the merged network and from copies. ``"gradient_free"``:
            noise and decision-based attacks (HopSkipJump: Chen et al., S&P 2020; boundary attack:
            Brendel et al., ICLR 2018) against the vote; Square (Andriushchenko et al., ECCV 2020)
            against scores averaged over draws. ``"standard"``: APGD with cross-entropy, with the
            difference of logits ratio and with its targeted form (Croce & Hein, ICML 2020), and
            Square, each averaged over draws: the ensemble of AutoAttack, to be run as a cascade
            (:func:`run_cascade`); then APGD against one fixed draw.
        settings: budgets, steps, draws; None: the default ones.
        copies: also transfer from copies.

    Raises:
        ValueError: for an unknown level.
    """
    check_choice("level", level, LEVELS)
    settings = settings or SuiteSettings()
    if level == "adaptive":
        return _adaptive(settings, copies)
    return {
        "published": _published,
        "gradient_free": _gradient_free,
        "standard": _standard,
    }[level](settings)


def _published(settings: SuiteSettings) -> tuple[Attack, ...]:
    """Single gradients of one draw."""
    attack = partial(Attack, "published", source="fresh")
    return (
        attack("FGSM", "LinfFastGradientAttack", "linf", epsilons=settings.linf),
        attack("FGM", "L2FastGradientAttack", "l2", epsilons=settings.l2),
    )


def _adaptive(settings: SuiteSettings, copies: bool) -> tuple[Attack, ...]:
    """Transfer, descent and minimum-norm attacks; then descent with other budgets and draws."""
    linf, l2, focus = settings.linf, settings.l2, (settings.focus,)
    attack = partial(Attack, "adaptive", draws=settings.draws)
    steps = {"steps": settings.steps, "rel_stepsize": 2.5 / settings.steps}
    twice = {"steps": 2 * settings.steps}
    descent = partial(attack, kind="LinfProjectedGradientDescentAttack", norm="linf", options=steps)
    mean = partial(descent, "PGD", source="mean")
    return (
        *(
            descent(f"from {source}", source=source, epsilons=linf)
            for source in ("merged", *(["copies"] if copies else []))
        ),
        mean(epsilons=linf),
        attack("PGD", "L2ProjectedGradientDescentAttack", "l2", "mean", l2, options=steps),
        # Its ε starts at foolbox's 1 otherwise, and 5 % a step are slow from there. L2FMNAttack is
        # no alternative: foolbox 3.3.4 projects it by the norm of the image, not of the change.
        attack("DDN", "DDNAttack", "l2", "mean", options=twice | {"init_epsilon": l2[0]}),
        attack("FMN", "LInfFMNAttack", "linf", "mean", options=twice),
        mean(epsilons=(UNBOUNDED["linf"],), purpose="unbounded"),
        mean(epsilons=focus, restarts=settings.restarts, purpose="restarts"),
        *(mean(epsilons=focus, draws=m, purpose="draws") for m in settings.draws_curve),
    )


def _gradient_free(settings: SuiteSettings) -> tuple[Attack, ...]:
    """Noise, and attacks that only ask what the vote answers."""
    attack = partial(Attack, "gradient_free", draws=settings.draws)
    asked = partial(attack, norm="l2", source="vote", images=settings.query_images)
    return (
        attack(
            "uniform noise", "LinfRepeatedAdditiveUniformNoiseAttack", "linf", "vote",
            epsilons=settings.linf, options={"repeats": 10},
        ),
        attack(
            "Gaussian noise", "L2RepeatedAdditiveGaussianNoiseAttack", "l2", "vote",
            epsilons=settings.l2, options={"repeats": 10},
        ),
        *(
            attack(
                "Square", f"{prefix}SquareAttack", norm, "fresh", epsilons,
                options={"queries": settings.queries, "draws": settings.draws},
                images=settings.query_images,
            )
            for prefix, norm, epsilons in _norms(settings)
        ),
        asked(
            "HopSkipJump", "HopSkipJumpAttack",
            options={
                "steps": settings.query_steps,
                "initial_gradient_eval_steps": 50,
                "max_gradient_eval_steps": 500,
            },
        ),
        asked("boundary", "BoundaryAttack", options={"steps": 100 * settings.query_steps}),
    )  # fmt: skip


def _standard(settings: SuiteSettings) -> tuple[Attack, ...]:
    """AutoAttack's kind of ensemble, averaged over draws; then the same against one fixed draw."""
    found: list[Attack] = []
    averaged = {"draws": settings.apgd_draws, "give_up": settings.give_up}
    climbing = {"steps": settings.apgd_steps}
    square = {"queries": settings.queries} | averaged
    for prefix, norm, epsilons in _norms(settings):
        attack = partial(
            Attack, "standard", norm=norm, epsilons=epsilons, restarts=settings.apgd_restarts
        )
        kinds = (
            ("APGD-CE", "APGDAttack", climbing | {"loss": "ce"}),
            ("APGD-DLR", "APGDAttack", climbing | {"loss": "dlr"}),
            ("APGD-T", "TargetedAPGDAttack", climbing | {"targets": settings.targets}),
        )
        for name, kind, options in (*kinds, ("Square", "SquareAttack", square)):
            found.append(
                attack(
                    name, prefix + kind, source="fresh", draws=settings.apgd_draws,
                    options=averaged | options,
                )
            )  # fmt: skip
        if settings.apgd_draws > 1:
            found += [
                attack(
                    name, prefix + kind, source="frozen", options=options | {"drop": False},
                    purpose="frozen",
                )
                for name, kind, options in kinds[::2]
            ]  # fmt: skip
    far = UNBOUNDED["linf"]
    options = averaged | climbing | {"give_up": None}
    found.append(
        Attack(
            "standard", "APGD-CE", "LinfAPGDAttack", "linf", "fresh", (far,), settings.apgd_draws,
            options, purpose="unbounded",
        )
    )  # fmt: skip
    return tuple(found)


def _norms(settings: SuiteSettings) -> tuple[tuple[str, str, Sequence[float]], ...]:
    """Of each norm: the prefix of its attacks, its name, its budgets."""
    return ("Linf", "linf", settings.linf), ("L2", "l2", settings.l2)
