"""Defences that only hide gradients fall under the standard suite; alarms fire where they must."""

from dataclasses import replace

import pytest
import torch
from attacked import (
    PLAIN,
    MeanMember,
    NoisyGradient,
    RandomMember,
    RandomResizing,
    Rounding,
    Wrapped,
    images,
    more_images,
    scaled_network,
    suite,
)

from rapa_lib.robustness import (
    ImageModel,
    Target,
    masking_alarms,
    mean_correct,
    run_attack,
    run_cascade,
)

EPSILON = 0.15


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class FineRounding(Rounding):
    """Rounding that costs no accuracy: sixteen steps of brightness."""

    steps = 16


def members():
    return [scaled_network(seed) for seed in range(6)]


DEFENCES = {
    "rounding": (lambda: FineRounding(scaled_network()), scaled_network),
    "noise on the gradient": (lambda: NoisyGradient(scaled_network()), scaled_network),
    "random resizing": (lambda: RandomResizing(scaled_network()), scaled_network),
    "a large random ensemble": (lambda: RandomMember(members()), lambda: MeanMember(members())),
}


def left(net, draws, queries, judge=None, steps=25):
    """Robust accuracy under the standard suite; a judge other than the network may be given."""
    x, labels = more_images()
    options = {"drop": judge is None}  # for another judge it must go on where this one is misled
    attacks = [
        replace(attack, options=attack.options | options)
        for attack in suite(
            "standard", linf=(EPSILON,), apgd_draws=draws, apgd_steps=steps, targets=2,
            queries=queries * draws, give_up=None,
        )
        if (attack.norm, attack.purpose) == ("linf", "suite")
    ]  # fmt: skip
    outcomes = run_cascade(
        attacks, EPSILON, Target(net.eval(), PLAIN), x, labels, judge_draws=20, progress=False
    )
    if judge is None:
        return float(outcomes[-1].correct.mean())
    model = ImageModel(judge, PLAIN)
    return float(mean_correct(model, outcomes[-1].images, labels, 20).mean())


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_that_hides_gradients_keeps_no_more_than_what_it_hides(name):
    """Both sets of images are judged by the defence: it may be better than its surrogate."""
    defence, surrogate = (make() for make in DEFENCES[name])
    drawn = name != "rounding"
    kept = left(defence, 20 if drawn else 1, 40 if drawn else 600)
    hidden = left(surrogate, 1, 40, judge=defence.eval())
    assert kept <= hidden + 0.05, (kept, hidden)
    assert kept <= 0.3  # of nearly all


# --- Alarms -----------------------------------------------------------------------------------


class Backwards(torch.autograd.Function):
    """The identity, whose gradient points the wrong way unless it may be trusted."""

    @staticmethod
    def forward(ctx, x, trusted):
        ctx.save_for_backward(trusted)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (trusted,) = ctx.saved_tensors
        return torch.where(trusted[:, None, None, None], gradient, -gradient), None


class OnTheGrid(Wrapped):
    """Shows its true gradient at real images alone, whose values are multiples of 1/255."""

    def forward(self, x):
        real = ((255 * x) - (255 * x).round()).abs().amax((1, 2, 3)) < 1e-2
        return self.inner(Backwards.apply(x, real))


class Wary(Wrapped):
    """Turns its gradient round once it was asked a number of times."""

    patience = 8

    def __init__(self, inner):
        super().__init__(inner)
        self.asked = 0

    def forward(self, x):
        self.asked += x.requires_grad
        trusted = torch.full((len(x),), self.asked <= self.patience)
        return self.inner(Backwards.apply(x, trusted))


class Purifying(Wrapped):
    """Puts a known image in the place of what is far from all of them."""

    reach = 0.15

    def forward(self, x):
        known, _ = images()
        far = (x[:, None] - known).abs().amax((2, 3, 4))
        distance, nearest = far.min(1)
        return self.inner(
            torch.where((distance > self.reach)[:, None, None, None], known[nearest], x)
        )


class Noisy(NoisyGradient):
    size = 30.0


def row_of(attack, epsilon, outcome):
    return {
        "level": attack.level, "attack": attack.name, "norm": attack.norm, "epsilon": epsilon,
        "draws": attack.draws, "purpose": attack.purpose, "restarts": attack.restarts,
        "correct": outcome.correct.tolist(), "robust_accuracy": float(outcome.correct.mean()),
    }  # fmt: skip


def checks(net, wanted, **settings):
    """Which checks fail, of the attacks that a predicate picks, in the suites' order."""
    x, labels = images()
    target = Target(net.eval(), PLAIN)
    settings = {"linf": (0.1,), "l2": (1.0,), "steps": 10, "focus": 0.1} | settings
    rows, chain = [], []
    for level in ("published", "adaptive", "standard"):
        for attack in suite(level, **settings):
            if not wanted(attack):
                continue
            if level == "standard" and attack.purpose == "suite":
                chain.append(attack)
                continue
            for epsilon in attack.epsilons:
                outcome = run_attack(
                    attack, epsilon, target, x, labels, judge_draws=10, progress=False
                )
                rows.append(row_of(attack, epsilon, outcome))
    if chain:
        outcomes = run_cascade(chain, 0.1, target, x, labels, judge_draws=10, progress=False)
        rows += [row_of(a, 0.1, o) for a, o in zip(chain, outcomes, strict=True)]
    return {alarm.check for alarm in masking_alarms(rows) if alarm.holds is False}


def descent(attack):
    return attack.norm == "linf" and attack.name in ("FGSM", "PGD") and attack.purpose == "suite"


def one_chain(attack):
    return attack.norm == "linf" and attack.purpose == "suite" and attack.level == "standard"


@pytest.mark.parametrize("net", [scaled_network])
def test_an_honest_network_raises_none_of_them(net):
    assert checks(net(), lambda a: descent(a) or one_chain(a), linf=(0.1,)) == set()


def test_more_steps_do_not_help_where_only_the_first_gradient_is_true():
    assert "more steps help" in checks(OnTheGrid(scaled_network()), descent)


def test_a_larger_budget_does_not_help_where_it_is_noticed():
    found = checks(Purifying(scaled_network()), descent, linf=(0.1, 0.2))
    assert "a larger ε helps" in found


def test_restarts_do_not_help_where_questions_are_counted():
    def wanted(attack):
        return descent(attack) or attack.purpose == "restarts"

    found = checks(Wary(scaled_network()), wanted, steps=8, linf=(0.15,), focus=0.15)
    assert "random restarts help" in found


def test_more_draws_help_where_gradients_are_noise():
    def wanted(attack):
        return descent(attack) or attack.purpose == "draws"

    class Drawing(Noisy):
        pass

    found = checks(Drawing(scaled_network()), wanted, draws=1, draws_curve=(400,), steps=4)
    assert "more draws a gradient no longer help" in found


def test_square_beats_gradients_that_are_zero():
    found = checks(FineRounding(scaled_network()), one_chain, queries=400, apgd_draws=1)
    assert "Square breaks few images that APGD did not" in found


def test_another_attack_beats_the_suite_where_only_it_meets_a_true_gradient():
    def wanted(attack):
        return attack.name == "FGSM" or (one_chain(attack) and attack.name != "Square")

    assert "the standard suite beats every other attack" in checks(
        OnTheGrid(scaled_network()), wanted
    )
