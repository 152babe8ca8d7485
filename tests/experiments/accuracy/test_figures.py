"""Figures show the numbers of the table that they were given, and only these."""

import json
import math
import struct
import zlib
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

from rapa_lib import draw_assignment
from rapa_lib.experiments.accuracy.figures import (
    MEASURES,
    accuracy_figure,
    assignment_figure,
    curves_figure,
)
from rapa_lib.experiments.accuracy.tables import accuracy_answer, accuracy_summary
from rapa_lib.experiments.plots import label_order, save_figure, tiling_order
from rapa_lib.instruments.statistics import mean_interval

TILINGS = ("none", "image", "random")


def accuracy_table(seeds=(0, 1, 2)):
    """Records of every tiling and seed; no two numbers are equal."""
    rows = []
    for t, tiling in enumerate(TILINGS):
        for s, seed in enumerate(seeds):
            error = 20 + 7 * t + 1.25 * s
            rows.append(
                {
                    "dataset": "digits",
                    "tiling": tiling,
                    "n_tiles": "1-1-1" if tiling == "none" else "16-4-1",
                    "tile_init": "independent",
                    "pooling": "max",
                    "seed": seed,
                    "epochs": 4,
                    "test_error": error,
                    "test_error_vote": error - 0.5,
                    "test_error_softmax": error - 0.625,
                    "test_error_merged": error + 2.125,
                    "n_parameters": 1000 * (t + 1) + 234_000,
                    "train_seconds": 10.0 * (t + 1) + s,
                    "config": json.dumps({"tiling": tiling, "seed": seed, "learning_rate": 0.05}),
                }
            )
    return pd.DataFrame(rows[::-1])  # in no helpful order


def curves_table(seeds=(0, 1, 2)):
    rows = []
    for t, tiling in enumerate(TILINGS):
        for s, seed in enumerate(seeds):
            for epoch in (1, 2, 3, 4):
                loss, error = (1 + t + 0.1 * s) / epoch, (30 + 10 * t + s) / epoch
                rows.append(("digits", tiling, seed, epoch, loss, error))
    columns = ["dataset", "tiling", "seed", "epoch", "train_loss", "test_error"]
    return pd.DataFrame(rows, columns=columns)


def tick_labels(axes):
    axes.figure.draw_without_rendering()
    return [label.get_text() for label in axes.get_xticklabels()]


def dots(figure):
    """Values of the dots by tiling, sorted."""
    labels = tick_labels(figure.axes[-1])
    found = {label: [] for label in labels}
    for collection in (c for axes in figure.axes for c in axes.collections):
        for x, y in collection.get_offsets().data:
            if not math.isnan(y):
                found[labels[round(x)]].append(float(y))
    return {label: sorted(values) for label, values in found.items()}


def marks(figure):
    """Values of the diamonds by tiling, sorted, and all (low, high) of intervals."""
    labels = tick_labels(figure.axes[-1])
    means, intervals = {label: [] for label in labels}, []
    for line in (line for axes in figure.axes for line in axes.lines):
        xs, ys = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        keep = ~np.isnan(ys)
        if line.get_marker() == "D":
            for x, y in zip(xs[keep], ys[keep], strict=True):
                means[labels[round(x)]].append(float(y))
        elif keep.sum() > 1:
            intervals.append((float(np.nanmin(ys)), float(np.nanmax(ys))))
    return {label: sorted(values) for label, values in means.items()}, sorted(intervals)


def expected_dots(table):
    return {
        tiling: sorted(table.loc[table["tiling"] == tiling, list(MEASURES)].to_numpy().flatten())
        for tiling in TILINGS
    }


# --- Accuracy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (3, 1, 4, 15)], ids=len)
def test_every_run_is_a_dot_above_its_tiling(seeds):
    table = accuracy_table(seeds)
    assert dots(accuracy_figure(table)) == expected_dots(table)


@pytest.mark.parametrize("seeds", [(0, 1), (3, 1, 4, 15)], ids=len)
def test_diamonds_are_means_and_bars_are_t_intervals(seeds):
    table = accuracy_table(seeds)
    means, intervals = marks(accuracy_figure(table))
    groups = table.groupby("tiling")[list(MEASURES)]
    for tiling in TILINGS:
        assert means[tiling] == pytest.approx(sorted(groups.mean().loc[tiling]))
    expected = [mean_interval(group[measure])[1:] for _, group in groups for measure in MEASURES]
    assert np.array(intervals) == pytest.approx(np.array(sorted(expected)))


