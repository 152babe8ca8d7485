"""One analog product of many vectors: scale, convert, multiply, add noise, convert back."""

import torch
from torch import Tensor

from rapa_lib.analog._io_config import IOParameters
from rapa_lib.layers.products.gathered import Blocks


def analog_product(rows: Tensor, matrices: Tensor, io: IOParameters) -> Tensor:
    """Multiply vectors with the matrix of their tile, as the periphery lets it happen.

    Args:
        rows: vectors (n_blocks, size, K), those of a block all on one tile.
        matrices: each block's matrix, (n_blocks, K, M).
        io: the periphery.

    Returns:
        (n_blocks, size, M).

    Raises:
        NotFiniteError: if an input is not finite.
    """
    scale = _scale(rows, io)
    y, hit = _read(rows, matrices, io, scale)
    factor = 2.0
    while factor <= io.bm_limit and hit.any():
        block, row = hit.nonzero(as_tuple=True)
        again = Blocks.of(block, len(matrices))
        some = again.take(rows[block, row])
        factors = again.take((scale * factor)[block, row])
        read, exceeds = _read(
            some, matrices if again.tile is None else matrices[again.tile], io, factors
        )
        out, still = rows.new_empty(len(block), y.shape[2]), hit.new_empty(len(block), 1)
        again.put(read, out)
        again.put(exceeds[:, :, None], still)
        y[block, row], hit[block, row] = out, still[:, 0]
        factor *= 2
    return y


class NotFiniteError(ValueError):
    """Analog tiles got numbers that are infinite or not a number."""


def check_finite(name: str, numbers: Tensor) -> None:
    """Raise NotFiniteError if numbers, or the largest of them, are not finite."""
    if not numbers.isfinite().all():
        raise NotFiniteError(f"{name}: got numbers that are not finite, allowed: finite ones")


def _scale(rows: Tensor, io: IOParameters) -> Tensor:
    """What a vector is divided by, (n_blocks, size, 1): 0 for a vector of zeros."""
    if rows.shape[1] == 0 or rows.shape[2] == 0:
        return rows.new_zeros(*rows.shape[:2], 1)
    scale = torch.linalg.vector_norm(rows, float("inf"), dim=2, keepdim=True)
    check_finite("input", scale)
    return scale if io.noise_management == "abs_max" else torch.ones_like(scale)


def _read(rows: Tensor, matrices: Tensor, io: IOParameters, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and for each vector whether one of them went past its bound."""
    nonzero = scale > 0
    scale = torch.where(nonzero, scale, 1)
    x = rows / scale
    if io.inp_res:
        _quantize(x, 2 * io.inp_bound * io.inp_res)
    x.clamp_(-io.inp_bound, io.inp_bound)
    if io.inp_noise:
        x += io.inp_noise * torch.randn_like(x)
    y = x @ matrices
    if io.out_noise or io.w_noise:
        # A vector of zeros is not sent. Noise of weights, new in every product, adds up to noise of
        # the output in proportion to the vector's length.
        sigma = io.out_noise * nonzero
        if io.w_noise:
            length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
            sigma = (sigma**2 + (io.w_noise * length) ** 2).sqrt()
        y.addcmul_(torch.randn_like(y), sigma.to(y.dtype))
    if io.out_res:
        _quantize(y, 2 * io.out_bound * io.out_res)
    bound = io.out_bound * (1 + 1e-6)  # the last step, as it is rounded, is the bound
    hit = (y.abs() > bound).any(2)
    return y.clamp_(-io.out_bound, io.out_bound).mul_(scale), hit


def _quantize(values: Tensor, step: float) -> None:
    """Round to multiples of a step, in place; a tie goes to zero.

    Ties are no rarity: where bound management halves a vector, its largest number lies half-way
    between two steps of the DAC. aihwkit, which divides by the step in single precision, rounds it
    to zero (its reference means are 8 standard errors off otherwise).
    """
    values.mul_((1 - 1e-6) / step).round_().mul_(step)
