"""Signs that attacks fail because gradients mislead, not because a network is robust."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapa_lib.instruments.statistics import share_interval
from rapa_lib.robustness._views import ImageModel

# A budget that leaves no content must leave no accuracy: the lower end of its interval, at most.
_LEFT = 0.01
# Attacks that climb where there is no slope stand still: so many images, at most.
_FLAT = 0.1
# Of an ordinary network a black box finds a few images more than a white box did: so many at most.
_LEFT_OVER = 0.01


@dataclass(frozen=True)
class Alarm:
    """One check of the attacks themselves (after Athalye, Carlini & Wagner, ICML 2018).

    Args:
        check: what should be so.
        holds: whether it is; None: the attacks to tell were not run.
        detail: the numbers.
    """

    check: str
    holds: bool | None
    detail: str


def masking_alarms(
    rows: Sequence[Mapping[str, Any]], flat_share: float | None = None
) -> list[Alarm]:
    """Check that attacks behave as they do where gradients lead somewhere.

    Differences between attacks are of the same images; one counts if it exceeds 1.96 standard
    errors.

    Args:
        rows: of one network, each with ``level``, ``attack``, ``norm``, ``epsilon``, ``draws``,
            ``purpose`` and ``correct``, the share of draws in which each image withstood.
        flat_share: of images at which the gradient vanishes.

    Returns:
        One alarm a check: more steps help; more room helps; a great ε leaves nothing; white box
        beats black box; restarts help; more draws no longer help; gradients do not vanish; and, of
        the standard suite, that Square finds little beyond it, and no other attack leaves less.
    """
    steps = [
        (f"PGD against {name}, {norm} {epsilon:.3g}", one, many)
        for norm, name in (("linf", "FGSM"), ("l2", "FGM"))
        for one in _of(rows, attack=name, norm=norm)
        for epsilon in [one["epsilon"]]
        for many in _of(rows, attack="PGD", norm=norm, epsilon=epsilon, purpose="suite")
    ]
    room = []
    cascades = _cascades(rows)
    for norm in ("linf", "l2"):
        for found in (
            _of(rows, attack="PGD", norm=norm, purpose="suite"),
            [one[-1] for one in cascades if one[-1]["norm"] == norm],
        ):
            room += [
                (f"{b['attack']}, {norm} {b['epsilon']:.3g} against {a['epsilon']:.3g}", a, b)
                for a, b in itertools.pairwise(sorted(found, key=_epsilon))
            ]
    boxes = [
        (f"PGD against {other['attack']}, {white['norm']} {white['epsilon']:.3g}", other, white)
        for white in _of(rows, attack="PGD", purpose="suite")
        for other in rows
        if (other["level"] == "gradient_free" or other["attack"].startswith("from "))
        and (other["norm"], other["epsilon"]) == (white["norm"], white["epsilon"])
    ]
    restarts = [
        (f"{many['restarts']} starts against one", one, many)
        for many in _of(rows, purpose="restarts")
        for one in _of(rows, attack="PGD", norm=many["norm"], epsilon=many["epsilon"])
        if one["purpose"] == "suite"
    ]
    return [
        _all_no_weaker("more steps help", steps),
        _all_no_weaker("a larger ε helps", room),
        _nothing_left(_of(rows, purpose="unbounded")),
        _all_no_weaker("white box beats black box", boxes),
        _all_no_weaker("random restarts help", restarts),
        _converged(rows),
        _slopes(flat_share),
        _little_left_over(cascades),
        _all_no_weaker("the standard suite beats every other attack", _against_cascades(rows)),
    ]


def vanishing_gradients(
    model: ImageModel, images: Tensor, labels: Tensor, *, batch_size: int = 100
) -> float:
    """Share of images at which the gradient of the cross-entropy is zero or not finite."""
    flat = 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        x = x.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x), y, reduction="sum")
        if loss.grad_fn is None:
            flat += len(x)
            continue
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
        size = torch.zeros(len(x)) if gradient is None else gradient.flatten(1).abs().amax(1)
        flat += int((~size.isfinite() | (size == 0)).sum())
    return flat / len(images)


def _of(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _epsilon(row: Mapping[str, Any]) -> float:
    return row["epsilon"]


def _cascades(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The rows of each cascade of the standard suite, the last of which is what it leaves."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in _of(rows, level="standard", purpose="suite"):
        found.setdefault((row["norm"], row["epsilon"]), []).append(row)
    return list(found.values())


def _little_left_over(cascades: list[list[Mapping[str, Any]]]) -> Alarm:
    """Square takes little of what APGD left, which the cascade runs before it."""
    check = "Square breaks few images that APGD did not"
    found = [
        (-gap, error, after)
        for *_, before, after in (one for one in cascades if len(one) > 1)
        if after["attack"] == "Square"
        for gap, error in [_weaker_by(before, after)]
    ]
    if not found:
        return Alarm(check, None, "not run")
    taken, error, row = max(found, key=lambda one: one[0] - one[1])
    detail = (
        f"worst of {len(found)}: {100 * taken:.1f} ± {100 * error:.1f} points, "
        f"{row['norm']} {row['epsilon']:.3g}"
    )
    return Alarm(check, taken <= max(error, _LEFT_OVER), detail)


def _against_cascades(
    rows: Sequence[Mapping[str, Any]],
) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Pairs of what another attack leaves and what a cascade leaves, at the same budget."""
    return [
        (f"against {other['attack']}, {last['norm']} {last['epsilon']:.3g}", other, last)
        for *_, last in _cascades(rows)
        for other in _of(rows, norm=last["norm"], epsilon=last["epsilon"], purpose="suite")
        if other["level"] != "standard"
    ]


