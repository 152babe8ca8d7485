"""Self-regularization: what random assignment adds to the loss, measured and predicted.

Write the kernel matrices of a layer as K_t = K̄ + δ_t with Σ_t δ_t = 0. Under a balanced random
assignment a the outputs of L patches x_p are ȳ_p + ε_p with ȳ_p = K̄ x_p, ε_p = δ_{a(p)} x_p and
E[ε_p] = 0, so to second order in δ, with H_pq the Hessian of one image's loss with respect to
outputs y_p and y_q,

    E_a[loss] − loss(K̄) ≈ R(δ)
        = 1/2 [ 1/n_t Σ_t Σ_p v_tpᵀ H_pp v_tp + c Σ_t Σ_{p≠q} v_tpᵀ H_pq v_tq ]

with v_tp = δ_t x_p. The second term is the price of drawing without replacement:
c = −1/(n_t (L − 1)) where n_t divides L, see :func:`pair_weight` for the rest. Where the loss is
convex, R ≥ 0, and it vanishes only where all tiles agree on the patches that occur: its gradient
pulls the tiles together.
Source of the idea: Rasch, Gokmen, Rigotti, Haensch, Front. Neurosci. 13:753 (2019); the expansion
is derived in docs/self_regularization.md.

Losses are cross-entropies, means over images, in evaluation mode: normalisation with running
statistics leaves images independent of one another.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_choice, check_int, check_real
from rapa_lib._seeds import mix_seeds, seeded
from rapa_lib.instruments._linearisation import Deviation, Taps, linearise
from rapa_lib.instruments._sampling import Expansion, PartlyTiled
from rapa_lib.instruments.similarity import tiled_layers
from rapa_lib.layers._patch_conv import plane_of
from rapa_lib.layers.conv import RapaConv2d
from rapa_lib.layers.tiling import draw_assignment
from rapa_lib.networks.convert import merge_tiles
from rapa_lib.training.images import check_labels, count_classes

ALL_LAYERS = "all"
CURVATURES = ("hessian", "gauss_newton")
_BATCH = 100  # images at a time: bounds the memory of second derivatives


@dataclass(frozen=True)
class MeasuredPenalty:
    """Mean loss over random assignments minus the loss of the mean kernels.

    Args:
        layer: the layer whose tiles differed, the others being merged; ``"all"`` for all at once.
        penalty: the mean over draws.
        standard_error: of that mean, over the draws; the images are taken as given.
        merged_loss: loss of the network of mean kernels (normalisation statistics as they were).
        draws: number of draws.
    """

    layer: str
    penalty: float
    standard_error: float
    merged_loss: float
    draws: int


@dataclass(frozen=True)
class PredictedPenalty:
    """R(δ) of one layer.

    Args:
        layer: its name.
        penalty: R with the Hessian of the loss.
        standard_error: of ``penalty`` over probes; 0 where it was computed exactly.
        own_patch, other_patches: its two terms (see the module's text); their sum is ``penalty``.
        gauss_newton: R with the generalised Gauss–Newton matrix instead, never below 0 but for
            the noise of probes in its second term. Equal to ``penalty`` where the network behind
            the layer is piecewise linear (ReLU, maximum pooling).
        gauss_newton_standard_error: of that.
        probes: number of random probes; None if exact.
    """

    layer: str
    penalty: float
    standard_error: float
    own_patch: float
    other_patches: float
    gauss_newton: float
    gauss_newton_standard_error: float
    probes: int | None


def measured_penalty(
    model: nn.Module, images: Tensor, labels: Tensor, draws: int = 32, *, seed: int = 0
) -> list[MeasuredPenalty]:
    """Measure by Monte Carlo what random assignment adds to the loss of the mean kernels.

    The first-order term gᵀε of the loss has mean zero over balanced random assignments; it is
    subtracted from every draw (a control variate), which leaves the mean and takes most of the
    noise where tiles nearly agree.

    Args:
        model: a network with tiled layers; it is left as it is.
        images: what the model takes (N, C, H, W).
        labels: classes (N,).
        draws: assignments of every image, at least 2.
        seed: of the draws; PyTorch's generators are left alone.

    Returns:
        One entry for every tiled layer alone and, last, one for all of them together; none for a
        model without tiled layers.

    Raises:
        ValueError: if a tiled layer's assignment is fixed: then there is no expectation to take.
    """
    check_int("draws", draws, low=2)
    _check_images(model, images, labels)
    layers = tiled_layers(model)
    for name, layer in layers.items():
        if not layer.redraws:
            raise ValueError(_no_expectation(name, layer))
    groups = {name: [name] for name in layers} | ({ALL_LAYERS: list(layers)} if layers else {})
    network = PartlyTiled(model, scale_deviations(model, 0).eval())
    taps = Taps(merge_tiles(model).eval(), list(layers))
    totals = torch.zeros(len(groups), draws, dtype=torch.float64)
    merged_loss = 0.0
    for index in torch.arange(len(images), device=images.device).split(_BATCH):
        batch, targets = images[index], labels[index]
        loss, inputs, slopes = taps.first_order(batch, targets)
        merged_loss += loss
        for g, names in enumerate(groups.values()):
            with seeded(seed, g, int(index[0])):
                totals[g] += network.losses(names, Expansion(batch, targets, inputs, slopes), draws)
    merged_loss /= len(images)
    means = totals / len(images) - merged_loss
    return [
        MeasuredPenalty(
            name, float(m.mean()), float(m.std()) / math.sqrt(draws), merged_loss, draws
        )
        for name, m in zip(groups, means, strict=True)
    ]


def predicted_penalty(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layer: str,
    *,
    probes: int | None = 64,
    seed: int = 0,
) -> PredictedPenalty:
    """Compute R(δ) of one layer by Hessian-vector products, the other layers being merged.

    Args:
        model, images, labels: as in :func:`measured_penalty`.
        layer: name of a tiled layer.
        probes: random vectors (Hutchinson) for the sums over patches and tiles. None takes all of
            them, n_t (L + 1) products a batch of images: for small layers.
        seed: of the probes; PyTorch's generators are left alone.

    Raises:
        ValueError: if there is no such tiled layer, its tiling is not ``random``, or it runs more
            than once in a forward pass.
    """
    curve = _Curvature(model, images, labels, layer)
    if probes is None:
        own, full = curve.exact(Deviation.of(curve.layer))
        own, full = own[:, None], full[:, None]
    else:
        check_int("probes", probes, low=2)
        deviation = Deviation.of(curve.layer)
        owns: list[Tensor] = []
        fulls: list[Tensor] = []
        with torch.no_grad():
            for signed, mixed in curve.probes(deviation, probes, seed):
                owns.append(curve.layer.n_tiles * curve.quadratic(signed))
                fulls.append(curve.quadratic(mixed))
        own, full = torch.stack(owns, 1), torch.stack(fulls, 1)
    own_term = own / (2 * curve.layer.n_tiles)
    other_term = (full - own) * curve.pair_weight / 2
    penalty = own_term + other_term  # (curvatures, probes)
    error = torch.zeros(2) if probes is None else penalty.std(1) / math.sqrt(probes)
    return PredictedPenalty(
        layer=layer,
        penalty=float(penalty[0].mean()),
        standard_error=float(error[0]),
        own_patch=float(own_term[0].mean()),
        other_patches=float(other_term[0].mean()),
        gauss_newton=float(penalty[1].mean()),
        gauss_newton_standard_error=float(error[1]),
        probes=probes,
    )


def penalty_gradient(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layer: str,
    *,
    curvature: str = "hessian",
    probes: int = 64,
    seed: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Gradient of R with respect to the deviations δ_t of one layer.

    R is quadratic, so Σ_t ⟨∂R/∂δ_t, δ_t⟩ = 2 R: where R > 0, a step down the gradient moves
    the tiles toward their mean.

    Args:
        model, images, labels, layer, seed: as in :func:`predicted_penalty`.
        curvature: ``"hessian"`` or ``"gauss_newton"``.
        probes: random vectors.

    Returns:
        The gradients for the weights (n_tiles, out, in / groups, kh, kw) and biases (n_tiles,
        out), the latter None for a layer without.

    Raises:
        ValueError: as :func:`predicted_penalty`.
    """
    check_int("probes", probes, low=1)
    kind = CURVATURES.index(check_choice("curvature", curvature, CURVATURES))
    curve = _Curvature(model, images, labels, layer)
    deviation = Deviation.of(curve.layer)
    for parameter in (deviation.weight, deviation.bias):
        if parameter is not None:
            parameter.requires_grad_(True)
    own_weight = 1 / curve.layer.n_tiles - curve.pair_weight
    for signed, mixed in curve.probes(deviation, probes, seed):
        for vectors, weight in (
            (signed, own_weight * curve.layer.n_tiles),
            (mixed, curve.pair_weight),
        ):
            for z, product in zip(vectors, curve.products(vectors), strict=True):
                # The gradient of zᵀHz / 2 is Hz: take the product as a constant.
                (z * product[kind]).sum().mul(weight / (probes * curve.n_images)).backward()
    bias = deviation.bias
    assert deviation.weight.grad is not None  # there is a probe
    return deviation.weight.grad, None if bias is None else bias.grad


def scale_deviations(
    model: nn.Module, factor: float, *, layers: list[str] | None = None
) -> nn.Module:
    """Copy a model with every tile moved along its deviation: K_t becomes K̄ + factor · δ_t.

    Args:
        model: any module.
        factor: 0 makes all tiles their mean, 1 leaves them.
        layers: names of the tiled layers to change; None changes all.

    Raises:
        ValueError: for a name that is no tiled layer.
    """
    check_real("factor", factor)
    copied = copy.deepcopy(model)
    tiled = tiled_layers(copied)
    for name in tiled if layers is None else layers:
        if name not in tiled:
            raise ValueError(_no_such_layer(name, tiled))
        with torch.no_grad():
            for parameter in tiled[name].parameters(recurse=False):
                mean = parameter.mean(0)
                parameter.copy_(mean + factor * (parameter - mean))
    return copied


def pair_weight(n_patches: int, n_tiles: int) -> float:
    """The factor c of R's second term.

    Tiles get m_t patches each, which of them get one more being drawn, so two different patches
    meet on a given tile with probability π = Σ_t m_t (m_t − 1) / (n_t L (L − 1)), and
    c = (n_t² π − 1) / (n_t (n_t − 1)); −1/(n_t (L − 1)) where n_t divides L.

    Args:
        n_patches: L, at least 2.
        n_tiles: n_t, 2 to L.
    """
    check_int("n_patches", n_patches, low=2)
    check_int("n_tiles", n_tiles, low=2, high=n_patches)
    small, larger = divmod(n_patches, n_tiles)
    pairs = larger * (small + 1) * small + (n_tiles - larger) * small * (small - 1)
    same = pairs / (n_tiles * n_patches * (n_patches - 1))
    return (n_tiles**2 * same - 1) / (n_tiles * (n_tiles - 1))


class _Curvature:
    """Second derivatives of the merged network's loss with respect to one layer's outputs."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, name: str) -> None:
        _check_images(model, images, labels)
        tiled = tiled_layers(model)
        if name not in tiled:
            raise ValueError(_no_such_layer(name, tiled))
        self.layer = tiled[name]
        if self.layer.tiling != "random":
            raise ValueError(_no_expectation(name, self.layer))
        self.n_images = len(images)
        self.inputs: list[Tensor] = []
        self._products: list[Callable[[Tensor], tuple[Tensor, Tensor]]] = []
        taps = Taps(merge_tiles(model).eval(), [name])
        for batch, targets in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
            zero = taps.output_zeros(batch)[name]
            with torch.no_grad():
                self.inputs.append(taps.run(batch, {})[1][name])
            self._products.append(linearise(taps, batch, targets, name, zero))
        self.pair_weight = pair_weight(zero[0, 0].numel(), self.layer.n_tiles)

    def products(self, vectors: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Hessian and Gauss–Newton matrix times a vector, batch by batch."""
        return [f(z.detach()) for f, z in zip(self._products, vectors, strict=True)]

    def quadratic(self, vectors: list[Tensor]) -> Tensor:
        """Quadratic forms zᵀHz and zᵀGz, means over images: (2,)."""
        total = torch.zeros(2, dtype=torch.float64)
        for z, products in zip(vectors, self.products(vectors), strict=True):
            total += torch.stack([(z * p).sum(dtype=torch.float64).cpu() for p in products])
        return total / self.n_images

    def probes(
        self, deviation: Deviation, count: int, seed: int
    ) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Vectors z, batch by batch, whose zᵀHz have known means.

        These are Σ_tp v_tpᵀ H_pp v_tp / n_t for the first and Σ_t v_tᵀ H v_t for the second. For
        the first every patch is computed by a random tile and has a random sign, for the second
        every tile has one.
        """
        device = self.inputs[0].device
        for probe in range(count):
            generator = torch.Generator(device).manual_seed(mix_seeds(seed, probe))
            signs = _signs((self.layer.n_tiles,), deviation.weight, generator)
            mixed, signed = [], []
            for x in self.inputs:
                height, width = self.layer.output_size(plane_of(x))
                assignment = draw_assignment(
                    "random", len(x), height, width, self.layer.n_tiles,
                    generator=generator, device=device,
                )  # fmt: skip
                z = deviation.assigned(x, assignment)
                signed.append(z * _signs((len(x), 1, height, width), z, generator))
                mixed.append(deviation.mixed(x, signs))
            yield signed, mixed

    @torch.no_grad()
    def exact(self, deviation: Deviation) -> tuple[Tensor, Tensor]:
        """The sums over all tiles and patches themselves: Σ_tp v_tpᵀ H_pp v_tp, Σ_t v_tᵀ H v_t."""
        own, full = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for signs in torch.eye(self.layer.n_tiles).to(deviation.weight):
            vectors = [deviation.mixed(x, signs) for x in self.inputs]
            full += self.quadratic(vectors)
            n_patches = vectors[0][0, 0].numel()
            for patch in range(n_patches):
                only = torch.zeros(n_patches).index_fill(0, torch.tensor(patch), 1)
                own += self.quadratic([z * only.to(z).view(1, 1, *z.shape[2:]) for z in vectors])
        return own, full


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return (2 * signs - 1).to(like.dtype)


def _check_images(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    if images.dim() != 4 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(
            f"images: got {images.dtype} of shape {tuple(images.shape)}, expected floating-point "
            "(N, C, H, W) with N ≥ 1, scaled as the model takes them"
        )
    check_labels(labels, len(images), count_classes(model, images))


def _no_expectation(name: str, layer: RapaConv2d) -> str:
    return (
        f"model: layer {name!r} has tiling {layer.tiling!r}, which is no random draw for every "
        "image: no expectation over assignments exists; needed: tiling 'random'"
    )


def _no_such_layer(name: str, tiled: dict[str, RapaConv2d]) -> str:
    known = ", ".join(map(repr, tiled)) or "none"
    return f"layer: got {name!r}; the model's layers with several tiles: {known}"
