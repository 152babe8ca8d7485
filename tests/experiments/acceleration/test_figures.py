"""The acceleration experiment's figures show the numbers of the table given, and only these."""

import pandas as pd
import pytest

from rapa_lib.experiments.acceleration.figures import (
    bandwidth_figure,
    layer_time_figure,
    pareto_figure,
    rivals_figure,
    speedup_figure,
)
from rapa_lib.experiments.acceleration.tables import (
    acceleration_answer,
    acceleration_summary,
    proportional_up_to,
)
from rapa_lib.experiments.plots import save_figure

TILES = [1, 4, 16, 64]


def speedups(network, schedule):
    """Proportional up to 16 tiles, but for the pipelined schedule of ``b``: to the end."""
    last = 64 if (network, schedule) == ("b", "pipelined") else 20
    return [min(n, last) for n in TILES]


def table():
    rows = []
    for i, network in enumerate("ab"):
        for schedule in ("pipelined", "sequential"):
            for n, speedup in zip(TILES, speedups(network, schedule), strict=True):
                cost = 1000 * (i + 1) * n
                common = {"network": network, "schedule": schedule, "n_tiles": n}
                common |= {"speedup": speedup, "bottleneck": f"{network}.conv"}
                rows.append(common | {"assignment": "uniform", "cross_points": cost})
                rows.append(common | {"assignment": "balanced", "cross_points": cost // 2})
    return pd.DataFrame(rows)


def drawn(axes, marker=None):
    """Points of each line of a panel, by label-free order."""
    lines = [line for line in axes.lines if marker is None or line.get_marker() == marker]
    return [list(zip(*line.get_data(), strict=True)) for line in lines]


def test_speedup_lines_are_the_tables_uniform_rows():
    figure = speedup_figure(table())
    assert [axes.get_title("left") for axes in figure.axes] == ["pipelined", "sequential", "cost"]
    for axes, schedule in zip(figure.axes, ("pipelined", "sequential"), strict=False):
        lines = drawn(axes)
        assert lines[0] == [(1, 1), (64, 64)]  # C1
        for network in "ab":
            points = list(zip(TILES, speedups(network, schedule), strict=True))
            assert points in lines
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_xlabel() == "tiles per layer"
    costs = drawn(figure.axes[2])
    assert costs == [[(n, 1000 * n) for n in TILES], [(n, 2000 * n) for n in TILES]]


def test_rings_mark_where_a_network_leaves_proportionality():
    figure = speedup_figure(table())
    rings = [
        [line for line in axes.lines if line.get_fillstyle() == "none" and len(line.get_xdata())]
        for axes in figure.axes[:2]
    ]
    assert [[line.get_xdata().tolist() for line in lines] for lines in rings] == [
        [[16]],  # b stays proportional to the end
        [[16], [16]],
    ]


def test_the_legend_names_networks_and_marks():
    (legend,) = speedup_figure(table()).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["a", "b", "proportional (C1)", "last with 90 % of it"]


@pytest.mark.parametrize(
    ("speedup", "last"),
    [([1, 4, 16, 64], 64), ([1, 3.6, 14.4, 57], 16), ([1, 3, 16, 64], 1), ([0.5, 4, 16, 64], 0)],
)
def test_proportional_up_to(speedup, last):
    rows = pd.DataFrame({"n_tiles": TILES, "speedup": speedup}).sample(frac=1, random_state=0)
    assert proportional_up_to(rows["n_tiles"], rows["speedup"]) == last


def test_the_summary_answers_from_the_table():
    shuffled = acceleration_summary(table().sample(frac=1, random_state=0))
    summary = shuffled.set_index(["network", "schedule"]).sort_index()
    assert summary["proportional up to"].tolist() == [16, 16, 64, 16]
    row = summary.loc["b", "pipelined"]
    assert row.tolist() == [64, 64, 64, 64, "b.conv"]
    assert summary.loc[("a", "sequential"), ["speed-up", "cross-points ×"]].tolist() == [20, 64]


def test_the_answer_is_in_the_table():
    first, second = acceleration_answer(table().sample(frac=1, random_state=0).sort_index())
    assert first == (
        "**The speed-up stays above 90 % of the number of tiles per layer up to: pipelined "
        "64 tiles (b), 16 tiles (a); sequential 16 tiles (a, b).** 64 were tried at most."
    )
    # Where 16 tiles have the speed-up of 64 already, as sequential, their balanced half is enough.
    assert second.startswith("Balanced tiles reach the speed-up of 64 equal ones with ")
    assert second.endswith("50 % of their cross-points.")


def test_without_balanced_rows_there_is_one_line():
    assert len(acceleration_answer(table().query("assignment == 'uniform'"))) == 1


def test_pareto_lines_by_schedule_and_assignment():
    figure = pareto_figure(table())
    assert [axes.get_title("left") for axes in figure.axes] == ["a", "b"]
    for i, axes in enumerate(figure.axes):
        lines = drawn(axes)
        assert len(lines) == 4
        for schedule in ("pipelined", "sequential"):
            for divisor in (1, 2):
                costs = [1000 * (i + 1) * n // divisor for n in TILES]
                assert list(zip(costs, speedups("ab"[i], schedule), strict=True)) in lines
        assert {line.get_linestyle() for line in axes.lines} == {"-", "--"}


def test_layer_times_in_order_before_and_after():
    rows = [
        {"network": network, "assignment": assignment, "layer": f"l{9 - i}", "time_us": time}
        for network in "abc"
        for assignment, factor in (("one tile", 1), ("balanced", 0.5))
        for i, time in enumerate([40.0 * factor, 20.0 * factor, 1.0])
    ]
    figure = layer_time_figure(pd.DataFrame(rows))
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title("left") for axes in panels] == ["a", "b", "c"]
    for axes in panels:
        before, after = drawn(axes, "o")
        assert before == [(0, 40), (1, 20), (2, 1)]
        assert after == [(0, 20), (1, 10), (2, 1)]
        slowest = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]
        assert slowest == [40, 20]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["l9", "l8", "l7"]


def test_many_layers_are_numbered():
    rows = [
        {"network": "a", "assignment": "one tile", "layer": f"l{i}", "time_us": 1.0 + i}
        for i in range(30)
    ]
    figure = layer_time_figure(pd.DataFrame(rows))
    assert figure.axes[0].get_xlabel() == "layer, in the order in which they run"


def test_the_same_table_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_figure(pareto_figure(table()), tmp_path / name)
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_points_of_one_place_have_one_label():
    rows = pd.DataFrame(
        {
            "network": "a", "schedule": "pipelined", "arm": "random", "n_tiles": n,
            "arrays": min(n, 20), "training_speedup": min(n, 20), "inference_speedup": min(n, 20),
        }
        for n in (1, 2, 4, 8, 16, 32, 64)
    )  # fmt: skip
    axes = rivals_figure(rows).axes[0]
    assert [text.get_text() for text in axes.texts] == ["64", "4", "1"]  # 16 is beside 64


def reaches(access="random contiguous"):
    """Tiles grow with bandwidth, twice as fast in the order of the image, up to 64."""
    return pd.DataFrame(
        [
            {
                "network": network,
                "schedule": schedule,
                "access": one,
                "values_per_second": bandwidth,
                "tiles": min(64, int(bandwidth / 1e9) * (1 + (one == "contiguous")) + i + j),
                "most_tiles": 64,
            }
            for i, network in enumerate("ab")
            for j, schedule in enumerate(("pipelined", "sequential"))
            for one in access.split()
            for bandwidth in (1e9, 1e10, 1e11)
        ]
    )


def test_bandwidth_lines_are_the_tables_rows():
    rows = reaches()
    figure = bandwidth_figure(rows.sample(frac=1, random_state=0).sort_values("schedule"))
    figure.draw_without_rendering()
    assert [axes.get_title("left").partition(":")[0] for axes in figure.axes] == [
        "pipelined", "sequential"
    ]  # fmt: skip
    dashes = {"random": "-", "contiguous": "--"}
    for axes, schedule in zip(figure.axes, ("pipelined", "sequential"), strict=True):
        (most,) = (line for line in axes.lines if line.get_linestyle() == ":")
        assert set(most.get_ydata()) == {64}
        drawn_lines = {
            (line.get_linestyle(), tuple(line.get_xdata()), tuple(line.get_ydata()))
            for line in axes.lines
            if line is not most
        }
        lines = rows[rows["schedule"] == schedule].groupby(["network", "access"])
        assert drawn_lines == {
            (dashes[access], tuple(line["values_per_second"]), tuple(line["tiles"]))
            for (_, access), line in lines
        }
        # Networks differ in more than colour.
        styles = {(line.get_marker(), line.get_linewidth()) for line in axes.lines}
        assert len(styles - {("None", 1.0)}) == 2
    first, second = figure.axes
    assert first.get_ylim() == second.get_ylim()
    assert second.get_xlabel() == "digital bandwidth (values per second)"


def test_the_bandwidth_legend_names_what_is_drawn():
    texts = {}
    for access in ("random contiguous", "contiguous"):
        (legend,) = bandwidth_figure(reaches(access)).legends
        texts[access] = [text.get_text() for text in legend.get_texts()]
    assert texts == {
        "random contiguous": [
            "a", "b", "random order (RAPA)", "order of the image", "most tiles tried"
        ],
        "contiguous": ["a", "b", "order of the image", "most tiles tried"],
    }  # fmt: skip
