"""Local SGD: the predicted spread of tiles against simulated trainings, and its limits."""

import math

import pytest
import torch

from rapa_lib.instruments.local_sgd import spread_after, stationary_spread


def simulated(steps, *, rate, momentum, held, n_tiles=4, size=5000, noise=1.0):
    """Mean Σ_t ‖δ_t‖² after steps of SGD with momentum, from equal tiles, per unit of noise."""
    generator = torch.Generator().manual_seed(0)
    delta = torch.zeros(n_tiles, size, dtype=torch.float64)
    velocity = torch.zeros_like(delta)
    for _ in range(steps):
        xi = torch.randn(n_tiles, size, generator=generator, dtype=torch.float64)
        xi -= xi.mean(0)
        xi *= (noise / (n_tiles - 1)) ** 0.5  # Σ_t E ξ_t² = noise for every weight
        velocity = momentum * velocity + xi + held * delta
        delta -= rate * velocity
    return float(delta.square().sum()) / size


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("held", [0.0, 0.5, -0.1])
@pytest.mark.parametrize("steps", [1, 4, 64])
def test_the_spread_after_so_many_steps_is_that_of_simulated_training(steps, momentum, held):
    found = simulated(steps, rate=0.05, momentum=momentum, held=held, noise=2.0)
    predicted = spread_after(steps, rate=0.05, noise=2.0, momentum=momentum, held=held)
    assert predicted == pytest.approx(found, rel=0.05)


def test_one_step_is_the_noise_itself_and_none_is_nothing():
    assert spread_after(1, rate=0.3, noise=2.0, momentum=0.9, held=5.0) == pytest.approx(0.18)
    assert spread_after(0, rate=0.3, noise=2.0) == 0


def test_without_pull_it_is_the_sum_of_what_momentum_makes_of_each_step():
    expected = 0.01 * sum(((1 - 0.9**m) / 0.1) ** 2 for m in range(1, 31))
    assert spread_after(30, rate=0.1, noise=1.0, momentum=0.9) == pytest.approx(expected)


@pytest.mark.parametrize(("rate", "momentum", "held"), [(0.1, 0.0, 2.0), (0.02, 0.9, 1.5)])
def test_in_the_end_it_is_stationary(rate, momentum, held):
    limit = stationary_spread(rate, 3.0, held, momentum=momentum)
    found = spread_after(5000, rate=rate, noise=3.0, momentum=momentum, held=held)
    assert found == pytest.approx(limit, rel=1e-6)
    small = stationary_spread(1e-6, 3.0, held, momentum=momentum)
    assert small == pytest.approx(1e-6 / (1 - momentum) * 3.0 / (2 * held), rel=1e-4)


def test_what_nothing_holds_has_no_limit():
    assert stationary_spread(0.1, 1.0, 0.0) == math.inf
    assert stationary_spread(1.0, 1.0, 2.0) == math.inf  # the rate is beyond what it bears
    assert stationary_spread(0.1, 0.0, 1.0) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": -1.0}, "rate: got -1"),
        ({"noise": -1.0}, "noise: got -1"),
        ({"momentum": 1.0}, "momentum: got 1.0, allowed: at least 0 and below 1"),
        ({"held": math.inf}, "held: got inf"),
        ({"steps": -1}, "steps: got -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        spread_after(**{"steps": 3, "rate": 0.1, "noise": 1.0} | arguments)
