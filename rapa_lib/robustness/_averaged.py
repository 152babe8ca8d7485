"""Base of attacks that average over a model's draws what they see of it."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import foolbox
import torch
from foolbox.attacks.base import FixedEpsilonAttack, get_criterion, raise_if_kwargs
from torch import Tensor

from rapa_lib._checks import check_bool, check_int, check_real
from rapa_lib.robustness._losses import margin

# Images of one call of the model: it bounds memory, and what is at work fits into a cache.
ROWS = 128

# With several draws an image counts as broken where all of them are misled so often in a row: of
# an image that a tenth of the draws get right, 20 draws miss that in 12 % of the steps, and 40
# in 1.5 %.
_IN_A_ROW = 2


@dataclass(frozen=True)
class Goal:
    """What an attack is to reach for each of N images.

    Args:
        labels: (N,), the right answers, or those of the model where the criterion has a target.
        aims: (N,), classes that a targeted loss goes for; None: any other than the label.
        strict: whether only the aim counts, and not any wrong answer.
    """

    labels: Tensor
    aims: Tensor | None = None
    strict: bool = False

    def keep(self, which: Tensor) -> "Goal":
        """The goal for some of the images: indices, or flags (N,)."""
        aims = None if self.aims is None else self.aims[which]
        return Goal(self.labels[which], aims, self.strict)

    def misled(self, logits: Tensor) -> Tensor:
        """Whether the goal is reached (N,)."""
        answers = logits.argmax(1)
        if self.strict and self.aims is not None:
            return answers == self.aims
        return answers != self.labels

    def margin(self, logits: Tensor) -> Tensor:
        """How far the logits are from the goal (N,): below zero where it is reached."""
        if self.strict and self.aims is not None:
            return -margin(logits, self.aims)
        return margin(logits, self.labels)


Loss = Callable[[Tensor, Goal], Tensor]
"""Of logits (N, n_classes) and a goal, one number per image: higher is nearer to the goal."""


@dataclass(frozen=True)
class Seen:
    """What a model shows of N images, as means over draws.

    Args:
        loss, margin: (N,), see :data:`Loss` and :meth:`Goal.margin`.
        misled: (N,), the share of draws in which the goal is reached.
        gradient: of each image's mean loss, like the images; None if it was not asked for.
        scores: (N, n_classes), mean softmax.
    """

    loss: Tensor
    margin: Tensor
    misled: Tensor
    gradient: Tensor | None
    scores: Tensor

    def keep(self, which: Tensor) -> "Seen":
        """What was seen of some of the images: indices, or flags (N,)."""
        slope = None if self.gradient is None else self.gradient[which]
        rest = (self.loss[which], self.margin[which], self.misled[which])
        return Seen(*rest, slope, self.scores[which])


class Tracker:
    """Of each image the best perturbation so far, and whether it is broken.

    The best is that which misleads the largest share of draws, and among these the one of highest
    loss.
    """

    def __init__(self, images: Tensor, seen: Seen, draws: int) -> None:
        self.images, self.draws = images.clone(), draws
        self.share = seen.misled.clone()
        self.loss = torch.full_like(seen.loss, -torch.inf)
        self.row = torch.zeros_like(seen.loss)
        self.first = seen.margin.clone()
        self.margin = seen.margin.clone()
        self._count(slice(None), seen)

    def see(self, at: Tensor, images: Tensor, seen: Seen) -> None:
        """Take note of perturbed images at the places ``at`` (n,)."""
        share, loss = self.share[at], self.loss[at]
        better = (seen.misled > share) | ((seen.misled == share) & (seen.loss > loss))
        places = at[better]
        self.images[places] = images[better]
        self.share[places], self.loss[places] = seen.misled[better], seen.loss[better]
        self.margin[at] = torch.minimum(self.margin[at], seen.margin)
        self._count(at, seen)

    def _count(self, at: Any, seen: Seen) -> None:
        self.row[at] = torch.where(seen.misled == 1, self.row[at] + 1, 0)

    @property
    def broken(self) -> Tensor:
        """Flags (N,): every draw is misled, with several draws :data:`_IN_A_ROW` times in a row."""
        return self.row >= (1 if self.draws == 1 else _IN_A_ROW)

    def hopeless(self, give_up: float | None) -> Tensor:
        """Flags (N,): to reach the goal, the margin would have to fall by more than ``give_up``
        times what it has fallen so far."""
        if give_up is None:
            return torch.zeros_like(self.broken)
        return self.margin > give_up * (self.first - self.margin)


class AveragedAttack(FixedEpsilonAttack):
    """An attack within a budget on models that may draw anew in each call.

    A PyTorch model is called ``draws`` times for each look at an image, and losses, gradients and
    answers are averaged (expectation over transformation: Athalye, Carlini & Wagner, ICML 2018).
    Images whose goal is reached in every draw are dropped, so that a batch becomes cheaper as it
    breaks.

    Args:
        draws: calls of the model that are averaged; 1 for a model that draws nothing.
        drop: whether images that are broken leave the batch. They must stay where a model's frozen
            draws follow an image's place.
        give_up: None, or a number: an image leaves at a checkpoint of the attack where its margin
            would have to fall by more than that many times what it has fallen so far.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    def __init__(self, *, draws: int = 1, drop: bool = True, give_up: float | None = None) -> None:
        self.draws = check_int("draws", draws, low=1)
        self.drop = check_bool("drop", drop)
        self.give_up = None if give_up is None else check_real("give_up", give_up, low=0)

    def run(self, model: Any, inputs: Any, criterion: Any, *, epsilon: float, **kwargs: Any) -> Any:
        """See :meth:`foolbox.attacks.base.FixedEpsilonAttack.run`.

        Raises:
            TypeError: for inputs that are no PyTorch images (N, C, H, W).
            ValueError: for criteria other than (targeted) misclassification.
        """
        raise_if_kwargs(kwargs)
        images = getattr(inputs, "raw", inputs)
        if not isinstance(images, Tensor) or images.dim() != 4:
            raise TypeError(f"inputs: got {type(images).__name__}, expected images (N, C, H, W)")
        criterion = get_criterion(criterion)
        with torch.no_grad():
            goal = self._goal(model, images, criterion)
        found = self.search(View(model, self.draws, self.loss), images, goal, epsilon)
        return type(inputs)(found) if inputs is not images else found

    def _goal(self, model: Any, images: Tensor, criterion: Any) -> Goal:
        if isinstance(criterion, foolbox.criteria.Misclassification):
            return Goal(criterion.labels.raw)
        if isinstance(criterion, foolbox.criteria.TargetedMisclassification):
            labels = torch.cat([model(part).argmax(1) for part in images.split(ROWS)])
            return Goal(labels, criterion.target_classes.raw, strict=True)
        raise ValueError(
            f"criterion: got {criterion}, allowed: Misclassification, TargetedMisclassification"
        )

    @abstractmethod
    def loss(self, logits: Tensor, goal: Goal) -> Tensor:
        """See :data:`Loss`."""

    @abstractmethod
    def search(self, view: "View", images: Tensor, goal: Goal, epsilon: float) -> Tensor:
        """Perturb images (N, C, H, W) within the budget."""


