"""Averaged tiles: the right records are compared, costs and predictions are those of the models."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from rapa_lib.experiments.claims.endpoints import measure
from rapa_lib.experiments.claims.rules import read_claims
from rapa_lib.experiments.claims.tables import Prepared
from rapa_lib.experiments.plots import configuration_labels, save_figure
from rapa_lib.experiments.protocol import experiment, write_collected
from rapa_lib.experiments.synchronisation import Synchronisation
from rapa_lib.experiments.synchronisation.figures import (
    errors_figure,
    frontier_figure,
    spread_figure,
)
from rapa_lib.experiments.synchronisation.spread import COLUMNS as SPREAD_COLUMNS
from rapa_lib.experiments.synchronisation.spread import spread_summary
from rapa_lib.experiments.synchronisation.tables import COLUMNS, synchronisation_answer
from rapa_lib.experiments.tiles_accuracy import TilesAccuracy
from rapa_lib.instruments.local_sgd import spread_after, stationary_spread
from rapa_lib.training import TrainConfig, one_cycle_rates

RULES = yaml.safe_load(
    (Path(__file__).parents[3] / "config/claims/paper.yaml").read_text(encoding="utf-8")
)
CONFIG = {
    "dataset": "digits", "tiling": "random", "n_tiles": [16, 4, 1], "tile_init": "identical",
    "pooling": "max", "epochs": 6, "batch_size": 100, "learning_rate": 0.05, "momentum": 0.9,
    "weight_decay": 1e-3, "tile_lr_power": 1.0, "draws": 5, "seed": 0,
}  # fmt: skip
PULL = {
    "layer": "features.0.0", "n_tiles": 16, "pull": 0.0, "pull_error": 0.1, "kernel_pull": 0.0,
    "decay": 0.0, "decay_rate": 1e-4, "noise": 2.0, "squared_deviation": 0.0, "squared_norm": 9.0,
    "batches": 4, "draws": 1, "batch_size": 100,
}  # fmt: skip
MET = {
    "layer": "features.0.0", "n_tiles": 16, "averagings": 3, "squared_rate": 0.01,
    "squared_deviation": 0.5,
}  # fmt: skip


def record(run, error, *, image=1.0, pull=None, met=None, **changes):
    config = CONFIG | changes
    taken = {"epoch": 3, "similarity": [{"variance_ratio": 0.25}, {"variance_ratio": 0.75}]}
    if pull is not None:
        taken["pull"] = [PULL | pull]
    row = {"epoch": 3} | ({} if met is None else {"averagings": [MET | met]})
    return {
        **{name: config[name] for name in ("dataset", "tiling", "tile_init", "pooling", "epochs")},
        "seed": config["seed"],
        "n_tiles": "-".join(map(str, config["n_tiles"])),
        "test_error": error,
        "test_error_vote": error - 1,
        "test_error_merged": error + 1,
        "git_commit": "c",
        "data_fingerprint": "f",
        "config": config,
        "speedups": {"pipelined": 16.0, "sequential": 8.0},
        "times_us": {
            "single": 16.0,
            "image": image,
            "averaging": {"program": 100.0, "pulses": 10.0},
        },
        "curve": {"history": [{"epoch": 1}, {"epoch": 2}, row]},
        "similarity": {"measurements": [taken]},
        "run": run,
    }


def arms(seeds=(0, 1, 2), **changes):
    """The ordinary network, perforation, RAPA, and tiles averaged every 1, 4 and 64 steps."""
    rows = []
    for s in seeds:
        more = 0.3 * s
        rows += [
            record(f"none {s}", 20 + more, image=16.0, tiling="none", n_tiles=[1, 1, 1], seed=s),
            record(f"dense {s}", 40 + more, tiling="perforated", seed=s),
            record(f"never {s}", 26 + more, seed=s, **changes),
        ]
        for k, error in ((1, 20.2), (4, 20.5), (64, 23)):
            rows.append(record(f"{k} {s}", error + more, seed=s, sync_every=k, **changes))
    return rows


def table_of(records):
    return Synchronisation.collect(records).tables["synchronisation"]


def test_speedups_hold_the_cost_of_averaging():
    table = table_of(arms((0,))).set_index("run")
    step, single = 100 * 1.0, 100 * 16.0
    for k in (1, 4, 64):
        for write, suffix in ((100.0, ""), (10.0, "_pulses")):
            row = table.loc[f"{k} 0"]
            assert row[f"speedup{suffix}"] == pytest.approx(single / (step + write / k))
            assert row[f"averaging_share{suffix}"] == pytest.approx(write / k / (step + write / k))
    assert table.loc["never 0", ["speedup", "averaging_share"]].tolist() == [16, 0]
    assert table.loc["none 0", "speedup"] == 1
    tiled = table[table["tiling"] == "random"]
    assert set(tiled["least_every"]) == {9}  # 100 / 9 beside 100 is a tenth of both
    assert set(tiled["least_every_pulses"]) == {1}
    assert table["variance_ratio"].unique().tolist() == [0.5]


def test_coupled_tiles_meet_in_every_step():
    coupled = record("coupled", 21, coupling=0.1)
    both = record("both", 21, coupling=0.1, sync_every=4)
    table = table_of([*arms(), coupled, both]).set_index("run")
    assert table.loc["coupled", "speedup"] == pytest.approx(1600 / 200)
    assert table.loc["both", "speedup"] == pytest.approx(1600 / (100 + 100 + 25))


def test_the_least_k_is_the_least_of_those_that_are_fast_enough_whatever_the_errors():
    table = table_of([*arms(), record("over time", 1, sync_every=16, average_last=2)])
    assert set(table.loc[table["least_k"], "run"]) == {"64 0", "64 1", "64 2"}
    more = [record(f"16 {s}", 99, seed=s, sync_every=16) for s in range(3)]
    table = table_of([*arms(), *more])
    assert set(table.loc[table["least_k"], "sync_every"]) == {16}


def test_perforated_networks_count_as_tested_dense():
    rows = table_of(arms((0,))).query("tiling == 'perforated_dense'")
    assert rows[["test_error", "test_error_vote"]].values.tolist() == [[41.0, 41.0]]


def test_one_setting_is_taken_and_one_tuning_of_each_size():
    others = [
        record("longer", 1, epochs=60),
        record("average", 1, pooling="avg", sync_every=4),
        record("hot", 1, learning_rate=1.0),
        record("fixed", 1, tiling="random_fixed", sync_every=4),
    ]
    runs = table_of([*others, *arms()])["run"]
    assert set(runs) == {one["run"] for one in arms()}
    tuned = arms(learning_rate=0.5)
    assert set(table_of(tuned)["tiling"]) == {"none", "perforated_dense", "random"}


def test_each_arm_of_a_tuned_study_has_rates_of_its_own():
    rates = {0: 0.01, 4: 0.02, 64: 0.03}
    records = [
        one | {"chosen_sha256": "0", "config": one["config"] | {"learning_rate": rates.get(k, 0.1)}}
        for one in arms()
        for k in [one["config"].get("sync_every", 0)]
    ]
    assert set(table_of(records)["run"]) == {one["run"] for one in records}
    by_hand = [{k: v for k, v in one.items() if k != "chosen_sha256"} for one in records]
    assert set(table_of(by_hand)["run"]) < {one["run"] for one in records}


def test_without_averaged_tiles_there_is_nothing(tmp_path):
    records = [one for one in arms() if "sync_every" not in one["config"]]
    collected = Synchronisation.collect(records)
    assert list(collected.tables["synchronisation"]) == COLUMNS
    assert list(collected.tables["synchronisation_spread"]) == SPREAD_COLUMNS
    assert "No network of this study has averaged tiles" in collected.answer[0]
    write_collected("synchronisation", collected, tmp_path, records, description="a study")
    assert (tmp_path / "synchronisation_frontier.png").stat().st_size > 1000


def test_records_of_older_code_have_no_speedup_and_are_shown(tmp_path):
    records = [{k: v for k, v in one.items() if k != "times_us"} for one in arms()]
    collected = Synchronisation.collect(records)
    table = collected.tables["synchronisation"]
    assert table["speedup"].isna().all()
    assert not table["least_k"].any()
    write_collected("synchronisation", collected, tmp_path, records, description="a study")


def test_other_tables_tell_the_arms_apart():
    """Neither a label of the accuracy table nor the error against speed-up mixes them."""
    records = arms()
    rows = pd.DataFrame(
        {"tiling": r["tiling"], "n_tiles": r["n_tiles"], "config": json.dumps(r["config"])}
        for r in records
    )
    labels = set(configuration_labels(rows))
    assert {"random\nsync_every 0", "random\nsync_every 4", "none"} <= labels
    found = TilesAccuracy.collect(records).tables["tiles_accuracy"]
    assert set(found["run"]) == {one["run"] for one in records if "sync_every" not in one["config"]}


def test_labels_name_tuned_rates_only_where_nothing_else_tells_rows_apart():
    arms_and_rates = ((0, 0.1), (4, 0.2), (4, 0.3))
    configs = [{"sync_every": k, "learning_rate": rate} for k, rate in arms_and_rates]
    rows = pd.DataFrame({"tiling": "random", "config": [json.dumps(one) for one in configs]})
    labels = configuration_labels(rows)
    assert labels[0] == "random\nsync_every 0"
    assert labels[1:].tolist() == [f"random\nsync_every 4\nlearning_rate {r}" for r in (0.2, 0.3)]
    assert configuration_labels(rows[:2])[1] == "random\nsync_every 4"


def test_labels_say_how_many_images_once():
    configs = [{"n_train": 60}, {"n_train": 150}, {"n_train": 150}]
    names = ("letters [60 of 400 train]", "letters [150 of 400 train]", "digits [150 of 400 train]")
    rows = pd.DataFrame(
        {"tiling": "none", "dataset": names, "config": [json.dumps(one) for one in configs]}
    )
    few, many, other = configuration_labels(rows)
    assert configuration_labels(rows[:2]).tolist() == ["none\nn_train 60", "none\nn_train 150"]
    assert few == "none\ndataset letters\nn_train 60"
    assert many == "none\ndataset letters\nn_train 150"
    assert other == "none\ndataset digits\nn_train 150"


def test_the_rules_choose_the_least_k_and_its_rival():
    rules = read_claims(RULES)
    tables = {"synchronisation": Prepared(table_of(arms()))}
    n2, n3 = (claim.primary for claim in rules.claims if claim.id in ("N2", "N3"))
    (one,), _ = measure(n2, tables)
    assert one.of.values.tolist() == pytest.approx([23, 23.3, 23.6])
    assert one.minus["none"].values.tolist() == pytest.approx([20, 20.3, 20.6])
    (one,), _ = measure(n3, tables)
    assert one.of.values.tolist() == pytest.approx([24, 24.3, 24.6])


def test_perforation_has_no_k_and_is_compared_with_every_one():
    rules = read_claims(RULES)
    (n2,) = (claim for claim in rules.claims if claim.id == "N2")
    (rival,) = (one for one in n2.secondary if "perforated" in one.endpoint)
    (one,), _ = measure(rival, {"synchronisation": Prepared(table_of(arms()))})
    assert one.of.values.tolist() == pytest.approx([23, 23.3, 23.6])
    (perforated,) = one.minus.values()
    assert perforated.values.tolist() == pytest.approx([41, 41.3, 41.6])


def test_claims_about_rapa_are_of_tiles_that_are_never_averaged():
    """The primary setting of C3 in a study of averaged tiles is RAPA itself."""
    rules = read_claims(RULES)
    c3 = next(claim.primary for claim in rules.claims if claim.id == "C3")
    table = pd.DataFrame(
        {name: r[name] for name in ("tiling", "n_tiles", "seed", "test_error", "run")}
        | {"config": json.dumps(r["config"])}
        for r in arms()
    ).iloc[::-1]
    settings, _ = measure(c3, {"accuracy": Prepared(table)}, rules.prefer)
    assert settings[0].key["sync_every"] == "0"
    assert settings[0].of.values.tolist() == pytest.approx([26, 26.3, 26.6])
    assert {one.key["sync_every"] for one in settings} == {"0", "1", "4", "64"}


# --- spread -----------------------------------------------------------------------------------


def spreads_of(*records):
    collected = Synchronisation.collect([*arms((0,)), *records])
    return collected.tables["synchronisation_spread"]


def test_the_predicted_spread_is_that_of_local_sgd():
    (row,) = spreads_of(
        record("a", 21, sync_every=16, pull={}, met={"squared_deviation": 0.7})
    ).to_dict("records")
    expected = spread_after(16, rate=0.1, noise=2.0, momentum=0.9, held=1e-4)
    assert row["measured"] == 0.7
    assert row["predicted"] == row["predicted_free"] == pytest.approx(expected)
    assert (row["layer_tiles"], row["averagings"], row["epoch"]) == (16, 3, 3)


def test_a_pull_that_is_sure_holds_the_tiles():
    sure = {"pull": 0.5, "kernel_pull": 0.4, "squared_deviation": 0.2}
    held, unsure = (
        spreads_of(record("a", 21, sync_every=16, pull=sure | {"pull_error": error}, met={}))
        for error in (0.1, 0.3)
    )
    assert held["pull_rate"].item() == pytest.approx(2.0)
    assert held["predicted"].item() < held["predicted_free"].item()
    expected = spread_after(16, rate=0.1, noise=2.0, momentum=0.9, held=2.0 + 1e-4)
    assert held["predicted"].item() == pytest.approx(expected)
    assert unsure["predicted"].item() == unsure["predicted_free"].item()


def test_tiles_that_are_never_averaged_are_stationary():
    pull = {"pull": 0.5, "kernel_pull": 0.4, "squared_deviation": 0.2}
    (row,) = spreads_of(record("a", 26, seed=7, pull=pull)).to_dict("records")
    rate = 16 * one_cycle_rates(TrainConfig(epochs=6, learning_rate=0.05), 64)[3]
    assert row["rate"] == pytest.approx(rate)
    assert row["measured"] == 0.2
    expected = stationary_spread(rate, 2.0, 2.0 + 1e-4, momentum=0.9)
    assert row["predicted"] == pytest.approx(expected)


def test_what_cannot_be_compared_is_left_out():
    left = spreads_of(
        record("small batches", 21, sync_every=16, pull={"batch_size": 50}, met={}),
        record("no averaging", 21, sync_every=512, pull={}),
        record("coupled", 21, sync_every=16, coupling=0.1, pull={}, met={}),
        record("over time", 21, sync_every=16, average_last=2, pull={}, met={}),
    )
    assert left.empty


def test_the_summary_has_geometric_means():
    kept = [
        record(f"r{i}", 21, seed=i, sync_every=16, pull={}, met={"squared_deviation": value})
        for i, value in enumerate((0.5, 2.0))
    ]
    table = spreads_of(*kept)
    (row,) = spread_summary(table).to_dict("records")
    predicted = table["predicted"].iloc[0]
    assert row["measured ÷ predicted, with pull"] == f"{1 / predicted:.2f}"


def test_epochs_whose_rate_falls_are_left_out():
    (row,) = spreads_of(
        record("a", 21, sync_every=16, pull={}, met={"squared_deviation": 0.7})
    ).to_dict("records")
    table = pd.DataFrame([row, row | {"epoch": 4, "rate": 0.04 * row["rate"], "measured": 1e9}])
    (found,) = spread_summary(table).to_dict("records")
    assert found["measured ÷ predicted, with pull"] == f"{0.7 / row['predicted']:.2f}"


# --- figures and page ---------------------------------------------------------------------------


def test_the_figures_show_every_arm(tmp_path):
    records = [*arms(), *arms_of_many_tiles()]
    records += [record("s", 21, sync_every=16, seed=9, pull={}, met={})]
    collected = Synchronisation.collect(records)
    table = collected.tables["synchronisation"]
    figure = errors_figure(table)
    assert [axes.get_title("left") for axes in figure.axes] == ["16-4-1 tiles", "1024-256-64 tiles"]
    low, high = figure.axes[0].get_ylim()
    points = np.concatenate([line.get_ydata() for a in figure.axes for line in a.lines])
    assert low < np.nanmin(points)
    assert np.nanmax(points) < high  # of the last panel as well
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["1", "4", "16", "64", "never"]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["one pass", "vote", "merged", "none", "perforated_dense"]
    legend = frontier_figure(table).axes[0].get_legend()
    assert "every 4 steps" in [text.get_text() for text in legend.get_texts()]
    spreads = collected.tables["synchronisation_spread"]
    points = [line for line in spread_figure(spreads).axes[0].lines if line.get_marker() == "o"]
    assert len(points) == 1
    for name in ("one", "two"):
        save_figure(frontier_figure(table), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def arms_of_many_tiles():
    return [
        record(f"many {k} {s}", 25 + s, image=0.1, n_tiles=[1024, 256, 64], seed=s, sync_every=k)
        for k in (0, 4, 64)
        for s in range(2)
    ]


def test_the_answer_has_three_lines_at_most():
    lines = synchronisation_answer(table_of([*arms(), *arms_of_many_tiles()]))
    assert len(lines) == 3
    assert "ordinary networks 20.30" in lines[0]
    assert "averaged every 64 steps 23.30" in lines[1]
    assert "never averaged 26.30" in lines[1]
    assert "no k of this study" not in lines[1]
    # Programming leaves no k that is fast enough, pulses do.
    assert lines[2].startswith("1024-256-64 tiles: by pulses every 64 steps 25.50")
    assert "157.5 × the speed; never averaged 25.50" in lines[2]


def test_it_is_derived_and_is_not_measured():
    found = experiment("synchronisation")
    assert found is Synchronisation
    assert (found.entry().needs, found.entry().source) == ("records", "accuracy")
