import itertools
import math

import foolbox
import pytest
import torch
from attacked import SCALING, Rounding, images, suite, trained
from tiny import tiny_dataset
from torch import nn

from rapa_lib import InputScaling, RapaConv2d, frozen_draws
from rapa_lib._seeds import seeded
from rapa_lib.experiments.adversarial_robustness.experiment import groups
from rapa_lib.robustness import (
    LEVELS,
    VIEWS,
    Attack,
    ImageModel,
    SuiteSettings,
    Target,
    as_images,
    check_images,
    layer_noise,
    masking_alarms,
    mean_correct,
    run_attack,
    run_cascade,
    vanishing_gradients,
)
from rapa_lib.training import predict

ONE = InputScaling((0.4,), (0.25,))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def scaled(x):
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in SCALING)
    return (x - mean) / std


def row(correct, **changes):
    plain = {
        "level": "adaptive", "attack": "PGD", "norm": "linf", "epsilon": 0.1, "draws": 4,
        "purpose": "suite", "restarts": 1, "correct": correct,
        "robust_accuracy": sum(correct) / len(correct),
    }  # fmt: skip
    return plain | changes


# --- The network as attacks see it ------------------------------------------------------------


def test_images_are_scaled_as_in_training():
    net, data = trained("none"), tiny_dataset()
    logits = ImageModel(net, SCALING)(as_images(data.test_images))
    torch.testing.assert_close(logits, predict(net, data.test_images, SCALING))


def test_on_a_deterministic_model_the_numbers_are_foolboxs_own():
    net, (x, labels) = trained("none"), images()
    own = {"mean": list(SCALING.mean), "std": list(SCALING.std), "axis": -3}
    theirs = foolbox.PyTorchModel(net, bounds=(0, 1), preprocessing=own)
    for attack in (a for level in LEVELS[:2] for a in suite(level, linf=(0.1,), focus=0.1)):
        if attack.source not in ("fresh", "mean") or attack.restarts > 1:
            continue
        for epsilon in attack.epsilons or (None,):
            outcome = run_attack(attack, epsilon, Target(net, SCALING), x, labels, progress=False)
            with seeded(0, 1_000_021):
                torch.randint(2**31, ())
                _, expected, _ = attack.make()(theirs, x, labels, epsilons=epsilon)
            if epsilon is None:  # lengthened until it misleads, which it does by itself
                assert (theirs(outcome.images).argmax(1) != labels).float().mean() > 0.9
                continue
            assert torch.equal(outcome.images, expected)
            assert torch.equal(outcome.correct, (theirs(expected).argmax(1) == labels).double())
            assert outcome.claimed == float((outcome.correct == 0).double().mean())


def test_fresh_draws_differ_and_frozen_ones_do_not():
    net, (x, _) = trained(), images()
    fresh, frozen = ImageModel(net, SCALING), ImageModel(net, SCALING, "frozen", seed=3)
    assert not torch.equal(fresh(x), fresh(x))
    assert torch.equal(frozen(x), frozen(x))
    assert not torch.equal(frozen(x), ImageModel(net, SCALING, "frozen", seed=4)(x))
    with frozen_draws(net, 3):
        torch.testing.assert_close(frozen(x), net(scaled(x)))


def test_the_mean_is_that_of_the_softmax_over_draws_and_the_vote_counts():
    net, (x, _) = trained(), images()
    x = x[:3]
    one = ImageModel(net, SCALING, "mean", draws=5, seed=7)
    with frozen_draws(net, 7):
        logits = net(scaled(x).repeat(5, 1, 1, 1)).unflatten(0, (5, 3))
    torch.testing.assert_close(one(x).exp(), logits.softmax(2).mean(0))
    votes = ImageModel(net, SCALING, "vote", draws=5, seed=7)(x)
    counted = nn.functional.one_hot(logits.argmax(2), logits.shape[2]).sum(0)
    assert torch.equal(votes.floor(), counted.double())


