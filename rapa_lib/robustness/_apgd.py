"""APGD: projected gradient ascent that chooses its step sizes itself, averaged over draws.

Source: F. Croce, M. Hein, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks", ICML 2020: algorithm 1 and section 4.
"""

import math
from abc import abstractmethod
from typing import Any

import foolbox
import torch
from torch import Tensor

from rapa_lib._checks import check_choice, check_int, check_real
from rapa_lib.robustness._averaged import AveragedAttack, Goal, Seen, Tracker, View
from rapa_lib.robustness._losses import cross_entropy, logits_ratio, targeted_logits_ratio

LOSSES = ("ce", "dlr")

_MOMENTUM = 0.75  # α of algorithm 1


def checkpoints(steps: int) -> list[int]:
    """Steps after which step sizes are looked at: ⌈p_j · steps⌉, without repetition.

    p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06).
    """
    before, share, found = 0.0, 0.22, []
    while share <= 1:
        found.append(math.ceil(round(share * steps, 6)))
        before, share = share, share + max(share - before - 0.03, 0.06)
    return sorted(set(found))


class _Ascent:
    """One run of algorithm 1 on N images, all of whose tensors have one entry per image."""

    def __init__(self, attack: "_APGD", view: View, images: Tensor, goal: Goal, epsilon: float):
        self.attack, self.view, self.epsilon = attack, view, epsilon
        self.at = torch.arange(len(images), device=images.device)
        self.images, self.goal = images, goal
        self.x = self.before = attack.project(
            images, attack.random_start(images, epsilon), epsilon, view.bounds
        )
        self.seen: Seen
        self.step_size = images.new_full((len(images),), 2 * epsilon)
        self.rises = torch.zeros(len(images), device=images.device)

    def begin(self) -> Seen:
        """Look at the start."""
        self.seen = self.view.look(self.x, self.goal, gradient=True)
        assert self.seen.gradient is not None
        self.best, self.best_gradient = self.x.clone(), self.seen.gradient.clone()
        self.best_loss = self.checked_best = self.seen.loss.clone()
        self.halved = torch.zeros_like(self.at, dtype=torch.bool)
        return self.seen

    def advance(self, momentum: float) -> Seen:
        """Take one step and look where it led."""
        slope = self.seen.gradient
        assert slope is not None
        bounds, size = self.view.bounds, self.step_size[:, None, None, None]
        ahead = self.x + size * self.attack.direction(slope)
        ahead = self.attack.project(self.images, ahead, self.epsilon, bounds)
        moved = self.x + momentum * (ahead - self.x) + (1 - momentum) * (self.x - self.before)
        self.before = self.x
        self.x = self.attack.project(self.images, moved, self.epsilon, bounds)
        last, self.seen = self.seen, self.view.look(self.x, self.goal, gradient=True)
        assert self.seen.gradient is not None
        self.rises += self.seen.loss > last.loss
        better = self.seen.loss > self.best_loss
        self.best_loss = torch.where(better, self.seen.loss, self.best_loss)
        flags = better[:, None, None, None]
        self.best = torch.where(flags, self.x, self.best)
        self.best_gradient = torch.where(flags, self.seen.gradient, self.best_gradient)
        return self.seen

    def check(self, length: int) -> None:
        """Halve step sizes that lead nowhere, and go back to the best point there.

        Args:
            length: steps since the last checkpoint.
        """
        seldom = self.rises < self.attack.rho * length
        stuck = ~self.halved & (self.best_loss <= self.checked_best)
        self.halved = seldom | stuck
        self.checked_best = self.best_loss.clone()
        self.rises = torch.zeros_like(self.rises)
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        flags = self.halved[:, None, None, None]
        self.x = torch.where(flags, self.best, self.x)
        assert self.seen.gradient is not None
        self.seen = Seen(
            torch.where(self.halved, self.best_loss, self.seen.loss), self.seen.margin,
            self.seen.misled, torch.where(flags, self.best_gradient, self.seen.gradient),
            self.seen.scores,
        )  # fmt: skip

    def keep(self, which: Tensor) -> None:
        """Go on with some of the images (flags) alone."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[which])
        self.goal = self.goal.keep(which)
        self.seen = self.seen.keep(which)


class _APGD(AveragedAttack):
    """APGD in any norm; arguments see :class:`LinfAPGDAttack`."""

    def __init__(
        self,
        *,
        loss: str = "ce",
        steps: int = 100,
        rho: float = 0.75,
        draws: int = 1,
        drop: bool = True,
        give_up: float | None = None,
    ) -> None:
        super().__init__(draws=draws, drop=drop, give_up=give_up)
        self.kind = check_choice("loss", loss, LOSSES)
        self.steps = check_int("steps", steps, low=1)
        self.rho = check_real("rho", rho, low=0, high=1)

    def loss(self, logits: Tensor, goal: Goal) -> Tensor:
        """The loss that the attack raises (N,)."""
        if self.kind == "ce":
            if goal.aims is None:
                return cross_entropy(logits, goal.labels)
            return -cross_entropy(logits, goal.aims)
        if goal.aims is None:
            return logits_ratio(logits, goal.labels)
        return targeted_logits_ratio(logits, goal.labels, goal.aims)

    def search(self, view: View, images: Tensor, goal: Goal, epsilon: float) -> Tensor:
        """See :meth:`AveragedAttack.search`."""
        track = Tracker(images, view.look(images, goal), self.draws)
        self.ascend(view, images, goal, epsilon, track)
        return track.images

    def ascend(
        self, view: View, images: Tensor, goal: Goal, epsilon: float, track: Tracker
    ) -> None:
        """Run algorithm 1 on the images that are not broken yet."""
        left = ~track.broken if self.drop else torch.ones_like(track.broken)
        run = _Ascent(self, view, images, goal, epsilon)
        if not left.all():
            run.at, run.images = run.at[left], images[left]
            run.x, run.before, run.goal = run.x[left], run.before[left], goal.keep(left)
            run.step_size, run.rises = run.step_size[left], run.rises[left]
        if not len(run.at):
            return
        seen = run.begin()
        track.see(run.at, run.x, seen)
        last, looks = 0, set(checkpoints(self.steps))
        for step in range(1, self.steps + 1):
            seen = run.advance(1.0 if step == 1 else _MOMENTUM)
            track.see(run.at, run.x, seen)
            if step in looks:
                run.check(step - last)
                last = step
            if not self.drop:
                continue
            gone = track.broken[run.at]
            if step in looks:
                gone |= track.hopeless(self.give_up)[run.at]
            if gone.any():
                run.keep(~gone)
            if not len(run.at):
                return

    @abstractmethod
    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest ascent of length 1 in the attack's norm."""

    @abstractmethod
    def project(
        self, images: Tensor, x: Tensor, epsilon: float, bounds: tuple[float, float]
    ) -> Tensor:
        """Bring x into the budget about the images, and into the bounds."""

    @abstractmethod
    def random_start(self, images: Tensor, epsilon: float) -> Tensor:
        """A random point within the budget."""


