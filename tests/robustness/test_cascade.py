"""The worst case image by image: chosen on some draws, judged on others."""

import pytest
import torch
from attacked import SCALING, Coin, cascade, images, suite, trained
from torch import nn

from rapa_lib import InputScaling, frozen_draws
from rapa_lib.robustness import Attack, ImageModel, Target, mean_correct, run_attack, run_cascade

ONE = InputScaling((0.4,), (0.25,))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def standard(norm="linf", purpose="suite", **settings):
    return cascade(suite("standard", **settings), norm, purpose)


def test_a_random_classifier_keeps_its_accuracy_whatever_is_chosen():
    x, labels = torch.rand(150, 1, 4, 4), torch.zeros(150, dtype=torch.long)
    attacks = standard(apgd_restarts=3, apgd_steps=3, apgd_draws=4, queries=20, linf=(0.1,))
    *_, last = run_cascade(
        attacks, 0.1, Target(Coin(), ONE), x, labels,
        judge_draws=40, choice_draws=6, progress=False,
    )  # fmt: skip
    assert last.held.mean() < 0.3  # the luckiest of many
    assert abs(float(last.correct.mean()) - 0.5) < 0.03  # 6,000 draws: ± 0.013


def test_a_choice_between_attacks_can_be_made_on_draws_of_its_own():
    x, labels = torch.rand(300, 1, 4, 4), torch.zeros(300, dtype=torch.long)
    (attack, _) = suite("published", linf=(0.1,))
    tries = [
        run_attack(
            attack, 0.1, Target(Coin(), ONE), x, labels, judge_draws=20, progress=False, seed=seed
        )
        for seed in range(6)
    ]
    held, correct = (torch.stack([getattr(t, n) for t in tries]) for n in ("held", "correct"))
    chosen = correct.gather(0, held.argmin(0)[None])
    assert abs(float(chosen.mean()) - 0.5) < 0.03
    assert correct.amin(0).mean() < 0.4  # what a choice on the judge's own draws would say


class Halves(nn.Module):
    """Two ways to be misled, one for each half of the images, which the first pixel tells apart."""

    def forward(self, x):
        second = (x[:, 0, 0, 0] > 0.5).float()[:, None]
        one, other = x[:, 0, 1:2, 1], x[:, 0, 1:2, 2]
        z = 0.55 - (1 - second) * one - second * other
        return torch.cat([z, -z, -5 + 0 * z], 1)


def half_attack(name, value):
    """FGSM, or nothing but noise: of the kind that breaks a model only along one pixel."""
    return Attack(
        "standard", name, "LinfAPGDAttack", "linf", "fresh", (value,), options={"steps": 5}
    )


def test_of_each_image_the_strongest_attack_counts(monkeypatch):
    x = torch.full((40, 1, 3, 3), 0.5)
    x[:20, 0, 0, 0], x[20:, 0, 0, 0] = 0.2, 0.8
    labels = torch.zeros(40, dtype=torch.long)
    asked = []

    def one_sided(attack, epsilon, model, images, labels):
        """Raises one pixel: 1 by the first attack, 2 by the second."""
        asked.append((attack.name, len(images)))
        found = images.clone()
        found[:, 0, 1, int(attack.name)] += epsilon
        return found, torch.ones(len(images), dtype=torch.bool), torch.zeros(len(images)).bool()

    monkeypatch.setattr("rapa_lib.robustness._cascade.attack_batch", one_sided)
    net = nn.Sequential(Halves(), nn.Linear(3, 3, bias=False))
    nn.init.eye_(net[1].weight)
    target = Target(net, InputScaling((0.0,), (1.0,)))
    attacks = [half_attack(name, 0.1) for name in ("1", "2", "1")]
    first, both, again = run_cascade(attacks, 0.1, target, x, labels, progress=False)
    assert first.correct.tolist() == [0] * 20 + [1] * 20
    assert both.correct.sum() == again.correct.sum() == 0
    assert (both.images[:20, 0, 1, 1] > 0.5).all()
    assert (both.images[20:, 0, 1, 2] > 0.5).all()
    assert asked == [("1", 40), ("2", 20)]  # broken images are left alone


