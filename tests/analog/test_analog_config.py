import math
from dataclasses import replace

import pytest

from rapa_lib.analog import (
    PRESETS,
    ConstantStepDevice,
    IdealDevice,
    IOParameters,
    SoftBoundsDevice,
    TileConfig,
    UpdateParameters,
    ideal,
    reram,
    resolution,
    rpu_baseline,
)


@pytest.mark.parametrize("preset", PRESETS)
def test_configurations_survive_dict_and_yaml(preset):
    config = PRESETS[preset]()
    assert TileConfig.from_dict(config.to_dict()) == config
    assert TileConfig.from_yaml(config.to_yaml()) == config
    assert type(config.device).__name__ in repr(config)


def test_what_is_left_out_has_its_default():
    assert TileConfig.from_dict({}) == rpu_baseline()
    assert TileConfig.from_yaml("") == rpu_baseline()
    changed = TileConfig.from_dict({"device": {"kind": "SoftBoundsDevice", "dw_min": 0.01}})
    assert changed.device == SoftBoundsDevice(dw_min=0.01)


def test_presets_are_what_they_are_called():
    assert ideal().forward.is_perfect
    assert not rpu_baseline().forward.is_perfect
    assert isinstance(reram().device, SoftBoundsDevice)
    aware = reram().hardware_aware()
    assert aware.forward == reram().forward
    assert aware.backward.is_perfect
    assert aware.device == IdealDevice()


def test_resolutions():
    assert IOParameters() == IOParameters(inp_res=1 / 126, out_res=1 / 510)
    assert resolution(7) == 1 / 126
    assert IOParameters(inp_res=resolution(2)).bm_limit == 0.5  # a halved input is below a step
    assert IOParameters().bm_limit == 0.25 * 126
    assert IOParameters(inp_res=0).bm_limit == 1000
    assert IOParameters(bound_management="none").bm_limit == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IOParameters(out_noise=-0.1), r"out_noise: got -0\.1, allowed: .*at least 0"),
        (lambda: IOParameters(inp_noise=math.nan), "inp_noise: got nan"),
        (lambda: IOParameters(w_noise=-1), "w_noise: got -1"),
        (lambda: IOParameters(inp_res=0.6), r"inp_res: got 0\.6, .*at most 0\.5"),
        (lambda: IOParameters(out_res=-1), "out_res: got -1"),
        (lambda: IOParameters(out_bound=0), r"out_bound: got 0\.0, allowed: .*above 0"),
        (lambda: IOParameters(inp_bound=math.inf), "inp_res: got .* without a finite inp_bound"),
        (lambda: IOParameters(noise_management="max"), "noise_management: got 'max', allowed: abs"),
        (lambda: IOParameters(bound_management="max"), "bound_management: got 'max'"),
        (lambda: resolution(0), "bits: got 0, allowed: 2 to 20"),
        (lambda: resolution(1), "bits: got 1, allowed: 2 to 20"),
        (lambda: UpdateParameters(desired_bl=0), "desired_bl: got 0, allowed: 1"),
        (lambda: UpdateParameters(method="slow"), "method: got 'slow', allowed: exact, seq"),
        (lambda: ConstantStepDevice(w_max=-1), r"w_max: got -1\.0 with w_min = -0\.6, allowed: ab"),
        (lambda: ConstantStepDevice(w_max=0.5, w_min=0.5), "w_max: got 0.5 with w_min = 0.5"),
        (lambda: ConstantStepDevice(dw_min=0), "dw_min: got 0.0, allowed: .*above 0"),
        (lambda: ConstantStepDevice(dw_min_std=-1), "dw_min_std: got -1"),
        (
            lambda: SoftBoundsDevice(w_min=0),
            "w_min: got 0.0, allowed for SoftBoundsDevice: below 0",
        ),
        (lambda: TileConfig.from_dict({"fwd": {}}), r"config: got \['fwd'\], allowed: forward"),
        (lambda: TileConfig.from_dict({"forward": {"bits": 7}}), r"forward: got \['bits'\]"),
        (lambda: TileConfig.from_dict({"device": {"kind": "Magic"}}), "device.kind: got 'Magic'"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_types_are_named():
    with pytest.raises(TypeError, match=r"desired_bl: got 3\.5, expected an integer"):
        UpdateParameters(desired_bl=3.5)
    with pytest.raises(TypeError, match="device: got 'reram', expected IdealDevice or Pulsed"):
        TileConfig(device="reram")
    with pytest.raises(TypeError, match="forward: got 3, expected a mapping"):
        TileConfig.from_dict({"forward": 3})


def test_the_backward_product_has_no_bound_management():
    assert TileConfig(backward=IOParameters()).backward.bound_management == "none"
    assert replace(rpu_baseline(), device=IdealDevice()).backward == rpu_baseline().backward
