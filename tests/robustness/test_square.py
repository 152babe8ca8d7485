"""Square: a random search as published, usable as foolbox's attacks are, averaged over draws."""

import itertools
import math

import foolbox
import pytest
import torch
from attacked import bounded, images, trained
from torch import nn

from rapa_lib.robustness import L2SquareAttack, LinfSquareAttack
from rapa_lib.robustness._square import _bump, _pattern


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Asked(nn.Module):
    """A linear function of images that keeps what it was asked."""

    def __init__(self, shape=(2, 10, 10)):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 3))
        self.seen = []

    def forward(self, x):
        self.seen.append(x.clone())
        return self.net(x)


def asked(kind, epsilon, queries=60, middle=False, **options):
    """A linear model's images, and what an attack that never succeeds asks of it."""
    net = Asked().eval()
    x = 0.3 + 0.4 * torch.rand(5, 2, 10, 10) if middle else torch.rand(5, 2, 10, 10)
    labels = net.net(x).argmax(1)
    attack = kind(queries=queries, drop=False, **options)
    found = attack.run(foolbox.PyTorchModel(net, bounds=(0, 1)), x, labels, epsilon=epsilon)
    clean, *tried = net.seen
    assert torch.equal(clean, x)
    return net, x, labels, tried, found


def test_every_query_of_linf_is_a_corner_of_the_budget_that_differs_in_one_square():
    _, x, _, tried, _ = asked(LinfSquareAttack, 0.05, middle=True)
    assert len(tried) == 60
    stripes = tried[0] - x
    torch.testing.assert_close(stripes, stripes[:, :, :1].expand_as(stripes), rtol=0, atol=1e-6)
    for one in tried:
        torch.testing.assert_close((one - x).abs(), torch.full_like(x, 0.05), rtol=0, atol=1e-6)
    held = tried[0]
    for step, one in enumerate(tried[1:], start=1):
        side = LinfSquareAttack(queries=60).side(step, (10, 10))
        for was, is_ in zip(held, one, strict=True):
            changed = ((was - is_).abs() > 1e-6).any(0).nonzero()
            extent = (changed.amax(0) - changed.amin(0) + 1).tolist() if len(changed) else [0]
            assert max(extent) <= side
        break  # from the second step on it depends on what was taken


def test_the_square_shrinks_as_the_paper_says():
    attack = LinfSquareAttack(queries=10_000)
    sides = [attack.side(step, (100, 100)) for step in (1, 11, 51, 201, 1001, 2001, 4001, 6001)]
    assert sides == [round(math.sqrt(0.8 / 2**k) * 100) for k in range(8)]
    assert attack.side(8001, (100, 100)) == round(math.sqrt(0.8 / 2**8) * 100)
    half = LinfSquareAttack(queries=5000)
    assert half.side(501, (100, 100)) == attack.side(1001, (100, 100))
    assert attack.side(9999, (8, 8)) == 1
    assert L2SquareAttack(queries=100).side(99, (8, 8)) == 3


