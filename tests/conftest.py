import subprocess
import sys

import pytest


@pytest.fixture
def run_python():
    """Run code in a fresh interpreter; return what it printed, fail with what it complained of."""

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
