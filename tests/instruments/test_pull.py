"""The pull: against finite differences, against all assignments, and in trained networks."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import same_bits, tiny_dataset, tiny_network
from torch import nn

from rapa_lib import RapaConv2d, TrainConfig, draw_assignment, merge_tiles, train
from rapa_lib._seeds import mix_seeds, seeded
from rapa_lib.analog import AnalogRapaConv2d
from rapa_lib.instruments.penalty import scale_deviations
from rapa_lib.instruments.pull import (
    LayerPull,
    loss_along_scale,
    noise_push,
    predicted_spread,
    tile_pull,
)
from rapa_lib.instruments.similarity import tiled_layers
from rapa_lib.training import InputScaling, reestimate_normalisation

COMMON = {"batch_size": 4, "draws": 3, "seed": 5}


def smooth_network(tiling="random", *, norm=True, seed=0):
    """Two tiled layers of 16 patches, 3 tiles (which do not divide them) and 4; float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            RapaConv2d(2, 3, 3, padding=1, n_tiles=3, tiling=tiling),
            nn.Tanh(),
            nn.BatchNorm2d(3) if norm else nn.Identity(),
            RapaConv2d(3, 4, 3, padding=1, n_tiles=4, tiling=tiling),
            nn.Tanh(),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
        return model.double()


def some_images(n=13):
    """13 images: three batches of four, and one image that is left out."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 2, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 3, (n,), generator=generator)


def passes(model, images, labels, *, batch_size, draws, seed):
    """Losses (batches, draws) of a model: the same batches and draws, by the rule as it is."""
    order = torch.randperm(
        len(images), generator=torch.Generator().manual_seed(mix_seeds(seed, 0, 1))
    )
    rows = []
    for b in range(len(images) // batch_size):
        index = order[b * batch_size : (b + 1) * batch_size]
        row = []
        for draw in range(draws):
            with seeded(seed, 1 + draw, b):
                row.append(F.cross_entropy(model(images[index]), labels[index]))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def deviation(values):
    return (values - values.mean(0)).detach()


@pytest.mark.parametrize("tiling", ["random", "random_fixed", "image", "alternate"])
def test_the_pull_is_the_finite_difference_of_the_mean_loss(tiling):
    model, (images, labels) = smooth_network(tiling), some_images()
    pulls = tile_pull(model, images, labels, **COMMON)
    assert [p.layer for p in pulls] == ["0", "3"]
    step = 1e-4

    @torch.no_grad()
    def mean_loss(layers, scale):
        moved = scale_deviations(model, scale, layers=layers)
        return float(passes(moved, images, labels, **COMMON).mean())

    first, second = (one.pull for one in pulls)
    for layers, found in ((["0"], first), (["3"], second), (["0", "3"], first + second)):
        up, down = mean_loss(layers, 1 + step), mean_loss(layers, 1 - step)
        assert found == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-9)
        assert abs(found) > 1e-4


def test_errors_are_over_batches_and_noise_is_the_variance_of_a_steps_gradients():
    model, (images, labels) = smooth_network(), some_images()
    for draws in (1, 3):
        kinds = COMMON | {"draws": draws}
        for found in tile_pull(model, images, labels, **kinds):
            reference = copy.deepcopy(model)
            layer = reference.get_submodule(found.layer)
            losses = passes(reference, images, labels, **kinds)
            gradients = [
                torch.autograd.grad(loss, [layer.weight, layer.bias], retain_graph=True)
                for loss in losses.flatten()
            ]
            kernels = torch.stack([deviation(g) for g, _ in gradients]).unflatten(0, losses.shape)
            biases = torch.stack([g for _, g in gradients]).unflatten(0, losses.shape)
            kernel_pulls = (kernels * deviation(layer.weight)).flatten(2).sum(2).mean(1)
            bias_pulls = (biases * deviation(layer.bias)).flatten(2).sum(2).mean(1)
            pulls = kernel_pulls + bias_pulls
            assert found.pull == pytest.approx(float(pulls.mean()))
            assert found.kernel_pull == pytest.approx(float(kernel_pulls.mean()))
            assert found.pull_error == pytest.approx(float(pulls.std()) / math.sqrt(3))
            between = float(kernels.mean(1).var(0).sum())
            within = float(kernels.var(1).mean(0).sum()) if draws > 1 else 0.0
            assert found.noise == pytest.approx(between + (1 - 1 / draws) * within)
            assert (found.batches, found.draws) == (3, draws)


def test_the_pull_is_that_of_all_assignments():
    """Two tiles on four patches: six assignments. One image throughout: errors are of draws."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = RapaConv2d(2, 3, 3, padding=1, n_tiles=2)
        model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
        image, label = torch.randn(1, 2, 2, 2).double(), torch.tensor([1])
    assignments = [a for a in itertools.product(range(2), repeat=4) if sum(a) == 2]
    assert len(assignments) == 6
    s = torch.ones((), dtype=torch.float64, requires_grad=True)
    mean_loss = 0
    for assignment in assignments:
        scaled = {
            name: value.detach().mean(0) + s * deviation(value)
            for name, value in layer.named_parameters()
        }
        inputs = (image, torch.tensor([assignment]))
        y = torch.func.functional_call(layer, scaled, inputs)
        mean_loss = mean_loss + F.cross_entropy(model[1:](y), label) / 6
    (exact,) = torch.autograd.grad(mean_loss, s)
    (found,) = tile_pull(model, image.expand(600, -1, -1, -1), label.expand(600), batch_size=4)
    assert 0 < found.pull_error < 0.1 * abs(float(exact))
    assert abs(found.pull - float(exact)) < 4 * found.pull_error


