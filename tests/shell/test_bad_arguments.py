"""Bad arguments of the library: one clear line each, at once, whatever is wrong."""

import io
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from PIL import Image
from torch import nn

import rapa_lib
from rapa_lib import (
    Dataset,
    InputScaling,
    NoisyConv2d,
    PerforatedConv2d,
    RapaConv2d,
    RapaConvNet,
    TrainConfig,
    analog,
    convert_to_rapa,
    draw_assignment,
    evaluate,
    faults,
    frozen_draws,
    load_dataset,
    merge_tiles,
    penalty,
    reestimate_normalisation,
    register_tiling,
    robustness,
    runtime,
    train,
)
from rapa_lib.experiments.recipe import Recipe, choose_device
from rapa_lib.experiments.tracking import Tracking
from rapa_lib.experiments.trained import load_network, load_or_train
from rapa_lib.instruments.pull import tile_pull
from rapa_lib.training import predict

SECONDS = 5  # of processor time; most take a thousandth of it

layer = RapaConv2d
net = RapaConvNet
data = tiny.tiny_dataset
SCALING = InputScaling((0.5, 0.5), (0.25, 0.25))


def images(n=4):
    return torch.rand(n, 2, 8, 8)


def labels(*values):
    return torch.tensor(values or (0, 1, 2, 0))


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


class Thrice(RapaConv2d):
    def forward(self, x, assignment=None):
        return 3 * super().forward(x, assignment)


def tampered():
    changed = RapaConv2d(2, 4, 3, n_tiles=4)
    changed.n_tiles = 8
    return changed(images())


def no_kernels():
    changed = RapaConv2d(2, 4, 3, n_tiles=1)
    changed.weight = nn.Parameter(changed.weight[:0])
    return changed(images())


def attacked(epsilon=0.1, x=None, y=None, **others):
    attack = robustness.attack_suite("published")[0]
    target = robustness.Target(tiny.tiny_network().eval(), SCALING)
    x = images() if x is None else x
    y = labels() if y is None else y
    return robustness.run_attack(attack, epsilon, target, x, y, progress=False, **others)


def parts(**changes):
    """A data set with parts in other shapes or types."""
    whole = vars(data()) | changes
    return Dataset(**{name: whole[name] for name in Dataset.__dataclass_fields__})


def deep_png():
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file, "PNG")
    return file.getvalue()


def png(size=(4, 4)):
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    return file.getvalue()


def folder_of(files):
    """Class folders with what ``files`` gives them, in the place of train/a/0.png where named."""

    def make(place):
        for split in ("train", "test"):
            for name in ("a", "b"):
                path = place / split / name / "0.png"
                path.parent.mkdir(parents=True)
                path.write_bytes(png())
        files(place)
        return load_dataset(place)

    return make


def replaced(content, name="train/a/0.png"):
    return folder_of(lambda place: (place / name).write_bytes(content))


def fifo(place):
    (place / "train/a/0.png").unlink()
    os.mkfifo(place / "train/a/0.png")


def parquet(metadata=None, **columns):
    """A folder of Parquet files; columns and metadata may be wrong."""

    def make(place):
        content = {"img": [png()] * 4, "label": [0, 1, 0, 1]} | columns
        table = pa.table({name: values for name, values in content.items() if values is not None})
        if metadata is not None:
            table = table.replace_schema_metadata({"huggingface": metadata})
        for split in ("train", "test"):
            pq.write_table(table, place / f"{split}-00000-of-00001.parquet")
        return load_dataset(place)

    return make


def resumed(**changes):
    """A training that goes on from a file that something was done to."""

    def make(place):
        config = TrainConfig(epochs=2, batch_size=16)
        path = place / "resume.pt"
        train(tiny.tiny_network(), data(), config, checkpoint=path, progress=False)
        saved = torch.load(path, weights_only=True)
        for name, change in changes.items():
            saved[name] = change(saved[name])
        torch.save(saved, path)
        return train(tiny.tiny_network(), data(), config, checkpoint=path, progress=False)

    return make