def with_dropout(table):
    """``image`` becomes ``dropout``."""
    return table.assign(tiling=table["tiling"].replace("image", "dropout"))


def test_of_dropout_only_errors_with_statistics_that_fit_are_shown():
    table = with_dropout(accuracy_table())
    shown = dots(accuracy_figure(table))
    errors = table[table["tiling"] == "dropout"]
    assert shown.pop("dropout") == sorted(errors["test_error_merged"])
    assert shown == {k: v for k, v in expected_dots(accuracy_table()).items() if k != "image"}
    alone = accuracy_figure(errors)  # nothing else to show on that axis
    assert len(dots(alone)["dropout"]) == 9


def test_one_seed_has_means_but_no_intervals_and_the_title_says_so():
    table = accuracy_table((7,))
    figure = accuracy_figure(table)
    means, intervals = marks(figure)
    assert means == expected_dots(table)
    assert intervals == []
    title = figure.axes[0].get_title(loc="left")
    assert title == "digits, 4 epochs; one seed"
    several = accuracy_figure(accuracy_table()).axes[0].get_title(loc="left")
    assert several.startswith("digits, 4 epochs; dots: seeds")
    assert "95 %" in several


def test_a_changed_value_moves_its_dot_its_mean_and_nothing_else():
    table = accuracy_table()
    row = table.index[(table["tiling"] == "image") & (table["seed"] == 1)][0]
    before, changed = accuracy_figure(table), table.copy()
    changed.loc[row, "test_error_vote"] += 3
    after = accuracy_figure(changed)
    for read in (dots, lambda figure: marks(figure)[0]):
        old, new = read(before), read(after)
        assert old["none"] == new["none"]
        assert old["random"] == new["random"]
    old, new = dots(before)["image"], dots(after)["image"]
    value = table.loc[row, "test_error_vote"]
    assert (set(old) - set(new), set(new) - set(old)) == ({value}, {value + 3})
    old, new = (marks(figure)[0]["image"] for figure in (before, after))
    assert sum(new) - sum(old) == pytest.approx(1)


def test_tilings_stand_in_the_study_s_order_and_axes_are_named():
    figure = accuracy_figure(accuracy_table())
    assert tick_labels(figure.axes[-1]) == ["none", "image", "random"]
    assert {axes.get_ylabel() for axes in figure.axes} == {"test error (%)"}
    legends = [axes.get_legend().get_texts() for axes in figure.axes]
    assert [t.get_text() for texts in legends for t in texts] == list(MEASURES.values())


def test_tiling_order():
    names = pd.Series(["mine", "enlarged", "random", "none", "perforated", "random", "image"])
    assert tiling_order(names) == ["none", "image", "random", "perforated", "enlarged", "mine"]


def test_labels_stand_by_tiling_and_their_numbers_by_size():
    labels = [
        "random\nn_tiles 128-32-8",
        "random\nn_tiles 16-4-1",
        "none",
        "random\nn_tiles 64-1-1",
    ]
    table = pd.DataFrame({"label": labels, "tiling": [text.split("\n")[0] for text in labels]})
    assert label_order(table) == [labels[2], labels[1], labels[3], labels[0]]


def test_figures_leave_the_caller_s_table_and_style_alone():
    style = dict(mpl.rcParams)
    table, curves = accuracy_table(), curves_table()
    accuracy_figure(table)
    curves_figure(curves)
    accuracy_summary(table)
    pd.testing.assert_frame_equal(table, accuracy_table())
    pd.testing.assert_frame_equal(curves, curves_table())
    assert dict(mpl.rcParams) == style


@pytest.mark.parametrize(
    ("column", "value"), [("pooling", "avg"), ("n_tiles", "128-32-8"), ("dataset", "letters")]
)
def test_other_configurations_are_no_seeds(column, value):
    """A mean over two poolings, with an interval "over seeds", would be a false statement."""
    table = accuracy_table((0, 1))
    other = table.assign(**{column: value}, test_error=table["test_error"] + 40)
    both = pd.concat([table, other], ignore_index=True)
    figure = accuracy_figure(both)
    lines = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "D"]
    shown = np.concatenate([np.asarray(line.get_ydata(), float) for line in lines])
    mixed = both.groupby("tiling")["test_error"].mean()
    for mean in mixed:
        assert not np.isclose(shown, mean).any()


