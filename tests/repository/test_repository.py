"""The repository's promises: versions agree, layers point one way, the README is true."""

import ast
import functools
import graphlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

# The staircase: what stands on a line may import from the lines above it, never from those below.
# Names on a line are peers, which do not import one another.
STAIRCASE = """
_checks _files _modes _seeds
layers data
networks runtime
analog
training
instruments
robustness
experiments
__init__
""".strip().splitlines()


def name_of(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def pins(lines):
    """Versions by package of ``name==version ; marker`` lines, those for this Python."""
    from packaging.requirements import Requirement

    found = {}
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            found[name_of(line)] = specifier.version
    return found


@pytest.fixture(scope="module")
def lock():
    return pins((ROOT / "requirements.lock").read_text().splitlines())


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    return [line for line in lines if name_of(line) != project["name"]]  # extras of its own


def test_the_lock_meets_what_pyproject_declares(lock):
    from packaging.requirements import Requirement

    for line in declared():
        requirement = Requirement(line)
        assert requirement.specifier.contains(lock[name_of(line)]), line


def test_the_conda_environment_has_the_locked_versions(lock):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    assert pip[0] == "--constraint requirements.lock"
    assert pip[-1] == "--editable ."
    listed = dict(line.split("==") for line in pip[1:-1])
    assert listed == {name: lock[name] for name in map(name_of, declared())}
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"python={python.removeprefix('>=')}" in environment


def test_what_is_installed_is_what_is_locked(lock):
    from importlib.metadata import version

    for line in declared():
        assert version(name_of(line)).partition("+")[0] == lock[name_of(line)]


def test_files_name_one_version_and_no_host():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert "://" not in (ROOT / "requirements.lock").read_text()


def imports(path):
    """The modules of rapa_lib that a file imports when it is loaded, as dotted names below it."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rapa_lib"):
            module = node.module.partition(".")[2]
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield inner if inner in modules() else module or alias.name


@functools.cache
def modules():
    """Every module of the library by its dotted name; a package stands for its ``__init__``."""
    library = ROOT / "rapa_lib"
    found = {}
    for path in library.rglob("*.py"):
        name = ".".join(path.relative_to(library).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def test_imports_go_down_the_staircase():
    height = {name: i for i, line in enumerate(STAIRCASE) for name in line.split()}
    rooms = {name: name.partition(".")[0] for name in modules()}
    assert set(rooms.values()) == set(height)
    for name, path in modules().items():
        for imported in imports(path):
            room = imported.partition(".")[0]
            if room != rooms[name]:
                assert height[room] < height[rooms[name]], f"{path} imports {imported}"


def test_no_module_imports_itself_by_a_detour():
    needs = {name: set(imports(path)) & set(modules()) for name, path in modules().items()}
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError, which names the cycle


def test_the_root_of_the_library_is_small():
    library = ROOT / "rapa_lib"
    assert len([path for path in library.iterdir() if (path / "__init__.py").exists()]) <= 9
    assert len(list(library.glob("*.py"))) <= 5


# Everything of the lock that PyTorch and NumPy do not need themselves, by the name of its module.
BLOCKED = [
    "IPython", "PIL", "eagerpy", "foolbox", "furo", "ipywidgets", "jsonschema", "jupyterlab",
    "matplotlib", "mistune", "mlxtend", "myst_nb", "nbconvert", "nbformat", "pandas", "papermill",
    "playwright", "psutil", "pyarrow", "scipy", "seaborn", "sklearn", "snakemake", "sphinx",
    "tabulate", "torchvision", "tqdm", "yaml",
]  # fmt: skip
LIGHT = """
import torch
import rapa_lib
from rapa_lib import Dataset, RapaConvNet, TrainConfig, convert_to_rapa, merge_tiles, train
from rapa_lib.analog import AnalogSGD, convert_to_analog, rpu_baseline
from rapa_lib.instruments import faults, penalty, pull, similarity
from rapa_lib.runtime import balance_tiles, run_time

images, labels = torch.zeros(8, 1, 16, 16, dtype=torch.uint8), torch.arange(8) % 2
data = Dataset("zeros", images, labels, images, labels, ("a", "b"))
shape = dict(in_channels=1, n_classes=2, image_size=16, channels=(2, 2, 2), kernel_sizes=(3, 3, 3))
network = RapaConvNet(n_tiles=(4, 2, 1), **shape)
train(network, data, TrainConfig(epochs=1, batch_size=8))
print(run_time(network, (1, 16, 16)).speedup())
network = convert_to_analog(network, rpu_baseline(), seed=0)
loss = network(torch.randn(2, 1, 16, 16)).sum()
loss.backward()
AnalogSGD(network, lr=0.1).step()
ordinary = merge_tiles(convert_to_rapa(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)), 2))
try:
    run_time(ordinary, (1, 8, 8)).table()
