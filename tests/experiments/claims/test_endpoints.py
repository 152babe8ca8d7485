"""Samples come from the right rows of the right setting, seed by seed."""

import json

import numpy as np
import pandas as pd
import pytest

from rapa_lib.experiments.claims.endpoints import AmbiguousError, measure, setting_text
from rapa_lib.experiments.claims.evidence import combined, weigh
from rapa_lib.experiments.claims.rules import Arm, Endpoint
from rapa_lib.experiments.claims.tables import Prepared, canonical

NONE, RANDOM = [20.0, 21.0, 19.0, 20.5], [18.0, 19.5, 17.5, 18.0]


def frame(**errors):
    """One row per tiling and seed."""
    return pd.DataFrame(
        {"tiling": tiling, "seed": seed, "test_error": error, "n_tiles": "16-4-1"}
        for tiling, values in errors.items()
        for seed, error in enumerate(values)
    )


def endpoint(**changes):
    known = {
        "endpoint": "random − none",
        "table": "accuracy",
        "of": Arm("test_error", {"tiling": "random"}, name="random"),
        "minus": (Arm("test_error", {"tiling": "none"}, name="none"),),
        "expects": "less",
        "sesoi": 0.5,
    }
    return Endpoint(**known | changes)


def against(tiling):
    return (Arm("test_error", {"tiling": tiling}, name=tiling),)


def found(table, one=None, prefer=None):
    return measure(one or endpoint(), {"accuracy": Prepared(table)}, prefer)[0]


def means(table, one=None):
    """By setting, the difference of the arms' means."""
    return {
        m.setting: m.of.values.mean() - next(iter(m.minus.values())).values.mean()
        for m in found(table, one)
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (float("nan"), ""), (1.0, "1"), (1, "1"), (0.25, "0.25"), (True, "true"),
     ([16, 4, 1], "16-4-1"), ("max", "max"), (pd.NA, ""), (np.float64(0.5), "0.5")],
)  # fmt: skip
def test_a_setting_is_text_that_equals_itself(value, text):
    assert canonical(value) == text


def test_arms_need_not_have_the_same_seeds():
    table = frame(none=NONE, random=RANDOM)
    (one,) = found(table.drop(table.index[0]))
    assert one.of.seeds == (0, 1, 2, 3)
    assert one.minus["none"].values.tolist() == NONE[1:]
    (weighed,) = weigh(endpoint(), one, 3)
    assert (weighed.seeds, weighed.method) == ((4, 3), "pooled")


def test_only_seeds_that_both_have_are_paired_where_a_rule_asks_for_it():
    table = frame(none=NONE, random=RANDOM)
    paired = endpoint(paired="the same networks")
    (weighed,) = weigh(paired, found(table.drop(table.index[0]), paired)[0], 3)
    assert (weighed.seeds, weighed.method) == ((3, 3), "paired")
    assert weighed.estimate == pytest.approx(np.mean([-1.5, -1.5, -2.5]))


@pytest.mark.parametrize(("subset", "rule", "method"), [
    ("seed", True, "paired"), ("seed", False, "pooled"), ("fixed", True, "pooled"),
    (None, True, "pooled"),
])  # fmt: skip
def test_arms_that_share_each_seeds_images_are_paired_where_the_rules_say_so(subset, rule, method):
    table = frame(none=NONE, random=RANDOM)
    if subset:
        table["config"] = [json.dumps({"subset": subset, "seed": int(s)}) for s in table["seed"]]
    (weighed,) = weigh(endpoint(), found(table)[0], 3, pair_subsets=rule)
    assert weighed.method == method
    assert weighed.estimate == pytest.approx(np.mean(RANDOM) - np.mean(NONE))


