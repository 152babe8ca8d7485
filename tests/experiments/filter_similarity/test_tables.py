"""Filter similarity's tables are its records, and its answers say what the tables say."""

import numpy as np
import pandas as pd
import pytest
from similarity_rows import (
    SETTING,
    TILINGS,
    penalty_table,
    pull_table,
    scales_table,
    similarity_table,
)

from rapa_lib.experiments.filter_similarity import EXPERIMENT, tables
from rapa_lib.experiments.filter_similarity.page import filters_shown
from rapa_lib.experiments.filter_similarity.pull_tables import pull_answer, pull_summary
from rapa_lib.experiments.filter_similarity.tables import (
    NO_PENALTY,
    NO_THEOREM,
    contrast,
    contrast_summary,
    most_common,
    penalty_agreement,
    penalty_answer,
    penalty_summary,
    similarity_answer,
    similarity_summary,
    with_expectation,
    with_varied,
    within_errors,
)
from rapa_lib.instruments.statistics import mean_interval


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
    assert "(+0.500 in training)" in similarity_answer(table)[0]
    table = table[table["epoch"] == 2]
    assert similarity_summary(table)["rise in training"].tolist() == ["–", "–"]
    assert "in training" not in "".join(similarity_answer(table))


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
    assert contrast_summary(both)[column].tolist() == sorted(both[column].astype(str).unique())
    level, compared = similarity_answer(both)
    assert "0.550 to 0.900 from an independent start" in level
    assert "`image` +0.000 to +0.400 (1 more alike, 1 undecided)" in compared


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
    table = final([others, random])
    level, judged = similarity_answer(table)
    difference = np.subtract(random, others)
    assert judged.startswith("**C2b**")
    assert f"`image` {difference.mean():+.3f} (1 {verdict})" in judged
    (row,) = contrast_summary(table).to_dict("records")
    assert (row["layer"], row["compared"]) == ("a", "random − image")
    assert (row["difference"], row["verdict"]) == (f"{difference.mean():+.3f}", verdict)
    assert row["seeds"] == len(random)
    if len(random) == 1:
        assert judged.endswith("; one pair of seeds, no interval.")
        assert row["95 % interval"] == "–"
    else:
        _, low, high = mean_interval(difference)
        assert judged.endswith("; 95 % intervals over 3 seeds.")
        assert row["95 % interval"] == f"{low:+.3f} to {high:+.3f}"
    assert f"`random` networks ends with a mean cosine of {np.mean(random):.3f} from" in level
    assert f"({np.mean(random) - 0.05:+.3f} in training)" in level


def test_networks_that_draw_assignments_are_what_the_answer_speaks_of_where_there_are_any():
    table = final([[0.1], [0.5]])
    assert set(with_expectation(table)["tiling"]) == {"random"}
    alone = table[table["tiling"] == "image"]
    assert set(with_expectation(alone)["tiling"]) == {"image"}
    (line,) = similarity_answer(alone)
    assert "of `image` networks ends with a mean cosine of 0.100 from" in line
    assert similarity_answer(table[:0]) == [tables.NO_TILES]


def test_penalties_agree_within_ten_percent_or_two_standard_errors():
    rows = pd.DataFrame(
        [(1.0, 1.09, 0.0, 0.0), (1.0, 1.11, 0.0, 0.0), (1.0, 1.9, 0.3, 0.4), (1.0, 2.1, 0.3, 0.4)],
        columns=["predicted", "measured", "measured_error", "predicted_error"],
    )
    assert within_errors(rows).tolist() == [True, False, True, False]


def test_the_penalty_s_answer_is_computed():
    table = penalty_table(measured=0.1, measured_error=0.0)
    text = penalty_answer(table, [0.5, -0.25, 0.75])
    assert text.startswith("At the smallest deviations 0 of 2 measured penalties agree")
    assert "deviations × 0.5; tanh, avg pooling, batch normalisation; median ratio 7.67)" in text
    assert text.endswith("the deviations: -0.25 to 0.75 over 3 layers.")
    # Measured 0.1 over predicted 0.2 and 0.03, and over a quarter of each.
    half, whole = penalty_summary(table).to_dict("records")
    assert (whole["deviations ×"], whole["measured / predicted"]) == ("1", "1.92")
    assert (whole["from, to"], whole["agree"]) == ("0.50, 3.33", "0 of 2")
    assert (half["measured / predicted"], half["from, to"]) == ("7.67", "2.00, 13.33")


def test_every_kind_of_network_is_answered_for_at_its_smallest_deviations():
    gelu = penalty_table(scales=(0.25,), activation="gelu", run="two")
    text = penalty_answer(pd.concat([penalty_table(), gelu]), [])
    assert "deviations × 0.5; tanh, avg pooling" in text
    assert "deviations × 0.25; gelu, avg pooling" in text
    assert "no theorem" not in text


