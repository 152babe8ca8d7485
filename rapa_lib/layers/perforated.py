"""The perforated convolution: compute some output positions, fill the others from the nearest."""

import torch
from torch import Tensor

from rapa_lib._checks import check_int
from rapa_lib._seeds import seeded_generator
from rapa_lib.layers._patch_conv import OneKernelConv2d, plane_of
from rapa_lib.layers.products.compiled import argsort_rows

# Distances between all positions and the computed ones are formed for a few images at a time.
_DISTANCE_BYTES = 16 * 2**20


class PerforatedConv2d(OneKernelConv2d):
    r"""A 2-D convolution that computes only ceil(L / n_tiles) of its L output positions.

    The positions are drawn anew for every image in every forward pass; each other position takes
    the output of the nearest computed one (Euclidean distance; the first in row-major order among
    equals). One tile alone then takes the time that a RAPA layer of ``n_tiles`` takes. Source:
    Figurnov, Ibraimova, Vetrov, Kohli, "PerforatedCNNs", NIPS 2016; here with random positions.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as in :class:`torch.nn.Conv2d`.
        n_tiles: by how much the work shrinks; 1 computes every position.

    Shape:
        - Input: :math:`(N, C_{in}, H, W)` or :math:`(C_{in}, H, W)`
        - Output: as ``Conv2d``'s
        - ``weight``, ``bias``: as ``Conv2d``'s

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.

    Examples:
        >>> layer = PerforatedConv2d(3, 32, 5, padding=2, n_tiles=16)
        >>> layer(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 32, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        n_tiles: int = 16,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        self.n_tiles = check_int("n_tiles", n_tiles, low=1)
        self._register((), bias, device, dtype)
        self.reset_parameters()

    @property
    def redraws(self) -> bool:
        """Whether every forward pass draws anew."""
        return self.n_tiles > 1

    def positions(self, batch_size: int, input_size: tuple[int, int]) -> Tensor:
        """Draw the output positions that a forward pass would compute.

        Args:
            batch_size: number of images N.
            input_size: height and width of the layer's input.

        Returns:
            LongTensor (N, ceil(L / n_tiles)) of row-major output positions, ascending.

        Raises:
            ValueError: if n_tiles exceeds the number of output positions L.
        """
        check_int("batch_size", batch_size, low=0)
        height, width = self._output_size_for_tiles(input_size)
        n_patches = height * width
        n_computed = -(-n_patches // self.n_tiles)
        return draw_positions(self.weight, batch_size, n_patches, n_computed, self._frozen_seed)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: images (N, C, H, W) or one image (C, H, W).
            positions: LongTensor (N, m) of the output positions to compute, without repetition,
                ascending; None draws them.

        Returns:
            (N, C_out, H', W') or (C_out, H', W').

        Raises:
            ValueError: if a shape does not fit or a position lies outside the output.
        """
        self._check_input(x)
        if x.dim() == 3:
            return self.forward(x[None], positions)[0]
        weight, bias = self.weight[None], None if self.bias is None else self.bias[None]
        if positions is None and self.n_tiles == 1:
            return self._convolve(x, weight, bias, None)
        size = self.output_size(plane_of(x))
        if positions is None:
            positions = self.positions(len(x), plane_of(x))
        else:
            positions = self._check_positions(positions, x, size)
        computed = positions.new_full((len(x), size[0] * size[1]), -1)
        computed.scatter_(1, positions, 0)
        y = self._convolve(x, weight, bias, computed)
        nearest = nearest_position(positions, *size)
        filled = y.flatten(2).gather(2, nearest[:, None].expand(-1, self.out_channels, -1))
        return filled.view_as(y)

    def _check_positions(self, positions: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
        if positions.dim() != 2 or len(positions) != len(x) or positions.shape[1] < 1:
            raise ValueError(
                f"positions: got shape {tuple(positions.shape)}, expected ({len(x)}, m), m ≥ 1"
            )
        last = size[0] * size[1] - 1
        if int(positions.min()) < 0 or int(positions.max()) > last:
            raise ValueError(
                f"positions: got {int(positions.min())} to {int(positions.max())}, "
                f"allowed: 0 to {last}"
            )
        return positions.to(device=x.device, dtype=torch.long)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_tiles={self.n_tiles}"


def nearest_position(positions: Tensor, height: int, width: int) -> Tensor:
    """Find, for every position of a plane, the nearest of the given ones.

    Args:
        positions: LongTensor (N, m) of row-major positions, ascending.
        height, width: the plane.

    Returns:
        LongTensor (N, height * width); among equally near ones the first.
    """
    rows = torch.arange(height, device=positions.device)
    cols = torch.arange(width, device=positions.device)
    y = torch.div(positions, width, rounding_mode="floor")
    x = positions - y * width
    n_images, n_given = positions.shape
    step = max(1, _DISTANCE_BYTES // (4 * height * width * n_given))
    nearest = positions.new_empty(n_images, height * width)
    # Squared distances below 2^24 are exact in float32, so ties are real ties.
    for i in range(0, n_images, step):
        dy = (rows[:, None] - y[i : i + step, None]).square_()  # (n, height, m)
        dx = (cols[:, None] - x[i : i + step, None]).square_()  # (n, width, m)
        distance = dy.float()[:, :, None] + dx.float()[:, None]
        nearest[i : i + step] = positions[i : i + step].gather(1, distance.argmin(3).flatten(1))
    return nearest


@torch.library.custom_op(
    "rapa_lib::draw_positions", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def draw_positions(
    like: Tensor, batch: int, n_patches: int, n_computed: int, seed: int | None
) -> Tensor:
    """Draw positions on the device of ``like``: one operator, as for assignments."""
    generator = seeded_generator(seed, like.device)
    noise = torch.rand(batch, n_patches, generator=generator, device=like.device)
    return argsort_rows(noise)[:, :n_computed].sort(dim=1).values


@draw_positions.register_fake
def _(like: Tensor, batch: int, n_patches: int, n_computed: int, seed: int | None) -> Tensor:
    return like.new_empty(batch, n_computed, dtype=torch.long)