def test_every_setting_is_found_and_a_control_without_tiles_serves_all():
    table = frame(none=NONE, random=RANDOM)
    table.loc[table["tiling"] == "none", "n_tiles"] = "1-1-1"
    many = table[table["tiling"] == "random"].assign(n_tiles="64-16-4", test_error=30.0)
    assert means(pd.concat([table, many])) == {
        "16-4-1 tiles": pytest.approx(-1.875),
        "64-16-4 tiles": pytest.approx(9.875),
    }


def test_a_control_that_varies_is_compared_setting_by_setting():
    table = frame(image=[30.0, 31.0], random=[20.0, 21.0]).assign(tile_init="identical")
    apart = frame(image=[40.0, 41.0], random=[25.0, 26.0]).assign(tile_init="independent")
    assert means(pd.concat([table, apart]), endpoint(minus=against("image"))) == {
        "identical start": -10.0, "independent start": -15.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tiling", "setting", "values"),
    [
        ("image", "pooling", ("max", "avg")),
        ("none", "pooling", ("max", "avg")),
        ("none", "epochs", (30, 100)),
        ("image", "tile_init", ("identical", "independent")),
        ("image", "n_tiles", ("16-4-1", "64-16-4")),
        ("none", "n_train", (np.nan, 5000)),
    ],
)
def test_no_control_is_one_for_a_setting_in_which_it_was_not_trained(tiling, setting, values):
    table = frame(**{tiling: NONE, "random": RANDOM}).assign(**{setting: values[0]})
    other = table[table["tiling"] == "random"].assign(**{setting: values[1]}, test_error=30.0)
    (difference,) = means(pd.concat([table, other]), endpoint(minus=against(tiling))).values()
    assert difference == pytest.approx(-1.875)


def test_a_rate_that_each_arm_tuned_for_itself_is_no_other_setting():
    table = frame(image=NONE, random=RANDOM).assign(tile_lr_power=1.0, learning_rate=0.05)
    random = table["tiling"] == "random"
    table.loc[random, ["tile_lr_power", "learning_rate"]] = [0.5, 0.1]
    assert list(means(table, endpoint(minus=against("image")))) == [""]


def configured(table, **parameters):
    configs = [json.dumps({"seed": seed} | parameters) for seed in table["seed"]]
    return table.assign(config=configs)


def test_a_control_of_the_same_size_serves_no_other_size():
    table = frame(enlarged=NONE, random=RANDOM)
    table.loc[table["tiling"] == "enlarged", "n_tiles"] = "1-1-1"
    few = configured(table, n_tiles=[16, 4, 1], n_train=None)
    many = frame(random=[25.0] * 4).assign(n_tiles="64-16-4")
    many = configured(many, n_tiles=[64, 16, 4], n_train=None)
    found = means(pd.concat([few, many]), endpoint(minus=against("enlarged")))
    assert found == {"16-4-1 tiles": pytest.approx(-1.875)}


def test_parameters_of_the_runs_tell_rows_apart():
    table = configured(frame(none=NONE, random=RANDOM), momentum=0.9)
    other = configured(frame(none=NONE, random=NONE), momentum=0.5)
    assert means(pd.concat([table, other])) == {
        "momentum 0.9": pytest.approx(-1.875), "momentum 0.5": 0.0,
    }  # fmt: skip


def test_a_parameter_that_older_records_do_not_name_is_the_one_of_the_others():
    old = configured(frame(none=NONE, random=RANDOM), momentum=0.9)
    new = configured(frame(none=NONE, random=RANDOM), momentum=0.9, blur=2).assign(
        seed=lambda rows: rows["seed"] + 10
    )
    (one,) = found(pd.concat([old, new]))
    assert len(one.of.seeds) == 8
    null = configured(frame(none=NONE, random=RANDOM), momentum=0.9, blur=None)
    assert len(found(pd.concat([null, new]))) == 2  # none is a value, too


def test_a_parameter_that_came_later_is_what_it_stands_for():
    plain = configured(frame(none=NONE, random=RANDOM), momentum=0.9)
    averaged = configured(frame(random=NONE), momentum=0.9, sync_every=4)
    found_means = means(pd.concat([averaged, plain]))
    assert found_means == {"sync_every 4": 0.0, "sync_every 0": pytest.approx(-1.875)}