def crowded(table):
    """The rows of a table in four settings: more configurations than fit side by side."""
    return pd.concat(
        [
            table.assign(pooling=pooling, epochs=epochs, test_error=table["test_error"] + shift)
            for pooling, epochs, shift in (
                ("max", 4, 0),
                ("avg", 4, 5),
                ("max", 8, 9),
                ("avg", 8, 2),
            )
        ],
        ignore_index=True,
    )


def test_many_configurations_stand_below_one_another_with_all_their_dots():
    table = crowded(accuracy_table((0, 1)))
    figure = accuracy_figure(table)
    upper, lower = figure.axes
    figure.draw_without_rendering()
    names = [text.get_text() for text in upper.get_yticklabels()]
    assert len(names) == len(TILINGS) * 4
    assert "random, pooling avg, epochs 8" in names
    *as_they_are, merged = MEASURES
    for axes, measures in ((upper, as_they_are), (lower, [merged])):
        offsets = [xy for dots in axes.collections for xy in dots.get_offsets().data]
        shown = [float(x) for x, _ in offsets if not math.isnan(x)]
        assert sorted(shown) == pytest.approx(sorted(table[measures].to_numpy().flatten()))
        assert axes.get_xlabel() == "test error (%)"


# --- Curves -----------------------------------------------------------------------------------


def curves_shown(axes):
    """Curves by colour: the values over epochs."""
    return {
        line.get_color(): list(map(float, line.get_ydata()))
        for line in axes.lines
        if len(line.get_xdata()) > 1
    }


def colours(figure):
    """The legend's colours by tiling."""
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    return dict(zip(names, [line.get_color() for line in legend.get_lines()], strict=True))


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (2, 5, 9)], ids=len)
def test_curves_are_means_over_seeds(seeds):
    curves = curves_table(seeds)
    figure = curves_figure(curves)
    left, right = figure.axes
    assert list(colours(figure)) == list(TILINGS)
    for axes, column in ((left, "train_loss"), (right, "test_error")):
        shown = curves_shown(axes)
        assert set(shown) == set(colours(figure).values())
        for tiling, colour in colours(figure).items():
            means = curves[curves["tiling"] == tiling].groupby("epoch")[column].mean()
            assert shown[colour] == pytest.approx(list(means))
    assert left.get_yscale() == "log"
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "test error (%)"]
    title = figure.get_suptitle()
    assert title == (
        "digits; one seed"
        if len(seeds) == 1
        else "digits; means over seeds, bands: range of losses, 95 % t-intervals of errors"
    )
    bands = [len(axes.collections) for axes in figure.axes]
    assert bands == ([0, 0] if len(seeds) == 1 else [3, 3])


def test_wide_bands_of_few_seeds_do_not_press_the_curves_together():
    curves = curves_table((0, 1))
    curves.loc[curves["seed"] == 1, ["train_loss", "test_error"]] *= 3
    curves["test_error"] += 20
    for axes, column in zip(curves_figure(curves).axes, ("train_loss", "test_error"), strict=True):
        low, high = axes.get_ylim()
        values = curves[column]
        assert 0.6 * values.min() < low <= values.min()
        assert values.max() <= high < 1.3 * values.max()


def test_epochs_that_were_not_tested_are_left_out():
    curves = curves_table((0, 1))
    curves["test_error"] = curves["test_error"].astype(object).where(curves["epoch"] % 2 == 0, None)
    left, right = curves_figure(curves).axes
    assert {len(values) for values in curves_shown(left).values()} == {4}
    assert {len(values) for values in curves_shown(right).values()} == {2}


def test_of_dropout_no_test_errors_are_followed():
    curves = with_dropout(curves_table())
    left, right = curves_figure(curves).axes
    colour = colours(left.figure)
    assert set(curves_shown(left)) == set(colour.values())
    assert set(curves_shown(right)) == set(colour.values()) - {colour["dropout"]}


@pytest.mark.parametrize("ratio", [2, 50])
def test_errors_that_spread_tenfold_have_logarithmic_axes(ratio):
    curves = curves_table((0,))
    curves["test_error"] = np.linspace(1, ratio, len(curves))
    right = curves_figure(curves).axes[1]
    assert right.get_yscale() == ("log" if ratio > 10 else "linear")


