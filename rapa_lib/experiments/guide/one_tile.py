"""One analog tile: what it reads, what an update does to it, what a thousand of them cost."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rapa_lib._checks import check_int, check_real
from rapa_lib._seeds import seeded_generator
from rapa_lib.analog import (
    AnalogTileArray,
    ConstantStepDevice,
    IdealDevice,
    IOParameters,
    PulseTrace,
    TileConfig,
    UpdateParameters,
    resolution,
    trace_update,
)
from rapa_lib.experiments.acceleration.networks import RAPA, count_networks
from rapa_lib.runtime import DigitalSide, cost_table

MOST_PULSES = 1000  # what a pulse train can hold


def periphery(out_noise: float, dac_bits: int, adc_bits: int) -> IOParameters:
    """The periphery of a tile with noise and converters of so many bits, otherwise as default.

    Raises:
        ValueError, TypeError: if an argument is not allowed.
    """
    return IOParameters(
        out_noise=out_noise, inp_res=resolution(dac_bits), out_res=resolution(adc_bits)
    )


def read_curve(
    io: IOParameters, *, weight: float = 0.5, span: float = 1.0, n_points: int = 401, seed: int = 0
) -> pd.DataFrame:
    """Read one weight with inputs from −span to span.

    A second input of 1, whose weight is 0, holds the scale: noise management would turn a lone
    input into ±1.

    Args:
        io: periphery of the product.
        weight: that is read.
        span: largest input, at most 1.
        n_points: number of inputs.
        seed: of the noise.

    Returns:
        One row per input: input, exact, read.
    """
    check_real("span", span, low=0, high=1, open_low=True)
    inputs = torch.linspace(-span, span, check_int("n_points", n_points, low=2))
    rows = torch.stack([inputs, torch.ones_like(inputs)], 1)
    read = _read(torch.tensor([[weight, 0.0]]), rows, io, seed)[:, 0]
    return pd.DataFrame({"input": inputs, "exact": weight * inputs, "read": read})


def bound_curve(
    io: IOParameters, *, weight: float = 0.5, n_inputs: int = 75, repeats: int = 20, seed: int = 0
) -> pd.DataFrame:
    """Read sums that grow past the bound of the ADC, with and without bound management.

    Args:
        io: periphery of the product.
        weight: of every input.
        n_inputs: the sum has 1, 2, … so many inputs of 1.
        repeats: reads of each.
        seed: of the noise.

    Returns:
        One row per way, number of inputs and repeat: bound_management, inputs, exact, read.
    """
    count = torch.arange(1, check_int("n_inputs", n_inputs, low=1) + 1)
    count = count.repeat(check_int("repeats", repeats, low=1))
    rows = (torch.arange(n_inputs) < count[:, None]).float()
    matrix = torch.full((1, n_inputs), weight)
    parts = [
        pd.DataFrame(
            {
                "bound_management": way,
                "inputs": count,
                "exact": weight * count,
                "read": _read(matrix, rows, replace(io, bound_management=way), seed)[:, 0],
            }
        )
        for way in ("none", "iterative")
    ]
    return pd.concat(parts, ignore_index=True)


def product_reads(
    io: IOParameters,
    *,
    in_features: int = 75,
    out_features: int = 32,
    n_vectors: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Products of a random kernel matrix with random vectors, exact and as a tile reads them.

    Args:
        io: periphery of the product.
        in_features, out_features: columns K and rows M; weights are uniform within ±1/√K, as
            ``Conv2d`` draws them, inputs uniform within ±1.
        n_vectors: number of vectors.
        seed: of weights, vectors and noise.

    Returns:
        One row per output: exact, read.
    """
    generator = seeded_generator(check_int("seed", seed, low=0), torch.device("cpu"))
    matrix = torch.rand(out_features, in_features, generator=generator).mul_(2).sub_(1)
    matrix /= in_features**0.5
    vectors = torch.rand(n_vectors, in_features, generator=generator).mul_(2).sub_(1)
    read = _read(matrix, vectors, io, seed)
    return pd.DataFrame({"exact": (vectors @ matrix.T).flatten(), "read": read.flatten()})