def bump(height, width):
    """Equation 2 of Andriushchenko et al., place by place, counted from 1."""
    n = height // 2
    rows = []
    for r in range(1, height + 1):
        row = []
        for s in range(1, width + 1):
            m = n - max(abs(r - height // 2 - 1), abs(s - width // 2 - 1))
            row.append(sum(1 / (n + 1 - k) ** 2 for k in range(m + 1)))
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("side", [3, 5, 9])
def test_the_pattern_of_l2_is_that_of_the_paper(side):
    half = side // 2
    expected = torch.cat([bump(side, half), -bump(side, side - half)], 1)
    torch.testing.assert_close(_bump(side, half), bump(side, half))
    torch.testing.assert_close(_pattern(side, torch.zeros(1)), expected / expected.norm())


def test_every_query_of_l2_has_the_length_of_the_budget_and_moves_two_windows():
    _, x, _, tried, _ = asked(L2SquareAttack, 0.3, middle=True)
    for one in tried:
        lengths = torch.linalg.vector_norm((one - x).flatten(1), dim=1)
        torch.testing.assert_close(lengths, torch.full((5,), 0.3), rtol=1e-4, atol=0)
    attack, change = L2SquareAttack(queries=100), tried[0] - x
    side = attack.side(50, (10, 10))
    new = attack.propose(x, tried[0], 0.3, 50) - x
    moved = ((new - change).abs() > 1e-6).any(1)
    assert moved.flatten(1).sum(1).min() > 0
    assert moved.flatten(1).sum(1).max() <= 2 * side**2
    emptied = (new == 0).all(1) & moved
    assert emptied.any()


@pytest.mark.parametrize(("kind", "epsilon"), [(LinfSquareAttack, 0.05), (L2SquareAttack, 0.3)])
def test_it_comes_near_the_best_that_can_be_done_to_a_linear_model(kind, epsilon):
    net, x, labels, _, found = asked(kind, epsilon, queries=1000, middle=True)
    weight = net.net[1].weight
    order = 1 if kind is LinfSquareAttack else 2  # of the dual norm

    def margins(images):
        z = net.net(images)
        return z.gather(1, labels[:, None]) - z

    others = margins(x).scatter(1, labels[:, None], torch.inf)
    slopes = torch.stack([torch.linalg.vector_norm(weight[y] - weight, order, 1) for y in labels])
    best = (others - epsilon * slopes).amin(1)
    reached = margins(found).scatter(1, labels[:, None], torch.inf).amin(1)
    clean = others.amin(1)
    share = (clean - reached) / (clean - best)
    assert share.max() <= 1 + 1e-4
    assert share.min() > (0.9 if kind is LinfSquareAttack else 0.4)


def test_what_is_tried_is_kept_only_where_it_is_better():
    net, _, labels, tried, found = asked(LinfSquareAttack, 0.05)
    margins = [
        net.net(one).gather(1, labels[:, None])[:, 0]
        - net.net(one).scatter(1, labels[:, None], -torch.inf).amax(1)
        for one in tried
    ]
    lowest = torch.stack(margins).amin(0)
    mine = net.net(found)
    left = mine.gather(1, labels[:, None])[:, 0]
    left -= mine.scatter(1, labels[:, None], -torch.inf).amax(1)
    torch.testing.assert_close(left, lowest)


@pytest.mark.parametrize("kind", [LinfSquareAttack, L2SquareAttack])
def test_a_foolbox_user_may_call_it_as_any_other_attack(kind):
    net, (x, labels) = trained("none"), images()
    model, epsilons = bounded(net), [0.05, 0.3] if kind is LinfSquareAttack else [0.2, 3.0]
    _, clipped, success = kind(queries=60)(model, x, labels, epsilons=epsilons)
    assert success[0].sum() < success[1].sum()
    for found, epsilon in zip(clipped, epsilons, strict=True):
        assert kind.distance(x, found).max() <= epsilon * (1 + 1e-5)
        assert found.min() >= 0
        assert found.max() <= 1
    assert torch.equal(model(clipped[1]).argmax(1) != labels, success[1])


def test_queries_count_every_draw_and_broken_images_ask_no_more():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = 0

        def forward(self, x):
            self.rows += len(x)
            z = x.flatten(1).mean(1, keepdim=True) + 0.01 * torch.randn(len(x), 1)
            return torch.cat([2 + z, 1 - z], 1)

    x, labels = torch.rand(20, 1, 6, 6), torch.zeros(20, dtype=torch.long)
    net = Noise().eval()
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    LinfSquareAttack(queries=200, draws=4).run(model, x, labels, epsilon=0.1)
    assert 0.9 * 200 <= net.rows / 20 - 4 <= 200 + 4  # beside the first look
    net.rows = 0
    half = torch.arange(20) % 2
    LinfSquareAttack(queries=200).run(model, x, half, epsilon=0.1)
    assert net.rows == 20 + 200 * 10  # every second one is wrong as it is


def test_a_lucky_answer_is_asked_about_again():
    class Noise(nn.Module):
        """Nothing but noise: what is held must stay an honest answer, not the luckiest one."""

        def forward(self, x):
            z = 3 * torch.randn(len(x), 1)
            return torch.cat([20 + z, 0 * z], 1)

    x, labels = torch.rand(200, 1, 6, 6), torch.zeros(200, dtype=torch.long)
    model, taken = foolbox.PyTorchModel(Noise().eval(), bounds=(0, 1)), {}
    for draws in (1, 2):
        steps = []

        class Attack(LinfSquareAttack):
            def propose(self, images, x, epsilon, step):
                steps.append(x.clone())  # noqa: B023
                return super().propose(images, x, epsilon, step)

        Attack(queries=60 * draws, draws=draws, drop=False).run(model, x, labels, epsilon=0.1)
        last = [
            float((a != b).flatten(1).any(1).float().mean())
            for a, b in itertools.pairwise(steps[20:])
            if len(a) == len(b)
        ]
        taken[draws] = sum(last) / len(last)
    assert taken[1] < 0.06  # the luckiest of many bars the way
    assert taken[2] > 2 * taken[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"queries": 0}, "queries: got 0"), ({"share": 0.0}, "share: got 0.0")],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinfSquareAttack(**arguments)
