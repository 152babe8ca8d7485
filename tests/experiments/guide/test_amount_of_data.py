"""Errors against the amount of data: read from studies' tables, compared seed by seed."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rapa_lib.experiments.guide import amount_of_data
from rapa_lib.experiments.guide.amount_of_data import VOTE

SEEDS = (3, 1, 2)


def run(tiling, images, seed, error, **other):
    plain = tiling in ("none", "dropout")
    config = {"n_train": images, "subset": "seed", **other.pop("config", {})}
    return {
        "dataset": f"letters [{images} of 900 train]", "tiling": tiling, "seed": seed,
        "n_tiles": "1-1-1" if plain else "16-4-1", "test_error": error,
        "test_error_vote": error - 1.0, "test_error_merged": error + 2.0,
        "config": json.dumps(config), **other,
    }  # fmt: skip


def runs(amounts=(50, 200)):
    """``random`` is 4 + 1, 2, 3 better with 50 images, as much worse with 200."""
    return [
        run(tiling, images, seed, 30.0 - images / 20 + seed + (tiling == "random") * gap)
        for images, sign in zip(amounts, (-1, 1, 1), strict=False)
        for seed in SEEDS
        for tiling in ("none", "random")
        for gap in [sign * (4 + seed)]
    ]


@pytest.fixture
def study(tmp_path):
    def write(rows, name="some"):
        folder = tmp_path / name
        folder.mkdir()
        pd.DataFrame(rows).to_csv(folder / "accuracy.csv", index=False)
        return folder

    return write


def test_every_network_is_a_row_and_the_vote_an_arm_of_its_own(study):
    rows = [*runs(), run("dropout", 50, 1, 20.0), run("image", 50, 1, 99.0)]
    rows += [
        run("random", 50, 1, 99.0, config={"sync_every": 4}),
        run("random", 50, 1, 99.0, n_tiles="1024-256-64"),
    ]
    table = amount_of_data.errors_by_amount([study(rows)])
    assert len(table) == 2 * 3 * 3 + 1
    assert set(table["data"]) == {"letters"}
    assert 99.0 not in set(table["test_error"])
    votes, single = (table[table["arm"] == arm].reset_index() for arm in (VOTE, "random"))
    assert (single["test_error"] - votes["test_error"]).tolist() == [1.0] * 6
    (dropped,) = table.loc[table["arm"] == "dropout", "test_error"]
    assert dropped == 22.0  # with nothing dropped
    many = amount_of_data.errors_by_amount([study(rows, "again")], n_tiles="1024-256-64")
    assert set(many.loc[many["arm"] == "random", "test_error"]) == {99.0}


def test_studies_stand_together_and_whole_sets_have_their_size(study):
    whole = run("none", None, 1, 9.0, dataset="CIFAR-10 (JPEG q75)")
    part = run("none", 500, 1, 50.0, dataset="CIFAR-10 (JPEG q75) [500 of 50,000 train]")
    table = amount_of_data.errors_by_amount([study([whole], "a"), study([part], "b")])
    assert table[["study", "images"]].values.tolist() == [["a", 50_000], ["b", 500]]
    assert table["data"].nunique() == 1


def test_what_cannot_be_compared_is_refused(study, tmp_path):
    with pytest.raises(ValueError, match=r"folders: got .*nothing'.*accuracy\.csv"):
        amount_of_data.errors_by_amount([tmp_path / "nothing"])
    twice = study([*runs(), run("none", 50, 1, 9.0)])
    with pytest.raises(ValueError, match="folders: got seed 1 of none on 50 images of letters"):
        amount_of_data.errors_by_amount([twice])
    for name in ("leaves", "CIFAR-10 (own split)"):
        unknown = study([run("none", None, 1, 9.0, dataset=name)], name)
        with pytest.raises(ValueError, match=f"training images of '{re.escape(name)}': unknown"):
            amount_of_data.errors_by_amount([unknown])


def test_differences_of_seeds_with_images_of_their_own_are_paired(study):
    rows = [*runs(), run("none", 50, 9, 77.0)]  # a seed that has no partner
    found = amount_of_data.differences_by_amount(amount_of_data.errors_by_amount([study(rows)]))
    row = found[(found["arm"] == "random") & (found["images"] == 50)].iloc[0]
    gaps = -(4.0 + np.array(SEEDS))
    low, high = stats.t.interval(0.95, 2, gaps.mean(), stats.sem(gaps))
    assert (row["difference"], row["seeds"]) == (gaps.mean(), 3)
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))
    votes = found[(found["arm"] == VOTE) & (found["images"] == 50)]
    assert votes["difference"].tolist() == [gaps.mean() - 1]
    assert "none" not in set(found["arm"])
    assert set(found["method"]) == {"paired"}


def test_differences_of_seeds_on_the_same_images_are_not_paired(study):
    errors = {"none": {3: 23.1, 1: 24.6, 2: 23.9, 9: 25.0}, "random": {3: 22.0, 1: 22.2, 2: 23.7}}
    rows = [
        run(tiling, None, seed, error, dataset="CIFAR-10", config={"subset": "fixed"})
        for tiling, of in errors.items()
        for seed, error in of.items()
    ]
    found = amount_of_data.differences_by_amount(amount_of_data.errors_by_amount([study(rows)]))
    row = found[found["arm"] == "random"].iloc[0]
    ordinary, rapa = (list(errors[tiling].values()) for tiling in ("none", "random"))
    expected = stats.ttest_ind(rapa, ordinary, equal_var=row["method"] == "pooled")
    low, high = expected.confidence_interval(0.95)
    assert (row["seeds"], row["images"]) == (3, 50_000)
    assert row["method"] in ("pooled", "Welch")
    assert row["difference"] == pytest.approx(np.mean(rapa) - np.mean(ordinary))
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))


def test_one_seed_has_no_interval(study):
    rows = [row for row in runs() if row["seed"] == 1]
    errors = amount_of_data.errors_by_amount([study(rows)])
    found = amount_of_data.differences_by_amount(errors)
    assert found[["low", "high"]].isna().all(axis=None)
    assert "[" not in amount_of_data.crossing_text(found)
    amount_of_data.amount_figure(errors).draw_without_rendering()


def test_the_text_says_where_the_sign_turns(study):
    errors = amount_of_data.errors_by_amount([study(runs((50, 200, 800)))])
    (line,) = amount_of_data.crossing_text(amount_of_data.differences_by_amount(errors)).split("\n")
    assert line.startswith("- letters: `random` − `none` (points of test error): −6.0 [−8.5, −3.5]")
    assert "+6.0 [3.5, 8.5] with 200" in line
    assert line.endswith("Between 50 and 200 the sign turns: better with 50, worse with 200.")


def test_a_sign_that_intervals_do_not_hold_is_said_of_the_means_alone(study):
    rows = runs((50,))
    for seed, gap in zip(SEEDS, (-9.0, 10.0, 2.0), strict=True):  # 1 ± 23.7
        rows.append(run("none", 200, seed, 20.0 + seed))
        rows.append(run("random", 200, seed, 20.0 + seed + gap))
    errors = amount_of_data.errors_by_amount([study(rows)])
    text = amount_of_data.crossing_text(amount_of_data.differences_by_amount(errors))
    assert "+1.0 [−22.7, 24.7] with 200" in text
    assert "Between 50 and 200 the means change sign, within their intervals: better" in text
    assert "the sign turns" not in text


def test_the_figure_shows_errors_and_differences_of_every_set(study):
    other = [row | {"dataset": "leaves [7 of 9 train]"} for row in runs((70, 300))]
    errors = amount_of_data.errors_by_amount([study([*runs(), *other])])
    figure = amount_of_data.amount_figure(errors)
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == ["letters", "leaves"]
    left, right = figure.axes[:2]
    shown = [line[0].get_ydata().tolist() for line in left.containers]
    means = errors[errors["data"] == "letters"].groupby(["arm", "images"])["test_error"].mean()
    assert sorted(shown) == sorted([list(means[arm]) for arm in ("none", "random", VOTE)])
    assert [-6.0, 6.0] in [line[0].get_ydata().tolist() for line in right.containers]
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["50", "200"]
    with pytest.raises(ValueError, match="errors: got an empty table"):
        amount_of_data.amount_figure(errors.iloc[:0])
