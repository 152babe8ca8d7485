"""The analog experiment: what it trains, that it goes on, what it refuses."""

import json
import math
from pathlib import Path

import papermill
import pytest
import torch
from tiny import SHAPE, same_bits, tiny_dataset, tiny_network

from rapa_lib import TrainConfig, train
from rapa_lib.analog import PRESETS, convert_to_analog, resolution, rpu_baseline
from rapa_lib.experiments.analog_training import AnalogTraining, experiment
from rapa_lib.experiments.analog_training.imperfections import IMPERFECTIONS, baseline_values
from rapa_lib.experiments.analog_training.tables import analog_table, inference_table
from rapa_lib.experiments.trained import train_recipe

# Random kernels of a small network are large for the devices; how many is tested by count.
pytestmark = pytest.mark.filterwarnings("ignore:.*outside the bounds of their devices")

ROOT = Path(__file__).parents[3]
BASE = SHAPE | {
    "epochs": 8, "batch_size": 16, "imperfections": [["out_noise", 0.8]],
    "noise_levels": [0.0, 3.0], "draws": 2, "device": "cpu",
}  # fmt: skip


def settings(**changes):
    return AnalogTraining.of(**BASE | changes)


SETTINGS = settings()


@pytest.fixture(scope="module")
def record():
    return SETTINGS.measure(tiny_dataset(), progress=False)


def row_of(record, **wanted):
    (row,) = (r for r in record["rows"] if all(r[k] == v for k, v in wanted.items()))
    return row


def test_every_training_has_its_row(record):
    cells = [tuple(r[k] for k in ("tiling", "method", "imperfection")) for r in record["rows"]]
    methods = ("digital", "hardware_aware", "analog")
    plain = [(t, m, "baseline") for t in ("none", "random") for m in methods]
    assert cells == [*plain, *((t, "analog", "out_noise") for t in ("none", "random"))]
    assert [r["n_tiles"] for r in record["rows"][:4:3]] == ["1-1-1", "4-2-1"]
    read = [tuple(r[k] for k in ("tiling", "method", "out_noise")) for r in record["inference"]]
    assert read == [(t, m, v) for t in ("none", "random") for m in methods[:2] for v in (0.0, 3.0)]


def test_networks_learn_whatever_they_are_trained_on_and_noise_spoils_it(record):
    for method in ("digital", "hardware_aware", "analog"):
        assert (
            row_of(record, tiling="none", method=method, imperfection="baseline")["test_error"] < 50
        )  # by chance 67 %
    clean = row_of(record, tiling="none", method="analog", imperfection="baseline")
    noisy = row_of(record, tiling="none", method="analog", imperfection="out_noise")
    assert noisy["test_error"] > clean["test_error"]
    read = {
        (r["method"], r["out_noise"]): r["test_error"]
        for r in record["inference"]
        if r["tiling"] == "none"
    }
    assert read["digital", 3.0] > read["digital", 0.0]


def test_a_training_that_diverges_has_a_row_that_says_so():
    few = {"tilings": ["none"], "methods": ["digital"], "imperfections": []}
    wild = settings(**few, learning_rate=1e12)
    rows = wild.measure(tiny_dataset(), progress=False)["rows"]
    calm = settings(**few, learning_rate=0.01).measure(tiny_dataset(), progress=False)
    assert rows[0]["diverged"]
    assert rows[0]["test_error"] is None
    assert rows[0].keys() == row_of(calm, method="digital").keys()


def test_digital_training_is_that_of_the_accuracy_experiment(record):
    _, training = train_recipe(SETTINGS.recipe_of("random"), tiny_dataset(), progress=False)
    row = row_of(record, tiling="random", method="digital", imperfection="baseline")
    assert row["train_error"] == training.history[-1]["train_error"]