def test_the_averaged_gradient_converges_to_the_mean_over_all_assignments():
    layer = RapaConv2d(1, 3, 1, n_tiles=2, dtype=torch.double)
    net = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    x, label = torch.rand(1, 1, 2, 2, dtype=torch.double), torch.tensor([1])
    scaling = InputScaling((0.5,), (0.2,))

    def gradient(model, image):
        image = image.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(image), label)
        return torch.autograd.grad(loss, image)[0]

    class OverAll(nn.Module):
        """The logarithm of the mean softmax over all six balanced assignments."""

        def forward(self, image):
            every = [a for a in itertools.product((0, 1), repeat=4) if sum(a) == 2]
            assert len(every) == 6
            pixels = (image - 0.5) / 0.2
            softmax = [net[1:](layer(pixels, torch.tensor([a]))).softmax(1) for a in every]
            return torch.stack(softmax).mean(0).log()

    exact = gradient(OverAll(), x)
    errors = []
    for draws in (4, 64, 1024, 16384):
        tries = [gradient(ImageModel(net, scaling, "mean", draws=draws), x) for _ in range(8)]
        errors.append(float((torch.stack(tries) - exact).square().mean().sqrt() / exact.norm()))
    assert errors[-1] < 0.01
    slope = math.log(errors[0] / errors[-1]) / math.log(16384 / 4)
    assert 0.35 < slope < 0.65  # the error falls with the root of the number of draws


def test_the_merged_view_is_the_merged_network_with_new_statistics():
    net, data = trained(tile_init="identical"), tiny_dataset()
    x, _ = images()
    merged = ImageModel(net, SCALING, "merged", train_images=data.train_images)
    assert torch.equal(merged(x), merged(x))
    assert not any(isinstance(m, RapaConv2d) for m in merged.network.modules())
    raw = ImageModel(net, SCALING, "merged")
    assert not torch.equal(raw(x), merged(x))


def test_a_network_without_lots_takes_one_pass_whatever_is_asked():
    net, (x, _) = trained("none"), images()
    assert ImageModel(net, SCALING, "mean", draws=64).draws == 1
    torch.testing.assert_close(ImageModel(net, SCALING, "mean", draws=64)(x), net(scaled(x)))


def test_judging_is_the_share_of_draws_that_are_right():
    net, (x, labels) = trained(), images()
    model = ImageModel(net, SCALING)
    with seeded(5):
        found = mean_correct(model, x, labels, 6, batch_size=7)
    with seeded(5):
        answers = [torch.cat([model(part).argmax(1) for part in x.split(7)]) for _ in range(6)]
    expected = torch.stack([(a == labels).double() for a in answers]).mean(0)
    torch.testing.assert_close(found, expected)
    assert len(set(found.tolist())) > 2


# --- Attacks ----------------------------------------------------------------------------------


def linear_target():
    net = nn.Sequential(nn.Flatten(), nn.Linear(27, 2))
    return net, Target(net, InputScaling((0.5,) * 3, (0.25,) * 3))


def test_the_minimum_of_a_linear_model_is_found():
    net, target = linear_target()
    x = 0.3 + 0.4 * torch.rand(60, 3, 3, 3)
    scores = target.judge()(x)
    labels = scores.argmax(1)
    weight = (net[1].weight[0] - net[1].weight[1]) / 0.25
    distance = ((scores[:, 0] - scores[:, 1]).abs() / weight.norm()).double()
    far = distance > 0.02  # nearer ones take more steps than there are
    (attack,) = (a for a in suite("adaptive", steps=50, l2=(0.1,)) if a.name == "DDN")
    outcome = run_attack(attack, None, target, x, labels, progress=False)
    assert far.sum() > 40
    torch.testing.assert_close(outcome.norms[far], distance[far], rtol=0.02, atol=0)
    assert outcome.correct.max() == 0


def test_one_gradient_of_a_linear_model_is_the_best_that_can_be_done():
    net, target = linear_target()
    x = 0.3 + 0.4 * torch.rand(60, 3, 3, 3)
    scores = target.judge()(x)
    weight = (net[1].weight[0] - net[1].weight[1]) / 0.25
    needed = (scores[:, 0] - scores[:, 1]).abs() / weight.abs().sum()
    for attack in suite("published", linf=(0.02,))[:1]:
        outcome = run_attack(attack, 0.02, target, x, scores.argmax(1), progress=False)
        assert torch.equal(outcome.correct == 0, needed < 0.02)


