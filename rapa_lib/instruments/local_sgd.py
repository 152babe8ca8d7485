"""Local SGD inside a layer: how far its tiles part between two averagings.

The deviations of a layer's tiles from their mean move by SGD with momentum,

    v ← μ v + γ + λ δ,      δ ← δ − η v,

where γ = κ δ + ξ: a pull that is linear in δ, and gradient noise with Σ_t E‖ξ_t‖² = N in every
step. An averaging sets δ and v to zero. The derivation is in docs/synchronisation.md.
"""

import math

from rapa_lib._checks import check_int, check_real


def spread_after(
    steps: int, *, rate: float, noise: float, momentum: float = 0.0, held: float = 0.0
) -> float:
    """Expected Σ_t ‖δ_t‖² so many steps after an averaging: η² N Σ_m h_m².

    h_m is what is left of a unit of noise m steps after it came, as momentum and pull make of it;
    without pull h_m = (1 − μ^m) / (1 − μ). Exact for a linear pull and noise that does not change.

    Args:
        steps: j, since the last averaging of kernels and velocities.
        rate: η of the layer.
        noise: N, see :class:`rapa_lib.instruments.pull.LayerPull`.
        momentum: μ of SGD, below 1.
        held: κ + λ, pull and weight decay per ‖δ‖²; negative where the loss pushes tiles apart.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    check_int("steps", steps, low=0)
    _check(rate, noise, momentum)
    check_real("held", held)
    left, velocity, total = 0.0, 1.0, 0.0
    for _ in range(steps):
        left += velocity
        total += left * left
        velocity = momentum * velocity - rate * held * left
    return rate * rate * noise * total


def stationary_spread(rate: float, noise: float, held: float, *, momentum: float = 0.0) -> float:
    """What :func:`spread_after` tends to: η N / (κ + λ) / ((1 − μ) (2 − η (κ + λ) / (1 + μ))).

    To first order in η it is η / (1 − μ) · N / (2 (κ + λ)), as
    :func:`rapa_lib.instruments.pull.predicted_spread` has it.

    Args:
        rate, noise, momentum, held: as for :func:`spread_after`.

    Returns:
        The limit; infinite where nothing holds the tiles together, or the rate is beyond what the
        pull bears, η (κ + λ) ≥ 2 (1 + μ).

    Raises:
        ValueError, TypeError: naming the argument.
    """
    _check(rate, noise, momentum)
    check_real("held", held)
    room = 2 - rate * held / (1 + momentum)
    if held <= 0 or room <= 0:
        return math.inf
    return rate * noise / (held * (1 - momentum) * room)


def _check(rate: float, noise: float, momentum: float) -> None:
    check_real("rate", rate, low=0)
    check_real("noise", noise, low=0)
    if check_real("momentum", momentum, low=0) >= 1:
        raise ValueError(f"momentum: got {momentum}, allowed: at least 0 and below 1")
