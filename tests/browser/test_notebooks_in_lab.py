"""Every notebook in JupyterLab, in a browser: run top to bottom, without error or warning."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
SLIDERS = {"one_tile": 6, "choose_tiles": 1}
MINUTES = 15  # a busy machine; the notebooks themselves take two at most

pytestmark = pytest.mark.browser

RUN = """
async () => {
  const panel = window.jupyterapp.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  await window.jupyterapp.commands.execute("notebook:run-all-cells");
  return JSON.stringify(panel.content.model.sharedModel.toJSON());
}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on copies of the notebooks, beside what they read."""
    house = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", house / "notebooks")
    for name in ("config", "results", "docs"):
        (house / name).symlink_to(ROOT / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        "--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={token}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
        f"--ServerApp.root_dir={house}",
    ]  # fmt: skip
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(house / "settings")}
    with (house / "log.txt").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/api?token={token}", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (house / "log.txt").read_text()
                time.sleep(0.2)
        yield lambda name: f"{url}/doc/tree/notebooks/{name}.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(MINUTES * 60_000)
    yield page
    context.close()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_in_the_browser(name, lab, page):
    failed = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(lab(name))
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext !== undefined")
    notebook = json.loads(page.evaluate(RUN))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert kinds <= {"display_data", "execute_result"}, [  # no error, and nothing on stderr
        output for output in outputs if output["output_type"] in ("error", "stream")
    ]
    assert any("image/png" in o["data"] or "text/html" in o["data"] for o in outputs)
    assert not failed
    if folder := os.environ.get("RAPA_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png")
    if name in SLIDERS:
        assert page.locator(".widget-hslider, .widget-slider").count() >= SLIDERS[name]


def test_a_slider_redraws_its_figure(lab, page):
    page.goto(lab("one_tile"))
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext !== undefined")
    page.evaluate(RUN)
    control = page.locator(".rapa-explore").first
    picture = control.locator("img").first
    before = picture.get_attribute("src")
    readout = control.locator(".widget-readout").first
    readout.click()
    readout.fill("0.3")
    readout.press("Enter")
    page.wait_for_function(
        "(old) => document.querySelector('.rapa-explore img')?.src !== old", arg=before
    )
    assert control.locator("img").count() == 1
