"""Files that are whole or absent: written beside their place, then renamed into it."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SUMS = "SHA256SUMS"
"""Name of the file with the checksums of a folder's files: ``sha256sum --check`` reads it."""

_SUM = re.compile(r"([0-9a-f]{64})  ([\w][\w.-]*)")

_PROBE_BYTES = 2**16


def write_sums(folder: str | Path, files: Mapping[str, Path]) -> None:
    """Write the checksums of a folder's files, whole or not at all, if they are not there already.

    Args:
        folder: where :data:`SUMS` goes.
        files: where each is now, by the name that it has in the folder.
    """
    lines = [f"{_sha256(files[name])}  {name}\n" for name in sorted(files)]
    path, text = Path(folder) / SUMS, "".join(lines)
    if not path.is_file() or path.read_bytes() != text.encode():
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")


def changed_files(folder: str | Path) -> list[Path]:
    """The files of a folder that are no more what :func:`write_sums` saw; those gone are left out.

    A file of checksums that is damaged is one of them.
    """
    path = Path(folder) / SUMS
    if not path.is_file():
        return []
    found = [_SUM.fullmatch(line) for line in path.read_text("utf-8", "replace").splitlines()]
    changed = [path] if None in found or not found else []
    for match in found:
        if match is not None:
            file = path.with_name(match[2])
            if file.is_file() and _sha256(file) != match[1]:
                changed.append(file)
    return changed


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def copy_whole(source: str | Path, path: str | Path) -> None:
    """Copy a file's content whole or not at all."""
    with whole_file(path) as part:
        shutil.copyfile(source, part)


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
            probe.write(bytes(_PROBE_BYTES))  # on a full disk an empty file can still be made
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise ValueError(f"{name}: cannot write to {folder}: {error}") from error
    return folder
