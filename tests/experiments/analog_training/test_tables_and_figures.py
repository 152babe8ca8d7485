"""The analog figures and sentences show the numbers of the table, and only these."""

import pandas as pd
import pytest

from rapa_lib.experiments.analog_training.figures import analog_figure, imperfection_figure
from rapa_lib.experiments.analog_training.tables import (
    analog_answer,
    analog_summary,
    imperfection_curves,
)
from rapa_lib.experiments.plots import save_figure
from rapa_lib.instruments.statistics import mean_interval

ERRORS = {"digital": 10.0, "hardware_aware": 12.0, "analog": 20.0}
VARIED = {("out_noise", 0.3): 15.0, ("bits", 5.0): 2.0, ("bits", 3.0): 40.0}


def tables(seeds=(0, 1, 2)):
    rows, inference = [], []
    for tiling, worse in (("random", 5.0), ("none", 0.0)):
        for seed in seeds:
            common = {
                "dataset": "digits", "epochs": 3, "seed": seed, "tiling": tiling,
                "baseline_out_noise": 0.06, "baseline_bits": 7.0, "diverged": False,
            }  # fmt: skip
            spread = 0.5 * seed
            for method, error in ERRORS.items():
                rows.append(
                    common
                    | {"method": method, "imperfection": "baseline", "value": None,
                       "test_error": error + worse + spread, "seconds": 7.0}
                )  # fmt: skip
            for (name, value), more in VARIED.items():
                error = ERRORS["analog"] + worse + spread + more + seed
                rows.append(
                    common
                    | {"method": "analog", "imperfection": name, "value": value,
                       "test_error": error, "seconds": 9.0}
                )  # fmt: skip
            for level in (0.0, 0.12):
                inference.append(
                    common
                    | {"method": "digital", "out_noise": level,
                       "test_error": 10 + worse + 100 * level + spread}
                )  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(inference)


def curves(axes):
    axes.figure.draw_without_rendering()
    return [
        (container.lines[0].get_xdata().tolist(), container.lines[0].get_ydata().tolist())
        for container in axes.containers
    ]


def test_the_curves_against_read_noise_are_means_over_seeds():
    left, right = analog_figure(*tables()).axes
    assert left.get_shared_y_axes().joined(left, right)
    places, means = curves(left)[0]
    assert ([round(x) for x in places], means) == ([0, 1, 2], [10.5, 12.5, 20.5])
    assert sorted(curves(right)) == [([0.0, 0.12], [10.5, 22.5]), ([0.0, 0.12], [15.5, 27.5])]
    assert [t.get_text() for t in left.get_xticklabels()] == [
        "digital", "hardware-\naware", "analog",
    ]  # fmt: skip


def test_one_level_of_read_noise_is_named_on_an_axis_from_zero():
    table, inference = tables()
    _, right = analog_figure(table, inference[inference["out_noise"] == 0.12]).axes
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["0.12"]
    assert right.get_xlim() == (0, 0.24)


def test_the_baseline_stands_in_its_place_among_the_values():
    table, _ = tables()
    line = imperfection_curves(table[table["tiling"] == "none"], "bits")
    assert line.groupby("value")["test_error"].mean().to_dict() == {3.0: 61.5, 5.0: 23.5, 7.0: 20.5}
    figure = imperfection_figure(table)
    noise, bits = figure.axes
    assert sorted(curves(bits)) == [
        ([3.0, 5.0, 7.0], [61.5, 23.5, 20.5]), ([3.0, 5.0, 7.0], [66.5, 28.5, 25.5])
    ]  # fmt: skip
    assert noise.lines[-1].get_xdata()[0] == 0.06
    low, high = bits.get_xlim()
    assert low < 3 < 7 < high
    none = table[table["imperfection"] == "baseline"]
    assert "No imperfection was varied" in imperfection_figure(none).texts[0].get_text()


def test_the_summary_has_paired_differences():
    summary = analog_summary(tables()[0])
    assert len(summary) == 2 * (3 + 3)
    assert summary["imperfection"].tolist()[:6] == ["baseline"] * 6
    row = summary[(summary["value"] == "3") & (summary["tiling"] == "none")].iloc[0]
    mean, low, _ = mean_interval([40.0, 41.0, 42.0])
    assert row["above baseline"] == f"{mean:+.2f} ± {mean - low:.2f}"
    assert row["seeds"] == 3


def test_where_the_baseline_is_all_nothing_empty_is_shown():
    table, inference = tables()
    plain = table[table["imperfection"] == "baseline"]
    assert "value" not in analog_summary(plain)
    assert "above baseline" not in analog_summary(plain)
    assert len(analog_figure(plain, inference.iloc[:0]).axes) == 1


def test_the_answer_names_what_costs_most():
    analog, aware, worst = analog_answer(tables()[0])
    assert analog.startswith(
        "**Against digital training, analog training costs `none` +10.00 ± 0.00 points "
        "(test error 20.50 ± "
    )
    # Four arms of three seeds, each with a spread of 0.5; Student's t of 8 degrees of freedom.
    half = 2.306 * 0.5 * (4 / 3) ** 0.5
    assert f"; `random` +0.00 ± {half:.2f} points more than `none`.**" in analog
    assert "onto devices, costs `none` +2.00 ± 0.00 points (test error 12.50 ± " in aware
    assert "; `random` bits of the DAC (ADC: two more) 3: +41.00 ± " in worst
    one = analog_answer(tables((0,))[0])
    assert "`none` +10.00 points (test error 20.00 %), `random` +10.00 points" in one[0]


def test_without_a_digital_training_the_answer_has_the_errors_alone():
    table, _ = tables()
    (line,) = analog_answer(table[(table["method"] == "analog") & table["value"].isna()])
    assert line.startswith("**Test error: `none` analog 20.50 ± ")


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_diverged_training_leaves_a_gap_not_a_number(seeds, tmp_path):
    table, inference = tables(seeds)
    lost = (table["imperfection"] == "out_noise") & (table["tiling"] == "none")
    table.loc[lost, ["test_error", "diverged"]] = (float("nan"), True)
    summary = analog_summary(table)
    row = summary[(summary["imperfection"] == "out_noise") & (summary["tiling"] == "none")].iloc[0]
    assert (row["test error (%)"], row["above baseline"]) == ("diverged", "")
    *_, worst = analog_answer(table)
    assert worst.endswith("Every training diverged with output noise 0.3 (`none`).")
    assert "output noise" not in worst.split(" Every")[0]
    table.loc[table.index[lost][0], ["test_error", "diverged"]] = (40.0, False)
    again = analog_summary(table)
    some = again[(again["imperfection"] == "out_noise") & (again["tiling"] == "none")].iloc[0]
    many = len(seeds) > 1
    assert some["test error (%)"] == ("40.00 (1 of 2 diverged)" if many else "40.00")
    assert ("Every training diverged" in " ".join(analog_answer(table))) is False
    figure = imperfection_figure(table)
    missing = "trainings that diverged are missing" in figure.get_suptitle()
    assert missing == many
    save_figure(figure, tmp_path / "a")
    save_figure(analog_figure(table, inference), tmp_path / "b")