def test_images_are_judged_on_fresh_draws_not_by_the_attacks_own_word():
    class Coin(nn.Module):
        """Answers 0 or 1 by lot, whatever it sees: an attack claims success half of the time."""

        def __init__(self):
            super().__init__()
            self.layer = RapaConv2d(1, 1, 1, n_tiles=2)

        def forward(self, x):
            coin = torch.rand(len(x), 1) < 0.5
            return torch.where(coin, 1.0, -1.0) * torch.tensor([1.0, -1.0]) + 0 * x.sum()

    x, labels = torch.rand(400, 1, 2, 2), torch.zeros(400, dtype=torch.long)
    (attack, _) = suite("published", linf=(0.1,))
    outcome = run_attack(
        attack, 0.1, Target(Coin(), ONE), x, labels, judge_draws=50, progress=False
    )
    assert abs(outcome.claimed - 0.5) < 0.1
    torch.testing.assert_close(outcome.correct.mean().item(), 0.5, rtol=0, atol=0.02)
    assert outcome.correct.std() < 0.1  # each image by itself, not those that were claimed


def test_budgets_hold_and_another_seed_gives_other_perturbations():
    net, (x, labels) = trained(), images()
    target = Target(net, SCALING)
    attacks = [a for level in LEVELS for a in suite(
        level, linf=(0.1,), l2=(0.5,), steps=2, draws=2, focus=0.1, query_steps=1, queries=10,
        apgd_steps=2,
    )]  # fmt: skip
    assert {a.source for a in attacks} == {"fresh", "frozen", "mean", "merged", "vote"}
    for attack in attacks:
        for epsilon in attack.epsilons or (None,):
            run = [
                run_attack(
                    attack, epsilon, target, x, labels, judge_draws=2, seed=s, progress=False
                )
                for s in (1, 1, 2)
            ]
            assert torch.equal(run[0].images, run[1].images)
            assert torch.equal(run[0].correct, run[1].correct)
            assert not torch.equal(run[0].images, run[2].images)
            assert run[0].images.min() >= 0
            assert run[0].images.max() <= 1
            if epsilon is not None:
                assert run[0].norms.max() <= epsilon * 1.0002 + 1e-6
            assert run[0].norms.max() > 0


def test_restarts_keep_the_strongest_and_help():
    net, (x, labels) = trained("none"), images()
    one = Attack(
        "adaptive", "PGD", "LinfProjectedGradientDescentAttack", "linf", "mean", (0.05,),
        options={"steps": 1, "rel_stepsize": 0.5},
    )  # fmt: skip
    many = Attack(**{**vars(one), "restarts": 20})
    left = [
        run_attack(a, 0.05, Target(net, SCALING), x, labels, progress=False).correct.mean()
        for a in (one, many)
    ]
    assert left[1] < left[0]


def test_transfer_takes_the_copys_gradients():
    net, other = trained("none"), trained("none", 1)
    x, labels = images()
    (attack,) = (
        a for a in suite("adaptive", linf=(0.2,), focus=0.2, copies=True)
        if a.name == "from copies"
    )  # fmt: skip
    black = run_attack(
        attack, 0.2, Target(net, SCALING, copies=[(other, SCALING)]), x, labels, progress=False
    )
    white = run_attack(
        attack, 0.2, Target(net, SCALING, copies=[(net, SCALING)]), x, labels, progress=False
    )
    assert white.correct.mean() < black.correct.mean()
    with pytest.raises(ValueError, match="copies: got none"):
        run_attack(attack, 0.2, Target(net, SCALING), x, labels, progress=False)


