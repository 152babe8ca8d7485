"""The robustness figures and sentences show the numbers of the table, and only these."""

import json

import numpy as np
import pytest

from rapa_lib.experiments.adversarial_robustness import AdversarialRobustness
from rapa_lib.experiments.adversarial_robustness.answer import robustness_answer
from rapa_lib.experiments.adversarial_robustness.figures import (
    MOST_EXAMPLES,
    draws_figure,
    examples_figure,
    robustness_figure,
)
from rapa_lib.experiments.adversarial_robustness.page import collect
from rapa_lib.experiments.adversarial_robustness.tables import (
    differences_summary,
    robustness_summary,
    rows_by_image,
    strongest,
    strongest_by_seed,
)
from rapa_lib.experiments.plots import save_figure
from rapa_lib.instruments.statistics import crossed_contrast, crossed_interval

N_IMAGES = 40
CLEAN = {"none": 0.9, "random": 0.8}
# Robust accuracy at ε = 0.1, by level: under attacks that know of the draws, RAPA's lead is half.
LEFT = {
    "none": {"published": 0.4, "adaptive": 0.3},
    "random": {"published": 0.6, "adaptive": 0.4},
}


def shares(mean, seed):
    """Values whose mean is as wanted, different for every image and seed."""
    wave = 0.1 * np.sin(np.arange(N_IMAGES) * (seed + 1))
    return (mean + wave - wave.mean()).round(6).tolist()


def test_networks_whose_tiles_were_averaged_are_told_apart():
    records = [record("random", 0), record("random", 0) | {"sync_every": 4, "run": "averaged"}]
    records[1]["config"] = {**records[1]["config"], "sync_every": 4}
    found = strongest_by_seed(rows_by_image(records))
    per = found.groupby(["level", "norm", "epsilon"])["sync_every"].apply(sorted)
    assert per.tolist() == [[0, 4]] * len(per)


def attack_row(level, attack, norm, epsilon, correct, clean, **changes):
    row = {
        "level": level, "attack": attack, "norm": norm, "epsilon": epsilon, "purpose": "suite",
        "draws": 8, "steps": 20, "n_images": N_IMAGES, "correct": correct, "clean": clean,
        "norms": None, "median_norm": None, "robust_accuracy": float(np.mean(correct)),
    }  # fmt: skip
    return row | changes


def record(tiling, seed, alarms=()):
    clean, left = shares(CLEAN[tiling], seed), LEFT[tiling]
    draws = 8 if tiling == "random" else 1
    small = [0.3 if i % 4 else 0.05 for i in range(N_IMAGES)]
    rows = [
        attack_row("published", "FGSM", "linf", 0.1, shares(left["published"], seed), clean),
        attack_row("published", "FGSM", "linf", 0.2, shares(0.2, seed), clean),
        attack_row("adaptive", "from merged", "linf", 0.1, shares(0.7, seed), clean),
        attack_row("adaptive", "PGD", "linf", 0.1, shares(left["adaptive"], seed), clean,
                   draws=draws),
        attack_row("adaptive", "PGD", "linf", 0.2, shares(0.15, seed), clean, draws=draws),
        attack_row("adaptive", "FMN", "linf", None, [0.0] * N_IMAGES, clean, norms=small,
                   median_norm=0.3 if tiling == "none" else None),
        attack_row("adaptive", "PGD", "linf", 0.1, shares(0.25, seed), clean, purpose="restarts"),
    ]  # fmt: skip
    if tiling == "random":
        for m, mean in ((1, 0.45), (16, 0.38)):
            rows.append(
                attack_row("adaptive", "PGD", "linf", 0.1, shares(mean, seed), clean, draws=m,
                           purpose="draws")
            )  # fmt: skip
    picture = np.full((2, 4, 4, 3), 100).tolist()
    return {
        "dataset": "digits", "tiling": tiling, "n_tiles": "4-2-1", "tile_init": "identical",
        "pooling": "max", "epochs": 4, "seed": seed, "rows": rows, "alarms": list(alarms),
        "activation": "relu", "normalisation": "batch", "tile_lr_power": 1.0,
        "run": f"{tiling}-{seed}",
        "noise": {}, "config": {"tiling": tiling, "seed": seed},
        "measurement": AdversarialRobustness().settings()
        | {"focus": 0.1, "judge_draws": 3, "images": N_IMAGES},
        "examples": {
            "labels": ["one", "two"], "clean": picture, "perturbed": picture,
            "clean_answers": ["one", "two"], "perturbed_answers": ["two", "two"],
            "withstood": [0.2, 1.0],
        },
    }  # fmt: skip


def records(seeds=(0, 1), alarms=()):
    return [record(tiling, seed, alarms) for tiling in ("random", "none") for seed in seeds]