def test_a_parameter_that_is_left_out_beside_runs_of_the_same_seed_is_not_given():
    plain = configured(frame(none=NONE, random=RANDOM), momentum=0.9)
    dropped = configured(frame(none=RANDOM), momentum=0.9, blur=2)
    (one,) = found(pd.concat([plain, dropped]))
    assert one.minus["none"].values.tolist() == NONE


def test_noise_is_no_setting_of_tilings_without_it():
    table = configured(frame(none=NONE, random=RANDOM), noise=None)
    table.loc[1::2, "config"] = json.dumps({"noise": [0.9, 0.9, 0]})
    assert list(means(table)) == [""]


def test_a_dropout_rate_is_no_setting_of_tilings_without_it():
    table = configured(frame(none=NONE, random=RANDOM), dropout=0.1)
    table.loc[1::2, "config"] = json.dumps({"dropout": 0.3})
    assert list(means(table)) == [""]


def test_rows_that_nothing_tells_apart_are_no_sample():
    table = frame(none=NONE, random=RANDOM)
    with pytest.raises(AmbiguousError, match="several rows of random in accuracy have the same"):
        found(pd.concat([table, table]))


def test_a_rival_with_several_values_of_what_it_may_have_tuned_is_none():
    table = frame(none=NONE, random=RANDOM).assign(weight_decay=np.nan)
    table.loc[table["tiling"] == "none", "weight_decay"] = [0.1, 0.1, 0.2, 0.2]
    assert found(table) == []
    table.loc[table["tiling"] == "none", "weight_decay"] = 0.1
    assert len(found(table)) == 1


def test_what_is_not_there_is_said():
    tables = {"accuracy": Prepared(frame(none=NONE, image=RANDOM))}
    assert measure(endpoint(), {}) == ([], "no table accuracy")
    assert measure(endpoint(), tables)[1] == "accuracy has no rows with tiling random"
    luck = endpoint(of=Arm("luck"))
    assert measure(luck, tables)[1] == "accuracy has no rows with a column luck"
    image = endpoint(of=Arm("test_error", {"tiling": "image"}), minus=against("noisy"))
    assert measure(image, tables)[1] == "accuracy has no rows of noisy to compare with"


def test_draws_of_one_seed_are_pooled_and_shares_become_percent():
    table = pd.DataFrame(
        {"seed": [0, 0, 1, 1], "fault_draw": [0, 1, 0, 1], "test_error": [1.0, 3.0, 5.0, 9.0]}
    )
    alone = endpoint(of=Arm("test_error"), minus=(), over=("fault_draw",), times=100)
    (one,) = found(table, alone)
    assert one.of.values.tolist() == [200.0, 700.0]


def test_first_and_last_are_of_each_run():
    table = pd.DataFrame(
        {"run": ["a", "a", "a", "b", "b"], "seed": [0, 0, 0, 1, 1],
         "epoch": [0, 1, 2, 0, 5], "alike": [0.1, 0.2, 0.4, 0.0, 0.5]}
    )  # fmt: skip
    first = Arm("alike", {"epoch": "first"})
    rise = endpoint(of=Arm("alike", {"epoch": "last"}, less=first), minus=(), over=("epoch",))
    (one,) = found(table, rise)
    assert one.of.values == pytest.approx([0.3, 0.5])


def test_agreement_is_the_factor_between_two_columns_over_rows_that_have_both():
    table = pd.DataFrame(
        {"seed": [0, 0, 0], "layer": ["a", "b", "all"], "measured": [2.0, 9.0, 99.0],
         "predicted": [1.0, 4.0, np.nan]}
    )  # fmt: skip
    slope = endpoint(
        of=Arm("measured"), minus=(), over=("layer",), pool="slope", against="predicted",
        expects="alike", sesoi=None, within=(0.8, 1.25),
    )  # fmt: skip
    (one,) = found(table, slope)
    assert one.of.values == pytest.approx([(2 * 1 + 9 * 4) / (1 + 16)])


