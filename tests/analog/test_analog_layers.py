"""Analog layers against digital ones, in training, and from checkpoints."""

import copy
import io
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from reference import patches
from test_analog_tiles import product
from tiny import same_bits, tiny_dataset, tiny_network
from torch import nn

from rapa_lib import TILINGS, NoisyConv2d, PerforatedConv2d, RapaConv2d, frozen_draws, merge_tiles
from rapa_lib.analog import (
    AnalogLinear,
    AnalogRapaConv2d,
    AnalogSGD,
    ConstantStepDevice,
    IOParameters,
    TileConfig,
    UpdateParameters,
    convert_to_analog,
    ideal,
    reram,
    rpu_baseline,
)
from rapa_lib.training.evaluation import redraws

GEOMETRIES = [
    {"padding": 2},
    {"padding": (1, 0), "stride": (2, 1)},
    {"padding": "same", "kernel_size": (4, 2), "dilation": (2, 1)},
    {"padding": 1, "padding_mode": "reflect", "bias": False},
]
QUIET = IOParameters(out_noise=0, out_bound=0.5)
WIDE = ConstantStepDevice(w_max=9, w_min=-9, w_max_dtod=0, w_min_dtod=0)


def pair(config, tiling="random", n_tiles=5, dtype=torch.double, **geometry):
    """A digital layer, the same on analog tiles, and images."""
    arguments = {"kernel_size": 3, "dtype": dtype} | geometry
    digital = RapaConv2d(4, 6, tiling=tiling, n_tiles=n_tiles, **arguments)
    x = torch.randn(3, 4, 9, 8, dtype=dtype, requires_grad=True)
    return digital, AnalogRapaConv2d.from_digital(digital, config), x


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("tiling", TILINGS)
def test_ideal_equals_the_digital_layer(tiling, geometry):
    torch.manual_seed(0)
    digital, analog, x = pair(ideal(), tiling, 1 if tiling == "none" else 5, **geometry)
    with frozen_draws(digital, 1), frozen_draws(analog, 1):
        expected, y = digital(x), analog(x)
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    by_digital = torch.autograd.grad((expected * weights).sum(), (x, *digital.parameters()))
    by_analog = torch.autograd.grad((y * weights).sum(), (x, *analog.parameters()))
    named = dict(zip(["x", *dict(digital.named_parameters())], by_digital, strict=True))
    ours = dict(zip(["x", *dict(analog.named_parameters())], by_analog, strict=True))
    kernels = ours.pop("tiles.weight").transpose(1, 2)
    kernels = kernels.unflatten(1, (*analog.kernel_size, 4)).permute(0, 4, 3, 1, 2)
    torch.testing.assert_close(kernels, named.pop("weight"))
    torch.testing.assert_close(ours, named)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_each_patch_goes_through_its_tile_and_its_error_back(geometry):
    torch.manual_seed(0)
    config = TileConfig(forward=QUIET, backward=QUIET, device=WIDE)
    _, analog, x = pair(config, **geometry)
    assignment = analog.assignment(3, (9, 8))
    assignment[0, 3] = -1
    y = analog(x, assignment)
    grad = torch.randn_like(y)
    (by_x,) = torch.autograd.grad(y, x, grad)
    expected, loss = torch.zeros_like(y).flatten(2), 0
    position_of = (analog.kernel_size, analog.stride, analog._pads, analog.dilation)
    for image, position, patch in patches(x, *position_of, analog.padding_mode):
        tile = int(assignment[image, position])
        if tile < 0:
            continue
        matrix = analog.weight[tile].detach().flatten(1)
        bias = 0 if analog.bias is None else analog.bias[tile].detach()
        expected[image, :, position] = product(matrix, patch.detach().flatten(), QUIET) + bias
        error = grad.flatten(2)[image, :, position]
        back = product(matrix.T, error, replace(QUIET, bound_management="none"))
        loss = loss + (patch.flatten() * back).sum()
    torch.testing.assert_close(y.flatten(2), expected)
    torch.testing.assert_close(by_x, torch.autograd.grad(loss, x)[0])


