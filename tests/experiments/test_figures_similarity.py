"""Filter similarity's figures and answers say what their table says, and only that."""

import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from rapa_lib.experiments.filter_similarity.figures import (
    contrast,
    filters_figure,
    penalty_answer,
    penalty_figure,
    similarity_answer,
    similarity_figure,
    similarity_summary,
    tiles_figure,
)
from rapa_lib.experiments.plots import save_figure
from rapa_lib.instruments.statistics import mean_interval

TILINGS = ("image", "random")
LAYERS = {"a": 16, "b": 4}
SETTING = {
    "dataset": "digits", "n_tiles": "16-4-1", "pooling": "avg", "activation": "tanh",
    "normalisation": "batch", "tile_lr_power": 1.0, "epochs": 2,
}  # fmt: skip


def similarity_table(seeds=(0, 1, 2), starts=("independent", "identical"), tilings=TILINGS):
    """Rows of every tiling, start, layer, seed and epoch; no two similarities are equal."""
    rows = []
    for t, tiling in enumerate(tilings):
        for i, start in enumerate(starts):
            for n, (layer, tiles) in enumerate(LAYERS.items()):
                for s, seed in enumerate(seeds):
                    for epoch in (0, 1, 2):
                        alike = 0.05 + 0.1 * t + 0.2 * i + 0.02 * n + (0.05 + 0.1 * t) * epoch
                        alike += 0.001 * (s + 2 * t * s * (s - 1) + epoch * s)
                        rows.append(
                            SETTING
                            | {
                                "tiling": tiling, "tile_init": start, "layer": layer,
                                "layer_tiles": tiles, "seed": seed, "epoch": epoch,
                                "run": f"{tiling}-{start}-{seed}", "between_tiles": alike,
                                "within_tile": alike / 10, "variance_ratio": 1 - alike,
                                "cka": alike + 0.1, "cka_chance": 0.2, "matched": alike + 0.2,
                                "matched_chance": 0.3, "penalty": np.nan,
                            }
                        )  # fmt: skip
    return pd.DataFrame(rows[::-1])  # in no helpful order


def penalty_table(scales=(1.0, 0.5), sign=1.0, **changes):
    rows = []
    for layer, size in (("a", 0.2), ("b", 0.03), ("all", np.nan)):
        for scale in scales:
            predicted = size * scale**2
            rows.append(
                SETTING
                | {
                    "tiling": "random", "tile_init": "independent", "layer": layer, "seed": 0,
                    "scale": scale, "run": "one", "predicted": predicted,
                    "measured": sign * (0.3 if layer == "all" else 1.05 * predicted + 1e-4),
                    "measured_error": 0.001, "predicted_error": 0.002, "merged_loss": 1.5,
                    "gauss_newton": predicted, "gauss_newton_error": 0.002,
                }
                | changes
            )  # fmt: skip
    return pd.DataFrame(rows)


def drawn(figure):
    """Draw the figure to the end; warnings are errors."""
    figure.draw_without_rendering()
    return figure


def curves(axes, style):
    """Heights of the lines of a style, by colour."""
    return {
        mpl.colors.to_hex(line.get_color()): list(map(float, line.get_ydata()))
        for line in axes.lines
        if line.get_linestyle() == style and len(line.get_ydata()) > 1
    }


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# --- Similarity over training -----------------------------------------------------------------


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (3, 1, 4)], ids=len)
def test_lines_are_means_over_seeds_of_each_start_and_layer(seeds):
    table = similarity_table(seeds)
    figure = drawn(similarity_figure(table))
    colours = {
        handle.get_label(): mpl.colors.to_hex(handle.get_color())
        for handle in figure.legends[0].legend_handles
    }
    assert legend_texts(figure)[:2] == list(TILINGS)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        layer, tiles, start = re.fullmatch(
            r"(\w+), (\d+) tiles, (\w+) start", axes.get_title(loc="left")
        ).groups()
        assert int(tiles) == LAYERS[layer]
        part = table[(table["layer"] == layer) & (table["tile_init"] == start)]
        for style, column in (("-", "between_tiles"), (":", "within_tile")):
            shown = curves(axes, style)
            assert len(shown) == 2
            for tiling in TILINGS:
                means = part[part["tiling"] == tiling].groupby("epoch")[column].mean()
                assert shown[colours[tiling]] == pytest.approx(list(means))
        assert len(axes.collections) == (0 if len(seeds) == 1 else 2)
    said = figure.get_suptitle()
    assert said.startswith("digits; ")
    assert ("one seed" in said) == (len(seeds) == 1)