def lines(axes):
    """By label: (places, means, half widths) of the error bars of a panel."""
    axes.figure.draw_without_rendering()
    found = {}
    for container in axes.containers:
        line, _, bars = container.lines
        segments = bars[0].get_segments()
        ends = [(low, high) for (_, low), (_, high) in segments]
        found[container.get_label()] = (line.get_xdata(), line.get_ydata(), ends)
    return found


def test_the_strongest_attack_of_each_level_counts():
    found = strongest(rows_by_image(records())).set_index(["label", "level", "epsilon"])
    assert found.loc[("random", "published", 0.1), "attack"] == "FGSM"
    at = found.loc[("random", "adaptive", 0.1)]
    assert at["attack"] == "PGD"
    assert at["mean"] == pytest.approx(0.4)
    assert found.loc[("none", "adaptive", 0.1), "mean"] == pytest.approx(0.3)
    weak = records()
    for one in weak:
        one["rows"] = [row for row in one["rows"] if row["attack"] != "PGD"]
        one["rows"].append(
            attack_row("adaptive", "PGD", "linf", 0.1, [0.9] * N_IMAGES, one["rows"][0]["clean"])
        )
    found = strongest(rows_by_image(weak)).set_index(["label", "level", "epsilon"])
    # Every fourth image is misled by a perturbation of 0.05; at 0.1 the others are clean.
    at = found.loc[("none", "adaptive", 0.1)]
    assert at["attack"] == "FMN"
    withstood = [np.where(np.arange(N_IMAGES) % 4, shares(0.9, s), 0) for s in (0, 1)]
    assert at["mean"] == pytest.approx(np.mean(withstood))


def test_the_curves_are_means_and_intervals_over_images_and_seeds():
    figure = robustness_figure(rows_by_image(records()))
    published, adaptive = figure.axes
    drawn = lines(adaptive)
    assert set(drawn) == {"none", "random"}
    places, means, ends = drawn["random"]
    assert means == pytest.approx([80, 40, 15])
    assert [round(x) for x in places] == [0, 1, 2]
    _, low, high = crossed_interval([shares(0.4, 0), shares(0.4, 1)])
    assert ends[1][0] <= 100 * low + 1e-9
    assert ends[1][1] >= 100 * high - 1e-9
    assert lines(published)["none"][1] == pytest.approx([90, 40, 20])
    assert published.get_shared_y_axes().joined(published, adaptive)
    assert published.get_shared_x_axes().joined(published, adaptive)
    assert "images and seeds" in figure.get_suptitle()
    assert "and seeds" not in robustness_figure(rows_by_image(records((0,)))).get_suptitle()


def test_the_curve_over_draws_has_every_number_once():
    figure = draws_figure(rows_by_image(records()))
    (axes,) = figure.axes
    places, means, _ = lines(axes)["random"]
    names = dict(
        zip(axes.get_xticks(), (t.get_text() for t in axes.get_xticklabels()), strict=True)
    )
    assert [names[round(x)] for x in places] == ["1", "8", "16"]
    assert means == pytest.approx([45, 40, 38])
    # What does not draw has one gradient: its point stands apart, and its line goes through all.
    places, means, _ = lines(axes)["none"]
    assert [names[round(x)] for x in places] == ["does not\ndraw"]
    assert means == pytest.approx([30])
    dotted = [
        line for line in axes.lines if line.get_linestyle() == ":" and len(line.get_xdata()) == 2
    ]
    assert [line.get_ydata()[0] for line in dotted] == pytest.approx([30])


def test_without_projected_descent_the_figure_over_draws_says_so():
    bare = records()
    for one in bare:
        one["rows"] = [row for row in one["rows"] if row["attack"] != "PGD"]
    (words,) = draws_figure(rows_by_image(bare)).texts
    assert "was not run" in words.get_text()


def test_networks_differ_in_more_than_their_colour():
    axes = robustness_figure(rows_by_image(records())).axes[0]
    drawn = [container.lines[0] for container in axes.containers]
    assert len({(line.get_marker(), line.get_linestyle()) for line in drawn}) == len(drawn) == 2


def test_examples_show_every_network_once():
    figure = examples_figure(records())
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["one", "two", *["two\n✗ 20 %", "two\n✓ 100 %"] * 2]
    assert [axes.title.get_color() for axes in figure.axes[2:4]] == ["tab:red", "tab:green"]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["clean", "none", "random"]
    assert "networks" not in figure.get_suptitle()
    many = [one | {"tiling": f"t{i}"} for i, one in enumerate(4 * records()[:2])]
    crowd = examples_figure(many)
    assert len(crowd.axes) == 2 * (1 + MOST_EXAMPLES)
    assert crowd.get_suptitle().replace("\n", " ").endswith(f"{MOST_EXAMPLES} of 8 networks")
    bare = [one | {"examples": {}} for one in records()]
    assert "No examples" in examples_figure(bare).texts[0].get_text()


