"""The locally connected layer: a convolution whose positions share no kernel."""

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_int
from rapa_lib.layers._patch_conv import PatchConv2d, plane_of


class LocallyConnected2d(PatchConv2d):
    r"""A 2-D convolution with a kernel and a bias of its own at every output position.

    It is the limit of tiling: one tile for each patch, always the same one, as under the tiling
    ``image`` with as many tiles as patches. Tiles are numbered by position here, row by row:

    .. math:: y_p = K_p x_p + b_p

    It computes what ``unfold`` and a product for each position do, without the unfolded input.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as in :class:`torch.nn.Conv2d`.
        input_size: height and width of the images, before padding: they fix the number of
            kernels.

    Shape:
        - Input: :math:`(N, C_{in}, H, W)` or :math:`(C_{in}, H, W)`, (H, W) = ``input_size``
        - Output: :math:`(N, C_{out}, H', W')` or :math:`(C_{out}, H', W')`, H' and W' as in
          ``Conv2d``
        - ``weight``: (H'·W', out_channels, in_channels / groups, kernel height, kernel width)
        - ``bias``: (H'·W', out_channels), or None

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.

    Examples:
        >>> layer = LocallyConnected2d(3, 32, 5, padding=2, input_size=(8, 8))
        >>> layer(torch.randn(16, 3, 8, 8)).shape
        torch.Size([16, 32, 8, 8])
        >>> layer.weight.shape
        torch.Size([64, 32, 3, 5, 5])
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
        input_size: tuple[int, int],
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        if not isinstance(input_size, tuple | list) or len(input_size) != 2:
            raise ValueError(f"input_size: got {input_size!r}, expected (height, width)")
        height, width = (check_int("input_size", side, low=1) for side in input_size)
        self.input_size = (height, width)
        rows, columns = self.output_size(self.input_size)
        self.n_tiles = rows * columns
        self._register((self.n_tiles,), bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every position's kernel and bias anew, each as ``Conv2d`` does."""
        self._draw_like_conv2d(self.n_tiles)

    @property
    def redraws(self) -> bool:
        """Whether every forward pass draws anew: never."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images (N, C, H, W) or one image (C, H, W).

        Raises:
            ValueError: if the images have another number of channels or another size.
            TypeError: if their type is not the weight's.
        """
        self._check_input(x)
        if plane_of(x) != self.input_size:
            raise ValueError(
                f"input: got images of {x.shape[-2]} × {x.shape[-1]}, this layer takes "
                f"{self.input_size[0]} × {self.input_size[1]}"
            )
        if x.dim() == 3:
            return self.forward(x[None])[0]
        own = torch.arange(self.n_tiles, device=x.device).expand(len(x), -1)
        return self._convolve(x, self.weight, self.bias, own)

    def merged(self) -> nn.Conv2d:
        """Make the ordinary convolution whose kernel and bias are the means over positions."""
        return self._merged(self.weight.mean(0), None if self.bias is None else self.bias.mean(0))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input_size={self.input_size}"
