"""RAPA beside perforation that is tested dense: times counted product by product."""

import pytest

from rapa_lib.networks import RapaConvNet
from rapa_lib.runtime import RIVAL_COLUMNS, DigitalSide, count_layers, rival_table, run_time
from rapa_lib.runtime._rivals import perforated

UNLIMITED = DigitalSide(values_per_second=None)


@pytest.fixture(scope="module")
def paper():
    return count_layers(RapaConvNet(3, 10, 32), (3, 32, 32))


def products(layer, n, tiles):
    """One after the other: patches are dealt to tiles in turn, or only every n-th is computed."""
    total = 0
    for n_patches in layer.patches:
        count = min(n, layer.max_tiles)
        if tiles:
            loads = [len(range(tile, n_patches, count)) for tile in range(count)]
            total += max(loads)
        else:
            total += len(range(0, n_patches, count))
    return total


@pytest.mark.parametrize("schedule", ["pipelined", "sequential"])
def test_speed_ups_are_those_of_counted_products(paper, schedule):
    table = rival_table({"paper": paper}, [1, 3, 16, 1024], digital=UNLIMITED)
    assert list(table) == list(RIVAL_COLUMNS)
    over = max if schedule == "pipelined" else sum
    ordinary = over(products(layer, 1, True) for layer in paper.layers)
    for row in table[table["schedule"] == schedule].itertuples():
        tiles = row.arm == "random"
        taken = over(products(layer, row.n_tiles, tiles) for layer in paper.layers)
        assert row.training_speedup == pytest.approx(ordinary / taken)
        assert row.inference_speedup == pytest.approx(ordinary / taken if tiles else 1)
        one = run_time(paper, n_tiles=row.n_tiles if tiles else 1)
        assert row.arrays == one.arrays


def test_perforation_reads_no_more_values_than_one_tile_could(paper):
    table = rival_table({"paper": paper}, [1, 2, 64, 1024], schedules=["pipelined"])
    rapa, dense = (table[table["arm"] == arm] for arm in ("random", "perforated_dense"))
    # Each tile reads and writes a whole patch per cycle at most, 80 ns: layer by layer.
    most = sum((layer.rows + layer.columns) * layer.groups for layer in paper.layers) / 80e-9
    assert (dense["values_per_s"] <= most).all()
    assert rapa["values_per_s"].iloc[-1] > 10 * most
    assert dense["proportional"].all()
    assert not rapa["proportional"].all()
    assert dense["limit"].tolist() == ["arrays"] * 4
    assert rapa["limit"].iloc[-1] == "bandwidth"


def test_inference_takes_the_forward_cycle_alone(paper):
    slow_update = DigitalSide(values_per_second=None, pulse_ns=100.0)
    table = rival_table({"paper": paper}, [16], digital=slow_update, schedules=["pipelined"])
    assert table["training_speedup"].tolist() == pytest.approx([16, 16])
    assert table["inference_speedup"].tolist() == pytest.approx([16, 1])


def test_a_perforated_layer_keeps_one_tile_and_leaves_patches_out(paper):
    timed = perforated(run_time(paper, n_tiles=16))
    assert {layer.n_tiles for layer in timed.layers} == {1}
    first = timed.layers[0]
    assert first.products == -(-sum(first.layer.patches) // 16)
    assert timed.layers[-1].layer.perforation == 1  # a linear layer has one patch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_tiles": [0]}, "n_tiles"),
        ({"networks": {}}, "networks"),
        ({"tolerance": 2.0}, "tolerance"),
        ({"schedules": ["slow"]}, "schedules"),
    ],
)
def test_it_refuses_what_it_cannot_use(paper, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        rival_table(**{"networks": {"paper": paper}, "n_tiles": [2]} | changes)
