"""The study's network: three convolutions, each on its own tiles, and one linear layer."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_choice, check_int, check_memory, check_real, check_sequence
from rapa_lib.layers.conv import TILE_INITS, RapaConv2d
from rapa_lib.layers.noisy import NoisyConv2d
from rapa_lib.layers.perforated import PerforatedConv2d
from rapa_lib.layers.tiling import TILINGS

CONTROLS = ("perforated", "enlarged", "noisy")
"""Networks to compare tilings with; a network takes their names where it takes a tiling's."""

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
NORMALISATIONS = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),
}
_ONE_TILE = ("none", "enlarged", "noisy")
_POOL = {"kernel_size": 3, "stride": 2, "padding": 1}


class MixedPool2d(nn.Module):
    """A learnt mix of maximum and average pooling, w · max + (1 − w) · average with 0 < w < 1.

    Source: Lee, Gallagher, Tu, "Generalizing pooling functions in convolutional neural networks",
    AISTATS 2016 (one mixing proportion a layer). Starts at w = 1/2.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, ceil(H / 2), ceil(W / 2)): windows of 3 × 3, stride 2
    """

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))
        self.max = nn.MaxPool2d(**_POOL)
        self.avg = nn.AvgPool2d(**_POOL, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(self.avg(x), self.max(x), torch.sigmoid(self.logit))


POOLINGS = {
    "max": lambda: nn.MaxPool2d(**_POOL),
    "avg": lambda: nn.AvgPool2d(**_POOL, count_include_pad=False),
    "mixed": MixedPool2d,
}


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
            ``"noisy"`` (ordinary convolutions with noise on their outputs). ``"none"`` and
            ``"noisy"`` take no notice of ``n_tiles``.
        n_tiles: tiles of each convolution.
        tile_init: how tiles start, see :class:`RapaConv2d`.
        channels: output channels of each convolution.
        kernel_sizes: odd kernel size of each convolution; the padding keeps the image size.
        pooling: ``"max"``, ``"avg"`` or ``"mixed"`` (see :class:`MixedPool2d`).
        activation: ``"relu"``, ``"tanh"`` or ``"gelu"``.
        normalisation: ``"batch"``, ``"group"`` (one group: over a whole layer) or ``"none"``.
        noise: of each convolution under ``"noisy"``, see :class:`NoisyConv2d`; other tilings take
            no notice. The default is about what random assignment makes of trained networks with
            16, 4 and 1 tiles (measured in the robustness experiment).

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
    ) -> None:
        super().__init__()
        check_int("in_channels", in_channels, low=1)
        check_int("n_classes", n_classes, low=2)
        channels, kernel_sizes, n_tiles, noise = check_shape(
            tiling, n_tiles, tile_init, channels, kernel_sizes, pooling, activation, normalisation,
            noise,
        )  # fmt: skip
        sizes = [image_size] * 2 if isinstance(image_size, int) else image_size
        sizes = [_ints("image_size", sizes, 2)]
        for _ in channels:
            sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
        for i, (count, (height, width)) in enumerate(zip(n_tiles, sizes[:-1], strict=True)):
            if count > height * width and tiling not in ("none", "noisy"):
                raise ValueError(
                    f"n_tiles: got {count} for convolution {i + 1}, allowed: 1 to "
                    f"{height * width}, its patches ({height} × {width})"
                )
        self.tiling = tiling
        if tiling == "enlarged":
            channels = _enlarge(channels, n_tiles, in_channels, n_classes, kernel_sizes, sizes[-1])
        self.channels = channels
        self.n_tiles = (1,) * len(channels) if tiling in _ONE_TILE else n_tiles
        _check_room(channels, kernel_sizes, self.n_tiles, in_channels, n_classes, sizes)
        noise = noise if tiling == "noisy" else (0.0,) * len(channels)
        blocks = []
        for fan_in, fan_out, kernel_size, count, strength in zip(
            (in_channels, *channels), channels, kernel_sizes, self.n_tiles, noise, strict=False
        ):
            blocks.append(
                nn.Sequential(
                    _convolution(fan_in, fan_out, kernel_size, tiling, count, tile_init, strength),
                    ACTIVATIONS[activation](),
                    NORMALISATIONS[normalisation](fan_out),
                    POOLINGS[pooling](),
                )
            )
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels[-1] * sizes[-1][0] * sizes[-1][1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        # Channels-last: a patch's row is one stretch of memory, for Conv2d and for tiles alike.
        x = self.features(x.contiguous(memory_format=torch.channels_last))
        return self.classifier(x.flatten(1))


def check_shape(
    tiling, n_tiles, tile_init, channels, kernel_sizes, pooling, activation, normalisation, noise
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """Check what can be known wrong without data; return channels, kernel sizes, tiles, noise."""
    check_choice("tiling", tiling, (*TILINGS, *CONTROLS))
    check_choice("tile_init", tile_init, TILE_INITS)
    check_choice("pooling", pooling, POOLINGS)
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("normalisation", normalisation, NORMALISATIONS)
    channels = _ints("channels", channels)
    kernel_sizes = _ints("kernel_sizes", kernel_sizes, len(channels))
    n_tiles = _ints("n_tiles", n_tiles, len(channels))
    if any(k % 2 == 0 for k in kernel_sizes):
        raise ValueError(f"kernel_sizes: got {kernel_sizes}, allowed: odd sizes")
    check_sequence("noise", noise, "numbers")
    noise = tuple(check_real("noise", strength, low=0) for strength in noise)
    if tiling == "noisy" and len(noise) != len(channels):
        raise ValueError(f"noise: got {noise}, expected {len(channels)} numbers")
    return channels, kernel_sizes, n_tiles, noise


def _check_room(channels, kernel_sizes, n_tiles, in_channels, n_classes, sizes) -> None:
    """Raise ValueError if the parameters and one image do not fit into the memory of a CPU."""
    if torch.empty(0).device.type != "cpu":
        return
    numbers, fan_in = 0, in_channels
    for fan_out, kernel, tiles, (height, width) in zip(
        channels, kernel_sizes, n_tiles, sizes[:-1], strict=True
    ):
        numbers += tiles * fan_out * (fan_in * kernel**2 + 1) + fan_out * height * width
        fan_in = fan_out
    (height, width), last = sizes[0], fan_in * sizes[-1][0] * sizes[-1][1]
    numbers += in_channels * height * width + (last + 1) * n_classes
    what = f"the parameters and one image of {height} × {width} pixels"
    check_memory("image_size, channels, n_tiles", 4 * numbers, what)


def count_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _convolution(fan_in, fan_out, kernel_size, tiling, n_tiles, tile_init, noise) -> nn.Module:
    if tiling in ("none", "enlarged"):
        return nn.Conv2d(fan_in, fan_out, kernel_size, padding="same")
    if tiling == "noisy":
        return NoisyConv2d(fan_in, fan_out, kernel_size, padding="same", noise=noise)
    if tiling == "perforated":
        return PerforatedConv2d(fan_in, fan_out, kernel_size, padding="same", n_tiles=n_tiles)
    return RapaConv2d(
        fan_in, fan_out, kernel_size, padding="same",
        n_tiles=n_tiles, tiling=tiling, tile_init=tile_init,
    )  # fmt: skip


def _enlarge(channels, n_tiles, in_channels, n_classes, kernel_sizes, last_size):
    """Scale the channel counts until an ordinary network has the tiled network's parameters.

    Normalisation and pooling parameters are left out of both counts: they are a few in a thousand.
    """

    def count(channels, n_tiles):
        total, fan_in = 0, in_channels
        for fan_out, kernel_size, tiles in zip(channels, kernel_sizes, n_tiles, strict=True):
            total += tiles * fan_out * (fan_in * kernel_size**2 + 1)
            fan_in = fan_out
        return total + (fan_in * last_size[0] * last_size[1] + 1) * n_classes

    target = count(channels, n_tiles)
    single = (1,) * len(channels)
    low, high = 1.0, 2.0
    while count([round(high * c) for c in channels], single) < target:
        high *= 2
    for _ in range(50):
        factor = (low + high) / 2
        grows = count([round(factor * c) for c in channels], single) < target
        low, high = (factor, high) if grows else (low, factor)
    # All rounded counts move at once; the closest fit lets each end a little higher or lower.
    scaled = [max(1, round(low * c)) for c in channels]
    near = [tuple(range(max(c, s - 2), s + 3)) for c, s in zip(channels, scaled, strict=True)]
    best = min(itertools.product(*near), key=lambda c: abs(count(c, single) - target))
    if abs(count(best, single) - target) > 0.02 * target:
        raise ValueError(
            f"channels: no enlargement of {tuple(channels)} comes within 2 % of the "
            f"{target} parameters of n_tiles = {tuple(n_tiles)}; the nearest is {best}"
        )
    return best


def _ints(name: str, values, length: int | None = None) -> tuple[int, ...]:
    """Return a sequence of positive integers as a tuple, checked."""
    check_sequence(name, values, "numbers")
    if len(values) == 0 or (length is not None and len(values) != length):
        wanted = "at least one number" if length is None else f"{length} numbers"
        raise ValueError(f"{name}: got {tuple(values)}, expected {wanted}")
    return tuple(check_int(name, v, low=1) for v in values)
