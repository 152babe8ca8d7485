"""The study's network: three convolutions, each on its own tiles, and one linear layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_int
from rapa_lib.networks.pooling import POOLINGS
from rapa_lib.networks.shape import ACTIVATIONS, NORMALISATIONS, NetworkShape


class RapaConvNet(nn.Module):
    """The network of the accuracy experiment (our reading of the paper, a parameter throughout).

    Each convolution is followed by a non-linearity, normalisation and pooling 3 × 3 with stride 2;
    one linear layer follows the last. On 32 × 32 images the convolutions have 1024, 256 and 64
    patches.

    Args:
        in_channels: channels of the images.
        n_classes: number of classes, at least 2.
        image_size: height and width of the images, or one number for both.
        tiling: a name in :data:`rapa_lib.TILINGS` or one of the controls: ``"perforated"`` (each
            layer computes 1/n_tiles of its positions) and ``"enlarged"`` (ordinary convolutions
            with more channels, so that the number of parameters is that of the tiled network),
            ``"noisy"`` and ``"dropout"`` (ordinary convolutions with noise or dropout on their
            outputs), ``"tile_noise"`` (one kernel with RAPA's noise: fixed deviations, one drawn
            for each patch). ``"none"``, ``"noisy"`` and ``"dropout"`` take no notice of
            ``n_tiles``.
        n_tiles: tiles of each convolution.
        tile_init: how tiles start, see :class:`RapaConv2d`.
        channels: output channels of each convolution.
        kernel_sizes: odd kernel size of each convolution; the padding keeps the image size.
        pooling: ``"max"``, ``"avg"`` or ``"mixed"`` (see :class:`MixedPool2d`).
        activation: ``"relu"``, ``"tanh"`` or ``"gelu"``.
        normalisation: ``"batch"``, ``"group"`` (one group: over a whole layer) or ``"none"``.
        noise: of each convolution under ``"noisy"`` and ``"tile_noise"``, see :class:`NoisyConv2d`
            and :class:`rapa_lib.layers.TileNoiseConv2d`; other tilings take no notice. The default
            is about what random assignment makes of trained networks with 16, 4 and 1 tiles
            (measured in the robustness experiment).
        dropout: of each convolution under ``"dropout"``, see :class:`DropoutConv2d`; other tilings
            take no notice.

    Shape:
        - Input: (N, in_channels, height, width)
        - Output: (N, n_classes), logits

    Raises:
        ValueError, TypeError: if an argument is not allowed, n_tiles above a layer's number of
            patches included.
    """

    def __init__(
        self,
        in_channels: int = 3,
        n_classes: int = 10,
        image_size: int | tuple[int, int] = 32,
        *,
        tiling: str = "random",
        n_tiles: Sequence[int] = (16, 4, 1),
        tile_init: str = "independent",
        channels: Sequence[int] = (32, 32, 64),
        kernel_sizes: Sequence[int] = (5, 5, 5),
        pooling: str = "max",
        activation: str = "relu",
        normalisation: str = "batch",
        noise: Sequence[float] = (0.85, 0.95, 0.0),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_int("in_channels", in_channels, low=1)
        check_int("n_classes", n_classes, low=2)
        shape = NetworkShape(
            tiling, n_tiles, tile_init, channels, kernel_sizes, pooling, activation, normalisation,
            noise, dropout,
        )  # fmt: skip
        *_, (height, width) = sizes = shape.plane_sizes(image_size)
        if shape.kind.enlarged:
            shape = shape.enlarged(in_channels, n_classes, (height, width))
        if torch.empty(0).device.type == "cpu":
            shape.check_room(in_channels, n_classes, sizes)
        sites = shape.sites(in_channels)
        self.tiling = shape.tiling
        self.channels = shape.channels
        self.n_tiles = tuple(site.n_tiles for site in sites)
        self.features = nn.Sequential(
            *(
                nn.Sequential(
                    shape.kind.build(site),
                    ACTIVATIONS[shape.activation](),
                    NORMALISATIONS[shape.normalisation](site.out_channels),
                    POOLINGS[shape.pooling](),
                )
                for site in sites
            )
        )
        self.classifier = nn.Linear(shape.channels[-1] * height * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        # Channels-last: a patch's row is one stretch of memory, for Conv2d and for tiles alike.
        x = self.features(x.contiguous(memory_format=torch.channels_last))
        return self.classifier(x.flatten(1))


def count_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