def test_decision_based_attacks_find_the_boundary_of_the_vote_without_gradients():
    net, target = linear_target()
    x = 0.3 + 0.4 * torch.rand(30, 3, 3, 3)
    scores = target.judge()(x)
    labels = scores.argmax(1)
    wrong = torch.arange(30) % 5 == 0
    labels[wrong] = 1 - labels[wrong]
    weight = (net[1].weight[0] - net[1].weight[1]) / 0.25
    distance = ((scores[:, 0] - scores[:, 1]).abs() / weight.norm()).double()
    attacks = [a for a in suite("gradient_free", query_steps=20) if not a.epsilons]
    assert [a.name for a in attacks] == ["HopSkipJump", "boundary"]
    for attack in attacks:
        outcome = run_attack(attack, None, target, x, labels, progress=False)
        assert outcome.correct.max() == 0
        assert (outcome.norms[wrong] == 0).all()  # no attack is needed there
        ratio = outcome.norms[~wrong] / distance[~wrong]
        assert ratio.min() > 0.999
        assert ratio.median() < (2 if attack.name == "HopSkipJump" else 6)


def test_a_model_that_always_says_the_same_has_no_start_and_stays_unperturbed():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(net[1].weight)
    with torch.no_grad():
        net[1].bias.copy_(torch.tensor([1.0, 0.0]))
    x, labels = torch.rand(5, 1, 2, 2), torch.tensor([0, 0, 0, 0, 1])
    for attack in suite("gradient_free", query_steps=1):
        if attack.epsilons:
            continue
        outcome = run_attack(attack, None, Target(net, ONE), x, labels, progress=False)
        assert torch.equal(outcome.images, x)
        assert outcome.correct.tolist() == [1, 1, 1, 1, 0]
        assert (outcome.failed, outcome.claimed) == (4, 0.2)


def test_numbers_that_are_not_finite_count_as_a_failure_of_the_attack(monkeypatch):
    def broken(self, model, inputs, criterion, *, epsilons):
        spoilt = inputs.clone()
        spoilt[0] = torch.nan
        return None, spoilt, torch.ones(len(inputs), dtype=torch.bool)

    monkeypatch.setattr(foolbox.attacks.FGSM, "__call__", broken)
    net, (x, labels) = trained("none"), images()
    (attack, _) = suite("published", linf=(0.1,))
    outcome = run_attack(attack, 0.1, Target(net, SCALING), x, labels, progress=False)
    assert outcome.failed == 1
    assert torch.equal(outcome.images, x)
    assert outcome.claimed == (len(x) - 1) / len(x)


def test_a_perturbation_beyond_its_budget_is_an_error(monkeypatch):
    def liar(self, model, inputs, criterion, *, epsilons):
        beyond = (inputs + 2 * epsilons).clamp(0, 1)
        return None, beyond, torch.ones(len(inputs), dtype=torch.bool)

    monkeypatch.setattr(foolbox.attacks.FGSM, "__call__", liar)
    net, (x, labels) = trained("none"), images()
    (attack, _) = suite("published", linf=(0.1,))
    with pytest.raises(RuntimeError, match=r"LinfFastGradientAttack: a perturbation of 0\.2"):
        run_attack(attack, 0.1, Target(net, SCALING), x, labels, progress=False)


# --- Alarms -----------------------------------------------------------------------------------


def measured(net, levels=LEVELS, seed=0):
    (x, labels), target = images(), Target(net, SCALING)
    with torch.no_grad():
        labels = target.judge()(x).argmax(1)
    rows = []
    settings = {"linf": (0.1, 0.2), "l2": (1.0,), "steps": 5, "draws": 2, "focus": 0.1}
    how = {"judge_draws": 4, "seed": seed, "progress": False}
    for level in levels:
        these = suite(level, **settings, query_steps=3)
        for attacks, epsilon in groups(these):
            if epsilon is None:
                continue
            if len(attacks) > 1:
                outcomes = run_cascade(attacks, epsilon, target, x, labels, **how)
            else:
                outcomes = [run_attack(attacks[0], epsilon, target, x, labels, **how)]
            rows += [
                row(
                    outcome.correct.tolist(), level=level, attack=attack.name, norm=attack.norm,
                    epsilon=epsilon, draws=attack.draws, purpose=attack.purpose,
                    restarts=attack.restarts,
                )
                for attack, outcome in zip(attacks, outcomes, strict=True)
            ]  # fmt: skip
    return masking_alarms(rows, vanishing_gradients(target.judge(), x, labels))


def raised(alarms):
    return {alarm.check for alarm in alarms if alarm.holds is False}