def relative_error(reads: pd.DataFrame) -> float:
    """Root mean square of read − exact over that of exact."""
    return float(
        np.sqrt(((reads["read"] - reads["exact"]) ** 2).sum() / (reads["exact"] ** 2).sum())
    )


def pulsed_update(
    x: Sequence[float],
    d: Sequence[float],
    lr: float,
    device: ConstantStepDevice | None = None,
    *,
    seed: int = 0,
) -> PulseTrace:
    """Update one tile, its weights at zero, by −lr · d xᵀ, and keep every slot.

    Args:
        x: inputs (K,).
        d: errors (M,).
        lr: learning rate.
        device: its devices; None is ``ConstantStepDevice()``.
        seed: of devices and pulses.
    """
    tiles = AnalogTileArray(
        1, len(x), len(d), TileConfig(device=device or ConstantStepDevice()), seed=seed
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return trace_update(tiles, torch.tensor(x), torch.tensor(d), lr)


def mean_update(
    x: Sequence[float],
    d: Sequence[float],
    lr: float,
    device: ConstantStepDevice | None = None,
    *,
    n_tiles: int = 1024,
    seed: int = 0,
) -> pd.DataFrame:
    """What the same update does to many tiles: the mean and the spread of each weight's change.

    Args:
        x, d, lr, device: as in :func:`pulsed_update`.
        n_tiles: number of tiles, each with devices of its own.
        seed: of devices and pulses.

    Returns:
        One row per weight: asked (−lr · d xᵀ), mean, std.
    """
    config = TileConfig(device=device or ConstantStepDevice())
    tiles = AnalogTileArray(n_tiles, len(x), len(d), config, seed=seed)
    inputs, errors = torch.tensor(x), torch.tensor(d)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tiles.update(
            inputs.expand(n_tiles, -1), errors.expand(n_tiles, -1), lr, torch.arange(n_tiles)
        )
    changes = tiles.read().flatten(1)
    asked = -lr * torch.outer(errors, inputs).flatten()
    return pd.DataFrame({"asked": asked, "mean": changes.mean(0), "std": changes.std(0)})


def response_curve(
    device: ConstantStepDevice, *, n_pulses: int = 1000, n_devices: int = 20, seed: int = 0
) -> np.ndarray:
    """Weights of some devices under pulses up, then as many down, one at a time.

    Args:
        device: its kind.
        n_pulses: up, and down again, 1 to :data:`MOST_PULSES`.
        n_devices: how many, each with parameters of its own.
        seed: of devices and pulses.

    Returns:
        (2 · n_pulses + 1, n_devices), from weight 0.
    """
    check_int("n_pulses", n_pulses, low=1, high=MOST_PULSES)
    # Trains of probability 1 (a little above it, for rounding): every slot is a pulse.
    update = UpdateParameters(
        desired_bl=n_pulses, update_management=False, update_bl_management=False
    )
    lr = n_pulses * device.dw_min * (1 + 1e-6)
    tiles = AnalogTileArray(1, 1, n_devices, TileConfig(update=update, device=device), seed=seed)
    one, down = torch.ones(1), torch.ones(n_devices)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rises = trace_update(tiles, one, -down, lr).weights
        falls = trace_update(tiles, one, down, lr).weights
    return torch.cat([rises, falls[1:]])[:, :, 0].numpy()


def replication_costs(n_tiles: Sequence[int], values_per_second: float = 1e12) -> pd.DataFrame:
    """What tiles of the study's network cost and bring, image after image through a pipeline.

    Args:
        n_tiles: numbers of tiles per layer.
        values_per_second: that digital logic moves to and from the arrays; an assumption.

    Returns:
        One row per number, with the columns of :func:`rapa_lib.runtime.cost_table`.
    """
    digital = DigitalSide(values_per_second=values_per_second)
    table = cost_table(count_networks([RAPA]), n_tiles, digital=digital, schedules=("pipelined",))
    return table[table["access"] == "random"].reset_index(drop=True)


def _read(matrix: Tensor, rows: Tensor, io: IOParameters, seed: int) -> Tensor:
    tiles = AnalogTileArray(
        1, matrix.shape[1], matrix.shape[0], TileConfig(forward=io, device=IdealDevice())
    )
    tiles.program(matrix[None])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(check_int("seed", seed, low=0))
        return tiles(rows)
