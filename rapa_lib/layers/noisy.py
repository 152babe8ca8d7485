"""The noisy convolution: an ordinary one whose outputs are disturbed, as a control for RAPA."""

import torch
from torch import Tensor

from rapa_lib._checks import check_real
from rapa_lib._seeds import seeded_generator
from rapa_lib.layers._patch_conv import OneKernelConv2d

# Weight of the newest batch in the running mean of the outputs' variances; as BatchNorm's.
_MOMENTUM = 0.1


class NoisyConv2d(OneKernelConv2d):
    r"""A 2-D convolution whose every output gets fresh Gaussian noise, in training and in test.

    The noise of a channel has ``noise`` times the standard deviation of that channel's outputs,
    over images and positions, without noise: of the batch in training, of a running mean over
    batches in evaluation. Random assignment disturbs a layer's outputs too; the same size of plain
    noise tells what RAPA does from what any noise does.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as in :class:`torch.nn.Conv2d`.
        noise: standard deviation relative to that of the channel's outputs, at least 0.

    Shape:
        - Input, output, ``weight``, ``bias``: as ``Conv2d``'s
        - ``variance``: (out_channels,), a buffer: the running mean of the outputs' variances

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.

    Examples:
        >>> layer = NoisyConv2d(3, 32, 5, padding=2, noise=0.5)
        >>> layer(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 32, 32, 32])
    """

    n_tiles = 1
    variance: Tensor

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
        noise: float,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        self.noise = check_real("noise", noise, low=0)
        self._register((), bias, device, dtype)
        self.register_buffer("variance", torch.ones(out_channels, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def redraws(self) -> bool:
        """Whether every forward pass draws anew."""
        return self.noise > 0

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images (N, C, H, W) or one image (C, H, W) and disturb the outputs."""
        self._check_input(x)
        if x.dim() == 3:
            return self.forward(x[None])[0]
        y = self._ordinary(x)
        if not self.redraws:
            return y
        variance = self._update_variance(y.detach()) if self.training else self.variance
        deviation = self.noise * variance.sqrt().to(y.dtype)
        generator = seeded_generator(self._frozen_seed, y.device)
        drawn = torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
        return y + deviation[:, None, None] * drawn

    def _update_variance(self, y: Tensor) -> Tensor:
        # Under autocast y is bfloat16, whose sums of squares would be worthless.
        variance = y.to(self.variance.dtype).var((0, 2, 3), correction=0)
        self.variance.lerp_(variance, _MOMENTUM)
        return variance

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, noise={self.noise:g}"
