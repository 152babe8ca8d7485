"""A convolution with RAPA's noise and none of its tiles: a control that draws the same way."""

import torch
from torch import Tensor

from rapa_lib._checks import check_int, check_real
from rapa_lib._seeds import seeded_generator
from rapa_lib.layers._patch_conv import OneKernelConv2d, plane_of
from rapa_lib.layers.tiling import draw_assignment

_DEVIATION_SEED = 1807  # of the deviations, which are no part of what is learnt


class TileNoiseConv2d(OneKernelConv2d):
    r"""A 2-D convolution whose kernel gets, patch by patch, one of a few fixed deviations.

    The output of a patch x_p is :math:`(K + \delta_{a(p)}) x_p`, the assignment a a fresh balanced
    random permutation for every image and pass, in training and in test: the noise of a RAPA layer,
    whose channels share the choice made for a patch and whose size follows the patch. But here only
    the one kernel K is learnt. The deviations are drawn once, add up to zero, and have for each
    output channel ``noise`` times the root mean square of its weights in K.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as in :class:`torch.nn.Conv2d`.
        choices: number of deviations, at least 1; with 1 there is no noise.
        noise: root mean square of the deviations relative to that of the kernel, at least 0.

    Shape:
        - Input, output, ``weight``, ``bias``: as ``Conv2d``'s
        - ``deviations``: (choices, \*weight.shape), a buffer, of root mean square 1

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.

    Examples:
        >>> layer = TileNoiseConv2d(3, 32, 5, padding=2, choices=16, noise=0.4)
        >>> layer(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 32, 32, 32])
    """

    n_tiles = 1
    deviations: Tensor

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
        choices: int,
        noise: float,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        self.choices = check_int("choices", choices, low=1)
        self.noise = check_real("noise", noise, low=0)
        self._register((), bias, device, dtype)
        self.register_buffer("deviations", self._drawn().to(self.weight))
        self.reset_parameters()

    def _drawn(self) -> Tensor:
        """Deviations that add up to zero, of root mean square 1 for each output channel."""
        generator = torch.Generator().manual_seed(_DEVIATION_SEED)
        shape = (self.choices, *self.weight.shape)
        drawn = torch.randn(shape, generator=generator, device="cpu")
        drawn -= drawn.mean(0)
        size = drawn.square().mean((0, *range(2, drawn.dim())), keepdim=True).sqrt()
        return drawn / size.clamp(min=1e-12)

    @property
    def redraws(self) -> bool:
        """Whether every forward pass draws anew."""
        return self.noise > 0 and self.choices > 1

    def kernels(self) -> Tensor:
        """The kernels that patches meet: (choices, \\*weight.shape)."""
        size = self.weight.detach().square().mean((1, 2, 3), keepdim=True).sqrt()
        return self.weight + self.noise * size * self.deviations

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images (N, C, H, W) or one image (C, H, W)."""
        self._check_input(x)
        if x.dim() == 3:
            return self.forward(x[None])[0]
        if not self.redraws:
            return self._ordinary(x)
        generator = seeded_generator(self._frozen_seed, x.device)
        assignment = draw_assignment(
            "random", len(x), *self.output_size(plane_of(x)), self.choices,
            generator=generator, device=x.device,
        )  # fmt: skip
        bias = None if self.bias is None else self.bias.expand(self.choices, -1)
        return self._convolve(x, self.kernels(), bias, assignment)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, choices={self.choices}, noise={self.noise:g}"
