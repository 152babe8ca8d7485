"""Seeds: one number for each purpose, mixed so that no two purposes draw the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What is drawn: mixed with a run's seed, it gives every purpose draws of its own.

    Records depend on these numbers: a new purpose gets a new one, none is ever changed.
    """

    NETWORK = 1_000_001
    EVALUATION = 1_000_002
    MEASUREMENT = 1_000_003
    PENALTY_IMAGES = 1_000_004
    PULL_IMAGES = 1_000_005
    TRAIN_IMAGES = 1_000_006
    VALIDATION_IMAGES = 1_000_007
    FAULTS = 1_000_011
    FAULT_DRAWS = 1_000_012
    REPAIR = 1_000_013
    FAULT_STATISTICS = 1_000_014
    ATTACK = 1_000_021
    ATTACK_SELECTION = 1_000_022
    ATTACK_JUDGE = 1_000_023
    ATTACK_CHOICE = 1_000_024
    CLEAN_ACCURACY = 1_000_031
    LAYER_NOISE = 1_000_032
    MERGE_IMAGES = 1_000_033
    ATTACK_SUITE = 1_000_034
    SHOWN_IMAGES = 1_000_035
    ANALOG_EVALUATION = 1_000_041
    ANALOG_DEVICES = 1_000_042
    ANALOG_DRIFT = 1_000_043


def mix_seeds(*seeds: int) -> int:
    """Make one 63-bit seed of several numbers; neighbouring numbers give unrelated seeds."""
    entropy = [int(seed) for seed in seeds]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seeded_generator(seed: int | None, device: torch.device) -> torch.Generator | None:
    """A generator on ``device`` with that seed; None stands for PyTorch's global one."""
    return None if seed is None else torch.Generator(device).manual_seed(seed)


@contextmanager
def seeded(*seeds: int) -> Iterator[None]:
    """Draw from generators with that seed inside, and leave the caller's as they were."""
    # Every GPU by name: left out, PyTorch warns where there are several.
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(mix_seeds(*seeds))
        yield
