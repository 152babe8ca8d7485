"""Small trained networks to attack, and networks that defend themselves in bad faith."""

import copy
from functools import cache

import foolbox
import torch
from tiny import tiny_dataset, tiny_network
from torch import nn

from rapa_lib import InputScaling, RapaConv2d
from rapa_lib.instruments.faults import fine_tune
from rapa_lib.robustness import ImageModel, SuiteSettings, as_images, attack_suite

SCALING = InputScaling.of(tiny_dataset().train_images)


@cache
def _trained(tiling, init_seed, **changes):
    net = tiny_network(tiling=tiling, init_seed=init_seed, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(init_seed)
        fine_tune(net, tiny_dataset(), SCALING, 40, batch_size=16, learning_rate=0.05)
    return net.eval()


def trained(tiling="random", init_seed=0, **changes):
    """A network that has learnt the tiny data set; a copy that the caller may spoil."""
    return copy.deepcopy(_trained(tiling, init_seed, **changes))


def images():
    """The test images in [0, 1], and their labels."""
    data = tiny_dataset()
    return as_images(data.test_images), data.test_labels


def more_images():
    """Training and test images, and their labels: 78."""
    data = tiny_dataset()
    x = torch.cat([data.test_images, data.train_images])
    return as_images(x), torch.cat([data.test_labels, data.train_labels])


def bounded(net, scaling=SCALING):
    """A foolbox model of a network."""
    return foolbox.PyTorchModel(ImageModel(net, scaling), bounds=(0, 1))


def suite(level, *, copies=False, **settings):
    """A level's attacks, with few steps and queries where nothing else is asked."""
    few = {"queries": 60, "apgd_steps": 10, "apgd_draws": 2}
    return attack_suite(level, SuiteSettings(**few | settings), copies=copies)


def cascade(attacks, norm="linf", purpose="suite"):
    """The attacks of one cascade among those of the standard level."""
    return [a for a in attacks if (a.norm, a.purpose, a.level) == (norm, purpose, "standard")]


def drawing():
    """A layer that draws, unused: it shows that every pass of a module may differ."""
    return RapaConv2d(1, 1, 1, n_tiles=2)


PLAIN = InputScaling((0.0, 0.0), (1.0, 1.0))
"""Scaling of networks that take images as they are."""


class Scaled(nn.Module):
    """A network that scales its images itself, so that what stands before it sees pixels."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        mean, std = (torch.tensor(part).view(-1, 1, 1) for part in SCALING)
        return self.net((x - mean) / std)


def scaled_network(init_seed=0):
    """An ordinary network that takes images as they are."""
    return Scaled(trained("none", init_seed)).eval()


class Wrapped(nn.Module):
    """A network behind something that hides its gradients."""

    redraws = False

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.drawing = drawing() if self.redraws else None


class Rounding(Wrapped):
    """Sees brightness in few steps only, so that its gradient is zero."""

    steps = 2

    def forward(self, x):
        return self.inner(torch.round(x * self.steps) / self.steps)


class NoisyGradient(Wrapped):
    """Answers as the network does, but noise of a multiple of its size is added to its gradient."""

    size = 1.5
    redraws = True

    def forward(self, x):
        if x.requires_grad:
            x = x.clone()  # the hook must not be the caller's
            x.register_hook(lambda g: g + self.size * g.std() * torch.randn_like(g))
        return self.inner(x)


class RandomResizing(Wrapped):
    """Enlarges the images by a random factor and cuts a random part of their size out."""

    redraws = True

    def forward(self, x):
        size = x.shape[-1]
        larger = size + int(torch.randint(2, ()))
        x = nn.functional.interpolate(x, (larger, larger), mode="bilinear", align_corners=False)
        top, left = (int(torch.randint(larger - size + 1, ())) for _ in range(2))
        return self.inner(x[..., top : top + size, left : left + size])


class RandomMember(nn.Module):
    """One network of many, drawn anew for each call."""

    def __init__(self, members):
        super().__init__()
        self.members, self.drawing = nn.ModuleList(members), drawing()

    def forward(self, x):
        return self.members[int(torch.randint(len(self.members), ()))](x)


class MeanMember(RandomMember):
    """The mean of their softmax outputs: the deterministic surrogate."""

    def forward(self, x):
        return torch.stack([m(x).softmax(1) for m in self.members]).mean(0).log()


class Coin(nn.Module):
    """Answers one of three classes, right with probability 0.5, whatever it sees."""

    def __init__(self):
        super().__init__()
        self.drawing = drawing()

    def forward(self, x):
        right = torch.rand(len(x), 1) < 0.5
        scores = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 2.0, 0.0])
        return torch.where(right, *scores) + 0 * x.sum()
