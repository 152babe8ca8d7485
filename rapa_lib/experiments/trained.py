"""Trained networks, from a checkpoint or made here: where every further experiment begins."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rapa_lib.data.datasets import Dataset
from rapa_lib.experiments.accuracy.experiment import AccuracyRun, SavedNetwork
from rapa_lib.networks.network import RapaConvNet
from rapa_lib.training import InputScaling


@dataclass(frozen=True)
class Trained:
    """A trained network with all that belongs to it.

    Args:
        network: in evaluation mode, on the run's device.
        scaling: from images to its input.
        run: what trained it.
        data: the images it was trained on and those it was not.
        measurements: what was recorded of its tiles (:class:`rapa_lib.Training`).
    """

    network: RapaConvNet
    scaling: InputScaling
    run: AccuracyRun
    data: Dataset
    measurements: list[dict[str, Any]] = field(repr=False)

    def labels(self) -> dict[str, Any]:
        """What tells this network from the others of a study, by the names of table columns."""
        return {
            "dataset": self.data.name,
            "tiling": self.run.tiling,
            "n_tiles": "-".join(map(str, self.network.n_tiles)),
            "tile_init": self.run.tile_init,
            "pooling": self.run.pooling,
            "activation": self.run.activation,
            "normalisation": self.run.normalisation,
            "tile_lr_power": self.run.tile_lr_power,
            "epochs": self.run.epochs,
            "seed": self.run.seed,
        }


def load_or_train(
    network: str | Path = "",
    training: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    threads: int = 0,
    progress: bool = True,
) -> Trained:
    """Load a network that :func:`rapa_lib.save_run` wrote, or train one.

    Args:
        network: path of its ``network.pt``; empty: train.
        training: arguments of :class:`AccuracyRun` for a network to train.
        device, threads: see :class:`AccuracyRun`.
        progress: show a bar while training.

    Raises:
        FileNotFoundError, ValueError: if the file is missing or damaged, or its data set is here
            another one than the network was trained on.
        TypeError: for an argument that :class:`AccuracyRun` does not have.
    """
    if not network:
        run = AccuracyRun(**{**(training or {}), "device": device, "threads": threads})
        data = run.load_data()
        built = run.build_network(data)
        result = run.train(built, data, progress=progress)
        return Trained(built.eval(), result.scaling, run, data, result.measurements)
    saved = SavedNetwork.read(network)
    loaded, scaling, run = saved.build(device)
    run = AccuracyRun(**run.parameters() | {"device": device, "threads": threads})
    run.use_threads()
    data = run.load_data()
    if saved.data["fingerprint"] != data.fingerprint:
        raise ValueError(
            f"network: {network} was trained on {saved.data['name']} with fingerprint "
            f"{saved.data['fingerprint'][:12]}…, but {run.dataset} has here "
            f"{data.fingerprint[:12]}…"
        )
    return Trained(loaded, scaling, run, data, _recorded(Path(network)))


def _recorded(network: Path) -> list[dict[str, Any]]:
    """What was recorded of the tiles while the network learned."""
    path = network.with_name("similarity.json")
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text())["measurements"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"network: {path} beside it is damaged: {error!r}") from error
