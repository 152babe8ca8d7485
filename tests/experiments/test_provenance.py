"""Hashes of rules and code change with their content, and with nothing else."""

import hashlib
import shutil
from pathlib import Path

import pytest

from rapa_lib.experiments.provenance import code_hash, rules_hash

FILES = {"a.py": "x = 1\n", "b/c.py": "y = 2\n", "b/kernels.cpp": "int z;\n", "readme.md": "no"}


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_rules_have_the_hash_of_their_content(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_bytes(b"claims: []\n")
    assert rules_hash(path) == hashlib.sha256(b"claims: []\n").hexdigest()


def test_code_has_one_hash_wherever_it_lies(tmp_path):
    first, second = write(tmp_path / "one", FILES), write(tmp_path / "two", FILES)
    (second / "__pycache__").mkdir()
    (second / "__pycache__/a.pyc").write_bytes(b"bytes")
    (second / "readme.md").write_text("yes")
    assert code_hash(first) == code_hash(second)


@pytest.mark.parametrize(
    "change",
    [
        {"a.py": "x = 2\n"},
        {"b/kernels.cpp": "int w;\n"},
        {"d.py": ""},
        {"a.py": "x = 1\ny = 2\n", "b/c.py": ""},  # a line moved to the file before
    ],
)
def test_any_change_of_the_code_changes_its_hash(tmp_path, change):
    before = code_hash(write(tmp_path / "one", FILES))
    assert code_hash(write(tmp_path / "two", FILES | change)) != before


def test_a_renamed_file_changes_the_hash(tmp_path):
    folder = write(tmp_path / "one", FILES)
    other = write(tmp_path / "two", FILES)
    shutil.move(other / "a.py", other / "a_.py")
    assert code_hash(folder) != code_hash(other)


def test_the_hash_of_this_package_is_that_of_its_files():
    import rapa_lib

    package = Path(rapa_lib.__file__).parent
    assert code_hash() == code_hash(package)
    assert len(code_hash()) == 64


def test_a_folder_without_sources_has_no_hash(tmp_path):
    with pytest.raises(ValueError, match="expected a folder with sources"):
        code_hash(tmp_path)