class View:
    """A model as an attack looks at it: averaged over draws.

    Args:
        model: a foolbox model, or any function of images with ``bounds``.
        draws: calls that are averaged.
        loss: of each image.
    """

    def __init__(self, model: Any, draws: int, loss: Loss) -> None:
        self.model, self.draws, self.loss = model, draws, loss

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value of an image."""
        low, high = self.model.bounds
        return low, high

    def but(self, loss: Loss) -> Self:
        """The same with another loss."""
        return type(self)(self.model, self.draws, loss)

    def look(self, images: Tensor, goal: Goal, *, gradient: bool = False) -> Seen:
        """Look at images (N, C, H, W)."""
        places = torch.arange(len(images), device=images.device)
        parts = [
            self._look(images[at], goal.keep(at), gradient) for at in places.split(ROWS) if len(at)
        ]
        slopes = [part.gradient for part in parts if part.gradient is not None]
        return Seen(
            torch.cat([part.loss for part in parts]),
            torch.cat([part.margin for part in parts]),
            torch.cat([part.misled for part in parts]),
            torch.cat(slopes) if slopes else None,
            torch.cat([part.scores for part in parts]),
        )

    def _look(self, images: Tensor, goal: Goal, gradient: bool) -> Seen:
        x = images.detach().requires_grad_(gradient)
        slope = torch.zeros_like(images) if gradient else None
        sums: list[Tensor] = []
        for _ in range(self.draws):
            with torch.set_grad_enabled(gradient):
                logits = self.model(x)
                loss = self.loss(logits, goal)
            if slope is not None and loss.grad_fn is not None:
                (one,) = torch.autograd.grad(loss.sum(), x, allow_unused=True)
                slope = slope if one is None else slope + one
            logits = logits.detach()
            seen = [
                loss.detach(), goal.margin(logits), goal.misled(logits).to(logits.dtype),
                logits.softmax(1),
            ]  # fmt: skip
            sums = [a + b for a, b in zip(sums, seen, strict=True)] if sums else seen
        loss, far, misled, scores = (one / self.draws for one in sums)
        if slope is not None:
            # What is not finite says nothing of where to go.
            slope = (slope / self.draws).nan_to_num(0, 0, 0)
        return Seen(loss, far, misled.round(decimals=6), slope, scores)
