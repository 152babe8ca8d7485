"""What the notebook on one tile shows is what its definition says."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from rapa_lib.analog import ConstantStepDevice, IOParameters, SoftBoundsDevice, resolution
from rapa_lib.experiments.guide import one_tile, one_tile_figures

QUIET = IOParameters(out_noise=0)


def test_a_dac_makes_steps_of_the_input():
    curve = one_tile.read_curve(replace(QUIET, out_res=0), weight=0.5, n_points=401)
    step = 2 * resolution(7) * 0.5
    assert np.allclose(curve["read"] / step, np.round(curve["read"] / step), atol=1e-4)
    assert (curve["read"] - curve["exact"]).abs().max() <= step / 2 + 1e-6
    assert curve["read"].nunique() > 100


def test_an_adc_makes_steps_of_the_output():
    curve = one_tile.read_curve(replace(QUIET, inp_res=0), weight=0.5, n_points=401)
    step = 2 * 12 * resolution(9)
    assert np.allclose(curve["read"] / step, np.round(curve["read"] / step), atol=1e-4)


def test_bound_management_reads_what_the_adc_cannot():
    curve = one_tile.bound_curve(QUIET, weight=0.5, n_inputs=60, repeats=1)
    none, managed = (curve[curve["bound_management"] == way] for way in ("none", "iterative"))
    assert none["read"].max() == pytest.approx(12)
    beyond = none["exact"] > 12.1
    assert beyond.sum() > 20
    assert np.allclose(none["read"][beyond], 12)
    # A halved input lies between two steps of the DAC; the ADC's half step grows fourfold.
    slack = 0.02 * managed["exact"] + 4 * 12 * resolution(9)
    assert ((managed["read"] - managed["exact"]).abs() < slack).all()


def test_a_product_without_periphery_is_exact():
    reads = one_tile.product_reads(IOParameters.perfect(), n_vectors=3)
    assert len(reads) == 3 * 32
    assert one_tile.relative_error(reads) < 1e-6
    few, many = (
        one_tile.relative_error(one_tile.product_reads(one_tile.periphery(0.0, bits, 12)))
        for bits in (3, 8)
    )
    assert few > 4 * many


def test_updates_are_right_on_average():
    x, d, lr = [1.0, -0.6, 0.2], [0.8, -0.4], 0.03
    table = one_tile.mean_update(x, d, lr, n_tiles=2000)
    assert table["asked"].tolist() == pytest.approx([-lr * b * a for b in d for a in x])
    error = (table["mean"] - table["asked"]).abs()
    assert (error < 5 * table["std"] / 2000**0.5).all()


def test_one_pulse_after_the_other_moves_a_weight_by_its_step():
    device = ConstantStepDevice(dw_min=0.01, dw_min_dtod=0, dw_min_std=0, up_down_dtod=0)
    device = replace(device, w_max_dtod=0, w_min_dtod=0)
    curve = one_tile.response_curve(device, n_pulses=100, n_devices=2)
    assert curve.shape == (201, 2)
    up = np.minimum(0.01 * np.arange(101), 0.6)
    assert np.allclose(curve[:101, 0], up, atol=1e-5)
    assert np.allclose(curve[100:, 1], up[-1] - 0.01 * np.arange(101), atol=1e-5)
    soft = one_tile.response_curve(SoftBoundsDevice(dw_min=0.01, dw_min_std=0), n_pulses=100)
    steps = np.diff(soft[:101], axis=0)
    assert (steps[1:] < steps[:-1]).all()  # they shrink towards the bound


def test_the_seed_alone_decides_what_is_drawn():
    before = torch.get_rng_state()
    first, again, other = (one_tile.product_reads(IOParameters(), seed=s) for s in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)
    assert torch.equal(torch.get_rng_state(), before)


def test_costs_are_those_of_the_run_time_model():
    table = one_tile.replication_costs([1, 16])
    assert table["speedup_ideal"].tolist() == [1, 16]
    assert table["arrays"].tolist() == [7, 82]


def test_figures_are_drawn():
    x, d = [1.0, -0.5], [1.0]
    curve = one_tile.read_curve(QUIET, n_points=5)
    figures = [
        one_tile_figures.read_figure({"a": curve, "b": curve}),
        one_tile_figures.bound_figure(one_tile.bound_curve(QUIET, n_inputs=3, repeats=1), 12),
        one_tile_figures.product_figure(pd.DataFrame({"exact": [1.0, 2], "read": [1.0, 2.2]})),
        one_tile_figures.pulse_figure(one_tile.pulsed_update(x, d, 0.01), 0.01, x, d),
        one_tile_figures.mean_update_figure(one_tile.mean_update(x, d, 0.01, n_tiles=3), 3),
        one_tile_figures.response_figure({"a": np.zeros((5, 2))}),
        one_tile_figures.cost_figure(one_tile.replication_costs([1, 4])),
    ]
    assert [len(figure.axes) for figure in figures] == [2, 1, 1, 3, 1, 1, 2]
    assert figures[2].axes[0].get_title(loc="left") == "relative error 8.9 %"
