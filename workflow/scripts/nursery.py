"""Processes that begin with everything imported: forked from one that has done it once.

A run's notebook and its kernel spend some five seconds of processor time on importing PyTorch,
pandas, seaborn and papermill; a study of a hundred runs spends minutes on nothing else.
:func:`nursery` holds a server that imports them once and forks a process for whoever asks at its
socket. A job of the workflow, and what a notebook's kernel is started with (:func:`kernel_spec`),
is a small process in the place of the real one: it asks, hands over its standard streams, passes
signals on and ends as the real one ends. If it is killed the real one dies with it, and all of them
die with the server. Where there is no server it becomes the real one.

    python -S -I nursery.py run SCRIPT …    # a script of this folder
    python -S -I nursery.py kernel -f FILE  # a kernel
"""

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "RAPA_NURSERY"
"""Environment variable with the server's socket."""

PID = "pid"
"""Name of the file beside a kernel's connection file that says which process it is."""

IMPORTED = (
    "ipykernel.kernelapp",
    "matplotlib_inline.backend_inline",
    "papermill",
    "psutil",
    "yaml",
    "torch",
    "torchvision",
    "pandas",
    "seaborn",
    "rapa_lib.experiments.protocol",
    "rapa_lib.experiments.accuracy",
    "rapa_lib.experiments.filter_similarity",
    "rapa_lib.experiments.fault_tolerance",
    "rapa_lib.experiments.adversarial_robustness",
    "rapa_lib.experiments.analog_training",
)

# Python's -S and -I: the standard library is enough, and starts in a hundredth of a second.
_COMMAND = [sys.executable, "-S", "-I", str(Path(__file__).resolve())]

_PR_SET_PDEATHSIG = 1

# What glibc's allocator gives back it asks for again in the next step, and every page of it anew: a
# tenth to a fifth of a small network's training. Here freed memory stays with the process.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31)}


@contextmanager
def nursery(threads: int, imported: Sequence[str] = IMPORTED) -> Iterator[None]:
    """Serve kernels inside; whatever is started there finds the server by :data:`VARIABLE`.

    Args:
        threads: of each kernel: BLAS and OpenMP read their number when they are imported.
        imported: names of the modules with which processes begin.
    """
    if sys.platform != "linux":  # whose kernels die with their parents
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/nursery"
        threads_said = {"OMP_NUM_THREADS": str(threads or os.cpu_count())}
        environment = _KEPT_MEMORY | os.environ | threads_said
        server = subprocess.Popen(
            [sys.executable, __file__, "serve", place, *imported],
            env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        # Who asks before there is a socket would be started the long way, and outlive the server.
        while not Path(place).exists() and server.poll() is None:
            time.sleep(0.005)
        os.environ[VARIABLE] = place
        try:
            yield
        finally:
            del os.environ[VARIABLE]
            server.kill()
            server.wait()


def kernel_spec(folder: Path) -> None:
    """Write a specification of the kernel ``python3`` that is born here.

    Args:
        folder: to be named in ``JUPYTER_PATH``.
    """
    spec = {
        "argv": [*_COMMAND, "kernel", "-f", "{connection_file}"],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "metadata": {"debugger": True},
    }
    place = folder / "kernels/python3"
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


# --- In the place of the real process -------------------------------------------------------------


def stand_in(kind: str, arguments: list[str]) -> None:
    """Ask for a process and wait for its end, or become it.

    Args:
        kind: ``"kernel"``, or ``"run"`` for the script that the first argument names.
        arguments: on its command line.
    """
    die_with_parent()
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(os.environ[VARIABLE])
    except (KeyError, OSError):
        real = ["-m", "ipykernel_launcher"] if kind == "kernel" else []
        os.execv(sys.executable, [sys.executable, *real, *arguments])
    wanted = {
        "kind": kind,
        "arguments": arguments,
        "cwd": str(Path.cwd()),
        "environment": dict(os.environ),
    }
    text = json.dumps(wanted).encode()
    socket.send_fds(connection, [len(text).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(text)
    answers = connection.makefile()
    pid = int(answers.readline() or 0)
    if kind == "kernel":
        Path(arguments[arguments.index("-f") + 1]).with_name(PID).write_text(
            str(pid), encoding="utf-8"
        )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    code = answers.readline()
    sys.exit(int(code or 1))


def die_with_parent() -> None:
    """Have the system kill this process when the one that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


# --- The server -----------------------------------------------------------------------------------


def serve(place: str, imported: Sequence[str]) -> None:
    """Import, then fork a process for each that asks, until killed.

    It has one thread, so that what is forked is whole; whoever asks before it has imported waits.
    """
    die_with_parent()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{place}.new")
    listener.listen(64)
    Path(f"{place}.new").rename(place)  # where there is a socket, somebody listens
    for name in imported:
        importlib.import_module(name)
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.data is None:
                connection, _ = listener.accept()
                pid = bear(connection, listener, waiting)
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
            else:
                pid, connection = key.data
                _, status = os.waitpid(pid, 0)
                with contextlib.suppress(OSError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status) % 256}\n".encode())
                connection.close()
                waiting.unregister(key.fd)
                os.close(key.fd)


def bear(
    connection: socket.socket, listener: socket.socket, waiting: selectors.BaseSelector
) -> int:
    """Fork a process; return its number, which who asked is told too."""
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    size = int.from_bytes(head, "big")
    wanted = json.loads(connection.recv(size, socket.MSG_WAITALL))
    if pid := os.fork():
        for stream in streams:
            os.close(stream)
        connection.sendall(f"{pid}\n".encode())
        return pid
    try:
        for key in list(waiting.get_map().values()):
            if key.data is not None:  # of others, whose ends are seen by their closing
                key.data[1].close()
                os.close(key.fd)
        waiting.close()
        listener.close()
        live(connection, streams, wanted)
    finally:
        os._exit(1)


def live(connection: socket.socket, streams: list[int], wanted: dict[str, Any]) -> None:
    """Be what was asked for, in a process that was just forked."""
    die_with_parent()
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    # A kernel watches its parent, which is this server.
    os.environ.update(wanted["environment"], JPY_PARENT_PID=str(os.getppid()))

    def watch() -> None:
        connection.recv(1)  # nothing ever comes: the other side is gone
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code: int | str | None = 0
    try:
        if wanted["kind"] == "kernel":
            sys.argv = ["ipykernel_launcher", *wanted["arguments"]]
            sys.path[0] = ""  # as if an interpreter had been started for it
            runpy.run_module("ipykernel_launcher", run_name="__main__")
        else:
            sys.argv = wanted["arguments"]
            sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        stand_in(sys.argv[1], sys.argv[2:])
