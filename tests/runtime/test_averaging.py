"""What averaging the tiles costs, by hand and against the model without it."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from rapa_lib import RapaConvNet
from rapa_lib.analog import WRITES as ANALOG_WRITES
from rapa_lib.runtime import (
    AVERAGING_COLUMNS,
    SCHEDULES,
    WRITES,
    AnalogArrays,
    AveragingSide,
    DigitalSide,
    averaging_cost,
    averaging_table,
    cost_table,
    count_layers,
    run_time,
)

UNLIMITED = DigitalSide(values_per_second=None)
FREE = AveragingSide(adds_per_second=None)


@cache
def layers():
    return count_layers(RapaConvNet(n_tiles=(16, 4, 1)).to("meta"), (3, 32, 32))


def timed(**hardware):
    return run_time(layers(), hardware=AnalogArrays(**hardware))


def test_ways_of_writing_are_those_of_analog_tiles():
    assert WRITES == ANALOG_WRITES


@pytest.mark.parametrize(("write", "line_ns"), [("program", 10_000), ("pulses", 80)])
def test_arrays_alone_by_hand(write, line_ns):
    """Kernel matrices 75 × 32 and 800 × 32 (on two arrays) are read, and written, by columns."""
    found = averaging_cost(timed(), UNLIMITED, FREE, batch_size=128, write=write)
    assert [layer.lines for layer in found.layers] == [32, 32, 0, 0]
    assert found.averaging_us == pytest.approx(32 * (80 + line_ns) / 1000)
    step = 128 * 64 * 240 / 1000  # 64 patches on each tile of every convolution
    assert found.step_us == pytest.approx(step)
    assert found.time_us(4) == pytest.approx((step + found.averaging_us / 4) / 128)
    assert found.share(4) == pytest.approx(found.averaging_us / (4 * step + found.averaging_us))
    assert found.share(0) == 0
    assert found.time_us(0) == pytest.approx(step / 128)


def test_reads_and_pulse_trains_take_their_time():
    digital = replace(UNLIMITED, bl=62)
    side = replace(FREE, reads=3)
    found = averaging_cost(timed(backward_ns=50), digital, side, batch_size=1, write="pulses")
    assert found.averaging_us == pytest.approx(32 * (3 * 50 + 62 * 2.5) / 1000)


def test_values_and_additions_by_hand():
    kernels = 16 * 75 * 32 + 4 * 800 * 32
    means = 75 * 32 + 800 * 32
    for write, written, differences in (("program", means, 0), ("pulses", kernels, kernels)):
        found = averaging_cost(timed(), batch_size=128, write=write)
        assert found.values == kernels + written
        assert found.adds == kernels + differences
        side = AveragingSide(velocities=True, reads=2)
        more = averaging_cost(timed(), None, side, batch_size=128, write=write)
        assert more.values == found.values + 2 * kernels + means
        assert more.adds == found.adds + 2 * kernels


@pytest.mark.parametrize("shared", [True, False])
def test_little_bandwidth_and_few_adders_hold_it_up(shared):
    digital = DigitalSide(values_per_second=1e6, shared=shared)
    read = [16 * 75 * 32, 4 * 800 * 32]
    written = [75 * 32, 800 * 32]
    seconds = sum(read + written) if shared else max(read) + max(written)
    found = averaging_cost(timed(), digital, FREE, batch_size=1)
    assert found.averaging_us == pytest.approx(seconds)
    slow = AveragingSide(adds_per_second=1e6)
    found = averaging_cost(timed(), UNLIMITED, slow, batch_size=1, write="pulses")
    assert found.averaging_us == pytest.approx(2 * sum(read) + 32 * 0.08)


def test_tiles_that_share_an_array_are_read_one_after_the_other():
    packed = replace(UNLIMITED, packing="diagonal")
    found = averaging_cost(timed(), packed, FREE, batch_size=1)
    assert [layer.lines for layer in found.layers] == [32 * 6, 32, 0, 0]  # 512 // 75 tiles


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_least_k_is_the_least(schedule):
    for write in WRITES:
        found = averaging_cost(timed(), batch_size=2, write=write, schedule=schedule)
        k = found.least_every()
        assert found.share(k) <= 0.1 * (1 + 1e-9)
        assert k == 1 or found.share(k - 1) > 0.1
        assert found.least_every(0.01) >= k


def test_without_tiles_nothing_is_averaged():
    found = averaging_cost(run_time(layers(), n_tiles=1), batch_size=8)
    assert (found.averaging_us, found.values, found.adds, found.least_every()) == (0, 0, 0, 1)
    assert found.share(1) == 0


def test_the_table_has_the_speedup_of_rapa_where_tiles_are_never_averaged():
    networks = {"rapa": layers()}
    table = averaging_table(networks, [1, 16, 1024], [0, 1, 4, 64], schedules=SCHEDULES)
    assert tuple(table) == AVERAGING_COLUMNS
    plain = cost_table(networks, [1, 16, 1024]).query("access == 'random'")
    for keys, rows in table.groupby(["schedule", "write", "n_tiles"]):
        schedule, _, count = keys
        one = plain[(plain["schedule"] == schedule) & (plain["n_tiles"] == count)]["speedup"].item()
        speedups = rows.set_index("sync_every")["speedup"]
        assert speedups[0] == pytest.approx(one)
        assert speedups[1] <= speedups[4] <= speedups[64] <= one * (1 + 1e-12)
        assert (rows["speedup"] / one).values == pytest.approx(1 - rows["share"].values)
    assert (table.query("n_tiles == 1")["share"] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"batch_size": 1, "write": "ink"}, ValueError, "write: got 'ink', allowed: program, p"),
        ({"batch_size": 1, "side": 3}, TypeError, "side: got int, expected AveragingSide"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        averaging_cost(timed(), **arguments)
    with pytest.raises(ValueError, match=r"^program_ns: got 0"):
        AveragingSide(program_ns=0)
    with pytest.raises(ValueError, match=r"^share: got 0"):
        averaging_cost(timed(), batch_size=1).least_every(0)


def test_the_page_has_these_numbers():
    page = (Path(__file__).parents[2] / "docs/synchronisation.md").read_text(encoding="utf-8")
    rows = iter(re.findall(r"^\| (.*) \| (\d+) µs \| (\d+) \| [\d.]+ → (.*) \|$", page, re.M))
    for n_tiles in ((16, 4, 1), (128, 32, 8), (1024, 256, 64)):
        network = RapaConvNet(n_tiles=n_tiles).to("meta")
        tiled = run_time(count_layers(network, (3, 32, 32)))
        single = averaging_cost(run_time(layers(), n_tiles=1), batch_size=128).time_us(0)
        for write in WRITES:
            found = averaging_cost(tiled, batch_size=128, write=write)
            where, averaging, least, speedups = next(rows)
            assert where.endswith("programming" if write == "program" else write)
            assert (int(averaging), int(least)) == (round(found.averaging_us), found.least_every())
            for k, shown in zip((1, 4, 16, 64), speedups.split(", "), strict=True):
                digit = 0.051 if "." in shown else 0.51
                assert float(shown) == pytest.approx(single / found.time_us(k), abs=digit)
            if write == "program":
                assert f"{found.step_us:,.0f} µs" in where
    assert next(rows, None) is None
