"""The acceleration experiment: its tables hold what the library computes, its record all of it."""

import json

import pandas as pd
import pytest

from rapa_lib.experiments.acceleration import Acceleration
from rapa_lib.experiments.acceleration.networks import count_networks
from rapa_lib.experiments.acceleration.tables import (
    acceleration_table,
    balanced_table,
    layer_times,
    network_table,
    speedup_table,
    target_table,
)
from rapa_lib.experiments.records import read_runs
from rapa_lib.runtime import SCHEDULES, AnalogArrays, balance_tiles, reachable_speedup, run_time


@pytest.fixture(scope="module")
def networks():
    return count_networks(["rapa", "alexnet"], 64)


def test_the_papers_network_speeds_up_in_proportion(networks):
    table = acceleration_table(networks, [1, 16, 1024]).query("network == 'rapa'")
    pipelined = table.query("schedule == 'pipelined'")
    assert pipelined["speedup"].tolist() == [1, 16, 1024]
    assert pipelined["products"].tolist() == [1024, 64, 1]
    sequential = table.query("schedule == 'sequential'")
    assert sequential["products"].tolist() == [1345, 64 + 16 + 4 + 1, 4]
    assert pipelined["arrays"].tolist() == sequential["arrays"].tolist()
    assert pipelined["arrays"].tolist() == [7, 16 * 5 + 2, 1024 + 2 * 256 + 2 * 64 + 2]


def test_rows_are_run_times(networks):
    hardware = AnalogArrays(100, forward_ns=1, backward_ns=2, update_ns=3)
    table = acceleration_table(networks, [1, 4], hardware)
    assert len(table) == 2 * 2 * 2
    for row in table.itertuples():
        found = run_time(networks[row.network], n_tiles=row.n_tiles, hardware=hardware)
        assert row.speedup == found.speedup(row.schedule)
        assert row.time_us == found.time_us(row.schedule)
        assert (row.arrays, row.cross_points) == (found.arrays, found.cross_points)
        assert row.cross_points == 10_000 * row.arrays
        assert (row.utilisation, row.bottleneck) == (
            found.utilisation,
            found.bottleneck.layer.name,
        )


def test_balanced_rows_reach_their_targets_at_less_cost(networks):
    uniform = acceleration_table(networks, [1, 2, 8, 64, 512])
    targets = {name: rows["speedup"].tolist() for name, rows in uniform.groupby("network")}
    balanced = balanced_table(networks, targets, max_tiles=512)
    assert set(balanced["assignment"]) == {"balanced"}
    assert balanced["n_tiles"].max() <= 512
    for row in uniform.itertuples():
        rows = balanced.query("network == @row.network and schedule == @row.schedule")
        assert rows.loc[rows["speedup"] >= row.speedup, "arrays"].min() <= row.arrays


def test_targets_out_of_reach_have_no_row(networks):
    table = balanced_table(networks, [2, 10_000], schedules=["sequential"])
    assert table["network"].tolist() == ["rapa", "alexnet"]
    assert (table["speedup"] >= 2).all()
    assert set(table["schedule"]) == {"sequential"}
    none = balanced_table(networks, [10_000])
    assert len(none) == 0
    few = balanced_table({"rapa": networks["rapa"]}, [2, 100], max_tiles=4)
    assert few["speedup"].tolist() == pytest.approx([2, 2], abs=0.1)
    assert list(none) == list(table)


def test_layer_times_before_and_after(networks):
    table = layer_times(networks, 10)
    before, after = (
        table.query("network == 'rapa' and assignment == @name")
        for name in ("one tile", "balanced")
    )
    assert before["time_us"].tolist() == pytest.approx([0.24 * n for n in (1024, 256, 64, 1)])
    assert after["layer"].tolist() == before["layer"].tolist()
    tiles = balance_tiles(networks["rapa"], target_speedup=10)
    assert dict(zip(after["layer"], after["n_tiles"], strict=True)) == tiles | {"classifier": 1}
    assert before["time_us"].max() / after["time_us"].max() >= 10
    most = layer_times(networks, 1e6).query("assignment == 'balanced'")
    for name, rows in most.groupby("network"):
        assert rows["products"].max() == (
            run_time(networks[name]).products() / reachable_speedup(networks[name])
        )


def test_networks_before_any_tiling(networks):
    table = network_table(networks, flops_per_s=1e12, bytes_per_s=1e9).set_index("network")
    assert table.loc["rapa", "input_size"] == "3×32×32"
    assert table.loc["rapa", "macs"] == 1024 * 75 * 32 + 256 * 800 * 32 + 64 * 800 * 64 + 10240
    assert table.loc["rapa", "time_us_pipelined"] == pytest.approx(1024 * 0.24)
    assert table.loc["rapa", "time_us_sequential"] == pytest.approx(1345 * 0.24)
    assert table.loc["alexnet", "layers"] == 8
    assert (table["uncounted"] == 0).all()
    twice = network_table(networks, flops_per_s=1e12, bytes_per_s=2e9).set_index("network")
    assert twice["digital_us"].tolist() == pytest.approx((table["digital_us"] / 2).tolist())


