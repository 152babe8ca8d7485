"""Tiles that die while a network is trained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn

from rapa_lib._checks import check_bool, check_int
from rapa_lib.instruments.faults.broken import living_after, living_tiles
from rapa_lib.instruments.faults.draw import TileFault, faults_by_layer


@dataclass(frozen=True)
class TileDeaths:
    """Tiles that die while a network is trained: a hook to be called before each epoch.

    Made by :func:`dying_tiles`. What it does depends on the epoch alone, so that a training resumed
    at a later one begins with the same dead tiles.

    Args:
        deaths: (epoch, faults) in order; the faults' tiles are dead from that epoch on.
        reroute: whether the living tiles take their patches.
    """

    deaths: tuple[tuple[int, tuple[TileFault, ...]], ...]
    reroute: bool

    def __call__(self, model: nn.Module, epoch: int) -> None:
        """Let those tiles be dead that died in or before ``epoch``, from 1."""
        by_layer = faults_by_layer(model, [fault for _, faults in self.deaths for fault in faults])
        for name, (layer, _) in by_layer.items():
            dead = {f.tile for e, fs in self.deaths if e <= epoch for f in fs if f.layer == name}
            living = [tile for tile in range(layer.n_tiles) if tile not in dead]
            layer.set_living(living, reroute=self.reroute)


@contextmanager
def dying_tiles(
    model: nn.Module, deaths: Mapping[int, Sequence[TileFault]], *, reroute: bool = False
) -> Iterator[TileDeaths]:
    """Let tiles die in the course of a training; afterwards all live again.

    ::

        with dying_tiles(network, {3: faults}, reroute=True) as on_epoch:
            train(network, data, config, on_epoch=on_epoch)
            evaluate(network, data, scaling)  # the dead are still dead

    No patch reaches a dead tile, so its gradient is zero; momentum still carries its kernel some
    steps on, and weight decay shrinks it: nothing computes with it.

    Args:
        model: the network to be trained.
        deaths: by epoch, from 1, the tiles that die before it.
        reroute: whether the living tiles take the patches of the dead.

    Yields:
        The hook to be called with the model and the number of each epoch before it.

    Raises:
        ValueError, TypeError: as :func:`tile_faults`; also for another kind than ``"dead"``, and
            for layers that have dead tiles already.
    """
    check_bool("reroute", reroute)
    if not isinstance(deaths, Mapping):
        raise TypeError(f"deaths: got {type(deaths).__name__}, expected faults by epoch")
    plan = tuple((check_int("deaths", e, low=1), tuple(deaths[e])) for e in sorted(deaths))
    by_layer = faults_by_layer(model, [fault for _, faults in plan for fault in faults])
    for name, (layer, broken) in by_layer.items():
        for fault in broken:
            if fault.kind != "dead":
                raise ValueError(f"deaths: got kind {fault.kind!r}, allowed in training: dead")
        if len(layer.living_tiles) < layer.n_tiles:
            raise ValueError(f"deaths: layer {name!r} has dead tiles already")
        living_after(layer, name, broken, reroute)
    with ExitStack() as stack:
        for layer, _ in by_layer.values():
            stack.enter_context(living_tiles(layer, layer.living_tiles, reroute))
        yield TileDeaths(plan, reroute)