def _weaker_by(reference: Mapping[str, Any], attack: Mapping[str, Any]) -> tuple[float, float]:
    """By how much more accuracy an attack leaves than a reference, and 1.96 standard errors."""
    n_images = min(len(reference["correct"]), len(attack["correct"]))
    gap = np.subtract(attack["correct"][:n_images], reference["correct"][:n_images])
    error = gap.std(ddof=1) / math.sqrt(n_images) if n_images > 1 else math.inf
    return float(gap.mean()), 1.96 * float(error)


def _all_no_weaker(check: str, pairs: list[tuple[str, Mapping, Mapping]]) -> Alarm:
    """No attack of the pairs (name, reference, attack) leaves more accuracy than its reference."""
    if not pairs:
        return Alarm(check, None, "not run")
    gaps = [(name, *_weaker_by(reference, attack)) for name, reference, attack in pairs]
    name, gap, error = max(gaps, key=lambda g: g[1] - g[2])
    change = f"{name}: {100 * gap:+.1f} ± {100 * error:.1f} points of robust accuracy"
    return Alarm(check, gap <= error, f"worst of {len(gaps)}: {change}")


def _nothing_left(rows: list[Mapping[str, Any]]) -> Alarm:
    check = "a very large ε leaves nothing"
    if not rows:
        return Alarm(check, None, "not run")
    left = max(rows, key=lambda row: row["robust_accuracy"])
    low, _ = share_interval(left["correct"])
    detail = f"{100 * left['robust_accuracy']:.1f} % at {left['norm']} {left['epsilon']:g}"
    return Alarm(check, low <= _LEFT, detail)


def _converged(rows: Sequence[Mapping[str, Any]]) -> Alarm:
    check = "more draws a gradient no longer help"
    curve = sorted(draws_curve(rows), key=lambda row: row["draws"])
    if len(curve) < 2:
        return Alarm(check, None, "not run")
    before, last = curve[-2:]
    gap, error = _weaker_by(before, last)
    detail = f"{before['draws']} to {last['draws']}: {100 * gap:+.1f} ± {100 * error:.1f} points"
    return Alarm(check, -gap <= error, detail)


def draws_curve(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that differ in the number of draws of a gradient alone."""
    further = _of(rows, purpose="draws")
    if not further:
        return []
    like = {key: further[0][key] for key in ("attack", "norm", "epsilon")}
    return [*further, *_of(rows, purpose="suite", level="adaptive", **like)]


def still_falling(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether an attack leaves less accuracy than the one before it, by more than the interval."""
    gap, error = _weaker_by(before, after)
    return -gap > error


def _slopes(flat_share: float | None) -> Alarm:
    check = "gradients do not vanish"
    if flat_share is None:
        return Alarm(check, None, "not run")
    return Alarm(check, flat_share <= _FLAT, f"at {100 * flat_share:.1f} % of the images they do")
