"""What the workflow and the report know of every experiment without running anything.

An experiment is a folder of :mod:`rapa_lib.experiments`, a notebook of the same name, and an entry
here. This module imports neither PyTorch nor pandas: the workflow reads it in every job.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Needs = Literal["data", "network", "nothing", "records"]


@dataclass(frozen=True)
class Entry:
    """The static facts of one experiment.

    Args:
        name: of its folder, its notebook, its key in a study's YAML and its table.
        title: of its section in the report.
        needs: what it begins with. ``"data"``: a data set, on which it trains networks itself;
            ``"network"``: a network that the accuracy experiment trained; ``"nothing"``;
            ``"records"``: the records of ``source`` alone: it has no runs, only tables and figures.
        tables: CSV files that it leaves in a study's folder, without suffix.
        figures: its figures there, each as PNG and SVG, without suffix.
        leaves: files of a run beside ``record.json`` and the notebook; JSON files are handed to
            ``collect`` with the record.
        source: the experiment whose records it is derived from.
        asked: parameters of the source's runs: where none of them is set in any run, there is
            nothing to derive.
    """

    name: str
    title: str
    needs: Needs
    tables: tuple[str, ...]
    figures: tuple[str, ...]
    leaves: tuple[str, ...] = ()
    source: str | None = None
    asked: tuple[str, ...] = ()

    def concerns(self, parameters: Iterable[Mapping[str, Any]]) -> bool:
        """Whether runs of these parameters, of itself or of its source, give it something."""
        return any(not self.asked or any(map(run.get, self.asked)) for run in parameters)

    @property
    def files(self) -> tuple[str, ...]:
        """Everything that it leaves in a study's folder: tables, page, figures."""
        pictures = [f"{name}{suffix}" for name in self.figures for suffix in (".png", ".svg")]
        return (*(f"{name}.csv" for name in self.tables), f"{self.name}.md", *pictures)


_ENTRIES = (
    Entry(
        "accuracy",
        "Accuracy",
        needs="data",
        tables=("accuracy", "accuracy_curves"),
        figures=("accuracy", "accuracy_curves"),
        leaves=("curve.json", "similarity.json", "network.pt"),
    ),
    Entry(
        "filter_similarity",
        "Similarity of the tiles",
        needs="network",
        tables=(
            "filter_similarity",
            "filter_similarity_penalty",
            "filter_similarity_pull",
            "filter_similarity_scales",
        ),
        figures=(
            "filter_similarity",
            "filter_similarity_tiles",
            "filter_similarity_pull",
            "filter_similarity_scales",
            "filter_similarity_penalty",
            "filter_similarity_filters",
        ),
    ),
    Entry(
        "fault_tolerance",
        "Broken tiles",
        needs="network",
        tables=("fault_tolerance", "fault_tolerance_repairs"),
        figures=("fault_tolerance",),
    ),
    Entry(
        "adversarial_robustness",
        "Adversarial robustness",
        needs="network",
        tables=(
            "adversarial_robustness",
            "adversarial_robustness_strongest",
            "adversarial_robustness_frontier",
        ),
        figures=(
            "adversarial_robustness",
            "adversarial_robustness_frontier",
            "adversarial_robustness_draws",
            "adversarial_robustness_examples",
        ),
    ),
    Entry(
        "analog_training",
        "Analog tiles",
        needs="data",
        tables=("analog_training", "analog_training_inference", "analog_training_drift"),
        figures=(
            "analog_training",
            "analog_training_imperfections",
            "analog_training_drift",
        ),
    ),
    Entry(
        "acceleration",
        "Acceleration",
        needs="nothing",
        tables=(
            "acceleration",
            "acceleration_costs",
            "acceleration_bandwidth",
            "acceleration_rivals",
        ),
        figures=(
            "acceleration",
            "acceleration_layers",
            "acceleration_pareto",
            "acceleration_bandwidth",
            "acceleration_rivals",
        ),
    ),
    Entry(
        "tiles_accuracy",
        "Error against speed-up",
        needs="records",
        tables=("tiles_accuracy",),
        figures=("tiles_accuracy",),
        source="accuracy",
    ),
    Entry(
        "synchronisation",
        "Averaged tiles",
        needs="records",
        tables=("synchronisation", "synchronisation_spread"),
        figures=("synchronisation", "synchronisation_frontier", "synchronisation_spread"),
        source="accuracy",
        asked=("sync_every", "coupling", "average_last"),
    ),
)

CATALOGUE: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every experiment by name, in the order of the report."""
