"""Execute one notebook of a study with papermill; its outputs are whole or absent.

The executed notebook appears under its name only once it ran through. One that failed stays beside
it as ``failed.ipynb``, with the error and the number of attempts in ``error.json``.
"""

import argparse
import fcntl
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import papermill
import psutil
from nbclient.exceptions import DeadKernelError
from nursery import PID, kernel_spec
from study import ROOT
from traitlets.config import Config

from rapa_lib._files import whole_file, write_sums
from rapa_lib.experiments.catalogue import CATALOGUE
from rapa_lib.experiments.provenance import (
    CHOSEN_VARIABLE,
    RULES_VARIABLE,
    file_hash,
    rules_hash,
)

POLL_SECONDS = 0.5
RESERVE_BYTES = 4096
FULL_BYTES = 2**20  # a disk with less room is full

# Of rapa_lib only what needs no PyTorch: this process waits beside every kernel, and PyTorch would
# cost it 0.6 GB.


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("notebook", type=Path)
    arguments.add_argument("executed", type=Path)
    arguments.add_argument("--parameters", type=json.loads, required=True, help="JSON")
    arguments.add_argument("--rules", type=Path, help="by which its study is judged")
    arguments.add_argument("--chosen", type=Path, help="what tuning has chosen for its arms")
    arguments.add_argument("--minutes", type=float, help="of wall time, then it has failed")
    arguments.add_argument("--memory-gb", type=float, help="of its own, times the attempt's number")
    arguments.add_argument("--attempt", type=int, default=1, help="from 1")
    options = arguments.parse_args()
    folder = options.executed.parent
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # A study's notebook can outlive it if only its Snakemake was killed: wait for that one.
    # NFS knows no exclusive lock of what is not open for writing, as a folder never is.
    fcntl.flock(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
    for stale in (folder / "failed.ipynb", folder / "error.json", *folder.glob(".part-*")):
        stale.unlink(missing_ok=True)
    if options.rules is not None:
        os.environ[RULES_VARIABLE] = rules_hash(options.rules)
    if options.chosen is not None:
        os.environ[CHOSEN_VARIABLE] = file_hash(options.chosen)
    os.environ["OMP_NUM_THREADS"] = str(options.parameters.get("threads") or os.cpu_count())
    running = folder / "running.ipynb"
    # Room for an error, should the disk be full when there is one to write.
    reserve = folder / ".part-error"
    with suppress(OSError):
        reserve.write_bytes(b" " * RESERVE_BYTES)
    memory_gb = None if options.memory_gb is None else options.memory_gb * options.attempt
    over = []
    try:
        with (
            tempfile.TemporaryDirectory() as sockets,
            limited(options.minutes, memory_gb, Path(sockets, PID)) as over,
        ):
            # Not ports, which kernels that start at once take from one another: in some sixty
            # starts of two, one died of it.
            kernel = {"transport": "ipc", "ip": f"{sockets}/kernel"}
            kernel["connection_file"] = f"{sockets}/kernel.json"
            kernel_spec(Path(sockets))
            os.environ["JUPYTER_PATH"] = sockets
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
        reason = over[0] if over else describe(error, folder)
        write_error(folder / "error.json", {"error": reason, "attempts": options.attempt}, reserve)
        raise SystemExit(f"{options.notebook} failed: {reason}") from error
    reserve.unlink(missing_ok=True)
    write_checksums(options.executed, running)
    running.replace(options.executed)


def write_checksums(executed: Path, running: Path) -> None:
    """Write the checksums of a run's files, before its notebook gets its name."""
    if (entry := CATALOGUE.get(executed.parent.parent.name)) is None:
        return  # the report's notebook
    folder = executed.parent
    left = {name: folder / name for name in ("record.json", *entry.leaves)}
    there = {name: path for name, path in left.items() if path.is_file()}
    write_sums(folder, there | {executed.name: running})


def write_error(path: Path, content: dict[str, Any], reserve: Path) -> None:
    """Write why a run failed, whole, into the room that was kept for it if there is no other."""
    text = json.dumps(content)
    try:
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
        reserve.unlink(missing_ok=True)
    except OSError:
        with suppress(OSError):
            room = len(json.dumps({"error": "", "attempts": content["attempts"]}))
            if len(text) > RESERVE_BYTES:
                error = content["error"][: (RESERVE_BYTES - room) // 12]  # 12: of an escaped pair
                text = json.dumps(content | {"error": error})
            with reserve.open("r+b") as file:  # JSON may end in blanks
                file.write(text.encode())
                os.fsync(file.fileno())
            reserve.replace(path)


@contextmanager
def limited(minutes: float | None, memory_gb: float | None, pid_file: Path) -> Iterator[list[str]]:
    """Kill what this process starts inside once it takes more; yield where the reason is put.

    Args:
        minutes: of wall time; None is unlimited.
        memory_gb: memory of its own in 10⁹ bytes; None is unlimited.
        pid_file: may come to name a kernel that is no descendant of this process.
    """
    over: list[str] = []
    if minutes is None and memory_gb is None:
        yield over
        return
    ended = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            kernel = psutil.Process().children(recursive=True) + named(pid_file)
            used = own_gb(kernel) if memory_gb is not None else 0
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                over.append(f"ran past its limit of {minutes:g} min")
            elif memory_gb is not None and used > memory_gb:
                over.append(f"used {used:.3g} GB, limit {memory_gb:g} GB")
            else:
                continue
            for process in kernel:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield over
    finally:
        ended.set()
        watcher.join()


def named(pid_file: Path) -> list[psutil.Process]:
    """The process that a file names, if there are both."""
    try:
        return [psutil.Process(int(pid_file.read_text(encoding="utf-8")))]
    except (OSError, ValueError, psutil.NoSuchProcess):
        return []


def own_gb(processes: list[psutil.Process]) -> float:
    """Memory that processes hold and share with no other, in 10⁹ bytes.

    What a forked kernel was born with is shared, and held once however many there are.
    """
    used = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # ended since they were listed
            used += process.memory_full_info().uss
    return used / 1e9


def describe(error: Exception, folder: Path) -> str:
    """One line: the error that the notebook raised, or what kept it from running.

    On a full disk, which can end a kernel or a library in any words, that comes first.
    """
    if isinstance(error, papermill.PapermillExecutionError):
        said = f"{error.ename}: {error.evalue}"
    elif isinstance(error, DeadKernelError):
        said = "the kernel died, perhaps out of memory"
    else:
        said = f"{type(error).__name__}: {error}"
    said = " ".join(said.split())
    if "No space left on device" in said or shutil.disk_usage(folder).free < FULL_BYTES:
        return f"no space is left on the disk of {folder}: {said}"
    return said


if __name__ == "__main__":
    main()
