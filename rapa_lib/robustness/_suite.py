"""The attacks of each level of honesty, all of them foolbox's."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import foolbox

from rapa_lib._checks import check_choice, check_int, check_real

LEVELS = ("published", "adaptive", "gradient_free")
NORMS = {"linf": "L∞", "l2": "L2"}

# Where an ε cannot matter any more: no image keeps its content.
UNBOUNDED = {"linf": 0.5, "l2": 20.0}


@dataclass(frozen=True)
class Attack:
    """One of foolbox's attacks, and how the study uses it.

    Args:
        level: ``"published"`` (one draw a gradient), ``"adaptive"`` or ``"gradient_free"``.
        name: as tables show it.
        kind: name of the class in ``foolbox.attacks``.
        norm: ``"linf"`` or ``"l2"``.
        source: which model is attacked: a view of the network itself (see :class:`ImageModel`), or
            ``"copies"``: networks of the same kind that were trained from other seeds.
        epsilons: budgets, in units of the image's range [0, 1]; none for a minimum-norm attack.
        draws: forward passes of each gradient or vote.
        options: arguments of foolbox's class.
        restarts: how often it is run; of each image the strongest result counts.
        purpose: ``"suite"``, or what a run is for besides: ``"draws"`` (another number of draws),
            ``"restarts"``, ``"unbounded"`` (an ε that leaves no content).
        images: only so many of the images, for attacks that ask very often; None: all.

    Raises:
        ValueError, TypeError: for what is not allowed, an attack that foolbox lacks included.
    """

    level: str
    name: str
    kind: str
    norm: str
    source: str
    epsilons: tuple[float, ...] = ()
    draws: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    restarts: int = 1
    purpose: str = "suite"
    images: int | None = None

    def __post_init__(self) -> None:
        check_choice("level", self.level, LEVELS)
        check_choice("norm", self.norm, NORMS)
        check_choice("source", self.source, ("fresh", "mean", "vote", "merged", "copies"))
        check_int("draws", self.draws, low=1)
        check_int("restarts", self.restarts, low=1)
        check_epsilons("epsilons", self.epsilons)
        made = self.make()
        if not isinstance(made, foolbox.attacks.base.AttackWithDistance):
            raise ValueError(f"attack: foolbox's {self.kind} minimises no distance")
        minimises = isinstance(made, foolbox.attacks.base.MinimizationAttack)
        if minimises == bool(self.epsilons):
            wanted = "no epsilons: it looks for the smallest" if minimises else "epsilons"
            raise ValueError(f"epsilons: got {self.epsilons}, but {self.kind} takes {wanted}")

    def make(self) -> foolbox.attacks.base.Attack:
        """Make foolbox's attack."""
        kind = getattr(foolbox.attacks, self.kind, None)
        known = isinstance(kind, type) and issubclass(kind, foolbox.attacks.base.Attack)
        if not known or inspect.isabstract(kind):
            raise ValueError(f"attack: foolbox {foolbox.__version__} has none called {self.kind!r}")
        return kind(**self.options)

    @property
    def steps(self) -> int:
        """Steps of the attack; 1 for those that take a single one."""
        return self.options.get("steps", 1)