def test_costs_of_a_target(networks):
    table = target_table(networks, 100, max_tiles=64).set_index(["network", "schedule"])
    assert len(table) == 2 * len(SCHEDULES)
    for (name, schedule), row in table.iterrows():
        assert row["reachable"] == reachable_speedup(
            networks[name], schedule=schedule, max_tiles=64
        )
    assert table["speedup"].isna().all()  # 64 tiles are too few
    table = target_table(networks, 10).set_index(["network", "schedule"])
    tiles = balance_tiles(networks["rapa"], target_speedup=10)
    timed = run_time(networks["rapa"], n_tiles=tiles)
    row = table.loc[("rapa", "pipelined")]
    assert row["arrays"] == timed.arrays
    single = run_time(networks["rapa"], n_tiles=1)
    assert row["cross_points_ratio"] == timed.cross_points / single.cross_points


def test_the_record_holds_rows_and_provenance(networks, tmp_path):
    run = Acceleration.of(
        networks=["rapa", "alexnet"], image_size=64, max_tiles=3, max_array_size=(3, 4),
        target_speedup=2,
    )  # fmt: skip
    assert run.hardware == AnalogArrays((3, 4))
    assert run.n_tiles == [1, 2]
    table = speedup_table(networks, run.n_tiles, run.hardware, max_tiles=3)
    times = layer_times(networks, 2, run.hardware, max_tiles=3)
    record = run.measure(None, tmp_path / "new")
    (read,) = read_runs([tmp_path / "new"], run.entry().leaves)
    assert read == record == json.loads(json.dumps(record))
    assert read["config"]["max_array_size"] == [3, 4]
    assert read["config"]["image_size"] == 64
    assert Acceleration.of(**read["config"]) == run
    assert {"git_commit", "torch_version", "package_version"} <= set(read)
    pd.testing.assert_frame_equal(pd.DataFrame(read["rows"]), table)
    pd.testing.assert_frame_equal(pd.DataFrame(read["layers"]), times)
    assert run.count() == networks
    assert len(run.before_tiling()) == 2
    assert len(run.target_costs()) == 2 * len(SCHEDULES)


def test_the_table_is_of_equal_tiles_then_of_balanced_ones(networks):
    table = speedup_table(networks, [1, 2], max_tiles=2)
    uniform = acceleration_table(networks, [1, 2])
    pd.testing.assert_frame_equal(table[: len(uniform)], uniform)
    assert set(table["assignment"][len(uniform) :]) == {"balanced"}
    reached = {name: rows["speedup"].tolist() for name, rows in uniform.groupby("network")}
    balanced = balanced_table(networks, reached, max_tiles=2)
    pd.testing.assert_frame_equal(table[len(uniform) :].reset_index(drop=True), balanced)


def test_one_run_makes_the_page_and_several_are_refused():
    record = Acceleration.of(networks=["rapa"], max_tiles=4, target_speedup=2).measure(None)
    collected = Acceleration.collect([record])
    pd.testing.assert_frame_equal(collected.tables["acceleration"], pd.DataFrame(record["rows"]))
    assert set(collected.figures) == set(Acceleration.entry().figures)
    assert "90 %" in collected.answer[0]
    body = "".join(collected.body)
    assert "networks rapa, image_size 224, max_tiles 4, target_speedup 2," in body
    assert all(f"{name} " in body for name in record["config"])
    with pytest.raises(ValueError, match="records: got 2, expected one"):
        Acceleration.collect([record, record])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"networks": "rapa"}, TypeError, "networks: got 'rapa', expected a sequence of names"),
        ({"networks": []}, ValueError, r"networks: got \(\), expected at least one"),
        ({"networks": ["rapid"]}, ValueError, "networks: got 'rapid', allowed: rapa, alexnet"),
        ({"image_size": 0}, ValueError, "image_size: got 0"),
        ({"max_tiles": 0}, ValueError, "max_tiles: got 0"),
        ({"target_speedup": 0.5}, ValueError, "target_speedup: got 0.5"),
        ({"forward_ns": -1}, ValueError, "forward_ns: got -1"),
        ({"analog_bias": 1}, TypeError, "analog_bias: got 1"),
        ({"max_array_size": [3, 0]}, ValueError, "max_size"),
        ({"batch": 3}, TypeError, "acceleration: batch: unknown; it takes "),
        ({"flops_per_s": 0}, ValueError, "flops_per_s: got 0"),
    ],
)
def test_bad_parameters_fail_when_a_run_is_made(arguments, error, message):
    with pytest.raises(error, match=message):
        Acceleration.of(**arguments)
