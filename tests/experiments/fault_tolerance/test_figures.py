"""The fault experiment's figure and summaries show the numbers of their tables, only these."""

import json

import numpy as np
import pandas as pd
import pytest

from rapa_lib.experiments.fault_tolerance.figures import fault_figure
from rapa_lib.experiments.fault_tolerance.tables import (
    fault_answer,
    fault_summary,
    repair_summary,
    tolerated_shares,
)
from rapa_lib.experiments.plots import save_figure
from rapa_lib.instruments.statistics import mean_interval

TILINGS = ("image", "random")
LAYERS = ("all", "features.0.0")
SHARES = (0.0, 0.5, 0.75)
NAMES = {True: "-", False: "--"}


def fault_rows(seeds=(0, 1, 2), draws=(0, 1), tilings=TILINGS):
    """Rows of every cell; no two errors are equal."""
    rows = []
    for t, tiling in enumerate(tilings):
        for seed in seeds:
            for w, layers in enumerate(LAYERS):
                for share in SHARES:
                    for reroute in (False, True):
                        for draw in draws:
                            error = 10 + 7 * t + 1.5 * seed + 20 * share * (2 - reroute)
                            error += 0.3 * w + share * draw * (1 + 0.1 * t)
                            rows.append(
                                {
                                    "dataset": "digits", "tiling": tiling, "n_tiles": "4-2-1",
                                    "tile_init": "independent", "pooling": "max", "epochs": 4,
                                    "seed": seed, "layers": layers, "share": share,
                                    "share_faulty": share, "kind": "dead", "strength": None,
                                    "reroute": reroute, "fault_draw": draw, "test_error": error,
                                    "speed_up": 4 * (1 - share * reroute),
                                    "config": json.dumps({"tiling": tiling, "seed": seed}),
                                }
                            )  # fmt: skip
    return pd.DataFrame(rows[::-1])  # in no helpful order


def lines(figure):
    """(shares, means, half widths, style) of the lines of errors, by set of layers and row."""
    figure.draw_without_rendering()
    found = {}
    for index, axes in enumerate(figure.axes[: -len(LAYERS)]):
        title = figure.axes[index % len(LAYERS)].get_title(loc="left")
        name = figure.axes[index - index % len(LAYERS)].get_ylabel().split("\n")[1]
        for line, _, bars in (container.lines for container in axes.containers):
            segments = [one for one in bars[0].get_segments() if len(one)]
            half = [(high - low) / 2 for (_, low), (_, high) in segments]
            drawn = np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), half
            found.setdefault((title, name), []).append((*drawn, line.get_linestyle()))
    return found


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_means_and_intervals_are_those_of_the_table(seeds):
    table = fault_rows(seeds)
    figure = fault_figure(table)
    panels = lines(figure)
    assert len(panels) == 4  # tilings share a panel: they are what is compared
    unit = "seed" if len(seeds) > 1 else "fault_draw"
    for layers, title in (("all", "all layers"), ("features.0.0", "convolution 1 alone")):
        for reroute, name in ((False, "not rerouted"), (True, "rerouted")):
            drawn = panels[title, name]
            for tiling, (shares, means, half, style) in zip(TILINGS, drawn, strict=True):
                rows = table[(table["layers"] == layers) & (table["tiling"] == tiling)]
                rows = rows[rows["reroute"] == reroute]
                units = rows.groupby(["share_faulty", unit])["test_error"].mean()
                assert style == NAMES[reroute]
                assert shares == pytest.approx(SHARES, abs=0.02)
                for k, share in enumerate(SHARES):
                    mean, low, _ = mean_interval(units[share])
                    assert means[k] == pytest.approx(mean)
                    assert half[k] == pytest.approx(mean - low)
    limits = {axes.get_ylim() for axes in figure.axes[: -len(LAYERS)]}
    assert len(limits) == 1  # errors compare over all panels
    title = figure.get_suptitle()
    assert "digits, 4 epochs; dead tiles" in title
    over = "training seeds" if len(seeds) > 1 else "draws of faults"
    assert title.endswith(f"95 % t-intervals over {over}")


def test_mixed_units_are_told_apart():
    table = pd.concat([fault_rows((0, 1), tilings=["random"]), fault_rows((0,), tilings=["image"])])
    title = fault_figure(table).get_suptitle()
    assert title.endswith("over training seeds for random; draws of faults for image")


def test_one_draw_of_one_seed_has_no_interval():
    figure = fault_figure(fault_rows((0,), (0,)))
    assert figure.get_suptitle().endswith("\none draw of faults")
    for drawn in lines(figure).values():
        assert all(np.isnan(half).all() for *_, half, _ in drawn)


def test_shares_that_came_to_the_same_tiles_count_once():
    table = fault_rows((0,))
    doubled = table[table["share"] == 0.75].assign(share=0.8)
    once, twice = (lines(fault_figure(t)) for t in (table, pd.concat([table, doubled])))
    for title, drawn in once.items():
        for one, other in zip(drawn, twice[title], strict=True):
            np.testing.assert_array_equal(one[2], other[2])


