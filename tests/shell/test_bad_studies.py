"""Studies that are refused: by what their YAML says, by what is asked, by where they would go."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_study
import study as studies
import torch
import yaml
from study import Study, load_study

from rapa_lib.experiments.yaml_files import MOST_BYTES, read_yaml

ROOT = Path(__file__).parents[2]
SECONDS = 5

PLAIN = """
study: plain
description: One run
threads: 1
accuracy:
  common: {dataset: mnist5k, n_train: 512, n_test: 100, epochs: 1}
"""


def with_line(line):
    return f"{PLAIN}{line}\n"


def grid(block):
    return f"{PLAIN}  grid:\n    - {block}\n"


BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)

TEXTS = {
    "a bomb of aliases": (BOMB, "its aliases stand for"),
    "an alias of itself": ("a: &a [*a]", "an alias stands for what contains it"),
    "a key twice": (with_line("threads: 2"), "the key 'threads' is there twice, again in line 7"),
    "a key twice below": (
        PLAIN.replace("epochs: 1", "epochs: 1, epochs: 2"), "the key 'epochs' is there twice"
    ),
    "a file too long": ("# " + MOST_BYTES * "x", "has more than 262,144 bytes"),
    "nested too deeply": (1500 * "[" + 1500 * "]", "is nested too deeply"),
    "a Python object": ("a: !!python/object/apply:os.system ['true']", "is no YAML that is read"),
    "a tag": ("study: !mine x", "could not determine a constructor"),
    "two documents": ("a: 1\n---\nb: 2", "read here: expected a single document"),
    "a tab": ("study:\n\tx", "is no YAML that is read here"),
    "a key that is a list": ("? [a]\n: 1", "is no YAML that is read here"),
    "bytes": (b"\xff\xfe\x00", "is no YAML that is read here"),
    "a zero byte": ("study: a\0b", "is no YAML that is read here"),
    "nothing": ("", "$: None is not of type 'object'"),
    "a million runs": (
        grid(f"{{seed: {list(range(1000))}, n_test: {list(range(1, 1001))}}}"),
        "accuracy: its grid has 1,000,000 runs, allowed: at most 5,000",
    ),
    "a million runs in blocks": (
        grid(f"seed: {list(range(6000))}"), "accuracy: its grid has 6,000 runs, allowed: at most"
    ),
    "a follower's million": (
        grid(f"seed: {list(range(1000))}")
        + f"filter_similarity:\n  networks: {{}}\n  common: {{}}\n  grid: [seed: "
        f"{list(range(1000))}]",
        "filter_similarity: its grid has 1,000,000 runs",
    ),
    "a value twice": (grid("seed: [0, 0]"), "$.accuracy.grid[0].seed: [0, 0] has non-unique"),
    "a network's value twice": (
        with_line("filter_similarity:\n  networks: {seed: [1, 1]}\n  common: {}"),
        "$.filter_similarity.networks.seed: [1, 1] has non-unique",
    ),
    "many threads": (
        PLAIN.replace("threads: 1", "threads: 100000"), "$.threads: 100000 is greater than"
    ),
    "true threads": (PLAIN.replace("threads: 1", "threads: true"), "$.threads: True is not of"),
    "endless retries": (
        with_line("limits: {retries: 1000000000}"), "$.limits.retries: 1000000000 is greater than"
    ),
    "no time": (with_line("limits: {minutes: 0}"), "$.limits.minutes: 0 is less than or equal"),
    "a name with a line break": (
        PLAIN.replace("study: plain", r'study: "plain\n"'), "$.study: 'plain\\n' does not match"
    ),
    "a name that leads elsewhere": (
        PLAIN.replace("study: plain", "study: ../up"), "$.study: '../up' does not match"
    ),
    "a long name": (PLAIN.replace("study: plain", f"study: {'a' * 101}"), "is too long"),
    "a description of two lines": (
        PLAIN.replace("One run", r'"One\nrun"'), "$.description: 'One\\nrun' does not match"
    ),
    "claims that lead elsewhere": (with_line("claims: ../paper"), "$.claims: '../paper' does not"),
    "claims that are not there": (with_line("claims: mine"), "claims: got 'mine', allowed: paper"),
    "an unknown key": (with_line("extra: 1"), "'extra'"),
    "a long value": (with_line(f"extra: {5000 * 'x'}"), "allowed keys: study"),
    "an experiment that is none": (with_line("magic: {common: {}}"), "'magic' was unexpected"),
    "no number": (
        PLAIN.replace("epochs: 1", "learning_rate: .nan"), "learning_rate: got nan, allowed: finite"
    ),
    "a home of nobody": (
        PLAIN.replace("mnist5k", "~nosuchuser/x"), "name_or_path: got '~nosuchuser/x', expected"
    ),
    "data that are not said": (
        PLAIN.replace("mnist5k", "cifar10"), "make study … DATA=<a data set's name or folder>"
    ),
}  # fmt: skip


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """Start a study in this process; return the one line that refuses it."""

    def start(text=PLAIN, *options, results=tmp_path / "results"):
        config = tmp_path / "study.yaml"
        config.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("RAPA_DATA", raising=False)
        words = ["run_study", config, "--results", results, *options]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        monkeypatch.setattr(run_study, "run_snakemake", lambda *_, **__: pytest.fail("it started"))
        began = time.process_time()
        with pytest.raises(SystemExit) as caught:
            run_study.main()
        assert time.process_time() - began < SECONDS
        said = str(caught.value.code)
        assert said.startswith("study not started: ")
        assert len(said.splitlines()) == 1
        assert len(said) < 1500
        return said

    return start


@pytest.mark.parametrize(("text", "words"), TEXTS.values(), ids=TEXTS)
def test_a_bad_study_is_refused_in_one_line_at_once(refusal, text, words):
    assert words in refusal(text)


def test_the_study_that_the_bad_ones_change_is_good(tmp_path):
    (tmp_path / "plain.yaml").write_text(PLAIN, encoding="utf-8")
    assert load_study(tmp_path / "plain.yaml").n_runs == 1
    # Aliases and merged keys are part of YAML, and are read.
    merged = "a: &a {x: 1}\nb:\n  <<: *a\n  y: 2"
    (tmp_path / "merged.yaml").write_text(merged, encoding="utf-8")
    assert read_yaml(tmp_path / "merged.yaml") == yaml.safe_load(merged)


def test_every_yaml_file_here_is_read_as_yaml_reads_it():
    for path in sorted([*(ROOT / "config").rglob("*.yaml"), *(ROOT / "profiles").rglob("*.yaml")]):
        assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["a{b}", "a<b>", "a*", "a[0]", "a?"])
def test_results_that_snakemake_would_read_as_a_pattern_are_refused(refusal, tmp_path, name):
    said = refusal(results=tmp_path / name)
    assert f"results: got '{tmp_path / name}', allowed: a path without" in said
    assert not (tmp_path / name).exists()


OPTIONS = {
    "a profile that leads elsewhere": (("--profile", "../local"), "profile: got '../local', allow"),
    "no cores": (("--cores", 0), "cores: got 0, allowed: at least 1"),
    "cores elsewhere": (("--profile", "slurm", "--cores", 2), "profile slurm runs elsewhere"),
    "a name with a line break": (("--name", "mine\n"), "$.study: 'mine\\n' does not match"),
    "a name with a slash": (("--name", "a/b"), "$.study: 'a/b' does not match"),
    "data that are nowhere": (("--data", "no/where"), "name_or_path: got 'no/where', allowed"),
    "data with a zero byte": (("--data", "a\0b"), "name_or_path: got 'a\\x00b', allowed"),
    "data that are empty": (("--data", ""), "name_or_path: got '.'"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "words"), OPTIONS.values(), ids=OPTIONS)
def test_a_bad_option_is_refused(refusal, options, words):
    if words.endswith("got '.'"):
        assert "expected train and test Parquet files" in refusal(PLAIN, *options)
        return
    assert words in refusal(PLAIN, *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_shares_of_a_gpu_that_is_not_there_are_refused(refusal):
    assert "gpu_percent: got 50, but this machine has no usable GPU" in refusal(
        with_line("gpu_percent: 50")
    )


def test_a_cache_folder_that_cannot_be_used_is_refused(refusal, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = refusal()
    assert f"XDG_CACHE_HOME: cannot write to {tmp_path / 'file/snakemake'}" in said


def test_what_is_checked_is_what_snakemake_gets(tmp_path, monkeypatch):
    """Not the file, which Snakemake would read by rules of its own, or later, changed."""
    config = tmp_path / "study.yaml"
    config.write_text(PLAIN, encoding="utf-8")
    handed = []

    def look(command, **_):
        handed.extend(command)
        handed.append(json.loads(Path(command[command.index("--configfile") + 1]).read_bytes()))
        return 0

    monkeypatch.setattr(run_study, "supervised", look)
    words = ["run_study", str(config), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run_study.main()
    assert str(config) not in handed
    assert handed[-1] == studies.read_config(config) | {
        "results": str(tmp_path / "results"), "data": None, "partial": False
    }  # fmt: skip
    assert Study.of({k: handed[-1][k] for k in yaml.safe_load(PLAIN)}).n_runs == 1


# --- make -------------------------------------------------------------------------------------

NASTY = [
    "/a b/$x", "`touch pwned`", "$(touch pwned)", "$(shell touch pwned)", "a\"; touch pwned; \"",
    "a'; touch pwned; '", "a\\b", "$$HOME", "${HOME}", "*", "a#b", "-x", "ünï",
]  # fmt: skip


@pytest.fixture
def kitchen(tmp_path):
    """A folder with the Makefile, whose Python prints what it is called with."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("requirements.lock", "pyproject.toml", ".venv/installed"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\nfor a; do printf "%s\\n" "$a"; done\n', encoding="utf-8")
    python.chmod(0o755)
    return tmp_path


def made(kitchen, *words, **environment):
    done = subprocess.run(
        ["make", "--no-print-directory", *words], cwd=kitchen, capture_output=True,
        encoding="utf-8", env={"PATH": "/usr/bin:/bin", "HOME": "/home"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (kitchen / "pwned").exists()
    return done.stdout.splitlines()


@pytest.mark.parametrize("value", NASTY)
def test_what_users_give_to_make_is_text(kitchen, value):
    told = made(kitchen, "study", *(f"{n}={value}" for n in ("STUDY", "DATA", "NAME", "PROFILE")))
    assert told == [
        "workflow/scripts/run_study.py", f"config/{value}.yaml", f"--profile={value}",
        f"--data={value}", f"--name={value}",
    ]  # fmt: skip
    told = made(kitchen, "study", DATA=value)
    assert told[1:] == ["config/quick.yaml", "--profile=local", f"--data={value}"]
    assert made(kitchen, "tables", f"NAME={value}")[1:] == [f"results/{value}"]


@pytest.mark.parametrize(("value", "mixes"), [("1", True), ("0", False), ("", False)])
def test_mix_is_asked_for_by_one(kitchen, value, mixes):
    assert ("--mix" in made(kitchen, "study", f"MIX={value}")) == mixes