def test_agreement_is_claimed_only_where_the_penalty_is_a_theorem():
    """What disagrees there counts nowhere, and neither does what agrees."""
    relu = penalty_table(activation="relu", pooling="max", applies=False, run="two", measured=-9.0)
    both = pd.concat([penalty_table(), relu])
    text = penalty_answer(both, [])
    assert text == penalty_answer(penalty_table(), [])[:-1] + (
        "; R is no theorem for 1 more of the networks."
    )
    assert "below zero" not in text
    pd.testing.assert_frame_equal(penalty_agreement(both), penalty_agreement(penalty_table()))
    assert penalty_answer(relu, [0.5]) == NO_THEOREM
    assert len(penalty_summary(relu)) == 0
    assert penalty_answer(relu[:0], []) == NO_PENALTY


def test_agreement_and_negative_penalties_are_counted():
    within = penalty_answer(penalty_table(scales=(1.0,)), [])
    assert "2 of 2 measured penalties agree with the predicted ones within 10 % or two" in within
    assert "below zero" not in within
    table = penalty_table(scales=(1.0,), sign=-1.0)
    negative = penalty_answer(table, [])
    assert "deviations 0 of 2 measured" in negative
    assert "; 2 below zero" in negative
    (row,) = penalty_agreement(table).to_dict("records")
    assert (row["layers"], row["agree"], row["below_zero"]) == (2, 0, 2)


def test_penalties_of_equal_tiles_have_no_ratio():
    table = penalty_table(scales=(1.0,), predicted=0.0, measured=0.0)
    text = penalty_answer(table, [0.0, 0.0])
    assert "deviations 2 of 2 measured" in text
    assert "no penalty is predicted, the tiles being equal" in text
    assert "nan" not in text
    assert "0.00 to 0.00 over 2 layers" in text
    assert penalty_summary(table)["measured / predicted"].tolist() == ["–"]
    row = penalty_table(scales=(1.0,))
    row.loc[row["layer"] == "b", ["predicted", "measured"]] = 0.0
    text = penalty_answer(row, [])
    assert "deviations 2 of 2" in text
    assert "median ratio 1.05" in text


# --- The pull ---------------------------------------------------------------------------------


def test_the_pull_s_answer_is_of_the_last_epoch_by_hand():
    """random ends at 0.701 to 0.729 in layer a and b, 0.1 above image in every seed."""
    text = pull_answer(pull_table())
    assert "the pull on the tiles of `random` networks at the end of training is 701.00 to" in text
    assert (
        "to 729.00 thousandths of a nat, above zero by more than two standard errors in 6" in text
    )
    assert "in 6 of 6 layers" in text
    assert "minus that of `image` +100.00 (2 greater), by 95 % intervals over seeds." in text
    table = pull_table()
    table.loc[table["tiling"] == "random", "pull"] *= -1
    text = pull_answer(table)
    assert "in 0 of 6 layers" in text
    assert "(2 smaller)" in text
    assert "(2 undecided), one pair of seeds." in pull_answer(pull_table(seeds=(0,)))
    assert "minus" not in pull_answer(pull_table(tilings=("random",)))
    assert pull_answer(pull_table()[:0]) == ""


def test_the_pull_s_summary_by_hand():
    """0.601, 0.605, 0.609 in layer a: mean 0.605 ± 4.3027 · 0.004 / √3 = 0.0099."""
    summary = pull_summary(pull_table())
    assert summary["tiling"].tolist() == ["image"] * 2 + ["random"] * 2
    first = summary.iloc[0]
    assert (first["layer"], first["P"], first["seeds"]) == ("a", "605.00 ± 9.94", "3")
    assert (first["of kernels"], first["‖δ‖²"]) == ("604.50 ± 9.94", "2.00 ± 0.00")
    unknown = pull_summary(pull_table().assign(push=np.nan))
    assert unknown["noise's push"].tolist() == ["–"] * 4


# --- From records -----------------------------------------------------------------------------


def own_rows(table):
    """The rows of a table without the labels that a record has."""
    names = [n for n in table if n not in (*tables.COLUMNS, "run")]
    return table[names].to_dict("records")


def record(run="a", tiling="random", penalty=None, **config):
    """A record of a layer at two epochs, the later one first."""
    rows = similarity_table((0,), ("independent",), ("random",))
    rows = rows[(rows["layer"] == "a") & (rows["epoch"] > 0)]
    own = ["layer", "layer_tiles", "epoch", "between_tiles", "within_tile", "variance_ratio"]
    own += ["cka", "cka_chance", "matched", "matched_chance"]
    penalties = penalty_table()[
        ["layer", "scale", "measured", "measured_error", "predicted", "applies"]
    ]
    return SETTING | {
        "tiling": tiling, "tile_init": "independent", "seed": 0, "run": run, "git_commit": "c",
        "data_fingerprint": "f", "config": {"device": "cpu", "mirror": False} | config,
        "similarities": rows[own].to_dict("records"), "pulls": {"a": 0.5}, "filters": [run],
        "penalties": penalties.assign(predicted_error=0.1).to_dict("records"),
        "tile_pulls": own_rows(pull_table((0,), ("random",))),
        "scaled_losses": own_rows(scales_table((0,), ("random",))),
    }  # fmt: skip