except ModuleNotFoundError as error:
    print(error)
"""


def test_the_library_needs_torch_and_numpy_alone(run_python):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(map(name_of, project["dependencies"])) == {"torch", "numpy"}
    extras = {name_of(line) for line in declared()} - {"torch", "numpy"}
    assert extras - {name.lower() for name in BLOCKED} == {
        # by other names, or tools of ours that no module imports
        *("jinja2", "myst-nb", "pillow", "pyyaml", "snakemake-executor-plugin-slurm", "traitlets"),
        *("hypothesis", "mypy", "nbstripout", "pytest", "pytest-xdist", "ruff"),
        *("types-jsonschema", "types-psutil", "types-pyyaml", "types-tabulate"),
    }
    blocked = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED}))"
    speedup, hint = run_python(f"{blocked}\n{LIGHT}").splitlines()
    assert float(speedup) == 4
    assert hint == "pandas is not installed; pip install 'rapa-convnets[figures]' brings it"


def test_public_names_are_there_and_documented():
    import rapa_lib

    for name in rapa_lib.__all__:
        assert getattr(getattr(rapa_lib, name), "__doc__", None), name


def test_docstring_examples_run():
    import doctest

    import torch

    import rapa_lib

    analog, layers = rapa_lib.analog, rapa_lib.layers
    documented = (
        rapa_lib.RapaConv2d, rapa_lib.PerforatedConv2d, rapa_lib.NoisyConv2d,
        rapa_lib.DropoutConv2d, layers.LocallyConnected2d,
        analog.AnalogTileArray, analog.TileConfig,
    )  # fmt: skip
    finder, n_examples = doctest.DocTestFinder(), 0
    for example in (
        e
        for d in documented
        for e in finder.find(
            d,
            globs={name: getattr(rapa_lib, name) for name in rapa_lib.__all__}
            | vars(analog)
            | vars(layers),
        )
    ):
        example.globs["torch"] = torch
        result = doctest.DocTestRunner().run(example)
        assert result.failed == 0, example.name
        n_examples += result.attempted
    assert n_examples >= 8


def test_ruff_is_content():
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")]
PAGES += [*sorted((ROOT / "docs").glob("*.md"))]


def blocks(language, pages=PAGES):
    """The code blocks of pages in one language."""
    return [
        block
        for page in pages
        for block in re.findall(
            rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        )
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, run_python):
    for block in blocks("python", [page]):
        run_python(block)


def test_the_readme_is_short_and_shows_code_at_once():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert lines.index("```python") < 25
    assert sum(line.startswith("![") for line in lines) == 1


# How the tests run a command of the README: the same line, made small through the environment.
SMALL = {
    "make study": {"STUDY": "smoke"},
    "make test": {"PYTEST_ARGS": "--collect-only --quiet", "WORKERS": "0"},
    "make lab": {"LAB_ARGS": "--version"},
    "make install": {},
    "make lint": {},
    "make test-slurm": {"PYTEST_ARGS": "--collect-only --quiet"},
    "make test-browser": {"PYTEST_ARGS": "--collect-only --quiet"},
    "make book": {"MAKEFLAGS": "--dry-run"},  # executes notebooks: make test-browser builds it
    "make paper": {"PAPER_ARGS": "--output build/paper.md"},
    "make test-shell": {"PYTEST_ARGS": "--collect-only --quiet"},
    "make test-fuzz": {"PYTEST_ARGS": "--collect-only --quiet"},
    "make study STUDY=smoke": {},
    ".venv/bin/python benchmarks/conv.py": {"RAPA_BENCHMARK_REPEATS": "2"},
    ".venv/bin/python benchmarks/analog.py": {"RAPA_BENCHMARK_REPEATS": "2"},
    ".venv/bin/python benchmarks/shares.py": {"RAPA_BENCHMARK_REPEATS": "2"},
    ".venv/bin/python benchmarks/analog_rates.py": {"RAPA_BENCHMARK_REPEATS": "1"},
    ".venv/bin/python benchmarks/doubling.py": {"RAPA_BENCHMARK_REPEATS": "1"},
    ".venv/bin/python benchmarks/precision.py": {"RAPA_BENCHMARK_REPEATS": "1"},
    ".venv/bin/python benchmarks/recording.py": {"RAPA_BENCHMARK_REPEATS": "1"},
}
# Lines that need what a test cannot have: data, or hours.
UNRUN = {
    "make study STUDY=mnist5k",
    "make study STUDY=digits",
    "make study STUDY=synchronisation_digits",
    "make study STUDY=analog_digits",
    "make study STUDY=attacked_digits",
    "make study STUDY=amount_digits",
    "make study STUDY=analog_imperfections",
    "make study STUDY=small DATA=../shared/data/cifar10",
    "make tune STUDY=digits",
    "make tune STUDY=small DATA=../shared/data/cifar10 NAME=small_mine",
    "make study STUDY=full DATA=../shared/data/cifar10",
    "make study STUDY=standard DATA=../shared/data/cifar10",
    "make study STUDY=cifar10_long DATA=../shared/data/cifar10",
    "make study STUDY=paper DATA=../shared/data/cifar10",
    "make study STUDY=paper DATA=../shared/data/cifar100 NAME=paper_cifar100",
    "make study STUDY=paper DATA=../shared/data/cifar10 PROFILE=slurm",
    "make study STUDY=standard DATA=../shared/data/cifar10 MIX=1",
}


def commands():
    return [
        line.split("  #")[0].strip()
        for block in blocks("sh")
        for line in block.splitlines()
        if line.strip()
    ]


def test_no_page_shows_a_command_that_is_not_tested():
    unknown = set(commands()) - set(SMALL) - UNRUN
    assert not unknown
    assert {"make study", "make test"} <= set(commands())


@pytest.fixture
def finished_smoke(smoke):
    """The smoke study where ``make study`` looks for it: what is done is not done again."""
    folder = ROOT / "results/smoke"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(smoke.folder, folder)
    return folder


@pytest.mark.parametrize("command", [c for c in SMALL if c in commands() and "study" in c])
def test_the_study_commands_of_the_pages_run(finished_smoke, command):
    before = (finished_smoke / "accuracy.csv").read_bytes()
    (finished_smoke / "report.html").unlink()
    run_command(command)
    assert (finished_smoke / "report.html").stat().st_size > 10_000
    assert (finished_smoke / "accuracy.csv").read_bytes() == before


@pytest.mark.parametrize("command", [c for c in SMALL if c in commands() and "study" not in c])
def test_the_commands_of_the_pages_run(command):
    run_command(command)


def run_command(command):
    # Neither a worker's own variables, which would make the tests it starts believe that they are
    # its, nor those that a make above was given.
    outer = ("PYTEST_", "MAKE", "MFLAGS")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(outer)}
    process = subprocess.Popen(
        command, shell=True, cwd=ROOT, env=environment | SMALL[command], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # not the shell alone: what it started holds pipes
        pytest.fail(f"{command} took more than ten minutes:\n{process.communicate()[0]}")
    assert process.returncode == 0, output


@pytest.mark.parametrize("command", sorted(UNRUN))
def test_the_long_commands_of_the_pages_are_plans_that_make_knows(command):
    done = subprocess.run(
        f"{command} --dry-run", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    study = re.search(r"STUDY=(\w+)", command)[1]
    script = "tune_study" if command.startswith("make tune") else "run_study"
    assert (ROOT / f"config/{study}.yaml").exists()
    assert f'workflow/scripts/{script}.py "config/$STUDY.yaml"' in done.stdout


# Claims with a confirming study of their own; all others are of digits.
OWN = {"C4": "attacked_digits", "C7": "analog_digits"}
OWN |= dict.fromkeys(("N2", "N3"), "synchronisation_digits")


def verdicts(study):
    """The verdict of every claim on a study's page."""
    page = (ROOT / f"results/{study}/claims.md").read_text(encoding="utf-8")
    assert "Rules written before the runs: verified" in page
    found = dict(re.findall(r"^\| (\w+) +\| [^|]+\| ([a-z ]+?) +\|.*; claimed: ", page, re.M))
    assert len(found) == 12
    return found


def test_the_readmes_verdicts_are_those_of_the_confirming_studies():
    readme = (ROOT / "README.md").read_text()
    cells = r" \| ([a-z –]+)" * 3
    shown = re.findall(rf"^\| ([CN]\d\w?)(?: \(ours\))?: [^|]+{cells} \| ", readme, re.M)
    judged = {study: verdicts(study) for study in {"digits", "small", "full", *OWN.values()}}
    assert shown == [
        (claim, *(
            judged[study][claim].replace("not measured", "–")
            for study in (OWN.get(claim, "digits"), "small", "full")
        ))
        for claim in sorted(judged["digits"])
    ]  # fmt: skip


@pytest.mark.parametrize("page", [*PAGES, ROOT / "config/README.md"], ids=lambda page: page.name)
def test_paths_on_a_page_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_benchmarks_on_the_pages_are_those_of_the_results():
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in ("conv", "analog", "analog_devices", "doubling", "shares"):
        page = ROOT / f"results/benchmarks/{name}.md"
        assert page.read_text(encoding="utf-8").strip() in shown