def test_pulses_follow_the_gradient():
    """Small steps, many slots: an analog step is the digital one, but for noise."""
    torch.manual_seed(0)
    device = replace(WIDE, dw_min=1e-5, dw_min_dtod=0, dw_min_std=0, up_down_dtod=0)
    perfect = IOParameters.perfect()
    config = TileConfig(perfect, perfect, UpdateParameters(desired_bl=1000), device)
    digital, analog, x = pair(config, padding=2)
    assignment = digital.assignment(3, (9, 8))
    optimizers = [torch.optim.SGD(digital.parameters(), lr=0.5), AnalogSGD(analog, lr=0.5)]
    before = digital.weight.detach().clone()
    for layer, optimizer in zip((digital, analog), optimizers, strict=True):
        layer(x, assignment).pow(2).mean().backward()
        optimizer.step()
    wanted, got = (layer.weight.detach() - before for layer in (digital, analog))
    assert torch.cosine_similarity(wanted.flatten(), got.flatten(), 0) > 0.98
    assert got.norm() == pytest.approx(wanted.norm().item(), rel=0.05)
    torch.testing.assert_close(analog.bias, digital.bias)


def test_hardware_aware_training_has_exact_gradients_of_noisy_outputs():
    torch.manual_seed(0)
    config = rpu_baseline().hardware_aware()
    digital, analog, x = pair(config, padding=2, dtype=torch.float)
    assignment = digital.assignment(3, (9, 8))
    exact, noisy = digital(x, assignment), analog(x, assignment)
    assert 0 < (noisy - exact).abs().max() < 6 * 0.07 * x.detach().abs().max()
    assert not torch.equal(analog(x, assignment), noisy)
    grad = torch.randn_like(exact)
    expected = torch.autograd.grad(exact, (x, digital.bias), grad)
    torch.testing.assert_close(torch.autograd.grad(noisy, (x, analog.bias), grad), expected)


def test_linear_layers():
    torch.manual_seed(0)
    linear, x = nn.Linear(7, 5).double(), torch.randn(2, 3, 7).double()
    torch.testing.assert_close(AnalogLinear.from_digital(linear, ideal())(x), linear(x))
    config = TileConfig(forward=QUIET, device=WIDE)
    layer = AnalogLinear.from_digital(linear, config)
    rows = x.flatten(0, 1)
    expected = torch.stack([product(linear.weight.detach(), row, QUIET) for row in rows])
    torch.testing.assert_close(layer(x).flatten(0, 1), expected + linear.bias)
    with pytest.raises(ValueError, match=r"input: got shape \(2, 5\), expected \(…, 7\)"):
        layer(torch.ones(2, 5).double())


def steps(network, optimizer, n, begin=0):
    data = tiny_dataset()
    x, labels = data.train_images.float() / 64 - 1, data.train_labels
    losses = []
    for step in range(begin, begin + n):
        torch.manual_seed(step)
        index = torch.randperm(48)[:24]
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x[index]), labels[index])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def analog_network(config=None, **changes):
    torch.manual_seed(0)
    network = tiny_network(**changes)
    return convert_to_analog(network, rpu_baseline() if config is None else config, seed=1)


@pytest.mark.filterwarnings("ignore:.*weights are outside the bounds")
@pytest.mark.parametrize("preset", [rpu_baseline, reram])
def test_networks_learn_by_pulses(preset):
    network = analog_network(preset())
    losses = steps(network, AnalogSGD(network, lr=0.05), 60)
    # Resistive memories, whose steps vary by 375 %, learn more slowly.
    assert sum(losses[-5:]) < (0.6 if preset is rpu_baseline else 0.85) * sum(losses[:5])


@pytest.mark.filterwarnings("ignore:.*weights are outside the bounds")
@pytest.mark.parametrize("tiling", TILINGS)
def test_every_tiling_trains(tiling):
    network = analog_network(tiling=tiling)
    before = copy.deepcopy(network.state_dict())
    optimizer = AnalogSGD(network, lr=0.05, momentum=0.9)
    steps(network, optimizer, 2)
    after = network.state_dict()
    for name in before:
        changed = not torch.equal(before[name], after[name])
        assert changed == (not name.endswith(("step_up", "step_down", "w_max", "w_min")) and (
            not name.endswith("_extra_state")
        )), name  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weights are outside the bounds")