def test_identical_tiles_feel_nothing():
    model, (images, labels) = smooth_network().float(), some_images()
    with torch.no_grad():
        for layer in tiled_layers(model).values():
            for parameter in layer.parameters():
                parameter.copy_(parameter[:1].expand_as(parameter))
    for found in tile_pull(model, images.float(), labels, **COMMON, weight_decay=0.1):
        assert found.pull == found.pull_error == found.kernel_pull == 0
        assert found.decay == found.squared_deviation == 0
        assert found.noise > 0
        assert math.isnan(predicted_spread(found, rate=0.1))
    for found in loss_along_scale(model, images.float(), labels, **COMMON):
        assert found.change == pytest.approx(0, abs=1e-6)


def test_decay_is_the_slope_of_the_decay_of_training():
    model, (images, labels) = smooth_network(), some_images()
    found = tile_pull(model, images, labels, **COMMON, weight_decay=0.1, tile_lr_power=0.5)
    for one in found:
        layer = model.get_submodule(one.layer)
        assert one.n_tiles == layer.n_tiles
        assert one.decay_rate == pytest.approx(0.1 / math.sqrt(layer.n_tiles))
        up, down = (
            float(moved.get_submodule(one.layer).weight.detach().square().sum())
            for moved in (scale_deviations(model, s) for s in (1.001, 0.999))
        )
        assert one.decay == pytest.approx(one.decay_rate / 2 * (up - down) / 0.002)
        assert one.squared_norm == pytest.approx(float(layer.weight.detach().square().sum()))
        assert one.squared_deviation == pytest.approx(float(deviation(layer.weight).square().sum()))
    plain = tile_pull(model, images, labels, **COMMON)
    assert [p.decay for p in plain] == [0, 0]
    assert [p.pull for p in plain] == [p.pull for p in found]