def test_the_summary_has_one_row_per_configuration():
    summary = robustness_summary(rows_by_image(records())).set_index("network")
    assert summary.index.tolist() == ["none", "random"]
    assert summary.loc["none", "clean"].startswith("90.0 [")
    assert summary.loc["random", "adaptive, L∞ 25.5/255"].startswith("40.0 [")
    assert summary.loc["random", "adaptive, L∞ 25.5/255"].endswith("(PGD)")
    assert summary.loc["none", "median L∞ norm, FMN"] == "76.50/255, 76.50/255"
    assert summary.loc["random", "median L∞ norm, FMN"] == "∞, ∞"


def answer(some):
    return robustness_answer(rows_by_image(some), some)


def test_a_lead_that_grows_with_the_attack_is_no_share_that_is_left(monkeypatch):
    monkeypatch.setitem(LEFT, "none", {"published": 0.5, "adaptive": 0.1})
    _, published, _ = answer(records())
    assert "more than `none`, and more under adaptive attacks" in published
    assert "is left" not in published


def test_the_answer_has_the_intervals_of_the_claims():
    adaptive, published, alarms = answer(records())
    gap = crossed_contrast([[shares(share, s) for s in (0, 1)] for share in (0.6, 0.4)], (1, -1))
    gap = (gap.estimate, *gap.interval())
    text = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in gap))
    assert adaptive.startswith(
        "**Under adaptive attacks with ε = 25.5/255 (L∞), `random` keeps +10.0"
    )
    assert f"Under published attacks, `random` keeps {text} points more than `none`" in published
    assert "of which 50 % is left under adaptive attacks" in published
    assert "On clean images: `random` -10.0 [" in published
    assert alarms == "None of 0 checks for gradients that mislead raised an alarm."
    (row,) = differences_summary(rows_by_image(records()), 0.1).to_dict("records")
    assert (row["network"], row["published"]) == ("random", text)
    assert "gradient-free" not in row  # no such attack was run


def test_the_answer_compares_random_with_plain_noise(monkeypatch):
    monkeypatch.setitem(CLEAN, "noisy", 0.6)
    monkeypatch.setitem(LEFT, "noisy", {"published": 0.5, "adaptive": 0.35})
    both = [*records(), *(record("noisy", seed) for seed in (0, 1))]
    expected = "Against `noisy`, `random` keeps under adaptive attacks (points): ε = 25.5/255 +5.0"
    assert expected in answer(both)[1]
    assert len(answer(both)) == 3
    assert "Against `noisy`" not in " ".join(answer(records()))


def test_the_answer_says_so_where_there_is_no_lead(monkeypatch):
    monkeypatch.setitem(LEFT, "random", {"published": 0.2, "adaptive": 0.3})
    adaptive, published, _ = answer(records())
    assert "`random` keeps less than `none`: -20.0" in published
    assert "`random` cannot be told from `none`: +0.0" in adaptive
    assert "is left" not in published


def test_a_single_network_is_compared_with_nothing_and_alarms_are_listed():
    alarm = {"check": "more steps help", "holds": False, "detail": "+9"}
    one = [record("random", 0, [alarm, alarm | {"holds": None}])]
    levels, alarms = answer(one)
    assert levels.startswith("`random`: clean 80.0 [")
    assert "published 60.0 [" in levels
    assert "adaptive 40.0 [" in levels
    assert "`none`" not in levels
    assert alarms == "1 of 1 checks for gradients that mislead raised an alarm."
    page = collect(one)
    assert "- **Warning**, `random`, seed 0: not so that more steps help (+9)" in page.body
    assert "No network draws." in page.body
    strength = (
        "Strength: *published* one gradient of one draw; *adaptive* 20 steps, gradients averaged "
        "over draws: 8, starts at one budget: 2. Networks that draw nothing take one draw."
    )
    assert strength in page.body


def test_the_page_says_how_strong_the_standard_suite_was():
    one = record("random", 0)
    one["measurement"] |= {"levels": ["gradient_free", "standard"], "apgd_draws": 7}
    (line,) = [line for line in collect([one]).body if line.startswith("Strength: ")]
    assert (
        "*gradient_free* 5,000 queries of Square; *standard* APGD of 100 steps and Square" in line
    )
    assert "averaged over draws: 7, starts: 1, classes aimed at: 3." in line


def test_without_a_lead_or_with_many_networks_the_answer_has_at_most_three_lines(monkeypatch):
    many = records()
    for one in records():
        many.append(one | {"n_tiles": "8-4-2", "config": one["config"] | {"n_tiles": "8-4-2"}})
    for some in (many, [one for one in many if one["tiling"] == "random"]):
        assert 1 <= len(collect(some).answer) <= 3


def test_figures_are_written_the_same_each_time(tmp_path):
    table = rows_by_image(records())
    for name, figure in (("a", robustness_figure(table)), ("b", robustness_figure(table))):
        save_figure(figure, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert json.dumps(records()[0])
