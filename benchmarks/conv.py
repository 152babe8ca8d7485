"""Speed and memory of the RAPA convolution, as ratios to Conv2d on the machine it runs on.

    python benchmarks/conv.py [--quick] [--output results/benchmarks]

Every ratio is the median over pairs of runs, one right after the other, of the time of RAPA over
that of Conv2d in its better memory format; the spread is between the quartiles. Times are of
forward and backward, assignments drawn anew. Each goal is that of the project.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from rapa_lib import RapaConv2d, RapaConvNet, TrainConfig, convert_to_rapa
from rapa_lib._files import whole_file
from rapa_lib.experiments.records import provenance, write_json
from rapa_lib.training import InputScaling, TrainingStep, one_cycle_sgd

LAYERS = ((3, 32, 32), (32, 32, 16), (32, 64, 8))  # channels in, channels out, height = width
Work = Callable[[], object]

FEW, MANY = (16, 4, 1), (1024, 256, 64)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report("conv", __doc__, device, lambda repeats: cpu_rows(repeats) + gpu_rows(repeats), markdown)


def report(
    name: str,
    doc: str,
    device: torch.device,
    measure: Callable[[int], list[dict]],
    markdown: Callable[[dict], str],
) -> None:
    """Measure what the command line asks for, print it, and write name.md and name.json."""
    arguments = argparse.ArgumentParser(description=doc.splitlines()[0])
    arguments.add_argument("--quick", action="store_true", help="fewer repeats: under a minute")
    arguments.add_argument("--output", type=Path, help=f"folder for {name}.md and {name}.json")
    options = arguments.parse_args()
    # The variable is there for the test that this program runs.
    repeats = int(os.environ.get("RAPA_BENCHMARK_REPEATS", 7 if options.quick else 31))
    result = {"machine": machine(device), "repeats": repeats, "rows": measure(repeats)}
    text = markdown(result)
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        write_json(options.output / f"{name}.json", result)
        with whole_file(options.output / f"{name}.md") as part:
            part.write_text(text, encoding="utf-8")


def cpu_rows(repeats: int) -> list[dict]:
    cpu = torch.device("cpu")
    rows = [
        three_layers("the three layers, batch 128, tiles (16, 4, 1)", FEW, 1.5, cpu, 128, repeats),
        three_layers("the same, tiles (1024, 256, 64)", MANY, 2.0, cpu, 128, repeats),
    ]
    first = LAYERS[0]
    one, many = (convolution(*first, n, cpu, 128) for n in (1, 1024))
    rows.append(row("first layer, 1024 tiles / 1 tile", 1.5, *ratios([one], [many], repeats)))
    for batch in (128, 512):
        worst = max(
            extra_memory(layer, n, batch)
            for tiles in (FEW, MANY)
            for layer, n in zip(LAYERS, tiles, strict=True)
            if n > 1
        )
        rows.append(row(f"peak extra memory of a layer, batch {batch} (MB)", 64, worst))
    step, plain = (training_steps(t) for t in ("random", "none"))
    rows.append(row("training steps of RAPA / of the plain network", 1.6,
                    *ratios([plain], [step], repeats)))  # fmt: skip
    randoms = [convolution(*layer, n, cpu, 128) for layer, n in zip(LAYERS, FEW, strict=True)]
    for tiling in ("none", "image", "alternate", "random_fixed"):
        others = [
            convolution(*layer, 1 if tiling == "none" else n, cpu, 128, tiling)
            for layer, n in zip(LAYERS, FEW, strict=True)
        ]
        rows.append(row(f"{tiling} / random, the three layers", 1.0,
                        *ratios(randoms, others, repeats)))  # fmt: skip
    return rows


def gpu_rows(repeats: int) -> list[dict]:
    names = [
        f"GPU: the three layers, batch 512, {kind}, tiles {tiles}"
        for kind in ("TF32", "bfloat16") for tiles in (FEW, MANY)
    ]  # fmt: skip
    resnet = "GPU: ResNet-18 with 16 tiles a layer, 224 × 224, batch 32"
    if not torch.cuda.is_available():
        return [row(name, 1.5) for name in names] + [row(resnet, 2.0)]
    cuda = torch.device("cuda")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    rows = []
    for name, (dtype, tiles) in zip(
        names, ((d, t) for d in (torch.float32, torch.bfloat16) for t in (FEW, MANY)), strict=True
    ):
        rows.append(three_layers(name, tiles, 1.5, cuda, 512, repeats, dtype))
    from torchvision.models import resnet18

    plain = resnet18().to(cuda, memory_format=torch.channels_last)
    rapa = convert_to_rapa(plain, 16, input_size=(3, 224, 224))
    x = torch.randn(32, 3, 224, 224, device=cuda).contiguous(memory_format=torch.channels_last)
    steps = [lambda model=model: model(x).sum().backward() for model in (plain, rapa)]
    peaks = []
    for step in steps:
        torch.cuda.reset_peak_memory_stats()
        step()
        peaks.append(torch.cuda.max_memory_allocated() / 2**20)
    rows.append(row(resnet, 2.0, *ratios(steps[:1], steps[1:], repeats)))
    rows.append(row(f"GPU: peak memory of ResNet-18 (MB), plain {peaks[0]:.0f}", None, peaks[1]))
    return rows


def three_layers(
    name: str,
    tiles: Sequence[int],
    goal: float,
    device: torch.device,
    batch: int,
    repeats: int,
    dtype: torch.dtype = torch.float32,
) -> dict:
    """RAPA's three layers against Conv2d's, each of these in its better memory format."""
    plain = [
        faster(
            convolution(*layer, 0, device, batch, dtype=dtype, memory_format=memory_format)
            for memory_format in (torch.contiguous_format, torch.channels_last)
        )
        for layer in LAYERS
    ]
    rapa = [
        convolution(*layer, n, device, batch, dtype=dtype)
        for layer, n in zip(LAYERS, tiles, strict=True)
    ]
    return row(name, goal, *ratios(plain, rapa, repeats))


def convolution(
    fan_in: int,
    fan_out: int,
    size: int,
    n_tiles: int,
    device: torch.device,
    batch: int,
    tiling: str = "random",
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> Work:
    """Forward and backward of one 5 × 5 convolution; n_tiles = 0 is Conv2d."""
    torch.manual_seed(0)
    layer: nn.Module
    if n_tiles:
        layer = RapaConv2d(fan_in, fan_out, 5, padding=2, n_tiles=n_tiles, tiling=tiling)
    else:
        layer = nn.Conv2d(fan_in, fan_out, 5, padding=2)
    layer = layer.to(device, dtype).to(memory_format=memory_format)
    x = torch.randn(batch, fan_in, size, size, device=device, dtype=dtype)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    grad = torch.randn(batch, fan_out, size, size, device=device, dtype=dtype)
    grad = grad.contiguous(memory_format=memory_format)
    return lambda: torch.autograd.grad(layer(x), (x, *layer.parameters()), grad)


def training_steps(tiling: str, n_steps: int = 3) -> Callable[[], None]:
    """Steps as an epoch takes them: augmentation, scaling, network, loss, optimizer, schedule."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2048, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (2048,))
    scaling, network = InputScaling.of(images), RapaConvNet(tiling=tiling)
    rates = one_cycle_sgd(network, TrainConfig(learning_rate=1e-4), 10**6)
    step = TrainingStep(network, scaling, *rates, mirror=True, max_shift=4)
    loss = torch.zeros(())

    def steps() -> None:
        for _ in range(n_steps):
            index = torch.randperm(len(images))[:128]
            step(images[index], labels[index], loss)

    return steps


