"""RAPA in one picture: when each patch is computed, and by which array."""

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rapa_lib.experiments.plots import STYLE, WIDTH


def steps_of(assignment: Tensor) -> Tensor:
    """When each patch is computed: the n-th patch of a tile, in row-major order, in step n.

    Args:
        assignment: the tile of every patch (L,).

    Returns:
        LongTensor (L,), from 1.
    """
    order = assignment.argsort(stable=True)
    loads = torch.bincount(assignment)
    first = loads.cumsum(0) - loads
    steps = torch.empty_like(assignment)
    steps[order] = torch.arange(1, len(assignment) + 1) - first.repeat_interleave(loads)
    return steps


def time_figure(assignment: Tensor, height: int, width: int) -> Figure:
    """The step in which each patch is computed: on one array, and with an assignment on several.

    Args:
        assignment: the tile of every patch (L,), L = height · width.
        height, width: of the output plane.
    """
    n_patches = height * width
    n_tiles = int(assignment.max()) + 1
    alone, shared = (steps_of(t).view(height, width) for t in (0 * assignment, assignment))
    titles = {
        f"one array: {n_patches} steps": alone,
        f"{n_tiles} arrays, random: {int(shared.max())} steps": shared,
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.5 * WIDTH * height / width + 0.4))
        panels = figure.subplots(1, 2)
        for axes, (title, steps) in zip(panels, titles.items(), strict=True):
            image = axes.imshow(
                steps.numpy(), cmap="viridis", vmin=1, vmax=n_patches, interpolation="nearest"
            )
            axes.set_title(title)
            axes.set_axis_off()
        figure.colorbar(image, ax=panels, label="computed in step", shrink=0.8)
    return figure
