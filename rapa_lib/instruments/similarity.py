"""Similarity of tiles: do the kernel matrices of a layer agree, and is it more than chance?

A filter is one row of a kernel matrix: the weights of one output channel. All measures are of
weights alone; biases do not count.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rapa_lib._checks import check_int, optional
from rapa_lib._seeds import mix_seeds
from rapa_lib.layers.conv import RapaConv2d

SAMPLED_TILES = 64  # of more tiles, so many stand for all where pairs must be formed
MATCHED_PAIRS = 64  # a matching costs some 0.1 ms


@dataclass(frozen=True)
class LayerSimilarity:
    """How much the tiles of one layer agree.

    Cosines, variances and kernels are of the kernel matrices K_1 … K_T, each (filters, inputs).

    Args:
        layer: its name in the model.
        n_tiles: T.
        between_tiles: mean cosine between corresponding filters, exactly over all pairs of tiles
            and all filters. A filter of zeros has cosine 0 to everything.
        between_tiles_std: standard deviation of these cosines over filters and pairs (all pairs up
            to 64 tiles, a seeded sample of 2,016 beyond).
        within_tile: baseline: mean cosine between different filters of one tile, exactly over
            all pairs of filters and all tiles. None if the layer has one filter.
        variance_ratio: variance between the tiles over total variance, the total taken around the
            mean of all weights: 0 for identical tiles, 1 − 1/T in expectation for independent
            ones of mean zero.
        cka: mean over pairs of tiles of ‖K_s K_tᵀ‖² / (‖K_s K_sᵀ‖ ‖K_t K_tᵀ‖): linear CKA
            (Kornblith et al., ICML 2019) of the tiles' outputs on white inputs. Needs no matching
            of filters: rotations of a tile's outputs do not change it.
        cka_chance: about what ``cka`` is for independent Gaussian kernel matrices of that shape,
            F / (F + D + 1) for F filters of D weights, by the moments of the Wishart distribution.
        matched: mean cosine between the filters of two tiles after the best one-to-one matching
            (at most 64 pairs of tiles).
        matched_chance: the same for independent Gaussian kernel matrices, drawn from the seed.
    """

    layer: str
    n_tiles: int
    between_tiles: float
    between_tiles_std: float
    within_tile: float | None
    variance_ratio: float
    cka: float
    cka_chance: float
    matched: float
    matched_chance: float


def tiled_layers(model: nn.Module) -> dict[str, RapaConv2d]:
    """The RAPA convolutions of a model with at least two tiles, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, RapaConv2d) and layer.n_tiles > 1
    }


