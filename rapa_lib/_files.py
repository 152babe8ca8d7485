"""Files that are whole or absent: written beside their place, then renamed into it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write; move it there if nothing was raised.

    The suffix is kept (libraries choose formats by it), and the data are on the disk before the
    name is. Whoever is killed in between leaves at most a file that begins with ``.part-``.
    """
    path = Path(path)
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def writable_folder(name: str, path: str | Path) -> Path:
    """Make a folder and prove that a file can be written there.

    Raises:
        ValueError: naming the argument and the folder, if not.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A name of its own: a probe must neither replace a file nor meet another run's probe.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".part-") as probe:
            os.fsync(probe.fileno())
    except OSError as error:
        raise ValueError(f"{name}: cannot write to {folder}: {error}") from error
    return folder
