"""The filter-similarity experiment measures what it says, plainly and the same each time."""

import json
import math
from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import SHAPE, tiny_dataset, tiny_network

from rapa_lib._seeds import Purpose, seeded
from rapa_lib.experiments.filter_similarity import EXPERIMENT, FilterSimilarity
from rapa_lib.experiments.filter_similarity.experiment import (
    SHOWN_FILTERS,
    SHOWN_TILES,
    shown_filters,
)
from rapa_lib.experiments.protocol import experiment
from rapa_lib.experiments.recipe import Recipe
from rapa_lib.experiments.tracking import Tracking
from rapa_lib.experiments.trained import Trained, train_recipe
from rapa_lib.instruments.penalty import measured_penalty, predicted_penalty
from rapa_lib.instruments.pull import loss_along_scale, tile_pull
from rapa_lib.instruments.similarity import tile_similarity, tiled_layers
from rapa_lib.training import one_cycle_sgd, reestimate_normalisation

LAYERS = ["features.0.0", "features.1.0"]
SMOOTH = {"pooling": "avg", "activation": "tanh"}
SMALL = FilterSimilarity(images=8, draws=3, probes=3, scales=(1, 0.5), seed=2, pull_images=40)
COLUMNS = [
    "layer", "scale", "measured", "measured_error", "predicted", "predicted_error",
    "gauss_newton", "gauss_newton_error", "merged_loss", "applies",
]  # fmt: skip


def make(**changes):
    recipe = Recipe.of(
        **SHAPE | SMOOTH | {"epochs": 2, "batch_size": 16, "seed": 4} | changes, device="cpu"
    )
    data, tracking = tiny_dataset(), Tracking(penalty_every=2, pull_every=1)
    network, training = train_recipe(recipe, data, tracking=tracking, progress=False)
    parameters = recipe.flat() | vars(tracking)
    return Trained(
        network.eval(), training.scaling, recipe, data, parameters, training.measurements
    )


def with_network(trained, **changes):
    """The same with another network, untrained, and the recipe of that."""
    recipe = Recipe.of(**trained.recipe.flat() | changes)
    return replace(trained, network=tiny_network(**SMOOTH | changes).eval(), recipe=recipe)


@pytest.fixture(scope="module")
def trained():
    return make()


@pytest.fixture(scope="module")
def penalties(trained):
    return SMALL.penalties(trained)