def ratios(
    base: Sequence[Work], other: Sequence[Work], repeats: int
) -> tuple[float, tuple[float, float], float]:
    """Median and quartiles, over interleaved pairs, of the time of other over base; and its ms."""
    for work in (*base, *other):
        work()
    found, times = [], []
    for _ in range(repeats):
        pair = [sum(seconds(work) for work in works) for works in (base, other)]
        found.append(pair[1] / pair[0])
        times.append(1000 * pair[1])
    low, middle, high = statistics.quantiles(found, n=4)
    return middle, (low, high), statistics.median(times)


def faster(works: Iterable[Work]) -> Work:
    def best(work: Work) -> float:
        work()
        return min(seconds(work) for _ in range(5))

    return min(works, key=best)


def seconds(work: Work) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


PEAK = """
import torch
from rapa_lib import RapaConv2d

def memory(kind):  # in MB: VmRSS is what is held now, VmHWM the most that was
    for line in open("/proc/self/status"):
        if line.startswith(kind):
            return int(line.split()[1]) / 1024

RapaConv2d(3, 4, 3)(torch.randn(2, 3, 8, 8)).sum().backward()  # load what is loaded once
fan_in, fan_out, size, n_tiles, batch = {numbers}
layer = RapaConv2d(fan_in, fan_out, 5, padding=2, n_tiles=n_tiles)
x = torch.randn(batch, fan_in, size, size).contiguous(memory_format=torch.channels_last)
x.requires_grad_()
grad = torch.ones(batch, fan_out, size, size).contiguous(memory_format=torch.channels_last)
needed = sum(t.numel() * 4 for t in (grad, x, *layer.parameters())) / 2**20
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the most starts again from now
held = torch.ones({hold} * 2**18)
y = layer(x)
gradients = torch.autograd.grad(y, (x, *layer.parameters()), grad)
print(memory("VmHWM") - before - needed)
"""


def extra_memory(layer: tuple[int, int, int], n_tiles: int, batch: int, hold: int = 0) -> float:
    """The most that forward and backward hold, in MB, over input, output, kernels and their
    gradients; measured in a new process (Linux), within a few MB. ``hold`` MB more are held to
    prove that they are seen."""
    code = PEAK.format(numbers=(*layer, n_tiles, batch), hold=hold)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    return float(done.stdout)


def row(
    name: str,
    goal: float | None,
    value: float | None = None,
    spread: tuple[float, float] | None = None,
    milliseconds: float | None = None,
) -> dict:
    return {"work": name, "goal": goal, "value": value, "spread": spread, "ms": milliseconds}


def machine(device: torch.device) -> dict:
    names = [
        line
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if "model name" in line
    ]
    return provenance(device) | {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
    }


def markdown(result: dict) -> str:
    about = result["machine"]
    lines = [
        f"{about['cpu']}, {about['threads']} threads; {about['device']}; PyTorch "
        f"{about['torch_version']}; products: {about['products']}; commit {about['git_commit']}; "
        f"{result['repeats']} interleaved repeats.",
        "",
        "| forward + backward | RAPA / Conv2d | quartiles | ms | goal | met |",
        "|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        if r["value"] is None:
            lines.append(f"| {r['work']} | unmeasured |  |  | ≤ {r['goal']:g} |  |")
            continue
        spread = "" if r["spread"] is None else "{:.2f} to {:.2f}".format(*r["spread"])
        ms = "" if r["ms"] is None else f"{r['ms']:.1f}"
        goal = "" if r["goal"] is None else f"≤ {r['goal']:g}"
        met = "" if r["goal"] is None else ("yes" if r["value"] <= r["goal"] else "no")
        value = f"{r['value']:.2f}" if r["spread"] else f"{r['value']:.0f}"
        lines.append(f"| {r['work']} | {value} | {spread} | {ms} | {goal} | {met} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
