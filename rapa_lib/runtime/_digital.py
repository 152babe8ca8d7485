"""The same network on a digital processor, by the roofline model: for orientation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from rapa_lib._checks import check_bool, check_int, check_real, optional
from rapa_lib.runtime._layers import NetworkLayers, as_layers

if TYPE_CHECKING:
    import pandas as pd


def roofline_table(
    model: nn.Module | NetworkLayers,
    input_size: Sequence[int] | None = None,
    *,
    flops_per_s: float,
    bytes_per_s: float,
    bytes_per_number: float = 4.0,
    batch_size: int = 1,
    training: bool = False,
) -> "pd.DataFrame":
    """Estimate a digital processor's time per layer by the roofline model.

    A layer takes max(2 · MAC / peak, bytes / bandwidth), with bytes for its weights (read once a
    batch), inputs and outputs. That is the least time that such a processor could take, not what
    one does: no launch times, caches, or layers that are fused; one tile's kernel matrix a layer,
    as an ordinary network has. Source of the model: Williams, Waterman, Patterson, Communications
    of the ACM 52:65 (2009).

    Args:
        model, input_size: as in :func:`run_time`.
        flops_per_s: peak, in floating-point operations a second (two a multiply-accumulate).
        bytes_per_s: memory bandwidth.
        bytes_per_number: 4 for float32.
        batch_size: images that share one reading of the weights.
        training: count the products of the backward pass and the update too: three times the
            operations and bytes of the forward pass.

    Returns:
        One row a layer: layer, kind, macs and bytes an image, ``time_us`` an image, ``bound``
        (``"compute"`` or ``"memory"``).

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.
    """
    network = as_layers(model, input_size)
    peak = check_real("flops_per_s", flops_per_s, low=0, open_low=True)
    bandwidth = check_real("bytes_per_s", bytes_per_s, low=0, open_low=True)
    width = check_real("bytes_per_number", bytes_per_number, low=0, open_low=True)
    check_int("batch_size", batch_size, low=1)
    passes = 3 if check_bool("training", training) else 1
    rows = []
    for layer in network.layers:
        numbers = layer.weights / batch_size + layer.inputs + layer.outputs
        macs, n_bytes = passes * layer.macs, passes * width * numbers
        compute, memory = 2 * macs / peak, n_bytes / bandwidth
        rows.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "macs": macs,
                "bytes": n_bytes,
                "time_us": 1e6 * max(compute, memory),
                "bound": "compute" if compute >= memory else "memory",
            }
        )
    return optional("pandas", "figures").DataFrame(rows)
