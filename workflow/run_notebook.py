"""Execute one notebook of a study with papermill; its outputs are whole or absent.

The executed notebook appears under its name only once it ran through. One that failed stays beside
it as ``failed.ipynb``, with the error in ``error.json``.
"""

import argparse
import fcntl
import json
import logging
import os
import tempfile
from pathlib import Path

import papermill
from study import ROOT
from traitlets.config import Config

# Nothing of rapa_lib: beside every kernel this process waits, and PyTorch would cost it 0.6 GB.


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("notebook", type=Path)
    arguments.add_argument("executed", type=Path)
    arguments.add_argument("--parameters", type=json.loads, required=True, help="JSON")
    options = arguments.parse_args()
    folder = options.executed.parent
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # A study's notebook can outlive it if only its Snakemake was killed: wait for that one.
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
    for stale in (folder / "failed.ipynb", folder / "error.json", *folder.glob(".part-*")):
        stale.unlink(missing_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(options.parameters.get("threads") or os.cpu_count())
    running = folder / "running.ipynb"
    try:
        with tempfile.TemporaryDirectory() as sockets:
            # Not ports, which kernels that start at once take from one another: in some sixty
            # starts of two, one died of it.
            kernel = {"transport": "ipc", "ip": f"{sockets}/kernel"}
            papermill.execute_notebook(
                options.notebook,
                running,
                {"output": str(folder)} | options.parameters,
                kernel_name="python3",
                cwd=ROOT,
                progress_bar=False,
                config=Config(KernelManager=kernel),
            )
    except Exception as error:
        if running.exists():
            running.replace(folder / "failed.ipynb")
        (folder / "error.json").write_text(json.dumps({"error": describe(error)}))
        raise SystemExit(f"{options.notebook} failed: {describe(error)}") from error
    running.replace(options.executed)


def describe(error: Exception) -> str:
    """One line: the error that the notebook raised, or what kept it from running."""
    if isinstance(error, papermill.PapermillExecutionError):
        return f"{error.ename}: {error.evalue}"
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
