"""Each notebook runs from top to bottom and shows what it promises.

The accuracy notebook is run by the workflow's tests.
"""

from pathlib import Path

import papermill
import pytest

ROOT = Path(__file__).parents[1]
SMALL = {
    "acceleration": {"networks": ["rapa", "resnet18"], "image_size": 64, "max_tiles": 16},
    "quickstart": {"size": 8, "n_tiles": 4, "epochs": 1, "threads": 1},
}
ANSWERS = {"acceleration": "90 %", "quickstart": "test error"}
LEFT = {"acceleration": {".json"}, "quickstart": {".png", ".svg"}}


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_and_shows_figures_and_an_answer(name, tmp_path):
    executed = papermill.execute_notebook(
        ROOT / f"notebooks/{name}.ipynb",
        tmp_path / f"{name}.ipynb",
        SMALL[name] | {"output": str(tmp_path)},
        kernel_name="python3",
        cwd=ROOT / "notebooks",  # as in JupyterLab
        progress_bar=False,
    )
    outputs = [out.get("data", {}) for cell in executed.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in data for data in outputs) >= 2
    answers = [data["text/markdown"] for data in outputs if "text/markdown" in data]
    assert any(ANSWERS[name] in answer and "%" in answer for answer in answers)
    written = {path.suffix for path in tmp_path.iterdir()}
    assert written == {".ipynb"} | LEFT[name]
