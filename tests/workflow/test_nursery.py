"""Processes forked from the nursery do, say and end as those that are started anew."""

import os
import signal
import subprocess
import sys
import time

import nursery as module
import psutil
import pytest
from nursery import VARIABLE, nursery

SCRIPT = """
import os, signal, sys, threading, time

print(sys.argv[1:], os.getcwd(), os.environ["SAID"], __name__, sys.path[0])
print("numpy" in sys.modules, file=sys.stderr)
what = sys.argv[1]
if what == "exit":
    sys.exit(7)
if what == "words":
    sys.exit("these are my last words")
if what == "raise":
    raise KeyError("lost")
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "wait":
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A server's socket; it has imported NumPy alone, which takes a moment."""
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, module.__file__, "serve", "socket", "numpy"]
    server = subprocess.Popen(command, cwd=folder)
    deadline = time.monotonic() + 60
    while not (folder / "socket").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield str(folder / "socket")
    server.kill()
    server.wait()


@pytest.fixture
def start(tmp_path):
    """Start the script in the place of the real one; without a server if no socket is named."""
    (tmp_path / "script.py").write_text(SCRIPT)
    folder = tmp_path / "its folder"
    folder.mkdir()

    def start(place, *arguments):
        environment = {k: v for k, v in os.environ.items() if k != VARIABLE} | {"SAID": "hello"}
        return subprocess.Popen(
            [sys.executable, "-S", "-I", module.__file__, "run", "../script.py", *arguments],
            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment | ({VARIABLE: place} if place else {}),
        )  # fmt: skip

    return start


@pytest.mark.parametrize("what", ["go", "exit", "words", "raise"])
def test_a_forked_script_says_and_ends_as_one_that_is_started(start, place, what):
    forked, started = start(place, what, "x y"), start(None, what, "x y")
    said, complained = forked.communicate(timeout=60)
    said_too, complained_too = started.communicate(timeout=60)
    assert said == said_too
    assert f"['{what}', 'x y']" in said
    assert forked.returncode == started.returncode == {"go": 0, "exit": 7}.get(what, 1)
    assert complained.startswith("True\n")  # it was born with NumPy
    assert complained_too.startswith("False\n")
    assert complained.splitlines()[-1:] == complained_too.replace("False", "True").splitlines()[-1:]


def test_a_killed_one_has_failed(start, place):
    forked = start(place, "kill")
    forked.communicate(timeout=60)
    assert forked.returncode == -signal.SIGKILL % 256


def ended(pid):
    """Whether a process is gone, or is within five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def born(process):
    """The number of the process that was forked."""
    process.stdout.readline()
    return int(process.stdout.readline())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_the_process_in_its_place(start, place, number):
    forked = start(place, "wait")
    pid = born(forked)
    assert pid != forked.pid
    forked.send_signal(number)
    assert ended(pid)
    forked.communicate(timeout=60)
    assert forked.returncode != 0


def test_all_die_with_the_server(start):
    with nursery(1, imported=["numpy"]):
        forked = start(os.environ[VARIABLE], "wait")
        pid = born(forked)
    assert ended(pid)
    forked.communicate(timeout=60)
    assert forked.returncode == 1
    assert VARIABLE not in os.environ


def test_a_server_that_is_gone_is_done_without(start, tmp_path):
    started = start(str(tmp_path / "nobody"), "exit")
    started.communicate(timeout=60)
    assert started.returncode == 7


def test_several_at_once(start, place):
    some = [start(place, "exit") for _ in range(4)]
    assert [one.communicate(timeout=60) and one.returncode for one in some] == [7] * 4