def test_the_reach_is_the_largest_number_up_to_which_all_is_true():
    table = pd.DataFrame({"n_tiles": [64, 4, 256, 16], "fast": [False, True, True, True]})
    reach = endpoint(
        of=Arm("fast"), minus=(), over=("n_tiles",), pool="reach", expects="at_least", bound=16,
        sesoi=None,
    )  # fmt: skip
    assert [one.exact for one in found(table, reach)] == [16.0]
    assert [one.exact for one in found(table.assign(fast=False), reach)] == [0.0]


def with_subsets(pairs):
    rows = [(t, s, u) for t in ("none", "random") for s, u in pairs]
    table = pd.DataFrame(rows, columns=["tiling", "seed", "subset"])
    return table.assign(test_error=np.random.default_rng(0).normal(20, 1, len(table)))


def test_seeds_and_subsets_are_two_factors_where_they_cross_and_one_where_they_do_not():
    (own,) = found(with_subsets([(s, s) for s in range(4)]))
    assert own.of.values.shape == (4,)
    (crossed,) = found(with_subsets([(s, u) for s in range(3) for u in range(4)]))
    assert (crossed.of.values.shape, crossed.of.across) == ((3, 4), tuple("0123"))
    assert weigh(endpoint(), crossed, 3)[0].method == "crossed"
    table = with_subsets([(2 * u + s, u) for u in range(3) for s in range(2)])
    (nested,) = found(table)
    random = table[table["tiling"] == "random"]
    assert nested.of.values == pytest.approx(random.groupby("subset")["test_error"].mean())


def test_images_are_a_second_factor_where_the_table_has_their_answers():
    rng = np.random.default_rng(0)
    table = frame(none=NONE, random=RANDOM)
    table["correct"] = [json.dumps(rng.integers(0, 2, 30).tolist()) for _ in range(len(table))]
    (one,) = found(table, endpoint(images="correct", times=100))
    (weighed,) = weigh(endpoint(images="correct"), one, 3)
    assert (one.of.values.shape, weighed.method) == ((4, 30), "crossed")
    assert found(table.drop(columns="correct"), endpoint(images="correct"))[0].of.across == ()


def test_settings_are_in_the_order_of_preference_then_of_seeds():
    table = frame(none=NONE, random=RANDOM).assign(pooling="avg")
    other = table.assign(pooling="max")
    fewer = table[table["seed"] < 3].assign(pooling="mixed")
    all_three = pd.concat([fewer, table, other])
    order = [one.key["pooling"] for one in found(all_three)]
    assert order == ["avg", "max", "mixed"]
    order = [one.key["pooling"] for one in found(all_three, prefer={"pooling": ["max", "mixed"]})]
    assert order == ["max", "mixed", "avg"]


def test_against_several_the_largest_p_holds_and_the_smallest_times_their_number_refutes():
    rivals = (*against("none"), *against("image"))
    one = endpoint(minus=rivals)
    (found_,) = found(frame(none=NONE, random=RANDOM, image=[17.0, 18.5, 17.0, 17.4]), one)
    each = weigh(one, found_, 3)
    whole = combined(one, found_, each)
    assert whole.rival == "image"
    assert whole.p_holds == max(e.p_holds for e in each)
    assert whole.p_refuted == 2 * min(e.p_refuted for e in each)
    assert whole.p_equal == max(e.p_equal for e in each)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("epsilon", canonical(2 / 255), "ε = 2/255"), ("epsilon", "0.3", "ε = 0.3"),
     ("n_train", "", "n_train not given"), ("n_tiles", "16-4-1", "16-4-1 tiles"),
     ("layer", "features.0.0", "features.0.0")],
)  # fmt: skip
def test_settings_are_told_in_words(name, value, text):
    assert setting_text(name, value) == text