class LinfAPGDAttack(_APGD):
    """APGD in the L∞ norm.

    Args:
        loss: ``"ce"`` (cross-entropy) or ``"dlr"`` (difference of logits ratio).
        steps: gradient steps.
        rho: the share of steps that must raise the loss, or the step size is halved.
        draws, drop, give_up: see :class:`AveragedAttack`; with ``give_up`` images leave at the
            checkpoints of the step sizes, the first of which is after 22 % of the steps.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    distance = foolbox.distances.linf

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(
        self, images: Tensor, x: Tensor, epsilon: float, bounds: tuple[float, float]
    ) -> Tensor:
        return torch.minimum(torch.maximum(x, images - epsilon), images + epsilon).clamp(*bounds)

    def random_start(self, images: Tensor, epsilon: float) -> Tensor:
        return images + epsilon * (2 * torch.rand_like(images) - 1)


class L2APGDAttack(_APGD):
    """APGD in the L2 norm; arguments as of :class:`LinfAPGDAttack`."""

    distance = foolbox.distances.l2

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient / _lengths(gradient)

    def project(
        self, images: Tensor, x: Tensor, epsilon: float, bounds: tuple[float, float]
    ) -> Tensor:
        change = x - images
        return (images + change * (epsilon / _lengths(change)).clamp(max=1)).clamp(*bounds)

    def random_start(self, images: Tensor, epsilon: float) -> Tensor:
        change = torch.randn_like(images)
        return images + epsilon * change / _lengths(change)


class _Targeted(_APGD):
    """APGD that goes for the likeliest wrong classes, one after another."""

    def __init__(self, *, targets: int = 9, loss: str = "dlr", **options: Any) -> None:
        super().__init__(loss=loss, **options)
        self.targets = check_int("targets", targets, low=1)

    def search(self, view: View, images: Tensor, goal: Goal, epsilon: float) -> Tensor:
        """See :meth:`AveragedAttack.search`."""
        if goal.strict:
            return super().search(view, images, goal, epsilon)
        # With no aim yet there is nothing that a targeted loss could say of the clean images.
        seen = view.but(lambda logits, its: -its.margin(logits)).look(images, goal)
        track = Tracker(images, seen, self.draws)
        likely = seen.scores.scatter(1, goal.labels[:, None], -1).argsort(1, descending=True)
        for place in range(min(self.targets, likely.shape[1] - 1)):
            track.loss.fill_(-torch.inf)  # losses of different targets do not compare
            aimed = Goal(goal.labels, likely[:, place])
            self.ascend(view, images, aimed, epsilon, track)
        return track.images


class LinfTargetedAPGDAttack(_Targeted, LinfAPGDAttack):
    """APGD with the targeted difference of logits ratio in the L∞ norm.

    Args:
        targets: so many of the likeliest wrong classes are gone for, one run each.
        loss, steps, rho, draws, drop, give_up: as of :class:`LinfAPGDAttack`.

    Raises:
        ValueError, TypeError: naming the argument.
    """


class L2TargetedAPGDAttack(_Targeted, L2APGDAttack):
    """The same in the L2 norm; arguments as of :class:`LinfTargetedAPGDAttack`."""


def _lengths(x: Tensor) -> Tensor:
    """L2 norms (N, 1, 1, 1), never zero."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=1e-12)[:, None, None, None]