def test_bands_are_t_intervals():
    curves = curves_table()
    _, right = curves_figure(curves).axes
    corners = set()
    for band in right.collections:
        for path in band.get_paths():
            corners |= {round(float(y), 6) for _, y in path.vertices}
    for _, runs in curves.groupby(["tiling", "epoch"]):
        for end in mean_interval(runs["test_error"])[1:]:
            assert round(end, 6) in corners


def test_a_changed_epoch_changes_its_curve():
    curves = curves_table((0,))
    before = curves_figure(curves)
    row = curves.index[(curves["tiling"] == "random") & (curves["epoch"] == 3)][0]
    curves.loc[row, "train_loss"] = 99.0
    after = curves_figure(curves)
    old, new = (curves_shown(figure.axes[0]) for figure in (before, after))
    (changed,) = [colour for colour in old if old[colour] != new[colour]]
    assert new[changed] == [*old[changed][:2], 99.0, old[changed][3]]
    assert curves_shown(before.axes[1]) == curves_shown(after.axes[1])


@pytest.mark.parametrize("epochs", [1, 2])
def test_short_trainings_have_curves_too(epochs, tmp_path):
    curves = curves_table((0, 1))
    figure = curves_figure(curves[curves["epoch"] <= epochs])
    save_figure(figure, tmp_path / "curves")
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize(("column", "value"), [("dataset", "letters"), ("pooling", "avg")])
def test_curves_of_other_configurations_are_not_averaged(column, value):
    curves = curves_table((0, 1)).assign(pooling="max")
    other = curves.assign(**{column: value}, test_error=curves["test_error"] + 50)
    both = pd.concat([curves, other], ignore_index=True)
    figure = curves_figure(both)
    shown = np.concatenate([np.asarray(line.get_ydata()) for line in figure.axes[1].lines])
    for mean in both.groupby(["tiling", "epoch"])["test_error"].mean():
        assert not np.isclose(shown.astype(float), mean).any()


def row_title(axes):
    return axes.get_title(loc="left").replace("\n", " ")


def test_settings_have_rows_in_which_the_tilings_stand_together():
    curves = crowded(curves_table((0, 1)))
    figure = curves_figure(curves)
    rows = np.reshape(figure.axes, (-1, 2))
    settings = [(pooling, epochs) for pooling in ("avg", "max") for epochs in (4, 8)]
    assert [row_title(left) for left, _ in rows] == [
        f"none, image, random: pooling {p}, epochs {e}" for p, e in settings
    ]
    for (pooling, epochs), row in zip(settings, rows, strict=True):
        mine = curves[(curves["pooling"] == pooling) & (curves["epochs"] == epochs)]
        for axes, column in zip(row, ("train_loss", "test_error"), strict=True):
            shown = curves_shown(axes)
            for tiling, colour in colours(figure).items():
                means = mine[mine["tiling"] == tiling].groupby("epoch")[column].mean()
                assert shown[colour] == pytest.approx(list(means))
    assert len({axes.get_ylim() for axes in rows[:, 0]}) == 1
    assert len({axes.get_ylim() for axes in rows[:, 1]}) == 1


def test_a_tiling_stands_in_every_row_that_its_settings_agree_with():
    """``none`` has one setting, ``image`` two starts, ``random`` these and two learning rates."""
    curves = curves_table((0,))
    labels = {
        "none": ["none"],
        "image": ["image\nstart a", "image\nstart b"],
        "random": ["random\nstart a\nrate 1", "random\nstart a\nrate 2"],
    }
    parts = [
        curves[curves["tiling"] == tiling].assign(label=label)
        for tiling, names in labels.items()
        for label in names
    ]
    figure = curves_figure(pd.concat(parts))
    rows = np.reshape(figure.axes, (-1, 2))
    named = {colour: tiling for tiling, colour in colours(figure).items()}
    shown = {row_title(left): {named[c] for c in curves_shown(left)} for left, _ in rows}
    assert shown == {
        "image: start b": {"none", "image"},
        "random: start a, rate 1": {"none", "image", "random"},
        "random: start a, rate 2": {"none", "image", "random"},
    }


