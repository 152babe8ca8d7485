"""What the programs of this folder share: interleaved ratios, rows with goals, and their report."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from rapa_lib._files import whole_file
from rapa_lib.experiments.records import provenance, write_json
from rapa_lib.layers.products.compiled import bfloat16_units

Work = Callable[[], object]

# Of /proc/cpuinfo: what the compiled products can use.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


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
        keep(options.output, name, result, text)


def keep(folder: Path, name: str, result: dict, text: str) -> None:
    """Write what was measured as name.json and its report as name.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", result)
    with whole_file(folder / f"{name}.md") as part:
        part.write_text(text, encoding="utf-8")


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


def row(
    name: str,
    goal: float | None,
    value: float | None = None,
    spread: tuple[float, float] | None = None,
    milliseconds: float | None = None,
    at_least: bool = False,
) -> dict:
    """What the report prints of some work; its goal is the most, or the least, that meets it."""
    return {
        "work": name, "goal": goal, "value": value, "spread": spread, "ms": milliseconds,
        "at_least": at_least,
    }  # fmt: skip


def machine(device: torch.device) -> dict:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return provenance(device) | {
        "cpu": names[0] if names else platform.processor(),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "bfloat16_units": bfloat16_units(),
    }


def heading(result: dict) -> str:
    """A line on the machine that measured, its code and its repeats."""
    about = result["machine"]
    return (
        f"{about['cpu']}, {about['threads']} threads; PyTorch {about['torch_version']}; products: "
        f"{about['products']}; commit {about['git_commit']}; {result['repeats']} interleaved "
        "repeats."
    )


def markdown(result: dict) -> str:
    about = result["machine"]
    lines = [
        f"{about['cpu']} ({', '.join(about['cpu_flags'])}), {about['threads']} threads; "
        f"{about['device']}; PyTorch {about['torch_version']}; products: {about['products']}, "
        f"bfloat16 on {about['bfloat16_units']}; commit {about['git_commit']}; "
        f"{result['repeats']} interleaved repeats.",
        "",
        "| forward + backward | RAPA / Conv2d | quartiles | ms | goal | met |",
        "|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        if r["value"] is None:
            lines.append(f"| {r['work']} | unmeasured |  |  | {_goal(r)} |  |")
            continue
        spread = "" if r["spread"] is None else "{:.2f} to {:.2f}".format(*r["spread"])
        ms = "" if r["ms"] is None else f"{r['ms']:.1f}"
        goal, met = _goal(r), ""
        if r["goal"] is not None:
            over = r["value"] - r["goal"]
            met = "yes" if (over >= 0 if r["at_least"] else over <= 0) else "no"
        value = f"{r['value']:.2f}" if r["spread"] else f"{r['value']:.0f}"
        lines.append(f"| {r['work']} | {value} | {spread} | {ms} | {goal} | {met} |")
    return "\n".join(lines) + "\n"


def _goal(r: dict) -> str:
    return "" if r["goal"] is None else f"{'≥' if r['at_least'] else '≤'} {r['goal']:g}"
