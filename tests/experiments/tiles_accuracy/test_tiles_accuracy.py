"""Error against speed-up: the numbers of accuracy records, which are the right ones to compare."""

import numpy as np
import pandas as pd
import pytest

from rapa_lib.experiments.plots import save_figure
from rapa_lib.experiments.protocol import experiment, write_collected
from rapa_lib.experiments.tiles_accuracy import TilesAccuracy
from rapa_lib.experiments.tiles_accuracy.figures import tradeoff_figure
from rapa_lib.experiments.tiles_accuracy.tables import COLUMNS, tradeoff_answer, tradeoff_summary
from rapa_lib.instruments.statistics import mean_interval

CONFIG = {
    "tiling": "random", "n_tiles": [4, 2, 1], "tile_init": "identical", "noise": [0.5],
    "pooling": "max", "tile_lr_power": 0.5, "seed": 0, "epochs": 3,
}  # fmt: skip


def record(run, speedup, error, **changes):
    config = CONFIG | changes
    return {
        "dataset": "digits",
        **{name: config[name] for name in ("tiling", "tile_init", "pooling", "seed", "epochs")},
        "n_tiles": "-".join(map(str, config["n_tiles"])),
        "test_error": error,
        "test_error_vote": error - 1,
        "git_commit": "c",
        "data_fingerprint": "f",
        "config": config,
        "speedups": {"pipelined": speedup, "sequential": speedup / 2},
        "run": run,
    }


RECORDS = [
    record("many", 16.0, 31.0, n_tiles=[16, 4, 2]),
    record("other", 4.0, 40.0, tile_lr_power=1.0),  # its setting has one number of tiles only
    record("plain", 1.0, 20.0, tiling="none", n_tiles=[1, 1, 1], tile_lr_power=1.0, noise=[0.1]),
    record("smooth", 1.0, 25.0, tiling="none", n_tiles=[1, 1, 1], pooling="avg"),
    record("few", 4.0, 30.0, noise=[0.9]),
    record("few again", 4.0, 32.0, seed=1),
    record("fixed", 4.0, 10.0, tiling="image"),
]


def test_like_networks_stand_beside_their_speedups():
    table = TilesAccuracy.collect(RECORDS).tables["tiles_accuracy"]
    assert list(table) == COLUMNS
    assert table["run"].tolist() == ["plain", "few", "few again", "many"]
    assert table["speedup"].tolist() == [1, 4, 4, 16]
    assert table["speedup_sequential"].tolist() == [0.5, 2, 2, 8]
    assert table["test_error"].tolist() == [20, 30, 32, 31]
    assert table["test_error_vote"].tolist() == [19, 29, 31, 30]
    assert table["tile_lr_power"].tolist() == [1.0, 0.5, 0.5, 0.5]


def test_perforated_networks_count_as_tested_dense():
    rival = record("sparse", 4.0, 45.0, tiling="perforated") | {"test_error_merged": 22.0}
    other = record("elsewhere", 4.0, 45.0, tiling="perforated", pooling="avg")
    table = TilesAccuracy.collect([*RECORDS, rival, other | {"test_error_merged": 1.0}])
    rows = table.tables["tiles_accuracy"].query("tiling == 'perforated_dense'")
    assert rows[["run", "speedup"]].values.tolist() == [["sparse", 4.0]]
    assert rows[["test_error", "test_error_vote"]].values.tolist() == [[22.0, 22.0]]
    assert "tested dense 22.00 %, trained at 4 × the speed on one array per layer" in "".join(
        table.answer
    )


def test_arms_with_rates_of_their_own_tuning_are_compared():
    tuned = [
        record("rapa", 4.0, 30.0, learning_rate=0.02, weight_decay=1e-4),
        record("plain", 1.0, 20.0, tiling="none", learning_rate=0.1, weight_decay=1e-3),
        record("longer", 1.0, 10.0, tiling="none", learning_rate=0.1, epochs=9),
    ]
    found = TilesAccuracy.collect(tuned).tables["tiles_accuracy"]["run"].tolist()
    assert found == ["plain", "rapa"]
    same = record("same rates", 1.0, 21.0, tiling="none", learning_rate=0.02, weight_decay=1e-4)
    found = TilesAccuracy.collect([*tuned, same]).tables["tiles_accuracy"]["run"].tolist()
    assert found == ["same rates", "rapa"]


def test_without_rapa_the_first_ordinary_setting_is_the_table():
    table = TilesAccuracy.collect(RECORDS[2:4]).tables["tiles_accuracy"]
    assert table["run"].tolist() == ["plain"]


