"""Training does what its configuration says, to the last bit, however often it is interrupted."""

import contextlib
import itertools
import logging
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import same_bits, tiny_dataset, tiny_network
from torch import nn

import rapa_lib.training.loop
from rapa_lib import (
    DivergedError,
    InputScaling,
    RapaConv2d,
    TrainConfig,
    Training,
    convert_to_rapa,
    train,
)
from rapa_lib._seeds import seeded
from rapa_lib.analog import NotFiniteError, convert_to_analog, rpu_baseline
from rapa_lib.training import (
    augment,
    error_percent,
    load_checkpoint,
    one_cycle_sgd,
    predict,
    save_checkpoint,
)
from rapa_lib.training.checkpoints import ResumeFile

SHORT = TrainConfig(epochs=3, batch_size=16, learning_rate=0.02, mirror=True, max_shift=1, seed=4)


def run(config=SHORT, *, dataset=None, checkpoint=None, init_seed=0, **changes):
    """Train a fresh tiny network; return it and its training."""
    network = tiny_network(init_seed=init_seed, **changes)
    dataset = tiny_dataset() if dataset is None else dataset
    return network, train(network, dataset, config, checkpoint=checkpoint, progress=False)


def untimed(training: Training):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in training.history]


class Linear(nn.Module):
    """The smallest network: one linear layer; counts its steps and can be told to misbehave."""

    def __init__(self, *, bad_step=None):
        super().__init__()
        self.layer = nn.Linear(2 * 8 * 8, 3)
        self.bad_step, self.steps, self.images, self.logits = bad_step, 0, [], []

    def forward(self, x):
        logits = self.layer(x.flatten(1))
        if self.training:
            self.steps += 1
            self.images.append(x.detach().clone())
            self.logits.append(logits.detach())
            if self.steps == self.bad_step:
                logits = logits * torch.nan
        return logits


# --- Input ------------------------------------------------------------------------------------


def reflected(index, size):
    """Walk from pixel to pixel, turning at each border."""
    position, step = 0, 1 if index >= 0 else -1
    for _ in range(abs(index)):
        if size > 1:
            if not 0 <= position + step < size:
                step = -step
            position += step
    return position


def source_pixels(height, width, down, right, mirrored):
    """Where each pixel of a shifted, then mirrored image comes from: rows (H, 1), columns (W,)."""
    rows = [reflected(i + down, height) for i in range(height)]
    columns = [reflected(j + right, width) for j in range(width)]
    return torch.tensor(rows)[:, None], torch.tensor(columns[::-1] if mirrored else columns)


@pytest.mark.parametrize(
    ("mirror", "max_shift", "size"),
    [
        (True, 0, (4, 5)),
        (False, 2, (5, 4)),
        (True, 1, (4, 5)),
        (True, 3, (2, 3)),
        (True, 1, (1, 4)),
    ],
)
def test_augment_against_a_walk_over_pixels(mirror, max_shift, size):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (240, 2, *size), dtype=torch.uint8)
    before = images.clone()
    augmented = augment(images, mirror, max_shift)
    assert augmented.dtype == torch.uint8
    assert augmented.shape == images.shape
    assert torch.equal(images, before)
    shifts = range(-max_shift, max_shift + 1)
    choices = itertools.product(shifts, shifts, (False, True) if mirror else (False,))
    sources = [source_pixels(*size, *choice) for choice in choices]
    met = set()
    for image, result in zip(images, augmented, strict=True):
        fits = [i for i, pixels in enumerate(sources) if torch.equal(result, image[:, *pixels])]
        assert fits, "this image is no shifted and mirrored version of its original"
        met.update(fits if len(fits) == 1 else ())
    if max_shift < min(size):  # else several shifts give the same image
        assert met == set(range(len(sources)))


def test_augment_shifts_by_what_it_says():
    image = torch.arange(4.0).expand(1, 1, 4, 4)
    rows = {tuple(augment(image, False, 1)[0, 0, 0].tolist()) for _ in range(60)}
    # The border reflects: the pixel at the border is not doubled.
    assert rows == {(0, 1, 2, 3), (1, 2, 3, 2), (1, 0, 1, 2)}


def test_augment_draws_every_shift_and_mirror_alike():
    torch.manual_seed(1)
    index = torch.arange(9.0).expand(4000, 1, 1, 9)
    rows, counts = augment(index, True, 1)[:, 0, 0].unique(dim=0, return_counts=True)
    assert len(rows) == 6
    assert ((counts - 4000 / 6).abs() < 5 * (4000 / 6) ** 0.5).all()