@pytest.mark.parametrize("tiling", ["none", "random"])
def test_an_ordinary_network_raises_no_alarm(tiling):
    assert raised(measured(trained(tiling))) == set()


def test_a_rounding_layer_raises_the_alarms():
    alarms = measured(Rounding(trained("none")))
    assert {"a very large ε leaves nothing", "gradients do not vanish"} <= raised(alarms)
    assert "at 100.0 % of the images" in alarms[6].detail


def test_black_boxes_that_beat_a_white_one_raise_an_alarm():
    white, black = row([1.0] * 20), row([0.0] * 20, attack="from merged")
    assert raised(masking_alarms([white, black])) == {"white box beats black box"}
    assert raised(masking_alarms([white, row([0.0] * 20, level="gradient_free")])) == {
        "white box beats black box"
    }
    assert raised(masking_alarms([row([0.0] * 20), row([1.0] * 20, attack="from merged")])) == set()


def test_every_other_alarm_is_raised_by_what_it_is_for():
    none, half, all_ = [0.0] * 20, [0.0, 1.0] * 10, [1.0] * 20
    fgsm = row(half, level="published", attack="FGSM")
    assert raised(masking_alarms([fgsm, row(all_)])) == {"more steps help"}
    assert raised(masking_alarms([fgsm, row(half)])) == set()
    assert raised(masking_alarms([row(half), row(all_, epsilon=0.2)])) == {"a larger ε helps"}
    unbounded = row(half, purpose="unbounded", epsilon=0.5)
    assert raised(masking_alarms([unbounded])) == {"a very large ε leaves nothing"}
    assert raised(masking_alarms([row(none, purpose="unbounded")])) == set()
    restarts = row(all_, purpose="restarts", restarts=2)
    assert raised(masking_alarms([row(half), restarts])) == {"random restarts help"}
    falling = [row(all_, purpose="draws", draws=1), row(half, purpose="draws", draws=16)]
    assert raised(masking_alarms(falling)) == {"more draws a gradient no longer help"}
    assert raised(masking_alarms([*falling, row(half, purpose="draws", draws=64)])) == set()
    assert raised(masking_alarms([], flat_share=0.3)) == {"gradients do not vanish"}
    assert all(alarm.holds is None for alarm in masking_alarms([]))


# --- Noise of draws ----------------------------------------------------------------------------


def test_layer_noise_is_that_of_the_tiles_deviations():
    layer = RapaConv2d(2, 3, 3, padding=1, n_tiles=4, dtype=torch.double)
    x = torch.randn(20, 2, 6, 6, dtype=torch.double)
    every_tile = [layer(x, torch.full((20, 36), t)).detach() for t in range(4)]
    outputs = torch.stack(every_tile)
    within = outputs.var(0, correction=0).mean((0, 2, 3))
    between = outputs.mean(0).var((0, 2, 3))
    expected = float((within / between).sqrt().mean())
    noise = layer_noise(nn.Sequential(layer), x, draws=64)
    assert list(noise) == ["0"]
    assert noise["0"] == pytest.approx(expected, rel=0.1)
    fixed = RapaConv2d(2, 3, 3, padding=1, n_tiles=4, tiling="random_fixed", dtype=torch.double)
    assert layer_noise(nn.Sequential(fixed), x) == {}


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda x: x * 255, ValueError, "images: got values from 0 to 255, allowed: 0 to 1"),
        (lambda x: x - 0.1, ValueError, r"images: got values from -0\.1"),
        (lambda x: x / 0, ValueError, "images: .* values are not finite"),
        (lambda x: (255 * x).byte(), TypeError, "images: got torch.uint8, expected floating-point"),
        (lambda x: x[0], ValueError, r"images: got shape \(1, 8, 8\), expected \(N, C, H, W\)"),
        (lambda x: x[:0], ValueError, "images: got shape"),
        (lambda x: x.tolist(), TypeError, "images: got list"),
    ],
)
def test_images_that_are_none_are_refused(spoil, error, message):
    x = torch.rand(3, 1, 8, 8)
    x[0], x[1] = 0, 1
    with pytest.raises(error, match=message):
        check_images(spoil(x))