def test_of_networks_tested_at_their_end_alone_losses_are_shown_settings_in_two_columns():
    curves = crowded(curves_table((0, 1)))
    curves["test_error"] = curves["test_error"].where(curves["epoch"] == curves["epoch"].max())
    curves.loc[curves.index[5], "train_loss"] = 0.0
    other = curves[curves["pooling"] == "avg"].assign(pooling="mixed")
    figure = curves_figure(pd.concat([curves, other], ignore_index=True))
    assert len(figure.axes) == 6
    assert {axes.get_ylabel() for axes in figure.axes} == {"training loss"}
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    lefts = {round(axes.get_position().x0, 2) for axes in figure.axes}
    assert len(lefts) == 2
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(TILINGS)
    assert "t-intervals" not in figure.get_suptitle()


# --- Assignments ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
def test_planes_are_the_assignments(count):
    schemes = ["image", "alternate", "random", "random_fixed"][:count]
    torch.manual_seed(0)
    planes = {f"tiling {s}": draw_assignment(s, 1, 6, 9, 4)[0] for s in schemes}
    figure = assignment_figure(planes, 6, 9)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels] == list(planes)
    for axes, tiles in zip(panels, planes.values(), strict=True):
        (image,) = axes.images
        assert image.get_array().shape == (6, 9)
        assert image.get_array().tolist() == tiles.view(6, 9).tolist()
    assert not any(axes.axison for axes in figure.axes)


def test_equal_tiles_are_of_one_colour_and_different_ones_differ_in_every_panel():
    few, many = torch.arange(8) // 4, torch.arange(8)
    figure = assignment_figure({"2 tiles": few, "8 tiles": many}, 2, 4)
    first, second = (axes.images[0] for axes in figure.axes)
    colours = second.to_rgba(second.get_array()).reshape(8, 4)
    assert len(np.unique(colours, axis=0)) == 8
    both = first.to_rgba(first.get_array()).reshape(8, 4)
    assert (both[:4] == colours[0]).all()
    assert (both[4:] == colours[1]).all()


def test_consecutive_tiles_differ_in_colour_however_many_there_are():
    """Else the blocks of 64 tiles melt into 20, and ``alternate`` looks like blocks."""
    tiles = torch.arange(64)
    (axes,) = assignment_figure({"64 tiles": tiles}, 8, 8).axes
    (image,) = axes.images
    colours = image.to_rgba(image.get_array()).reshape(64, 4)
    assert (colours[1:] != colours[:-1]).any(1).all()


def test_positions_without_a_tile_are_blank():
    (axes,) = assignment_figure({"skipped": torch.tensor([-1, 0, 1, -1])}, 2, 2).axes
    assert axes.images[0].get_array().mask.tolist() == [[True, False], [False, True]]


# --- Summary ----------------------------------------------------------------------------------


def test_the_summary_by_hand():
    """Errors e, e + 1.25, e + 2.5: mean e + 1.25, ± 4.3027 · 1.25 / √3 = 3.105."""
    summary = accuracy_summary(accuracy_table())
    assert summary["tiling"].tolist() == list(TILINGS)
    assert summary["seeds"].tolist() == [3, 3, 3]
    assert summary["test error (%)"].tolist() == ["21.25 ± 3.11", "28.25 ± 3.11", "35.25 ± 3.11"]
    assert summary["vote (%)"].tolist() == ["20.75 ± 3.11", "27.75 ± 3.11", "34.75 ± 3.11"]
    assert [s[:5] for s in summary["mean softmax (%)"]] == ["20.62", "27.62", "34.62"]
    assert [s[:5] for s in summary["merged (%)"]] == ["23.38", "30.38", "37.38"]
    assert summary["parameters"].tolist() == ["235,000", "236,000", "237,000"]
    assert summary["seconds per epoch"].tolist() == ["2.8", "5.2", "7.8"]  # 11, 21, 31 over 4
    assert summary["n_tiles"].tolist() == ["1-1-1", "16-4-1", "16-4-1"]


