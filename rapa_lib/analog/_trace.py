"""One pulsed update slot by slot, to look at: which trains fired, and what the weights did."""

from typing import NamedTuple

import torch
from torch import Tensor

from rapa_lib._checks import check_int, check_real
from rapa_lib.analog._device_config import PulsedDevice
from rapa_lib.analog._devices import CrossPoints, pulse
from rapa_lib.analog._pulses import Trains, _bits
from rapa_lib.analog._tile_array import AnalogTileArray


class PulseTrace(NamedTuple):
    """What an update by pulses did, slot by slot.

    Args:
        x: pulses of the columns, (BL, K): −1, 0 (none) or 1, the sign of the input.
        d: pulses of the rows, (BL, M), likewise of the error.
        weights: the tile before the first slot and after each, (BL + 1, M, K).
    """

    x: Tensor
    d: Tensor
    weights: Tensor


@torch.no_grad()
def trace_update(
    tiles: AnalogTileArray, x: Tensor, d: Tensor, lr: float, *, tile: int = 0
) -> PulseTrace:
    """Send the pulses of W ← W − lr · d xᵀ to one tile and keep what happens in every slot.

    The same draws and the same bits as :meth:`AnalogTileArray.update` with
    ``UpdateParameters(method="sequential")``, whatever the method of the tiles.

    Args:
        tiles: the tiles, of which one is updated.
        x: input (K,).
        d: error (M,).
        lr: learning rate, above zero.
        tile: which one.

    Raises:
        ValueError: if the devices are ideal, compound or have write noise, shapes do not fit, there
            is no such tile, or lr is not positive.
        NotFiniteError: if a number is not finite.
    """
    device = tiles.config.device
    if not isinstance(device, PulsedDevice):
        raise ValueError(f"tiles: got {type(device).__name__}, which pulses do not move directly")
    if device.write_noise:
        raise ValueError("tiles: got devices with write noise, allowed: without")
    for name, vector, width in (("x", x, tiles.in_features), ("d", d, tiles.out_features)):
        if vector.shape != (width,):
            raise ValueError(f"{name}: got shape {tuple(vector.shape)}, expected ({width},)")
    check_real("lr", lr, low=0, open_low=True)
    chosen = slice(check_int("tile", tile, low=0, high=tiles.n_tiles - 1), tile + 1)
    points = CrossPoints._make(
        None if p is None else p.transpose(1, 2)[chosen] for p in tiles.points()
    )
    trains = Trains.of(x[None, None], d[None, None], lr, device.dw_min, tiles.config.update)
    n_slots = int(trains.bl.max())
    x_bits, d_bits = _bits(trains.x, n_slots)[:, 0], _bits(trains.d, n_slots)[:, 0]
    weight = tiles.matrices.data[chosen]
    weights = [weight[0].T.clone()]
    for slot in range(n_slots):
        pulse(weight, -x_bits[:, slot, :, None] * d_bits[:, slot, None, :], points, device)
        weights.append(weight[0].T.clone())
    return PulseTrace(x_bits[0], d_bits[0], torch.stack(weights))
