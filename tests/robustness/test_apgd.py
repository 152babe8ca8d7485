"""APGD: step by step as published, usable as foolbox's attacks are, averaged over draws."""

import foolbox
import pytest
import torch
from attacked import bounded, images, trained
from torch import nn

from rapa_lib.robustness import (
    L2APGDAttack,
    L2TargetedAPGDAttack,
    LinfAPGDAttack,
    LinfTargetedAPGDAttack,
)
from rapa_lib.robustness._apgd import checkpoints
from rapa_lib.robustness._losses import logits_ratio, margin, targeted_logits_ratio


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Watched(nn.Module):
    """A smooth function of images that keeps what it was asked."""

    def __init__(self, classes=5, shape=(2, 4, 4)):
        super().__init__()
        n = torch.Size(shape).numel()
        layers = (nn.Flatten(), nn.Linear(n, 12), nn.Tanh(), nn.Linear(12, classes))
        self.net = nn.Sequential(*layers).double()
        self.asked = []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        return self.net(x)


def reference(net, image, label, start, epsilon, steps, norm, loss):
    """Algorithm 1 of Croce & Hein for one image, word by word: the points that it visits."""

    def value(x):
        x = x.clone().requires_grad_()
        z = net(x[None])[0]
        if loss == "ce":
            f = -z.log_softmax(0)[label]
        else:
            order = [int(i) for i in z.argsort(descending=True)]
            best = order[1] if order[0] == label else order[0]
            f = -(z[label] - z[best]) / (z[order[0]] - z[order[2]] + 1e-12)
        (gradient,) = torch.autograd.grad(f, x)
        return float(f.detach()), gradient

    def project(x):
        change = x - image
        if norm == "linf":
            change = change.clamp(-epsilon, epsilon)
        elif float(change.norm()) > epsilon:
            change = change * epsilon / change.norm()
        return (image + change).clamp(0, 1)

    def ascent(x, gradient, eta):
        return project(
            x + eta * (gradient.sign() if norm == "linf" else gradient / gradient.norm())
        )

    eta, visited = 2 * epsilon, [start]
    f, gradient = value(start)
    x_max, f_max, g_max = start, f, gradient
    x_before, x = start, ascent(start, gradient, eta)
    visited.append(x)
    f_before, (f, gradient) = f, value(x)
    successes = int(f > f_before)
    if f > f_max:
        x_max, f_max, g_max = x, f, gradient
    w, eta_check, f_check, last = checkpoints(steps), eta, f_before, 0
    for k in range(1, steps + 1):
        if k in w:
            first = successes < 0.75 * (k - last)
            second = eta_check == eta and f_check == f_max
            eta_check, f_check, last, successes = eta, f_max, k, 0
            if first or second:
                eta, x, gradient, f = eta / 2, x_max, g_max, f_max
        if k == steps:
            break
        z = ascent(x, gradient, eta)
        new = project(x + 0.75 * (z - x) + 0.25 * (x - x_before))
        x_before, x = x, new
        visited.append(x)
        f_before, (f, gradient) = f, value(x)
        successes += f > f_before
        if f > f_max:
            x_max, f_max, g_max = x, f, gradient
    return visited


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize(("norm", "kind"), [("linf", LinfAPGDAttack), ("l2", L2APGDAttack)])
def test_every_step_is_that_of_the_published_algorithm(norm, kind, loss):
    net, epsilon, steps = Watched(), 0.1 if norm == "linf" else 0.4, 50
    x = torch.rand(6, 2, 4, 4, dtype=torch.double)
    labels = net.net(x).argmax(1)
    kind(loss=loss, steps=steps, drop=False).run(
        foolbox.PyTorchModel(net.eval(), bounds=(0, 1)), x, labels, epsilon=epsilon
    )
    clean, *visited = net.asked
    assert torch.equal(clean, x)
    assert len(visited) == steps + 1
    for i in range(len(x)):
        expected = reference(
            net.net, x[i], int(labels[i]), visited[0][i], epsilon, steps, norm, loss
        )
        found = [step[i] for step in visited]
        assert len(expected) == len(found)
        for mine, right in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, right, rtol=0, atol=1e-7)  # losses tie at the top


