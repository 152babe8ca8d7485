"""Self-regularization: against all assignments, one by one, and against dense Hessians."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rapa_lib import RapaConv2d
from rapa_lib.instruments.penalty import (
    measured_penalty,
    pair_weight,
    penalty_gradient,
    predicted_penalty,
    scale_deviations,
)
from rapa_lib.networks.convert import merge_tiles


def small_network(n_tiles=2, size=2, *, deeper=False, seed=0, tiling="random"):
    """Smooth, in double precision: a layer of size² patches, and something behind it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [RapaConv2d(2, 3, 3, padding=1, n_tiles=n_tiles, tiling=tiling), nn.Tanh()]
        if deeper:
            layers += [RapaConv2d(3, 4, 1, n_tiles=2, tiling=tiling), nn.Tanh()]
        layers += [nn.Flatten(), nn.Linear((4 if deeper else 3) * size * size, 3)]
        return nn.Sequential(*layers).double().eval()


def small_images(n=3, size=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 2, size, size, generator=generator, dtype=torch.float64)
    return images, torch.arange(n) % 3


def balanced_assignments(n_patches, n_tiles):
    """Every assignment whose loads differ by at most one."""
    for tiles in itertools.product(range(n_tiles), repeat=n_patches):
        loads = [tiles.count(t) for t in range(n_tiles)]
        if max(loads) - min(loads) <= 1:
            yield torch.tensor(tiles)


@torch.no_grad()
def enumerated_penalty(model, images, labels, name="0"):
    """The exact mean over all balanced assignments of one layer, the others merged."""
    merged = merge_tiles(model)
    layer = model.get_submodule(name)
    rest = copy.deepcopy(merged)
    rest[int(name)] = copy.deepcopy(layer)
    losses = []
    n_patches = math.prod(layer.output_size(tuple(images.shape[2:])))
    for tiles in balanced_assignments(n_patches, layer.n_tiles):
        x = images
        for module in rest:
            tiled = isinstance(module, RapaConv2d)
            x = module(x, tiles.expand(len(x), -1)) if tiled else module(x)
        losses.append(F.cross_entropy(x, labels))
    return float(torch.stack(losses).mean() - F.cross_entropy(merged(images), labels))


def dense_penalty(model, images, labels, name="0"):
    """R(δ) term by term, from dense Hessians: the formula as it is written."""
    merged, layer = merge_tiles(model), model.get_submodule(name).requires_grad_(False)
    delta, bias = layer.weight - layer.weight.mean(0), layer.bias - layer.bias.mean(0)
    front, back = merged[: int(name)], merged[int(name) + 1 :]
    own = other = 0.0
    for image, label in zip(images, labels, strict=True):
        x = front(image[None])
        y = merged[int(name)](x).detach()
        n_out, n_patches = y.shape[1], y[0, 0].numel()

        def loss(flat, shape=y.shape, label=label):
            return F.cross_entropy(back(flat.view(shape)), label[None])

        hessian = torch.autograd.functional.hessian(loss, y.flatten())
        hessian = hessian.view(n_out, n_patches, n_out, n_patches)
        pad = layer.padding[0]
        for kernel, offset in zip(delta, bias, strict=True):
            v = F.conv2d(x, kernel, offset, padding=pad)[0].flatten(1)
            for p in range(n_patches):
                for q in range(n_patches):
                    form = float(v[:, p] @ hessian[:, p, :, q] @ v[:, q])
                    own += form if p == q else 0.0
                    other += form if p != q else 0.0
    own /= 2 * layer.n_tiles * len(images)
    other *= pair_weight(n_patches, layer.n_tiles) / (2 * len(images))
    return own, other


@pytest.mark.parametrize(("n_patches", "n_tiles"), [(4, 2), (4, 4), (6, 3), (5, 2), (5, 3), (7, 4)])
def test_pair_weight_is_that_of_all_assignments(n_patches, n_tiles):
    together = apart = 0
    assignments = list(balanced_assignments(n_patches, n_tiles))
    for tiles in assignments:
        together += int(tiles[0] == tiles[1] == 0)
        apart += int(tiles[0] == 0 and tiles[1] == 1)
    expected = (together - apart) / len(assignments)
    assert pair_weight(n_patches, n_tiles) == pytest.approx(expected, abs=1e-14)
    if n_patches % n_tiles == 0:
        assert pair_weight(n_patches, n_tiles) == pytest.approx(-1 / (n_tiles * (n_patches - 1)))