def a_network_with(value):
    """A network file one of whose weights is another number."""
    from rapa_lib.experiments.trained import save_network

    def make(place):
        recipe = Recipe.of(n_tiles=[4, 2, 1], channels=[4, 4, 6], kernel_sizes=[3, 3, 3])
        network = recipe.build(data())
        with torch.no_grad():
            network.features[0][0].weight[0, 0, 0, 0, 0] = value
        save_network(place / "network.pt", network, SCALING, data(), recipe.flat())
        return load_network(place / "network.pt")

    return make


# What is done, and words of what is said. Functions that take an argument get an empty folder.
REFUSED = {
    # Layers.
    "no channels": (lambda: layer(0, 4, 3), "in_channels: got 0, allowed: at least 1"),
    "half a channel": (lambda: layer(2, 4.5, 3), "out_channels: got 4.5, expected an integer"),
    "channels in words": (lambda: layer("3", 4, 3), "in_channels: got '3', expected an integer"),
    "true channels": (lambda: layer(True, 4, 3), "in_channels: got True, expected an integer"),
    "no kernel": (lambda: layer(3, 4, 0), "kernel_size: got 0, allowed: at least 1"),
    "three kernel sizes": (lambda: layer(3, 4, (3, 3, 3)), "kernel_size: got (3, 3, 3)"),
    "no stride": (lambda: layer(3, 4, 3, 0), "stride: got 0"),
    "padding below zero": (lambda: layer(3, 4, 3, 1, -1), "padding: got -1"),
    "padding in words": (lambda: layer(3, 4, 3, 1, "full"), "padding: got 'full', allowed: same"),
    "same with a stride": (lambda: layer(3, 4, 3, 2, "same"), "padding: 'same' needs stride 1"),
    "no dilation": (lambda: layer(3, 4, 3, 1, 0, 0), "dilation: got 0"),
    "groups that do not divide": (lambda: layer(3, 4, 3, groups=2), "groups: got 2"),
    "bias in words": (lambda: layer(3, 4, 3, bias="yes"), "bias: got 'yes', expected True or"),
    "bias of a noisy layer": (lambda: NoisyConv2d(3, 4, 3, bias=1, noise=0.1), "bias: got 1"),
    "padding mode": (lambda: layer(3, 4, 3, padding_mode="wrap"), "padding_mode: got 'wrap'"),
    "device": (lambda: layer(3, 4, 3, device="tpu"), "device: got 'tpu', allowed: cpu"),
    "device of no type": (lambda: layer(3, 4, 3, device=3.5), "device: got 3.5"),
    "whole numbers": (lambda: layer(3, 4, 3, dtype=torch.int32), "dtype: got torch.int32"),
    "type in words": (lambda: layer(3, 4, 3, dtype="float"), "dtype: got 'float'"),
    "no tiles": (lambda: layer(3, 4, 3, n_tiles=0), "n_tiles: got 0, allowed: at least 1"),
    "a trillion tiles": (lambda: layer(3, 4, 3, n_tiles=10**12), "1,000,000,000,000 kernel"),
    "a billion channels": (lambda: layer(10**9, 4, 3), "16 kernel matrices of 9,000,000,0"),
    "tiling": (lambda: layer(3, 4, 3, tiling="diagonal"), "tiling: got 'diagonal', allowed: none"),
    "tiling of no type": (lambda: layer(3, 4, 3, tiling=["random"]), "tiling: got ['random']"),
    "tiles of none": (lambda: layer(3, 4, 3, tiling="none"), "n_tiles: got 16, but tiling 'none'"),
    "tile init": (lambda: layer(3, 4, 3, tile_init="same"), "tile_init: got 'same', allowed"),
    "more tiles than patches": (
        lambda: layer(2, 4, 8, n_tiles=2)(images()), "n_tiles: got 2, but an output of 1 × 1"
    ),
    "image below the kernel": (
        lambda: layer(2, 4, 9, n_tiles=1)(images()), "input: 8 × 8 pixels with padding (0, 0)"
    ),
    "two dimensions": (lambda: layer(2, 4, 3)(images()[0, 0]), "input: got shape (8, 8)"),
    "channels of an image": (
        lambda: layer(3, 4, 3)(images()), "input: got 2 channels, this layer takes 3"
    ),
    "type of an image": (lambda: layer(2, 4, 3)(images().double()), "input: got torch.float64"),
    "assignment of a type": (
        lambda: layer(2, 4, 3, n_tiles=2)(images(), torch.zeros(4, 36)), "assignment: got "
    ),
    "assignment to no tile": (
        lambda: layer(2, 4, 3, n_tiles=2)(images(), torch.full((4, 36), 2)), "assignment: "
    ),
    "a billion pixels of padding": (
        lambda: layer(2, 4, 3, padding=10**9, n_tiles=2)(images()), "input: 4 outputs of 4 × 2,000,"
    ),
    "a billion pixels, untiled": (
        lambda: NoisyConv2d(2, 4, 3, padding=10**6, noise=0.0)(images()), "input: 4 outputs of 4 × "
    ),
    "a perforated billion": (
        lambda: PerforatedConv2d(2, 4, 3, padding=10**8, n_tiles=2)(images()), "input: 4 "
    ),
    "tiles tampered with": (tampered, "assignment: got tiles 0 to 7, allowed: -1 (no tile) to 3"),
    "one tile's kernels taken away": (no_kernels, "weight, bias: got those of [0, 1] tiles, expec"),
    "noise below zero": (lambda: NoisyConv2d(3, 4, 3, noise=-1), "noise: got -1"),
    "noise that is no number": (lambda: NoisyConv2d(3, 4, 3, noise=math.nan), "noise: got nan"),
    "perforated into none": (lambda: PerforatedConv2d(3, 4, 3, n_tiles=0), "n_tiles: got 0"),
    "living tiles twice": (
        lambda: layer(3, 4, 3).set_living([1, 1]), "living: got (1, 1), expected each tile once"
    ),
    "living tile of none": (lambda: layer(3, 4, 3).set_living([16]), "living: got 16, allowed: 0"),
    "frozen by a text": (lambda: frozen_draws(layer(3, 4, 3), "x").__enter__(), "seed: got 'x'"),
    "frozen below zero": (lambda: frozen_draws(layer(3, 4, 3), -1).__enter__(), "seed: got -1"),
    "frozen is no model": (lambda: frozen_draws("model", 1).__enter__(), "model: got str"),
    # Tilings.
    "a number for a tiling": (lambda: register_tiling(5), "name: got 5, expected a string"),
    "a tiling twice": (lambda: register_tiling("random"), "name: 'random' is a registered tiling"),
    "exchangeable but fixed": (
        lambda: register_tiling("new", exchangeable=True), "exchangeable: got True, but"
    ),
    "redraw in words": (lambda: register_tiling("new", redraw="yes"), "redraw: got 'yes'"),
    "a scheme that is none": (lambda: register_tiling("new")(5), "scheme: got 5, expected a func"),
    "an unknown scheme": (lambda: draw_assignment("x", 1, 4, 4, 2), "tiling: got 'x', allowed"),
    "a batch below zero": (lambda: draw_assignment("random", -1, 4, 4, 2), "batch: got -1"),
    "no plane": (lambda: draw_assignment("random", 1, 0, 4, 2), "height: got 0"),
    "too many tiles": (lambda: draw_assignment("random", 1, 4, 4, 17), "n_tiles: got 17"),
    "a vast plane": (
        lambda: draw_assignment("random", 1, 10**6, 10**6, 2), "batch, height, width: 1 assi"
    ),
    "a vast plane of blocks": (
        lambda: draw_assignment("image", 1, 10**6, 10**6, 2), "batch, height, width: 1 assi"
    ),
    # Whole networks.
    "parametrized": (
        lambda: analog.convert_to_analog(
            nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), analog.ideal()
        ),
        "is parametrized; remove that before",
    ),
    "a network that is none": (lambda: convert_to_rapa("resnet"), "model: got str, expected"),
    "nothing to convert": (lambda: convert_to_rapa(nn.Linear(2, 2)), "model: it has no torch.nn."),
    "tiles of no layer": (
        lambda: convert_to_rapa(nn.Sequential(nn.Conv2d(1, 1, 1)), {"1": 2}), "n_tiles: no convol"
    ),
    "no tiles for all": (lambda: convert_to_rapa(nn.Conv2d(1, 1, 1), 0), "n_tiles: got 0"),
    "a forward of its own": (
        lambda: convert_to_rapa(Doubled(1, 1, 1)), "model: layer '' (Doubled) has its own forward"
    ),
    "an analog forward of its own": (
        lambda: analog.convert_to_analog(Doubled(1, 1, 1), analog.ideal()), "has its own forward"
    ),
    "a linear forward of its own": (
        lambda: analog.convert_to_analog(Halved(2, 2), analog.ideal()), "has its own forward"
    ),
    "a tiled forward of its own": (
        lambda: analog.convert_to_analog(Thrice(2, 2, 1), analog.ideal()), "has its own forward"
    ),
    "a merged forward of its own": (lambda: merge_tiles(Thrice(2, 2, 1)), "has its own forward"),
    "an input that does not fit": (
        lambda: convert_to_rapa(nn.Sequential(nn.Conv2d(3, 1, 1)), input_size=(1, 8, 8)),
        "input_size: the model fails on (1, 8, 8)",
    ),
    "in place in words": (lambda: convert_to_rapa(nn.Conv2d(1, 1, 1), inplace="no"), "inplace"),
    "no classes": (lambda: net(3, 0, 32), "n_classes: got 0"),
    "no pixels": (lambda: net(3, 10, 0), "image_size: got 0"),
    "too few pixels": (lambda: net(3, 10, 2), "n_tiles: got 16 for convolution 1, allowed: 1 to 4"),
    "a vast network": (lambda: net(3, 10, 10**6), "GB of memory"),
    "two numbers of tiles": (lambda: net(3, 10, 32, n_tiles=(4, 4)), "n_tiles"),
    "a pooling": (lambda: net(3, 10, 32, pooling="sum"), "pooling: got 'sum', allowed: "),
    "merged what is none": (lambda: merge_tiles(3), "model: got int, expected torch.nn.Module"),
    # Analog tiles.
    "a config in words": (
        lambda: analog.convert_to_analog(nn.Linear(2, 2), "ideal"), "config: got 'ideal', expected"
    ),
    "an analog trillion": (lambda: analog.AnalogTileArray(10**12, 9, 9), "1,000,000,000,000"),
    "an analog bias": (lambda: analog.AnalogLinear(2, 2, bias="yes"), "bias: got 'yes'"),
    "noise of a tile": (lambda: analog.IOParameters(out_noise=-1), "out_noise: got -1"),
    "a bound of zero": (lambda: analog.IOParameters(inp_bound=0), "inp_bound: got 0"),
    "a device's step": (lambda: analog.ConstantStepDevice(dw_min=0), "dw_min: got 0"),
    "pulses": (lambda: analog.UpdateParameters(desired_bl=0), "desired_bl: got 0"),
    "an update": (lambda: analog.UpdateParameters(method="quick"), "method: got 'quick', al"),
    "a rate that is no number": (
        lambda: analog.AnalogSGD(nn.Linear(2, 2), lr=math.nan), "lr: got nan, allowed: finite"
    ),
    "a rate without end": (lambda: analog.AnalogSGD(nn.Linear(2, 2), lr=math.inf), "lr: got inf"),
    "a rate below zero": (lambda: analog.AnalogSGD(nn.Linear(2, 2), lr=-1), "lr: got -1"),
    "a rate in words": (lambda: analog.AnalogSGD(nn.Linear(2, 2), lr="0.1"), "lr: got '0.1'"),
    "momentum": (
        lambda: analog.AnalogSGD(nn.Linear(2, 2), momentum=math.nan), "momentum: got nan"
    ),
    "a model's optimizer": (lambda: analog.AnalogSGD("model"), "model: got str"),
    "half a bit": (lambda: analog.resolution(0.5), "bits: got 0.5, expected an integer"),
    # Data.
    "another user's home": (lambda: load_dataset("~nosuchuser/x"), "name_or_path: got '~nosuchus"),
    "another user's root": (lambda: load_dataset("cifar10", root="~nosuchuser"), "root: got '~no"),
    "no data": (lambda: load_dataset("nothing"), "name_or_path: got 'nothing', allowed: mnist5k"),
    "data by number": (lambda: load_dataset(3), "name_or_path: got 3, expected a name or"),
    "a name with a zero": (lambda: load_dataset("a\0b"), "name_or_path: got 'a\\x00b'"),
    "no root": (lambda: load_dataset("cifar10", root=""), "root: got '', expected the folder of"),
    "size zero": (lambda: load_dataset("mnist5k", image_size=0), "image_size: got 0"),
    "a vast size": (lambda: load_dataset("mnist5k", image_size=10**6), "image_size: 4,000 images"),
    "three sizes": (lambda: load_dataset("mnist5k", image_size=(1, 2, 3)), "image_size: got (1, "),
    "an empty label": (lambda: load_dataset("mnist5k", label=" "), "label: got ' '"),
    "a label of two lines": (lambda: parts(name="a\nb"), "name: got 'a\\nb', allowed: one line"),
    "an empty folder": (load_dataset, "expected a folder with something in it"),
    "a pipe for an image": (folder_of(fifo), "train/a/0.png: not a file"),
    "no image": (replaced(b"GIF89a"), "0.png: expected a whole 8-bit image (PNG"),
    "half an image": (replaced(png()[:40]), "0.png: expected a whole 8-bit image"),
    "an empty image": (replaced(b""), "0.png: expected a whole 8-bit image"),
    "a deep image": (replaced(deep_png()), "more than 8 bits a channel"),
    "images of two sizes": (replaced(png((5, 5))), "image_size: got None for images of mixed"),
    "a text among images": (
        folder_of(lambda place: (place / "train/a/x.txt").touch()), "x.txt: not an image"
    ),
    "a class in train alone": (
        folder_of(lambda place: (place / "train/c").mkdir()), "in only one of train and test: c"
    ),
    "an empty class": (
        folder_of(lambda place: [(place / s / "c").mkdir() for s in ("train", "test")]),
        "expected a folder with something in it",
    ),
    "features in a list": (
        parquet(json.dumps({"info": {"features": [1]}})), "parquet: its metadata's features are"
    ),
    "a feature that is a text": (
        parquet(json.dumps({"info": {"features": {"label": "x"}}})), "its metadata's features are"
    ),
    "names that are a number": (
        parquet(json.dumps({"info": {"features": {"label": {"names": 7}}}})), "its metadata's fea"
    ),
    "metadata that is none": (parquet("["), "parquet: not a readable Parquet file"),
    "a label in words": (parquet(label=["a", "b", "a", "b"]), "row 0: label is 'a', allowed"),
    "a label below zero": (parquet(label=[-1, 1, 0, 1]), "row 0: label is -1, allowed: integers"),
    "an image in words": (parquet(img=["a"] * 4), "row 0: img has no bytes"),
    "no label": (parquet(label=None), "expected rows with columns img or image"),
    "one class": (lambda: parts(classes=("a",)), "classes: got ('a',), allowed: two or more"),
    "labels beyond the classes": (
        lambda: parts(train_labels=data().train_labels + 5), "train_labels: got 5 to 7, allowed"
    ),
    "images of floats": (
        lambda: parts(train_images=data().train_images.float()), "expected tensors of uint8"
    ),
    "more images than there are": (lambda: data().subset(49), "n_train: got 49, allowed: 1 to 48"),
    # Training.
    "no epochs": (lambda: TrainConfig(epochs=0), "epochs: got 0"),
    "a batch of one": (lambda: TrainConfig(batch_size=1), "batch_size: got 1, allowed: at least"),
    "a rate of nan": (lambda: TrainConfig(learning_rate=math.nan), "learning_rate: got nan"),
    "momentum above one": (lambda: TrainConfig(momentum=1.5), "momentum: got 1.5, allowed"),
    "mirror in words": (lambda: TrainConfig(mirror="yes"), "mirror: got 'yes', expected True or"),
    "a seed in words": (lambda: TrainConfig(seed="one"), "seed: got 'one', expected an integer"),
    "a seed of 200 bits": (lambda: TrainConfig(seed=2**200), "seed: got 1606938044258990275541962"),
    "a batch above the images": (
        lambda: train(tiny.tiny_network(), data(), TrainConfig(batch_size=49), progress=False),
        "batch_size",
    ),
    "more epochs than asked for": (
        resumed(history=lambda rows: [*rows, rows[-1] | {"epoch": 3}]),
        "holds 3 epochs, but this training has 2",
    ),
    "epochs out of order": (
        resumed(history=lambda rows: rows[::-1]), "its history is not of epochs 1 to 2"
    ),
    "a history in words": (resumed(history=lambda rows: "two"), "its history is not of epochs"),
    "a resume file of nan": (
        resumed(model=lambda state: {k: v * math.nan for k, v in state.items()}), "not finite"
    ),
    "a network of nan": (a_network_with(math.nan), "network.pt: values of features.0.0.weight are"),
    "an infinite network": (a_network_with(math.inf), "network.pt: values of features.0.0.weight"),
    "no network": (lambda: load_network("nowhere.pt"), "path: there is no checkpoint nowhere.pt"),
    "a std of zero": (lambda: InputScaling((0.5,), (0.0,)), "std: got 0.0, allowed: finite, above"),
    "a mean of nan": (lambda: InputScaling((math.nan,), (1.0,)), "mean: got nan"),
    "two means, one std": (lambda: InputScaling((0.5, 0.5), (1.0,)), "mean, std: got 2 and 1"),
    "scaling of floats": (lambda: SCALING(images()), "images: got torch.float32, expected torch.u"),
    "channels of the scaling": (
        lambda: InputScaling((0.5,) * 3, (1.0,) * 3)(data().train_images), "images: got shape (48,"
    ),
    "no draws": (
        lambda: evaluate(tiny.tiny_network(), data(), SCALING, draws=0), "draws: got 0"
    ),
    "batches of none": (
        lambda: predict(tiny.tiny_network(), data().test_images, SCALING, batch_size=0),
        "batch_size: got 0",
    ),
    "re-estimated from nothing": (
        lambda: reestimate_normalisation(tiny.tiny_network(), data().train_images[:0], SCALING),
        "images: got none",
    ),
    # Instruments.
    "penalty of one draw": (
        lambda: penalty.measured_penalty(tiny.tiny_network(), images(), labels(), 1), "draws: got "
    ),
    "penalty: a label beyond": (
        lambda: penalty.measured_penalty(tiny.tiny_network(), images(), labels(0, 1, 2, 3), 2),
        "labels: got 0 to 3, allowed: 0 to 2",
    ),
    "penalty: a label below": (
        lambda: penalty.predicted_penalty(
            tiny.tiny_network(), images(), labels(0, -1, 2, 0), "features.0.0"
        ),
        "labels: got -1 to 2, allowed: 0 to 2",
    ),
    "penalty: too few labels": (
        lambda: penalty.measured_penalty(tiny.tiny_network(), images(), labels(0, 1), 2), "labels"
    ),
    "penalty: labels of floats": (
        lambda: penalty.measured_penalty(tiny.tiny_network(), images(), labels().float(), 2),
        "labels: got torch.float32",
    ),
    "pull: a label beyond": (
        lambda: tile_pull(
            tiny.tiny_network(), images(), labels(0, 1, 2, 9), batch_size=2, draws=1, seed=0,
            weight_decay=0.0, tile_lr_power=1.0,
        ),
        "labels: got 0 to 9, allowed: 0 to 2",
    ),
    "a share above one": (
        lambda: faults.draw_faults(tiny.tiny_network(), share=1.5), "share: got 1.5"
    ),
    "a kind of fault": (
        lambda: faults.draw_faults(tiny.tiny_network(), share=0.5, kind="lost"), "kind: got 'lost'"
    ),
    "similarity every now and then": (lambda: Tracking(similarity_every=-1), "similarity_every"),
    # Attacks.
    "L∞ of five": (lambda: robustness.SuiteSettings(linf=[5]), "linf: got 5.0, allowed: finite, a"),
    "a focus of five": (lambda: robustness.SuiteSettings(focus=5), "focus: got 5"),
    "L2 of nothing": (lambda: robustness.SuiteSettings(l2=[0]), "l2: got 0"),
    "a quotient by zero": (lambda: robustness.SuiteSettings(linf=["8/0"]), "linf: got '8/0'"),
    "an L∞ attack of five": (
        lambda: robustness.Attack("published", "F", "LinfFastGradientAttack", "linf", "fresh", [5]),
        "epsilons: got 5",
    ),
    "a level": (lambda: robustness.attack_suite("hard"), "level: got 'hard', allowed: published"),
    "an attack that is none": (
        lambda: robustness.Attack("published", "F", "Magic", "linf", "fresh", [0.1]), "none called"
    ),
    "attack: a label beyond": (lambda: attacked(y=labels(0, 1, 2, 3)), "labels: got 0 to 3, allow"),
    "attack: a label below": (lambda: attacked(y=labels(0, -1, 2, 0)), "labels: got -1 to 2"),
    "attack: labels of floats": (lambda: attacked(y=labels().float()), "labels: got torch.float32"),
    "attack: images beyond": (lambda: attacked(x=2 * images() + 1), "images: got values from 1"),
    "attack: images of nan": (lambda: attacked(x=images() * math.nan), "values are not finite"),
    "attack: an ε of five": (lambda: attacked(epsilon=5.0), "epsilon: got 5"),
    "attack: an ε of nan": (lambda: attacked(epsilon=math.nan), "epsilon: got nan"),
    "attack: judged by none": (lambda: attacked(judge_draws=0), "judge_draws: got 0"),
    "a view": (
        lambda: robustness.ImageModel(tiny.tiny_network(), SCALING, "side"), "view: got 'side'"
    ),
    # Run time.
    "arrays of no size": (lambda: runtime.AnalogArrays(max_size=0), "max_size: got 0"),
    "no time": (lambda: runtime.AnalogArrays(forward_ns=0), "forward_ns: got 0"),
    "no bandwidth": (lambda: runtime.DigitalSide(values_per_second=0), "values_per_second: got 0"),
    # Recipes.
    "a parameter of no run": (lambda: Recipe.of(learning_rat=0.1), "learning_rat: unknown; a run"),
    "a tpu": (lambda: choose_device("tpu"), "device: got 'tpu', allowed: auto, cpu"),
    "a device by number": (lambda: choose_device(0), "device: got 0, allowed: auto, cpu"),
    "threads below zero": (lambda: Recipe.of(threads=-1), "threads: got -1"),
    "a hundred thousand threads": (lambda: Recipe.of(threads=100_000), "threads: got 100000, allo"),
    "training by a text": (lambda: load_or_train(training={"epoch": 3}), "epoch: unknown; a run"),
}  # fmt: skip


@pytest.fixture
def place(tmp_path):
    """An empty folder."""
    return tmp_path


@pytest.mark.parametrize(("attempt", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_argument_is_refused_in_one_line_at_once(attempt, words, place):
    takes = attempt is load_dataset or attempt.__code__.co_argcount
    began = time.process_time()
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
        attempt(place) if takes else attempt()
    said = str(caught.value)
    assert words in said
    assert len(said.splitlines()) == 1
    assert time.process_time() - began < SECONDS


def test_the_table_is_as_long_as_it_should_be():
    assert len(REFUSED) >= 120


def test_nothing_was_registered_by_the_way():
    assert "new" not in rapa_lib.TILINGS
    assert Path("nowhere.pt").exists() is False