# --- The run itself ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": 0}, ValueError, "images: got 0, allowed: at least 1"),
        ({"images": 2.0}, TypeError, "images: got 2.0, expected an integer"),
        ({"draws": 1}, ValueError, "draws: got 1, allowed: at least 2"),
        ({"probes": 1}, ValueError, "probes: got 1, allowed: at least 2"),
        ({"probes": True}, TypeError, "probes: got True, expected an integer"),
        ({"seed": -1}, ValueError, "seed: got -1, allowed: at least 0"),
        ({"scales": "1"}, TypeError, "scales: got '1', expected a sequence of numbers above 0"),
        ({"scales": 0.5}, TypeError, "scales: got 0.5, expected a sequence of numbers above 0"),
        ({"scales": []}, ValueError, r"scales: got \(\), expected at least one"),
        ({"scales": [1, 0]}, ValueError, "scales: got 0.0, allowed: finite, above 0"),
        ({"scales": [math.inf]}, ValueError, "scales: got inf, allowed: finite, above 0"),
        ({"scales": [1, "0.5"]}, TypeError, "scales: got '0.5', expected a number"),
        ({"pull_images": 1}, ValueError, "pull_images: got 1, allowed: at least 2"),
        ({"pull_draws": 0}, ValueError, "pull_draws: got 0, allowed: at least 1"),
        ({"loss_scales": [math.inf]}, ValueError, "loss_scales: got inf, allowed: finite"),
    ],
)
def test_bad_values_are_named_when_the_run_is_made(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        FilterSimilarity(**arguments)


def test_a_run_cannot_be_changed_and_holds_python_s_own_numbers():
    run = FilterSimilarity(images=np.int64(7), seed=np.int32(3), scales=[np.float64(0.5), 1])
    assert run == FilterSimilarity(images=7, seed=3, scales=(0.5, 1.0))
    assert json.loads(json.dumps(run.settings()))["scales"] == [0.5, 1.0]
    with pytest.raises(FrozenInstanceError):
        run.seed = 1


def test_more_images_than_there_are_are_refused(trained):
    message = "^images: got 49, but tiny bands has 48 training images"
    run = replace(SMALL, images=49)
    for refuse in (
        lambda: run.penalties(trained),
        lambda: run.pulls(trained),
        lambda: run.check(Trained.planned(trained.recipe, trained.data, {})),
        lambda: run.measure(trained),
    ):
        with pytest.raises(ValueError, match=message):
            refuse()


def test_a_network_without_tiles_is_refused_where_tiles_are_compared(trained):
    for changes in ({"tiling": "none"}, {"n_tiles": (1, 1, 1)}):
        for refuse in (SMALL.check, SMALL.measure):
            with pytest.raises(ValueError, match=r"^network: no layer has several tiles"):
                refuse(with_network(trained, **changes))
    replace(SMALL, images=48).check(with_network(trained, tiling="image"))


# --- Similarity -------------------------------------------------------------------------------


def test_similarities_are_what_was_recorded(trained):
    table = SMALL.similarities(trained)
    assert table["epoch"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["layer"].tolist() == LAYERS * 3
    assert table["layer_tiles"].tolist() == [4, 2] * 3
    measures = ["between_tiles", "within_tile", "variance_ratio", "cka", "matched"]
    for index, taken in enumerate(trained.measurements):
        rows = table.iloc[2 * index : 2 * index + 2]
        for measure in measures:
            assert rows[measure].tolist() == [row[measure] for row in taken["similarity"]]
        recorded = {row["layer"]: row for row in taken.get("penalty", [])}
        if recorded:
            for _, row in rows.iterrows():
                own = recorded[row["layer"]]
                assert row["penalty"] == own["penalty"]
                assert row["penalty_error"] == own["standard_error"]
        else:
            assert rows[["penalty", "penalty_error"]].isna().all(axis=None)
    assert table.loc[[0, 1, 4, 5], "penalty"].notna().all()


@pytest.mark.parametrize("kept", [[], ["penalty"]])
def test_without_a_record_the_network_speaks_for_its_last_epoch(trained, kept):
    measurements = [
        {"epoch": m["epoch"]} | {key: m[key] for key in kept if key in m}
        for m in trained.measurements
    ] if kept else []  # fmt: skip
    table = SMALL.similarities(replace(trained, measurements=measurements))
    assert table["epoch"].tolist() == [2, 2]
    now = tile_similarity(trained.network, seed=SMALL.seed)
    assert table["between_tiles"].tolist() == [layer.between_tiles for layer in now]
    assert table["matched_chance"].tolist() == [layer.matched_chance for layer in now]
    assert table["penalty"].isna().all()
    assert list(table) == list(SMALL.similarities(trained))


def test_a_network_without_tiles_has_no_rows_but_all_columns(trained):
    plain = replace(with_network(trained, tiling="none"), measurements=[])
    table = SMALL.similarities(plain)
    assert len(table) == 0
    assert list(table) == list(SMALL.similarities(trained))
    assert SMALL.pulls(plain) == {}
    assert list(SMALL.penalties(plain)) == COLUMNS


# --- Penalties --------------------------------------------------------------------------------


def test_penalties_have_one_row_per_layer_and_scale(penalties):
    assert list(penalties) == COLUMNS
    assert penalties["layer"].tolist() == [*LAYERS, "all"] * 2
    assert penalties["scale"].tolist() == [1.0] * 3 + [0.5] * 3
    alone = penalties[penalties["layer"] != "all"]
    assert np.isfinite(alone[COLUMNS[1:-1]].to_numpy(float)).all()
    together = penalties[penalties["layer"] == "all"]
    assert together[COLUMNS[4:8]].isna().all(axis=None)
    assert together[["measured", "measured_error"]].notna().all(axis=None)
    # Scaling the deviations leaves the mean kernels, and so their loss, alone but for rounding.
    assert penalties["merged_loss"].to_numpy() == pytest.approx(penalties["merged_loss"][0])


def test_predictions_scale_with_the_square_and_their_errors_too(penalties):
    whole, half = (penalties[penalties["scale"] == s].set_index("layer") for s in (1.0, 0.5))
    for column in COLUMNS[4:8]:
        assert half.loc[LAYERS, column].tolist() == (whole.loc[LAYERS, column] / 4).tolist()


def test_the_numbers_are_those_of_the_two_functions(trained, penalties):
    data = trained.data
    with seeded(SMALL.seed):
        chosen = torch.randperm(48)[:8]
    images, labels = trained.scaling(data.train_images[chosen]), data.train_labels[chosen]
    measured = measured_penalty(trained.network, images, labels, 3, seed=2)
    whole = penalties[penalties["scale"] == 1.0]
    assert whole["measured"].tolist() == pytest.approx([m.penalty for m in measured], rel=1e-3)
    assert whole["merged_loss"].tolist() == pytest.approx([m.merged_loss for m in measured])
    for name in LAYERS:
        row = whole.set_index("layer").loc[name]
        found = predicted_penalty(trained.network, images, labels, name, probes=3, seed=2)
        assert row["predicted"] == found.penalty
        assert row["predicted_error"] == found.standard_error
        assert row["gauss_newton"] == found.gauss_newton


def test_theory_meets_measurement_where_deviations_are_small(trained):
    """Average pooling and tanh are smooth: at a tenth of the deviations the third order is gone."""
    run = FilterSimilarity(images=16, draws=64, probes=64, scales=[0.1])
    table = run.penalties(trained).set_index("layer").loc[LAYERS]
    error = 4 * np.hypot(table["measured_error"], table["predicted_error"])
    gap = (table["measured"] - table["predicted"]).abs()
    assert (gap <= error + 0.1 * table["predicted"].abs()).all()
    assert (table["predicted"] > 0).any()


@pytest.mark.parametrize("tiling", ["random_fixed", "image", "alternate", "none"])
def test_without_an_expectation_there_is_no_penalty_and_no_pull(trained, tiling):
    fixed = with_network(trained, tiling=tiling)
    table = SMALL.penalties(fixed)
    assert len(table) == 0
    assert list(table) == COLUMNS
    assert SMALL.pulls(fixed) == {}


def test_pulls_are_cosines_by_layer(trained):
    pulls = SMALL.pulls(trained)
    assert list(pulls) == LAYERS
    assert all(-1 <= pull <= 1 and pull != 0 for pull in pulls.values())
    # The Gauss–Newton form is not negative: its gradient points away from the mean.
    assert all(pull > 0 for pull in FilterSimilarity(images=16, probes=16).pulls(trained).values())


def test_equal_tiles_have_no_penalty_and_no_pull(trained):
    equal = with_network(trained, tile_init="identical")
    table = SMALL.penalties(equal)
    assert table.loc[table["layer"] != "all", "predicted"].tolist() == [0.0] * 4
    assert table["measured"].abs().max() < 1e-5
    assert set(SMALL.pulls(equal).values()) == {0.0}


@pytest.mark.parametrize(("normalisation", "applies"), [("batch", False), ("group", True)])
def test_the_penalty_applies_where_it_is_a_theorem(trained, normalisation, applies):
    table = SMALL.penalties(with_network(trained, normalisation=normalisation))
    assert table["applies"].tolist() == [applies] * len(table)
    relu = SMALL.penalties(with_network(trained, normalisation="group", activation="relu"))
    assert not relu["applies"].any()


# --- The pull ---------------------------------------------------------------------------------


def pull_images(trained, n):
    """Images and labels, chosen and scaled as the experiment does; the training augments none."""
    with seeded(SMALL.seed, Purpose.PULL_IMAGES):
        chosen = torch.randperm(48)[:n]
    return trained.data.train_images[chosen], trained.data.train_labels[chosen]


def test_the_pull_is_what_was_recorded_and_at_the_end_the_network_s_own(trained):
    rows = replace(SMALL, pull_draws=2).tile_pulls(trained)
    assert [(row["epoch"], row["layer"]) for row in rows] == [
        (epoch, layer) for epoch in (0, 1, 2) for layer in LAYERS
    ]
    recorded = [row for taken in trained.measurements[:2] for row in taken["pull"]]
    images, labels = pull_images(trained, 40)
    own = tile_pull(
        trained.network, trained.scaling(images), labels, batch_size=16, draws=2, seed=2,
        weight_decay=trained.recipe.training.weight_decay, tile_lr_power=1.0,
    )  # fmt: skip
    wanted = recorded + [asdict(layer) | {"batch_size": 16} for layer in own]
    for row, one in zip(rows, wanted, strict=True):
        assert row["layer_tiles"] == one["n_tiles"]
        assert {name: row[name] for name in one if name != "n_tiles"} == {
            name: value for name, value in one.items() if name != "n_tiles"
        }
    assert {row["draws"] for row in rows[-2:]} == {2}


def test_the_push_is_that_of_the_rate_at_the_epoch(trained):
    """48 images in batches of 16 for 2 epochs: the rates after 0, 3 and 6 steps."""
    network = tiny_network(**SMOOTH)
    optimizer, scheduler = one_cycle_sgd(network, trained.recipe.training, 3)
    weights = [layer.weight for layer in tiled_layers(network).values()]
    rates = []
    for step in range(7):
        if step % 3 == 0:
            rates += [
                next(g["lr"] for g in optimizer.param_groups if any(p is w for p in g["params"]))
                for w in weights
            ]
        optimizer.step()
        scheduler.step() if step < 6 else None
    for row, rate in zip(SMALL.tile_pulls(trained), rates, strict=True):
        assert row["rate"] == pytest.approx(rate)
        assert row["push"] == pytest.approx(rate / (1 - 0.9) * row["noise"] / 2)


def test_of_smaller_batches_than_training_s_the_push_is_unknown(trained):
    rows = replace(SMALL, pull_images=20).tile_pulls(trained)
    assert [row["batch_size"] for row in rows] == [16] * 4 + [10] * 2
    assert [math.isnan(row["push"]) for row in rows] == [False] * 4 + [True] * 2


def test_more_images_for_the_pull_than_there_are_are_all(trained):
    assert replace(SMALL, pull_images=512).tile_pulls(trained) == (
        replace(SMALL, pull_images=48).tile_pulls(trained)
    )


def test_the_loss_along_the_deviations_has_both_statistics(trained):
    run = replace(SMALL, loss_scales=(0.0, 1.0))
    images, labels = pull_images(trained, 40)

    def reestimate(network):
        reestimate_normalisation(network, images, trained.scaling)

    wanted = []
    for how in (None, reestimate):
        wanted += loss_along_scale(
            trained.network, trained.scaling(images), labels, (0.0, 1.0), batch_size=16, seed=2,
            reestimate=how,
        )  # fmt: skip
    rows = run.scaled_losses(trained)
    assert rows == [asdict(one) for one in wanted]
    assert [(row["statistics"], row["layer"], row["scale"]) for row in rows] == [
        (statistics, layer, scale)
        for statistics in ("batch", "reestimated")
        for layer in (*LAYERS, "all")
        for scale in (0.0, 1.0)
    ]
    assert replace(SMALL, loss_scales=()).scaled_losses(trained) == []


def test_the_loss_is_measured_under_a_fixed_assignment_too(trained):
    fixed = with_network(trained, tiling="image")
    assert len(SMALL.tile_pulls(replace(fixed, measurements=[]))) == 2
    assert len(replace(SMALL, loss_scales=(0, 1)).scaled_losses(fixed)) == 12


def test_new_measurements_leave_the_others_as_they_were(trained):
    own = ("tile_pulls", "scaled_losses", "measurement")
    records = [
        replace(SMALL, pull_images=images, pull_draws=draws, loss_scales=scales).measure(
            trained, progress=False
        )
        for images, draws, scales in ((40, 1, (0.5,)), (20, 2, ()))
    ]
    first, second = ({k: v for k, v in r.items() if k not in own} for r in records)
    assert first == second


# --- Determinism ------------------------------------------------------------------------------


def test_the_seed_decides_everything_and_nothing_is_drawn_from_the_caller(trained, penalties):
    torch.manual_seed(5)
    state, weights = torch.get_rng_state(), trained.network.state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    again = SMALL.penalties(trained)
    pulls = SMALL.pulls(trained)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in weights.items())
    assert not trained.network.training
    pd.testing.assert_frame_equal(again, penalties, check_exact=True)
    assert SMALL.pulls(trained) == pulls
    other = replace(SMALL, seed=3)
    assert (other.penalties(trained)["measured"] != penalties["measured"]).all()
    assert other.pulls(trained) != pulls


# --- The record -------------------------------------------------------------------------------


@pytest.mark.parametrize("tiling", ["random", "random_fixed", "image"])
def test_the_record_is_plain_json(trained, tmp_path, tiling):
    of = trained if tiling == "random" else make(tiling=tiling, epochs=1)
    similarities = SMALL.similarities(of)
    record = SMALL.measure(of, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    back = json.loads((tmp_path / "record.json").read_text())
    assert back | {"run": tmp_path.name} == json.loads(json.dumps(record)) == record
    assert len(back["similarities"]) == len(similarities)
    assert pd.DataFrame(back["similarities"])["between_tiles"].tolist() == (
        similarities["between_tiles"].tolist()
    )
    assert list(back["pulls"]) == (LAYERS if tiling == "random" else [])
    assert len(back["penalties"]) == (6 if tiling == "random" else 0)
    assert np.shape(back["filters"]) == (4, 4, 2, 3, 3)
    expected = {
        "dataset": "tiny bands", "tiling": tiling, "n_tiles": "4-2-1", "pooling": "avg",
        "tile_init": "independent", "activation": "tanh", "normalisation": "batch",
        "tile_lr_power": 1.0, "epochs": of.recipe.training.epochs, "seed": 4, "device": "cpu",
        "data_fingerprint": tiny_dataset().fingerprint, "config": of.parameters,
        "measurement": {
            "images": 8, "draws": 3, "probes": 3, "scales": [1.0, 0.5], "pull_images": 40,
            "pull_draws": 1, "loss_scales": [0.0, 0.25, 0.5, 1.0, 1.25], "seed": 2,
        },
    }  # fmt: skip
    assert {key: back[key] for key in expected} == expected


def test_what_is_no_number_is_null(trained, penalties):
    record = SMALL.measure(trained, progress=False)
    assert [row["penalty"] is None for row in record["similarities"]] == [
        False, False, True, True, False, False,
    ]  # fmt: skip
    for row, (_, shown) in zip(record["penalties"], penalties.iterrows(), strict=True):
        assert (row["predicted"] is None) == (row["layer"] == "all")
        assert row["measured"] == shown["measured"]


def test_the_catalogue_s_experiment_leaves_what_the_catalogue_says(trained):
    assert experiment("filter_similarity") is EXPERIMENT is FilterSimilarity
    collected = EXPERIMENT.collect([SMALL.measure(trained, progress=False)])
    entry = EXPERIMENT.entry()
    assert (tuple(collected.tables), tuple(collected.figures)) == (entry.tables, entry.figures)
    for draw in collected.figures.values():
        draw().draw_without_rendering()


# --- Filters ----------------------------------------------------------------------------------


def with_filters(weight):
    """A tiny network whose first layer has these kernels (tiles, filters, channels, h, w)."""
    network = tiny_network(n_tiles=(weight.shape[0], 1, 1), channels=(weight.shape[1], 4, 6))
    next(iter(tiled_layers(network).values())).weight.data.copy_(weight)
    return network


def test_filters_stand_by_likeness_each_scaled_to_one():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 2, 3, 3, generator=generator)
    noise = torch.randn(4, 6, 2, 3, 3, generator=generator)
    share = torch.tensor([0.9, 0.0, 0.4, 3.0, 0.2, 0.6])  # the more noise, the less alike
    weight = base + share.view(-1, 1, 1, 1) * noise
    shown = torch.tensor(shown_filters(with_filters(weight)), dtype=torch.float64)
    assert shown.shape == (6, 4, 2, 3, 3)
    order = share.argsort()
    wanted = weight.transpose(0, 1)[order]
    wanted = wanted / wanted.abs().amax((2, 3, 4), keepdim=True)
    assert torch.allclose(shown, wanted.double(), atol=6e-4)
    assert (shown.abs().amax((2, 3, 4)) == 1).all()


def test_of_many_filters_and_tiles_some_are_shown():
    generator = torch.Generator().manual_seed(1)
    share = torch.linspace(0, 4, 20)[torch.randperm(20, generator=generator)]
    weight = torch.randn(20, 2, 3, 3, generator=generator)
    weight = weight + share.view(-1, 1, 1, 1) * torch.randn(16, 20, 2, 3, 3, generator=generator)
    shown = torch.tensor(shown_filters(with_filters(weight)))
    assert shown.shape == (SHOWN_FILTERS, SHOWN_TILES, 2, 3, 3)
    unit = shown.flatten(2) / shown.flatten(2).norm(dim=-1, keepdim=True)
    alike = unit.sum(1).square().sum(-1)
    assert alike[:6].min() > alike[6:].max()
    assert (unit[0] @ unit[0].T).min() > 0.99  # of the filter that is the same on all tiles


def test_filters_of_zeros_stay_zeros():
    weight = torch.randn(4, 3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[:, 1] = 0
    shown = np.array(shown_filters(with_filters(weight)))
    assert not shown[-1].any()
    assert np.isfinite(shown).all()


@pytest.mark.parametrize("changes", [{"tiling": "none"}, {"n_tiles": (1, 1, 1)}], ids=str)
def test_no_tiles_no_filters(changes):
    assert shown_filters(tiny_network(**changes)) == []
