"""The acceleration experiment: its tables hold what the library computes, its record all of it."""

import json

import pandas as pd
import pytest
from tiny import SHAPE, tiny_dataset

from rapa_lib.experiments.acceleration.experiment import (
    AccelerationRun,
    acceleration_table,
    balanced_table,
    count_networks,
    layer_times,
    network_table,
    save_acceleration,
)
from rapa_lib.experiments.accuracy.experiment import AccuracyRun, save_run
from rapa_lib.experiments.tiles_accuracy.tables import tiles_accuracy
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


def test_the_record_holds_rows_and_provenance(networks, tmp_path):
    run = AccelerationRun(["rapa", "alexnet"], 64, max_tiles=2, max_array_size=(3, 4))
    assert run.hardware == AnalogArrays((3, 4))
    assert run.n_tiles == [1, 2]
    table = acceleration_table(networks, run.n_tiles, run.hardware)
    times = layer_times(networks, 2, run.hardware)
    record = save_acceleration(tmp_path / "new", run, table, times)
    read = json.loads((tmp_path / "new/record.json").read_text())
    assert read == json.loads(json.dumps(record))
    assert read["config"]["max_array_size"] == [3, 4]
    assert read["config"]["image_size"] == 64
    assert {"git_commit", "torch_version", "package_version"} <= set(read)
    pd.testing.assert_frame_equal(pd.DataFrame(read["rows"]), table)
    pd.testing.assert_frame_equal(pd.DataFrame(read["layers"]), times)
    assert len(table) == 2 * 2 * len(SCHEDULES)
    assert run.count() == networks


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"networks": "rapa"}, TypeError, "networks: got 'rapa', expected a list"),
        ({"networks": []}, ValueError, "networks: got none"),
        ({"networks": ["rapid"]}, ValueError, "networks: got 'rapid', allowed: rapa, alexnet"),
        ({"image_size": 0}, ValueError, "image_size: got 0"),
        ({"max_tiles": 0}, ValueError, "max_tiles: got 0"),
        ({"target_speedup": 0.5}, ValueError, "target_speedup: got 0.5"),
        ({"forward_ns": -1}, ValueError, "forward_ns: got -1"),
        ({"flops_per_s": 0}, ValueError, "flops_per_s: got 0"),
    ],
)
def test_bad_parameters_fail_when_a_run_is_made(arguments, error, message):
    with pytest.raises(error, match=message):
        AccelerationRun(**arguments)


def test_trained_networks_stand_beside_their_speedups(tmp_path):
    data, runs = tiny_dataset(), {}
    for name, changes in {
        "plain": {"tiling": "none"},
        "smooth": {"tiling": "none", "pooling": "avg"},  # as none of the tiled ones
        "few": {"tile_lr_power": 0.5},
        "many": {"tile_lr_power": 0.5, "n_tiles": (16, 4, 2)},
        "other": {"tile_lr_power": 1.0},  # its setting has one number of tiles only
        "fixed": {"tiling": "image"},
    }.items():
        run = AccuracyRun(**SHAPE | {"epochs": 1, "batch_size": 16, "draws": 2} | changes)
        network = run.build_network(data)
        training = run.train(network, data, progress=False)
        errors = run.evaluate(network, data, training.scaling)
        runs[name] = save_run(tmp_path / name, run, network, data, training, errors)
    table = tiles_accuracy(tmp_path / name for name in runs).set_index("run")
    assert list(table.index) == ["plain", "few", "many"]
    # 64, 16 and 4 patches.
    assert table["speedup"].tolist() == [1, 4, 16]
    # The products of three convolutions and a linear layer.
    sequential = [1, 85 / (16 + 8 + 4 + 1), 85 / (4 + 4 + 2 + 1)]
    assert table["speedup_sequential"].tolist() == pytest.approx(sequential)
    for name, row in table.iterrows():
        assert row["test_error"] == runs[name]["test_error"]
    with pytest.raises(ValueError, match="runs: none of them has tiling"):
        tiles_accuracy([tmp_path / "fixed"])
