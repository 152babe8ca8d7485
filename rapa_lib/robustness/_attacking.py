"""Run an attack on a network, and judge what it found on fresh draws."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import foolbox
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rapa_lib._checks import check_int
from rapa_lib._seeds import Purpose, seeded
from rapa_lib.robustness._suite import HIGHEST, Attack, budget
from rapa_lib.robustness._views import ImageModel, check_images, mean_correct
from rapa_lib.training import InputScaling
from rapa_lib.training.images import check_labels, count_classes

# Forward passes of one batch, draws counted: it bounds memory, whatever the number of draws.
_ROWS = 1024

# A minimum-norm attack ends on the boundary of what it saw. Lots drawn anew shift that boundary, so
# its perturbation is lengthened by the first of these factors that misleads most fresh draws.
_OVERSHOOTS = (1.0, 1.02, 1.05, 1.1, 1.2, 1.35, 1.5, 2.0, 3.0)

_FROM_STARTS = (foolbox.attacks.HopSkipJumpAttack, foolbox.attacks.BoundaryAttack)


@dataclass(frozen=True)
class Target:
    """The network under attack, and what an attacker may use besides.

    Args:
        network: in evaluation mode.
        scaling: from images to its input.
        train_images: uint8 images for the normalisation statistics of the merged network.
        copies: networks of the same kind, trained from other seeds, with their scalings.
    """

    network: nn.Module
    scaling: InputScaling
    train_images: Tensor | None = None
    copies: Sequence[tuple[nn.Module, InputScaling]] = ()

    def judge(self) -> ImageModel:
        """What an adversarial example must mislead: the network on fresh draws."""
        return ImageModel(self.network, self.scaling)

    def frozen(self, seed: int) -> ImageModel:
        """The network with the draws of a seed: one fixed function of a batch of images."""
        return ImageModel(self.network, self.scaling, "frozen", seed=seed)

    @functools.cached_property
    def merged(self) -> ImageModel:
        """The merged network, its normalisation statistics re-estimated."""
        return ImageModel(self.network, self.scaling, "merged", train_images=self.train_images)

    def sources(self, attack: Attack, frozen_seed: int) -> list[ImageModel]:
        """The models whose answers the attack sees; each of them is attacked."""
        if attack.source == "copies":
            if not self.copies:
                raise ValueError("copies: got none, but an attack transfers from copies")
            return [ImageModel(net, s, "mean", draws=attack.draws) for net, s in self.copies]
        if attack.source == "merged":
            return [self.merged]
        if attack.source == "frozen":
            return [self.frozen(frozen_seed)]
        # Attacks that look for a boundary need one that stays where it is while they look.
        seed = None if attack.epsilons else frozen_seed
        view = attack.source
        return [ImageModel(self.network, self.scaling, view, draws=attack.draws, seed=seed)]


@dataclass(frozen=True)
class Outcome:
    """What one attack did, at one budget.

    Args:
        images: the perturbed images (N, C, H, W), in [0, 1].
        correct: (N,) share of fresh draws in which each is still classified as its label.
        held: (N,) the same on other fresh draws, by which a choice between attacks can be made that
            does not flatter the chosen one.
        norms: (N,) size of each perturbation in the attack's norm.
        claimed: share of images that the attack itself takes for misclassified.
        failed: number of images for which the attack gave numbers that are not finite; they count
            as not perturbed.
    """

    images: Tensor
    correct: Tensor
    norms: Tensor
    claimed: float
    failed: int
    held: Tensor


# Of each image: the perturbed one, what the attack claims, and whether it broke down.
_Try = tuple[Tensor, Tensor, Tensor]


def run_attack(
    attack: Attack,
    epsilon: float | None,
    target: Target,
    images: Tensor,
    labels: Tensor,
    *,
    judge_draws: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Outcome:
    """Attack images at one budget and judge the results on fresh draws.

    Of several starts, or several copies, that which misleads most draws counts for each image:
    chosen on draws of their own, so that the choice does not flatter the attack.

    Args:
        attack: what to run.
        epsilon: its budget; None for a minimum-norm attack.
        target: the network.
        images: (N, C, H, W) in [0, 1].
        labels: (N,), the right answers.
        judge_draws: forward passes that judge each image; a network that draws nothing takes one.
        seed: of everything that is drawn; the result does not depend on attacks run before.
        progress: show a bar.

    Raises:
        ValueError, TypeError: for images outside [0, 1] or not finite, or labels that do not fit.
        RuntimeError: if a perturbation exceeds its budget.
    """
    check_attacked(images, labels)
    check_int("judge_draws", judge_draws, low=1)
    if epsilon is not None:
        budget("epsilon", epsilon, HIGHEST[attack.norm])
    judge = target.judge()
    check_labels(labels, len(images), count_classes(judge, images))
    with seeded(seed, Purpose.ATTACK):
        tries = _tries(attack, epsilon, target, images, labels, progress)
    with seeded(seed, Purpose.ATTACK_SELECTION):
        if epsilon is None:
            tries = [
                (_lengthen(judge, images, found, labels, judge_draws), claimed, failed)
                for found, claimed, failed in tries
            ]
        perturbed, claimed, failed = _strongest(judge, tries, labels, judge_draws)
    norms = norms_of(attack.norm, perturbed - images)
    check_budget(attack, epsilon, perturbed, norms)
    with seeded(seed, Purpose.ATTACK_JUDGE):
        correct = mean_correct(judge, perturbed, labels, judge_draws)
    with seeded(seed, Purpose.ATTACK_CHOICE):
        held = mean_correct(judge, perturbed, labels, judge_draws)
    return Outcome(
        perturbed, correct, norms.cpu(), float(claimed.double().mean()), int(failed.sum()), held
    )


def check_attacked(images: Tensor, labels: Tensor) -> None:
    """Raise ValueError or TypeError unless these are images in [0, 1] with a label each."""
    check_images(images)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels: got shape {tuple(labels.shape)} for {len(images)} images")


def _tries(
    attack: Attack,
    epsilon: float | None,
    target: Target,
    images: Tensor,
    labels: Tensor,
    progress: bool,
) -> list[_Try]:
    """What :func:`attack_batch` gives for all images, of every source and start."""
    sources = target.sources(attack, int(torch.randint(2**31, ())))
    models = [model for model in sources for _ in range(attack.restarts)]
    n_images = max(1, _ROWS // max(model.draws for model in models))
    bar = tqdm(
        total=len(models) * len(images),
        desc=f"{attack.name} {attack.norm}" + ("" if epsilon is None else f" ε {epsilon:.3g}"),
        unit="image", disable=not progress, leave=False,
    )  # fmt: skip
    tries = []
    with bar:
        for model in models:
            found = []
            for x, y in zip(images.split(n_images), labels.split(n_images), strict=True):
                found.append(attack_batch(attack, epsilon, model, x, y))
                bar.update(len(x))
            perturbed, claimed, failed = (torch.cat(parts) for parts in zip(*found, strict=True))
            tries.append((perturbed, claimed, failed))
    return tries


def attack_batch(
    attack: Attack, epsilon: float | None, model: ImageModel, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Perturbed images, what the attack claims, and where it broke down."""
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    made = attack.make()
    if isinstance(made, _FROM_STARTS):
        return _attack_from_starts(made, bounded, images, labels)
    _, perturbed, claimed = made(bounded, images, labels, epsilons=epsilon)
    perturbed = perturbed.detach()
    failed = ~perturbed.flatten(1).isfinite().all(1)
    perturbed = torch.where(per_image(failed), images, perturbed)
    return perturbed, claimed & ~failed, failed


