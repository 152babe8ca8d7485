"""Claim C1 with its costs in tables: one row for each case, and where proportionality ends."""

import itertools
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from rapa_lib import RapaConvNet
from rapa_lib.runtime import (
    ACCESSES,
    LIMITS,
    PACKINGS,
    SCHEDULES,
    AnalogArrays,
    DigitalSide,
    cost_table,
    count_layers,
    is_proportional,
    layer_costs,
    run_time,
    tiles_within,
)

UNLIMITED = DigitalSide(None)
POWERS = [2**i for i in range(11)]
PLAIN = count_layers(nn.Conv2d(1, 4, 2, bias=False), (1, 9, 9))
"""64 patches, a kernel matrix of 4 × 4."""


@pytest.fixture(scope="module")
def paper():
    return count_layers(RapaConvNet(tiling="none"), (3, 32, 32))


@pytest.fixture(scope="module")
def networks(paper):
    with torch.device("meta"):
        return {"paper": paper, "resnet18": count_layers(models.resnet18(), (3, 96, 96))}


# --- one row per case ---------------------------------------------------------------------------


@pytest.mark.parametrize("digital", [UNLIMITED, DigitalSide(1e30, pulse_ns=50)], ids=str)
def test_with_enough_bandwidth_the_speed_up_is_that_of_the_arrays(networks, digital):
    table = cost_table(networks, [1, 3, 16, 100, 1024], digital=digital)
    assert table["speedup"].tolist() == pytest.approx(table["speedup_ideal"].tolist())
    for row in table.to_dict("records"):
        timed = run_time(networks[row["network"]], n_tiles=row["n_tiles"])
        assert row["speedup_ideal"] == timed.speedup(row["schedule"])
        assert row["arrays"] == timed.arrays
        if digital is UNLIMITED:
            assert row["time_us"] == pytest.approx(timed.time_us(row["schedule"]))
            assert row["limit"] == "arrays"


@pytest.mark.parametrize("bandwidth", [1e6, 1e10, 1e12])
def test_one_tile_is_no_faster_than_itself(networks, bandwidth):
    digital = DigitalSide(bandwidth, adc_share=8, packing="dense")
    table = cost_table(networks, [1], digital=digital)
    assert table["speedup"].tolist() == pytest.approx([1] * len(table))
    assert table["proportional"].all()


def test_dense_packing_gives_the_speed_up_back():
    table = {
        packing: cost_table(
            {"a": PLAIN}, [16], AnalogArrays(16),
            replace(UNLIMITED, packing=packing), ["pipelined"],
        ).iloc[0]
        for packing in PACKINGS
    }  # fmt: skip
    assert {name: row["arrays"] for name, row in table.items()} == {
        "separate": 16, "diagonal": 4, "dense": 1
    }  # fmt: skip
    assert {name: row["speedup"] for name, row in table.items()} == {
        "separate": pytest.approx(16), "diagonal": pytest.approx(16), "dense": pytest.approx(1)
    }  # fmt: skip


def test_only_a_pipeline_has_stale_weights(paper):
    table = cost_table({"paper": paper}, [1, 1024])
    stale = table.groupby("schedule")["stale_images"].unique()
    assert (list(stale["pipelined"]), list(stale["sequential"])) == ([6], [0])
    assert layer_costs(paper)["stale_images"].tolist() == [6, 4, 2, 0]


def test_random_order_never_beats_contiguous_order(networks):
    for digital in (DigitalSide(1e10), DigitalSide(1e12), DigitalSide(1e12, line_buffer=False)):
        table = cost_table(networks, POWERS, digital=digital)
        speedups = table.pivot_table(
            index=["network", "schedule", "n_tiles"], columns="access", values="speedup"
        )
        gain = speedups["contiguous"] / speedups["random"]
        assert (gain >= 1 - 1e-9).all()
        # Without a buffer only the ordinary network's order could differ, and it does not.
        assert (gain.max() > 1 + 1e-9) == digital.line_buffer


def test_more_tiles_need_more_values(networks):
    table = cost_table(networks, POWERS)
    for _, lines in table.groupby(["network", "schedule", "access"]):
        assert lines["values_per_s"].is_monotonic_increasing


def test_one_row_per_network_schedule_access_and_number_of_tiles(networks):
    table = cost_table(networks, [1, 16], schedules=["sequential"])
    keys = ["network", "schedule", "access", "n_tiles"]
    expected = itertools.product(networks, ["sequential"], ACCESSES, [1, 16])
    assert list(table[keys].itertuples(index=False, name=None)) == list(expected)
    names = {"speedup_ideal", "speedup", "proportional", "values_per_s", "limit", "limiting_layer"}
    assert names < set(table)
    assert set(table["limit"]) <= set(LIMITS)


def test_tiles_beyond_the_patches_of_a_layer_are_lowered(paper):
    assert layer_costs(paper, n_tiles=1024)["n_tiles"].tolist() == [1024, 256, 64, 1]