def test_attacks_refuse_such_images_before_any_work(monkeypatch):
    (attack, _), (x, labels) = suite("published", linf=(0.1,)), images()
    target = Target(trained("none"), SCALING)
    monkeypatch.setattr(Attack, "make", None)
    with pytest.raises(ValueError, match="images: got values"):
        run_attack(attack, 0.1, target, 2 * x, labels)
    with pytest.raises(ValueError, match="labels: got shape"):
        run_attack(attack, 0.1, target, x, labels[:-1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"level": "hard"}, ValueError, "level: got 'hard', allowed: published, adaptive"),
        ({"linf": (-0.1,)}, ValueError, "linf: got -0.1, allowed: finite, above 0"),
        ({"l2": ()}, ValueError, "l2: got no budget, expected at least one"),
        ({"l2": 0.5}, TypeError, "l2: got 0.5, expected a sequence"),
        ({"steps": 0}, ValueError, "steps: got 0, allowed: at least 1"),
        ({"draws": 0}, ValueError, "draws: got 0, allowed: at least 1"),
        ({"restarts": 0}, ValueError, "restarts: got 0, allowed: at least 1"),
        ({"draws_curve": (0,)}, ValueError, "draws_curve: got 0, allowed: at least 1"),
        ({"draws_curve": 4}, TypeError, "draws_curve: got 4, expected a sequence"),
        ({"focus": 0}, ValueError, "focus: got 0.0, allowed: finite, above 0"),
        ({"focus": "2:255"}, ValueError, "focus: got '2:255', allowed: numbers, quotients such as"),
        ({"focus": "0/255"}, ValueError, "focus: got 0.0, allowed: finite, above 0"),
        ({"linf": ("1/0",)}, ValueError, "linf: got '1/0', allowed: numbers, quotients such as"),
        ({"linf": "8/255"}, TypeError, "linf: got '8/255', expected a sequence"),
        ({"l2": ("nan",)}, ValueError, "l2: got 'nan', allowed: numbers, quotients such as"),
        ({"l2": (True,)}, TypeError, "l2: got True, expected a number"),
        ({"query_images": 0}, ValueError, "query_images: got 0, allowed: at least 1"),
        ({"query_steps": 0}, ValueError, "query_steps: got 0, allowed: at least 1"),
    ],
)
def test_a_suite_of_what_is_not_allowed_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        suite(**{"level": "adaptive"} | arguments)


def test_budgets_may_be_quotients_and_stand_in_order_once():
    settings = SuiteSettings(linf=["8/255", 2 / 255, "2 / 255"], l2=("0.5/2", 1), focus="8/255")
    assert settings.linf == (2 / 255, 8 / 255)
    assert settings.l2 == (0.25, 1.0)
    assert settings.focus == 8 / 255
    assert SuiteSettings(draws_curve=(16, 1, 16)).draws_curve == (1, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "StrongAttack"}, r"attack: foolbox .* has none called 'StrongAttack'"),
        ({"kind": "Attack"}, "attack: foolbox"),
        ({"norm": "l7"}, "norm: got 'l7', allowed: linf, l2"),
        ({"source": "merge"}, "source: got 'merge'"),
        ({"epsilons": (-1.0,)}, "epsilons: got -1.0"),
        ({"epsilons": ()}, "epsilons: got .*LinfFastGradientAttack takes epsilons"),
        ({"kind": "DDNAttack"}, "DDNAttack takes no epsilons"),
    ],
)
def test_an_attack_of_what_is_not_allowed_is_refused(changes, message):
    plain = {
        "level": "published", "name": "FGSM", "kind": "LinfFastGradientAttack", "norm": "linf",
        "source": "fresh", "epsilons": (0.1,),
    }  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message):
        Attack(**plain | changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"view": "some"}, f"view: got 'some', allowed: {', '.join(VIEWS)}"),
        ({"view": "frozen"}, "seed: got None, but view 'frozen'"),
        ({"view": "mean", "draws": 0}, "draws: got 0"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_a_view_of_what_is_not_allowed_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageModel(trained("none"), SCALING, **arguments)