def attack_suite(
    level: str,
    *,
    linf: Sequence[float] = (1 / 255, 2 / 255, 4 / 255, 8 / 255),
    l2: Sequence[float] = (0.25, 0.5, 1.0),
    steps: int = 20,
    draws: int = 8,
    restarts: int = 2,
    focus: float = 2 / 255,
    draws_curve: Sequence[int] = (),
    copies: bool = False,
    query_steps: int = 10,
    query_images: int | None = None,
) -> tuple[Attack, ...]:
    """The attacks of a level, the cheapest first.

    Args:
        level: ``"published"``: single gradients of one draw. ``"adaptive"``: many steps with
            gradients averaged over draws (projected gradient descent, step 2.5 ε / steps: Madry et
            al., ICLR 2018), minimum-norm attacks (DDN: Rony et al., CVPR 2019; FMN: Pintor et al.,
            NeurIPS 2021), transfer from the merged network and from copies. ``"gradient_free"``:
            noise, and decision-based attacks (HopSkipJump: Chen et al., S&P 2020; boundary attack:
            Brendel et al., ICLR 2018) against the vote.
        linf, l2: budgets ε in each norm.
        steps: of projected gradient descent; minimum-norm attacks take twice as many.
        draws: of each gradient, and of each vote.
        restarts, focus: at the budget ``focus`` (L∞), descent is also run from so many starts.
        draws_curve: further numbers of draws, at the budget ``focus``.
        copies: also transfer from copies.
        query_steps: of HopSkipJump; the boundary attack takes a hundred times as many.
        query_images: number of images for the decision-based attacks.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    check_choice("level", level, LEVELS)
    budgets = {"linf": check_epsilons("linf", linf), "l2": check_epsilons("l2", l2)}
    for name, value in budgets.items():
        if not value:
            raise ValueError(f"{name}: got no budget, expected at least one")
    for name, value in (("steps", steps), ("query_steps", query_steps)):
        check_int(name, value, low=1)
    check_epsilons("focus", (focus,))
    if level == "published":
        return _published(**budgets)
    if level == "gradient_free":
        return _gradient_free(**budgets, draws=draws, steps=query_steps, images=query_images)
    return (
        *_transfers(budgets["linf"], draws, _descent(steps), copies),
        *_direct(**budgets, draws=draws, steps=steps),
        *_checks(focus, draws, _descent(steps), restarts, check_draws("draws_curve", draws_curve)),
    )


_PGD = ("PGD", "LinfProjectedGradientDescentAttack", "linf")


def _descent(steps: int) -> dict[str, Any]:
    return {"steps": steps, "rel_stepsize": 2.5 / steps}


def _published(linf: tuple[float, ...], l2: tuple[float, ...]) -> tuple[Attack, ...]:
    """Single gradients of one draw."""
    return (
        Attack("published", "FGSM", "LinfFastGradientAttack", "linf", "fresh", linf),
        Attack("published", "FGM", "L2FastGradientAttack", "l2", "fresh", l2),
    )


def _gradient_free(
    linf: tuple[float, ...], l2: tuple[float, ...], draws: int, steps: int, images: int | None
) -> tuple[Attack, ...]:
    """Noise, and attacks that see the vote's decisions alone, on so many images."""
    noise = {"repeats": 10}
    hop_skip_jump = {
        "steps": steps, "initial_gradient_eval_steps": 50, "max_gradient_eval_steps": 500
    }  # fmt: skip
    return (
        Attack(
            "gradient_free", "uniform noise", "LinfRepeatedAdditiveUniformNoiseAttack", "linf",
            "vote", linf, draws, noise,
        ),
        Attack(
            "gradient_free", "Gaussian noise", "L2RepeatedAdditiveGaussianNoiseAttack", "l2",
            "vote", l2, draws, noise,
        ),
        Attack(
            "gradient_free", "HopSkipJump", "HopSkipJumpAttack", "l2", "vote", (), draws,
            hop_skip_jump, images=images,
        ),
        Attack(
            "gradient_free", "boundary", "BoundaryAttack", "l2", "vote", (), draws,
            {"steps": 100 * steps}, images=images,
        ),
    )  # fmt: skip


def _transfers(
    linf: tuple[float, ...], draws: int, descent: dict[str, Any], copies: bool
) -> tuple[Attack, ...]:
    """Descent on other networks: the merged one, and copies."""
    sources = ("merged", "copies") if copies else ("merged",)
    return tuple(
        Attack("adaptive", f"from {source}", *_PGD[1:], source, linf, draws, descent)
        for source in sources
    )


def _direct(
    linf: tuple[float, ...], l2: tuple[float, ...], draws: int, steps: int
) -> tuple[Attack, ...]:
    """Many steps with gradients averaged over draws."""
    descent = _descent(steps)
    # Its ε starts at foolbox's 1 otherwise, and 5 % a step are slow from there. L2FMNAttack is
    # no alternative: foolbox 3.3.4 projects it by the norm of the image, not of the change.
    ddn = {"steps": 2 * steps, "init_epsilon": l2[0]}
    return (
        Attack("adaptive", *_PGD, "mean", linf, draws, descent),
        Attack(
            "adaptive", "PGD", "L2ProjectedGradientDescentAttack", "l2", "mean", l2, draws, descent
        ),
        Attack("adaptive", "DDN", "DDNAttack", "l2", "mean", (), draws, ddn),
        Attack("adaptive", "FMN", "LInfFMNAttack", "linf", "mean", (), draws, {"steps": 2 * steps}),
    )


def _checks(
    focus: float, draws: int, descent: dict[str, Any], restarts: int, draws_curve: Sequence[int]
) -> tuple[Attack, ...]:
    """Attacks that show whether the others work: unbounded, restarted, with other draws."""

    def pgd(epsilon: float, n_draws: int, purpose: str, n_restarts: int = 1) -> Attack:
        return Attack("adaptive", *_PGD, "mean", (epsilon,), n_draws, descent, n_restarts, purpose)

    return (
        pgd(UNBOUNDED["linf"], draws, "unbounded"),
        pgd(focus, draws, "restarts", restarts),
        *(pgd(focus, m, "draws") for m in sorted(draws_curve)),
    )


def check_epsilons(name: str, values: Iterable[float]) -> tuple[float, ...]:
    """Return budgets as floats above 0, ascending, without repetition."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: got {values!r}, expected a sequence of numbers")
    return tuple(sorted({check_real(name, e, low=0, open_low=True) for e in values}))


def check_draws(name: str, values: Iterable[int]) -> tuple[int, ...]:
    """Return numbers of draws as integers, without repetition."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: got {values!r}, expected a sequence of integers")
    return tuple(dict.fromkeys(check_int(name, m, low=1) for m in values))
