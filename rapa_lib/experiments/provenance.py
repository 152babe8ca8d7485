"""Hashes that fix rules and code: of their content, not of a commit."""

import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

RULES_VARIABLE = "RAPA_RULES_SHA256"
"""The environment variable in which a study hands a run the hash of its rules."""


CHOSEN_VARIABLE = "RAPA_CHOSEN_SHA256"
"""Likewise the hash of what tuning has chosen, where the study is a tuned one."""


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def rules_hash(path: str | Path) -> str:
    """SHA-256 of a rules file's content, in hexadecimal digits."""
    return file_hash(path)


@functools.cache
def code_hash(package: str | Path = PACKAGE) -> str:
    """SHA-256 of the package's Python and C++ sources, in hexadecimal digits.

    Each file counts with its path below the package, its length and its content, in the order of
    the paths, so that a renamed file or a line moved from one file to the next changes it.

    Args:
        package: folder of the package.

    Raises:
        ValueError: if there is no source in it.
    """
    package = Path(package)
    sources = {
        path.relative_to(package).as_posix(): path
        for suffix in (".py", ".cpp")
        for path in package.rglob(f"*{suffix}")
    }
    if not sources:
        raise ValueError(f"package: got {package}, expected a folder with sources")
    total = hashlib.sha256()
    for name in sorted(sources):
        content = sources[name].read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()