def test_the_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]
    assert all(b > a for a, b in zip(checkpoints(7), checkpoints(7)[1:], strict=False))


def test_losses_are_their_definitions():
    z = torch.randn(20, 6, dtype=torch.double)
    labels, targets = torch.arange(20) % 6, (torch.arange(20) + 2) % 6
    for loss, row in zip(logits_ratio(z, labels), range(20), strict=True):
        others = [float(v) for i, v in enumerate(z[row]) if i != labels[row]]
        ranked = sorted(z[row].tolist(), reverse=True)
        expected = -(float(z[row, labels[row]]) - max(others)) / (ranked[0] - ranked[2])
        assert float(loss) == pytest.approx(expected)
    for loss, row in zip(targeted_logits_ratio(z, labels, targets), range(20), strict=True):
        ranked = sorted(z[row].tolist(), reverse=True)
        gap = float(z[row, targets[row]] - z[row, labels[row]])
        assert float(loss) == pytest.approx(gap / (ranked[0] - (ranked[2] + ranked[3]) / 2))
    assert torch.equal(margin(z, labels) < 0, z.argmax(1) != labels)
    for few in (logits_ratio(3 * z + 7, labels), logits_ratio(z, labels)):
        torch.testing.assert_close(few, logits_ratio(z, labels))
    with pytest.raises(ValueError, match="model: got 2 classes"):
        logits_ratio(z[:, :2], labels % 2)


@pytest.mark.parametrize(
    "kind", [LinfAPGDAttack, L2APGDAttack, LinfTargetedAPGDAttack, L2TargetedAPGDAttack]
)
def test_a_foolbox_user_may_call_it_as_any_other_attack(kind):
    net, (x, labels) = trained("none"), images()
    model, epsilons = bounded(net), [0.05, 0.2] if "Linf" in kind.__name__ else [0.2, 2.0]
    raw, clipped, success = kind(steps=10)(model, x, labels, epsilons=epsilons)
    assert success.shape == (2, len(x))
    assert success[0].sum() < success[1].sum()
    for found, epsilon in zip(clipped, epsilons, strict=True):
        assert kind.distance(x, found).max() <= epsilon * (1 + 1e-5)
        assert found.min() >= 0
        assert found.max() <= 1
    assert torch.equal(model(clipped[1]).argmax(1) != labels, success[1])
    torch.testing.assert_close(raw[1], clipped[1])
    targets = (labels + 1) % 3
    wanted = foolbox.criteria.TargetedMisclassification(targets)
    _, found, reached = kind(steps=20)(model, x, wanted, epsilons=epsilons[1])
    assert reached.float().mean() > 0.5
    assert torch.equal(model(found).argmax(1) == targets, reached)


def test_it_leaves_no_more_than_descent_with_fixed_steps():
    net, (x, labels) = trained("none"), images()
    model, left = bounded(net), {}
    for name, attack in {
        "PGD": foolbox.attacks.LinfPGD(steps=40, rel_stepsize=2.5 / 40),
        "APGD": LinfAPGDAttack(steps=40),
        "DLR": LinfAPGDAttack(loss="dlr", steps=40),
        "T": LinfTargetedAPGDAttack(steps=40),
    }.items():
        _, _, success = attack(model, x, labels, epsilons=0.08)
        left[name] = 1 - float(success.float().mean())
    assert 0 < left["APGD"] < 1
    assert left["APGD"] <= left["PGD"]
    assert max(left.values()) - left["APGD"] <= 0.2


