"""Speed of training steps on analog tiles, as ratios to the digital step on the machine it runs on.

    python benchmarks/analog.py [--quick] [--output results/benchmarks]

A step is forward, backward and update of the three convolutions of the study (3 → 32 at 32 × 32,
32 → 32 at 16 × 16, 32 → 64 at 8 × 8, all 5 × 5) at batch 16; the first needs no gradient of its
images. Every ratio is the median over pairs of steps, one right after the other: to ``Conv2d``
with SGD in its better memory format, and to the digital layers of the same tiles. The spread is
between the quartiles. Each goal is that of the project, to ``Conv2d``.
"""

from collections.abc import Callable, Sequence

import torch
from conv import LAYERS, MANY
from measuring import Work, faster, heading, ratios, report
from torch import nn

from rapa_lib import RapaConv2d
from rapa_lib.analog import AnalogRapaConv2d, AnalogSGD, TileConfig, rpu_baseline

ONE = (1, 1, 1)
BATCH = 16


def main() -> None:
    report("analog", __doc__, torch.device("cpu"), rows, markdown)


def rows(repeats: int) -> list[dict]:
    plain = conv2d_step()
    config = rpu_baseline()
    found = []
    for tiles in (ONE, MANY):
        same_tiles = digital(tiles)
        for name, kind, goal in (
            ("exact", config, 20),
            ("hardware-aware", config.hardware_aware(), 2.5),
        ):
            work = analog(kind, tiles)
            value, spread, milliseconds = ratios([plain], [work], repeats)
            found.append(
                {
                    "work": f"{name}, tiles {tiles}",
                    "goal": goal,
                    "value": value,
                    "spread": spread,
                    "to_same_tiles": ratios([same_tiles], [work], repeats)[0],
                    "ms": milliseconds,
                }
            )
    return found


def conv2d_step() -> Work:
    """Steps of ``Conv2d`` in its better memory format: what ratios are to."""
    formats = torch.contiguous_format, torch.channels_last
    return faster(digital(ONE, memory_format) for memory_format in formats)


def digital(
    tiles: Sequence[int], memory_format: torch.memory_format = torch.channels_last
) -> Callable[[], None]:
    """Steps of digital layers; one tile a layer is ``Conv2d``."""
    layers: list[nn.Module]
    if tiles == ONE:
        layers = [nn.Conv2d(i, o, 5, padding=2) for i, o, _ in LAYERS]
    else:
        layers = [
            RapaConv2d(i, o, 5, padding=2, n_tiles=n)
            for (i, o, _), n in zip(LAYERS, tiles, strict=True)
        ]
    network = nn.ModuleList(layers).to(memory_format=memory_format)
    return steps(network, torch.optim.SGD(network.parameters(), lr=0.01), memory_format)


def analog(config: TileConfig, tiles: Sequence[int]) -> Callable[[], None]:
    """Steps of analog layers."""
    network = nn.ModuleList(
        AnalogRapaConv2d(i, o, 5, padding=2, n_tiles=n, config=config)
        for (i, o, _), n in zip(LAYERS, tiles, strict=True)
    )
    return steps(network, AnalogSGD(network, lr=0.01), torch.channels_last)


def steps(
    network: nn.ModuleList, optimizer: torch.optim.Optimizer, memory_format: torch.memory_format
) -> Callable[[], None]:
    """Forward, backward and update of each layer, with inputs and errors of usual sizes."""
    torch.manual_seed(0)
    inputs, errors = [], []
    for i, o, size in LAYERS:
        x = torch.rand(BATCH, i, size, size).contiguous(memory_format=memory_format)
        inputs.append(x.requires_grad_(i > 3))
        d = 1e-3 * torch.randn(BATCH, o, size, size)
        errors.append(d.contiguous(memory_format=memory_format))

    def step() -> None:
        optimizer.zero_grad()
        for layer, x, d in zip(network, inputs, errors, strict=True):
            x.grad = None
            layer(x).backward(d)
        optimizer.step()

    return step


def markdown(result: dict) -> str:
    lines = [
        heading(result),
        "",
        "| analog training step | analog / Conv2d | quartiles | analog / same tiles | ms | goal "
        "| met |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        low, high = r["spread"]
        lines.append(
            f"| {r['work']} | {r['value']:.2f} | {low:.2f} to {high:.2f} "
            f"| {r['to_same_tiles']:.2f} | {r['ms']:.1f} | ≤ {r['goal']:g} "
            f"| {'yes' if r['value'] <= r['goal'] else 'no'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
