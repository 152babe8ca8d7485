"""Weights scaled to their devices and split over arrays, against products array by array."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from test_analog_layers import analog_network, steps
from test_analog_tiles import product
from tiny import same_bits
from torch import nn

from rapa_lib import RapaConv2d, merge_tiles
from rapa_lib.analog import (
    AnalogLinear,
    AnalogRapaConv2d,
    AnalogSGD,
    AnalogTileArray,
    AnalogTileGrid,
    ConstantStepDevice,
    IOParameters,
    MappingParameters,
    TileConfig,
    UpdateParameters,
    ideal,
    rpu_baseline,
)
from rapa_lib.runtime import AnalogArrays, count_layers

QUIET = IOParameters(out_noise=0)
EVEN = ConstantStepDevice(
    dw_min=1e-4, dw_min_dtod=0, dw_min_std=0, up_down_dtod=0, w_max_dtod=0, w_min_dtod=0
)
SMALL = MappingParameters(arrays=AnalogArrays(max_size=(14, 3)))


def scaled(columnwise=False, **changes):
    mapping = MappingParameters(weight_scaling_omega=0.8, weight_scaling_columnwise=columnwise)
    return replace(
        TileConfig(forward=QUIET, backward=QUIET, device=EVEN), mapping=mapping, **changes
    )


def split(config=None, omega=0.0):
    config = ideal() if config is None else config
    return replace(config, mapping=replace(SMALL, weight_scaling_omega=omega))


@pytest.mark.parametrize("columnwise", [False, True])
@pytest.mark.parametrize("device", [EVEN, None], ids=["pulsed", "ideal"])
def test_devices_hold_weights_of_the_size_that_they_are_made_for(device, columnwise):
    torch.manual_seed(0)
    config = scaled(columnwise)
    if device is None:
        config = config.hardware_aware()
        assert config.device.w_max == 0.6
    tiles = AnalogTileArray(3, 7, 5, config, dtype=torch.double)
    weight = (
        torch.randn(3, 5, 7).double() * torch.tensor([0.01, 1.0, 100.0]).double()[:, None, None]
    )
    tiles.program(weight)
    torch.testing.assert_close(tiles.read(), weight)
    held, scale = tiles._held()
    largest = held.abs().amax(1)  # of each output
    full = torch.full((3, 5), 0.48).double()
    torch.testing.assert_close(
        largest if columnwise else largest.amax(1), full if columnwise else full[:, 0]
    )
    x, groups = torch.randn(40, 7).double(), torch.arange(40) % 3
    y = tiles(x, groups)
    for i in range(40):
        t = int(groups[i])
        expected = product(held[t].T, x[i], QUIET) * scale[t]
        torch.testing.assert_close(y[i], expected)
    if device is not None:
        d = torch.randn(40, 5).double()
        back = tiles.backward(d, groups)
        t = int(groups[7])
        unmanaged = replace(QUIET, bound_management="none")
        torch.testing.assert_close(back[7], product(held[t], d[7] * scale[t], unmanaged))


def test_scaling_makes_read_noise_smaller_for_small_weights():
    torch.manual_seed(0)
    noisy = IOParameters(inp_res=0, out_res=0, out_noise=0.06)
    for mapping, size in ((MappingParameters(), 0.06), (MappingParameters(0.6 / 0.6), 0.01)):
        config = TileConfig(forward=noisy, device=EVEN, mapping=mapping)
        tiles = AnalogTileArray(1, 6, 4, config)
        tiles.program(torch.full((1, 4, 6), 0.1))
        y = tiles(torch.ones(20_000, 6))
        assert y.std() == pytest.approx(size, rel=0.03)


def test_pulses_keep_the_meaning_of_the_rate():
    torch.manual_seed(0)
    update = UpdateParameters(desired_bl=1000)
    tiles = AnalogTileArray(300, 7, 5, scaled(update=update))
    weight = 0.05 * torch.randn(1, 5, 7)
    tiles.program(weight.expand(300, -1, -1))
    x, d = torch.randn(7), torch.randn(5)
    tiles.update(x.expand(300, -1), d.expand(300, -1), 1e-3, torch.arange(300))
    moved = (tiles.read() - weight).mean(0)
    wanted = -1e-3 * d[:, None] * x
    assert ((moved - wanted).abs() < 0.03 * wanted.abs().max()).all()


@pytest.mark.parametrize("omega", [0.0, 0.9])
def test_split_products_are_sums_of_what_arrays_read(omega):
    torch.manual_seed(0)
    config = split(TileConfig(forward=QUIET, backward=QUIET, device=EVEN), omega)
    grid = AnalogTileGrid(2, 30, 7, config, dtype=torch.double)
    assert [(r.start, r.stop) for _, r, _ in grid.where[:3]] == [(0, 10), (10, 20), (20, 30)]
    assert len(grid.arrays) == 9
    layer = AnalogLinear(30, 7, config=config, dtype=torch.double)
    grid = layer.tiles
    weight = 0.3 * torch.randn(1, 7, 30).double()
    grid.program(weight.clamp(-0.6, 0.6))
    x = torch.randn(4, 30, requires_grad=True, dtype=torch.double)
    y = layer(x)
    expected = layer.bias.detach().repeat(4, 1)
    back = torch.zeros(4, 30).double()
    d = torch.randn(4, 7).double()
    unmanaged = replace(QUIET, bound_management="none")
    for (_, row, col), array in zip(grid.where, grid.arrays, strict=True):
        scale = array.scale[0] if omega else 1.0
        for i in range(4):
            matrix = array.weight[0].detach()
            expected[i, col] += product(matrix, x[i, row].detach(), QUIET) * scale
            back[i, row] += product(matrix.T, d[i, col] * scale, unmanaged)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y, x, d)[0], back)


@pytest.mark.parametrize("config", [ideal(), split()], ids=["whole", "split"])
@pytest.mark.parametrize(
    "geometry",
    [
        {"groups": 2, "padding": 1},
        {"padding": (1, 0), "stride": (2, 1)},
        {"padding": 1, "padding_mode": "reflect", "bias": False, "groups": 4},
    ],
    ids=str,
)
def test_split_and_grouped_convolutions_equal_the_digital_layer(config, geometry):
    torch.manual_seed(0)
    digital = RapaConv2d(4, 8, 3, n_tiles=5, dtype=torch.double, **geometry)
    layer = AnalogRapaConv2d.from_digital(digital, config)
    torch.testing.assert_close(layer.weight, digital.weight.detach())
    x = torch.randn(3, 4, 9, 8, requires_grad=True, dtype=torch.double)
    assignment = digital.assignment(3, (9, 8))
    assignment[1, 3] = -1
    expected, y = digital(x, assignment), layer(x, assignment)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    by_x, by_weight = torch.autograd.grad(expected, (x, digital.weight), grad)
    parameters = dict(layer.named_parameters())
    parameters.pop("bias", None)
    found = torch.autograd.grad(y, (x, *parameters.values()), grad)
    torch.testing.assert_close(found[0], by_x)
    holder = copy.deepcopy(layer)
    for parameter, its in zip(holder.tiles.parameters(), found[1:], strict=True):
        parameter.data = its
    torch.testing.assert_close(holder.weight, by_weight)
    torch.testing.assert_close(
        merge_tiles(nn.Sequential(layer))(x), merge_tiles(nn.Sequential(digital))(x)
    )


@pytest.mark.parametrize("size", [512, (14, 3), (27, 64), (5, 1)])
def test_simulator_and_run_time_model_lay_layers_out_on_as_many_arrays(size):
    hardware = AnalogArrays(max_size=size)
    config = replace(ideal(), mapping=MappingParameters(arrays=hardware))
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 10)
    )
    for shape in count_layers(network, (3, 6, 6)).layers:
        layer = network.get_submodule(shape.name)
        kind = AnalogLinear if isinstance(layer, nn.Linear) else AnalogRapaConv2d
        tiles = kind.from_digital(layer, config).tiles
        n_arrays = len(tiles.arrays) if isinstance(tiles, AnalogTileGrid) else 1
        assert n_arrays == hardware.per_tile(shape)
        for array in getattr(tiles, "arrays", [tiles]):
            assert array.in_features <= hardware.array_size[0]
            assert array.out_features <= hardware.array_size[1]


@pytest.mark.filterwarnings("ignore:.*weights are outside the bounds")
def test_networks_on_scaled_and_split_arrays_learn_and_resume_with_the_same_bits():
    mapping = MappingParameters(0.6, arrays=AnalogArrays(max_size=(16, 8)))
    config = replace(rpu_baseline(), mapping=mapping)
    network = analog_network(config)
    optimizer = AnalogSGD(network, lr=0.05, momentum=0.9)
    losses = steps(network, optimizer, 25)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    steps(network, optimizer, 2, begin=25)
    resumed = analog_network(config)
    again = AnalogSGD(resumed, lr=0.05, momentum=0.9)
    file.seek(0)
    for part, state in zip((resumed, again), torch.load(file), strict=True):
        part.load_state_dict(state)
    steps(resumed, again, 2, begin=25)
    assert same_bits(resumed.state_dict(), network.state_dict())


def test_mappings_survive_yaml_and_bad_ones_are_named():
    mapping = MappingParameters(0.6, True, AnalogArrays(max_size=(64, 32), forward_ns=40))
    config = replace(rpu_baseline(), mapping=mapping)
    assert TileConfig.from_yaml(config.to_yaml()) == config
    assert (mapping.max_input_size, mapping.max_output_size) == (64, 32)
    with pytest.raises(ValueError, match="weight_scaling_omega: got -1"):
        MappingParameters(-1)
    with pytest.raises(TypeError, match="arrays: got 512, expected AnalogArrays or None"):
        MappingParameters(arrays=512)
    with pytest.raises(ValueError, match="arrays: got analog_bias=True, allowed"):
        MappingParameters(arrays=AnalogArrays(analog_bias=True))
    with pytest.raises(TypeError, match="mapping: got 3, expected MappingParameters"):
        TileConfig(mapping=3)
    grid = AnalogTileGrid(2, 30, 7, split())
    with pytest.raises(ValueError, match=r"weight: got shape \(1,\), expected \(2, 7, 30\)"):
        grid.program(torch.zeros(1))
