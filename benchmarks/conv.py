"""Speed and memory of the RAPA convolution, as ratios to Conv2d on the machine it runs on.

    python benchmarks/conv.py [--quick] [--output results/benchmarks]

Every ratio is the median over pairs of runs, one right after the other, of the time of RAPA over
that of Conv2d in its better memory format; the spread is between the quartiles. Times are of
forward and backward, assignments drawn anew. Each goal is that of the project.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from measuring import Work, faster, markdown, ratios, report, row
from torch import Tensor, nn

from rapa_lib import RapaConv2d, RapaConvNet, TrainConfig, convert_to_rapa
from rapa_lib.layers import LocallyConnected2d
from rapa_lib.layers.products.compiled import bfloat16_units
from rapa_lib.training import InputScaling, TrainingStep, one_cycle_sgd

LAYERS = ((3, 32, 32), (32, 32, 16), (32, 64, 8))  # channels in, channels out, height = width

FEW, MANY = (16, 4, 1), (1024, 256, 64)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measures = (cpu_rows, bfloat16_rows, locally_connected_rows, gpu_rows)
    report("conv", __doc__, device, lambda n: [r for f in measures for r in f(n)], markdown)


def cpu_rows(repeats: int) -> list[dict]:
    cpu = torch.device("cpu")
    rows = [
        three_layers("the three layers, batch 128, tiles (16, 4, 1)", FEW, 1.25, cpu, 128, repeats),
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


def bfloat16_rows(repeats: int) -> list[dict]:
    cpu, dtype = torch.device("cpu"), torch.bfloat16
    few, many = f"bfloat16: the three layers, tiles {FEW}", f"bfloat16: the same, tiles {MANY}"
    steps = "bfloat16: training steps of RAPA / of the plain network"
    both = "training steps of RAPA, bfloat16 / float32"
    megabytes = 4 * kernel_numbers() / 1e6
    limit = f"bfloat16, tiles {MANY}: share of the memory's limit, {megabytes:.0f} MB (%)"
    goals = {few: 2.0, many: None, limit: 60, steps: 1.3, both: 0.55}
    if bfloat16_units() == "off":  # ten times as slow: nobody would take it
        return [row(name, goal, at_least=name == limit) for name, goal in goals.items()]
    rows = [
        three_layers(name, tiles, goals[name], cpu, 128, repeats, dtype)
        for name, tiles in ((few, FEW), (many, MANY))
    ]
    layers = [
        convolution(*layer, n, cpu, 128, dtype=dtype) for layer, n in zip(LAYERS, MANY, strict=True)
    ]
    rows.append(row(limit, goals[limit], *memory_share(layers, repeats), at_least=True))
    random, none = (training_steps(tiling, dtype=dtype) for tiling in ("random", "none"))
    rows.append(row(steps, goals[steps], *ratios([none], [random], repeats)))
    rows.append(row(both, goals[both], *ratios([training_steps("random")], [random], repeats)))
    return rows


def kernel_numbers() -> int:
    """The numbers in all kernels of the three layers."""
    return sum(
        n * fan_in * fan_out * 25 for (fan_in, fan_out, _), n in zip(LAYERS, MANY, strict=True)
    )


def memory_share(works: Sequence[Work], repeats: int) -> tuple[float, tuple[float, float], float]:
    """Percent of the layers' time in which their kernels can be read and as much be written.

    What must be moved at least is every kernel matrix once and its gradient once: the time of a
    copy from one to the other, on the same threads. Smaller tensors are left out.
    """
    kernels, gradients = (torch.zeros(kernel_numbers(), dtype=torch.bfloat16) for _ in range(2))
    share, (low, high), _ = ratios(works, [lambda: gradients.copy_(kernels)], repeats)
    milliseconds = ratios([lambda: None], works, repeats)[2]
    return 100 * share, (100 * low, 100 * high), milliseconds


def locally_connected_rows(repeats: int) -> list[dict]:
    """A kernel for each position of the middle layer, and the same by unfolding."""
    torch.manual_seed(0)
    fan_in, fan_out, size = LAYERS[1]
    layer = LocallyConnected2d(fan_in, fan_out, 5, padding=2, input_size=(size, size))
    x = torch.randn(128, fan_in, size, size, requires_grad=True)
    weight = layer.weight.detach().flatten(2).contiguous().requires_grad_()
    assert layer.bias is not None
    bias = layer.bias.detach().t().contiguous().requires_grad_()

    def unfolded() -> Tensor:
        y = torch.einsum("nkp,pok->nop", F.unfold(x, 5, padding=2), weight) + bias
        return y.view(128, fan_out, size, size)

    torch.testing.assert_close(unfolded(), layer(x), rtol=1e-3, atol=1e-4)
    grad = torch.randn(128, fan_out, size, size)
    found = ratios(
        [lambda: torch.autograd.grad(layer(x), (x, *layer.parameters()), grad)],
        [lambda: torch.autograd.grad(unfolded(), (x, weight, bias), grad)],
        repeats,
    )
    name = "unfold and einsum / LocallyConnected2d, 32 → 32 channels, 16 × 16, batch 128"
    return [row(name, 5, *found, at_least=True)]


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
    goal: float | None,
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


class Autocast(nn.Module):
    """A network whose forward pass is autocast, with logits of float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=self.dtype):
            return self.network(x).float()


def training_steps(
    tiling: str, n_steps: int = 3, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """Steps as an epoch takes them: augmentation, scaling, network, loss, optimizer, schedule."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2048, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (2048,))
    scaling, network = InputScaling.of(images), RapaConvNet(tiling=tiling)
    rates = one_cycle_sgd(network, TrainConfig(learning_rate=1e-4), 10**6)
    model = network if dtype == torch.float32 else Autocast(network, dtype)
    step = TrainingStep(model, scaling, *rates, mirror=True, max_shift=4)
    loss = torch.zeros(())

    def steps() -> None:
        for _ in range(n_steps):
            index = torch.randperm(len(images))[:128]
            step(images[index], labels[index], loss)

    return steps


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


if __name__ == "__main__":
    main()
