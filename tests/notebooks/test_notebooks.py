"""Each notebook runs from top to bottom and shows what it promises.

The accuracy notebook is run by the workflow's tests.
"""

import json
from pathlib import Path

import papermill
import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "acceleration": {"networks": ["rapa", "resnet18"], "image_size": 64, "max_tiles": 16},
    "filter_similarity": {
        "epochs": 1, "penalty_every": 0, "images": 4, "draws": 2, "probes": 2, "scales": [1.0],
        "pull_images": 32, "loss_scales": [0.0, 1.0], "threads": 1,
    },
    "quickstart": {"size": 8, "n_tiles": 4, "epochs": 1, "threads": 1},
    "one_tile": {"n_pulses": 50, "most_tiles": 4, "n_inputs": 30},
    "choose_tiles": {"image_size": 32, "speedups": [2], "wanted": 4},
    "amount_of_data": {"results": ["results/digits"], "arms": ["none", "random"]},
    "synchronisation": {
        "n_train": 64, "n_test": 50, "every": [2, 0], "epochs": 1, "pull_every": 1, "threads": 1,
    },
}  # fmt: skip
ANSWERS = {
    "acceleration": "90 %", "filter_similarity": "**C2a**", "quickstart": "test error",
    "synchronisation": "never averaged", "one_tile": "per layer take",
    "choose_tiles": "times as fast takes", "amount_of_data": "points of test error",
}  # fmt: skip
ONE_FIGURE = {"choose_tiles", "amount_of_data"}
WRITTEN = {
    "acceleration": {".json"},
    "filter_similarity": {".json"},
    "quickstart": {".png", ".svg"},
    "one_tile": {".png", ".svg"},
    "choose_tiles": {".png", ".svg"},
    "amount_of_data": {".csv", ".png", ".svg"},
    "synchronisation": {".csv", ".md", ".png", ".svg"},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_and_shows_figures_and_an_answer(name, tmp_path):
    executed = papermill.execute_notebook(
        ROOT / f"notebooks/{name}.ipynb",
        tmp_path / f"{name}.ipynb",
        SMALL[name] | {"output": str(tmp_path)},
        kernel_name="python3",
        cwd=ROOT / "notebooks",  # as in JupyterLab
        progress_bar=False,
        execution_timeout=300,  # of a cell: what hangs fails
    )
    outputs = [out.get("data", {}) for cell in executed.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in data for data in outputs) >= (1 if name in ONE_FIGURE else 2)
    answers = [data["text/markdown"] for data in outputs if "text/markdown" in data]
    assert any(ANSWERS[name] in answer and "%" in answer for answer in answers)
    written = {path.suffix for path in tmp_path.iterdir()}
    assert written == {".ipynb"} | WRITTEN[name]


def test_filter_similarity_without_an_expectation_still_answers(tmp_path):
    papermill.execute_notebook(
        ROOT / "notebooks/filter_similarity.ipynb",
        tmp_path / "executed.ipynb",
        SMALL["filter_similarity"] | {"tiling": "image", "output": str(tmp_path)},
        kernel_name="python3",
        cwd=ROOT / "notebooks",
        progress_bar=False,
        execution_timeout=300,
    )
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["tiling"], record["penalties"], record["pulls"]) == ("image", [], {})
    assert [row["epoch"] for row in record["similarities"]] == [0, 0, 1, 1]
    assert [row["epoch"] for row in record["tile_pulls"]] == [0, 0, 1, 1]
    assert len(record["scaled_losses"]) == 2 * 3 * 2
    assert "No penalty: these assignments" in (tmp_path / "executed.ipynb").read_text()


def test_the_report_judges_a_committed_study(tmp_path):
    executed = papermill.execute_notebook(
        ROOT / "notebooks/report.ipynb",
        tmp_path / "report.ipynb",
        {"output": str(tmp_path)},
        kernel_name="python3",
        cwd=ROOT / "notebooks",
        progress_bar=False,
        execution_timeout=300,
    )
    outputs = [out.get("data", {}) for cell in executed.cells for out in cell.get("outputs", [])]
    pages = "".join(data.get("text/html", "") for data in outputs)
    assert pages.count("data:image/png;base64,") >= 10
    assert all(f'id="claim-{name}"' in pages for name in ("C1", "C4", "N1"))
    assert (tmp_path / "claims.csv").read_text().startswith("id,claim,role,endpoint,against")
    assert "| C1" in (tmp_path / "claims.md").read_text()


def test_the_report_says_what_it_needs(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="expected the folder of a study"):
        papermill.execute_notebook(
            ROOT / "notebooks/report.ipynb",
            tmp_path / "report.ipynb",
            {"results": str(tmp_path)},
            kernel_name="python3",
            cwd=ROOT / "notebooks",
            progress_bar=False,
        )
