"""Devices whose steps depend on their weight against statistics of aihwkit 1.2.0."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from test_analog_agreement import assert_agrees, beyond

from rapa_lib.analog import (
    AnalogTileArray,
    ConstantStepDevice,
    ExpStepDevice,
    LinearStepDevice,
    PowStepDevice,
    SoftBoundsDevice,
    SoftBoundsReferenceDevice,
    TileConfig,
    UpdateParameters,
)

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "aihwkit_reference2.npz"
pytestmark = pytest.mark.skipif(
    not REFERENCE.is_file(), reason="no shared/data/aihwkit_reference2.npz beside the checkout"
)

ALIKE = {"dw_min_dtod": 0, "w_max_dtod": 0, "w_min_dtod": 0, "up_down_dtod": 0}
LINEAR = {"gamma_up": 0.5, "gamma_down": 0.3, "gamma_up_dtod": 0, "gamma_down_dtod": 0}
DEVICES = {
    "linear_step": LinearStepDevice(**ALIKE, **LINEAR),
    "linear_step_mult": LinearStepDevice(**ALIKE, **LINEAR, mult_noise=True),
    "exp_step": ExpStepDevice(**ALIKE),
    "pow_step": PowStepDevice(**ALIKE, pow_gamma=1.5, pow_gamma_dtod=0),
    "softbounds_mult": SoftBoundsDevice(**ALIKE),
    "softbounds_write": SoftBoundsDevice(**ALIKE, write_noise_std=2),
    "softbounds_reference": SoftBoundsReferenceDevice(**ALIKE, reference_mean=0.1, reference_std=0),
    "constant_updown": ConstantStepDevice(**ALIKE, up_down=0.1),
}
# How often an update of so many steps is repeated; the definition is slow.
REPEATS = {("exact", 1): 6000, ("exact", 40): 2000, ("sequential", 1): 3000}
REPEATS |= {("sequential", 40): 300}


@cache
def reference():
    with np.load(REFERENCE) as file:
        names = [name for name in file.files if not name.endswith("config")]
        return {name: torch.from_numpy(np.asarray(file[name])) for name in names}


def changes(device, method, steps, n):
    """Weight changes of n equal tiles after so many updates."""
    config = TileConfig(device=device, update=UpdateParameters(method=method))
    tiles = AnalogTileArray(n, 10, 8, config, seed=0)
    start = reference()["W0"]
    tiles.program(start.expand(n, -1, -1))
    x, d = (reference()[name].expand(n, -1) for name in "xd")
    for _ in range(steps):
        tiles.update(x, d, 0.05, torch.arange(n))
    return (tiles.read() - start).double()


def halves(values):
    """Every second entry, and the others: what was looked at in building, and what was not."""
    flat = values.flatten(-2)
    return flat[..., ::2], flat[..., 1::2]


@pytest.mark.parametrize("method", ["exact", "sequential"])
@pytest.mark.parametrize("steps", [1, 40])
@pytest.mark.parametrize("name", DEVICES)
def test_updates_have_the_means_and_spreads_of_the_reference(name, steps, method):
    torch.manual_seed(0)
    n = REPEATS[method, steps]
    where = f"dev/{name}/steps{steps}"
    mean, std = (reference()[f"{where}/{part}"].double() for part in ("mean", "std"))
    measured = int(reference()[f"{where}/n"])
    draws = changes(DEVICES[name], method, steps, n)
    if beyond(draws, mean, std, measured, 1e-7):
        # Two thousand entries are looked at here: one is beyond four standard errors by chance in
        # one of eight runs. Three times as many draws decide.
        draws = torch.cat([draws, *(changes(DEVICES[name], method, steps, n) for _ in range(2))])
    for ours, theirs, spread in zip(*map(halves, (draws, mean, std)), strict=True):
        assert_agrees(ours, theirs, spread, measured, rounding=1e-7)
