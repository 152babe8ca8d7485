"""Functions and files stay small; the exceptions are listed here, each with its reason."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("rapa_lib", "workflow", "benchmarks")

MOST_LINES_OF_A_FUNCTION = 60  # without decorators and docstring
MOST_LINES_OF_A_FILE = 400
DEEPEST = 4

LONG_FUNCTIONS: dict[str, str] = {}
LONG_FILES = {
    "rapa_lib/layers/products/kernels.cpp": (
        "one translation unit, compiled on first use: its templates are small, and products share "
        "their loops"
    ),
    "rapa_lib/analog/kernels.cpp": (
        "one translation unit, compiled on first use: products and pulses share their generator "
        "and their threads"
    ),
}

_BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources(*suffixes):
    return [
        path
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*"))
        if path.suffix in suffixes
    ]


def functions(tree, prefix=""):
    """Every function of a syntax tree with its dotted name, those inside others too."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, (*_FUNCTIONS, ast.ClassDef))
        name = f"{prefix}{node.name}" if named else prefix
        if isinstance(node, _FUNCTIONS):
            yield name, node
        yield from functions(node, f"{name}." if named else prefix)


def n_lines(function):
    """Lines from the ``def`` to the last statement, the docstring's left out."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def depth(node, level=0):
    """How deep blocks are nested in a function; an ``elif`` is no deeper than its ``if``."""
    deepest = level
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
            continue
        is_elif = (
            isinstance(node, ast.If)
            and isinstance(child, ast.If)
            and node.orelse == [child]
            and child.col_offset == node.col_offset
        )
        inner = level + (isinstance(child, _BLOCKS) and not is_elif)
        deepest = max(deepest, depth(child, inner))
    return deepest


def measured(measure):
    return {
        f"{path.relative_to(ROOT)}:{name}": measure(function)
        for path in sources(".py")
        for name, function in functions(ast.parse(path.read_text(encoding="utf-8")))
    }


def test_no_function_is_long_without_a_reason():
    long = {name: n for name, n in measured(n_lines).items() if n > MOST_LINES_OF_A_FUNCTION}
    assert long.keys() == LONG_FUNCTIONS.keys(), long


def test_no_function_is_nested_deeply():
    deep = {name: n for name, n in measured(depth).items() if n > DEEPEST}
    assert not deep


def test_no_file_is_long_without_a_reason():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources(".py", ".cpp")
    }
    long = {name: n for name, n in lines.items() if n > MOST_LINES_OF_A_FILE}
    assert long.keys() == LONG_FILES.keys(), long


@pytest.mark.parametrize(
    ("code", "lines", "deepest"),
    [
        ('def f():\n    """One.\n\n    Two.\n    """\n    return 1', 2, 0),
        ("def f(x):\n    if x:\n        return 1\n    elif not x:\n        return 2", 5, 1),
        ("def f(x):\n    for a in x:\n        if a:\n            pass\n        else:\n"
         "            if x:\n                pass", 7, 3),
    ],
)  # fmt: skip
def test_lines_and_levels_are_counted_as_the_eye_does(code, lines, deepest):
    ((_, function),) = functions(ast.parse(code))
    assert (n_lines(function), depth(function)) == (lines, deepest)
