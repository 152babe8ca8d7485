"""The simulator against the reference: statistics of aihwkit 1.2.0, measured on one tile."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from rapa_lib.analog import (
    AnalogTileArray,
    ConstantStepDevice,
    IdealDevice,
    IOParameters,
    SoftBoundsDevice,
    TileConfig,
    UpdateParameters,
)

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "aihwkit_reference.npz"
pytestmark = pytest.mark.skipif(
    not REFERENCE.is_file(), reason="no shared/data/aihwkit_reference.npz beside the checkout"
)

ANALOG_WIRES = {"inp_res": 0, "out_res": 0, "out_noise": 0}
VARIANTS = {
    "default": IOParameters(),
    "no_nm": IOParameters(noise_management="none"),
    "no_bm": IOParameters(bound_management="none", out_bound=1.0),
    "bm_tight": IOParameters(out_bound=2.0),
    "noiseless": IOParameters(out_noise=0),
    "w_noise": IOParameters(**ANALOG_WIRES, w_noise=0.05),
    "inp_noise": IOParameters(**ANALOG_WIRES, inp_noise=0.02),
}
DEVICES = {
    name: kind(dw_min_dtod=0, w_max_dtod=0, w_min_dtod=0, up_down_dtod=0)
    for name, kind in (("constant", ConstantStepDevice), ("softbounds", SoftBoundsDevice))
}
UPDATES = {
    "um_ublm": UpdateParameters(),
    "plain_bl31": UpdateParameters(31, False, False),
    "plain_bl10": UpdateParameters(10, False, False),
}
# Where every pulse of a row is certain only cycle noise is left, and the reference's mean is 4.8 of
# its own standard errors from the closed form: its normal draws seem to come from a finite pool.
CERTAIN_PULSES = "softbounds/plain_bl10/lr0.1/b1"


@cache
def reference():
    with np.load(REFERENCE) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def measured(name):
    """Mean and standard deviation that the reference has, in double precision."""
    return (reference()[f"{name}{part}"].double() for part in ("mean", "std"))


def beyond(draws, mean, std, n, rounding, errors=4):
    """Whether the mean of any entry is off by more than so many standard errors."""
    draws = draws.double()
    allowed = errors * (std**2 / n + draws.var(0) / len(draws)).sqrt() + rounding
    return bool(((draws.mean(0) - mean).abs() > allowed).any())


def assert_agrees(draws, mean, std, n, *, rounding=0.0, errors=4):
    """Draws (m, …) against mean and standard deviation of n others."""
    draws = draws.double()
    off = draws.mean(0) - mean
    allowed = errors * (std**2 / n + draws.var(0) / len(draws)).sqrt() + rounding
    assert (off.abs() <= allowed).all(), float((off.abs() / allowed).max())
    varies = std > 0.05 * std.amax(-1, keepdim=True)  # not clipped in all but a few draws
    ours = draws.std(0)[varies]
    # Standard error of a ratio of standard deviations, from the fourth moment: rare events of few
    # draws say little.
    kurtosis = ((draws - draws.mean(0)) ** 4).mean(0)[varies] / ours**4
    sampling = ((kurtosis - 1).clamp_min(0) / 4 * (1 / n + 1 / len(draws))).sqrt()
    ratio = ours / std[varies]
    assert ((ratio - 1).abs() <= 0.05 + errors * sampling).all(), (ratio.min(), ratio.max())
    if varies.any():  # and taken together, where sampling says more
        together = (ours.square().mean() / std[varies].square().mean()).sqrt()
        # Entries share pulses, so they vary together: the error is that of whole draws.
        squares = (draws - draws.mean(0))[:, varies].square().mean(1)
        error = squares.std() / squares.mean() / 2 * (1 / n + 1 / len(draws)) ** 0.5
        assert abs(together - 1) <= 0.01 + errors * error, (float(together), float(error))


def tile_with(io):
    config = TileConfig(forward=io, backward=io, device=IdealDevice())
    tile = AnalogTileArray(1, 75, 32, config)
    tile.program(reference()["mvm/W"][None])
    return tile


@pytest.mark.parametrize(
    ("variant", "direction"),
    [*((v, "forward") for v in VARIANTS), ("default", "backward"), ("noiseless", "backward")],
)
def test_products(variant, direction):
    name = f"mvm/{variant}/{'back_' if direction == 'backward' else ''}"
    torch.manual_seed(0)
    vectors = reference()["mvm/X" if direction == "forward" else "mvm/D"]
    tile = tile_with(VARIANTS[variant])
    mean, std = measured(name)
    size = mean.abs().amax(1, keepdim=True)
    if variant == "noiseless":
        off = getattr(tile, direction)(vectors) - mean
        assert (off.abs() <= 1e-4 * size).all()
        return

    def draw():
        return getattr(tile, direction)(vectors.repeat(16_000, 1)).view(16_000, *mean.shape)

    draws = draw()
    # Its means and deviations of thousands of equal float32 numbers are off by so much.
    rounding = 1e-4 * size
    if beyond(draws, mean, std, 4000, rounding):
        # One of some hundred entries is beyond four standard errors by chance in one of forty such
        # tests, and the draws are others on every kind of CPU: three times as many decide.
        draws = torch.cat([draws, draw(), draw()])
    assert_agrees(draws, mean, std, 4000, rounding=rounding)


def test_a_vector_of_zeros_gives_zeros():
    assert not tile_with(VARIANTS["default"])(reference()["mvm/X"][4:5]).any()


@pytest.mark.parametrize("method", ["sequential", "exact"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("lr", ["0.01", "0.1"])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("device", DEVICES)
def test_updates(device, update, lr, batch, method):
    torch.manual_seed(1)
    name = f"{device}/{update}/lr{lr}/b{batch}"
    n = int(reference()[f"upd/{name}/n"])
    config = TileConfig(device=DEVICES[device], update=replace(UPDATES[update], method=method))
    tiles = AnalogTileArray(n, 10, 8, config)
    start = reference()["upd/W0"]
    tiles.program(start.expand(n, -1, -1))
    x, d = (reference()[f"upd/{v}{batch}"].repeat_interleave(n, 0) for v in "xd")
    tiles.update(x, d, float(lr), torch.arange(n).repeat(batch))
    assert_agrees(
        tiles.read() - start, *measured(f"upd/{name}/"), n, rounding=1e-7,
        errors=6 if name == CERTAIN_PULSES else 4,
    )  # fmt: skip


def test_device_spreads():
    points = AnalogTileArray(1, 400, 400, seed=3).points()
    names = {"w_max": "max_bound", "w_min": "min_bound"}
    names |= {"step_up": "dwmin_up", "step_down": "dwmin_down"}
    quantiles = torch.tensor([0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999])
    for ours, theirs in names.items():
        values = getattr(points, ours).flatten().double()
        expected = reference()[f"dtod/constant_default/{theirs}"].double()
        size = expected[0].abs()
        found = [values.mean(), values.std(), *torch.quantile(values, quantiles.double())]
        assert ((torch.stack(found) - expected).abs() <= 0.02 * size).all(), ours