@pytest.mark.parametrize("n_tiles", [2, 3, 4])
@pytest.mark.parametrize("deeper", [False, True])
def test_the_prediction_is_exact_as_tiles_approach_each_other(n_tiles, deeper):
    """The relative error falls linearly in ‖δ‖, to under 1 %; 3 tiles do not divide 4 patches."""
    model, (images, labels) = small_network(n_tiles, deeper=deeper), small_images()
    errors = []
    for scale in (0.04, 0.02, 0.01, 0.005, 0.0025):
        closer = scale_deviations(model, scale)
        exact = enumerated_penalty(closer, images, labels)
        predicted = predicted_penalty(closer, images, labels, "0", probes=None).penalty
        errors.append(abs(predicted / exact - 1))
    assert errors[-1] < 0.01
    # Halving δ halves the error; where third order vanishes by symmetry (n_t = 2), quarters it.
    ratios = [b / a for a, b in itertools.pairwise(errors)][1:]
    assert all(0.2 < ratio < 0.55 for ratio in ratios), (errors, ratios)


@pytest.mark.parametrize("n_tiles", [2, 3])
def test_the_terms_are_those_of_dense_hessians(n_tiles):
    model, (images, labels) = small_network(n_tiles, deeper=True), small_images()
    own, other = dense_penalty(model, images, labels)
    found = predicted_penalty(model, images, labels, "0", probes=None)
    assert found.own_patch == pytest.approx(own, rel=1e-9)
    assert found.other_patches == pytest.approx(other, rel=1e-9)
    assert found.penalty == pytest.approx(own + other, rel=1e-9)
    assert found.standard_error == 0
    assert found.probes is None


def test_probes_agree_with_the_exact_sums_within_their_errors():
    model, (images, labels) = small_network(4, 4, deeper=True), small_images(size=4)
    exact = predicted_penalty(model, images, labels, "0", probes=None)
    probed = predicted_penalty(model, images, labels, "0", probes=1000, seed=3)
    assert 0 < probed.standard_error < 0.1 * abs(exact.penalty)
    assert abs(probed.penalty - exact.penalty) < 4 * probed.standard_error
    assert abs(probed.gauss_newton - exact.gauss_newton) < 4 * probed.gauss_newton_standard_error


def test_gauss_newton_is_the_hessian_behind_a_linear_network_and_never_negative():
    images, labels = small_images()
    model = small_network(2)
    linear = nn.Sequential(model[0], nn.Identity(), *model[2:])
    found = predicted_penalty(linear, images, labels, "0", probes=None)
    assert found.gauss_newton == pytest.approx(found.penalty, rel=1e-9)
    curved = [predicted_penalty(small_network(2, seed=s), images, labels, "0", probes=None)
              for s in range(5)]  # fmt: skip
    assert all(f.gauss_newton >= 0 for f in curved)
    assert any(abs(f.gauss_newton - f.penalty) > 0.01 * f.gauss_newton for f in curved)


def test_the_measured_penalty_is_the_mean_over_all_assignments():
    model, (images, labels) = small_network(2, deeper=True), small_images()
    exact = [enumerated_penalty(model, images, labels, name) for name in ("0", "2")]
    first, second, both = measured_penalty(model, images, labels, 4000)
    for found, expected in zip((first, second), exact, strict=True):
        assert abs(found.penalty - expected) < 4 * found.standard_error
        assert found.standard_error < 0.1 * abs(expected)
    assert [first.layer, second.layer, both.layer] == ["0", "2", "all"]
    merged = F.cross_entropy(merge_tiles(model)(images), labels).detach()
    assert both.merged_loss == pytest.approx(float(merged))


def test_the_measured_penalty_of_all_layers_is_that_of_plain_forward_passes():
    model, (images, labels) = small_network(2, deeper=True), small_images()
    both = measured_penalty(model, images, labels, 1000)[-1]
    torch.manual_seed(0)
    with torch.no_grad():
        losses = torch.stack([F.cross_entropy(model(images), labels) for _ in range(2000)])
        plain = losses.mean() - F.cross_entropy(merge_tiles(model)(images), labels)
    error = math.hypot(both.standard_error, float(losses.std()) / math.sqrt(len(losses)))
    assert abs(both.penalty - float(plain)) < 4 * error


def test_the_control_variate_takes_noise_away_and_leaves_the_mean():
    model, (images, labels) = small_network(4, 4), small_images(size=4)
    closer = scale_deviations(model, 0.01)
    found = measured_penalty(closer, images, labels, 200)[0]
    with torch.no_grad():
        torch.manual_seed(0)
        losses = torch.stack([F.cross_entropy(closer(images), labels) for _ in range(200)])
    assert found.standard_error < 0.1 * float(losses.std()) / math.sqrt(200)
    predicted = predicted_penalty(closer, images, labels, "0", probes=None).penalty
    assert abs(found.penalty - predicted) < 4 * found.standard_error + 0.02 * predicted


