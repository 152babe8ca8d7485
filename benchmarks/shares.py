"""Where the time of a training step goes, by PyTorch's profiler, on one thread.

    python benchmarks/shares.py [--quick] [--output results/benchmarks]

Digital steps are those of the study's network at batch 128 (``benchmarks/conv.py``), analog ones
those of its three convolutions at batch 16 (``benchmarks/analog.py``). Shares are of the time that
each operator spends in itself; what is compiled for an operator counts as that operator's.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from analog import BATCH, MANY, ONE, analog, digital
from conv import training_steps
from measuring import Work, heading, report
from torch.profiler import ProfilerActivity, profile

from rapa_lib.analog import rpu_baseline

# By parts of an operator's name, the first that is in it.
KINDS = {
    "rapa_lib::forward": "tiled products, forward",
    "rapa_lib::grad_input": "tiled products, gradient of images",
    "rapa_lib::grad_weight": "tiled products, gradient of kernels",
    "draw_assignment": "assignments drawn",
    "conv": "ordinary convolutions",
    "batch_norm": "batch normalisation",
    "max_pool": "pooling",
    "clamp_min": "rectifier",
    "threshold": "rectifier",
    "_ProductBackward": "products through the periphery, backward",
    "_Product": "products through the periphery, forward",
    "SGD.step": "pulses, or the digital update",
    "add_": "sums in place (gradients onto kernels)",
    "fill_": "memory set to zero",
    "index": "images taken and shifted",
    "copy_": "copies and casts",
}
REST = "the rest"


def main() -> None:
    report("shares", __doc__, torch.device("cpu"), rows, markdown)


def rows(repeats: int) -> list[dict]:
    """By step: its milliseconds and the shares of its kinds of work, in percent."""
    torch.set_num_threads(1)
    return [{"step": name, **shares(work(), repeats)} for name, work in steps().items()]


def steps() -> Mapping[str, Callable[[], Work]]:
    """The steps by name, each made when it is measured."""
    config = rpu_baseline()
    aware = config.hardware_aware()
    digital_steps: dict[str, Callable[[], Work]] = {
        f"`{tiling}`, {word}": partial(training_steps, tiling, 1, dtype)
        for word, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        for tiling in ("none", "random")
    }
    analog_steps: dict[str, Callable[[], Work]] = {
        f"{name}, tiles {tiles}": partial(analog, kind, tiles)
        for tiles in (ONE, MANY)
        for name, kind in (("exact", config), ("hardware-aware", aware))
    }
    same_tiles = {f"digital, batch {BATCH}, tiles {MANY}": partial(digital, MANY)}
    return digital_steps | analog_steps | same_tiles


def shares(work: Work, repeats: int) -> dict:
    for _ in range(2):
        work()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(repeats):
            work()
    times: dict[str, float] = {}
    for event in profiled.key_averages():
        kind = next((kind for part, kind in KINDS.items() if part in event.key), REST)
        times[kind] = times.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    return {
        "ms": total / repeats / 1000,
        "shares": {kind: 100 * spent / total for kind, spent in times.items()},
    }


def markdown(result: dict) -> str:
    """A line per step: the kinds of work of two percent and more, the largest first."""
    lines = [heading(result), "", "| step | ms | where they go |", "|---|---|---|"]
    for r in result["rows"]:
        own = sorted(r["shares"].items(), key=lambda pair: -pair[1])
        told = [f"{kind} {share:.0f} %" for kind, share in own if share >= 2 and kind != REST]
        rest = 100 - sum(share for kind, share in own if share >= 2 and kind != REST)
        lines.append(f"| {r['step']} | {r['ms']:.0f} | {', '.join(told)}, {REST} {rest:.0f} % |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