def test_augment_off_gives_the_images_and_draws_nothing():
    images = tiny_dataset().train_images
    state = torch.get_rng_state()
    assert torch.equal(augment(images, False, 0), images)
    assert torch.equal(torch.get_rng_state(), state)


def test_input_scaling_against_double_precision():
    images = tiny_dataset().train_images
    scaling = InputScaling.of(images)
    pixels = images.double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(scaling.mean, dtype=torch.double), mean)
    torch.testing.assert_close(torch.tensor(scaling.std, dtype=torch.double), std)
    scaled = scaling(images)
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(scaled.double(), expected, rtol=1e-5, atol=1e-5)
    assert scaled.dtype == torch.float32
    assert scaled.is_contiguous(memory_format=torch.channels_last)


def test_input_scaling_of_a_constant_channel_stays_finite():
    images = torch.full((3, 1, 2, 2), 51, dtype=torch.uint8)
    scaling = InputScaling.of(images)
    assert scaling.mean == pytest.approx((0.2,))
    assert scaling.std == (1 / 255,)
    torch.testing.assert_close(scaling(images), torch.zeros(3, 1, 2, 2), rtol=0, atol=1e-4)


def test_input_scaling_leaves_the_caller_s_images_alone():
    images = tiny_dataset().train_images[:4].float().contiguous(memory_format=torch.channels_last)
    before = images.clone()
    with contextlib.suppress(TypeError, ValueError):  # refusing what is not uint8 would do as well
        InputScaling((0.2, 0.2), (0.1, 0.1))(images)
    assert torch.equal(images, before)


# --- Configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs: got 0, allowed: at least 1"),
        ({"epochs": 1.0}, TypeError, "epochs: got 1.0, expected an integer"),
        ({"epochs": True}, TypeError, "epochs: got True, expected an integer"),
        ({"batch_size": 1}, ValueError, "batch_size: got 1, allowed: at least 2"),
        ({"batch_size": "16"}, TypeError, "batch_size: got '16', expected an integer"),
        ({"learning_rate": 0}, ValueError, "learning_rate: got 0.0, allowed: finite, above 0"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate: got -0.1, allowed: .*above 0"),
        ({"learning_rate": float("inf")}, ValueError, "learning_rate: got inf, allowed: finite"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate: got nan, allowed: finite"),
        ({"learning_rate": "0.1"}, TypeError, "learning_rate: got '0.1', expected a number"),
        ({"momentum": -0.1}, ValueError, "momentum: got -0.1, allowed: .*at least 0 and at most"),
        ({"momentum": 1.1}, ValueError, "momentum: got 1.1, allowed: .* 1"),
        ({"momentum": None}, TypeError, "momentum: got None, expected a number"),
        ({"weight_decay": -1e-4}, ValueError, "weight_decay: got -0.0001, allowed: .*at least 0"),
        ({"weight_decay": float("inf")}, ValueError, "weight_decay: got inf, allowed: finite"),
        ({"weight_decay": False}, TypeError, "weight_decay: got False, expected a number"),
        ({"tile_lr_power": -0.5}, ValueError, "tile_lr_power: got -0.5, allowed: .*at least 0"),
        ({"tile_lr_power": float("nan")}, ValueError, "tile_lr_power: got nan, allowed: finite"),
        ({"tile_lr_power": [1]}, TypeError, r"tile_lr_power: got \[1\], expected a number"),
        ({"mirror": 1}, TypeError, "mirror: got 1, expected True or False"),
        ({"mirror": "no"}, TypeError, "mirror: got 'no', expected True or False"),
        ({"max_shift": -1}, ValueError, "max_shift: got -1, allowed: at least 0"),
        ({"max_shift": 1.5}, TypeError, "max_shift: got 1.5, expected an integer"),
        ({"eval_every": 0}, ValueError, "eval_every: got 0, allowed: at least 1"),
        ({"eval_every": 2.0}, TypeError, "eval_every: got 2.0, expected an integer"),
        ({"seed": -1}, ValueError, "seed: got -1, allowed: 0 to 9223372036854775807"),
        ({"seed": None}, TypeError, "seed: got None, expected an integer"),
    ],
)
def test_bad_values_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        TrainConfig(**arguments)


def test_batch_size_above_the_data_is_named_and_nothing_is_trained():
    network = tiny_network()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"batch_size: got 49, .*tiny bands has 48 training"):
        train(network, tiny_dataset(), TrainConfig(batch_size=49), progress=False)
    assert same_bits(network.state_dict(), before)