def test_interrupted_in_the_middle_it_goes_on_to_the_same_bits(record, tmp_path):
    trained, epochs, left = experiment.train, [], []

    def dies(network, *args, **kwargs):
        def count(*_):
            epochs.append(1)
            if len(epochs) in (5, 21, 44):
                raise KeyboardInterrupt

        return trained(network, *args, measure=count, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "train", dies)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                SETTINGS.measure(tiny_dataset(), tmp_path, progress=False)
            left.append((tmp_path / "training.pt").exists())
        finished = SETTINGS.measure(tiny_dataset(), tmp_path, progress=False)
    assert any(left)  # one of them was in the middle of a training
    assert {path.name for path in tmp_path.iterdir()} == {"record.json"}

    def timeless(taken):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in taken["rows"]]

    assert timeless(finished) == timeless(record)
    assert finished["inference"] == record["inference"]


def test_a_resume_file_of_other_settings_is_refused(tmp_path):
    few = {"tilings": ["none"], "methods": ["digital"], "imperfections": [], "epochs": 1}

    def dies(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "provenance", dies)  # after the last training
        with pytest.raises(KeyboardInterrupt):
            settings(**few).measure(tiny_dataset(), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"resume: .*resume\.json is of another measurement"):
        settings(**few | {"epochs": 2}).measure(tiny_dataset(), tmp_path, progress=False)


def test_what_a_notebook_leaves_out_is_as_the_experiment_has_it_and_not_as_a_recipe_has_it():
    plain, other = AnalogTraining.of(), AnalogTraining.of(epochs=2, pooling="avg")
    training, network = plain.recipe.training, plain.recipe.network
    assert (training.epochs, training.batch_size, training.tile_lr_power) == (5, 32, 0.5)
    assert network.tile_init == "identical"
    assert (other.recipe.training.epochs, other.recipe.training.batch_size) == (2, 32)
    assert (other.recipe.network.pooling, other.recipe.network.tile_init) == ("avg", "identical")
    assert AnalogTraining() == plain


def test_settings_come_back_from_a_record(record):
    measurement = json.loads(json.dumps(record["measurement"]))
    assert AnalogTraining.of(**measurement) == SETTINGS
    assert "tiling" not in measurement
    with pytest.raises(TypeError, match="analog_training: tiling: unknown; it takes dataset"):
        AnalogTraining.of(tiling="none")


def test_each_imperfection_changes_what_it_names_and_nothing_else():
    base = rpu_baseline()
    assert baseline_values(base) == pytest.approx(
        {"out_noise": 0.06, "bits": 7, "dw_min": 0.001, "dtod": 0.3, "asymmetry": 0.01}
    )
    values = {"out_noise": 0.2, "bits": 5, "dw_min": 0.01, "dtod": 0.1, "asymmetry": 0.2}
    assert set(values) == set(IMPERFECTIONS)
    for name, value in values.items():
        changed = baseline_values(IMPERFECTIONS[name](base, value))
        assert changed == pytest.approx(baseline_values(base) | {name: value})
    coarse = IMPERFECTIONS["bits"](base, 5)
    assert (coarse.forward.inp_res, coarse.backward.out_res) == (resolution(5), resolution(7))
    spread = IMPERFECTIONS["dtod"](base, 0.1).device
    assert (spread.w_max_dtod, spread.w_min_dtod, spread.dw_min_std) == (0.1, 0.1, 0.3)


def test_weights_that_devices_cannot_hold_are_counted():
    network = tiny_network(tiling="none")
    with torch.no_grad():
        network.features[0][0].weight[0] = 5.0
    _, clipped = SETTINGS._on_tiles(network, SETTINGS.tiles())
    fits = tiny_network(tiling="none")
    _, few = SETTINGS._on_tiles(fits, SETTINGS.tiles())
    assert clipped >= few + network.features[0][0].weight[0].numel() - 5
    assert clipped > few


# --- Training on tiles ------------------------------------------------------------------------