def test_identical_tiles_have_no_penalty():
    model, (images, labels) = small_network(4, 4, deeper=True), small_images(size=4)
    alike = scale_deviations(model, 0)
    for found in measured_penalty(alike, images, labels, 4):
        assert found.penalty == pytest.approx(0, abs=1e-12)
    assert predicted_penalty(alike, images, labels, "0", probes=4).penalty == 0


def test_the_gradient_is_that_of_the_prediction():
    """Against finite differences of R, whose probes are kept; and Euler's identity."""
    model, (images, labels) = small_network(3, deeper=True), small_images()
    common = {"probes": 5, "seed": 2}
    weight, bias = penalty_gradient(model, images, labels, "0", **common)
    layer = model[0]

    def penalty_at(step):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved[0].weight += step * direction
        return predicted_penalty(moved, images, labels, "0", **common).penalty

    direction = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)).double()
    direction -= direction.mean(0)
    slope = (penalty_at(1e-4) - penalty_at(-1e-4)) / 2e-4
    assert float((weight * direction).sum()) == pytest.approx(slope, rel=1e-6)
    euler = sum(
        float((g * (p - p.mean(0)).detach()).sum())
        for g, p in ((weight, layer.weight), (bias, layer.bias))
    )
    penalty = predicted_penalty(model, images, labels, "0", **common).penalty
    assert euler == pytest.approx(2 * penalty, rel=1e-9)


def test_a_step_down_the_gauss_newton_gradient_brings_the_tiles_together():
    model, (images, labels) = small_network(4, 4), small_images(9, size=4)
    weight, _ = penalty_gradient(model, images, labels, "0", curvature="gauss_newton", probes=200)
    before = model[0].weight.detach()
    after = before - 0.1 * weight
    assert float(after.var(0).sum()) < float(before.var(0).sum())
    assert torch.allclose(after.mean(0), before.mean(0) - 0.1 * weight.mean(0))


@pytest.mark.parametrize("tiling", ["random_fixed", "image", "alternate"])
def test_fixed_assignments_have_no_expectation(tiling):
    model, (images, labels) = small_network(tiling=tiling), small_images()
    with pytest.raises(ValueError, match="no expectation over assignments exists"):
        measured_penalty(model, images, labels)
    with pytest.raises(ValueError, match="no expectation over assignments exists"):
        predicted_penalty(model, images, labels, "0")


def test_what_is_given_is_left_as_it_was():
    model, (images, labels) = small_network(deeper=True).train(), small_images()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = measured_penalty(model, images, labels, 3, seed=5)
    predicted_penalty(model, images, labels, "2", probes=3)
    penalty_gradient(model, images, labels, "2", probes=3)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert measured_penalty(model, images, labels, 3, seed=5) == first
    assert measured_penalty(model, images, labels, 3, seed=6) != first


def test_a_network_without_tiles_has_nothing_to_measure():
    model = merge_tiles(small_network())
    assert measured_penalty(model, *small_images()) == []


def test_bad_input_fails_at_the_door():
    model, (images, labels) = small_network(deeper=True), small_images()
    with pytest.raises(ValueError, match=r"layer: got '1'.*'0', '2'"):
        predicted_penalty(model, images, labels, "1")
    with pytest.raises(ValueError, match=r"layer: got 'x'.*'0', '2'"):
        scale_deviations(model, 0.5, layers=["x"])
    with pytest.raises(ValueError, match="draws: got 1"):
        measured_penalty(model, images, labels, 1)
    with pytest.raises(ValueError, match="probes: got 1"):
        predicted_penalty(model, images, labels, "0", probes=1)
    with pytest.raises(ValueError, match=r"images: got torch.int64"):
        measured_penalty(model, images.long(), labels)
    with pytest.raises(ValueError, match=r"labels: got shape \(2,\) for 3 images"):
        predicted_penalty(model, images, labels[:2], "0")
    with pytest.raises(ValueError, match="curvature: got 'dense'"):
        penalty_gradient(model, images, labels, "0", curvature="dense")
    with pytest.raises(ValueError, match="n_tiles: got 5"):
        pair_weight(4, 5)


def test_a_layer_that_runs_twice_is_refused():
    model, (images, labels) = small_network(), small_images()
    twice = nn.Sequential(nn.Conv2d(2, 3, 1).double(), RapaConv2d(3, 3, 1, n_tiles=2).double())
    twice = nn.Sequential(*twice, twice[1], *model[2:])
    with pytest.raises(ValueError, match="'1' runs more than once"):
        predicted_penalty(twice, images, labels, "1")