def test_speed_is_drawn_below_once_where_all_have_the_same():
    table = fault_rows((0,))
    below = fault_figure(table).axes[-2]
    speeds = {line.get_linestyle(): list(line.get_ydata()) for line in below.lines}
    assert speeds == {"-": [4, 2, 1], "--": [4, 4, 4]}
    assert {line.get_color() for line in below.lines} == {"0.3"}
    faster = table["speed_up"].where(table["tiling"] == "image", 2 * table["speed_up"])
    below = fault_figure(table.assign(speed_up=faster)).axes[-2]
    assert {tuple(line.get_ydata()) for line in below.lines} == {
        (4, 2, 1), (4, 4, 4), (8, 4, 2), (8, 8, 8),
    }  # fmt: skip
    assert len({line.get_color() for line in below.lines}) == 2


def test_the_legend_names_what_is_there():
    def legend(table):
        return [text.get_text() for text in fault_figure(table).legends[0].get_texts()]

    table = fault_rows((0,))
    assert legend(table) == ["image", "random", "not rerouted", "rerouted"]
    assert legend(table[table["reroute"]]) == ["image", "random", "rerouted"]


def test_faults_of_several_kinds_are_no_figure():
    table = fault_rows((0,), (0,))
    noisy = table.assign(kind="noisy", strength=0.5)
    assert "noisy tiles (strength 0.5)" in fault_figure(noisy).get_suptitle()
    with pytest.raises(ValueError, match="table: got faults of kinds dead, noisy and strengths"):
        fault_figure(pd.concat([table, noisy], ignore_index=True).astype({"strength": object}))
    with pytest.raises(ValueError, match="table: got no rows"):
        fault_figure(table[:0])


def test_the_same_table_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_figure(fault_figure(fault_rows()), tmp_path / name)
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_the_summary_gives_the_share_that_can_fail_by_configuration():
    table = fault_rows()
    summary = fault_summary(table, points=11)
    assert len(summary) == len(TILINGS) * len(LAYERS) * 2
    for row in summary.to_dict("records"):
        part = table[
            (table["tiling"] == row["tiling"])
            & (table["layers"] == {"all": "all", "convolution 1": "features.0.0"}[row["layers"]])
            & (table["reroute"] == (row["rerouted"] == "yes"))
        ]
        means = part.groupby("share_faulty")["test_error"].mean()
        kept = max(s for s in SHARES if means[s] - means[0] < 11)
        assert row["share"] == f"{100 * kept:.0f} %"
        assert row["added error (points)"] == f"{means[kept] - means[0]:+.2f}"
        assert (row["seeds"], row["draws of faults"]) == (3, 2)
    assert {"0 %", "50 %"} <= set(summary["share"])


def test_repairs_are_means_over_seeds_of_means_over_draws():
    repairs = fault_rows()
    repairs = repairs[(repairs["layers"] == "all") & (repairs["share"] == 0.5)]
    repairs = repairs.assign(repair=repairs["reroute"].map({True: "rerouted", False: "none"}))
    summary = repair_summary(repairs).set_index("tiling")
    assert list(summary.index) == list(TILINGS)
    by_seed = repairs.groupby(["tiling", "repair", "seed"])["test_error"].mean()
    for tiling in TILINGS:
        for repair in ("none", "rerouted"):
            mean, low, _ = mean_interval(by_seed[tiling, repair])
            assert summary.loc[tiling, repair] == f"{mean:.2f} ± {mean - low:.2f}"


def repair_rows(**changes):
    """Rows of two repairs, and of no faults and no repair, at half of the tiles."""
    rows = fault_rows((0, 1))
    rows = rows[(rows["layers"] == "all") & (rows["share"] == 0.5) & rows["reroute"]]
    repairs = {"no faults": -15, "none": 0, "rerouted": -10, "fine-tuned": -5}
    parts = [
        rows.assign(repair=name, test_error=rows["test_error"] + less)
        for name, less in repairs.items()
    ]
    return pd.concat(parts, ignore_index=True).assign(**changes)


def test_the_answer_has_three_lines_from_the_tables():
    table, repairs = fault_rows((0, 1)), repair_rows()
    # Rerouted, a quarter less error: `image` alone stays within a point up to a half.
    spared = table["reroute"] & (table["tiling"] == "image") & (table["share"] == 0.5)
    table.loc[spared, "test_error"] = table.loc[spared, "test_error"] - 10
    first, second, third = fault_answer(table, repairs)
    assert "dead for less than 1 point" in first
    assert "0 % of all layers at once, not rerouted; " in first
    found = tolerated_shares(table)
    best = found[(found["label"] == "image") & found["reroute"]].iloc[0]
    assert best["share_faulty"] == 0.5
    shown = f"(`image`, {best['added_error']:+.2f} points, 2.0 times as fast as one tile)"
    assert f"50 % of all layers at once, rerouted {shown}" in first
    assert "50 % of one layer alone, rerouted (`image`, convolution 1, " in first
    errors = repair_summary(repairs).set_index("tiling").loc["random"]
    assert second.startswith("With 50 % of all tiles dead, the test error of `random` is")
    assert f"is {errors['none']} % (without faults {errors['no faults']} %)" in second
    assert f"rerouted {errors['rerouted']} %; fine-tuned {errors['fine-tuned']} %." in second
    assert third.endswith("15.0, and 15.0 to 15.0 to the others.")


def test_the_answer_for_one_configuration_compares_it_with_no_other():
    table, repairs = fault_rows((0,), tilings=["image"]), repair_rows()
    first, second = fault_answer(table, repairs[repairs["tiling"] == "image"])
    assert "tiles of `image` can be dead" in first
    assert "the test error of `image` is" in second