class Counting(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, []

    def forward(self, x):
        self.rows.append(len(x))
        return self.inner(x)


def test_images_that_are_broken_leave_the_batch_and_the_others_do_not_notice():
    net, (x, labels) = trained("none"), images()
    counted, found = Counting(bounded(net)), {}
    counted.bounds = (0, 1)
    for drop in (True, False):
        torch.manual_seed(3)
        counted.rows.clear()
        attack = LinfAPGDAttack(steps=15, drop=drop)
        found[drop] = attack.run(counted, x, labels, epsilon=0.1), sum(counted.rows)
    assert found[True][1] < 0.7 * found[False][1]
    wrong = [bounded(net)(images).argmax(1) != labels for images, _ in found.values()]
    assert torch.equal(*wrong)
    whole = torch.where(wrong[0][:, None, None, None], 0.0, found[True][0] - found[False][0])
    assert whole.abs().max() < 1e-5


def test_images_without_hope_are_given_up_at_a_checkpoint():
    net, (x, labels) = trained("none"), images()
    counted, left = Counting(bounded(net)), {}
    counted.bounds = (0, 1)
    for give_up in (None, 1.0, 0.0):
        torch.manual_seed(3)
        counted.rows.clear()
        found = LinfAPGDAttack(steps=30, give_up=give_up).run(counted, x, labels, epsilon=0.04)
        left[give_up] = sum(counted.rows), float((bounded(net)(found).argmax(1) == labels).sum())
    assert left[0.0][0] < left[1.0][0] < left[None][0]
    assert left[1.0][1] <= left[None][1] + 1
    assert left[0.0][0] <= len(x) * (2 + checkpoints(30)[0])


def test_gradients_and_answers_are_means_over_draws():
    class Noise(nn.Module):
        """Its slope is 1 ± 20 at random: of one draw the sign says little."""

        def forward(self, x):
            slope = 1 + 20 * torch.randn(len(x), 1)
            z = slope * (x.flatten(1).mean(1, keepdim=True) - 0.6)
            return torch.cat([-z, z, -5 + 0 * z], 1)

    x, labels = torch.full((60, 1, 2, 2), 0.6), torch.zeros(60, dtype=torch.long)
    model, rose = foolbox.PyTorchModel(Noise().eval(), bounds=(0, 1)), {}
    for draws in (1, 400):
        seen = []

        class Attack(LinfAPGDAttack):
            def direction(self, gradient):
                seen.append(gradient.mean((1, 2, 3)).clone())  # noqa: B023
                return super().direction(gradient)

        Attack(steps=1, draws=draws, drop=False).run(model, x, labels, epsilon=1e-4)
        rose[draws] = float((seen[0] > 0).float().mean())
    assert rose[1] < 0.75
    assert rose[400] > 0.8


def test_with_several_draws_one_lucky_look_does_not_end_the_attack():
    net, (x, labels) = trained("random"), images()
    model, left = bounded(net), {}
    for draws in (1, 8):
        found = LinfAPGDAttack(steps=20, draws=draws).run(model, x, labels, epsilon=0.1)
        right = [(model(found).argmax(1) == labels).float().mean() for _ in range(20)]
        left[draws] = float(torch.stack(right).mean())
    assert left[8] < left[1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"loss": "mse"}, ValueError, "loss: got 'mse', allowed: ce, dlr"),
        ({"steps": 0}, ValueError, "steps: got 0, allowed: at least 1"),
        ({"rho": 2.0}, ValueError, "rho: got 2.0"),
        ({"draws": 0}, ValueError, "draws: got 0"),
        ({"drop": 1}, TypeError, "drop: got 1"),
        ({"give_up": -1.0}, ValueError, "give_up: got -1.0"),
        ({"targets": 0}, ValueError, "targets: got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        LinfTargetedAPGDAttack(**arguments)


def test_what_is_no_image_or_no_criterion_is_refused():
    net, (x, labels) = trained("none"), images()
    with pytest.raises(TypeError, match=r"inputs: got Tensor, expected images \(N, C, H, W\)"):
        LinfAPGDAttack().run(bounded(net), x.flatten(1), labels, epsilon=0.1)

    class Odd(foolbox.criteria.Criterion):
        def __repr__(self):
            return "Odd()"

        def __call__(self, perturbed, outputs):
            return outputs

    with pytest.raises(ValueError, match=r"criterion: got Odd\(\), allowed: Misclassification"):
        LinfAPGDAttack().run(bounded(net), x, Odd(), epsilon=0.1)
