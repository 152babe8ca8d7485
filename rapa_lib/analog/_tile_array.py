"""Many tiles of one shape, as one batch of matrices."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_int, check_real
from rapa_lib.analog import _compiled, _products
from rapa_lib.analog._config import ConstantStepDevice, IdealDevice, TileConfig
from rapa_lib.analog._devices import (
    CrossPoints,
    clip,
    draw_devices,
    move,
    n_sections,
    pulse_by_pulse,
)
from rapa_lib.analog._periphery import check_finite
from rapa_lib.analog._pulses import METHODS, Counts, Trains
from rapa_lib.layers._patch_conv import check_kernels
from rapa_lib.layers.products.door import check_fits, check_plain, check_product
from rapa_lib.layers.products.gathered import Blocks
from rapa_lib.layers.products.geometry import Geometry, kernels_of, pixels_of

_PIXEL = Geometry((1, 1), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
# Tiles whose devices are moved at once: a dozen tensors of their size exist meanwhile.
_MOVE_BYTES = 2 * 2**20
_TRAINS_BYTES = 64 * 2**20  # trains of errors that the compiled update holds at once


class AnalogTileArray(nn.Module):
    """n tiles of one shape, each a matrix of resistive devices that is read and written by pulses.

    Draws follow :func:`torch.manual_seed`. Device parameters are drawn once, from ``seed``, and are
    part of the state dict, as the weights are.

    Args:
        n_tiles: number of tiles T.
        in_features, out_features: columns K and rows M of every tile.
        config: see :class:`TileConfig`.
        seed: of the devices' parameters; None takes one from PyTorch's generator.
        device, dtype: of the weights, float32 or float64.

    Shape:
        - ``weight``: (T, M, K)

    Raises:
        ValueError, TypeError: naming the argument.

    Examples:
        >>> tiles = AnalogTileArray(4, in_features=75, out_features=32)
        >>> x, groups = torch.randn(100, 75), torch.arange(100) % 4
        >>> y = tiles(x, groups)
        >>> x_bar = tiles.backward(torch.ones_like(y), groups)
        >>> tiles.update(x, torch.ones_like(y), 0.01, groups)
        >>> y.shape, x_bar.shape
        (torch.Size([100, 32]), torch.Size([100, 75]))
    """

    def __init__(
        self,
        n_tiles: int,
        in_features: int,
        out_features: int,
        config: TileConfig | None = None,
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_tiles = check_int("n_tiles", n_tiles, low=1)
        self.in_features = check_int("in_features", in_features, low=1)
        self.out_features = check_int("out_features", out_features, low=1)
        self.config = TileConfig() if config is None else config
        if not isinstance(self.config, TileConfig):
            raise TypeError(f"config: got {config!r}, expected a TileConfig")
        check_kernels(n_tiles, in_features, out_features, device, dtype)
        # In memory a row of neighbouring outputs for each input: as the products read it.
        matrices = torch.zeros(n_tiles, in_features, out_features, device=device, dtype=dtype)
        if matrices.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype: got {matrices.dtype}, allowed: torch.float32, torch.float64")
        self.weight = nn.Parameter(matrices.transpose(1, 2))
        self._pending: list[tuple] = []
        if isinstance(self.config.device, IdealDevice):
            return
        seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
        points = draw_devices(
            self.config.device, matrices.shape, check_int("seed", seed, low=0), matrices
        )
        for name, values in points._asdict().items():
            self.register_buffer(name, values.transpose(1, 2))

    @property
    def is_ideal(self) -> bool:
        """Whether weights are set by an ordinary optimizer, not by pulses."""
        return isinstance(self.config.device, IdealDevice)

    @property
    def matrices(self) -> Tensor:
        """The weights as the products take them, (T, K, M), without a copy."""
        return self.weight.transpose(1, 2)

    def read(self) -> Tensor:
        """A copy of the weights, (T, M, K), without noise."""
        return self.weight.detach().clone()

    @torch.no_grad()
    def program(self, weight: Tensor) -> None:
        """Write weights (T, M, K); those outside the bounds of their devices are clipped.

        A warning counts them.

        Raises:
            ValueError: if the shape does not fit.
            NotFiniteError: if a number is not finite; nothing is written.
        """
        if weight.shape != self.weight.shape:
            raise ValueError(
                f"weight: got shape {tuple(weight.shape)}, expected {tuple(self.weight.shape)}"
            )
        check_finite("weight", weight)
        self.weight.copy_(weight)
        if n_clipped := self.clip():
            warnings.warn(
                f"{n_clipped} of {weight.numel()} weights are outside the bounds of their devices "
                "and were clipped",
                stacklevel=2,
            )

    @torch.no_grad()
    def clip(self) -> int:
        """Move weights into the bounds of their devices; return how many were outside."""
        if self.is_ideal:
            return 0
        before = self.weight.detach().clone()
        clip(self.weight.data, self.points())
        return int((before != self.weight).sum())

    def points(self) -> CrossPoints:
        """The devices' parameters, each (T, M, K).

        Raises:
            ValueError: if the devices are ideal and have none.
        """
        if self.is_ideal:
            raise ValueError("device: got IdealDevice, which has no cross-points")
        return CrossPoints(*(getattr(self, name) for name in CrossPoints._fields))

    @torch.no_grad()
    def forward(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        """Multiply vectors with their tile's matrix: W x.

        Args:
            x: (P, K).
            groups: LongTensor (P,), the tile of each vector, −1 for none (its output is zero);
                None: all on tile 0.

        Returns:
            (P, M).

        Raises:
            ValueError: if shapes do not fit or a tile does not exist.
            NotFiniteError: if an input is not finite.
        """
        groups = self._groups(groups, x, "x", self.in_features)
        return self.convolve(_images(x), groups, _PIXEL).flatten(1)

    @torch.no_grad()
    def backward(self, d: Tensor, groups: Tensor | None = None) -> Tensor:
        """Multiply errors with their tile's transposed matrix: Wᵀ d.

        Args:
            d: (P, M).
            groups: as in :meth:`forward`.

        Returns:
            (P, K).

        Raises:
            ValueError: as :meth:`forward`.
        """
        groups = self._groups(groups, d, "d", self.out_features)
        return self.convolve_backward(_images(d), groups, (1, 1), _PIXEL).flatten(1)

    @torch.no_grad()
    def update(self, x: Tensor, d: Tensor, lr: float, groups: Tensor | None = None) -> None:
        """Send the pulses of W ← W − lr · Σ d xᵀ, each vector pair to its tile.

        Args:
            x: (P, K), d: (P, M).
            lr: learning rate, not negative.
            groups: as in :meth:`forward`.

        Raises:
            ValueError: as :meth:`forward`, or if lr is negative.
        """
        groups = self._groups(groups, x, "x", self.in_features)
        self._groups(groups[:, 0], d, "d", self.out_features)
        self.update_patches(_images(x), _images(d), groups, _PIXEL, lr)

    def convolve(
        self, x: Tensor, assignment: Tensor, geometry: Geometry, bias: Tensor | None = None
    ) -> Tensor:
        """:meth:`forward` of the patches of images; a bias (T, M) is added digitally."""
        self._check(geometry, assignment, x=x, bias=bias)
        path = _compiled if _compiled.serves(x) else _products
        return path.forward(
            x, self.matrices.detach(), bias, assignment, geometry, self.config.forward
        )

    def convolve_backward(
        self, d: Tensor, assignment: Tensor, input_size: tuple[int, int], geometry: Geometry
    ) -> Tensor:
        """:meth:`backward` of the patches of images, added up where they overlap."""
        self._check(geometry, assignment, grad=d, input_size=input_size)
        path = _compiled if _compiled.serves(d) else _products
        return path.backward(
            d, self.matrices.detach(), assignment, input_size, geometry, self.config.backward
        )

    @torch.no_grad()
    def update_patches(
        self, x: Tensor, d: Tensor, assignment: Tensor, geometry: Geometry, lr: float
    ) -> None:
        """:meth:`update` of the patches of images x (N, C, H, W), d (N, M, H', W')."""
        lr = check_real("lr", lr, low=0)
        if lr == 0 or assignment.numel() == 0:
            return
        update, device = self.config.update, self.config.device
        if isinstance(device, IdealDevice):
            raise ValueError("device: got IdealDevice, whose weights an ordinary optimizer sets")
        self._check(geometry, assignment, x=x, grad=d)
        if update.method == "sequential":
            self._update_sequentially(x, d, assignment, geometry, lr, device)
            return
        compiled = _compiled.serves_update(x, update)
        section = math.ceil(len(x) / n_sections(device))
        if compiled:
            section = min(section, max(1, _TRAINS_BYTES // (4 * d[0].numel())))
        for begin in range(0, len(x), section):
            some = slice(begin, begin + section)
            parts = (x[some], d[some], assignment[some], geometry)
            if not compiled:
                self._move(self._count(*parts, lr, device), device)
                continue
            ours = (*parts[:2], self.matrices.data, *parts[2:], (update, device, lr))
            if n_sections(device) == 1:
                _compiled.update(*ours, self._points_of_matrices())
            else:
                self._move(_compiled.count(*ours), device)

    def _count(
        self,
        x: Tensor,
        d: Tensor,
        assignment: Tensor,
        geometry: Geometry,
        lr: float,
        device: ConstantStepDevice,
    ) -> Counts:
        """Count the pulses of some images, a few of them at a time."""
        sums = METHODS[self.config.update.method](self.matrices.data)
        for chunk in _products.chunks(assignment, self.matrices):
            blocks = Blocks.of(assignment[chunk], self.n_tiles)
            rows = _products.patch_rows(geometry, x[chunk], blocks)
            errors = blocks.take(pixels_of(d[chunk]).flatten(0, 2))
            trains = Trains.of(rows, errors, lr, device.dw_min, self.config.update)
            sums.add(trains, blocks.tile)
        return sums.counts()

    def _points_of_matrices(self) -> CrossPoints:
        """The devices' parameters as the products take weights, (T, K, M), without a copy."""
        return CrossPoints(*(p.transpose(1, 2) for p in self.points()))

    def _move(self, counts: Counts, device: ConstantStepDevice) -> None:
        size = self.in_features * self.out_features * self.weight.element_size()
        step = max(1, _MOVE_BYTES // size)
        points = self._points_of_matrices()
        for begin in range(0, self.n_tiles, step):
            part = slice(begin, begin + step)
            move(
                self.matrices.data[part],
                Counts._make(None if c is None else c[part] for c in counts),
                CrossPoints(*(p[part] for p in points)),
                device,
            )

    def _update_sequentially(
        self,
        x: Tensor,
        d: Tensor,
        assignment: Tensor,
        geometry: Geometry,
        lr: float,
        device: ConstantStepDevice,
    ) -> None:
        points = self._points_of_matrices()
        make = (lr, device.dw_min, self.config.update)
        tile = assignment.flatten()
        # The n-th patch of every tile that has so many, for n = 0, 1, …
        order = tile.argsort(stable=True)
        order = order[tile[order] >= 0]
        first = torch.searchsorted(tile[order], torch.arange(self.n_tiles, device=tile.device))
        rank = torch.arange(len(order), device=tile.device) - first[tile[order]]
        everything = Blocks(torch.arange(len(tile), device=tile.device)[None], None, None, 0)
        rows = _products.patch_rows(geometry, x, everything)[0]
        errors = pixels_of(d).flatten(0, 2)
        for n in range(int(rank.max()) + 1 if len(rank) else 0):
            patch = order[rank == n]
            some = tile[patch]
            weight = self.matrices.data[some]
            trains = Trains.of(rows[patch, None], errors[patch, None], *make)
            chosen = CrossPoints(*(p[some] for p in points))
            pulse_by_pulse(weight, trains, chosen, device)
            self.matrices.data[some] = weight

    def remember(self, *pair: Tensor | Geometry) -> None:
        """Keep what :meth:`update_patches` needs until :meth:`update_pending`."""
        self._pending.append(pair)

    def forget(self) -> None:
        """Drop what was remembered."""
        self._pending.clear()

    def update_pending(self, lr: float) -> None:
        """Send the pulses of every remembered backward pass, and forget them."""
        check_real("lr", lr, low=0)
        for x, d, assignment, geometry in self._pending:
            self.update_patches(x, d, assignment, geometry, lr)
        self.forget()

    def _check(self, geometry: Geometry, assignment: Tensor, **others: Any) -> None:
        """Check all that a product or an update is given, the tiles' own tensors included.

        ``others`` are arguments of :func:`check_product`. Parameters can be replaced and attributes
        set by anyone; compiled code believes them.
        """
        shape = (self.n_tiles, self.out_features, self.in_features)
        check_plain("weight", self.weight, 3)
        check_fits("weight", self.weight, shape, ("weight", self.weight))
        per_pixel = math.prod(geometry.kernel)
        if self.in_features % per_pixel:
            raise ValueError(
                f"kernel: got {tuple(geometry.kernel)}, which does not divide in_features = "
                f"{self.in_features}"
            )
        size = (*geometry.kernel, self.in_features // per_pixel)
        kernels = kernels_of(self.matrices.detach().unflatten(1, size))
        checked = check_product(
            weight=kernels, assignment=assignment, stride=geometry.stride,
            padding=geometry.padding, dilation=geometry.dilation, groups=1, **others,
        )  # fmt: skip
        if checked != geometry:
            raise ValueError(f"geometry: got {geometry}, expected {checked}")
        if not self.is_ideal and {"x", "grad"} <= others.keys():  # an update moves the devices
            steps = zip(self.weight.shape, self.weight.stride(), strict=True)
            if any(n > 1 and step == 0 for n, step in steps):
                raise ValueError(
                    "weight: got an expanded tensor, expected a number for each device"
                )
            for name, values in self.points()._asdict().items():
                check_plain(name, values, 3)
                check_fits(name, values, shape, ("weight", self.weight))

    def _groups(self, groups: Tensor | None, vectors: Tensor, name: str, width: int) -> Tensor:
        """Groups as an assignment (P, 1), once vectors and groups are checked."""
        if vectors.dim() != 2 or vectors.shape[1] != width:
            raise ValueError(
                f"{name}: got shape {tuple(vectors.shape)}, expected (vectors, {width})"
            )
        if vectors.dtype != self.weight.dtype:
            raise TypeError(f"{name}: got {vectors.dtype}, but the weights are {self.weight.dtype}")
        if groups is None:
            return torch.zeros(len(vectors), 1, dtype=torch.long, device=vectors.device)
        if groups.dtype != torch.long:
            raise TypeError(f"groups: got {groups.dtype}, expected torch.int64 tile indices")
        if groups.shape != (len(vectors),):
            raise ValueError(f"groups: got shape {tuple(groups.shape)}, expected {len(vectors)}")
        if len(groups) and not (int(groups.min()) >= -1 and int(groups.max()) < self.n_tiles):
            raise ValueError(
                f"groups: got indices {int(groups.min())} to {int(groups.max())}, allowed: -1 "
                f"(no tile) to {self.n_tiles - 1}"
            )
        return groups[:, None]

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles of a network hold no half-done training step.
        return super().__getstate__() | {"_pending": []}

    def extra_repr(self) -> str:
        return f"{self.n_tiles} × ({self.out_features} × {self.in_features}), config={self.config}"


def _images(vectors: Tensor) -> Tensor:
    """Vectors (P, F) as images of one pixel, (P, F, 1, 1)."""
    return vectors[:, :, None, None]