def test_without_any_such_network_the_table_is_empty_and_the_answer_says_so(tmp_path):
    records = RECORDS[-1:]
    collected = TilesAccuracy.collect(records)
    assert list(collected.tables["tiles_accuracy"]) == COLUMNS
    assert len(collected.tables["tiles_accuracy"]) == 0
    assert "No network of this study has tiling `none` or `random`" in collected.answer[0]
    write_collected("tiles_accuracy", collected, tmp_path, records, description="a study")
    assert (tmp_path / "tiles_accuracy.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert "nothing to compare" in (tmp_path / "tiles_accuracy.md").read_text()
    assert (tmp_path / "tiles_accuracy.png").stat().st_size > 1000


def test_the_answer_has_the_ends_of_the_curve():
    table = TilesAccuracy.collect(RECORDS).tables["tiles_accuracy"]
    (line,) = tradeoff_answer(table)
    assert "ordinary networks 20.00 %; RAPA networks 31.00 ± 12.71 % at 4 × the speed" in line
    assert "RAPA networks 31.00 % at 16 × the speed" in line


def test_it_is_derived_and_is_not_measured():
    found = experiment("tiles_accuracy")
    assert found is TilesAccuracy
    assert (found.entry().needs, found.entry().source) == ("records", "accuracy")
    assert not hasattr(found, "measure")


def drawn(axes, marker=None):
    """Points of each line of a panel, by label-free order."""
    lines = [line for line in axes.lines if marker is None or line.get_marker() == marker]
    return [list(zip(*line.get_data(), strict=True)) for line in lines]


def errors(seeds=(0, 1, 2), epochs=(24,)):
    return pd.DataFrame(
        [
            {
                "dataset": "digits",
                "epochs": length,
                "tiling": tiling,
                "n_tiles": f"{n}-{n}",
                "seed": seed,
                "speedup": float(n),
                "test_error": 20.0 + 3 * t + np.log2(n) + 0.5 * seed**2 - length / 24,
            }
            for length in epochs
            for t, tiling in enumerate(("none", "random"))
            for n in ((1,) if tiling == "none" else (1, 16, 256))
            for seed in seeds
        ]
    ).sample(frac=1, random_state=0)


def test_tradeoff_shows_seeds_means_and_intervals():
    rows = errors()
    (axes,) = tradeoff_figure(rows).axes
    dots = sorted(y for line in drawn(axes, "o") for _, y in line)
    assert dots == pytest.approx(sorted(rows["test_error"]))
    points = rows.groupby(["tiling", "speedup"])["test_error"]
    means = sorted(y for line in drawn(axes, "D") for _, y in line)
    assert means == pytest.approx(sorted(points.mean()))
    bars = [bar for container in axes.containers for bar in container.lines[2]]
    ends = sorted(tuple(path[:, 1]) for bar in bars for path in bar.get_segments())
    intervals = sorted(mean_interval(values)[1:] for _, values in points)
    assert np.ravel(ends) == pytest.approx(np.ravel(intervals))
    for line in (line for line in axes.lines if line.get_marker() == "D"):
        assert line.get_xdata() == pytest.approx(np.round(line.get_xdata()), rel=0.05)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["none", "random"]
    assert axes.get_title("left").startswith("digits, 24 epochs; dots: seeds")


def test_one_seed_has_no_interval_and_says_so():
    figure = tradeoff_figure(errors(seeds=(0,)))
    figure.draw_without_rendering()
    assert figure.axes[0].get_title("left").endswith("one seed")


def test_settings_have_lines_of_their_own():
    axes = tradeoff_figure(errors(epochs=(24, 48))).axes[0]
    assert len(drawn(axes, "D")) == 4
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"digits, 24 epochs", "digits, 48 epochs"} < set(labels)


def test_what_is_no_seed_is_refused():
    rows = errors()
    with pytest.raises(ValueError, match=r"table: seed \d occurs twice for tiling none"):
        tradeoff_figure(pd.concat([rows, rows[rows["tiling"] == "none"]]))


def test_intervals_beyond_what_errors_can_be_are_cut():
    rows = errors(seeds=(0, 1))
    rows.loc[rows["seed"] == 1, "test_error"] *= 3
    low, high = tradeoff_figure(rows).axes[0].get_ylim()
    assert (low, high) == (-2, 102)


def test_the_same_table_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_figure(tradeoff_figure(errors()), tmp_path / name)
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_the_tradeoff_in_numbers():
    rows = errors().assign(speedup_sequential=2.0)
    rows["test_error_vote"] = rows["test_error"] - 1
    summary = tradeoff_summary(rows)
    assert summary["seeds"].tolist() == [3] * len(summary)
    for row in summary.to_dict("records"):
        part = rows[(rows["tiling"] == row["tiling"]) & (rows["n_tiles"] == row["n_tiles"])]
        mean, low, _ = mean_interval(part["test_error"])
        assert row["test error (%)"] == f"{mean:.2f} ± {mean - low:.2f}"
        assert row["vote (%)"] == f"{mean - 1:.2f} ± {mean - low:.2f}"
        assert row["speed-up, pipelined"] == f"{part['speedup'].iloc[0]:.4g}"
    assert len(summary) == rows.groupby(["tiling", "n_tiles"]).ngroups
