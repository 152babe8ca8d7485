"""The RAPA convolution: kernel matrices replicated over tiles, patches divided among them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rapa_lib._checks import check_choice, check_int
from rapa_lib._seeds import seeded_generator
from rapa_lib.layers._patch_conv import PatchConv2d, plane_of
from rapa_lib.layers.tiling import TILINGS, check_living, draw_assignment

TILE_INITS = ("independent", "identical")


class RapaConv2d(PatchConv2d):
    r"""A 2-D convolution on ``n_tiles`` analog arrays with permuted assignment (RAPA).

    Every patch :math:`x_p` of an image goes to one tile :math:`a(p)`, which holds its own kernel
    matrix and bias:

    .. math:: y_p = K_{a(p)} x_p + b_{a(p)}

    Under ``tiling="random"`` the assignment is a fresh balanced permutation for every image in
    every forward pass, in training and in test: draws follow :func:`torch.manual_seed` and can be
    held with :func:`frozen_draws`. Source: Rasch, Gokmen, Rigotti, Haensch, Front. Neurosci.
    13:753 (2019).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype: as in :class:`torch.nn.Conv2d`.
        n_tiles: number of kernel matrices; at most the number of output positions.
        tiling: the assignment scheme, a name in :data:`rapa_lib.TILINGS`.
        tile_init: ``"independent"`` draws every tile's kernel as ``Conv2d`` does,
            ``"identical"`` draws one and copies it.

    Shape:
        - Input: :math:`(N, C_{in}, H, W)` or :math:`(C_{in}, H, W)`
        - Output: :math:`(N, C_{out}, H', W')` or :math:`(C_{out}, H', W')`, H' and W' as in
          ``Conv2d``; L = H'·W' patches per image
        - ``weight``: (n_tiles, out_channels, in_channels / groups, kernel height, kernel width)
        - ``bias``: (n_tiles, out_channels), or None

    Raises:
        ValueError, TypeError: if an argument is not allowed; the message names it.

    Examples:
        >>> layer = RapaConv2d(3, 32, 5, padding=2, n_tiles=16)
        >>> layer(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 32, 32, 32])
        >>> layer.assignment(8, (32, 32)).shape
        torch.Size([8, 1024])
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
        tiling: str = "random",
        tile_init: str = "independent",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        self.n_tiles = check_int("n_tiles", n_tiles, low=1)
        self.tiling = check_choice("tiling", tiling, TILINGS)
        if tiling == "none" and n_tiles != 1:
            raise ValueError(f"n_tiles: got {n_tiles}, but tiling 'none' has one tile: pass 1")
        self.tile_init = check_choice("tile_init", tile_init, TILE_INITS)
        self._register((n_tiles,), bias, device, dtype)
        self.reset_parameters()
        # Names the one draw of a tiling that is drawn once; part of the state dict.
        self.assignment_seed = int(torch.randint(2**31, (), device="cpu"))
        # What is broken is nothing that was learnt: no part of the state dict.
        self._living: tuple[int, ...] | None = None
        self._reroute = True

    def reset_parameters(self) -> None:
        """Draw kernels and biases anew, each tile as ``Conv2d`` would, following ``tile_init``."""
        self._draw_like_conv2d(1 if self.tile_init == "identical" else self.n_tiles)

    @property
    def redraws(self) -> bool:
        """Whether every forward pass draws anew."""
        n_drawn = len(self.living_tiles) if self.reroute else self.n_tiles
        return n_drawn > 1 and TILINGS[self.tiling].redraw

    @property
    def living_tiles(self) -> tuple[int, ...]:
        """Indices of the tiles that take patches, in order; all of them but for faults."""
        return tuple(range(self.n_tiles)) if self._living is None else self._living

    @property
    def reroute(self) -> bool:
        """Whether the living tiles take the patches of all."""
        return self._reroute

    def set_living(self, tiles: Sequence[int] | None = None, *, reroute: bool = True) -> None:
        """Choose the tiles that take patches; the kernels of the others stay as they are.

        The choice is no part of the state dict. An assignment that the caller passes to the layer
        is taken as it is.

        Args:
            tiles: their indices; None: all.
            reroute: whether the living tiles take the patches of the others as well (see
                :func:`rapa_lib.draw_assignment`); if not, these patches' outputs are zero.

        Raises:
            ValueError, TypeError: if an index is no tile or comes twice, or no tile is left
                to reroute to.
        """
        self._living = check_living(tiles, self.n_tiles, reroute)
        self._reroute = reroute or self._living is None

    def assignment(self, batch_size: int, input_size: tuple[int, int]) -> Tensor:
        """Draw the assignment that a forward pass would draw.

        Args:
            batch_size: number of images N.
            input_size: height and width of the layer's input.

        Returns:
            LongTensor (N, L) on the layer's device: the tile index of every output position, in
            row-major order; -1 where a dead tile's patches are not rerouted.

        Raises:
            ValueError: if the output has fewer positions than there are tiles.
        """
        check_int("batch_size", batch_size, low=0)
        height, width = self._output_size_for_tiles(input_size)
        redraw = TILINGS[self.tiling].redraw
        drawn = draw(
            self.weight,
            self.tiling,
            batch_size if redraw else 1,
            [height, width],
            self.n_tiles,
            self._frozen_seed if redraw else self.assignment_seed,
            self._living,
            self._reroute,
        )
        return drawn.expand(batch_size, -1)

    def forward(self, x: Tensor, assignment: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: images (N, C, H, W) or one image (C, H, W).
            assignment: LongTensor (N, L) of tile indices; -1 leaves a position to no tile, its
                output is zero. None draws one.

        Returns:
            (N, C_out, H', W') or (C_out, H', W').

        Raises:
            ValueError: if a shape does not fit or a tile index is outside -1 … n_tiles - 1.
            TypeError: if the input's type is not the weight's, or the assignment's no integer.
        """
        self._check_input(x)
        if x.dim() == 3:
            return self.forward(x[None], assignment)[0]
        if assignment is not None:
            assignment = self._check_assignment(assignment, x)
        elif self.n_tiles > 1 or self._living is not None:
            assignment = self.assignment(len(x), plane_of(x))
        return self._convolve(x, self.weight, self.bias, assignment)

    def _check_assignment(self, assignment: Tensor, x: Tensor) -> Tensor:
        height, width = self.output_size(plane_of(x))
        if assignment.is_floating_point() or assignment.dtype == torch.bool:
            raise TypeError(f"assignment: got {assignment.dtype}, expected integer tile indices")
        if assignment.shape != (len(x), height * width):
            raise ValueError(
                f"assignment: got shape {tuple(assignment.shape)}, expected (batch, patches) = "
                f"({len(x)}, {height * width})"
            )
        if assignment.numel() and not (
            int(assignment.min()) >= -1 and int(assignment.max()) < self.n_tiles
        ):
            raise ValueError(
                f"assignment: got indices {int(assignment.min())} to {int(assignment.max())}, "
                f"allowed: -1 (no tile) to {self.n_tiles - 1}"
            )
        return assignment.to(device=x.device, dtype=torch.long)

    def merged(self) -> nn.Conv2d:
        """Make the ordinary convolution whose kernel and bias are the means over tiles.

        Returns:
            A ``Conv2d`` on the same device, of the same type. Averaging kernels that differ
            shrinks the outputs: re-estimate the normalisation statistics that follow it.
        """
        return self._merged(self.weight.mean(0), None if self.bias is None else self.bias.mean(0))

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        *,
        n_tiles: int = 16,
        tiling: str = "random",
        tile_init: str = "identical",
    ) -> "RapaConv2d":
        """Replicate an ordinary convolution over tiles.

        Args:
            conv: the convolution to take arguments, device, type and mode from.
            n_tiles, tiling: as in the constructor.
            tile_init: ``"identical"`` gives every tile a copy of the convolution's kernel and
                bias, so that it computes the same function; ``"independent"`` draws new ones.

        Raises:
            TypeError: if ``conv`` is no ``Conv2d``.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv: got {type(conv).__name__}, expected torch.nn.Conv2d")
        layer = cls(
            conv.in_channels, conv.out_channels, _two(conv.kernel_size), _two(conv.stride),
            conv.padding if isinstance(conv.padding, str) else _two(conv.padding),
            _two(conv.dilation), conv.groups, conv.bias is not None, conv.padding_mode,
            device=conv.weight.device, dtype=conv.weight.dtype,
            n_tiles=n_tiles, tiling=tiling, tile_init=tile_init,
        )  # fmt: skip
        if tile_init == "identical":
            with torch.no_grad():
                layer.weight.copy_(conv.weight)
                if layer.bias is not None and conv.bias is not None:
                    layer.bias.copy_(conv.bias)
        layer.weight.requires_grad_(conv.weight.requires_grad)
        if layer.bias is not None and conv.bias is not None:
            layer.bias.requires_grad_(conv.bias.requires_grad)
        return layer.train(conv.training)

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, n_tiles={self.n_tiles}, tiling={self.tiling}"
        if self._living is not None:
            text += f", living_tiles={self._living}, reroute={self._reroute}"
        return text

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.assignment_seed)

    def set_extra_state(self, state: Tensor) -> None:
        self.assignment_seed = int(state)


def _two(values: Sequence[int]) -> tuple[int, int]:
    """Height and width of an argument that an ordinary convolution keeps."""
    height, width = values
    return height, width


@torch.library.custom_op(
    "rapa_lib::draw_assignment", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def draw(
    like: Tensor,
    tiling: str,
    batch: int,
    size: list[int],
    n_tiles: int,
    seed: int | None,
    living: list[int] | None,
    reroute: bool,
) -> Tensor:
    """Draw an assignment on the device of ``like``: one operator, so that compiled models draw
    the same numbers as others."""
    generator = seeded_generator(seed, like.device)
    return draw_assignment(
        tiling, batch, size[0], size[1], n_tiles,
        living=living, reroute=reroute, generator=generator, device=like.device,
    ).contiguous()  # fmt: skip


@draw.register_fake
def _(
    like: Tensor,
    tiling: str,
    batch: int,
    size: list[int],
    n_tiles: int,
    seed: int | None,
    living: list[int] | None,
    reroute: bool,
) -> Tensor:
    return like.new_empty(batch, size[0] * size[1], dtype=torch.long)
