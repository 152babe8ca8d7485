"""The shape of the study's network: all that names it but the data that it is for."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from rapa_lib._checks import (
    Checked,
    check_int,
    check_memory,
    check_real,
    check_sequence,
    choice,
    real,
    several,
)
from rapa_lib.layers.conv import TILE_INITS
from rapa_lib.networks.kinds import Kind, Site, kind_names, network_kind
from rapa_lib.networks.pooling import POOLINGS

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}
NORMALISATIONS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),
}

Size = tuple[int, int]


def _positive(default: Sequence[int]) -> tuple[int, ...]:
    return several(tuple(default), partial(check_int, low=1), of="numbers")


@dataclass(frozen=True)
class NetworkShape(Checked):
    """What a :class:`rapa_lib.RapaConvNet` is made of; its fields are that class's arguments.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    tiling: str = choice("random", kind_names)
    n_tiles: Sequence[int] = _positive((16, 4, 1))
    tile_init: str = choice("independent", TILE_INITS)
    channels: Sequence[int] = _positive((32, 32, 64))
    kernel_sizes: Sequence[int] = _positive((5, 5, 5))
    pooling: str = choice("max", POOLINGS)
    activation: str = choice("relu", ACTIVATIONS)
    normalisation: str = choice("batch", NORMALISATIONS)
    noise: Sequence[float] = several(
        (0.85, 0.95, 0.0), partial(check_real, low=0), of="numbers", empty=True
    )
    dropout: float = real(0.1, low=0, high=1, open_high=True)

    def _check(self) -> None:
        for name in ("kernel_sizes", "n_tiles"):
            values = getattr(self, name)
            if len(values) != len(self.channels):
                raise ValueError(f"{name}: got {values}, expected {len(self.channels)} numbers")
        if any(k % 2 == 0 for k in self.kernel_sizes):
            raise ValueError(f"kernel_sizes: got {self.kernel_sizes}, allowed: odd sizes")
        if "noise" in self.kind.heeds and len(self.noise) != len(self.channels):
            raise ValueError(f"noise: got {self.noise}, expected {len(self.channels)} numbers")

    @property
    def kind(self) -> Kind:
        """What its convolutions are."""
        return network_kind(self.tiling)

    def plane_sizes(self, image_size: int | Size) -> list[Size]:
        """Height and width of the input of each convolution, and, last, of the linear layer's.

        Raises:
            ValueError: if a convolution has more tiles than patches.
        """
        given = [image_size] * 2 if isinstance(image_size, int) else image_size
        check_sequence("image_size", given, "numbers")
        if len(given) != 2:
            raise ValueError(f"image_size: got {tuple(given)}, expected 2 numbers")
        height, width = (check_int("image_size", side, low=1) for side in given)
        sizes = [(height, width)]
        for _ in self.channels:
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
        if "n_tiles" in self.kind.heeds:
            for i, (count, (height, width)) in enumerate(
                zip(self.n_tiles, sizes[:-1], strict=True)
            ):
                if count > height * width:
                    raise ValueError(
                        f"n_tiles: got {count} for convolution {i + 1}, allowed: 1 to "
                        f"{height * width}, its patches ({height} × {width})"
                    )
        return sizes

    def sites(self, in_channels: int) -> list[Site]:
        """The convolutions to be built."""
        kind, noisy = self.kind, "noise" in self.kind.heeds
        dropout = self.dropout if "dropout" in self.kind.heeds else 0.0
        return [
            Site(
                in_channels=fan_in,
                out_channels=fan_out,
                kernel_size=kernel_size,
                n_tiles=1 if kind.one_tile else count,
                tile_init=self.tile_init,
                noise=self.noise[i] if noisy else 0.0,
                dropout=dropout,
            )
            for i, (fan_in, fan_out, kernel_size, count) in enumerate(
                zip(
                    (in_channels, *self.channels), self.channels, self.kernel_sizes, self.n_tiles,
                    strict=False,
                )
            )
        ]  # fmt: skip

    def enlarged(self, in_channels: int, n_classes: int, last_size: Size) -> "NetworkShape":
        """The same with channels raised until one tile has the parameters of ``n_tiles``.

        Normalisation and pooling parameters are left out of both counts: they are a few in a
        thousand.

        Raises:
            ValueError: if no channel counts come within 2 %.
        """
        count = partial(self._parameters, in_channels, n_classes, last_size)
        single = (1,) * len(self.channels)
        target = count(self.channels, self.n_tiles)
        low, high = 1.0, 2.0
        while count([round(high * c) for c in self.channels], single) < target:
            high *= 2
        for _ in range(50):
            factor = (low + high) / 2
            grows = count([round(factor * c) for c in self.channels], single) < target
            low, high = (factor, high) if grows else (low, factor)
        # All rounded counts move at once; the closest fit lets each end a little higher or lower.
        scaled = [max(1, round(low * c)) for c in self.channels]
        near = [
            tuple(range(max(c, s - 2), s + 3)) for c, s in zip(self.channels, scaled, strict=True)
        ]
        best = min(itertools.product(*near), key=lambda c: abs(count(c, single) - target))
        if abs(count(best, single) - target) > 0.02 * target:
            raise ValueError(
                f"channels: no enlargement of {self.channels} comes within 2 % of the "
                f"{target} parameters of n_tiles = {self.n_tiles}; the nearest is {best}"
            )
        return replace(self, channels=best)

    def check_room(self, in_channels: int, n_classes: int, sizes: Sequence[Size]) -> None:
        """Check that the parameters and one image fit into the memory that is there.

        Args:
            in_channels, n_classes: of the network.
            sizes: of :meth:`plane_sizes`.

        Raises:
            ValueError: with the numbers, if not.
        """
        n_tiles = [site.n_tiles for site in self.sites(in_channels)]
        numbers = self._parameters(in_channels, n_classes, sizes[-1], self.channels, n_tiles)
        planes = zip((in_channels, *self.channels), (sizes[0], *sizes[:-1]), strict=True)
        numbers += sum(channels * height * width for channels, (height, width) in planes)
        what = f"the parameters and one image of {sizes[0][0]} × {sizes[0][1]} pixels"
        check_memory("image_size, channels, n_tiles", 4 * numbers, what)

    def _parameters(
        self,
        in_channels: int,
        n_classes: int,
        last_size: Size,
        channels: Sequence[int],
        n_tiles: Sequence[int],
    ) -> int:
        """Parameters of convolutions and the linear layer."""
        total, fan_in = 0, in_channels
        for fan_out, kernel_size, tiles in zip(channels, self.kernel_sizes, n_tiles, strict=True):
            total += tiles * fan_out * (fan_in * kernel_size**2 + 1)
            fan_in = fan_out
        return total + (fan_in * last_size[0] * last_size[1] + 1) * n_classes
