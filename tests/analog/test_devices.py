"""Devices: steps against their formulas, compiled pulses against PyTorch's, and time between."""

import copy
import math

import pytest
import torch

from rapa_lib.analog import (
    DEVICES,
    PRESET_DEVICES,
    PRESETS,
    AnalogTileArray,
    ConstantStepDevice,
    ExpStepDevice,
    IdealDevice,
    LinearStepDevice,
    PowStepDevice,
    SoftBoundsDevice,
    SoftBoundsReferenceDevice,
    TileConfig,
    UpdateParameters,
)

ALIKE = {"dw_min_dtod": 0, "w_max_dtod": 0, "w_min_dtod": 0, "up_down_dtod": 0}
LINEAR = LinearStepDevice(
    **ALIKE, gamma_up=0.5, gamma_down=-0.3, gamma_up_dtod=0, gamma_down_dtod=0,
    allow_increasing=True,
)  # fmt: skip
REFERENCE = SoftBoundsReferenceDevice(**ALIKE, reference_mean=0.1, reference_std=0)
KINDS = {
    "linear": LINEAR,
    "soft": SoftBoundsDevice(**ALIKE, mult_noise=False, write_noise_std=3),
    "reference": REFERENCE,
    "exponential": ExpStepDevice(**ALIKE, dw_min_std_add=0.0005, dw_min_std_slope=0.001),
    "power": PowStepDevice(**ALIKE, pow_gamma=1.5, pow_gamma_dtod=0),
}


def step(device, weight, sign):
    """One pulse without noise, as the formulas in the docstrings have it."""
    wide = device.w_max - device.w_min
    if isinstance(device, ExpStepDevice):
        z = 2 * device.a * weight / wide + device.b
        if sign > 0:
            return device.dw_min * max(1 - device.A_up * math.exp(device.gamma_up * z), 0)
        return device.dw_min * max(1 - device.A_down * math.exp(-device.gamma_down * z), 0)
    if isinstance(device, PowStepDevice):
        left = device.w_max - weight if sign > 0 else weight - device.w_min
        return device.dw_min * (left / wide) ** device.pow_gamma
    bound = device.w_max if sign > 0 else device.w_min
    if isinstance(device, LinearStepDevice):
        gamma = device.gamma_up if sign > 0 else device.gamma_down
        return device.dw_min * (1 - gamma * weight / bound)
    weight += getattr(device, "reference_mean", 0)
    return device.dw_min * (1 - weight / bound)


