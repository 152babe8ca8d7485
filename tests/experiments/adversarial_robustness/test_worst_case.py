"""Worst case, frontier, rivals and judges are made of the records' images, and of nothing else."""

import numpy as np
import pandas as pd
import pytest

from rapa_lib.experiments.adversarial_robustness import AdversarialRobustness
from rapa_lib.experiments.adversarial_robustness.answer import robustness_answer
from rapa_lib.experiments.adversarial_robustness.frontier import (
    frontier,
    frontier_figure,
    judges,
    rivals,
)
from rapa_lib.experiments.adversarial_robustness.tables import rows_by_image, strongest
from rapa_lib.experiments.adversarial_robustness.worst_case import WORST, strongest_of

N = 30


def row(attack, correct, held=None, epsilon=0.1, level="standard", seed=0, **changes):
    plain = {
        "level": level, "attack": attack, "norm": "linf", "epsilon": epsilon, "purpose": "suite",
        "seed": seed, "draws": 4, "steps": 5, "n_images": len(correct), "correct": list(correct),
        "held": list(correct if held is None else held), "clean": [1.0] * len(correct),
        "norms": None, "median_norm": None, "robust_accuracy": float(np.mean(correct)),
    }  # fmt: skip
    return plain | changes


def test_the_choice_is_made_by_held_and_judged_by_correct():
    rows = pd.DataFrame([row("A", [0.2, 0.8], [0.9, 0.1]), row("B", [0.5, 0.1], [0.3, 0.6])])
    name, correct, seeds = strongest_of(rows, 0.1)
    assert (name, seeds) == (WORST, (0,))
    assert correct.tolist() == [[0.5, 0.8]]


def test_a_random_classifier_gains_nothing_from_many_attacks():
    rng = np.random.default_rng(0)
    rows = [
        row(f"attack {i}", rng.binomial(10, 0.5, 2000) / 10, rng.binomial(10, 0.5, 2000) / 10)
        for i in range(8)
    ]
    _, correct, _ = strongest_of(pd.DataFrame(rows), 0.1)
    assert abs(correct.mean() - 0.5) < 0.01
    assert np.min([one["correct"] for one in rows], axis=0).mean() < 0.35


def test_minimum_norms_and_attacks_on_fewer_images_count_where_they_may():
    rows = pd.DataFrame(
        [
            row("PGD", [0.9, 0.9, 0.9, 0.9]),
            row("FMN", [0.0] * 4, epsilon=None, norms=[0.05, 0.2, 0.1, 0.3]),
            row("asked", [0.1, 0.1]),
        ]
    )
    _, correct, _ = strongest_of(rows, 0.1)
    assert correct.tolist() == [[0.0, 0.1, 0.0, 0.9]]


def test_old_records_count_the_attack_that_leaves_least():
    rows = pd.DataFrame([row("A", [0.2, 0.8]), row("B", [0.9, 0.0])]).drop(columns="held")
    name, correct, _ = strongest_of(rows, 0.1)
    assert name == "B"
    assert correct.tolist() == [[0.9, 0.0]]


CLEAN = {"none": 0.9, "random": 0.8, "noisy": 0.795}
LEFT = {"none": 0.2, "random": 0.4, "noisy": 0.35}


def shares(mean, seed):
    wave = 0.1 * np.sin(np.arange(N) * (seed + 1))
    return (mean + wave - wave.mean()).round(6).tolist()


def records(tilings=("none", "random", "noisy"), seeds=(0, 1, 2)):
    found = []
    for tiling in tilings:
        for seed in seeds:
            left = shares(LEFT[tiling], seed)
            rows = [row("APGD-CE", shares(LEFT[tiling] + 0.1, seed)), row("APGD-T", left)]
            rows += [row("Square", left), row("PGD", shares(0.6, seed), level="adaptive")]
            if tiling != "none":
                rows.append(row("APGD-T", shares(LEFT[tiling] - 0.2, seed), purpose="frozen"))
            for one in rows:
                one["clean"] = shares(CLEAN[tiling], seed)
                del one["seed"]
            found.append(
                {
                    "dataset": "digits", "tiling": tiling, "n_tiles": "4", "tile_init": "identical",
                    "pooling": "max", "epochs": 4, "seed": seed, "rows": rows, "alarms": [],
                    "activation": "relu", "normalisation": "batch", "tile_lr_power": 1.0,
                    "noise": {}, "config": {"tiling": tiling, "seed": seed}, "examples": {},
                    "measurement": AdversarialRobustness().settings()
                    | {"focus": 0.1, "judge_draws": 3, "images": N},
                }
            )  # fmt: skip
    return found


def test_the_frontier_has_clean_and_robust_accuracy_of_the_standard_suite():
    table = frontier(rows_by_image(records())).set_index("tiling")
    assert set(table["level"]) == {"standard"}
    assert set(table["seeds"]) == {3}
    for tiling in CLEAN:
        assert table.loc[tiling, "clean"] == pytest.approx(CLEAN[tiling], abs=1e-5)
        assert table.loc[tiling, "robust"] == pytest.approx(LEFT[tiling], abs=1e-5)
        assert table.loc[tiling, "robust_low"] < LEFT[tiling] < table.loc[tiling, "robust_high"]
    figure = frontier_figure(rows_by_image(records()))
    drawn = {c.get_label(): c.lines[0].get_xydata()[0] for c in figure.axes[0].containers}
    assert {name: tuple(at) for name, at in drawn.items()} == {
        name: pytest.approx((100 * CLEAN[name], 100 * LEFT[name]), abs=1e-3) for name in CLEAN
    }
    old = rows_by_image(records())
    old = old[old["level"] == "adaptive"]
    assert set(frontier(old)["level"]) == {"adaptive"}


def test_only_networks_of_like_clean_accuracy_are_comparable():
    table = rivals(rows_by_image(records()), 0.1).set_index("against")
    assert table["comparable"].to_dict() == {"none": "no", "noisy": "yes"}
    assert table.loc["noisy", "robust accuracy"].startswith("+5.0 [")
    assert table.loc["none", "clean accuracy"].startswith("-10.0 [")
    assert len(rivals(rows_by_image(records(("none",))), 0.1)) == 0


def test_the_judges_stand_side_by_side_for_networks_that_draw():
    table = judges(rows_by_image(records())).set_index("network")
    assert table.index.tolist() == ["random", "noisy"]
    assert table.loc["random", "fresh draws"].startswith("40.0 [")
    assert table.loc["random", "one fixed draw"].startswith("20.0 [")
    assert len(judges(rows_by_image(records(("none",))))) == 0


def test_the_answer_is_of_the_standard_suite_where_it_was_run():
    some = records()
    first, *rest = robustness_answer(rows_by_image(some), some)
    assert first.startswith("**Under the standard suite with ε = 25.5/255 (L∞), `random` keeps +20")
    assert len(rest) <= 2
    found = strongest(rows_by_image(some))
    found = found[(found["level"] == "standard") & (found["tiling"] == "random")]
    assert found["attack"].tolist() == [WORST]
