"""Where R(δ) may be compared with what is measured."""

import pytest
from tiny import tiny_network
from torch import nn

from rapa_lib.instruments.smoothness import penalty_applies

SMOOTH = {"activation": "tanh", "pooling": "avg", "normalisation": "group"}


@pytest.mark.parametrize(
    "changes",
    [{}, {"normalisation": "none"}, {"activation": "gelu"}],
)
def test_smooth_networks_have_a_penalty(changes):
    assert penalty_applies(tiny_network(**SMOOTH | changes))


@pytest.mark.parametrize(
    "changes",
    [{"activation": "relu"}, {"pooling": "max"}, {"pooling": "mixed"}, {"normalisation": "batch"}],
)
def test_kinks_and_batch_normalisation_have_none(changes):
    assert not penalty_applies(tiny_network(**SMOOTH | changes))


def test_what_is_unknown_counts_as_not_smooth():
    class Own(nn.Module):
        def forward(self, x):
            return x.abs()

    assert not penalty_applies(nn.Sequential(nn.Linear(2, 2), Own()))