# --- Rates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_every_parameter_has_the_rate_and_the_decay_of_its_layer(power):
    network = tiny_network(pooling="mixed", n_tiles=(9, 4, 1))
    config = TrainConfig(learning_rate=0.1, weight_decay=0.01, tile_lr_power=power, momentum=0.8)
    optimizer, _ = one_cycle_sgd(network, config, steps=7)
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert parameter not in found
            found[parameter] = group["max_lr"], group["weight_decay"]
            assert (group["momentum"], group["dampening"], group["nesterov"]) == (0.8, 0, False)
    expected = {
        network.classifier.weight: (0.1, 0.01),
        network.classifier.bias: (0.1, 0),
    }
    for block, tiles in zip(network.features, (9, 4, 1), strict=True):
        convolution, _, norm, pool = block
        expected[convolution.weight] = 0.1 * tiles**power, 0.01 / tiles**power
        expected[convolution.bias] = 0.1 * tiles**power, 0
        expected[norm.weight] = expected[norm.bias] = expected[pool.logit] = 0.1, 0
    assert found.keys() == expected.keys() == set(network.parameters())
    for parameter, rates in expected.items():
        assert found[parameter] == pytest.approx(rates, rel=1e-12)


def test_a_converted_model_gets_rates_layer_by_layer():
    model = convert_to_rapa(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), {"1": 4})
    optimizer, _ = one_cycle_sgd(model, TrainConfig(learning_rate=0.1), steps=2)
    rates = {p: group["max_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[p] for p in model.parameters()] == pytest.approx([0.1, 0.1, 0.4, 0.4])


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
        nn.InstanceNorm2d(4, affine=True),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_no_normalisation_layer_decays(norm):
    optimizer, _ = one_cycle_sgd(norm, TrainConfig(weight_decay=0.1), steps=2)
    assert [g["weight_decay"] for g in optimizer.param_groups for _ in g["params"]] == [0, 0]


def test_the_schedule_rises_to_the_peak_and_falls_to_almost_nothing():
    network = tiny_network()
    config = TrainConfig(epochs=5, learning_rate=0.3, tile_lr_power=1.0)
    optimizer, scheduler = one_cycle_sgd(network, config, steps=20)
    rates = []
    for _ in range(100):
        rates.append({g["max_lr"]: g["lr"] for g in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    for peak in (0.3, 0.6, 1.2):  # 1, 2 and 4 tiles
        curve = np.array([r[peak] for r in rates])
        assert curve.max() == pytest.approx(peak, rel=1e-3)
        assert (np.diff(curve[: curve.argmax() + 1]) > 0).all()
        assert (np.diff(curve[curve.argmax() :]) < 0).all()
        assert curve[0] < 0.05 * peak
        assert curve[-1] < 0.001 * peak


def one_step(network, config):
    """Train one step on all images at once; return how far each convolution's mean moved."""
    before = [block[0] for block in map(list, network.features)]
    means = [_mean(c, "weight").clone() for c in before], [_mean(c, "bias").clone() for c in before]
    one = replace(config, epochs=1, batch_size=48)
    training = train(network, tiny_dataset(), one, progress=False)
    weights = [_mean(c, "weight") - old for c, old in zip(before, means[0], strict=True)]
    biases = [_mean(c, "bias") - old for c, old in zip(before, means[1], strict=True)]
    return weights + biases, training


def _mean(convolution, name):
    parameter = getattr(convolution, name).detach()
    return parameter.mean(0) if isinstance(convolution, RapaConv2d) else parameter


@pytest.mark.parametrize("tiling", ["random", "image", "alternate", "random_fixed"])
def test_with_power_one_the_mean_kernel_moves_as_the_ordinary_kernel(tiling):
    """Equal tiles, one step: Σ_t gradient_t is the ordinary gradient, so the mean moves alike."""
    n_tiles = (16, 8, 4)
    ordinary = tiny_network(tiling="none", init_seed=1)
    moves = {}
    for power in (1.0, 0.0):
        tiled = tiny_network(tiling=tiling, n_tiles=n_tiles, tile_init="identical")
        state = ordinary.state_dict()
        for name, value in tiled.state_dict().items():
            if name in state and name.startswith("features") and ".0." in name:
                state[name] = state[name].expand_as(value)
            elif name not in state:
                state[name] = value  # the seeds of assignments
        tiled.load_state_dict(state)
        config = TrainConfig(learning_rate=1.0, weight_decay=0.2, tile_lr_power=power)
        moves[power], _ = one_step(tiled, config)
    moves["none"], _ = one_step(ordinary, config)
    for i, expected in enumerate(moves["none"]):
        size = float(expected.abs().max())
        assert size > 1e-4
        torch.testing.assert_close(moves[1.0][i], expected, rtol=1e-3, atol=1e-3 * size)
        if i >= 3:  # biases: no weight decay, so the whole move is n_t times smaller
            slow = expected / n_tiles[i - 3]
            torch.testing.assert_close(moves[0.0][i], slow, rtol=1e-3, atol=1e-3 * size)


def test_one_step_is_plain_sgd():
    """The decay is added to the gradient; loss and error are those of the step's own pass."""
    network = tiny_network(tiling="none")
    old = {name: p.detach().clone() for name, p in network.named_parameters()}
    data = tiny_dataset()
    reference = tiny_network(tiling="none").train()
    logits = reference(InputScaling.of(data.train_images)(data.train_images))
    loss = F.cross_entropy(logits, data.train_labels)
    loss.backward()
    config = TrainConfig(epochs=1, learning_rate=0.5, weight_decay=0.1)
    rate = one_cycle_sgd(reference, config, steps=1)[0].param_groups[0]["lr"]
    _, training = one_step(network, config)
    for name, parameter in network.named_parameters():
        gradient = reference.get_parameter(name).grad
        decays = name.endswith("0.weight") or name == "classifier.weight"
        step = gradient + 0.1 * old[name] * decays
        expected = old[name] - rate * step
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)
    (row,) = training.history
    assert row["train_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert row["train_error"] == pytest.approx(error_percent(logits, data.train_labels))


# --- Training ---------------------------------------------------------------------------------


def test_an_easy_task_is_learnt_and_the_history_tells_it():
    config = TrainConfig(epochs=12, batch_size=16, learning_rate=0.05)
    network, training = run(config, tiling="none")
    data = tiny_dataset()
    assert [row["epoch"] for row in training.history] == list(range(1, 13))
    losses = [row["train_loss"] for row in training.history]
    assert losses[-1] < 0.5 * losses[0]
    assert training.history[-1]["test_error"] <= 20
    logits = predict(network, data.test_images, training.scaling)
    assert training.history[-1]["test_error"] == error_percent(logits, data.test_labels)
    assert training.scaling == InputScaling.of(data.train_images)
    assert training.seconds == sum(row["seconds"] for row in training.history) > 0


@pytest.mark.parametrize("tiling", ["random", "perforated"])
def test_rapa_learns_the_easy_task_too(tiling):
    _, training = run(TrainConfig(epochs=20, batch_size=16, learning_rate=0.02), tiling=tiling)
    assert training.history[-1]["train_loss"] < 0.7 * training.history[0]["train_loss"]
    assert training.history[-1]["test_error"] <= 35  # 67 by guessing


def test_every_epoch_sees_whole_batches_in_a_new_order_and_reports_their_means():
    network = Linear()
    data = tiny_dataset()
    config = TrainConfig(epochs=2, batch_size=20, learning_rate=1e-3)
    history = train(network, data, config, progress=False).history
    assert [len(batch) for batch in network.images] == [20, 20, 20, 20]  # 8 of 48 are left out
    scaled = InputScaling.of(data.train_images)(data.train_images).flatten(1)
    epochs = []
    for row, part in zip(history, (slice(0, 2), slice(2, 4)), strict=True):
        seen = torch.cat(network.images[part]).flatten(1)
        index = torch.cdist(seen, scaled).argmin(1)
        torch.testing.assert_close(seen, scaled[index])
        assert len(index.unique()) == 40
        epochs.append(index)
        logits, labels = torch.cat(network.logits[part]), data.train_labels[index]
        assert row["train_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert row["train_error"] == pytest.approx(error_percent(logits, labels))
    assert not torch.equal(*epochs)


def test_same_seed_same_bits_and_another_seed_others():
    first, training = run()
    again, same = run()
    other, different = run(replace(SHORT, seed=5))
    assert same_bits(first.state_dict(), again.state_dict())
    assert untimed(training) == untimed(same)
    assert not same_bits(first.state_dict(), other.state_dict())
    assert untimed(training) != untimed(different)


def test_what_the_caller_drew_before_does_not_matter_and_is_not_disturbed():
    first, _ = run()
    torch.manual_seed(99)
    random.seed(99)
    states = torch.get_rng_state(), random.getstate()
    again, _ = run()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert same_bits(first.state_dict(), again.state_dict())


def test_seeded_draws_the_same_inside_and_restores_after_an_error():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)

    def fail(*seeds):
        with seeded(*seeds):
            drawn.append(torch.rand(4))
            raise KeyError

    drawn = []
    for seeds in ((1, 2), (1, 2), (2, 1)):
        with pytest.raises(KeyError):
            fail(*seeds)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.rand(3), expected)


def test_predict_uses_evaluation_mode_in_parts_and_restores_the_mode():
    network = tiny_network(tiling="none")
    data = tiny_dataset()
    scaling = InputScaling.of(data.train_images)
    network.train()
    logits = predict(network, data.test_images, scaling, batch_size=7)
    assert network.training
    assert not logits.requires_grad
    network.eval()
    expected = network(scaling(data.test_images))
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-5, atol=1e-5)
    predict(network, data.test_images, scaling)
    assert not network.training


def test_predict_restores_the_mode_of_every_part():
    """A frozen normalisation layer (in evaluation mode by its user) must stay frozen."""
    network = tiny_network().train()
    network.features[0][2].eval()
    data = tiny_dataset()
    predict(network, data.test_images, InputScaling.of(data.train_images))
    assert network.training
    assert network.features[1][2].training
    assert not network.features[0][2].training


def test_error_percent_by_hand():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert error_percent(scores, torch.tensor([1, 0, 0])) == pytest.approx(100 / 3)
    assert error_percent(scores, torch.tensor([1, 0, 1])) == 0


@pytest.mark.parametrize(("every", "tested"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_testing_seldom_leaves_the_rows_without_a_test_empty_and_the_bits_alone(
    tmp_path, every, tested
):
    config = replace(SHORT, epochs=5)
    network, training = run(config)
    seldom, other = run(replace(config, eval_every=every), checkpoint=tmp_path / "resume.pt")
    assert same_bits(network.state_dict(), seldom.state_dict())
    for row, expected in zip(untimed(other), untimed(training), strict=True):
        there = row["epoch"] in tested
        assert row == expected | ({} if there else {"test_error": None})
    again, same = run(replace(config, eval_every=every), checkpoint=tmp_path / "resume.pt")
    assert same.history == other.history
    assert same_bits(again.state_dict(), seldom.state_dict())


# --- Divergence -------------------------------------------------------------------------------


def test_divergence_names_epoch_step_and_rate():
    with pytest.raises(DivergedError, match=r"nan at epoch \d+, step \d+, .*= 1000000.0 and"):
        run(replace(SHORT, learning_rate=1e6), normalisation="none")


@pytest.mark.parametrize(("bad_step", "epoch", "step"), [(3, 1, 3), (24, 1, 24), (25, 2, 1)])
def test_divergence_names_the_step_where_it_happened(bad_step, epoch, step):
    config = TrainConfig(epochs=2, batch_size=2, learning_rate=1e-3)
    with pytest.raises(DivergedError, match=f"epoch {epoch}, step {step},"):
        train(Linear(bad_step=bad_step), tiny_dataset(), config, progress=False)


def test_divergence_in_the_last_step_is_seen():
    """A finite last loss with an infinite gradient leaves no network worth a record."""

    class LastStep(Linear):
        def forward(self, x):
            logits = super().forward(x)
            # Zero, with the derivative ∞ · 0.
            return logits + (0 * self.layer.weight).abs().sum().sqrt()

    network = LastStep()
    config = TrainConfig(epochs=1, batch_size=48)
    with pytest.raises(DivergedError):
        train(network, tiny_dataset(), config, progress=False)


def test_statistics_that_overflow_are_a_divergence():
    """Normalised by its own batch every loss is finite; tested, the network would give nothing."""

    class Huge(nn.Module):
        def forward(self, x):
            return x * 1e25

    network = nn.Sequential(Huge(), nn.BatchNorm2d(2), Linear())
    with pytest.raises(
        DivergedError, match=r"^values of 1\.running_var are not finite after epoch 1"
    ):
        train(network, tiny_dataset(), TrainConfig(epochs=2, batch_size=16), progress=False)


class _Planted(torch.autograd.Function):
    """Passes numbers on; its backward raises what was planted in the third step."""

    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.error is not None:
            raise ctx.error
        return grad, None


class _WithPlantedError(Linear):
    def __init__(self, error, **options):
        super().__init__(**options)
        self.error = error

    def forward(self, x):
        return _Planted.apply(super().forward(x), self.error if self.steps == 3 else None)


def test_a_bug_in_a_backward_pass_surfaces_as_itself():
    """It is no divergence: only what tiles say of numbers that are not finite is."""
    config = TrainConfig(epochs=1, batch_size=16)
    with pytest.raises(ValueError, match=r"^planted$"):
        train(_WithPlantedError(ValueError("planted")), tiny_dataset(), config, progress=False)


@pytest.mark.parametrize(
    ("bad_step", "message"),
    [(None, "at epoch 1, step 3: error: got"), (3, "the loss is nan at epoch 1, step 3, with lea")],
)
def test_numbers_that_tiles_refuse_are_a_divergence(bad_step, message):
    network = _WithPlantedError(NotFiniteError("error: got inf"), bad_step=bad_step)
    config = TrainConfig(epochs=1, batch_size=16)
    with pytest.raises(DivergedError, match=f"^{message}"):
        train(network, tiny_dataset(), config, progress=False)


@pytest.mark.filterwarnings("ignore:.* were clipped")
@pytest.mark.parametrize("compiled", [True, False])
def test_a_diverging_training_on_analog_tiles_says_so(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr("rapa_lib.analog._compiled.serves", lambda tensor: False)
    network = nn.Sequential(_Exploding(), convert_to_analog(tiny_network(), rpu_baseline()))
    with pytest.raises(DivergedError, match=r"at epoch 1, step 2: input: got numbers that are not"):
        train(network, tiny_dataset(), TrainConfig(epochs=1, batch_size=16), progress=False)


class _Exploding(nn.Module):
    """Images as they are, and in the second step infinite ones."""

    steps = 0

    def forward(self, x):
        self.steps += self.training
        return x * torch.inf if self.steps == 2 else x


# --- Interruption -----------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
import torch
torch.set_num_threads(int(sys.argv[2]))
from test_training import run
from rapa_lib import RapaConvNet
from rapa_lib.training import load_checkpoint

checkpoint, where = sys.argv[3], None
def die():
    os.kill(os.getpid(), signal.SIGKILL)

forward, steps = RapaConvNet.forward, 0
def counted(self, x):
    global steps
    steps += self.training
    if where == "step" and steps == 3 + 2:  # the second of three steps of the second epoch
        die()
    return forward(self, x)
RapaConvNet.forward = counted

save = torch.save
def torn(content, path):
    save(content, path)
    if len(content["history"]) == 2:
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)
        die()

for where in ("step", "save"):
    child = os.fork()
    if child == 0:
        if where == "save":
            torch.save = torn
        run(checkpoint=checkpoint)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(where, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    print(*[row["epoch"] for row in load_checkpoint(checkpoint)["history"]])
"""


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path):
    """Killed in the midst of epoch 2, again while epoch 2 is being saved, and then finished."""
    checkpoint = tmp_path / "resume.pt"
    undisturbed, expected = run()
    arguments = [Path(__file__).parent, torch.get_num_threads(), checkpoint]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.stdout.split("\n") == ["step True", "1", "save True", "1", ""], done.stderr
    assert [path.name[:6] for path in tmp_path.iterdir() if path != checkpoint] == [".part-"]
    network, training = run(checkpoint=checkpoint)
    assert same_bits(network.state_dict(), undisturbed.state_dict())
    assert untimed(training) == untimed(expected)
    assert len(training.history) == 3


def test_a_finished_training_is_not_repeated(tmp_path):
    network, training = run(checkpoint=tmp_path / "resume.pt")
    again, same = run(checkpoint=tmp_path / "resume.pt", init_seed=9)
    assert same_bits(network.state_dict(), again.state_dict())
    assert training.history == same.history  # the seconds too: nothing was run
    assert same.scaling == training.scaling


def test_checkpoints_change_nothing(tmp_path):
    network, training = run()
    other, same = run(checkpoint=tmp_path / "resume.pt")
    assert same_bits(network.state_dict(), other.state_dict())
    assert untimed(training) == untimed(same)


@pytest.mark.parametrize(("seconds", "written"), [(0, [1, 2, 3]), (25, [1, 3]), (1e9, [1, 3])])
def test_short_epochs_are_not_all_written(tmp_path, monkeypatch, seconds, written):
    """The first and the last are; by this clock ten seconds pass between two looks at it."""
    ticks, saved = itertools.count(0, 10), []
    monkeypatch.setattr(rapa_lib.training.loop.time, "monotonic", lambda: next(ticks))
    save = ResumeFile.save

    def noting(self, history, measurements):
        saved.append(len(history))
        save(self, history, measurements)

    monkeypatch.setattr(ResumeFile, "save", noting)
    train(
        tiny_network(), tiny_dataset(), SHORT, checkpoint=tmp_path / "resume.pt",
        checkpoint_seconds=seconds, progress=False,
    )  # fmt: skip
    assert saved == written


def test_a_training_goes_on_from_an_earlier_epoch_than_the_one_it_was_stopped_after(tmp_path):
    """Epoch 2 was trained and not written: it is trained again, to the same bits."""
    undisturbed = tiny_network()
    seen, last = [], 2

    def stopping(_, epoch):
        seen.append(epoch)
        if epoch > last:
            raise KeyboardInterrupt

    def go_on(network):
        return train(
            network, tiny_dataset(), SHORT, checkpoint=tmp_path / "resume.pt",
            checkpoint_seconds=1e9, on_epoch=stopping, progress=False,
        )  # fmt: skip

    expected = train(undisturbed, tiny_dataset(), SHORT, progress=False)
    with pytest.raises(KeyboardInterrupt):
        go_on(tiny_network())
    assert len(load_checkpoint(tmp_path / "resume.pt")["history"]) == 1
    seen, last = [], 3
    network = tiny_network(init_seed=9)
    training = go_on(network)
    assert seen == [2, 3]
    assert same_bits(network.state_dict(), undisturbed.state_dict())
    assert untimed(training) == untimed(expected)


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.9, -1])
def test_a_truncated_checkpoint_is_logged_and_not_used(tmp_path, caplog, kept):
    """Bytes kept: a number, a share, or all but the last."""
    checkpoint = tmp_path / "resume.pt"
    one = replace(SHORT, epochs=1)
    network, training = run(one, checkpoint=checkpoint)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with caplog.at_level(logging.WARNING, "rapa_lib"):
        again, same = run(one, checkpoint=checkpoint)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert str(checkpoint) in caplog.text
    assert same_bits(network.state_dict(), again.state_dict())
    assert untimed(training) == untimed(same)
    assert load_checkpoint(checkpoint)["history"] == same.history


def test_damage_is_seen_wherever_it_is(tmp_path, caplog):
    """One byte of a tensor changed on the disk, and files that never were checkpoints."""
    path = tmp_path / "resume.pt"
    weights = torch.linspace(1, 2, 5000)
    save_checkpoint(path, {"model": {"weight": weights}})
    whole = path.read_bytes()
    at = whole.index(weights.numpy().tobytes()[:64])
    flipped = bytearray(whole)
    flipped[at + 1001] ^= 8
    rng = np.random.default_rng(0)
    noise = [rng.bytes(size) for size in rng.integers(1, 300, 60)]
    for damaged in (bytes(flipped), b"PK\x03\x04" + bytes(200), *noise):
        path.write_bytes(damaged)
        caplog.clear()
        assert load_checkpoint(path) is None
        assert str(path) in caplog.text


def test_a_missing_checkpoint_is_none_without_a_word(tmp_path, caplog):
    assert load_checkpoint(tmp_path / "resume.pt") is None
    assert not caplog.records


def other_pixel():
    data = tiny_dataset()
    images = data.train_images.clone()
    images[0, 0, 0, 0] ^= 1
    return replace(data, train_images=images)


@pytest.mark.parametrize(
    ("config", "dataset", "message"),
    [
        (replace(SHORT, learning_rate=0.03), None, "learning_rate is 0.02, this one's 0.03"),
        (replace(SHORT, epochs=4), None, "epochs is 3, this one's 4"),
        (replace(SHORT, seed=5), None, "seed is 4, this one's 5"),
        (SHORT, other_pixel(), "data_fingerprint is [0-9a-f]{64}, this one's [0-9a-f]{64}"),
    ],
    ids=["learning_rate", "epochs", "seed", "data"],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, config, dataset, message):
    checkpoint = tmp_path / "resume.pt"
    run(checkpoint=checkpoint)
    saved = checkpoint.read_bytes()
    network = tiny_network(init_seed=9)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(ValueError, match=f"checkpoint: .*resume.pt .*its {message}"):
        train(network, dataset or tiny_dataset(), config, checkpoint=checkpoint, progress=False)
    assert same_bits(network.state_dict(), before)
    assert checkpoint.read_bytes() == saved


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": (4, 4, 7)},
        {"n_tiles": (4, 4, 1)},
        {"normalisation": "group"},
        {"tiling": "image"},
        {"pooling": "avg"},
        {"activation": "tanh"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path, changes):
    """Also of one whose parameters would fit: half of each network is no network."""
    checkpoint = tmp_path / "resume.pt"
    run(replace(SHORT, epochs=1), checkpoint=checkpoint)
    network = tiny_network(init_seed=9, **changes)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"checkpoint: .*resume.pt"):
        train(
            network, tiny_dataset(), replace(SHORT, epochs=1), checkpoint=checkpoint, progress=False
        )
    assert same_bits(network.state_dict(), before)  # nothing half-done


@pytest.mark.parametrize(
    "content",
    [{}, {"parameters": {}, "state": {}}, {"config": {}}],
    ids=["empty", "network", "incomplete"],
)
def test_a_checkpoint_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "network.pt"
    save_checkpoint(path, content)
    with pytest.raises(ValueError, match=r"checkpoint: .*network.pt"):
        run(checkpoint=path)


@pytest.mark.parametrize("content", [{"format": 99}, [1, 2], {"model": {}}], ids=str)
def test_a_checkpoint_of_an_unknown_format_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "resume.pt")
    with pytest.raises(ValueError, match=r"checkpoint: .*resume.pt is in no format"):
        load_checkpoint(tmp_path / "resume.pt")


def test_a_checkpoint_that_cannot_be_written_is_known_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    one = TrainConfig(epochs=1, batch_size=16)
    for checkpoint in (tmp_path / "new" / "resume.pt", tmp_path / "file" / "resume.pt"):
        network = Linear()
        try:
            train(network, tiny_dataset(), one, checkpoint=checkpoint, progress=False)
        except (OSError, ValueError):
            assert network.steps == 0
        else:
            assert load_checkpoint(checkpoint) is not None


def test_a_save_that_fails_midway_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "resume.pt"
    save_checkpoint(path, {"history": [1]})
    before = path.read_bytes()

    def torn(content, part):
        assert Path(part).parent == tmp_path  # one file system, so that the rename is one act
        assert Path(part) != path
        Path(part).write_bytes(before[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"history": [1, 2]})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_disk_stops_a_training_with_its_last_checkpoint_usable(tmp_path, monkeypatch):
    checkpoint = tmp_path / "resume.pt"
    undisturbed, expected = run()
    save, calls = torch.save, []

    def third_fails(content, part):
        calls.append(len(content["history"]))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(content, part)

    monkeypatch.setattr(torch, "save", third_fails)
    with pytest.raises(OSError, match="No space"):
        run(checkpoint=checkpoint)
    network, training = run(checkpoint=checkpoint)
    assert calls == [1, 2, 2, 3]
    assert same_bits(network.state_dict(), undisturbed.state_dict())
    assert untimed(training) == untimed(expected)


def test_numbers_of_numpy_survive_a_checkpoint(tmp_path, caplog):
    """A grid made with numpy gives numpy's numbers; what is saved must be readable again."""
    config = replace(SHORT, epochs=1, learning_rate=np.float64(0.02), seed=np.int64(4))
    network, _ = run(config, checkpoint=tmp_path / "resume.pt")
    again, _ = run(replace(SHORT, epochs=1), checkpoint=tmp_path / "resume.pt", init_seed=9)
    assert not caplog.records
    assert same_bits(network.state_dict(), again.state_dict())


def measure_first_weight(model, epoch, scaling):
    torch.randn(3)
    return None if epoch == 1 else {"weight": float(next(model.parameters()).detach().sum())}


def test_measurements_are_kept_and_leave_no_trace_in_the_bits(tmp_path):
    config = TrainConfig(epochs=3, batch_size=16)
    plain, measured = tiny_network(), tiny_network()
    before = measure_first_weight(measured, 0, None)
    train(plain, tiny_dataset(), config, progress=False)
    training = train(measured, tiny_dataset(), config, progress=False, measure=measure_first_weight)
    assert same_bits(plain.state_dict(), measured.state_dict())
    assert [row["epoch"] for row in training.measurements] == [0, 2, 3]
    assert training.measurements[0] == {"epoch": 0} | before
    assert training.measurements[-1]["weight"] == measure_first_weight(measured, 3, None)["weight"]


def test_measurements_outlive_an_interruption(tmp_path):
    config = TrainConfig(epochs=3, batch_size=16)

    def stop_in_epoch_3(model, epoch, scaling):
        if epoch == 3:
            raise KeyboardInterrupt
        return measure_first_weight(model, epoch, scaling)

    path = tmp_path / "resume.pt"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_network(), tiny_dataset(), config, checkpoint=path, progress=False,
              measure=stop_in_epoch_3)  # fmt: skip
    common = {"progress": False, "measure": measure_first_weight}
    resumed = train(tiny_network(), tiny_dataset(), config, checkpoint=path, **common)
    straight = train(tiny_network(), tiny_dataset(), config, **common)
    assert resumed.measurements == straight.measurements
