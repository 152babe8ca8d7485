"""Many tiles of one shape, as one batch of matrices."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_int, check_real
from rapa_lib._seeds import mix_seeds, seeded, seeded_generator
from rapa_lib.analog import _compiled, _products
from rapa_lib.analog._compound_config import MixedPrecisionCompound, TransferCompound
from rapa_lib.analog._compounds import MixedPrecision, Transfer, make_compound
from rapa_lib.analog._config import TileConfig
from rapa_lib.analog._crossbar import Crossbar, Signals
from rapa_lib.analog._device_config import IdealDevice
from rapa_lib.analog._devices import CrossPoints, clip, draw_devices
from rapa_lib.analog._drift import Drift
from rapa_lib.analog._pcm import ConductancePairs, PCMLikeNoiseModel
from rapa_lib.analog._periphery import check_finite
from rapa_lib.analog._tile_checks import at_patches, check_groups, check_tiles, images_of
from rapa_lib.layers._patch_conv import check_kernels
from rapa_lib.layers.products.geometry import Geometry

_FAST_DEVICES, _READOUT = 1, 2  # mixed into a tile array's seed
_PIXEL = Geometry((1, 1), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))


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
        self.scale: Tensor | None
        self.register_buffer("scale", None)
        self.hidden: Tensor | None
        self.register_buffer("hidden", None)
        self._drift: Drift | None = None
        self._pairs: ConductancePairs | None = None
        self._compound: Transfer | MixedPrecision | None = None
        self.slow: Tensor | None
        self.register_buffer("slow", None)
        if isinstance(self.config.device, IdealDevice):
            return
        if self.config.omega:
            self.scale = self._scale_of(torch.zeros_like(self.weight))
        seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
        seed = check_int("seed", seed, low=0)
        if isinstance(self.config.device, PCMLikeNoiseModel):
            self._pairs, self._seed = ConductancePairs(self.config.device, self.weight), seed
            return
        cross_point = self.config.cross_point
        assert cross_point is not None
        if isinstance(self.config.device, TransferCompound | MixedPrecisionCompound):
            ours = mix_seeds(seed, _FAST_DEVICES)
            self._compound = make_compound(self.config.device, matrices, ours)
            if getattr(self.config.device, "gamma", 0):
                self.slow = torch.zeros_like(matrices).transpose(1, 2)
        points = draw_devices(cross_point, matrices.shape, seed, matrices)
        for name, values in points.present().items():
            self.register_buffer(name, values.transpose(1, 2))
        if cross_point.write_noise:
            self.hidden = torch.zeros_like(matrices).transpose(1, 2)
        if points.nu is not None:
            self._drift = Drift(self.weight, cross_point.drift_t_0)

    @property
    def is_ideal(self) -> bool:
        """Whether weights are set by an ordinary optimizer, not by pulses."""
        return isinstance(self.config.device, IdealDevice)

    @property
    def is_pulsed(self) -> bool:
        """Whether pulses move weights."""
        return self.config.cross_point is not None

    @property
    def matrices(self) -> Tensor:
        """What the devices hold, as the products take it, (T, K, M), without a copy."""
        return self.weight.transpose(1, 2)

    def effective(self) -> Tensor:
        """The weights (T, M, K) that products have: what devices hold times its scale.

        Without scaling, and of ideal devices, it is the parameter itself.
        """
        return self.weight if self.scale is None else self.weight * self.scale[:, :, None]

    def read(self) -> Tensor:
        """A copy of the weights, (T, M, K), without noise, scale included."""
        return self.effective().detach().clone()

    @torch.no_grad()
    def drift(self, t_inference: float, seed: int | None = None) -> None:
        """See :func:`rapa_lib.analog.drift`."""
        if self._pairs is None:
            kind = type(self.config.device).__name__
            raise ValueError(f"device: got {kind}, allowed: PCMLikeNoiseModel")
        t = check_real("t_inference", t_inference, low=0)
        seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
        self.weight.copy_(self._pairs.drifted(t, seeded_generator(seed, self.weight.device)))
        if self._pairs.model.drift_compensation:
            self._pairs.compensate(self._readout(seed))

    def _readout(self, seed: int) -> Tensor:
        """The mean current of each array's outputs, (T,), all inputs at one: the two devices of a
        weight are on lines of their own, so that a line's sum is large beside a read's noise."""
        held = self.matrices.detach().abs()
        path = _compiled if _compiled.serves(held) else _products
        ones = held.new_ones(self.n_tiles, self.in_features)
        tile = torch.arange(self.n_tiles, device=held.device)[:, None]
        with seeded(seed, _READOUT):
            y = path.forward(images_of(ones), held, None, tile, _PIXEL, self.config.forward)
        return y.flatten(1).mean(1)

    def _scale_of(self, weight: Tensor) -> Tensor:
        """The digital factors (T, M), or (T, 1), under which devices hold these weights."""
        mapping, tile = self.config.mapping, weight.detach().abs()
        largest = tile.amax(2) if mapping.weight_scaling_columnwise else tile.amax((1, 2))[:, None]
        full = self.config.omega * self.config.w_bound
        return torch.where(largest > 0, largest / full, 1)

    def _held(self) -> tuple[Tensor, Tensor | None]:
        """What products read, (T, K, M), and the factors of their outputs; None: none.

        Ideal devices are scaled anew in every product, as if they had just been programmed.
        """
        if not self.config.omega:
            return self.matrices.detach(), None
        if self.scale is not None:
            more = 1 if self._pairs is None else self._pairs.compensation
            return self.matrices.detach(), self.scale * more
        scale = self._scale_of(self.weight)
        return self.matrices.detach() / scale[:, None], scale

    @torch.no_grad()
    def program(self, weight: Tensor) -> None:
        """Write weights (T, M, K), scaled if the mapping says so.

        Those outside the bounds of their devices are clipped. A warning counts them.

        Raises:
            ValueError: if the shape does not fit.
            NotFiniteError: if a number is not finite; nothing is written.
        """
        if weight.shape != self.weight.shape:
            raise ValueError(
                f"weight: got shape {tuple(weight.shape)}, expected {tuple(self.weight.shape)}"
            )
        check_finite("weight", weight)
        if self.scale is not None:
            self.scale.copy_(self._scale_of(weight))
            weight = weight / self.scale[:, :, None]
        self.weight.copy_(weight)
        if self._pairs is not None:
            drawn = seeded_generator(self._seed, self.weight.device)
            self.weight.copy_(self._pairs.write(weight, drawn))
            self._pairs.remember(self._readout(self._seed))
            return
        if n_clipped := self.clip():
            warnings.warn(
                f"{n_clipped} of {weight.numel()} weights are outside the bounds of their devices "
                "and were clipped",
                stacklevel=2,
            )

    @torch.no_grad()
    def clip(self) -> int:
        """Move weights into the bounds of their devices; return how many were outside.

        Devices with write noise are written anew: what is read of them is drawn again.
        """
        if not self.is_pulsed:
            return 0
        before = self.weight.detach().clone()
        clip(self.weight.data, self.points())
        outside = int((before != self.weight).sum())
        if self.slow is not None:
            self.slow.copy_(self.weight)
        if self.hidden is not None:
            self.hidden.copy_(self.weight)
            self._crossbar().write()
        if self._compound is not None:
            self._compound.reset()
            self._show()
        return outside

    @torch.no_grad()
    def let_time_pass(self) -> None:
        """Let one mini-batch of time pass: weights decay and drift as their devices do.

        :class:`AnalogSGD` calls it once after the pulses of each step.
        """
        if not self.is_pulsed:
            return
        points = self.points()
        moved = self._crossbar().moved.transpose(1, 2)
        if points.decay is not None:
            moved.mul_(points.decay)
        if points.nu is not None and self._drift is not None:
            self._drift.apply_to(moved, points)
        if points.decay is not None or points.nu is not None:
            self._crossbar().write()
        if self._compound is not None:
            self._compound.let_time_pass()
            self._show()

    def points(self) -> CrossPoints:
        """The devices' parameters, each (T, M, K).

        Raises:
            ValueError: if the devices are ideal and have none.
        """
        if not self.is_pulsed:
            kind = type(self.config.device).__name__
            raise ValueError(f"device: got {kind}, which has no cross-points")
        return CrossPoints(*(getattr(self, name, None) for name in CrossPoints._fields))  # type: ignore[arg-type]

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
        groups = check_groups(self, groups, x, "x", self.in_features)
        return self.convolve(images_of(x), groups, _PIXEL).flatten(1)

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
        groups = check_groups(self, groups, d, "d", self.out_features)
        return self.convolve_backward(images_of(d), groups, (1, 1), _PIXEL).flatten(1)

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
        groups = check_groups(self, groups, x, "x", self.in_features)
        check_groups(self, groups[:, 0], d, "d", self.out_features)
        self.update_patches(images_of(x), images_of(d), groups, _PIXEL, lr)

    def convolve(
        self, x: Tensor, assignment: Tensor, geometry: Geometry, bias: Tensor | None = None
    ) -> Tensor:
        """:meth:`forward` of the patches of images; a bias (T, M) is added digitally."""
        check_tiles(self, geometry, assignment, x=x, bias=bias)
        path = _compiled if _compiled.serves(x) else _products
        held, scale = self._held()
        if scale is None:
            return path.forward(x, held, bias, assignment, geometry, self.config.forward)
        y = path.forward(x, held, None, assignment, geometry, self.config.forward)
        y = y * at_patches(scale, assignment, y)
        return y if bias is None else y + at_patches(bias, assignment, y, nothing=True)

    def convolve_backward(
        self, d: Tensor, assignment: Tensor, input_size: tuple[int, int], geometry: Geometry
    ) -> Tensor:
        """:meth:`backward` of the patches of images, added up where they overlap."""
        check_tiles(self, geometry, assignment, grad=d, input_size=input_size)
        path = _compiled if _compiled.serves(d) else _products
        held, scale = self._held()
        d = d if scale is None else d * at_patches(scale, assignment, d)
        return path.backward(d, held, assignment, input_size, geometry, self.config.backward)

    @torch.no_grad()
    def update_patches(
        self, x: Tensor, d: Tensor, assignment: Tensor, geometry: Geometry, lr: float
    ) -> None:
        """:meth:`update` of the patches of images x (N, C, H, W), d (N, M, H', W')."""
        lr = check_real("lr", lr, low=0)
        if lr == 0 or assignment.numel() == 0:
            return
        if not self.is_pulsed:
            why = "whose weights an ordinary optimizer sets" if self.is_ideal else "for inference"
            raise ValueError(f"device: got {type(self.config.device).__name__}, {why}")
        check_tiles(self, geometry, assignment, x=x, grad=d)
        if self.scale is not None:  # a step of the weight is 1/scale of it in what devices hold
            d = d / at_patches(self.scale, assignment, d)
        signals = Signals(x, d, assignment, geometry, lr)
        if self._compound is None:
            self._crossbar().send(signals, self.config.update)
        else:
            self._compound.update(self._crossbar(), signals, self.config.update)
        self._show()

    def _crossbar(self) -> Crossbar:
        """The tiles as what pulses move, laid out as products take weights: no copies."""
        device = self.config.cross_point
        assert device is not None
        hidden = None if self.hidden is None else self.hidden.transpose(1, 2)
        points = self.points().map(lambda p: p.transpose(1, 2))
        weight = self.matrices.data if self.slow is None else self.slow.transpose(1, 2)
        return Crossbar(weight, points, device, hidden)

    def _show(self) -> None:
        """Let products read what fast and slow devices hold together."""
        if self.slow is not None and self._compound is not None:
            self.matrices.data.copy_(self._compound.visible(self.slow.transpose(1, 2)))

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
        self.let_time_pass()

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles of a network hold no half-done training step.
        return super().__getstate__() | {"_pending": []}

    def extra_repr(self) -> str:
        return f"{self.n_tiles} × ({self.out_features} × {self.in_features}), config={self.config}"