@torch.no_grad()
def tile_similarity(model: nn.Module, *, seed: int = 0) -> list[LayerSimilarity]:
    """Measure how much the tiles of every tiled layer agree.

    Args:
        model: any module.
        seed: of the tiles and pairs that are sampled where there are many, and of the chance of
            matching. PyTorch's generators are left alone.

    Returns:
        One entry a layer with at least two tiles, in the model's order; none without such layers.

    Raises:
        TypeError: if the model is no module.
        ValueError: if weights are not finite.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected torch.nn.Module")
    check_int("seed", seed, low=0)
    return [
        kernel_similarity(layer.weight.detach().flatten(2), layer=name, seed=mix_seeds(seed, i))
        for i, (name, layer) in enumerate(tiled_layers(model).items())
    ]


@torch.no_grad()
def kernel_similarity(kernels: Tensor, *, layer: str = "", seed: int = 0) -> LayerSimilarity:
    """Measure how much kernel matrices agree.

    Args:
        kernels: (tiles, filters, inputs), at least two tiles.
        layer: a name for the result.
        seed: see :func:`tile_similarity`.

    Raises:
        ValueError: for a shape that is no stack of kernel matrices, or weights that are not finite.
    """
    if kernels.dim() != 3 or len(kernels) < 2 or 0 in kernels.shape:
        raise ValueError(
            f"kernels: got shape {tuple(kernels.shape)}, expected (tiles, filters, inputs) with at "
            "least two tiles"
        )
    if not kernels.isfinite().all():
        raise ValueError(f"kernels: layer {layer!r} has weights that are not finite")
    n_tiles, n_filters, n_inputs = kernels.shape
    unit = unit_filters(kernels)
    sample: slice | torch.Tensor = slice(None)
    if n_tiles > SAMPLED_TILES:
        drawn = np.random.default_rng(seed).choice(n_tiles, SAMPLED_TILES, replace=False)
        sample = torch.from_numpy(np.sort(drawn))
    return LayerSimilarity(
        layer=layer,
        n_tiles=n_tiles,
        between_tiles=mean_cosine(unit.transpose(0, 1)),
        between_tiles_std=_spread(unit[sample]),
        within_tile=mean_cosine(unit) if n_filters > 1 else None,
        variance_ratio=variance_ratio(kernels),
        cka=_cka(kernels[sample]),
        cka_chance=n_filters / (n_filters + n_inputs + 1),
        matched=_matched(unit[sample], seed),
        matched_chance=_matched_chance(n_filters, n_inputs, seed),
    )


def unit_filters(kernels: Tensor) -> Tensor:
    """Scale filters (…, inputs) to length 1 in float32; zeros stay zeros."""
    kernels = kernels.float()
    return kernels / kernels.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def mean_cosine(unit: Tensor) -> float:
    """Mean cosine over all pairs within each group of unit vectors (groups, n, inputs), n ≥ 2.

    Exact without forming a pair: Σ_{s≠t} u_s·u_t = ‖Σ u‖² − Σ ‖u‖².
    """
    n = unit.shape[1]
    total = unit.sum(1, dtype=torch.float64).square().sum(-1)
    own = torch.linalg.vecdot(unit, unit).sum(1, dtype=torch.float64)
    return float(((total - own) / (n * (n - 1))).mean())


def variance_ratio(kernels: Tensor) -> float:
    """Variance between tiles over total variance of kernels (tiles, …); 0 where nothing varies."""
    mean = kernels.mean(0, dtype=torch.float64)
    # The centre of each weight first: sums of squares would cancel for tiles that nearly agree.
    offsets = kernels - mean.to(kernels.dtype)
    between = float(torch.linalg.vecdot(offsets, offsets).mean(dtype=torch.float64))
    between /= kernels.shape[-1]
    total = between + float((mean - mean.mean()).square().mean())
    return between / total if total > 0 else 0.0


def _spread(unit: Tensor) -> float:
    by_filter = unit.transpose(0, 1)
    first, second = np.triu_indices(len(unit), 1)
    return float((by_filter @ by_filter.mT)[:, first, second].double().std(correction=0))


def _cka(kernels: Tensor) -> float:
    n_tiles, n_filters, _ = kernels.shape
    kernels = kernels.float()
    rows = kernels.flatten(0, 1)
    # A tile against all at a time: the products of all would not fit for wide layers.
    squares = torch.stack(
        [
            (kernel @ rows.T).square().view(n_filters, n_tiles, n_filters).sum((0, 2))
            for kernel in kernels
        ]
    ).double()
    own = squares.diagonal().sqrt()
    scale = (own[:, None] * own).clamp(min=torch.finfo(torch.float64).tiny)
    return _mean_of_pairs(squares / scale)


def _mean_of_pairs(values: Tensor) -> float:
    """Mean of a symmetric matrix off its diagonal."""
    n = len(values)
    return float((values.sum() - values.trace()) / (n * (n - 1)))


def _matched(unit: Tensor, seed: int) -> float:
    first, second = np.triu_indices(len(unit), 1)
    if len(first) > MATCHED_PAIRS:
        chosen = np.random.default_rng(seed).choice(len(first), MATCHED_PAIRS, replace=False)
        first, second = first[chosen], second[chosen]
    return float(
        np.mean([_best_match(unit[s], unit[t]) for s, t in zip(first, second, strict=True)])
    )


def _best_match(a: Tensor, b: Tensor) -> float:
    """Mean cosine of the best one-to-one matching between the rows of two unit matrices."""
    # SciPy takes a second to import.
    linear_sum_assignment = optional("scipy.optimize", "figures").linear_sum_assignment

    cosines = (a @ b.T).double().cpu().numpy()
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())


def _matched_chance(n_filters: int, n_inputs: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    pairs = generator.standard_normal((8, 2, n_filters, n_inputs), dtype=np.float32)
    return float(np.mean([_best_match(*unit_filters(torch.from_numpy(pair))) for pair in pairs]))
