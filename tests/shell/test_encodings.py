"""Text is UTF-8, whatever the locale: every place that reads or writes it says so."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for room in ("rapa_lib", "workflow", "benchmarks")
    for path in sorted((ROOT / room).rglob("*.py"))
]


def unsaid(code):
    """Lines that open, read or write text, or hear a process, and say no encoding."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        said = {keyword.arg: keyword.value for keyword in node.keywords}
        modes = [a.value for a in (*node.args, said.get("mode")) if isinstance(a, ast.Constant)]
        binary = any(isinstance(mode, str) and "b" in mode for mode in modes)
        of_images = ast.unparse(node.func) in ("Image.open", "PIL.Image.open", "pillow.open")
        opens = name in ("open", "fdopen") and not binary and not of_images
        reads = name in ("read_text", "write_text") and not (name == "read_text" and node.args)
        hears = "text" in said or "universal_newlines" in said
        of_system = name == "open" and ast.unparse(node.func) == "os.open"
        if (opens or reads or hears) and "encoding" not in said and not of_system:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_files_say_the_encoding_of_their_texts():
    found = {str(path): unsaid(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_notebooks_say_the_encoding_of_their_texts():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code":
                code = "\n".join(x for x in cell.source.splitlines() if not x.startswith("%"))
                assert unsaid(code) == [], path


def test_what_says_nothing_is_found():
    code = "open(p)\np.open('a')\np.read_text()\np.write_text(t)\nrun(c, text=True)"
    assert len(unsaid(code)) == 5
    said = (
        "open(p, 'rb')\np.open('w', encoding='utf-8')\np.read_text(encoding='utf-8')\nos.open(p, 0)"
    )
    assert unsaid(said) == []


def test_a_study_s_pages_are_written_and_read_in_any_locale(tmp_path):
    """In one process, where the locale's encoding is ASCII and Python does not mend that."""
    code = f"""
import locale, pathlib
from rapa_lib.experiments.archive import Archive
from rapa_lib.experiments.protocol import experiment, write_collected
from rapa_lib.experiments.records import write_json

assert locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8")
archive = Archive.read({str(ROOT / "tests/workflow/kept_study/records.jsonl.xz")!r})
folder = pathlib.Path({str(tmp_path)!r})
records = archive.records("acceleration")
write_collected(
    "acceleration", experiment("acceleration").collect(records), folder, records,
    description="Grüße, ε ≤ 8/255",
)
write_json(folder / "record.json", {{"name": "16×16"}})
"""
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": ""}
    locale["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, tmp_path / "code.py"]
    done = subprocess.run(command, env=locale, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "acceleration.md").read_text(encoding="utf-8").startswith("# Grüße, ε ≤ 8")