def test_pulses_have_the_rate_of_a_velocitys_sum_and_of_their_tiles():
    data, config = tiny_dataset(), TrainConfig(epochs=1, batch_size=16, tile_lr_power=0.5)
    analog = convert_to_analog(tiny_network(), rpu_baseline(), seed=0)
    from rapa_lib.training import one_cycle_sgd

    optimizer, _ = one_cycle_sgd(analog, config, len(data.train_images) // 16)
    rates = {}
    for group in optimizer.param_groups:
        for name, parameter in analog.named_parameters():
            if any(parameter is p for p in group["params"]):
                rates[name] = group["max_lr"]
    assert rates["features.0.0.tiles.weight"] == pytest.approx(0.05 * 2 / (1 - 0.9))
    assert rates["features.1.0.tiles.weight"] == pytest.approx(0.05 * 2**0.5 / (1 - 0.9))
    assert rates["features.2.0.tiles.weight"] == pytest.approx(0.05 / (1 - 0.9))
    assert rates["features.0.0.bias"] == pytest.approx(0.05 * 2)
    assert rates["features.0.2.weight"] == pytest.approx(0.05)


def test_hardware_aware_training_has_momentum_and_weight_decay_on_its_weights():
    aware = convert_to_analog(tiny_network(), rpu_baseline().hardware_aware(), seed=0)
    from rapa_lib.training import one_cycle_sgd

    optimizer, _ = one_cycle_sgd(aware, TrainConfig(epochs=1, batch_size=16), 3)
    (group,) = (
        g for g in optimizer.param_groups
        if any(p is aware.features[0][0].tiles.weight for p in g["params"])
    )  # fmt: skip
    assert (group["max_lr"], group["momentum"]) == (pytest.approx(0.05 * 4), 0.9)
    assert group["weight_decay"] == pytest.approx(5e-4 / 4)


def test_analog_training_goes_on_with_the_same_bits(tmp_path):
    data, config = tiny_dataset(), TrainConfig(epochs=3, batch_size=16)

    def fresh():
        return convert_to_analog(tiny_network(), rpu_baseline(), seed=0)

    whole, parts = fresh(), fresh()
    train(whole, data, config, progress=False)

    def dies(model, epoch):
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parts, data, config, checkpoint=tmp_path / "c.pt", progress=False, on_epoch=dies)

    def lives(model, epoch):
        pass

    lives.__qualname__ = dies.__qualname__
    resumed = fresh()
    train(resumed, data, config, checkpoint=tmp_path / "c.pt", progress=False, on_epoch=lives)
    states = [
        {k: v for k, v in net.state_dict().items() if isinstance(v, torch.Tensor)}
        for net in (whole, resumed)
    ]
    assert same_bits(*states)
    untrained = fresh()
    assert not torch.equal(whole.classifier.weight, untrained.classifier.weight)


def test_a_momentum_of_one_leaves_pulses_no_rate():
    analog = convert_to_analog(tiny_network(), rpu_baseline(), seed=0)
    with pytest.raises(ValueError, match=r"momentum: got 1.0, allowed for weights on analog tiles"):
        train(analog, tiny_dataset(), TrainConfig(epochs=1, batch_size=16, momentum=1.0))


def test_plain_sgd_takes_momentum_and_decay_from_every_method(monkeypatch):
    seen = {}

    def watched(network, data, config, **kwargs):
        seen[len(seen)] = config
        return train(network, data, config, **kwargs)

    monkeypatch.setattr(experiment, "train", watched)
    few = {"tilings": ["none"], "imperfections": [], "noise_levels": [], "epochs": 1}
    rates = {"digital_rate": 2.0, "hardware_aware_rate": 3.0, "analog_rate": 4.0}
    plain = settings(**few, **rates, plain_sgd=True, learning_rate=0.01)
    plain.measure(tiny_dataset(), progress=False)
    assert [c.learning_rate for c in seen.values()] == pytest.approx([0.02, 0.03, 0.04])
    assert all(c.momentum == c.weight_decay == 0 for c in seen.values())


def test_new_parameters_stand_in_records_only_where_they_say_something_new():
    new = {"plain_sgd", "drift_times", "weight_scaling_omega", "compound", "digital_rate"}
    assert not new & set(SETTINGS.settings())
    changed = settings(drift_times=[60], plain_sgd=True).settings()
    assert changed["drift_times"] == [60.0]
    assert changed["plain_sgd"] is True