def test_the_loss_along_the_scale_is_that_of_plain_passes():
    model, (images, labels) = smooth_network(), some_images()
    found = loss_along_scale(model, images, labels, (0.25, 1), **COMMON)
    assert [(f.layer, f.scale) for f in found] == [
        (layer, s) for layer in ("0", "3", "all") for s in (0.25, 1.0)
    ]
    trained = passes(copy.deepcopy(model), images, labels, **COMMON).detach().mean(1)
    for one in found:
        names = ["0", "3"] if one.layer == "all" else [one.layer]
        moved = scale_deviations(model, one.scale, layers=names)
        losses = passes(moved, images, labels, **COMMON).detach().mean(1)
        assert one.loss == pytest.approx(float(losses.mean()), rel=1e-12)
        assert one.loss_error == pytest.approx(float(losses.std()) / math.sqrt(3))
        change = losses - trained
        assert one.change == pytest.approx(float(change.mean()), abs=1e-12)
        assert one.change_error == pytest.approx(float(change.std()) / math.sqrt(3), abs=1e-12)
        assert one.statistics == "batch"
        assert (one.batches, one.draws) == (3, 3)
    assert all(one.change == one.change_error == 0 for one in found if one.scale == 1)


def test_with_reestimated_statistics_no_deviations_are_the_merged_network():
    dataset = tiny_dataset()
    scaling = InputScaling.of(dataset.train_images)
    images, labels = scaling(dataset.train_images), dataset.train_labels
    model = tiny_network()

    def reestimate(network):
        reestimate_normalisation(network, dataset.train_images, scaling)

    found = loss_along_scale(
        model, images, labels, (0, 1), batch_size=16, draws=2, reestimate=reestimate
    )
    together = {f.scale: f for f in found if f.layer == "all"}
    merged = merge_tiles(model)
    reestimate(merged)
    expected = float(F.cross_entropy(merged.eval()(images), labels).detach())
    assert together[0].loss == pytest.approx(expected, rel=1e-5)
    assert together[0].statistics == "reestimated"
    trained = copy.deepcopy(model)
    reestimate(trained)
    with torch.no_grad(), seeded(0):
        drawn = torch.stack([F.cross_entropy(trained.eval()(images), labels) for _ in range(20)])
    assert together[1].loss == pytest.approx(float(drawn.mean()), abs=5 * float(drawn.std()))


def test_what_is_given_is_left_as_it_was():
    model, (images, labels) = smooth_network().eval(), some_images()
    model[2].train()
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = tile_pull(model, images, labels, **COMMON)
    losses = loss_along_scale(
        model, images, labels, (0.5,), **COMMON, reestimate=lambda network: network(images)
    )
    assert torch.equal(torch.get_rng_state(), rng)
    assert same_bits(state, model.state_dict())
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad
    with torch.no_grad():
        assert tile_pull(model, images, labels, **COMMON) == first
    assert tile_pull(model, images, labels, **COMMON | {"seed": 6}) != first
    assert losses == loss_along_scale(
        model, images, labels, (0.5,), **COMMON, reestimate=lambda network: network(images)
    )