def test_bands_are_t_intervals():
    table = similarity_table()
    corners = set()
    for axes in similarity_figure(table).axes:
        for path in (path for band in axes.collections for path in band.get_paths()):
            corners |= {round(float(y), 6) for _, y in path.vertices}
    for _, runs in table.groupby(["tiling", "tile_init", "layer", "epoch"]):
        for end in mean_interval(runs["between_tiles"])[1:]:
            assert round(end, 6) in corners


def test_short_and_lopsided_tables_are_drawn_without_warning():
    table = similarity_table((0,))
    drawn(similarity_figure(table[table["epoch"] == 2]))
    lopsided = table[(table["layer"] == "a") | (table["tile_init"] == "identical")]
    drawn(similarity_figure(lopsided))
    two = pd.concat([table, table.assign(pooling="max", between_tiles=0.9)])
    drawn(similarity_figure(two))
    drawn(similarity_figure(table[:0]))


def test_tables_and_style_are_left_alone():
    style, table, penalties = dict(mpl.rcParams), similarity_table(), penalty_table()
    for make in (similarity_figure, tiles_figure, similarity_summary, similarity_answer, contrast):
        make(table)
    penalty_figure(penalties)
    penalty_answer(penalties, [0.1])
    pd.testing.assert_frame_equal(table, similarity_table())
    pd.testing.assert_frame_equal(penalties, penalty_table())
    assert dict(mpl.rcParams) == style


# --- Numbers of tiles -------------------------------------------------------------------------


def tiles_table(**changes):
    table = similarity_table((0, 1), tilings=("random",))
    more = table.assign(
        layer_tiles=table["layer_tiles"] * 8, n_tiles="128-32-8",
        between_tiles=table["between_tiles"] / 2, run=table["run"] + "-many",
    )  # fmt: skip
    return pd.concat([table, more], ignore_index=True).assign(**changes)


def tile_lines(figure):
    """(tiles, similarity) of the lines and all dots."""
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata())]
    return (
        sorted(tuple(map(float, line.get_ydata())) for line in lines),
        sorted(tuple(map(float, p)) for c in axes.collections for p in c.get_offsets().data),
        [text.get_text() for text in axes.get_legend().get_texts()],
    )


def test_dots_are_runs_and_lines_their_means_at_the_last_epoch():
    table = tiles_table()
    figure = drawn(tiles_figure(table))
    last = table[table["epoch"] == 2]
    lines, dots, labels = tile_lines(figure)
    wanted = last[["layer_tiles", "between_tiles"]].to_numpy()
    assert np.array(dots) == pytest.approx(np.array(sorted(map(tuple, wanted))))
    means = last.groupby(["layer", "tile_init", "layer_tiles"])["between_tiles"].mean()
    wanted = sorted(tuple(group) for _, group in means.groupby(level=["layer", "tile_init"]))
    assert np.array(lines) == pytest.approx(np.array(wanted))
    assert sorted(labels) == sorted(f"{n}, {s} start" for n in "ab" for s in set(last["tile_init"]))
    assert figure.axes[0].get_xscale() == "log"


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("tile_lr_power", 0.5, "tile_lr_power 0.5"),
        ("pooling", "max", "pooling max"),
        ("tiling", "image", "image"),
        ("varied", "weight_decay 0.1", "weight_decay 0.1"),
    ],
)
def test_other_configurations_have_lines_of_their_own(column, value, told):
    """A mean over two learning rates would be called one over seeds."""
    table = tiles_table(varied="weight_decay 0")
    other = table.assign(
        **{column: value}, run=table["run"] + "-other", between_tiles=table["between_tiles"] + 0.4
    )
    lines, _, labels = tile_lines(drawn(tiles_figure(pd.concat([table, other]))))
    assert len(lines) == len(labels) == 8
    assert sum(told in label.split(", ") for label in labels) == 4
    wanted = tile_lines(tiles_figure(table))[0]
    for line in wanted:
        assert any(line == pytest.approx(shown) for shown in lines)