def test_one_seed_is_summed_up_without_interval():
    summary = accuracy_summary(accuracy_table((5,)))
    assert summary["test error (%)"].tolist() == ["20.00", "27.00", "34.00"]
    assert summary["seeds"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("column", "value"), [("pooling", "avg"), ("n_tiles", "8-8-8"), ("dataset", "letters")]
)
def test_every_configuration_has_its_row(column, value):
    table = accuracy_table((0, 1))
    other = table.assign(**{column: value}, test_error=90.0)
    summary = accuracy_summary(pd.concat([table, other], ignore_index=True))
    assert summary["seeds"].tolist() == [2] * 6
    assert sorted(summary["test error (%)"])[-3:] == ["90.00 ± 0.00"] * 3
    assert summary["tiling"].tolist() == [t for t in TILINGS for _ in range(2)]


def test_runs_that_differ_in_any_parameter_are_no_seeds_of_each_other():
    """learning_rate, mirror and others have no column of their own, but ``config`` has them."""
    table = accuracy_table((0, 1))
    config = [json.dumps(json.loads(text) | {"learning_rate": 0.2}) for text in table["config"]]
    other = table.assign(config=config, test_error=90.0)
    summary = accuracy_summary(pd.concat([table, other], ignore_index=True))
    assert summary["seeds"].tolist() == [2] * 6
    assert "90.00 ± 0.00" in set(summary["test error (%)"])


def test_the_answer_compares_the_ordinary_with_rapa():
    table = accuracy_table().assign(draws=lambda rows: np.where(rows["tiling"] == "random", 5, 1))
    assert accuracy_answer(table) == [
        "**Mean test error: ordinary networks (`none`) 21.2 %; RAPA networks (`random`) 35.2 %.** "
        "A vote over draws has 0.5 points less than RAPA's single passes."
    ]
    others = table[table["tiling"] == "image"]
    assert accuracy_answer(others) == ["**Mean test error: the least, 28.2 %, has `image`.**"]


def test_intervals_beyond_what_errors_can_be_are_cut():
    table = accuracy_table((0, 1))
    table.loc[table["seed"] == 1, list(MEASURES)] *= 1.9
    for rows, axis in ((table, "y"), (crowded(table), "x")):
        for axes in accuracy_figure(rows).axes:
            low, high = getattr(axes, f"get_{axis}lim")()
            assert low >= -2
            assert high <= 102


# --- Files ------------------------------------------------------------------------------------


def check_png(path):
    """Walk over the chunks: signature, checksums and end."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, names = 8, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
            name + body
        )
        names.append(name)
        at += 12 + length
    assert names[-1] == b"IEND"
    assert struct.unpack(">II", data[16:24])[0] == round(7.0 * 160)


@pytest.mark.parametrize(
    "make",
    [
        lambda: accuracy_figure(accuracy_table()),
        lambda: curves_figure(curves_table()),
        lambda: assignment_figure({"image": torch.arange(12) // 3}, 3, 4),
    ],
    ids=["accuracy", "curves", "assignment"],
)
def test_files_are_whole_and_the_same_bytes_each_time(make, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        stem = tmp_path / folder / "figure.v1"
        paths = save_figure(make(), stem)
        assert [path.name for path in paths] == ["figure.v1.png", "figure.v1.svg"]
        assert sorted((tmp_path / folder).iterdir()) == paths
    check_png(tmp_path / "a/figure.v1.png")
    root = ElementTree.parse(tmp_path / "a/figure.v1.svg").getroot()
    assert root.tag.endswith("svg")
    for suffix in ("png", "svg"):
        first, second = (tmp_path / folder / f"figure.v1.{suffix}" for folder in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_a_changed_value_changes_the_bytes(tmp_path):
    table = accuracy_table()
    save_figure(accuracy_figure(table), tmp_path / "a")
    table.loc[0, "test_error"] += 2
    save_figure(accuracy_figure(table), tmp_path / "b")
    for suffix in ("png", "svg"):
        first, second = (tmp_path / f"{name}.{suffix}" for name in "ab")
        assert first.read_bytes() != second.read_bytes()


def test_a_figure_that_fails_leaves_the_old_file(tmp_path):
    figure = accuracy_figure(accuracy_table())
    first, second = save_figure(figure, tmp_path / "a")
    old = first.read_bytes(), second.read_bytes()

    def torn(part, **options):
        part.write_bytes(b"half")
        raise RuntimeError("the disk is full")

    figure.savefig = torn
    with pytest.raises(RuntimeError, match="full"):
        save_figure(figure, tmp_path / "a")
    assert (first.read_bytes(), second.read_bytes()) == old
    assert sorted(tmp_path.iterdir()) == [first, second]