def _attack_from_starts(
    made: foolbox.attacks.base.Attack, model: foolbox.PyTorchModel, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a decision-based attack, started from other images of the batch.

    An image that the vote gets wrong needs no attack, but it stays in the batch: frozen draws
    follow an image's place there. So does one for which no start is found.
    """
    with torch.no_grad():
        scores = model(images)
        answers = scores.argmax(1)
        starts, found = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
        for shift in range(1, len(images)):
            others = images.roll(shift, 0)
            new = ~found & (model(others).argmax(1) != answers)
            starts[new] = others[new]
            found |= new
        # Without a start, an image is asked about as if it were one itself.
        asked = torch.where(found, answers, (answers + 1) % scores.shape[1])
        _, perturbed, claimed = made(model, images, asked, epsilons=None, starting_points=starts)
    wrong = answers != labels
    perturbed = torch.where(per_image(wrong | ~found), images, perturbed)
    return perturbed, wrong | (claimed & found), ~found & ~wrong


def _lengthen(
    judge: ImageModel, images: Tensor, perturbed: Tensor, labels: Tensor, draws: int
) -> Tensor:
    """Lengthen perturbations until most draws are misled; where none suffices, take the longest."""
    best, settled = perturbed.clone(), torch.zeros_like(labels, dtype=torch.bool)
    for factor in _OVERSHOOTS:
        longer = (images + factor * (perturbed - images)).clamp(0, 1)
        best = torch.where(per_image(settled), best, longer)
        settled |= (mean_correct(judge, longer, labels, draws) < 0.5).to(labels.device)
        if settled.all():
            break
    return best


def _strongest(
    judge: ImageModel, tries: list[_Try], labels: Tensor, draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each image the try that misleads most draws, the first among equals."""
    if len(tries) == 1:
        return tries[0]
    held = torch.stack([mean_correct(judge, attempt[0], labels, draws) for attempt in tries])
    chosen, rows = held.argmin(0).to(labels.device), torch.arange(len(labels), device=labels.device)
    perturbed, claimed, failed = (
        torch.stack(parts)[chosen, rows] for parts in zip(*tries, strict=True)
    )
    return perturbed, claimed, failed


def norms_of(norm: str, differences: Tensor) -> Tensor:
    order = {"linf": torch.inf, "l2": 2}[norm]
    return torch.linalg.vector_norm(differences.flatten(1).double(), order, dim=1)


def check_budget(attack: Attack, epsilon: float | None, images: Tensor, norms: Tensor) -> None:
    if float(images.min()) < 0 or float(images.max()) > 1:
        raise RuntimeError(f"{attack.kind}: it left the range of images, [0, 1]")
    largest = float(norms.max())
    if epsilon is not None and largest > epsilon * (1 + 1e-4) + 1e-6:
        raise RuntimeError(f"{attack.kind}: a perturbation of {largest:g} exceeds {epsilon:g}")


def per_image(flags: Tensor) -> Tensor:
    return flags[:, None, None, None]