def test_one_number_of_tiles_is_drawn_without_warning():
    table = similarity_table((0,), starts=("identical",), tilings=("random",))
    drawn(tiles_figure(table[table["layer"] == "a"]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: similarity_figure(similarity_table((0,))),
        lambda: penalty_figure(penalty_table()),
        lambda: penalty_figure(pd.DataFrame()),
    ],
    ids=["similarity", "penalty", "nothing"],
)
def test_files_are_the_same_bytes_each_time(make, tmp_path):
    first, second = (save_figure(make(), tmp_path / name) for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


# --- Penalties --------------------------------------------------------------------------------


def points(axes):
    """(predicted, measured, whether the marker is open) of all markers."""
    found = []
    for container in axes.containers:
        line = container.lines[0]
        hollow = line.get_markerfacecolor() == "none"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            found.append((float(x), float(y), hollow))
    return sorted(found)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_points_are_the_penalties_and_open_where_signs_differ(sign):
    table = penalty_table(sign=sign)
    figure = drawn(penalty_figure(table))
    (axes,) = figure.axes
    alone = table[table["layer"] != "all"]
    wanted = sorted(
        (p, abs(m), sign < 0) for p, m in zip(alone["predicted"], alone["measured"], strict=True)
    )
    assert [point[2] for point in points(axes)] == [point[2] for point in wanted]
    assert np.array(points(axes))[:, :2] == pytest.approx(np.array(wanted)[:, :2])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    (identity,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert list(identity.get_xdata()) == list(identity.get_ydata()) == [0.03 / 4, 0.2]
    assert axes.get_title(loc="left") == "tanh, avg, batch"
    assert ("signs differ" in legend_texts(figure)) == (sign < 0)
    assert figure.get_suptitle() == "deviations × 1, 0.5"


def test_bars_are_two_standard_errors_and_stay_on_the_axes():
    table = penalty_table(scales=(1.0,), measured_error=0.01)
    (axes,) = penalty_figure(table).axes
    bars = {}
    for container in axes.containers:
        for segment in container.lines[2][0].get_segments():
            bars[round(float(segment[0, 0]), 6)] = segment[:, 1]
    assert bars[0.2] == pytest.approx([0.2101 - 0.02, 0.2101 + 0.02])
    assert bars[0.03] == pytest.approx([0.0316 - 0.02, 0.0316 + 0.02])
    (axes,) = penalty_figure(penalty_table(scales=(1.0,), measured_error=1.0)).axes
    for container in axes.containers:
        for segment in container.lines[2][0].get_segments():
            assert segment[0, 1] > 0


def test_every_kind_of_network_has_its_panel():
    relu = penalty_table(activation="relu", pooling="max", tile_init="identical")
    figure = drawn(penalty_figure(pd.concat([penalty_table(), relu])))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["tanh, avg, batch", "relu, max, batch"]
    assert [len(points(axes)) for axes in figure.axes] == [4, 4]
    assert {"independent start", "identical start", "a", "b"} <= set(legend_texts(figure))


@pytest.mark.parametrize("measured", [0.0, 0.1])
def test_predictions_of_zero_are_left_out(measured):
    figure = drawn(penalty_figure(penalty_table(predicted=0.0, measured=measured)))
    assert points(figure.axes[0]) == []
    assert "signs differ" not in legend_texts(figure)


@pytest.mark.parametrize("table", [pd.DataFrame(), penalty_table()[:0], penalty_table()[4:]])
def test_no_penalties_are_told(table):
    (text,) = drawn(penalty_figure(table)).texts
    assert text.get_text() == penalty_answer(table, [])
    assert text.get_text().startswith("No penalty: ")


# --- Filters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_mosaic_has_a_row_a_filter_and_a_column_a_tile(channels):
    filters = np.random.default_rng(0).uniform(-1, 1, (3, 2, channels, 4, 5))
    figure = drawn(filters_figure({"mine": filters.tolist(), "none": []}))
    (axes,) = [axes for axes in figure.axes if axes.images]
    assert axes.get_title(loc="left") == "mine"
    picture = np.asarray(axes.images[0].get_array())
    assert picture.shape[:2] == (3 * 5 - 1, 2 * 6 - 1)
    assert picture.ndim == (3 if channels == 3 else 2)
    shown = 3 if channels == 3 else 1
    for f in range(3):
        for t in range(2):
            part = picture[5 * f : 5 * f + 4, 6 * t : 6 * t + 5].reshape(4, 5, shown)
            wanted = filters[f, t, :shown].transpose(1, 2, 0) / 2 + 0.5
            assert part == pytest.approx(wanted)
    assert (picture[4] == 1).all()
    assert axes.images[0].get_clim() == (0, 1)


def test_every_network_has_its_panel_of_filters():
    filters = {f"net {i}": np.zeros((2, 2, 1, 3, 3)).tolist() for i in range(4)}
    figure = drawn(filters_figure(filters))
    assert [a.get_title(loc="left") for a in figure.axes if a.images] == list(filters)


@pytest.mark.parametrize("filters", [{}, {"none": []}])
def test_no_filters_are_told(filters):
    (text,) = drawn(filters_figure(filters)).texts
    assert text.get_text() == "No layer has several tiles."


# --- Summary and answers ----------------------------------------------------------------------


def final(values, tilings=("image", "random"), **changes):
    """A table of one layer, whose last similarities are given by tiling and seed."""
    table = similarity_table(range(len(values[0])), ("independent",), tilings)
    table = table[table["layer"] == "a"].assign(**changes)
    for tiling, own in zip(tilings, values, strict=True):
        for seed, value in enumerate(own):
            here = (table["tiling"] == tiling) & (table["seed"] == seed)
            table.loc[here & (table["epoch"] == 2), "between_tiles"] = value
            table.loc[here & (table["epoch"] == 0), "between_tiles"] = 0.05
    return table


def test_the_summary_by_hand():
    """0.5, 0.6, 0.7: mean 0.6 ± 4.3027 · 0.1 / √3 = 0.248."""
    summary = similarity_summary(final([[0.1, 0.1, 0.1], [0.5, 0.6, 0.7]]))
    assert summary["tiling"].tolist() == list(TILINGS)
    assert summary["seeds"].tolist() == [3, 3]
    assert summary["between tiles"].tolist() == ["0.100 ± 0.000", "0.600 ± 0.248"]
    assert summary["rise in training"].tolist() == ["+0.050 ± 0.000", "+0.550 ± 0.248"]
    assert summary["CKA by chance"].tolist() == ["0.200"] * 2
    one = similarity_summary(final([[0.1], [0.5]]))
    assert one["between tiles"].tolist() == ["0.100", "0.500"]
    assert one["rise in training"].tolist() == ["+0.050", "+0.450"]


def test_without_the_start_there_is_no_rise():
    """A network whose tiles were not recorded is measured once: no rise of +0.000 was seen."""
    table = final([[0.1, 0.2], [0.5, 0.6]])
    table = table[table["epoch"] == 2]
    assert similarity_summary(table)["rise in training"].tolist() == ["–", "–"]
    assert "in training" not in similarity_answer(table)


@pytest.mark.parametrize(
    ("column", "value"),
    [("pooling", "max"), ("tile_lr_power", 0.5), ("varied", "mirror True"), ("dataset", "letters")],
)
def test_other_configurations_are_no_seeds(column, value):
    table = final([[0.1, 0.2], [0.5, 0.6]], varied="mirror False")
    other = table.assign(**{column: value}, run=table["run"] + "-other", between_tiles=0.9)
    both = pd.concat([table, other])
    summary = similarity_summary(both)
    assert summary["seeds"].tolist() == [2] * 4
    assert sorted(summary["between tiles"])[-2:] == ["0.900 ± 0.000"] * 2
    found = contrast(both)
    assert sorted(found["difference"]) == pytest.approx([0.0, 0.4])
    assert found["pairs"].tolist() == [2, 2]
    said = similarity_answer(both).splitlines()
    assert len(set(said)) == 6
    told = f"tile_lr_power {value}," if column == "tile_lr_power" else str(value)
    assert sum(told in line for line in said) == 3


def test_contrast_pairs_by_seed():
    table = final([[0.1, 0.3, 0.2], [0.4, 0.7, 0.6]])
    missing = table[(table["tiling"] != "image") | (table["seed"] != 1)]
    (row,) = contrast(missing).to_dict("records")
    mean, low, high = mean_interval([0.3, 0.4])
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((mean, low, high))
    assert (row["pairs"], row["other"], row["layer"]) == (2, "image", "a")
    assert "tiling" not in row
    (back,) = contrast(missing, "image").to_dict("records")
    assert back["difference"] == pytest.approx(-0.35)
    assert len(contrast(table[table["tiling"] == "random"])) == 0
    assert len(contrast(table[table["tiling"] == "image"])) == 0


@pytest.mark.parametrize(
    ("random", "verdict"),
    [
        ([0.50, 0.61, 0.69], "more alike"),
        ([-0.4, -0.31, -0.19], "less alike"),
        ([0.5, 0.1, -0.3], "undecided"),
        ([0.5], "undecided"),
    ],
)
def test_the_answer_judges_by_the_interval(random, verdict):
    others = [0.1, 0.2, 0.3][: len(random)]
    said = similarity_answer(final([others, random]))
    *alone, judged = said.splitlines()
    difference = np.subtract(random, others)
    assert judged.startswith("- **C2b**, independent start, avg pooling, layer `a` of tiles 16-4-1")
    assert f"`random` − `image` = {difference.mean():+.3f} (" in judged
    assert judged.endswith(f": {verdict}.")
    if len(random) == 1:
        assert "one pair of seeds, no interval" in judged
    else:
        _, low, high = mean_interval(difference)
        assert f"95 % interval {low:+.3f} to {high:+.3f} over 3 seeds" in judged
    for tiling, values, line in zip(TILINGS, (others, random), alone, strict=True):
        assert line.startswith(f"- `{tiling}`, independent start, avg pooling, layer `a`")
        assert f"cosine between tiles {np.mean(values):.3f}" in line
        assert f"({np.mean(values) - 0.05:+.3f}" in line
        assert line.endswith(f"seeds: {len(values)}.")


def test_the_penalty_s_answer_is_computed():
    text = penalty_answer(penalty_table(measured=0.1, measured_error=0.0), [0.5, -0.25, 0.75])
    whole, half, pulls = sorted(text.splitlines()[:2], reverse=True) + text.splitlines()[2:]
    half, whole = sorted((whole, half), key=lambda line: "× 1:" in line)
    # Measured 0.1 over predicted 0.2 and 0.03, and over a quarter of each.
    assert "tanh, avg pooling, batch normalisation, deviations × 1: " in whole
    assert "measured / predicted 1.92 (median; 0.50 to 3.33)" in whole
    assert "deviations × 0.5: measured / predicted 7.67 (median; 2.00 to 13.33)" in half
    assert "0 of 2 agree within 10 % or two standard errors." in whole
    assert "its cosine with δ is -0.25 to 0.75 over 3 layers" in pulls


def test_agreement_and_negative_penalties_are_counted():
    within = penalty_answer(penalty_table(scales=(1.0,)), [])
    assert "; 2 of 2 agree within 10 % or two standard errors." in within
    assert "below zero" not in within
    negative = penalty_answer(penalty_table(scales=(1.0,), sign=-1.0), [])
    assert "; 0 of 2 agree" in negative
    assert "; 2 measured below zero" in negative


def test_penalties_of_equal_tiles_have_no_ratio():
    text = penalty_answer(penalty_table(scales=(1.0,), predicted=0.0, measured=0.0), [0.0, 0.0])
    assert "no penalty is predicted, the tiles being equal; 2 of 2 agree" in text
    assert "nan" not in text
    assert "its cosine with δ is 0.00 to 0.00 over 2 layers" in text
    row = penalty_table(scales=(1.0,))
    row.loc[row["layer"] == "b", ["predicted", "measured"]] = 0.0
    assert "measured / predicted 1.05; 2 of 2" in penalty_answer(row, [])
