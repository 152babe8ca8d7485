"""The library is typed: public functions in full, and type checkers are told so."""

import importlib
import inspect
import pkgutil
import tomllib
from pathlib import Path

import pytest

import rapa_lib

ROOT = Path(__file__).parents[2]


def packages():
    """The library and every package in it that says what is public."""
    found = pkgutil.walk_packages(rapa_lib.__path__, "rapa_lib.")
    names = ["rapa_lib", *(info.name for info in found if info.ispkg)]
    return [name for name in names if hasattr(importlib.import_module(name), "__all__")]


def functions(name, value):
    """A public function, or the functions that a public class defines, by their dotted names."""
    if inspect.isclass(value):
        for key, member in vars(value).items():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if inspect.isfunction(function) and (key == "__init__" or not key.startswith("_")):
                yield f"{name}.{key}", function
    elif inspect.isfunction(value):
        yield name, value


def lacking(function):
    """What of a function has no annotation: names of parameters, and "return"."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        del parameters[0]
    names = [p.name for p in parameters if p.annotation is inspect.Parameter.empty]
    return names + ["return"] * (signature.return_annotation is inspect.Signature.empty)


def test_every_room_but_experiments_says_what_is_public():
    assert {"rapa_lib", "rapa_lib.layers", "rapa_lib.analog", "rapa_lib.runtime"} <= {*packages()}


@pytest.mark.parametrize("package", packages())
def test_public_functions_are_annotated_in_full(package):
    module = importlib.import_module(package)
    bare = {
        where: names
        for public in module.__all__
        for where, function in functions(public, getattr(module, public))
        if function.__module__.startswith("rapa_lib") and (names := lacking(function))
    }
    assert not bare


def test_a_missing_annotation_is_seen():
    def half_typed(a: int, b, *, c=None) -> int: ...

    class Kind:
        def __init__(self, x): ...

        @property
        def size(self): ...

        @classmethod
        def of(cls) -> "Kind": ...

    assert lacking(half_typed) == ["b", "c"]
    found = {name: lacking(function) for name, function in functions("Kind", Kind)}
    assert found == {"Kind.__init__": ["x", "return"], "Kind.size": ["return"], "Kind.of": []}


def test_the_library_ships_its_types():
    assert (Path(rapa_lib.__file__).parent / "py.typed").exists()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["*"]
    assert "Typing :: Typed" in project["project"]["classifiers"]


HEAVY = ("pandas", "matplotlib", "foolbox", "scipy")
NAMES = "from rapa_lib import RapaConv2d, RapaConvNet, train, convert_to_rapa, load_dataset"


@pytest.mark.parametrize("statement", ["import rapa_lib", NAMES])
def test_importing_is_light(statement, run_python):
    code = f"""
import sys, time, torch
began = time.process_time()
{statement}
print(time.process_time() - began)
print(*[name for name in {HEAVY} if name in sys.modules])
"""
    # Of the processor's time, the least of a few runs: others may work on the machine as well.
    for _ in range(3):
        seconds, heavy = run_python(code).split("\n")[:2]
        assert heavy == ""
        if float(seconds) <= 0.3:
            return
    pytest.fail(f"{statement}: took {seconds} s beyond PyTorch, allowed: 0.3")