def test_a_parameter_without_a_column_that_differs_is_in_varied():
    records = [record("a", mirror=True), record("b", device="cuda"), record("c", eval_every=1)]
    varied = [one["varied"] for one in with_varied(records)]
    assert varied == ["mirror True", "mirror False", "mirror False"]
    assert [one["varied"] for one in with_varied(records[1:])] == ["", ""]
    records = [record("a"), record("b", eval_every=2)]  # older records lack it, which says 1
    assert [one["varied"] for one in with_varied(records)] == ["eval_every 1", "eval_every 2"]


def test_arms_that_tuned_their_own_rates_are_compared():
    own = {"random": (0.1, 0.7), "image": (0.02, 0.2)}
    records = []
    for tiling, (rate, power) in own.items():
        for seed in (0, 1):
            given = {"tiling": tiling, "learning_rate": rate, "tile_lr_power": power}
            made = record(f"{tiling}-{seed}", **given) | {"seed": seed, "tiling": tiling}
            records.append(made | {"tile_lr_power": power})
    assert {one["varied"] for one in with_varied(records)} == {""}
    table = EXPERIMENT.collect(records).tables["filter_similarity"]
    assert set(contrast(table)["other"]) == {"image"}
    assert set(most_common(table)["tiling"]) == {"random", "image"}
    # What differs within an arm is no matter of tuning.
    records[0]["config"]["learning_rate"] = 0.2
    assert with_varied(records)[0]["varied"] == "learning_rate 0.2"


def test_averaged_tiles_have_columns_of_their_own_where_there_are_any():
    records = [record("a"), record("b", sync_every=4) | {"sync_every": 4}]
    collected = EXPERIMENT.collect(records)
    for name, table in collected.tables.items():
        every = dict(zip(table["run"], table["sync_every"], strict=True))
        assert every == {"a": 0, "b": 4}, name
        assert not table["varied"].any()
    similarity = collected.tables["filter_similarity"]
    assert len(similarity.groupby(tables.settings(similarity))) == 2
    collected.figures["filter_similarity"]()


def test_tables_have_the_records_rows_with_labels_before_them_in_order():
    collected = EXPERIMENT.collect([record("b", "random"), record("a", "image")])
    table = collected.tables["filter_similarity"]
    assert list(table)[: len(tables.COLUMNS)] == list(tables.COLUMNS)
    assert table["tiling"].tolist() == ["image"] * 2 + ["random"] * 2
    assert table["epoch"].tolist() == [1, 2, 1, 2]
    assert set(table["run"]) == {"a", "b"}
    penalties = collected.tables["filter_similarity_penalty"]
    assert penalties["run"].tolist() == ["b"] * 6 + ["a"] * 6
    assert penalties["measured"].tolist() == penalty_table()["measured"].tolist() * 2
    assert len(collected.answer) == 3
    assert collected.answer[-1].startswith("**C2a**: the pull on the tiles of `random` networks")
    assert "deviations 2 of 2" not in collected.answer[-1]  # of two networks
    pulls, scales = (collected.tables[f"filter_similarity_{name}"] for name in ("pull", "scales"))
    assert list(pulls)[: len(tables.COLUMNS)] == list(tables.COLUMNS)
    assert pulls["tiling"].tolist() == ["image"] * 6 + ["random"] * 6
    assert pulls["epoch"].tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert pulls["layer"].tolist() == ["a", "b"] * 6
    own = pull_table((0,), ("random",)).sort_values(["epoch", "layer"])
    assert pulls["pull"].tolist() == own["pull"].tolist() * 2
    assert scales["run"].tolist() == ["b"] * 18 + ["a"] * 18
    assert scales["change"].tolist() == scales_table((0,), ("random",))["change"].tolist() * 2


def test_the_most_common_kind_of_network_is_chosen():
    table = similarity_table().assign(varied="")
    few = similarity_table((0,)).assign(varied="").assign(pooling="max", run="few")
    chosen = most_common(pd.concat([few, table]))
    assert set(chosen["pooling"]) == {"avg"}
    assert len(chosen) == len(table)


def test_filters_are_those_of_the_first_run_of_each_start_and_tiling():
    records = [record("b"), record("a"), record("d", "image"), record("c", pooling="max")]
    main = pd.DataFrame({"run": ["a", "b", "d"], "tiling": ["random", "random", "image"]})
    assert list(filters_shown(records, main).items()) == [
        (("independent start", "image"), ["d"]), (("independent start", "random"), ["b"]),
    ]  # fmt: skip


def test_tables_are_left_alone():
    table, penalties = similarity_table(), penalty_table()
    for make in (similarity_summary, similarity_answer, contrast, contrast_summary):
        make(table)
    penalty_answer(penalties, [0.1])
    penalty_summary(penalties)
    pd.testing.assert_frame_equal(table, similarity_table())
    pd.testing.assert_frame_equal(penalties, penalty_table())
