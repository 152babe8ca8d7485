"""Filter similarity's figures show what their tables say, and only that."""

import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from similarity_rows import (
    LAYERS,
    TILINGS,
    penalty_table,
    pull_table,
    scales_table,
    similarity_table,
)

from rapa_lib.experiments.filter_similarity.figures import (
    filters_figure,
    penalty_figure,
    similarity_figure,
    tiles_figure,
)
from rapa_lib.experiments.filter_similarity.pull_figures import (
    FORCES,
    STATISTICS,
    pull_figure,
    scales_figure,
)
from rapa_lib.experiments.filter_similarity.tables import penalty_answer
from rapa_lib.experiments.plots import save_figure
from rapa_lib.instruments.statistics import mean_interval


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
            r"(\w+) \((\d+) tiles\)\n(\w+) start", axes.get_title(loc="left")
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
    two = drawn(similarity_figure(pd.concat([table, table.assign(pooling="max")])))
    assert len(two.axes) == 8  # a line through both would call them seeds
    drawn(similarity_figure(table[:0]))


def test_tables_and_style_are_left_alone():
    style, table, penalties = dict(mpl.rcParams), similarity_table(), penalty_table()
    for make in (similarity_figure, tiles_figure):
        make(table)
    penalty_figure(penalties)
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
    """Similarities of the lines, (tiles, similarity) of the dots, texts of the legend."""
    found = [line for axes in figure.axes for line in axes.lines if len(line.get_xdata())]
    lines = [line.get_ydata() for line in found if line.get_linestyle() == "-"]
    dots = [line.get_xydata() for line in found if line.get_linestyle() == "None"]
    return (
        sorted(tuple(map(float, line)) for line in lines),
        sorted(tuple(map(float, dot)) for dot in np.concatenate(dots)),
        legend_texts(figure),
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
    assert labels == ["identical start", "independent start"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    for axes in figure.axes:  # layers compare
        assert (axes.get_xscale(), axes.get_ylim()) == ("log", figure.axes[0].get_ylim())


def test_names_of_the_study_s_layers_are_words():
    table = tiles_table().replace({"layer": {"a": "features.0.0", "b": "features.1.0"}})
    titles = [axes.get_title(loc="left") for axes in tiles_figure(table).axes]
    assert titles == ["convolution 1", "convolution 2"]
    (first, *_) = similarity_figure(
        similarity_table().replace({"layer": {"a": "features.0.0"}})
    ).axes
    assert first.get_title(loc="left").startswith("b (4 tiles)")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("tile_lr_power", 0.5, "learning rate × n_tiles^0.5"),
        ("pooling", "max", "max pooling"),
        ("tiling", "image", "image"),
        ("varied", "weight_decay 0.1", "weight_decay 0.1"),
    ],
)
def test_other_configurations_have_lines_of_their_own(column, value, words):
    """A mean over two learning rates would be called one over seeds."""
    table = tiles_table(varied="weight_decay 0")
    other = table.assign(
        **{column: value}, run=table["run"] + "-other", between_tiles=table["between_tiles"] + 0.4
    )
    lines, _, labels = tile_lines(drawn(tiles_figure(pd.concat([table, other]))))
    assert (len(lines), len(labels)) == (8, 4)
    assert sum(words in label.split(", ") for label in labels) == 2
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
    """(predicted, measured) of all markers."""
    found = [container.lines[0].get_xydata() for container in axes.containers]
    return sorted((float(x), float(y)) for line in found for x, y in line)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_points_are_the_penalties_and_below_zero_where_signs_differ(sign):
    table = penalty_table(sign=sign)
    figure = drawn(penalty_figure(table))
    (axes,) = figure.axes
    alone = table[table["layer"] != "all"]
    wanted = sorted(zip(alone["predicted"], alone["measured"], strict=True))
    assert np.array(points(axes)) == pytest.approx(np.array(wanted))
    assert all((y < 0) == (sign < 0) for _, y in points(axes))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "symlog")
    low, high = axes.get_ylim()
    assert low == -high < min(alone["measured"])
    (identity,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert list(identity.get_xdata()) == list(identity.get_ydata()) == [0.03 / 4, 0.2]
    assert axes.get_title(loc="left") == "tanh, avg pooling, batch normalisation"
    assert "mean × 1, 0.5; bars" in figure.get_suptitle().replace("\n", " ")


def test_a_negative_prediction_agrees_with_a_negative_measurement():
    table = penalty_table()
    turned = table.assign(predicted=-table["predicted"], measured=-table["measured"])
    (axes,), (other,) = penalty_figure(table).axes, penalty_figure(turned).axes
    assert points(axes) == points(other)


def test_bars_are_two_standard_errors():
    table = penalty_table(scales=(1.0,), measured_error=0.01)
    (axes,) = penalty_figure(table).axes
    bars = {}
    for container in axes.containers:
        for segment in container.lines[2][0].get_segments():
            bars[round(float(segment[0, 0]), 6)] = segment[:, 1]
    assert bars[0.2] == pytest.approx([0.2101 - 0.02, 0.2101 + 0.02])
    assert bars[0.03] == pytest.approx([0.0316 - 0.02, 0.0316 + 0.02])


def test_every_kind_of_network_has_its_panel():
    relu = penalty_table(activation="relu", pooling="max", tile_init="identical")
    figure = drawn(penalty_figure(pd.concat([penalty_table(), relu])))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "tanh, avg pooling, batch normalisation", "relu, max pooling, batch normalisation",
    ]  # fmt: skip
    assert [len(points(axes)) for axes in figure.axes] == [4, 4]
    assert {"independent start", "identical start", "a", "b"} <= set(legend_texts(figure))