def test_a_training_resumes_with_the_same_bits():
    network = analog_network()
    optimizer = AnalogSGD(network, lr=0.05, momentum=0.9)
    steps(network, optimizer, 3)
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    steps(network, optimizer, 3, begin=3)
    resumed = analog_network(reram())  # other devices and other weights
    resumed = convert_to_analog(resumed, rpu_baseline(), seed=5)
    again = AnalogSGD(resumed, lr=0.05, momentum=0.9)
    file.seek(0)
    for part, state in zip((resumed, again), torch.load(file), strict=True):
        part.load_state_dict(state)
    steps(resumed, again, 3, begin=3)
    assert same_bits(resumed.state_dict(), network.state_dict())


def test_a_digital_checkpoint_is_refused():
    network = analog_network()
    with pytest.raises(RuntimeError, match=r"features.0.0: this is the checkpoint of a digital"):
        network.load_state_dict(tiny_network().state_dict())
    with pytest.raises(RuntimeError, match=r"convert_to_analog"):
        network.load_state_dict(tiny_network().state_dict(), strict=False)


def test_conversion():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).eval()
    x = torch.randn(5, 2, 4, 4)
    analog = convert_to_analog(network, ideal())
    torch.testing.assert_close(analog(x), network(x))
    assert [type(m) for m in (analog[0], analog[3])] == [AnalogRapaConv2d, AnalogLinear]
    assert not analog[0].training
    assert type(network[0]) is nn.Conv2d
    assert convert_to_analog(network, ideal(), inplace=True) is network
    noisy = convert_to_analog(network, rpu_baseline().hardware_aware())  # of an analog network
    assert not torch.equal(noisy(x), noisy(x))
    assert redraws(noisy)
    assert not redraws(analog)
    torch.testing.assert_close(merge_tiles(analog)(x), analog(x))


def test_conversion_programs_what_the_devices_can_hold():
    torch.manual_seed(0)
    linear = nn.Linear(100, 10)
    nn.init.constant_(linear.weight, 2.0)
    with pytest.warns(UserWarning, match="1000 of 1000 weights are outside the bounds"):
        analog = convert_to_analog(linear, rpu_baseline(), seed=0)
    assert torch.equal(analog.weight, analog.tiles.points().w_max[0])


def test_what_cannot_be_converted_is_named():
    for layer in (PerforatedConv2d(3, 4, 3, n_tiles=2), NoisyConv2d(3, 4, 3, noise=0.5)):
        with pytest.raises(ValueError, match=rf"layer '0' \({type(layer).__name__}\)"):
            convert_to_analog(nn.Sequential(layer), ideal())
    with pytest.raises(ValueError, match="no Conv2d, RapaConv2d or Linear layer"):
        convert_to_analog(nn.ReLU(), ideal())
    with pytest.raises(TypeError, match="config: got 'reram', expected a TileConfig"):
        convert_to_analog(nn.Linear(1, 1), "reram")
    with pytest.raises(TypeError, match=r"conv: got Linear, expected Conv2d or RapaConv2d"):
        AnalogRapaConv2d.from_digital(nn.Linear(1, 1), ideal())


def test_the_optimizer_refuses_negative_rates_and_forgets():
    network = analog_network()
    with pytest.raises(ValueError, match="-1"):
        AnalogSGD(network, lr=-1.0)
    optimizer = AnalogSGD(network, lr=0.05)
    before = copy.deepcopy(network.state_dict())
    x = torch.randn(4, 2, 8, 8)
    network.eval()
    network(x).sum().backward()
    copied = copy.deepcopy(network)
    assert all(not m._pending for m in copied.modules() if hasattr(m, "_pending"))
    optimizer.zero_grad()
    optimizer.step()
    assert same_bits(before, network.state_dict())
    network(x).sum().backward()
    optimizer.param_groups[0]["lr"] = -0.1
    with pytest.raises(ValueError, match=r"lr: got -0\.1"):
        optimizer.step()


def test_layers_move_between_types_and_formats():
    network = analog_network().double().to(memory_format=torch.channels_last)
    x = torch.randn(4, 2, 8, 8).double()
    network(x).sum().backward()
    AnalogSGD(network, lr=0.01).step()
    layer = network.features[0][0]
    assert layer.tiles.matrices.is_contiguous()
    assert layer.tiles.points().w_max.transpose(1, 2).is_contiguous()
    with pytest.raises(TypeError, match=r"input: got torch.float32"):
        network(x.float())