@pytest.mark.parametrize("dtype", [torch.float, torch.double], ids=["compiled", "torch"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", KINDS)
def test_pulses_without_noise_are_those_of_the_formulas(name, sign, dtype):
    device = copy.copy(KINDS[name])
    for quiet in ("dw_min_std", "write_noise_std"):
        if hasattr(device, quiet):
            object.__setattr__(device, quiet, 0.0)
    update = UpdateParameters(5, False, False)  # every slot fires: five pulses
    tiles = AnalogTileArray(1, 3, 2, TileConfig(device=device, update=update), dtype=dtype)
    start = torch.tensor([[-0.45, 0.0, 0.2], [0.4, -0.1, 0.3]], dtype=dtype)
    tiles.program(start[None])
    tiles.update(torch.ones(1, 3).to(dtype), -sign * torch.ones(1, 2).to(dtype), 1.0)
    for found, weight in zip(
        tiles.read().flatten().tolist(), start.flatten().tolist(), strict=True
    ):
        for _ in range(5):
            weight += sign * step(device, weight, sign)
        assert found == pytest.approx(weight, abs=1e-6 if dtype == torch.float else 1e-12)


def mixed_draws(device, method, n=3000):
    """Weight changes where pulses up and down mix, from near one bound."""
    config = TileConfig(device=device, update=UpdateParameters(method=method))
    tiles = AnalogTileArray(n, 4, 3, config, seed=1)
    start = torch.linspace(-0.55, 0.45, 12).view(3, 4)
    tiles.program(start.expand(n, -1, -1))
    generator = torch.Generator().manual_seed(5)
    x, d = torch.randn(6, 4, generator=generator), torch.randn(6, 3, generator=generator) / 4
    some = torch.arange(n).repeat(6)
    tiles.update(x.repeat_interleave(n, 0), d.repeat_interleave(n, 0), 0.02, some)
    return (tiles.read() - start).double()


def assert_alike(ours, theirs):
    error = ((ours.var(0) + theirs.var(0)) / len(ours)).sqrt() + 1e-7
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()
    ratio = (ours.var(0).mean() / theirs.var(0).mean()).sqrt()
    assert ratio == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", KINDS)
def test_whole_batches_move_weights_as_single_pulses_do(name, monkeypatch):
    torch.manual_seed(0)
    sequential = mixed_draws(KINDS[name], "sequential")
    assert_alike(mixed_draws(KINDS[name], "exact"), sequential)
    monkeypatch.setenv("RAPA_KERNELS", "off")
    assert_alike(mixed_draws(KINDS[name], "exact"), sequential)


def test_write_noise_is_drawn_anew_by_pulses_alone():
    torch.manual_seed(0)
    device = SoftBoundsDevice(write_noise_std=10, **ALIKE)
    tiles = AnalogTileArray(1, 200, 100, TileConfig(device=device), seed=0)
    weight = torch.full((1, 100, 200), 0.2)
    tiles.program(weight)
    first = tiles.read()
    assert (first - weight).std() == pytest.approx(0.01, rel=0.05)
    assert torch.equal(tiles.hidden, weight)
    x, d = torch.zeros(1, 200), torch.zeros(1, 100)
    x[0, :50], d[0, :] = 1, -1
    tiles.update(x, d, 0.05)
    now = tiles.read()
    assert torch.equal(now[..., 50:], first[..., 50:])
    assert (now[..., :50] != first[..., :50]).all()
    assert (now - tiles.hidden)[..., :50].std() == pytest.approx(0.01, rel=0.05)
    assert "hidden" in tiles.state_dict()


def test_weights_decay_by_their_own_lifetimes():
    device = ConstantStepDevice(lifetime=20, lifetime_dtod=0.2)
    tiles = AnalogTileArray(2, 30, 20, TileConfig(device=device), seed=0, dtype=torch.double)
    with torch.no_grad():
        tiles.weight.fill_(0.1)
    tiles.clip()
    start, decay = tiles.read(), tiles.points().decay
    for _ in range(3):
        tiles.let_time_pass()
    torch.testing.assert_close(tiles.read(), start * decay**3)
    assert (1 / (1 - decay)).mean() == pytest.approx(20, rel=0.02)
    assert (1 / (1 - decay)).std() == pytest.approx(4, rel=0.1)


def test_drift_is_a_power_law_that_a_pulse_begins_anew():
    device = ConstantStepDevice(drift_nu=0.1, drift_t_0=2.0, **ALIKE)
    tiles = AnalogTileArray(1, 2, 1, TileConfig(device=device), seed=0, dtype=torch.double)
    tiles.program(torch.tensor([[[0.3, -0.2]]]).double())
    for _ in range(10):
        tiles.let_time_pass()
    # The clock of a weight begins with the mini-batch that finds it moved.
    torch.testing.assert_close(
        tiles.read(), torch.tensor([[[0.3, -0.2]]]).double() * (9 / 2) ** -0.1
    )
    left = tiles.read()[0, 0, 0]
    x = torch.tensor([[1.0, 0.0]]).double()
    tiles.update(x, -torch.ones(1, 1).double(), 0.02)
    moved = tiles.read()[0, 0, 0]
    assert moved > left
    for _ in range(3):
        tiles.let_time_pass()
    weight = tiles.read()[0, 0]
    assert weight[0] == moved
    assert weight[1] == pytest.approx(-0.2 * (12 / 2) ** -0.1)


@pytest.mark.parametrize("name", sorted(set(DEVICES) - {"IdealDevice"}))
def test_every_device_has_its_bounds_and_survives_yaml(name):
    torch.manual_seed(0)
    config = TileConfig(device=DEVICES[name](dw_min=0.02))
    assert TileConfig.from_yaml(config.to_yaml()) == config
    tiles = AnalogTileArray(2, 7, 5, config, seed=0)
    for sign in (1, -1):
        tiles.update(torch.ones(20, 7), sign * torch.ones(20, 5), 1.0, torch.arange(20) % 2)
        points, weight = tiles.points(), tiles.read()
        assert (weight <= points.w_max + 1e-6).all()
        assert (weight >= points.w_min - 1e-6).all()
        assert weight.abs().max() > 0.1


def test_the_symmetry_point_is_subtracted():
    device = SoftBoundsReferenceDevice(
        up_down=0.3, w_max=0.9, subtract_symmetry_point=True, reference_std=0, **ALIKE
    )
    tiles = AnalogTileArray(1, 1, 1, TileConfig(device=device), dtype=torch.double)
    reference = tiles.points().reference.item()
    up, down = (1 - reference / 0.9), 0.7 * (1 - reference / -0.6)
    assert up == pytest.approx(down)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LinearStepDevice(w_min=0),
            "w_min: got 0.0, allowed for LinearStepDevice: below 0",
        ),
        (lambda: LinearStepDevice(gamma_up=math.nan), "gamma_up: got nan"),
        (lambda: ExpStepDevice(write_noise_std=-1), "write_noise_std: got -1"),
        (lambda: PowStepDevice(pow_gamma=-1), "pow_gamma: got -1"),
        (lambda: ConstantStepDevice(lifetime=-1), "lifetime: got -1"),
        (lambda: ConstantStepDevice(drift_t_0=0), "drift_t_0: got 0"),
        (lambda: IdealDevice(w_max=0), "w_max: got 0"),
    ],
)
def test_bad_devices_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", PRESET_DEVICES)
def test_published_devices_can_be_moved(name):
    torch.manual_seed(0)
    config = PRESETS[name.removesuffix("Device")]()
    assert config.device == PRESET_DEVICES[name]
    tiles = AnalogTileArray(2, 7, 5, config, seed=0)
    before = tiles.read()
    tiles.update(torch.ones(8, 7), -torch.ones(8, 5), 0.05, torch.arange(8) % 2)
    moved = tiles.read() - before
    assert moved.isfinite().all()
    assert (tiles.hidden if tiles.hidden is not None else tiles.weight).mean() > 0