@pytest.fixture(scope="module")
def drifting():
    few = {"imperfections": [], "noise_levels": [], "drift_times": [1, 31_536_000], "epochs": 4}
    methods = {"methods": ["hardware_aware", "tiki_taka"], "preset": "EcRamPreset"}
    mapping = {"weight_scaling_omega": 0.8, "max_array_size": 20}
    made = settings(**few, **methods, **mapping)
    return made.measure(tiny_dataset(), progress=False) | {"run": "a"}


def test_networks_are_read_on_phase_change_memory_singly_voted_and_merged(drifting):
    keys = [(r["tiling"], r["method"], r["reading"], r["t_seconds"]) for r in drifting["drift"]]
    ways = [("none", "single"), ("random", "single"), ("random", "vote"), ("random", "merged")]
    wanted = {(t, "hardware_aware", r, s) for t, r in ways for s in (1.0, 31_536_000.0)}
    assert set(keys) == wanted
    assert len(keys) == len(wanted)
    assert all(0 <= r["test_error"] <= 100 for r in drifting["drift"])


def test_tiki_taka_is_a_way_of_training(drifting):
    row = row_of(drifting, tiling="none", method="tiki_taka")
    assert row["train_error"] < 90
    assert not row["diverged"]
    assert drifting["tiles"]["mapping"]["arrays"]["max_size"] == [20, 20]


def test_the_page_shows_drift_where_it_was_measured(drifting):
    collected = AnalogTraining.collect([drifting])
    table = collected.tables["analog_training_drift"]
    assert len(table) == 8
    (axes,) = collected.figures["analog_training_drift"]().axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1 s", "1 y"]
    lines = {c.get_label(): c.lines[0].get_ydata().tolist() for c in axes.containers}
    own = table[(table["tiling"] == "random") & (table["reading"] == "vote")]
    assert lines["random, voted"] == own["test_error"].tolist()
    assert any("`random`, merged" in line for line in collected.answer)
    assert any("from 1 s to 1 y" in line for line in collected.answer)
    assert "analog_training_drift.png" in "\n".join(collected.body)
    bare = AnalogTraining.collect([{k: v for k, v in drifting.items() if k != "drift"}])
    assert "analog_training_drift.png" not in "\n".join(bare.body)
    figure = bare.figures["analog_training_drift"]()
    assert "No network was written" in figure.texts[0].get_text()


# --- Tables, bad input, notebook --------------------------------------------------------------


def test_the_tables_have_every_row_with_its_labels(record):
    table = analog_table([record | {"run": "a"}, record | {"run": "b"}])
    assert len(table) == 16
    assert table["dataset"].unique().tolist() == ["tiny bands"]
    assert table["baseline_dw_min"].unique().tolist() == [0.001]
    assert len(inference_table([record])) == 8
    for make in (analog_table, inference_table):
        with pytest.raises(ValueError, match="records: none to collect"):
            make([])
    assert json.loads(json.dumps(record, allow_nan=False))["tiles"]["device"]["dw_min"] == 0.001