@pytest.mark.parametrize("measured", [0.0, 0.1])
def test_predictions_of_zero_are_left_out(measured):
    figure = drawn(penalty_figure(penalty_table(predicted=0.0, measured=measured)))
    assert points(figure.axes[0]) == []


@pytest.mark.parametrize("table", [pd.DataFrame(), penalty_table()[:0], penalty_table()[4:]])
def test_a_figure_without_penalties_says_why(table):
    (text,) = drawn(penalty_figure(table)).texts
    assert text.get_text() == penalty_answer(table, [])
    assert text.get_text().startswith("No penalty: ")


def test_where_the_penalty_is_no_theorem_no_identity_is_drawn():
    relu = penalty_table(activation="relu", pooling="max", applies=False)
    figure = drawn(penalty_figure(pd.concat([penalty_table(), relu])))
    dashed = [sum(line.get_linestyle() == "--" for line in axes.lines) for axes in figure.axes]
    assert dashed == [1, 0]
    assert "no theorem" in figure.axes[1].get_title(loc="left")
    assert "theory: both equal" in legend_texts(figure)
    assert "theory: both equal" not in legend_texts(drawn(penalty_figure(relu)))


# --- The pull ---------------------------------------------------------------------------------


def bars(axes):
    """(x, mean, half width) of the points with bars, one list per line."""
    found = []
    for line, _, (segments,) in (container.lines for container in axes.containers):
        half = [(s[1, 1] - s[0, 1]) / 2 for s in segments.get_segments()]
        found.append(list(zip(line.get_xdata(), line.get_ydata(), half, strict=True)))
    return found


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=len)
def test_pull_decay_and_push_share_axes_and_are_the_table_s(seeds):
    table = pull_table(seeds)
    figure = drawn(pull_figure(table))
    panels = np.array(figure.axes).reshape(len(LAYERS), len(FORCES))
    assert [axes.get_title(loc="left") for axes in panels[0]] == list(FORCES.values())
    for line, layer in zip(panels, LAYERS, strict=True):
        assert len({axes.get_ylim() for axes in line}) == 1
        assert line[0].get_ylabel().startswith(f"{layer},\nindependent start")
        for axes, column in zip(line, FORCES, strict=True):
            for points, tiling in zip(bars(axes), TILINGS, strict=True):
                rows = table[(table["layer"] == layer) & (table["tiling"] == tiling)]
                for epoch, mean, half in points:
                    same = rows.loc[rows["epoch"] == epoch, column]
                    wanted, low, _ = mean_interval(same)
                    assert mean == pytest.approx(1000 * wanted)
                    one = 20 if column == "kernel_pull" else 0  # 2 × 0.01
                    assert half == pytest.approx(one if len(seeds) == 1 else 1000 * (wanted - low))
                assert [epoch for epoch, *_ in points] == [0, 1, 2]
    title = figure.get_suptitle().replace("\n", " ")
    assert ("t-intervals over seeds" in title) == (len(seeds) > 1)
    assert ("two standard errors over batches" in title) == (len(seeds) == 1)


def test_one_epoch_and_an_unknown_push_are_drawn_without_warning():
    table = pull_table(epochs=(2,)).assign(push=np.nan)
    panels = drawn(pull_figure(table)).axes
    assert [len(axes.containers) for axes in panels] == [2, 2, 0] * 2
    (text,) = drawn(pull_figure(table[:0])).texts
    assert text.get_text() == "No layer has several tiles."


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=len)
def test_the_loss_along_the_deviations_is_the_table_s(seeds):
    table = scales_table(seeds)
    figure = drawn(scales_figure(table))
    panels = np.array(figure.axes).reshape(2, 3)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [axes.get_title(loc="left") for axes in panels[0]] == ["a", "b", "all layers"]
    for line, statistics in zip(panels, STATISTICS, strict=True):
        for axes, layer in zip(line, (*LAYERS, "all"), strict=True):
            for points, tiling in zip(bars(axes), TILINGS, strict=True):
                chosen = (table["layer"] == layer) & (table["tiling"] == tiling)
                rows = table[chosen & (table["statistics"] == statistics)]
                for scale, mean, half in points:
                    wanted, low, _ = mean_interval(rows.loc[rows["scale"] == scale, "change"])
                    assert mean == pytest.approx(wanted)
                    assert half == pytest.approx(0.04 if len(seeds) == 1 else wanted - low)
                assert len(points) == 3
    assert legend_texts(figure) == [f"{tiling}, independent start" for tiling in TILINGS]


def test_a_loss_that_was_not_measured_says_so():
    (text,) = drawn(scales_figure(scales_table()[:0])).texts
    assert text.get_text() == "The loss along the deviations was not measured."


# --- Filters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_mosaic_has_one_row_per_filter_and_one_column_per_tile(channels):
    filters = np.random.default_rng(0).uniform(-1, 1, (3, 2, channels, 4, 5))
    figure = drawn(filters_figure({("", "mine"): filters.tolist(), ("", "none"): []}))
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
    places = [("one", "a"), ("two", "a"), ("one", "b"), ("two", "c")]
    figure = drawn(filters_figure({p: np.zeros((2, 2, 1, 3, 3)).tolist() for p in places}))
    shown = {a.get_title(loc="left"): a.get_position() for a in figure.axes if a.images}
    assert sorted(shown) == sorted(f"{column},\n{row}" for row, column in places)
    # Networks of one start are beside each other, those of one tiling below each other.
    assert shown["a,\none"].y0 == pytest.approx(shown["b,\none"].y0)
    assert shown["a,\none"].x0 == pytest.approx(shown["a,\ntwo"].x0)


@pytest.mark.parametrize("filters", [{}, {("", "none"): []}])
def test_a_figure_without_filters_says_why(filters):
    (text,) = drawn(filters_figure(filters)).texts
    assert text.get_text() == "No layer has several tiles."
