"""Fill the numbers of the replication report in from the tables of the confirming studies.

``make paper`` writes ``paper/paper.md`` from ``paper/paper.md.j2``. Nothing in the template is a
number of ours: every one is an expression over the tables, and tests hold it to that.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pandas as pd
import yaml

from rapa_lib._files import whole_file
from rapa_lib.experiments.claims.present import number_text
from rapa_lib.experiments.plots import with_interval

HERE = Path(__file__).parent
ROOT = HERE.parent
TEMPLATE = HERE / "paper.md.j2"

STUDIES = (
    "digits", "small", "full", "attacked_digits", "analog_digits", "synchronisation_digits",
)  # fmt: skip
"""The confirming studies that the report is of."""


class Tables:
    """A study's tables as the template asks for them.

    Args:
        results: the study's folder.
        study: its YAML file.
    """

    def __init__(self, results: Path, study: Path) -> None:
        self.name = results.name
        self.study = yaml.safe_load(study.read_text(encoding="utf-8"))
        texts = ["against", "setting", "unit", "method", "reason"]
        self.claims = pd.read_csv(results / "claims.csv")
        self.claims[texts] = self.claims[texts].astype(object).fillna("")
        page = (results / "claims.md").read_text(encoding="utf-8")
        # Exploratory, or written before; then, if so, that runs are missing.
        (said,) = re.findall(r"^\*\*.+\*\*$", page, re.M)
        self.status, *rest = re.findall(r"\*\*(.+?)\*\*", said)
        self.incomplete = " ".join(rest)
        self.accuracy = pd.read_csv(results / "accuracy.csv")
        self.runs = pd.read_csv(results / "runs.csv")

    def primary(self) -> list[dict[str, Any]]:
        """The primary endpoint of every claim, with its number as text."""
        return self._rows("primary")

    def claim(self, name: str) -> dict[str, Any]:
        """The primary endpoint of one claim.

        Raises:
            KeyError: if there is no such claim.
        """
        return {row["id"]: row for row in self.primary()}[name]

    def further(self, name: str, endpoint: str, against: str = "") -> dict[str, Any]:
        """A secondary endpoint of a claim.

        Args:
            name: of the claim.
            endpoint: how its text begins.
            against: what it is compared with, where the endpoint has several.

        Raises:
            ValueError: if not exactly one begins so.
        """
        found = [
            row
            for row in self._rows("secondary")
            if row["id"] == name
            and row["endpoint"].startswith(endpoint)
            and row["against"] == against
        ]
        if len(found) != 1:
            raise ValueError(
                f"further: got {len(found)} endpoints of {name} that begin with {endpoint!r} "
                f"against {against!r}, expected one"
            )
        return found[0]

    def _rows(self, role: str) -> list[dict[str, Any]]:
        rows = self.claims[self.claims["role"] == role].to_dict("records")
        return [row | {"number": number_text(row) or "–"} for row in rows]

    def error(self, tiling: str, column: str = "test_error", **where: Any) -> str:
        """Mean ± half a 95 % t-interval over seeds of a tiling's networks.

        Args:
            tiling: which.
            column: of ``accuracy.csv``, in percent.
            where: values of further columns, or of the configuration.

        Raises:
            ValueError: if no run is meant, or a seed occurs twice.
        """
        rows = self.accuracy[self.accuracy["tiling"] == tiling]
        config = pd.DataFrame(list(map(json.loads, rows["config"])), index=rows.index)
        for name, value in where.items():
            rows = rows[(rows if name in rows else config.loc[rows.index])[name] == value]
        if not len(rows) or rows["seed"].duplicated().any():
            raise ValueError(
                f"error: got {len(rows)} runs of {tiling}, {where}; expected one a seed"
            )
        return with_interval(rows[column], 1)

    def config(self, name: str) -> Any:
        """A parameter that all runs of the accuracy experiment share.

        Raises:
            ValueError: if they do not.
        """
        values = {json.dumps(json.loads(text)[name]) for text in self.accuracy["config"]}
        if len(values) != 1:
            raise ValueError(f"config: {name} has {len(values)} values, expected one")
        return json.loads(values.pop())

    def column(self, name: str) -> Any:
        """What all rows of ``accuracy.csv`` have in a column; raises ValueError if they differ."""
        (value,) = self.accuracy[name].unique()
        return value

    @property
    def tilings(self) -> list[str]:
        """The arms of the accuracy experiment, in the order of its table."""
        return list(self.accuracy["tiling"].unique())

    @property
    def seeds(self) -> str:
        """How many seeds an arm of the accuracy experiment has; a range where they differ."""
        counts = self.accuracy.groupby("tiling")["seed"].nunique()
        return " to ".join(map(str, sorted({counts.min(), counts.max()})))


def load(root: Path = ROOT) -> dict[str, Tables]:
    """The tables of every study that the report is of, by its name."""
    return {name: Tables(root / "results" / name, ROOT / f"config/{name}.yaml") for name in STUDIES}


def fill(studies: Mapping[str, Tables], template: Path = TEMPLATE) -> str:
    """The report, every number filled in; the template knows the studies as ``s``."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["short"] = lambda text: text[:7]
    source = template.read_text(encoding="utf-8")
    return environment.from_string(source).render(s=SimpleNamespace(**studies))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", type=Path, default=HERE / "paper.md")
    options = arguments.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(options.output) as part:
        part.write_text(fill(load()), encoding="utf-8")
    print(options.output)


if __name__ == "__main__":
    main()
