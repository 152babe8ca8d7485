"""The worst case, image by image: several attacks, each on what those before it left."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rapa_lib._checks import check_int
from rapa_lib._seeds import Purpose, mix_seeds, seeded
from rapa_lib.robustness._attacking import (
    Outcome,
    Target,
    attack_batch,
    check_attacked,
    check_budget,
    norms_of,
)
from rapa_lib.robustness._averaged import ROWS
from rapa_lib.robustness._suite import Attack
from rapa_lib.robustness._views import ImageModel, mean_correct

# Images of one run of an attack: 4,096 of CIFAR's size are 50 MB, some ten times over.
_BATCH = 4096


def run_cascade(
    attacks: Sequence[Attack],
    epsilon: float,
    target: Target,
    images: Tensor,
    labels: Tensor,
    *,
    judge_draws: int = 10,
    choice_draws: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> list[Outcome]:
    """Attack images in turn, keep of each image what misleads most, and judge that.

    An attack, and each of its restarts, is run on the images that are right in at least one of
    ``choice_draws`` draws; what it finds is kept where it is right in fewer of as many other draws.
    The images kept are judged on further draws, which no choice has seen.

    Under source ``"frozen"`` attack and judge see the very same draws: one fixed function.

    Args:
        attacks: in the order in which they are run; of one norm, of one source.
        epsilon: their budget.
        target: the network.
        images: (N, C, H, W) in [0, 1].
        labels: (N,), the right answers.
        judge_draws, choice_draws: forward passes; a network that draws nothing takes one.
        seed: of everything that is drawn.
        progress: show a bar.

    Returns:
        For each attack what it and those before it leave.

    Raises:
        ValueError, TypeError: as :func:`run_attack`, and if the attacks do not go together.
        RuntimeError: if a perturbation exceeds its budget.
    """
    check_attacked(images, labels)
    check_int("choice_draws", choice_draws, low=1)
    norm, source = _alike(attacks)
    frozen = target.frozen(mix_seeds(seed, Purpose.ATTACK)) if source == "frozen" else None
    judge = frozen or target.judge()
    with seeded(seed, Purpose.ATTACK_CHOICE):
        held = mean_correct(judge, images, labels, choice_draws, batch_size=ROWS)
    worst = _Worst(images.clone(), held, torch.zeros_like(labels, dtype=torch.bool))
    outcomes = []
    for i, attack in enumerate(attacks):
        failed = 0
        for start in range(attack.restarts):
            left = worst.left(whole=frozen is not None)
            if not len(left):
                break
            seeds = (mix_seeds(seed, i, start), Purpose.ATTACK)
            model = frozen or target.sources(attack, 0)[0]
            with seeded(*seeds):
                found, claimed, broke = _attack(
                    attack, epsilon, model, images[left], labels[left], progress
                )
            failed += broke
            with seeded(seeds[0], Purpose.ATTACK_CHOICE):
                held = mean_correct(judge, found, labels[left], choice_draws, batch_size=ROWS)
            worst.keep(left, found, held, claimed)
        lengths = norms_of(norm, worst.images - images)
        check_budget(attack, epsilon, worst.images, lengths)
        with seeded(seed, i, Purpose.ATTACK_JUDGE):
            correct = mean_correct(judge, worst.images, labels, judge_draws, batch_size=ROWS)
        outcomes.append(worst.outcome(correct, lengths.cpu(), failed))
    return outcomes


def _alike(attacks: Sequence[Attack]) -> tuple[str, str]:
    """The norm and the source that attacks share."""
    norms, sources = {a.norm for a in attacks}, {a.source for a in attacks}
    if len(norms) != 1 or len(sources) != 1:
        raise ValueError(f"attacks: got norms {norms} and sources {sources}, expected one of each")
    return norms.pop(), sources.pop()


@dataclass(frozen=True)
class _Worst:
    """What misleads most so far, image by image; it changes as attacks find worse.

    Args:
        images: as they are perturbed now.
        held: the share of the choosing draws in which each is right, on the CPU.
        claimed: whether an attack said of it that it succeeded.
    """

    images: Tensor
    held: Tensor
    claimed: Tensor

    def left(self, *, whole: bool) -> Tensor:
        """Places of the images to attack, none if all are broken.

        Args:
            whole: all of them, for frozen draws follow an image's place.
        """
        open_ = self.held > 0
        chosen = torch.full_like(open_, bool(open_.any())) if whole else open_
        return chosen.nonzero()[:, 0].to(self.images.device)

    def keep(self, left: Tensor, found: Tensor, held: Tensor, claimed: Tensor) -> None:
        """Take what was found at these places where it is right in fewer draws."""
        lower = held < self.held[left.cpu()]
        places = left[lower.to(left.device)]
        self.images[places] = found[lower.to(left.device)]
        self.held[places.cpu()] = held[lower]
        self.claimed[left] |= claimed

    def outcome(self, correct: Tensor, lengths: Tensor, failed: int) -> Outcome:
        """The outcome of what is there now, judged by the share of draws that are right."""
        said = float((self.claimed.cpu() | (self.held == 0)).double().mean())
        return Outcome(self.images.clone(), correct, lengths, said, failed, self.held.clone())


def _attack(
    attack: Attack, epsilon: float, model: ImageModel, images: Tensor, labels: Tensor, show: bool
) -> tuple[Tensor, Tensor, int]:
    """Perturbed images, what the attack claims of each, and the number of failures."""
    # Attacks look at ROWS images at a time. Frozen draws follow an image's place in the batch, so
    # there the batch is the same for attack and judge; otherwise it shrinks as it breaks.
    n_images = ROWS if model.view == "frozen" else _BATCH
    found = []
    with tqdm(
        total=len(images), desc=f"{attack.name} {attack.norm} ε {epsilon:.3g}", unit="image",
        disable=not show, leave=False,
    ) as bar:  # fmt: skip
        for x, y in zip(images.split(n_images), labels.split(n_images), strict=True):
            found.append(attack_batch(attack, epsilon, model, x, y))
            bar.update(len(x))
    perturbed, claimed, failed = (torch.cat(parts) for parts in zip(*found, strict=True))
    return perturbed, claimed, int(failed.sum())
