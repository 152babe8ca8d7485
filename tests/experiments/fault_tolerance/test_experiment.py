"""The fault experiment: its rows say what was broken and what that cost."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import torch
from PIL import Image
from tiny import SHAPE, same_bits, tiny_dataset, tiny_network

from rapa_lib import InputScaling
from rapa_lib._seeds import Purpose, mix_seeds, seeded
from rapa_lib.experiments.fault_tolerance import EXPERIMENT, FaultTolerance
from rapa_lib.experiments.fault_tolerance.tables import fault_table, tolerated_share
from rapa_lib.experiments.protocol import experiment
from rapa_lib.experiments.recipe import Recipe
from rapa_lib.experiments.records import read_runs
from rapa_lib.experiments.trained import Trained, save_network, train_recipe
from rapa_lib.instruments.faults import draw_faults, fine_tune, tile_faults
from rapa_lib.training import error_percent, predict, reestimate_normalisation

ROOT = Path(__file__).parents[3]
FIRST, SECOND = "features.0.0", "features.1.0"
SWEEP = FaultTolerance(
    shares=[0, 0.5, 0.9], fault_draws=2, n_images=20, repair_share=0.5, fine_tune_steps=2,
    reestimate_images=30,
)  # fmt: skip


def scaling():
    return InputScaling.of(tiny_dataset().train_images)


def subject(network, **changes):
    """A network with what belongs to it."""
    recipe = Recipe.of(**SHAPE | changes, device="cpu")
    return Trained(network, scaling(), recipe, tiny_dataset(), recipe.flat(), [])


def trained():
    network = tiny_network()
    fine_tune(network, tiny_dataset(), scaling(), 40, batch_size=16, learning_rate=0.05)
    return subject(network.eval(), seed=3)


@pytest.fixture(scope="module")
def network():
    return trained().network


@pytest.fixture(scope="module")
def rows(network):
    return SWEEP.errors(subject(network), progress=False)


@pytest.fixture(scope="module")
def repairs(network):
    return SWEEP.repairs(subject(network), progress=False)


def test_there_is_a_row_for_every_cell(rows):
    table = pd.DataFrame(rows)
    cells = table[["layers", "share", "reroute", "fault_draw"]].apply(tuple, axis=1)
    assert cells.is_unique
    assert len(table) == 3 * 3 * 2 * 2
    assert set(table["layers"]) == {"all", FIRST, SECOND}  # the third layer has one tile
    counts = table.groupby(["layers", "share"])["n_faulty"].unique().map(list).to_dict()
    assert counts == {
        ("all", 0): ["0-0"], ("all", 0.5): ["2-1"], ("all", 0.9): ["3-1"],
        (FIRST, 0): ["0"], (FIRST, 0.5): ["2"], (FIRST, 0.9): ["3"],
        (SECOND, 0): ["0"], (SECOND, 0.5): ["1"], (SECOND, 0.9): ["1"],
    }  # fmt: skip
    shares = table.groupby(["layers", "share"])["share_faulty"].first()
    assert shares["all", 0.5] == pytest.approx(3 / 6)
    assert shares["all", 0.9] == pytest.approx(4 / 6)
    assert shares[FIRST, 0.9] == pytest.approx(3 / 4)
    assert set(table["n_images"]) == {20}


def test_errors_are_those_of_the_network_with_these_faults(network, rows):
    chosen = tiny_dataset().subset(None, 20, seed=0)
    for row in rows:
        names = [FIRST, SECOND] if row["layers"] == "all" else [row["layers"]]
        faults = draw_faults(network, share=row["share"], layers=names, seed=row["fault_seed"])
        draws = seeded(0, Purpose.FAULT_DRAWS, row["fault_draw"])
        with tile_faults(network, faults, reroute=row["reroute"]), draws:
            logits = predict(network, chosen.test_images, scaling())
        assert row["test_error"] == error_percent(logits, chosen.test_labels)
    errors = pd.DataFrame(rows).groupby(["share", "reroute"])["test_error"].mean()
    assert errors[0, True] == errors[0, False]
    assert errors[0.9, False] > errors[0, False]


def test_rerouted_rows_have_a_second_error_with_statistics_of_their_own(network, rows):
    """Against a copy with these faults, estimated anew on the chosen images and tested."""
    chosen = tiny_dataset().subset(30, 20, seed=0)
    for row in rows:
        if not row["reroute"]:
            assert row["test_error_reestimated"] is None
            continue
        names = [FIRST, SECOND] if row["layers"] == "all" else [row["layers"]]
        faults = draw_faults(network, share=row["share"], layers=names, seed=row["fault_seed"])
        anew = copy.deepcopy(network)
        with tile_faults(anew, faults, reroute=True):
            with seeded(0, Purpose.FAULT_STATISTICS, row["fault_draw"]):
                reestimate_normalisation(anew, chosen.train_images, scaling())
            with seeded(0, Purpose.FAULT_DRAWS, row["fault_draw"]):
                logits = predict(anew, chosen.test_images, scaling())
        assert row["test_error_reestimated"] == error_percent(logits, chosen.test_labels)
    table = pd.DataFrame([row for row in rows if row["reroute"]])
    assert (table["test_error_reestimated"] != table["test_error"]).any()


def test_the_control_is_the_same_fine_tuning_without_faults(network, repairs):
    chosen = tiny_dataset().subset(None, 20, seed=0)
    table = pd.DataFrame(repairs).set_index(["repair", "fault_draw"])["test_error"]
    for draw in (0, 1):
        tuned = copy.deepcopy(network)
        seed = mix_seeds(0, Purpose.REPAIR, draw)
        fine_tune(tuned, tiny_dataset(), scaling(), 2, batch_size=48, seed=seed)
        with seeded(0, Purpose.FAULT_DRAWS, draw):
            logits = predict(tuned, chosen.test_images, scaling())
        assert table["no faults, fine-tuned", draw] == error_percent(logits, chosen.test_labels)


def test_without_batch_normalisation_there_is_nothing_to_reestimate():
    sweep = replace(SWEEP, shares=(0, 0.5), fault_draws=1)
    bare = subject(tiny_network(normalisation="group").eval(), normalisation="group")
    assert {row["test_error_reestimated"] for row in sweep.errors(bare, progress=False)} == {None}
    repairs = {row["repair"] for row in sweep.repairs(bare, progress=False)}
    assert "rerouted, fine-tuned" in repairs
    assert "rerouted, statistics re-estimated" not in repairs
    record = sweep.measure(bare, progress=False)
    collected = EXPERIMENT.collect([record])
    assert collected.tables["fault_tolerance"]["test_error_reestimated"].isna().all()
    collected.figures["fault_tolerance"]().draw_without_rendering()


def test_products_and_speed_are_of_the_rows_faults(rows):
    for row in rows:
        first, second, third = map(int, row["products_per_layer"].split("-"))
        dead = dict(
            zip(
                [FIRST, SECOND] if row["layers"] == "all" else [row["layers"]],
                map(int, row["n_faulty"].split("-")),
                strict=True,
            )
        )
        n_first = 4 - dead.get(FIRST, 0) * row["reroute"]
        n_second = 2 - dead.get(SECOND, 0) * row["reroute"]
        assert (first, second, third) == (-(-64 // n_first), 16 // n_second, 4)
        assert row["speed_up"] == pytest.approx(84 / (first + second + third))


def test_the_experiment_repeats_and_leaves_network_and_stream_alone(rows, repairs):
    again = trained()
    before = {name: value.clone() for name, value in again.network.state_dict().items()}
    torch.manual_seed(2)
    expected = torch.rand(2)
    torch.manual_seed(2)
    assert SWEEP.errors(again, progress=False) == rows
    assert SWEEP.repairs(again, progress=False) == repairs
    assert torch.equal(torch.rand(2), expected)
    assert same_bits(before, again.network.state_dict())
    other = replace(SWEEP, seed=1).errors(again, progress=False)
    assert [row["fault_seed"] for row in other] != [row["fault_seed"] for row in rows]


def test_repairs_are_compared_on_the_same_faults(network, rows, repairs):
    table = pd.DataFrame(repairs)
    assert list(table["repair"].unique()) == [
        "no faults", "no faults, fine-tuned", "none", "rerouted",
        "rerouted, statistics re-estimated", "copied kernels", "fine-tuned", "rerouted, fine-tuned",
    ]  # fmt: skip
    assert set(table["n_faulty"]) == {"2-1"}
    by = table.set_index(["repair", "fault_draw"])
    known = pd.DataFrame(rows).set_index(["layers", "share", "reroute", "fault_draw"])["test_error"]
    for draw in (0, 1):
        for repair, cell in (
            ("no faults", ("all", 0, False)), ("none", ("all", 0.5, False)),
            ("rerouted", ("all", 0.5, True)),
        ):  # fmt: skip
            assert by["test_error"][repair, draw] == known[(*cell, draw)]
    anew = pd.DataFrame(rows).set_index(["layers", "share", "reroute", "fault_draw"])
    for draw in (0, 1):
        found = by["test_error"]["rerouted, statistics re-estimated", draw]
        assert found == anew["test_error_reestimated"][("all", 0.5, True, draw)]
    products = by["products_per_layer"].groupby("repair").first()
    assert products["copied kernels"] == products["none"] == "16-8-4"
    assert products["no faults, fine-tuned"] == "16-8-4"
    assert products["rerouted, statistics re-estimated"] == products["rerouted"]
    assert products["rerouted, fine-tuned"] == products["rerouted"] == "32-16-4"


def test_every_kind_of_fault_runs(network):
    for kind, strength in (("stuck", None), ("drifted", 0.5), ("noisy", 1.0)):
        sweep = replace(SWEEP, kind=kind, strength=strength, shares=(0.5,), fault_draws=1)
        rows = sweep.errors(subject(network), progress=False)
        assert {(row["kind"], row["strength"]) for row in rows} == {(kind, strength)}
        sweep.repairs(subject(network), progress=False)


def test_a_network_without_tiles_to_lose_is_refused():
    for tiling, message in (("none", "model: it has no RapaConv2d"), ("random", "every layer has")):
        network = tiny_network(tiling=tiling, n_tiles=(1, 1, 1))
        for refuse in (SWEEP.check, SWEEP.measure, SWEEP.errors, SWEEP.repairs):
            with pytest.raises(ValueError, match=message):
                refuse(subject(network, tiling=tiling, n_tiles=(1, 1, 1)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shares": [0.5, 2]}, ValueError, "shares: got 2.0"),
        ({"shares": []}, ValueError, r"shares: got \(\), expected at least one"),
        ({"shares": [0.5, 0.5]}, ValueError, "shares: got .*expected different"),
        ({"shares": 0.5}, TypeError, "shares: got 0.5, expected a sequence"),
        ({"reroute": [1]}, TypeError, "reroute: got 1"),
        ({"reroute": True}, TypeError, "reroute: got True, expected a sequence"),
        ({"kind": "lost"}, ValueError, "kind: got 'lost'"),
        ({"kind": "noisy"}, ValueError, "strength: got None"),
        ({"fault_draws": 0}, ValueError, "fault_draws: got 0"),
        ({"n_images": 0}, ValueError, "n_images: got 0"),
        ({"repair_share": -1}, ValueError, "repair_share: got -1"),
        ({"fine_tune_steps": 0}, ValueError, "fine_tune_steps: got 0"),
        ({"reestimate_images": 0}, ValueError, "reestimate_images: got 0"),
        ({"seed": -1}, ValueError, "seed: got -1"),
    ],
)
def test_wrong_parameters_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        FaultTolerance(**arguments)


# --- Records ----------------------------------------------------------------------------------


def test_records_come_back_from_their_files(tmp_path, rows, repairs):
    record = SWEEP.measure(trained(), tmp_path / "new", progress=False)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["record.json"]
    assert read_runs([tmp_path / "new"]) == [record]
    assert {"git_commit", "torch_version", "device", "data_fingerprint", "sweep"} <= set(record)
    assert record["sweep"]["shares"] == [0, 0.5, 0.9]
    assert EXPERIMENT.of(**record["sweep"]) == SWEEP
    table = fault_table([record | {"seed": 4}, record])
    assert len(table) == 2 * len(rows)
    assert table["seed"].tolist() == [3] * len(rows) + [4] * len(rows)
    assert set(table["n_tiles"]) == {"4-2-1"}
    assert set(table["dataset"]) == {"tiny bands"}
    assert table["test_error"].tolist() == 2 * [row["test_error"] for row in rows]
    assert len(fault_table([record], "repairs")) == len(repairs)
    assert experiment("fault_tolerance") is EXPERIMENT is FaultTolerance
    collected = EXPERIMENT.collect([record])
    entry = EXPERIMENT.entry()
    assert (tuple(collected.tables), tuple(collected.figures)) == (entry.tables, entry.figures)
    pd.testing.assert_frame_equal(collected.tables["fault_tolerance"], fault_table([record]))


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^output: "):
        SWEEP.measure(trained(), tmp_path / "file", progress=False)


def test_unreadable_records_are_named():
    with pytest.raises(ValueError, match="record: cannot read one of mine: KeyError"):
        fault_table([{"run": "mine"}])
    with pytest.raises(ValueError, match="records: none to collect"):
        fault_table([])


def errors_table(errors, reroute=True):
    return pd.DataFrame(
        {
            "layers": "all", "reroute": reroute, "share_faulty": share, "test_error": error,
            "speed_up": 8 - 8 * share,
        }
        for share, pair in errors.items()
        for error in pair
    )  # fmt: skip


def test_the_tolerated_share_is_the_last_before_the_error_rises():
    better = errors_table({0.75: (9, 9), 0: (9, 11), 0.25: (10.5, 11), 0.5: (11.5, 10.6)})
    worse = errors_table({0: (9, 11), 0.25: (11, 11), 0.5: (10, 10)}, reroute=False)
    answer = tolerated_share(pd.concat([better, worse])).set_index("reroute")
    assert answer["share_faulty"].to_dict() == {True: 0.25, False: 0}
    assert answer["added_error"].to_dict() == {True: 0.75, False: 0}
    assert answer["speed_up"].to_dict() == {True: 6, False: 8}
    assert answer["added_reestimated"].isna().all()
    anew = better.assign(test_error_reestimated=20 + better["share_faulty"])
    assert tolerated_share(anew)["added_reestimated"].tolist() == [0.25]
    assert tolerated_share(better, points=1.1)["share_faulty"].tolist() == [0.75]
    with pytest.raises(ValueError, match="no rows without faults for layers 'all'"):
        tolerated_share(errors_table({0.5: (1, 2)}))


# --- The notebook -----------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path):
    """A folder of a few small images."""
    data = tiny_dataset()
    for split in ("train", "test"):
        images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            for number in range(3):  # more than a batch
                path = tmp_path / "images" / split / data.classes[label] / f"{i}-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[0].numpy()).save(path)
    return tmp_path / "images"


SMALL = {"shares": [0.0, 0.5], "fault_draws": 2, "fine_tune_steps": 1, "threads": 1}


def run_notebook(tmp_path, **parameters):
    executed = papermill.execute_notebook(
        ROOT / "notebooks/fault_tolerance.ipynb",
        tmp_path / "executed.ipynb",
        SMALL | {"output": str(tmp_path / "output")} | parameters,
        kernel_name="python3",
        cwd=ROOT / "notebooks",
        progress_bar=False,
    )
    outputs = [out.get("data", {}) for cell in executed.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in data for data in outputs) == 1
    (answer,) = [data["text/markdown"] for data in outputs if "text/markdown" in data]
    record = json.loads((tmp_path / "output" / "record.json").read_text())
    return record, answer


def test_the_notebook_measures_a_network_of_the_accuracy_experiment(tmp_path, digits):
    recipe = Recipe.of(
        **SHAPE, dataset=str(digits), epochs=1, batch_size=16, seed=5, threads=1, device="cpu"
    )
    data = recipe.data.load()
    network, training = train_recipe(recipe, data, progress=False)
    path = tmp_path / "network.pt"
    save_network(path, network, training.scaling, data, recipe.flat())
    record, answer = run_notebook(tmp_path, network=str(path))
    assert record["seed"] == 5
    assert record["n_tiles"] == "4-2-1"
    assert len(record["rows"]) == 3 * 2 * 2 * 2
    sweep = FaultTolerance(shares=(0.0, 0.5), fault_draws=2, fine_tune_steps=1)
    own = Trained(network.eval(), training.scaling, recipe, data, recipe.flat(), [])
    assert record["rows"] == sweep.errors(own, progress=False)
    error = pd.DataFrame(record["repairs"]).groupby("repair")["test_error"].mean()
    assert f"the test error of `random` is {error['none']:.2f} %" in answer
    assert "all layers at once, not rerouted" in answer


def test_the_notebook_trains_a_network_where_none_is_given(tmp_path, digits):
    record, answer = run_notebook(
        tmp_path, dataset=str(digits), n_tiles=[2, 2, 1], tiling="image", epochs=1,
        kind="noisy", strength=0.5, reroute=[True],
    )  # fmt: skip
    assert record["tiling"] == "image"
    assert {(row["kind"], row["strength"]) for row in record["rows"]} == {("noisy", 0.5)}
    assert {row["reroute"] for row in record["rows"]} == {True}
    assert "not rerouted" not in answer
    assert "can be noisy" in answer


def test_the_notebook_is_committed_clean():
    notebook = nbformat.read(ROOT / "notebooks/fault_tolerance.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[1].metadata.tags == ["parameters"]
    assert notebook.cells[2].source.startswith("%matplotlib inline")
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
