"""Start what a study needs, and never leave it behind: stopped by us, it is stopped with us."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

PATIENCE_SECONDS = 60
"""That a Snakemake has to take back what it submitted to a cluster."""


class StoppedError(BaseException):
    """Somebody asked this process to end; the message is the signal's name.

    No Exception, as KeyboardInterrupt is none: whoever catches what a bad file may raise does not
    catch it, and blames no file for it.
    """


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP (unless it is ignored, as under nohup) raise StoppedError."""

    def stop(number: int, _: FrameType | None) -> None:
        raise StoppedError(signal.Signals(number).name)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def supervised(command: Sequence[str], *, asks: bool, **options: object) -> int:
    """Run a command to its end; whatever ends this function ends all that the command started.

    Args:
        command: to run.
        asks: whether it is asked to end first, with SIGINT: it may have jobs elsewhere to cancel.
        options: of :class:`subprocess.Popen`.

    Returns:
        Its exit status; below zero the number of the signal that ended it.
    """
    process = subprocess.Popen(list(command), **options)  # type: ignore[call-overload]
    try:
        return process.wait()
    except BaseException:
        _stop(process, asks)
        raise


def _stop(process: subprocess.Popen, asks: bool) -> None:
    """Kill a process and all that it started: every run goes on from where it was killed."""
    everyone: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        # Listed before the first of them dies: orphans could not be found.
        everyone = [root, *root.children(recursive=True)]
        if asks:
            print("cancelling what was submitted", file=sys.stderr, flush=True)
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_SECONDS)
        with suppress(psutil.NoSuchProcess):
            everyone += root.children(recursive=True)
    for one in everyone:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(everyone, timeout=10)