def test_where_no_network_is_read_with_noise_the_page_says_so(record, tmp_path):
    bare = record | {"inference": [], "run": "a"}
    collected = AnalogTraining.collect([bare])
    full = AnalogTraining.collect([record | {"run": "a"}]).tables["analog_training_inference"]
    table = collected.tables["analog_training_inference"]
    assert (len(table), list(table)) == (0, list(full))
    assert len(collected.figures["analog_training"]().axes) == 1
    both = AnalogTraining.collect([record | {"run": "a"}]).figures["analog_training"]()
    assert len(both.axes) == 2
    assert set(collected.tables) == set(AnalogTraining.entry().tables)
    assert set(collected.figures) == set(AnalogTraining.entry().figures)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tilings": "none"}, TypeError, "tilings: got 'none', expected a sequence"),
        ({"tilings": ()}, ValueError, r"tilings: got \(\), expected at least one"),
        ({"methods": ()}, ValueError, r"methods: got \(\), expected at least one"),
        ({"tilings": (1,)}, TypeError, "tilings: got 1, expected a name"),
        ({"tilings": ("blocks",)}, ValueError, "tiling: got 'blocks'"),
        ({"methods": ("magic",)}, ValueError, "methods: got 'magic', allowed: digital"),
        ({"preset": "flash"}, ValueError, "preset: got 'flash', allowed: ideal, rpu_baseline"),
        ({"update_method": "slow"}, ValueError, "update_method: got 'slow', allowed: exact"),
        ({"imperfections": [["rust", 1.0]]}, ValueError, "imperfections: got 'rust', allowed"),
        ({"imperfections": ["bits"]}, ValueError, "imperfections: got 'bits', expected pairs"),
        ({"imperfections": [["bits", -1]]}, ValueError, "imperfections: got -1.0"),
        ({"imperfections": [["bits", 1]]}, ValueError, "bits: got 1, allowed: 2 to"),
        ({"imperfections": [["dw_min", 0]]}, ValueError, "dw_min: got 0.0, allowed: .*above 0"),
        ({"preset": "ideal", "imperfections": [["dtod", 0.1]]}, ValueError, "has ideal devices"),
        ({"noise_levels": (-0.1,)}, ValueError, "noise_levels: got -0.1"),
        ({"analog_rate": 0}, ValueError, "analog_rate: got 0.0, allowed: finite, above 0"),
        ({"draws": 0}, ValueError, "draws: got 0"),
        ({"drift_times": [-1]}, ValueError, "drift_times: got -1"),
        ({"compound": "Trio"}, ValueError, "compound: got 'Trio', allowed: TransferCompound"),
        (
            {"methods": ["tiki_taka"], "preset": "TikiTakaEcRamPreset"},
            ValueError,
            "methods: got 'tiki_taka', allowed with single pulsed devices",
        ),
        (
            {
                "methods": ["tiki_taka"],
                "compound": "ChoppedTransferCompound",
                "n_reads_per_transfer": 2,
            },
            ValueError,
            "n_reads_per_transfer: got 2, allowed with choppers: 1",
        ),
        ({"n_reads_per_transfer": 0}, ValueError, "n_reads_per_transfer: got 0"),
        ({"digital_rate": 0}, ValueError, "digital_rate: got 0"),
        ({"epochs": 0}, ValueError, "epochs: got 0"),
    ],
)
def test_what_is_not_allowed_is_named_before_any_work(changes, error, message):
    with pytest.raises(error, match=message):
        settings(**changes)


def test_tiki_taka_transfers_as_many_columns_as_asked_for():
    run = settings(methods=["tiki_taka"], n_reads_per_transfer=7)
    assert run._in_pairs(run.tiles()).device.n_reads_per_transfer == 7
    assert run.settings()["n_reads_per_transfer"] == 7
    assert "n_reads_per_transfer" not in SETTINGS.settings()


def test_a_batch_larger_than_the_data_is_refused_before_any_work():
    with pytest.raises(ValueError, match="batch_size: got 64, but tiny bands has 48"):
        settings(batch_size=64).check(tiny_dataset())
    assert math.isinf(baseline_values(PRESETS["ideal"]())["bits"])


def test_the_notebook_runs_answers_and_leaves_a_record(tmp_path):
    executed = papermill.execute_notebook(
        ROOT / "notebooks/analog_training.ipynb",
        tmp_path / "executed.ipynb",
        {
            "n_train": 64, "n_test": 30, "epochs": 1, "imperfections": [["dw_min", 0.01]],
            "noise_levels": [0.1], "drift_times": [1, 3600], "draws": 1, "threads": 1,
            "output": str(tmp_path),
        },
        kernel_name="python3",
        cwd=ROOT / "notebooks",
        progress_bar=False,
    )  # fmt: skip
    outputs = [out.get("data", {}) for cell in executed.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in data for data in outputs) == 3
    answers = [data["text/markdown"] for data in outputs if "text/markdown" in data]
    assert "analog training costs" in answers[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"executed.ipynb", "record.json"}
    record = json.loads((tmp_path / "record.json").read_text())
    assert len(record["rows"]) == 8
