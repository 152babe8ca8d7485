"""A choice of tiles: the fewest arrays, and the errors that a study's table holds."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rapa_lib.experiments.guide import choose_tiles, pictures
from rapa_lib.runtime import count_layers, run_time

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def layers():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(4), nn.Conv2d(4, 8, 3, padding=1)
    )
    return count_layers(network, (1, 16, 16))  # 256 and 16 patches


def test_choices_reach_their_targets_with_the_fewest_arrays(layers):
    table = choose_tiles.tile_choices(layers, [4, 32, 1000])
    assert table["target"].tolist() == [1, 4, 32]  # 1,000 is out of reach
    assert (table["speedup"] >= table["target"]).all()
    assert table["arrays"].tolist() == [2, 5, 34]
    assert table["more_arrays"].tolist() == [1, 2.5, 17]
    assert [list(tiles.values()) for tiles in table["tiles"]] == [[1, 1], [4, 1], [32, 2]]
    last = table.iloc[-1]
    assert run_time(layers, n_tiles=last["tiles"]).speedup() == last["speedup"]
    with pytest.raises(ValueError, match=r"speedups: got 0\.5"):
        choose_tiles.tile_choices(layers, [0.5])


def test_errors_are_means_over_the_seeds_of_a_study(tmp_path):
    rows = ["dataset,epochs,tiling,n_tiles,seed,test_error,test_error_vote,speedup"]
    rows += [f"d,1,none,1,{seed},{10 + seed},10,1.0" for seed in (0, 1, 2)]
    rows += [f"d,1,random,4,{seed},{14 + seed},12,4.0" for seed in (0, 1, 2)]
    rows += ["d,1,image,4,0,99,99,4.0"]
    (tmp_path / "tiles_accuracy.csv").write_text("\n".join(rows))
    table = choose_tiles.study_errors(tmp_path)
    assert table["test_error"].tolist() == [11, 15]
    assert table["more_error"].tolist() == [0, 4]
    assert table["seeds"].tolist() == [3, 3]
    assert table["high"][1] - 15 == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    (tmp_path / "tiles_accuracy.csv").write_text("\n".join([rows[0], *rows[4:]]))
    with pytest.raises(ValueError, match="results: got 0 settings with one tile"):
        choose_tiles.study_errors(tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder with tiles_accuracy\.csv"):
        choose_tiles.study_errors(tmp_path / "none")


def test_the_figure_shows_both_against_speed_up(layers):
    choices = choose_tiles.tile_choices(layers, [4])
    errors = choose_tiles.study_errors(ROOT / "results/standard")
    upper, lower = choose_tiles.choice_figure(choices, errors).axes
    assert upper.lines[0].get_ydata().tolist() == choices["arrays"].tolist()
    assert "not yours" in lower.get_title(loc="left")


def test_every_tile_takes_its_patches_in_turn():
    steps = pictures.steps_of(torch.tensor([1, 0, 1, 1, 0]))
    assert steps.tolist() == [1, 1, 2, 3, 2]
    figure = pictures.time_figure(torch.tensor([0, 1, 1, 0, 0, 1]), 2, 3)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "one array: 6 steps",
        "2 arrays, random: 3 steps",
    ]
