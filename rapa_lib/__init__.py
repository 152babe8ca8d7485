"""RAPA ConvNets: convolutions whose kernel matrices are replicated over analog arrays.

Source of the method: M. J. Rasch, T. Gokmen, M. Rigotti, W. Haensch, "RAPA-ConvNets: Modified
Convolutional Networks for Accelerated Training on Architectures With Analog Arrays", Frontiers in
Neuroscience 13:753 (2019), doi 10.3389/fnins.2019.00753.

Figures are in :mod:`rapa_lib.figures`, which is imported apart.
"""

from rapa_lib._patch_conv import frozen_draws
from rapa_lib.acceleration import (
    AccelerationRun,
    acceleration_table,
    balanced_table,
    count_networks,
    layer_times,
    network_table,
    save_acceleration,
)
from rapa_lib.accuracy import AccuracyRun, load_network, save_run
from rapa_lib.analog import (
    AnalogLinear,
    AnalogRapaConv2d,
    AnalogSGD,
    AnalogTileArray,
    ConstantStepDevice,
    IdealDevice,
    IOParameters,
    SoftBoundsDevice,
    TileConfig,
    UpdateParameters,
    convert_to_analog,
    ideal,
    reram,
    resolution,
    rpu_baseline,
)
from rapa_lib.conv import RapaConv2d
from rapa_lib.convert import convert_to_rapa, count_patches, merge_tiles
from rapa_lib.data import DATASETS, Dataset, load_dataset
from rapa_lib.evaluation import TestErrors, evaluate, reestimate_normalisation
from rapa_lib.fault_tolerance import (
    FaultSweep,
    fault_record,
    fault_table,
    save_faults,
    tolerated_share,
)
from rapa_lib.faults import (
    FAULT_KINDS,
    TileDeaths,
    TileFault,
    draw_faults,
    dying_tiles,
    products_per_layer,
    tile_faults,
)
from rapa_lib.filter_similarity import FilterSimilarityRun
from rapa_lib.models import MixedPool2d, RapaConvNet, count_parameters
from rapa_lib.noisy import NoisyConv2d
from rapa_lib.perforated import PerforatedConv2d
from rapa_lib.records import collect
from rapa_lib.regularization import (
    measured_penalty,
    penalty_gradient,
    predicted_penalty,
    scale_deviations,
)
from rapa_lib.repair import fine_tune, repair_by_copy
from rapa_lib.runtime import (
    AnalogArrays,
    NetworkLayers,
    RunTime,
    balance_tiles,
    count_layers,
    reachable_speedup,
    roofline_table,
    run_time,
)
from rapa_lib.similarity import LayerSimilarity, kernel_similarity, tile_similarity
from rapa_lib.statistics import mean_interval
from rapa_lib.tiling import TILINGS, draw_assignment, register_tiling
from rapa_lib.tradeoff import tiles_accuracy
from rapa_lib.trained import Trained, load_or_train
from rapa_lib.training import DivergedError, InputScaling, TrainConfig, Training, train

__all__ = [
    "DATASETS",
    "FAULT_KINDS",
    "TILINGS",
    "AccelerationRun",
    "AccuracyRun",
    "AnalogArrays",
    "AnalogLinear",
    "AnalogRapaConv2d",
    "AnalogSGD",
    "AnalogTileArray",
    "ConstantStepDevice",
    "Dataset",
    "DivergedError",
    "FaultSweep",
    "FilterSimilarityRun",
    "IOParameters",
    "IdealDevice",
    "InputScaling",
    "LayerSimilarity",
    "MixedPool2d",
    "NetworkLayers",
    "NoisyConv2d",
    "PerforatedConv2d",
    "RapaConv2d",
    "RapaConvNet",
    "RunTime",
    "SoftBoundsDevice",
    "TestErrors",
    "TileConfig",
    "TileDeaths",
    "TileFault",
    "TrainConfig",
    "Trained",
    "Training",
    "UpdateParameters",
    "acceleration_table",
    "balance_tiles",
    "balanced_table",
    "collect",
    "convert_to_analog",
    "convert_to_rapa",
    "count_layers",
    "count_networks",
    "count_parameters",
    "count_patches",
    "draw_assignment",
    "draw_faults",
    "dying_tiles",
    "evaluate",
    "fault_record",
    "fault_table",
    "fine_tune",
    "frozen_draws",
    "ideal",
    "kernel_similarity",
    "layer_times",
    "load_dataset",
    "load_network",
    "load_or_train",
    "mean_interval",
    "measured_penalty",
    "merge_tiles",
    "network_table",
    "penalty_gradient",
    "predicted_penalty",
    "products_per_layer",
    "reachable_speedup",
    "reestimate_normalisation",
    "register_tiling",
    "repair_by_copy",
    "reram",
    "resolution",
    "roofline_table",
    "rpu_baseline",
    "run_time",
    "save_acceleration",
    "save_faults",
    "save_run",
    "scale_deviations",
    "tile_faults",
    "tile_similarity",
    "tiles_accuracy",
    "tolerated_share",
    "train",
]
