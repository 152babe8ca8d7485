"""Square attack: a random search that asks for scores alone, averaged over draws.

Source: M. Andriushchenko, F. Croce, N. Flammarion, M. Hein, "Square Attack: a query-efficient
black-box adversarial attack via random search", ECCV 2020: algorithms 1 to 4.
"""

import math
from abc import abstractmethod

import foolbox
import torch
from torch import Tensor

from rapa_lib._checks import check_int, check_real
from rapa_lib.robustness._averaged import AveragedAttack, Goal, Tracker, View

# After so many of 10,000 queries the share of pixels that change at a time is halved (section 3).
_HALVED_AT = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)

# Shares of all queries after which images can be given up.
_LOOKS = (0.2, 0.4, 0.6, 0.8)


class _Square(AveragedAttack):
    """Square attack in any norm; arguments see :class:`LinfSquareAttack`."""

    def __init__(
        self,
        *,
        queries: int = 5000,
        share: float = 0.8,
        draws: int = 1,
        drop: bool = True,
        give_up: float | None = None,
    ) -> None:
        super().__init__(draws=draws, drop=drop, give_up=give_up)
        self.queries = check_int("queries", queries, low=1)
        self.share = check_real("share", share, low=0, high=1, open_low=True)

    @property
    def steps(self) -> int:
        """Looks at an image: each is one query for every draw."""
        return max(2, self.queries // self.draws)

    def loss(self, logits: Tensor, goal: Goal) -> Tensor:
        """Minus the margin (N,): it is raised."""
        return -goal.margin(logits)

    def side(self, step: int, size: tuple[int, int]) -> int:
        """Side of the square that changes at a step, in pixels of an image (height, width)."""
        done = step * 10_000 / self.steps
        share = self.share / 2 ** sum(done > at for at in _HALVED_AT)
        return max(1, min(round(math.sqrt(share * size[0] * size[1])), min(size) - 1))

    def search(self, view: View, images: Tensor, goal: Goal, epsilon: float) -> Tensor:
        """See :meth:`AveragedAttack.search`."""
        track = Tracker(images, view.look(images, goal), self.draws)
        at = torch.arange(len(images), device=images.device)
        at = at[~track.broken] if self.drop else at
        x = self.start(images, epsilon).clamp(*view.bounds)
        held = torch.full((len(images),), -torch.inf, device=images.device)
        looks = {round(share * self.steps) for share in _LOOKS}
        # A score that was lucky once would bar the way for ever: with several draws, what is taken
        # is asked about again, and that second answer stands.
        spent = torch.zeros(len(images), dtype=torch.long, device=images.device)
        for step in range(self.steps):
            going = at[spent[at] < self.steps]
            if not len(going):
                break
            mine, its = images[going], goal.keep(going)
            tried = x[going] if step == 0 else self.propose(mine, x[going], epsilon, step)
            tried = tried.clamp(*view.bounds)
            seen = view.look(tried, its)
            track.see(going, tried, seen)
            spent[going] += 1
            better = seen.loss > held[going]
            held[going[better]], x[going[better]] = seen.loss[better], tried[better]
            if self.draws > 1 and better.any():
                again = view.look(tried[better], its.keep(better))
                track.see(going[better], tried[better], again)
                held[going[better]] = again.loss
                spent[going[better]] += 1
            if self.drop:
                at = at[~track.broken[at]]
                if step in looks:
                    at = at[~track.hopeless(self.give_up)[at]]
        return track.images

    @abstractmethod
    def start(self, images: Tensor, epsilon: float) -> Tensor:
        """Perturb images (N, C, H, W) for the first time."""

    @abstractmethod
    def propose(self, images: Tensor, x: Tensor, epsilon: float, step: int) -> Tensor:
        """Change what is tried, within the budget."""


class LinfSquareAttack(_Square):
    """Square attack in the L∞ norm.

    Args:
        queries: calls of the model for each image; a mean over draws takes as many as it has draws.
        share: of the pixels that change at a time, at first.
        draws, drop, give_up: see :class:`AveragedAttack`; with ``give_up`` images leave after each
            fifth of the queries.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    distance = foolbox.distances.linf

    def start(self, images: Tensor, epsilon: float) -> Tensor:
        n, channels, _, width = images.shape
        return images + epsilon * _signs((n, channels, 1, width), images)

    def propose(self, images: Tensor, x: Tensor, epsilon: float, step: int) -> Tensor:
        n, channels, *size = images.shape
        side = self.side(step, (size[0], size[1]))
        window = _Window(images, side)
        signs = _signs((n, channels, 1, 1), images)
        tried = x.clone()
        tried[window.places] = window.of(images) + epsilon * signs
        return tried


class L2SquareAttack(_Square):
    """Square attack in the L2 norm; arguments as of :class:`LinfSquareAttack`."""

    distance = foolbox.distances.l2

    def side(self, step: int, size: tuple[int, int]) -> int:
        """Side of the two windows: odd, so that a pattern has a middle."""
        most = min(size) - (min(size) + 1) % 2
        return min(max(3, super().side(step, size) // 2 * 2 + 1), most)

    def start(self, images: Tensor, epsilon: float) -> Tensor:
        """A grid of five by five patterns, with random signs for each channel."""
        n, channels, height, width = images.shape
        side = max(1, min(height, width) // 5)
        change = torch.zeros_like(images)
        pattern = _pattern(side, images)
        for top in range((height % side) // 2, height - side + 1, side):
            for left in range((width % side) // 2, width - side + 1, side):
                signs = _signs((n, channels, 1, 1), images)
                change[:, :, top : top + side, left : left + side] = signs * pattern
        return images + epsilon * change / _norms(change)

    def propose(self, images: Tensor, x: Tensor, epsilon: float, step: int) -> Tensor:
        """Move the length that one window holds, and what is unused, to another (algorithm 4)."""
        n, channels, *size = images.shape
        side = self.side(step, (size[0], size[1]))
        change = x - images
        new, old = _Window(images, side), _Window(images, side)
        unused = (epsilon**2 - change.square().sum((1, 2, 3), keepdim=True)).clamp(min=0)
        both = torch.zeros_like(images, dtype=torch.bool)
        both[new.places] = True
        both[old.places] = True
        held = (change.square() * both).sum((2, 3), keepdim=True)
        available = (held + unused / channels).sqrt()
        pattern = _pattern(side, images).expand(n, 1, side, side)
        turned = torch.rand((n, 1, 1, 1), device=images.device) < 0.5
        pattern = torch.where(turned, pattern.transpose(2, 3), pattern)
        here = new.of(change)
        here = here / _norms(here, (2, 3)) + _signs((n, channels, 1, 1), images) * pattern
        change[old.places] = 0
        change[new.places] = here / _norms(here, (2, 3)) * available
        return images + change


class _Window:
    """A random square of each image, the same for its channels."""

    def __init__(self, images: Tensor, side: int) -> None:
        n, channels, height, width = images.shape
        device = images.device
        top = torch.randint(height - side + 1, (n, 1, 1, 1), device=device)
        left = torch.randint(width - side + 1, (n, 1, 1, 1), device=device)
        along = torch.arange(side, device=device)
        self.places = (
            torch.arange(n, device=device)[:, None, None, None],
            torch.arange(channels, device=device)[None, :, None, None],
            top + along[:, None],
            left + along,
        )

    def of(self, images: Tensor) -> Tensor:
        """What is in the window (N, C, side, side)."""
        return images[self.places]


def _pattern(side: int, like: Tensor) -> Tensor:
    """Two bumps of opposite sign, side by side: (side, side), of length 1 (equation 2)."""
    first = side // 2
    parts = [part for part in (_bump(side, first), -_bump(side, side - first)) if part.numel()]
    pattern = torch.cat(parts, dim=1).to(like)
    return pattern / torch.linalg.vector_norm(pattern)


def _bump(height: int, width: int) -> Tensor:
    """A pyramid (height, width): Σ_{k ≤ M} (n + 1 − k)⁻², M growing towards the middle.

    n = ⌊height / 2⌋, M = n − max(|row − n|, |column − ⌊width / 2⌋|).
    """
    n = height // 2
    rows = (torch.arange(height) - n).abs()[:, None]
    columns = (torch.arange(width) - width // 2).abs()
    steps = n - torch.maximum(rows, columns)
    sums = torch.cumsum(1 / torch.arange(n + 1, 0, -1, dtype=torch.float) ** 2, 0)
    return sums[steps.clamp(min=0)]


def _signs(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Random signs, ±1."""
    return 2 * torch.randint(2, shape, device=like.device).to(like) - 1


def _norms(x: Tensor, axes: tuple[int, ...] = (1, 2, 3)) -> Tensor:
    """L2 norms over axes, which are kept; never zero."""
    return torch.linalg.vector_norm(x, dim=axes, keepdim=True).clamp(min=1e-12)