def test_random_assignment_pulls_the_tiles_together_and_a_fixed_one_does_not():
    dataset, found = tiny_dataset(), {}
    for tiling in ("random", "random_fixed"):
        model = tiny_network(tiling=tiling, activation="tanh", pooling="avg")
        config = TrainConfig(epochs=15, batch_size=8, learning_rate=0.02, tile_lr_power=0.5)
        training = train(model, dataset, config, progress=False)
        images = training.scaling(dataset.train_images)
        found[tiling] = tile_pull(model, images, dataset.train_labels, batch_size=8, draws=12)
    assert all(p.pull > 3 * p.pull_error for p in found["random"]), found
    assert all(p.pull < 2 * p.pull_error for p in found["random_fixed"]), found


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.25)])
def test_the_predicted_spread_is_that_of_simulated_linear_tiles(momentum, decay):
    """Squared loss, white patches, another teacher at each of 8 positions, 4 tiles; 64 replicas.

    Random assignment gives every tile the mean teacher: the pull is ‖δ‖² / n_t.
    """
    n_tiles, n_patches, fan_in, effective = 4, 8, 3, 0.04
    rate = effective * (1 - momentum)
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    teachers = normal(n_patches, fan_in)

    def gradients(kernels):
        n = len(kernels)
        tiles = draw_assignment("random", n, 2, 4, n_tiles, generator=generator)
        x = normal(n, n_patches, fan_in)
        chosen = kernels.gather(1, tiles[:, :, None].expand(-1, -1, fan_in))
        residual = ((chosen - teachers) * x).sum(2) - normal(n, n_patches)
        one_hot = F.one_hot(tiles, n_tiles).float()
        return torch.einsum("nlt,nl,nlk->ntk", one_hot, residual, x) / n_patches

    def deviations(values):
        return values - values.mean(1, keepdim=True)

    start = teachers.mean(0) + deviations(0.03 * normal(1, n_tiles, fan_in))
    squared = float(deviations(start).square().sum())
    noise = float(deviations(gradients(start.expand(4000, -1, -1))).var(0).sum())
    layer = LayerPull(
        "0", n_tiles, squared / n_tiles, 0.0, squared / n_tiles, decay * squared, decay, noise,
        squared, float(start.square().sum()), 4000, 1,
    )  # fmt: skip
    kernels = start.repeat(64, 1, 1)
    velocity, spreads = torch.zeros_like(kernels), []
    for step in range(1500):
        velocity = momentum * velocity + gradients(kernels) + decay * kernels
        kernels = kernels - rate * velocity
        if step >= 400:
            spreads.append(float(deviations(kernels).square().sum((1, 2)).mean()))
    simulated = sum(spreads) / len(spreads)
    predicted = predicted_spread(layer, rate=rate, momentum=momentum)
    assert abs(simulated / squared - 1) > 2  # the start is no stationary state
    assert predicted == pytest.approx(simulated, rel=0.1)
    assert noise_push(layer, rate=rate, momentum=momentum) == pytest.approx(effective * noise / 2)


def test_tiles_that_nothing_holds_have_no_stationary_spread():
    layer = LayerPull("0", 4, -0.2, 0.1, -0.2, 0.1, 0.1, 1.0, 1.0, 2.0, 4, 1)
    assert predicted_spread(layer, rate=0.1) == math.inf


def test_a_network_without_tiles_has_no_pull():
    model, (images, labels) = merge_tiles(smooth_network()), some_images()
    assert tile_pull(model, images, labels, batch_size=4) == []
    assert loss_along_scale(model, images, labels, batch_size=4) == []


def test_bad_input_fails_at_the_door():
    model, (images, labels) = smooth_network(), some_images()
    for measure in (tile_pull, loss_along_scale):
        with pytest.raises(ValueError, match="draws: got 0"):
            measure(model, images, labels, draws=0)
        with pytest.raises(ValueError, match="batch_size: got 7 for 13 images, allowed: at most 6"):
            measure(model, images, labels, batch_size=7)
        with pytest.raises(ValueError, match=r"images: got torch\.int64"):
            measure(model, images.long(), labels, batch_size=4)
        with pytest.raises(ValueError, match=r"labels: got shape \(2,\) for 13 images"):
            measure(model, images, labels[:2], batch_size=4)
        analog = nn.Sequential(AnalogRapaConv2d(2, 3, 1, n_tiles=2), *model[7:])
        with pytest.raises(ValueError, match=r"kernels of layer '0' .* are no parameters"):
            measure(analog, images.float(), labels, batch_size=4)
    with pytest.raises(ValueError, match="weight_decay: got -1"):
        tile_pull(model, images, labels, batch_size=4, weight_decay=-1)
    with pytest.raises(TypeError, match=r"scales: got 0\.5"):
        loss_along_scale(model, images, labels, 0.5, batch_size=4)
    layer = tile_pull(model, images, labels, batch_size=4)[0]
    with pytest.raises(ValueError, match="momentum: got 1"):
        noise_push(layer, rate=0.1, momentum=1)
