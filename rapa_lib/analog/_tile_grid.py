"""A matrix that one array cannot hold: several tile arrays and digital partial sums."""

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_int
from rapa_lib._seeds import mix_seeds
from rapa_lib.analog._config import TileConfig
from rapa_lib.analog._tile_array import AnalogTileArray


class AnalogTileGrid(nn.Module):
    """T tiles whose matrices lie on several arrays each, those of groups on arrays of their own.

    Every array has devices, scale and converters of its own, and draws its pulse trains for its
    part of inputs and errors alone. What the arrays of an output give is added digitally.

    Args:
        n_tiles: T.
        in_features: inputs K of a group.
        out_features: outputs M of all groups.
        config: see :class:`TileConfig`.
        groups: groups of a convolution.
        seed, device, dtype: as in :class:`AnalogTileArray`.

    Shape:
        - ``weight``: (T, M, K)

    Raises:
        ValueError, TypeError: naming the argument.
    """

    def __init__(
        self,
        n_tiles: int,
        in_features: int,
        out_features: int,
        config: TileConfig | None = None,
        *,
        groups: int = 1,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = TileConfig() if config is None else config
        self.n_tiles, self.in_features, self.out_features = n_tiles, in_features, out_features
        seed = int(torch.randint(2**31, ())) if seed is None else check_int("seed", seed, low=0)
        per_group = out_features // groups
        rows, columns = self.config.mapping.parts(in_features, per_group)
        self.where = [
            (group, row, slice(group * per_group + col.start, group * per_group + col.stop))
            for group in range(groups)
            for col in columns
            for row in rows
        ]
        self.blocks = nn.ModuleList(
            AnalogTileArray(
                n_tiles, row.stop - row.start, col.stop - col.start, self.config,
                seed=mix_seeds(seed, i), device=device, dtype=dtype,
            )
            for i, (_, row, col) in enumerate(self.where)
        )  # fmt: skip

    @property
    def arrays(self) -> list[AnalogTileArray]:
        """The arrays: for every group, range of outputs and range of inputs."""
        return list(self.blocks)  # type: ignore[arg-type]  # nothing else is put there

    @property
    def is_ideal(self) -> bool:
        """See :attr:`AnalogTileArray.is_ideal`."""
        return self.arrays[0].is_ideal

    @property
    def weight(self) -> Tensor:
        """The weights (T, M, K) put together: no view."""
        first = self.arrays[0].weight
        whole = first.new_zeros(self.n_tiles, self.in_features, self.out_features)
        for (_, row, col), array in zip(self.where, self.arrays, strict=True):
            whole[:, row, col] = array.read().transpose(1, 2)
        return whole.transpose(1, 2)

    def read(self) -> Tensor:
        """See :meth:`AnalogTileArray.read`."""
        return self.weight

    def program(self, weight: Tensor) -> None:
        """See :meth:`AnalogTileArray.program`."""
        shape = (self.n_tiles, self.out_features, self.in_features)
        if weight.shape != shape:
            raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected {shape}")
        for (_, row, col), array in zip(self.where, self.arrays, strict=True):
            array.program(weight[:, col, row])

    def clip(self) -> int:
        """See :meth:`AnalogTileArray.clip`."""
        return sum(array.clip() for array in self.arrays)

    def extra_repr(self) -> str:
        return f"{self.n_tiles} × ({self.out_features} × {self.in_features})"
