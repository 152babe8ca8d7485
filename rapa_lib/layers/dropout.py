"""The convolution with dropout on its outputs: an ordinary, regularised one, as RAPA's rival."""

import torch
from torch import Tensor

from rapa_lib._checks import check_real
from rapa_lib._seeds import seeded_generator
from rapa_lib.layers._patch_conv import OneKernelConv2d


class DropoutConv2d(OneKernelConv2d):
    r"""A 2-D convolution that sets each of its outputs to zero with some probability in training.

    What is left is divided by the probability of being left, so that the mean stays; in evaluation
    nothing is dropped. Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout",
    JMLR 15 (2014).

    Dropout stands where the tilings and the noisy control disturb a layer, directly behind the
    convolution, so that these arms differ in what the disturbance is and not in where. Before a
    rectifier it is the same as behind it; normalisation comes later and sees the larger variance
    of training, so its running statistics are those of outputs with dropout (Li, Chen, Hu, Yang,
    "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR
    2019). :meth:`merged` networks with re-estimated statistics are without that shift.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as in :class:`torch.nn.Conv2d`.
        dropout: probability that an output is dropped, from 0 to below 1.

    Shape:
        - Input, output, ``weight``, ``bias``: as ``Conv2d``'s

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.

    Examples:
        >>> layer = DropoutConv2d(3, 32, 5, padding=2, dropout=0.1)
        >>> layer(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 32, 32, 32])
    """

    n_tiles = 1
    redraws = False
    """Whether two passes in evaluation can differ."""

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
        dropout: float,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        self.dropout = check_real("dropout", dropout, low=0, high=1, open_high=True)
        self._register((), bias, device, dtype)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images (N, C, H, W) or one image (C, H, W); in training drop outputs."""
        self._check_input(x)
        if x.dim() == 3:
            return self.forward(x[None])[0]
        y = self._ordinary(x)
        if not self.training or self.dropout == 0:
            return y
        left = 1 - self.dropout
        generator = seeded_generator(self._frozen_seed, y.device)
        kept = torch.empty_like(y).bernoulli_(left, generator=generator)
        return y * kept * (1 / left)  # a number beside bfloat16 is not rounded to it

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout:g}"
