"""Similarity of tiles, against loops over all pairs."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from rapa_lib import RapaConv2d
from rapa_lib.instruments.similarity import kernel_similarity, tile_similarity, tiled_layers


def kernels(tiles, filters=4, inputs=6, seed=0, common=0.0):
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(tiles, filters, inputs, generator=generator)
    return own + common * torch.randn(filters, inputs, generator=generator)


def cosine(a, b):
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def looped(k):
    """All measures by loops over every pair."""
    tiles, filters, _ = k.shape
    pairs = list(itertools.combinations(range(tiles), 2))
    between = [cosine(k[s, f], k[t, f]) for s, t in pairs for f in range(filters)]
    within = [
        cosine(k[t, f], k[t, g])
        for t in range(tiles)
        for f, g in itertools.combinations(range(filters), 2)
    ]

    def similarity(a, b):
        return float((a @ b.T).norm() ** 2 / ((a @ a.T).norm() * (b @ b.T).norm()))

    def matching(a, b):
        return max(
            np.mean([cosine(a[f], b[g]) for f, g in enumerate(order)])
            for order in itertools.permutations(range(filters))
        )

    mean = k.mean(0)
    return {
        "between_tiles": np.mean(between),
        "between_tiles_std": np.std(between),
        "within_tile": np.mean(within),
        "variance_ratio": float(((k - mean) ** 2).mean() / k.var(correction=0)),
        "cka": np.mean([similarity(k[s], k[t]) for s, t in pairs]),
        "matched": np.mean([matching(k[s], k[t]) for s, t in pairs]),
    }


@pytest.mark.parametrize("common", [0.0, 0.5, 3.0])
def test_the_measures_are_those_of_all_pairs(common):
    k = kernels(5, common=common)
    found = kernel_similarity(k)
    for name, value in looped(k).items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-5), name


def test_identical_tiles_agree_entirely():
    layer = RapaConv2d(3, 8, 3, n_tiles=4, tile_init="identical")
    (found,) = tile_similarity(nn.Sequential(layer, nn.ReLU()))
    assert found.layer == "0"
    assert found.n_tiles == 4
    for name in ("between_tiles", "cka", "matched"):
        assert getattr(found, name) == pytest.approx(1, abs=1e-6)
    assert found.between_tiles_std == pytest.approx(0, abs=1e-6)
    assert found.variance_ratio == pytest.approx(0, abs=1e-12)
    assert abs(found.within_tile) < 0.5


@pytest.mark.parametrize("tiles", [8, 100])
def test_independent_gaussian_tiles_agree_by_chance_alone(tiles):
    filters, inputs = 16, 75
    found = kernel_similarity(kernels(tiles, filters, inputs))
    pairs = tiles * (tiles - 1) / 2
    # The cosine of two Gaussian vectors has variance 1 / inputs.
    assert abs(found.between_tiles) < 4 / math.sqrt(inputs * filters * pairs)
    assert abs(found.within_tile) < 4 / math.sqrt(inputs * tiles * filters * (filters - 1) / 2)
    assert found.between_tiles_std == pytest.approx(inputs**-0.5, rel=0.12 if tiles == 8 else 0.02)
    assert found.variance_ratio == pytest.approx(1 - 1 / tiles, abs=0.01)
    assert found.cka == pytest.approx(found.cka_chance, rel=0.05)
    assert found.matched == pytest.approx(found.matched_chance, abs=0.02)
    assert found.matched > 0.1


def test_permuted_filters_are_found_by_what_needs_no_order():
    k = kernels(1, 8, 20)[0]
    orders = [torch.randperm(8, generator=torch.Generator().manual_seed(s)) for s in range(4)]
    found = kernel_similarity(torch.stack([k[order] for order in orders]))
    assert found.between_tiles < 0.6
    assert found.matched == pytest.approx(1, abs=1e-6)
    assert found.cka == pytest.approx(1, abs=1e-6)


def test_rotated_outputs_are_found_by_cka_alone():
    k = kernels(1, 8, 20)[0]
    turned = torch.linalg.qr(kernels(1, 8, 8, seed=3)[0]).Q @ k
    found = kernel_similarity(torch.stack([k, turned]))
    assert found.cka == pytest.approx(1, abs=1e-5)
    assert found.matched < 0.9


def test_small_deviations_are_seen():
    base = kernels(1, 4, 6, common=0)[0]
    k = torch.stack([base, base, base]) + 1e-4 * kernels(3)
    found = kernel_similarity(k)
    expected = looped(k.double())["variance_ratio"]
    assert found.variance_ratio == pytest.approx(expected, rel=1e-2)
    assert 0 < found.variance_ratio < 1e-6


def test_beyond_64_tiles_the_mean_stays_exact_and_the_rest_is_sampled():
    k = kernels(70, 3, 5, common=1.0)
    first, second = kernel_similarity(k, seed=1), kernel_similarity(k, seed=2)
    expected = looped(k)
    for found in (first, second):
        assert found.between_tiles == pytest.approx(expected["between_tiles"], abs=1e-6)
        assert found.between_tiles_std == pytest.approx(expected["between_tiles_std"], rel=0.05)
        assert found.cka == pytest.approx(expected["cka"], rel=0.05)
    assert first.between_tiles_std != second.between_tiles_std
    assert kernel_similarity(k, seed=1) == first


def test_filters_of_zeros_agree_with_nothing():
    k = kernels(3)
    k[:, 0] = 0
    found = kernel_similarity(k)
    assert math.isfinite(found.between_tiles)
    others = kernel_similarity(k[:, 1:])
    assert found.between_tiles == pytest.approx(0.75 * others.between_tiles, abs=1e-6)
    nothing = kernel_similarity(torch.zeros(3, 4, 5))
    assert (nothing.between_tiles, nothing.variance_ratio, nothing.cka) == (0, 0, 0)


def test_one_filter_has_no_other():
    assert kernel_similarity(kernels(3, filters=1)).within_tile is None


def test_layers_with_several_tiles_are_measured_in_order():
    model = nn.Sequential(
        RapaConv2d(2, 4, 3, n_tiles=4), nn.Conv2d(4, 4, 1), RapaConv2d(4, 4, 1, n_tiles=1),
        RapaConv2d(4, 4, 3, groups=2, n_tiles=2),
    )  # fmt: skip
    assert list(tiled_layers(model)) == ["0", "3"]
    rng = torch.get_rng_state()
    assert [found.layer for found in tile_similarity(model)] == ["0", "3"]
    assert torch.equal(torch.get_rng_state(), rng)
    assert tile_similarity(nn.Linear(2, 2)) == []


def test_bad_input_fails_at_the_door():
    with pytest.raises(TypeError, match="model: got int"):
        tile_similarity(3)
    with pytest.raises(ValueError, match=r"kernels: got shape \(1, 4, 6\)"):
        kernel_similarity(kernels(1))
    with pytest.raises(ValueError, match=r"kernels: got shape \(4, 6\)"):
        kernel_similarity(kernels(3)[0])
    broken = RapaConv2d(2, 4, 3, n_tiles=4)
    broken.weight.data[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer '0' has weights that are not finite"):
        tile_similarity(nn.Sequential(broken))
    with pytest.raises(ValueError, match="seed: got -1"):
        tile_similarity(broken, seed=-1)
