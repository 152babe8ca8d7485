"""Milliseconds of a training step on every kind of device, beside the digital step.

    python benchmarks/analog_devices.py [--quick] [--output results/benchmarks]

Steps are those of benchmarks/analog.py: forward, backward and update of the study's three
convolutions at batch 16, on one tile a layer and on 1,024, 256 and 64 tiles. Ratios are medians
over pairs of steps, one right after the other; the spread is between the quartiles. Compounds are
of two soft-bounds devices and transfer a column every mini-batch. The goals are those of exact
pulses in benchmarks/analog.py.
"""

from dataclasses import replace

import torch
from analog import ONE, analog, conv2d_step
from conv import MANY
from measuring import heading, ratios, report

from rapa_lib.analog import (
    COMPOUNDS,
    DEVICES,
    ChoppedTransferCompound,
    IdealDevice,
    MappingParameters,
    SoftBoundsDevice,
    TileConfig,
    rpu_baseline,
)
from rapa_lib.runtime import AnalogArrays

GOAL = 20


def main() -> None:
    report("analog_devices", __doc__, torch.device("cpu"), rows, markdown)


def kinds() -> dict[str, TileConfig]:
    """Every kind of device, and mappings of the baseline, by name."""
    found = {
        name: TileConfig(device=kind()) for name, kind in DEVICES.items() if kind is not IdealDevice
    }
    found["SoftBoundsDevice with write noise"] = TileConfig(
        device=SoftBoundsDevice(write_noise_std=2)
    )
    for name, kind in COMPOUNDS.items():
        more = {"units_in_mbatch": True} if kind is ChoppedTransferCompound else {}
        found[name] = TileConfig(device=kind(**more))
    hardware = AnalogArrays(max_size=512)
    found["baseline, scaled"] = replace(rpu_baseline(), mapping=MappingParameters(1.0))
    found["baseline, arrays of 512"] = replace(
        rpu_baseline(), mapping=MappingParameters(arrays=hardware)
    )
    return found


def rows(repeats: int) -> list[dict]:
    plain = conv2d_step()
    found = []
    for tiles in (ONE, MANY):
        for name, config in kinds().items():
            value, spread, milliseconds = ratios([plain], [analog(config, tiles)], repeats)
            found.append(
                {
                    "work": name,
                    "tiles": str(tiles),
                    "goal": GOAL,
                    "value": value,
                    "spread": spread,
                    "ms": milliseconds,
                }
            )
    return found


def markdown(result: dict) -> str:
    lines = [
        heading(result),
        "",
        "| device | tiles | ms | analog / Conv2d | quartiles | goal | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        low, high = r["spread"]
        lines.append(
            f"| {r['work']} | {r['tiles']} | {r['ms']:.1f} | {r['value']:.2f} "
            f"| {low:.2f} to {high:.2f} | ≤ {r['goal']:g} "
            f"| {'yes' if r['value'] <= r['goal'] else 'no'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
