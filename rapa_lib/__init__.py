"""RAPA ConvNets: convolutions whose kernel matrices are replicated over analog arrays.

Source of the method: M. J. Rasch, T. Gokmen, M. Rigotti, W. Haensch, "RAPA-ConvNets: Modified
Convolutional Networks for Accelerated Training on Architectures With Analog Arrays", Frontiers in
Neuroscience 13:753 (2019), doi 10.3389/fnins.2019.00753.

What most users need is here; the rest is in namespaces, each loaded when it is first used:
:mod:`rapa_lib.analog` (simulated tiles), :mod:`rapa_lib.runtime` (speed on arrays),
``rapa_lib.faults`` (broken tiles), ``rapa_lib.similarity`` and ``rapa_lib.penalty`` (what tiles
have in common), :mod:`rapa_lib.robustness` (attacks), :mod:`rapa_lib.experiments` (the study).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rapa_lib import analog, experiments, robustness, runtime
    from rapa_lib.data import DATASETS, Dataset, load_dataset
    from rapa_lib.instruments import faults, penalty, similarity
    from rapa_lib.layers import (
        TILINGS,
        DropoutConv2d,
        NoisyConv2d,
        PerforatedConv2d,
        RapaConv2d,
        draw_assignment,
        frozen_draws,
        register_tiling,
    )
    from rapa_lib.networks import (
        MixedPool2d,
        RapaConvNet,
        convert_to_rapa,
        count_parameters,
        count_patches,
        merge_tiles,
    )
    from rapa_lib.training import (
        DivergedError,
        InputScaling,
        TestErrors,
        TrainConfig,
        Training,
        evaluate,
        reestimate_normalisation,
        train,
    )

_NAMESPACES = {
    "analog": "rapa_lib.analog",
    "experiments": "rapa_lib.experiments",
    "faults": "rapa_lib.instruments.faults",
    "penalty": "rapa_lib.instruments.penalty",
    "robustness": "rapa_lib.robustness",
    "runtime": "rapa_lib.runtime",
    "similarity": "rapa_lib.instruments.similarity",
}

_NAMES = {
    "rapa_lib.data": ("DATASETS", "Dataset", "load_dataset"),
    "rapa_lib.layers": (
        "TILINGS", "DropoutConv2d", "NoisyConv2d", "PerforatedConv2d", "RapaConv2d",
        "draw_assignment", "frozen_draws", "register_tiling",
    ),
    "rapa_lib.networks": (
        "MixedPool2d", "RapaConvNet", "convert_to_rapa", "count_parameters", "count_patches",
        "merge_tiles",
    ),
    "rapa_lib.training": (
        "DivergedError", "InputScaling", "TestErrors", "TrainConfig", "Training", "evaluate",
        "reestimate_normalisation", "train",
    ),
}  # fmt: skip

_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "DATASETS",
    "TILINGS",
    "Dataset",
    "DivergedError",
    "DropoutConv2d",
    "InputScaling",
    "MixedPool2d",
    "NoisyConv2d",
    "PerforatedConv2d",
    "RapaConv2d",
    "RapaConvNet",
    "TestErrors",
    "TrainConfig",
    "Training",
    "analog",
    "convert_to_rapa",
    "count_parameters",
    "count_patches",
    "draw_assignment",
    "evaluate",
    "experiments",
    "faults",
    "frozen_draws",
    "load_dataset",
    "merge_tiles",
    "penalty",
    "reestimate_normalisation",
    "register_tiling",
    "robustness",
    "runtime",
    "similarity",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load a name, or a namespace, when it is first asked for."""
    if name in _NAMESPACES:
        value = import_module(_NAMESPACES[name])
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'rapa_lib' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