@pytest.mark.parametrize("tiling", ["none", "random"])
def test_each_attack_leaves_no_more_than_those_before_it(tiling):
    net, (x, labels) = trained(tiling), images()
    draws = 4 if tiling == "random" else 1
    attacks = standard(apgd_draws=draws, apgd_restarts=2, linf=(0.08,))
    outcomes = run_cascade(
        attacks, 0.08, Target(net, SCALING), x, labels, judge_draws=10, progress=False
    )
    assert [a.name for a in attacks] == ["APGD-CE", "APGD-DLR", "APGD-T", "Square"]
    held = torch.stack([outcome.held for outcome in outcomes])
    assert (held.diff(dim=0) <= 0).all()
    alone = run_attack(
        attacks[0], 0.08, Target(net, SCALING), x, labels, judge_draws=10, progress=False
    )
    assert outcomes[-1].correct.mean() <= alone.correct.mean() + 0.03
    for outcome in outcomes:
        assert outcome.norms.max() <= 0.08 * 1.0001
    repeated = run_cascade(
        attacks, 0.08, Target(net, SCALING), x, labels, judge_draws=10, progress=False
    )
    assert torch.equal(outcomes[-1].images, repeated[-1].images)
    assert torch.equal(outcomes[-1].correct, repeated[-1].correct)


def test_under_frozen_draws_attack_and_judge_see_one_function():
    net, (x, labels) = trained("random"), images()
    attacks = standard(purpose="frozen", linf=(0.05,))
    assert [a.name for a in attacks] == ["APGD-CE", "APGD-T"]
    asked = []
    inner = ImageModel.forward

    def watched(self, images):
        asked.append((self.view, self.seed, len(images)))
        return inner(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageModel, "forward", watched)
        *_, last = run_cascade(attacks, 0.05, Target(net, SCALING), x, labels, progress=False)
    assert {view for view, _, _ in asked} == {"frozen"}
    assert len({seed for _, seed, _ in asked}) == 1
    assert {n for _, _, n in asked} == {len(x)}  # places in the batch are kept
    assert set(last.correct.tolist()) <= {0.0, 0.1, 1.0, 0.9} | {0.0, 1.0}
    with frozen_draws(net, asked[0][1]):
        mean, std = (torch.tensor(part).view(-1, 1, 1) for part in SCALING)
        right = net((last.images - mean) / std).argmax(1) == labels
    assert torch.equal(right.double(), last.correct)
    fresh = mean_correct(ImageModel(net, SCALING), last.images, labels, 20)
    assert fresh.mean() > last.correct.mean()  # other draws are misled less


def test_what_does_not_go_together_is_refused():
    net, (x, labels) = trained("none"), images()
    mixed = [*standard(linf=(0.1,)), *standard("l2", l2=(0.1,))]
    with pytest.raises(ValueError, match="attacks: got norms"):
        run_cascade(mixed, 0.1, Target(net, SCALING), x, labels)
    with pytest.raises(ValueError, match="images: got values"):
        run_cascade(standard(), 0.1, Target(net, SCALING), 2 * x, labels)
    with pytest.raises(ValueError, match="choice_draws: got 0"):
        run_cascade(standard(), 0.1, Target(net, SCALING), x, labels, choice_draws=0)


def test_images_that_are_wrong_as_they_are_stay_as_they_are():
    net, (x, _) = trained("none"), images()
    wrong = (ImageModel(net, SCALING)(x).argmax(1) + 1) % 3
    outcome = run_cascade(standard(), 0.05, Target(net, SCALING), x, wrong, progress=False)[-1]
    assert torch.equal(outcome.images, x)
    assert outcome.correct.sum() == 0
    assert outcome.claimed == 1