# --- the endpoint of C1 -------------------------------------------------------------------------


def test_tiles_within_is_the_end_of_the_proportional_rows(networks):
    bandwidths = [1e9, 1e11, 1e12, 1e15]
    found = tiles_within(networks, POWERS, bandwidths=bandwidths)
    assert len(found) == len(networks) * len(SCHEDULES) * len(ACCESSES) * len(bandwidths)
    keys = ["network", "schedule", "access"]
    by_key = found.groupby(keys)
    for bandwidth in [*bandwidths, None]:
        table = cost_table(networks, POWERS, digital=DigitalSide(bandwidth))
        for key, lines in table.groupby(keys):
            kept = list(itertools.takewhile(lambda row: row.proportional, lines.itertuples()))
            rows = by_key.get_group(key)
            if bandwidth is None:
                assert set(rows["tiles_unlimited"]) == {kept[-1].n_tiles}
                continue
            (row,) = rows[rows["values_per_second"] == bandwidth].to_dict("records")
            assert row["tiles"] == kept[-1].n_tiles
            limits = [*lines["limit"], "none"]
            assert row["limit"] == limits[len(kept)]
            assert row["most_tiles"] == 1024
    assert 1 in set(found["tiles"])
    assert (found["tiles"] <= found["tiles_unlimited"]).all()
    for _, lines in found.groupby(keys):
        assert lines["tiles"].is_monotonic_increasing


def test_a_wider_tolerance_reaches_further(paper):
    reached = [
        tiles_within({"a": paper}, POWERS, tolerance=tolerance)["tiles"].sum()
        for tolerance in (0.0, 0.1, 0.5, 1.0)
    ]
    assert reached == sorted(set(reached))


def test_numbers_of_tiles_may_come_in_any_order_and_fall_short_of_one(paper):
    shuffled = tiles_within({"a": paper}, [64, 4, 256, 16])
    assert shuffled.equals(tiles_within({"a": paper}, [4, 16, 64, 256]))
    slow = tiles_within({"a": paper}, [4, 16], bandwidths=[1e6])
    assert set(slow["tiles"]) == {0}


@pytest.mark.parametrize(
    ("speedup", "yes"), [(9.0, True), (8.99, False), (10.0, True), (9.0 - 1e-14, True)]
)
def test_proportional_is_at_most_a_tenth_below(speedup, yes):
    assert is_proportional(10, speedup) is yes


def test_the_docs_give_every_constant_its_default_and_source():
    page = Path(__file__).parents[2] / "docs" / "run_time.md"
    lines = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    for field in fields(DigitalSide):
        (line,) = (line for line in lines if f"`{field.name}`" in line)
        _, _, default, source, _ = (cell.strip() for cell in line.split("|"))
        written = {"True": "yes", "1000000000000.0": "10¹²"}
        expected = written.get(str(field.default), str(field.default).removesuffix(".0"))
        assert expected in default.replace("`", "")
        assert source.startswith("assumption") or field.name == "bl"


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": {}}, "networks: got none"),
        ({"networks": [1]}, "networks: got list, expected layers by name"),
        ({"networks": {"a": nn.Linear(2, 2)}}, r"networks\['a'\]: got Linear, expected what count"),
        ({"n_tiles": []}, "n_tiles: got none"),
        ({"n_tiles": [0]}, "n_tiles: got 0, allowed: at least 1"),
        ({"n_tiles": 4}, "n_tiles: got 4, expected a sequence of integers"),
        ({"schedules": ["parallel"]}, "schedules: got 'parallel', allowed: pipelined, sequential"),
        ({"schedules": "pipelined"}, "schedules: got 'pipelined', expected a sequence"),
        ({"digital": 1e12}, "digital: got float, expected DigitalSide"),
        ({"hardware": "fast"}, "hardware: got str, expected AnalogArrays"),
        ({"tolerance": 1.5}, "tolerance: got 1.5, allowed"),
        (
            {"digital": DigitalSide(adc_share=2, adc_ns=75, dac_ns=10)},
            r"adc_ns \+ dac_ns: got 85, allowed: at most the arrays' forward_ns and backward_ns, "
            "here 80",
        ),
    ],
)
@pytest.mark.parametrize("table", [cost_table, tiles_within])
def test_tables_refuse_what_they_cannot_use(table, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        table(**{"networks": {"a": PLAIN}, "n_tiles": [1, 2]} | changes)


def test_other_functions_refuse_too(paper):
    with pytest.raises(ValueError, match=r"bandwidths: got 0\.0, allowed: finite, above 0"):
        tiles_within({"a": paper}, [1], bandwidths=[0])
    with pytest.raises(TypeError, match=r"bandwidths: got 1000000000\.0, expected a sequence"):
        tiles_within({"a": paper}, [1], bandwidths=1e9)
    with pytest.raises(ValueError, match="access: got 'linear', allowed: random, contiguous"):
        layer_costs(paper, access="linear")
