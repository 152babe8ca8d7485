"""A study runs from its YAML file to its tables, goes on after a kill, and names what failed."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import nbformat
import pandas as pd
import papermill
import pytest
import run_notebook
import run_study
import study as study_module
import torch
import yaml
from PIL import Image
from study import Study, load_study
from workflow_house import (
    COLLECT,
    ROOT,
    command,
    execute,
    kill_with_descendants,
    mock_report,
    rows,
    write_yaml,
)

from rapa_lib.experiments.accuracy import Accuracy
from rapa_lib.experiments.adversarial_robustness.tables import BY_IMAGE
from rapa_lib.experiments.catalogue import CATALOGUE
from rapa_lib.experiments.claims import judge_claims, read_claims
from rapa_lib.experiments.protocol import write_collected
from rapa_lib.experiments.records import write_table
from rapa_lib.experiments.trained import load_network
from rapa_lib.training import load_checkpoint

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STUDIES = sorted((ROOT / "config").glob("*.yaml"))
# Of the smoke study, which averages no tiles.
COLLECTED = [name for name in CATALOGUE if name != "synchronisation"]
PICTURES = [name for one in COLLECTED for name in CATALOGUE[one].files if name.endswith(".png")]
WITH_RUNS = [name for name, entry in CATALOGUE.items() if entry.needs != "records"]

# One run trains for seconds, so that it can be killed on the way; the loss of the other diverges.
FRAGILE = {
    "study": "fragile",
    "description": "One run of {two} $fails",  # no shell's and no template's business
    "threads": 1,
    "accuracy": {
        "common": {
            "dataset": "mnist5k",
            "n_train": 512,
            "n_test": 100,
            "epochs": 20,
            "batch_size": 64,
            "channels": [8, 8, 8],
            "draws": 2,
        },
        "grid": [{"learning_rate": [0.05, 1e6]}],
    },
}


def snakemake(house, *args, python=sys.executable):
    """Ask Snakemake itself what it would do."""
    done = execute(
        house, python, "-m", "snakemake", "--dry-run", "--snakefile", "workflow/Snakefile", *args
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def mtimes(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("[!.]*") if path.is_file()}


@pytest.fixture
def one_thread():
    """What was measured on one thread is measured again on one, or its bits may differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- The smoke study --------------------------------------------------------------------------


def test_every_run_has_a_row_and_it_is_the_record(smoke):
    assert [run.name for run in smoke.runs] == sorted(
        run.name for run in smoke.study.runs["accuracy"]
    )
    records = [
        json.loads((run / "record.json").read_text()) | {"run": run.name} for run in smoke.runs
    ]
    table = rows(smoke.folder / "accuracy.csv")
    assert len(table) == len(records) == 2
    wanted = {
        "dataset", "tiling", "n_tiles", "pooling", "seed", "epochs", "test_error",
        "test_error_std_draws", "test_error_vote", "test_error_merged", "n_parameters",
        "train_seconds", "git_commit", "package_version", "torch_version", "python_version",
        "device", "threads", "data_fingerprint", "config", "run",
    }  # fmt: skip
    for row, record in zip(table, sorted(records, key=lambda r: r["tiling"]), strict=True):
        assert wanted <= set(row)
        # Other tables'.
        assert set(record.pop("speedups")) == {"pipelined", "sequential"}
        assert set(record.pop("times_us")) == {"single", "image", "averaging"}
        written = {k: json.dumps(v) if isinstance(v, dict) else str(v) for k, v in record.items()}
        assert row == written
    assert all(row["threads"] == "1" and row["n_parameters"] > "0" for row in table)


def test_a_record_says_with_which_parameters_it_was_made(smoke):
    for run in smoke.study.runs["accuracy"]:
        folder = smoke.folder / "runs/accuracy" / run.name
        config = json.loads((folder / "record.json").read_text())["config"]
        assert config == Accuracy.of(**run.parameters).parameters()


def test_curves_are_those_of_the_runs(smoke):
    curves = rows(smoke.folder / "accuracy_curves.csv")
    for run in smoke.runs:
        curve = json.loads((run / "curve.json").read_text())
        own = [row for row in curves if row["run"] == run.name]
        assert [int(row["epoch"]) for row in own] == [1, 2]
        for row, epoch in zip(own, curve["history"], strict=True):
            labels = {name: str(curve[name]) for name in curve if name != "history"}
            assert len(labels) == 7
            assert labels.items() <= row.items()
            for name in ("train_loss", "train_error", "test_error"):
                assert float(row[name]) == epoch[name]


def test_the_summary_has_the_numbers_of_the_table(smoke):
    text = (smoke.folder / "accuracy.md").read_text()
    header, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    table = {row["tiling"]: row for row in rows(smoke.folder / "accuracy.csv")}
    assert len(lines) == len(table)
    (shared,) = (line for line in text.splitlines() if line.startswith("All: "))
    shared = shared.replace("\\", "")  # the commas and parentheses of a name are not Markdown's
    for line in lines:
        cells = dict(zip(header, line, strict=True))
        row = table[cells["tiling"]]
        for name in ("dataset", "n_tiles", "pooling", "epochs"):
            assert cells[name] == row[name] if name in cells else f"{name} {row[name]}" in shared
        for name, column in {
            "test error (%)": "test_error",
            "vote (%)": "test_error_vote",
            "mean softmax (%)": "test_error_softmax",
            "merged (%)": "test_error_merged",
        }.items():
            assert cells[name] == f"{float(row[column]):.2f}"
        assert cells["parameters"] == f"{int(row['n_parameters']):,}"
    assert text.startswith(f"# {smoke.study.description}\n")
    assert row["data_fingerprint"] in text
    assert row["git_commit"] in text
    assert "Incomplete" not in text
    for image in re.findall(r"\]\((.*?)\)", text):
        assert (smoke.folder / image).exists()


@pytest.mark.parametrize("name", [Path(name).stem for name in PICTURES])
def test_figures_are_whole_images(smoke, name):
    with Image.open(smoke.folder / f"{name}.png") as image:
        image.load()
        assert min(image.size) > 200
    drawing = ElementTree.parse(smoke.folder / f"{name}.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"


def test_executed_notebooks_are_kept_with_their_results(smoke):
    for run in smoke.runs:
        notebook = nbformat.read(run / "accuracy.ipynb", 4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        outputs = [output for cell in code for output in cell.outputs]
        assert not [o for o in outputs if o.output_type == "error"]
        assert [o for o in outputs if "image/png" in o.get("data", {})]
        record = json.loads((run / "record.json").read_text())
        shown = "".join(o.data.get("text/markdown", "") for o in outputs if "data" in o)
        assert f"test error of {record['test_error']:.2f} %" in shown


def test_the_kept_networks_have_the_recorded_errors(smoke, one_thread):
    for folder in smoke.runs:
        network, scaling, recipe = load_network(folder / "network.pt")
        record = json.loads((folder / "record.json").read_text())
        errors = Accuracy.of(**record["config"]).test(network, recipe.data.load(), scaling)
        assert {name: record[name] for name in vars(errors)} == vars(errors)


def test_a_finished_study_leaves_nothing_temporary(smoke):
    kept = {
        ".lock",
        "SHA256SUMS",
        "accuracy.ipynb",
        "curve.json",
        "log.txt",
        "network.pt",
        "record.json",
        "similarity.json",
    }
    for run in smoke.runs:
        assert {path.name for path in run.iterdir()} == kept
    kept = {".lock", "SHA256SUMS", "filter_similarity.ipynb", "log.txt", "record.json"}
    assert {path.name for path in smoke.follower.iterdir()} == kept
    names = {path.name for path in smoke.folder.iterdir() if path.name.startswith(".")}
    assert names == {".lock"}


def test_the_report_is_one_page_with_every_figure_and_verdict(smoke):
    page = (smoke.folder / "report.html").read_text()
    assert not re.search(r"<script|<link|<iframe|(?:src|href)=.https?:", page)
    shown = sorted(Path(name).stem for name in PICTURES)
    assert sorted(re.findall(r'<img[^>]* id="(\w+)"', page)) == shown
    ids = re.findall(r' id="([\w-]+)"', page)
    assert set(re.findall(r'href="#([\w-]+)"', page)) <= set(ids)
    for row in rows(smoke.folder / "claims.csv"):
        assert f'id="claim-{row["id"]}"' in page
    assert "failed: none" in page
    assert "Traceback" not in page


def test_the_claims_of_a_study_are_judged_from_its_tables(smoke):
    rules = read_claims(yaml.safe_load((ROOT / "config/claims/paper.yaml").read_text()))
    tables = {path.stem: pd.read_csv(path) for path in smoke.folder.glob("*.csv")}
    write_table(smoke.folder.parent / "judged.csv", judge_claims(rules, tables))
    judged = rows(smoke.folder.parent / "judged.csv")
    assert judged == rows(smoke.folder / "claims.csv")
    one_seed = {"undecided", "not testable here", "not measured"}
    assert {row["verdict"] for row in judged} <= one_seed | {"holds", "does not hold"}
    assert {row["verdict"] for row in judged if row["method"] != "exact"} <= one_seed


def test_every_run_is_listed_with_what_it_took(smoke):
    listed = rows(smoke.folder / "runs.csv")
    planned = [(e, run.name) for e, runs in smoke.study.runs.items() for run in runs]
    assert [(row["experiment"], row["run"]) for row in listed] == planned
    for row in listed:
        record = json.loads(
            (smoke.folder / "runs" / row["experiment"] / row["run"] / "record.json").read_text()
        )
        assert (row["done"], row["git_commit"]) == ("True", record["git_commit"])
        assert float(row["seconds"]) > 0


def test_the_end_says_where_the_tables_are(smoke):
    assert "smoke: 7 of 7 runs are in" in smoke.done.stdout
    for experiment in COLLECTED:
        assert f"{smoke.folder / experiment}.md\n" in smoke.done.stdout
    assert list(smoke.study.collected) == COLLECTED
    assert not list(smoke.folder.glob("synchronisation*"))
    assert "FAILED" not in smoke.done.stdout


def test_an_experiment_begins_with_the_network_that_its_run_names(smoke):
    (run,) = smoke.study.runs["filter_similarity"]
    assert smoke.follower.name == run.name
    trained = smoke.folder / "runs/accuracy" / run.network
    assert trained in smoke.runs
    notebook = nbformat.read(smoke.follower / "filter_similarity.ipynb", 4)
    given = dict(notebook.metadata.papermill.parameters)
    outside = {"network": str(trained / "network.pt"), "output": str(smoke.follower)}
    assert given == run.parameters | outside
    record = json.loads((smoke.follower / "record.json").read_text())
    assert record["config"]["tiling"] == "random"
    assert record["config"] == Accuracy.of(**record["config"]).parameters()
    own = {k: v for k, v in run.parameters.items() if k not in ("threads", "scales")}
    assert own.items() <= record["measurement"].items()
    recorded = json.loads((trained / "similarity.json").read_text())["measurements"]
    shown = [(row["epoch"], row["layer"], row["between_tiles"]) for row in record["similarities"]]
    assert shown == [
        (taken["epoch"], row["layer"], row["between_tiles"])
        for taken in recorded
        for row in taken["similarity"]
    ]


def test_the_tables_of_filter_similarity_are_its_records(smoke):
    record = json.loads((smoke.follower / "record.json").read_text())
    for key, name in (("similarities", ""), ("penalties", "_penalty")):
        table = rows(smoke.folder / f"filter_similarity{name}.csv")
        order = ("epoch", "layer") if key == "similarities" else ()
        entries = sorted(record[key], key=lambda row: [row[column] for column in order])
        assert len(table) == len(entries) > 0
        for row, entry in zip(table, entries, strict=True):
            written = {k: "" if v is None else str(v) for k, v in entry.items()}
            assert {k: row[k] for k in entry} == written
            assert row["run"] == smoke.follower.name
            assert (row["tiling"], row["varied"]) == (record["tiling"], "")


def test_the_summary_of_filter_similarity_answers_from_its_tables(smoke):
    text = (smoke.folder / "filter_similarity.md").read_text()
    assert text.startswith(f"# {smoke.study.description}\n")
    last = [row for row in rows(smoke.folder / "filter_similarity.csv") if row["epoch"] == "2"]
    assert len(last) == 2
    ends = sorted(float(row["between_tiles"]) for row in last)
    assert f"mean cosine of {ends[0]:.3f} to {ends[-1]:.3f}" in text
    for row in last:
        number = int(row["layer"].split(".")[1]) + 1
        shown = re.search(rf"^\| convolution {number} +\| 1 +\| (\S+) +\|", text, re.M)
        assert float(shown[1]) == pytest.approx(float(row["between_tiles"]), abs=6e-4)
    assert "**C2a**" in text
    assert last[0]["data_fingerprint"] in text
    for image in re.findall(r"\]\((.*?)\)", text):
        assert (smoke.folder / image).exists()


def test_the_table_of_adversarial_robustness_is_its_record(smoke):
    (run,) = smoke.study.runs["adversarial_robustness"]
    folder = smoke.folder / "runs/adversarial_robustness" / run.name
    kept = {".lock", "SHA256SUMS", "adversarial_robustness.ipynb", "log.txt", "record.json"}
    assert {path.name for path in folder.iterdir()} == kept
    record = json.loads((folder / "record.json").read_text())
    table = rows(smoke.folder / "adversarial_robustness.csv")
    levels = {"published", "adaptive", "gradient_free", "standard"}
    assert {row["level"] for row in table} == levels
    for row, entry in zip(table, record["rows"], strict=True):
        told = {k: v for k, v in entry.items() if k not in BY_IMAGE}
        assert {k: row[k] for k in told} == {
            k: "" if v is None else str(v) for k, v in told.items()
        }
        assert (row["run"], row["tiling"]) == (run.name, "random")
    text = (smoke.folder / "adversarial_robustness.md").read_text()
    clean = 100 * record["rows"][0]["clean_accuracy"]
    assert f"- `random`: clean {clean:.1f} [" in text
    for image in re.findall(r"\]\((.*?)\)", text):
        assert (smoke.folder / image).exists()


def test_attacks_are_transferred_from_the_runs_that_differ_in_their_seed_alone():
    study = load_study(ROOT / "config/quick.yaml")
    trained = {run.name: run.parameters for run in study.runs["accuracy"]}
    attacked = study.runs["adversarial_robustness"]
    assert len(attacked) == 6
    for run in attacked:
        (copy,) = run.copies
        own = trained[run.network]
        assert trained[copy] == own | {"seed": 1 if own["seed"] == 0 else 0}
    assert all(run.copies == () for run in study.runs["fault_tolerance"])


def test_a_finished_study_is_not_run_again(house, smoke):
    log = smoke.folder / "study.log"
    before, logged = mtimes(smoke.folder), log.read_text()
    began = time.monotonic()
    done = execute(house, *command("config/smoke.yaml", smoke.results))
    assert time.monotonic() - began < 60
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smoke: 7 of 7 runs are in" in done.stdout
    after = mtimes(smoke.folder)
    assert after.pop(log) > before.pop(log)
    assert after == before
    assert log.read_text().startswith(logged)


# --- Snakemake by itself ----------------------------------------------------------------------


def test_the_snakefiles_own_command_plans_the_quick_study(house):
    (line,) = re.findall(r"^    (snakemake .*)$", (house / "workflow/Snakefile").read_text(), re.M)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = execute(house, "env", f"PATH={path}", *line.split(), "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = load_study(ROOT / "config/quick.yaml").runs
    assert jobs_of(done.stdout) == {
        **{f"{experiment}_run": len(runs[experiment]) for experiment in WITH_RUNS},
        **{f"{experiment}_table": 1 for experiment in CATALOGUE},
        **ENDS,
    }


# What is done again whenever a run is.
ENDS = {"records": 1, "report": 1}


def jobs_of(plan):
    """Counts of jobs by rule, those of all blocks of a grid together."""
    found = dict(re.findall(r"^(\w+_(?:run|table)(?:_\d+)?|report|records) +(\d+)$", plan, re.M))
    counts: Counter[str] = Counter()
    for rule, count in found.items():  # a plan tells them twice
        counts[re.sub(r"_\d+$", "", rule)] += int(count)
    return counts


@pytest.fixture
def finished(smoke, tmp_path):
    """The options of Snakemake for the finished smoke study."""
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"results": str(smoke.results)}))
    return ["--configfile", "config/smoke.yaml", settings]


def test_another_interpreter_or_a_notebook_merely_saved_is_no_reason_to_train(
    house, finished, tmp_path
):
    os.utime(house / "notebooks/accuracy.ipynb")
    (tmp_path / "env").symlink_to(sys.prefix)
    other = tmp_path / "env" / Path(sys.executable).relative_to(sys.prefix)
    assert "Nothing to be done" in snakemake(house, *finished, python=other)


def plan_without(path, house, finished):
    """What Snakemake would do, job counts by rule, were a file not there."""
    away = path.with_suffix(".away")
    path.rename(away)
    try:
        plan = snakemake(house, *finished)
    finally:
        away.rename(path)
    return plan, jobs_of(plan)


@pytest.mark.parametrize("name", ["record.json", "accuracy.ipynb"])
def test_a_run_that_lost_a_file_is_run_again(house, smoke, finished, name):
    plan, jobs = plan_without(smoke.runs[0] / name, house, finished)
    derived = [f"{name}_table" for name in COLLECTED if CATALOGUE[name].source == "accuracy"]
    again = ["accuracy_run", "accuracy_table", *derived]
    assert jobs == dict.fromkeys(again, 1) | ENDS
    assert f"output: {smoke.runs[0]}" in plan
    assert f"output: {smoke.runs[1]}" not in plan


def test_a_table_that_lost_its_figure_is_collected_again(house, smoke, finished):
    _, jobs = plan_without(smoke.folder / "accuracy.png", house, finished)
    assert jobs == {"accuracy_table": 1, "report": 1}


@pytest.mark.parametrize("name", ["record.json", "filter_similarity.ipynb"])
def test_a_follower_that_lost_a_file_is_run_again_without_its_network(house, smoke, finished, name):
    plan, jobs = plan_without(smoke.follower / name, house, finished)
    assert jobs == {"filter_similarity_run": 1, "filter_similarity_table": 1} | ENDS
    assert f"output: {smoke.follower}" in plan


def test_a_lost_network_is_trained_again_and_what_followed_it_is_redone(house, smoke, finished):
    (run,) = smoke.study.runs["filter_similarity"]
    path = smoke.folder / "runs/accuracy" / run.network / "network.pt"
    _, jobs = plan_without(path, house, finished)
    alone = ("analog_training", "acceleration")  # they have networks of their own
    tables = {f"{experiment}_table": 1 for experiment in COLLECTED if experiment not in alone}
    followers = ("filter_similarity", "fault_tolerance", "adversarial_robustness")
    assert jobs == {f"{name}_run": 1 for name in ("accuracy", *followers)} | tables | ENDS


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_runs_ask_for_their_share_of_a_gpu_where_the_study_says_so(house, tmp_path, profile):
    for percent, asked in ((25, "gpu_percent=25, gpu=1"), (None, None)):
        config = tmp_path / "study.yaml"
        config.write_text(changed(**({"gpu_percent": percent} if percent else {})))
        place = ["--profile", f"profiles/{profile}", *(["-c2"] if profile == "local" else [])]
        plan = snakemake(house, *place, "--configfile", config, "--printshellcmds")
        assert plan.count("rule accuracy_run:") == 2
        assert plan.count(asked) == 2 if asked else "gpu" not in plan


# Starts and ends of stand-ins for runs: how many are there at once?
COUNT = """
import json, os, sys, time
from collections import Counter
from pathlib import Path

folder = Path(sys.argv[2]).parent
if "seed" in json.loads(sys.argv[4]):
    began = time.time()
    time.sleep(1)
    (folder.parent.parent / f"{folder.name}.span").write_text(f"{began} {time.time()}")
"""


@pytest.mark.parametrize(("percent", "at_once"), [(100, 1), (50, 2), (None, 4)])
def test_local_runs_share_a_gpu_by_their_percents(mocked, tmp_path, percent, at_once):
    config = tmp_path / "study.yaml"
    share = {"gpu_percent": percent} if percent else {}
    config.write_text(changed(accuracy__grid=[{"seed": [1, 2, 4, 5]}], **share))
    runner = mocked / "workflow/scripts/run_notebook.py"
    runner.write_text(COUNT + runner.read_text())
    # Snakemake itself: a study that asks for a GPU is refused where there is none.
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"results": str(tmp_path / "results")}))
    done = execute(
        mocked, sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile",
        "--configfile", config, settings, "--profile", "profiles/local", "--cores", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    spans = [
        tuple(map(float, path.read_text().split()))
        for path in (tmp_path / "results/fragile/runs").glob("*.span")
    ]
    assert len(spans) == 4
    assert max(sum(b <= began < e for b, e in spans) for began, _ in spans) == at_once


# --- Kills and failures -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def fragile(house, tmp_path_factory):
    """The fragile study, killed while its good run trained, then started again."""
    results = tmp_path_factory.mktemp("fragile")
    config = write_yaml(results / "fragile.yaml", FRAGILE)
    good, bad = [
        results / "fragile/runs/accuracy" / run.name for run in load_study(config).runs["accuracy"]
    ]
    with (results / "said.txt").open("w") as said:
        first = subprocess.Popen(
            command(config, results), cwd=house, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (good / "resume.pt").exists():
            assert first.poll() is None, (results / "said.txt").read_text()
            assert time.monotonic() < deadline, (results / "said.txt").read_text()
            time.sleep(0.02)
    finally:
        kill_with_descendants(first)
    killed = SimpleNamespace(
        training=load_checkpoint(good / "resume.pt"),
        files={path.name for path in good.iterdir()},
        tables=list((results / "fragile").glob("accuracy*")),
    )
    # As kills in the middle of a write, and between the record and the end, leave them.
    (good / ".part-1-resume.pt").write_bytes(b"half")
    (good / "record.json").write_text("{}")
    done = execute(house, *command(config, results))
    return SimpleNamespace(
        killed=killed, done=done, config=config, results=results, good=good, bad=bad
    )


def test_a_killed_training_goes_on_where_it_was(fragile):
    before = fragile.killed.training["history"]
    assert 1 <= len(before) < 20
    assert "record.json" not in fragile.killed.files
    assert not fragile.killed.tables
    after = json.loads((fragile.good / "curve.json").read_text())["history"]
    assert [row["epoch"] for row in after] == list(range(1, 21))
    # To the last digit of the measured times: these epochs were not trained again.
    assert after[: len(before)] == before


def test_a_killed_study_ends_with_the_tables_of_an_undisturbed_one(fragile, tmp_path, one_thread):
    run = Accuracy.of(**load_study(fragile.config).runs["accuracy"][0].parameters)
    record = run.measure(run.recipe.data.load(), tmp_path / fragile.good.name, progress=False)
    collected = run.collect([record])
    write_collected("accuracy", collected, tmp_path, [record], description="undisturbed")

    def text(folder):
        table = rows(folder / "accuracy.csv")
        for row in table:  # a timing; someone may commit meanwhile; a run by hand has no rules
            del row["train_seconds"], row["git_commit"], row["rules_sha256"]
        return table, (folder / "accuracy_curves.csv").read_bytes()

    assert text(fragile.results / "fragile") == text(tmp_path)


def test_a_restarted_run_sweeps_up(fragile):
    kept = {
        ".lock",
        "SHA256SUMS",
        "accuracy.ipynb",
        "curve.json",
        "log.txt",
        "network.pt",
        "record.json",
        "similarity.json",
    }
    assert {path.name for path in fragile.good.iterdir()} == kept


def test_a_failed_run_is_named_with_its_error_and_its_notebook(fragile):
    assert fragile.done.returncode == 1
    assert f"FAILED accuracy {fragile.bad.name}: DivergedError: the loss is" in fragile.done.stdout
    assert f"notebook {fragile.bad / 'failed.ipynb'}" in fragile.done.stdout
    assert f"FAILED accuracy {fragile.good.name}" not in fragile.done.stdout
    notebook = nbformat.read(fragile.bad / "failed.ipynb", 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "DivergedError" in {output.get("ename") for output in outputs}
    assert not (fragile.bad / "record.json").exists()
    assert not (fragile.bad / "accuracy.ipynb").exists()


def test_the_tables_hold_the_other_runs_and_say_what_is_missing(fragile):
    folder = fragile.results / "fragile"
    assert "fragile: 1 of 2 runs are in" in fragile.done.stdout
    (row,) = rows(folder / "accuracy.csv")
    assert json.loads(row["config"])["learning_rate"] == 0.05
    text = (folder / "accuracy.md").read_text()
    assert text.startswith(f"# {FRAGILE['description']}\n")
    assert "**Incomplete: 1 of 2 runs did not finish.**" in text


def test_only_the_failed_run_is_tried_again(house, fragile):
    before, tables = mtimes(fragile.good), mtimes(fragile.results)
    done = execute(house, *command(fragile.config, fragile.results))
    assert done.returncode == 1
    assert f"FAILED accuracy {fragile.bad.name}: DivergedError" in done.stdout
    assert mtimes(fragile.good) == before
    failed = fragile.bad / "failed.ipynb"
    assert failed.stat().st_mtime_ns > tables[failed]
    assert len(rows(fragile.results / "fragile/accuracy.csv")) == 1


# In the places of what runs notebooks, collects and exports, to see the workflow alone.
RUN = """
import json, sys, zipfile
from collections import Counter
from pathlib import Path

parameters = json.loads(sys.argv[4])
if "results" in parameters:
    for name in ("claims.csv", "claims.md"):
        Path(parameters["output"], name).touch()
    Path(sys.argv[2]).touch()
    sys.exit()
if "network" in parameters:
    assert Path(parameters["network"]).name == "network.pt"
    assert Path(parameters["network"]).exists()
elif parameters["seed"] in (0, 3):
    sys.exit("no")
Path(sys.argv[2]).write_text('{"cells": []}')
for name in ("record.json", "curve.json", "similarity.json"):
    Path(sys.argv[2]).with_name(name).write_text("{}")
zipfile.ZipFile(Path(sys.argv[2]).with_name("network.pt"), "w").close()
"""


@pytest.fixture
def mocked(house, tmp_path):
    """A house whose runs and collections take no time: runs of seeds 0 and 3 fail."""
    shutil.copytree(house, tmp_path / "house", ignore=shutil.ignore_patterns(".snakemake"))
    (tmp_path / "house/workflow/scripts/run_notebook.py").write_text(RUN)
    (tmp_path / "house/workflow/scripts/collect.py").write_text(COLLECT)
    mock_report(tmp_path / "house")
    return tmp_path / "house"


def test_failures_stop_no_other_run_and_a_failed_collection_is_told(mocked, tmp_path):
    # One at a time, and first and last fail: in either order one is left to run after a failure.
    config = tmp_path / "study.yaml"
    config.write_text(changed(accuracy__grid=[{"seed": [0, 1, 2, 3]}]))
    start = command(config, tmp_path / "results", "--cores", "1", "--name", "mine")
    runs = [run.name for run in load_study(config).runs["accuracy"]]
    folder = tmp_path / "results/mine"

    done = execute(tmp_path / "house", *start)
    assert done.returncode == 1
    assert not (tmp_path / "results/fragile").exists()
    assert "mine: 2 of 4 runs are in" in done.stdout
    assert re.findall(r"FAILED accuracy (\S+):", done.stdout) == [runs[0], runs[3]]
    arguments = (folder / "accuracy.md").read_text()
    assert arguments.endswith(" --missing 2")
    assert [name in arguments for name in runs] == [False, True, True, False]
    told = [line for line in done.stdout.splitlines() if line.startswith("progress: ")]
    assert told[0] == "progress: 0 of 4 runs done, 0 running, 0 failed, 4 left; started"
    assert told[-1].startswith("progress: 2 of 4 runs done, 0 running, 2 failed, 0 left; ended")
    logged = (folder / "study.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in logged] == told

    (folder / "stop").touch()  # see COLLECT
    (folder / "accuracy.csv").unlink()
    done = execute(tmp_path / "house", *start)
    assert done.returncode == 1
    assert f"FAILED to collect the tables of {folder}" in done.stdout
    assert re.findall(r"FAILED accuracy (\S+):", done.stdout) == [runs[0], runs[3]]
    assert "are in" not in done.stdout


def test_what_follows_a_failed_run_is_named_and_the_others_finish(mocked, tmp_path):
    config = tmp_path / "study.yaml"
    config.write_text(changed(accuracy__grid=[{"seed": [0, 1]}], filter_similarity=FOLLOWER))
    study = load_study(config)
    trained = [run.name for run in study.runs["accuracy"]]
    followers = {run.name: run.network for run in study.runs["filter_similarity"]}
    assert list(followers.values()) == trained
    lost = [name for name, network in followers.items() if network == trained[0]]

    done = execute(mocked, *command(config, tmp_path / "results"))
    assert done.returncode == 1
    assert "fragile: 2 of 4 runs are in" in done.stdout
    folder = tmp_path / "results/fragile"
    for experiment in ("accuracy", "filter_similarity"):
        assert f"{folder / experiment}.md\n" in done.stdout
    failed = re.findall(r"FAILED (\S+) (\S+): (.*)", done.stdout)
    reason = f"there is no network: accuracy run {trained[0]} failed"
    assert [place[:2] for place in failed] == [
        ("accuracy", trained[0]), *(("filter_similarity", name) for name in lost)
    ]  # fmt: skip
    assert {why for *_, why in failed[1:]} == {reason}
    assert "2 of 4 runs done, 0 running, 2 failed, 0 left; ended" in done.stdout
    arguments = (folder / "filter_similarity.md").read_text()
    assert arguments.endswith(" --missing 1")
    assert [name in arguments for name in followers] == [name not in lost for name in followers]


def test_followers_that_all_lack_their_network_do_not_keep_the_others_from_their_tables(
    mocked, tmp_path
):
    config = tmp_path / "study.yaml"
    follower = FOLLOWER | {"networks": {"seed": [0]}}
    config.write_text(changed(accuracy__grid=[{"seed": [0, 1]}], filter_similarity=follower))
    done = execute(mocked, *command(config, tmp_path / "results"))
    assert done.returncode == 1
    assert "fragile: 1 of 3 runs are in" in done.stdout
    assert len(re.findall(r"FAILED \S+ \S+: ", done.stdout)) == 2
    folder = tmp_path / "results/fragile"
    assert f"{folder}/accuracy.md\n" in done.stdout
    assert f"{folder}/filter_similarity.md" not in done.stdout
    ends = {"runs.csv", "records.jsonl.xz", "claims.csv", "claims.md", "report.html", "study.log"}
    ends.add("SHA256SUMS")
    left = {*CATALOGUE["accuracy"].files, *CATALOGUE["tiles_accuracy"].files}
    assert {path.name for path in folder.glob("[!.]*") if path.is_file()} == ends | left


@pytest.fixture
def notebook_run(tmp_path, monkeypatch):
    """Execute a notebook in a folder, with another function in papermill's place."""

    def run(execute_notebook):
        folder = tmp_path / "run"
        arguments = ["run_notebook", "some.ipynb", str(folder / "some.ipynb")]
        monkeypatch.setattr(sys, "argv", [*arguments, "--parameters", '{"threads": 3, "seed": 5}'])
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
        run_notebook.main()

    run.folder = tmp_path / "run"
    return run


def test_a_notebook_runs_alone_in_its_folder_with_its_parameters(notebook_run):
    folder = notebook_run.folder
    folder.mkdir()
    for stale in ("failed.ipynb", "error.json", ".part-1-resume.pt"):
        (folder / stale).touch()

    def look(notebook, running, parameters, **options):
        assert parameters == {"threads": 3, "seed": 5, "output": str(folder)}
        assert os.environ["OMP_NUM_THREADS"] == "3"
        # Ports would be a race between kernels that start at once.
        assert options["config"].KernelManager.transport == "ipc"
        assert {path.name for path in folder.iterdir()} == {".lock", ".part-error"}
        second = os.open(folder / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(second)
        running.write_text("executed")

    notebook_run(look)
    assert {path.name for path in folder.iterdir()} == {".lock", "some.ipynb"}


def test_a_kernel_that_dies_is_a_failed_run(notebook_run):
    def die(notebook, running, parameters, **options):
        running.write_text("half")
        raise MemoryError("kernel died")

    with pytest.raises(SystemExit, match=r"some\.ipynb failed: MemoryError: kernel died"):
        notebook_run(die)
    folder = notebook_run.folder
    assert {path.name for path in folder.iterdir()} == {".lock", "failed.ipynb", "error.json"}
    assert json.loads((folder / "error.json").read_text()) == {
        "error": "MemoryError: kernel died", "attempts": 1
    }  # fmt: skip


@pytest.mark.parametrize("left", [None, "", "{}"])
def test_a_run_that_left_no_error_is_reported_with_its_log(tmp_path, capsys, left):
    study = Study.of(FRAGILE)
    for run in study.runs["accuracy"]:
        place = tmp_path / "runs/accuracy" / run.name
        place.mkdir(parents=True)
        (place / "log.txt").touch()
        if left is not None:
            (place / "error.json").write_text(left)
    run_study.report(study, tmp_path, run_study.failures(study, tmp_path), collected=False)
    said = capsys.readouterr().out
    for run in study.runs["accuracy"]:
        assert f"FAILED accuracy {run.name}: it left no error; see its log.txt" in said
        assert f"log      {tmp_path / 'runs/accuracy' / run.name / 'log.txt'}" in said
    assert "are in" not in said


# --- Studies that are refused -----------------------------------------------------------------


def changed(**changes):
    """The fragile study as YAML text, changed: keys are paths, None deletes."""
    config = json.loads(json.dumps(FRAGILE))
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = config
        for key in parents:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return yaml.safe_dump(config)


COMMON, GRID = "accuracy__common__", "accuracy__grid"
FOLLOWER = {"networks": {}, "common": {"images": 8, "draws": 2, "probes": 2}}


def following(**changes):
    """The fragile study with an experiment on its networks, changed."""
    return changed(filter_similarity=FOLLOWER | changes)


REFUSED = {
    "empty file": ("", ["None is not of type 'object'", "allowed keys: study, description"]),
    "no YAML": ("study: [", ["study.yaml is no YAML"]),
    "no text": (b"study: \xff\xfe", ["study.yaml is no YAML"]),
    "a list": ("- study", ["is not of type 'object'"]),
    "unknown key": (changed(extra=1), ["'extra'", "allowed keys: study, description, threads"]),
    "unknown key below": (changed(accuracy__grids=[]), ["'grids'", "allowed keys: common, grid"]),
    "missing key": (changed(threads=None), ["'threads' is a required property"]),
    "missing common": (changed(accuracy__common=None), ["$.accuracy", "'common' is a required"]),
    "empty grid": (changed(accuracy__grid=[]), ["$.accuracy.grid"]),
    "empty block": (changed(accuracy__grid=[{}]), ["$.accuracy.grid[0]"]),
    "no values": (changed(accuracy__grid=[{"seed": []}]), ["$.accuracy.grid[0].seed"]),
    "no list": (changed(accuracy__grid=[{"tiling": "none"}]), ["grid[0].tiling", "'array'"]),
    "study's name": (changed(study="../up"), ["$.study", "'../up' does not match"]),
    "no threads": (changed(threads=0), ["$.threads", "0 is less than the minimum of 1"]),
    "unknown parameter": (
        changed(accuracy__common__learning_rat=0.1),
        ["accuracy.ipynb has no parameter learning_rat to set", "learning_rate, momentum"],
    ),
    "unknown parameter in the grid": (
        changed(accuracy__grid=[{"seed": [0]}, {"sed": [0, 1]}]),
        ["accuracy.ipynb has no parameter sed to set", ", seed, device"],
    ),
    "parameter that is a number": (
        changed(accuracy__grid=[{5: [0]}]),
        ["accuracy.ipynb has no parameter 5 to set", ", seed, device"],
    ),
    "no share of a GPU": (changed(gpu_percent=0), ["$.gpu_percent", "less than the minimum of 1"]),
    "more than one GPU": (changed(gpu_percent=101), ["$.gpu_percent", "maximum of 100"]),
    "the study's threads": (changed(accuracy__common__threads=2), ["no parameter threads to set"]),
    "the study's output": (changed(accuracy__grid=[{"output": ["x"]}]), ["no parameter output"]),
    "date": ("study: s\ndescription: d\nthreads: 1\naccuracy:\n  common: {}\n  grid:\n"
             "    - seed: [2024-01-01]\n", ["grid[0].seed[0]", "datetime.date(2024, 1, 1)"]),
    "mapping": (changed(accuracy__common__n_tiles={"a": 1}), ["$.accuracy.common.n_tiles"]),
    "unknown tiling": (
        changed(accuracy__grid=[{"tiling": ["random", "diagonal"]}]),
        ["tiling: got 'diagonal', allowed: none, image, alternate, random"],
    ),
    "too many tiles": (
        changed(accuracy__common__n_tiles=[16, 257, 1]),
        ["n_tiles: got 257 for convolution 2, allowed: 1 to 256, its patches"],
    ),
    "values that are no lists": (
        changed(accuracy__grid=[{"n_tiles": [16, 4, 1]}]),
        ["n_tiles: got 16, expected a sequence of numbers"],
    ),
    "no epochs": (changed(accuracy__common__epochs=0), ["epochs: got 0, allowed: at least 1"]),
    "text for a number": (
        changed(accuracy__grid=[{"learning_rate": [0.05, "5e-2"]}]),
        ["learning_rate: got '5e-2', expected a number"],
    ),
    "infinite number": (
        changed(accuracy__grid=[{"learning_rate": [float("inf")]}]), ["learning_rate: got inf"]
    ),
    "more images than there are": (
        changed(accuracy__common__n_train=4001), ["n_train: got 4001, allowed: 1 to 4000"]
    ),
    "batch above the images": (
        changed(accuracy__common__batch_size=513),
        ["batch_size: got 513, but MNIST", "has 512 training images"],
    ),
    "unknown data": (
        changed(accuracy__common__dataset="no/such/folder"),
        ["got 'no/such/folder', allowed: mnist5k, cifar10", "or the path of a folder"],
    ),
    "data in a list": (
        changed(accuracy__common__dataset=["mnist5k"]), ["got ['mnist5k'], expected a name"]
    ),
    "follower of no network": (
        changed(filter_similarity={"common": {}}), ["'networks' is a required property"]
    ),
    "unknown key of a follower": (
        following(networks_={}), ["'networks_'", "allowed keys: networks, common, grid"]
    ),
    "networks that are no lists": (
        following(networks={"tiling": "random"}), ["$.filter_similarity.networks.tiling"]
    ),
    "networks that nothing matches": (
        following(networks={"learning_rate": [0.05, 1e6], "tiling": ["image"]}),
        ["filter_similarity: networks: no run of the accuracy experiment has", "['image']"],
    ),
    "networks by an unknown parameter": (
        following(networks={"tilling": ["random"]}),
        ["filter_similarity: networks: notebook accuracy.ipynb has no parameter tilling"],
    ),
    "unknown parameter of a follower": (
        following(common={"image": 8}),
        ["filter_similarity.ipynb has no parameter image to set", ", images, draws, probes"],
    ),
    "the study's network": (
        following(common={"network": "network.pt"}), ["has no parameter network to set"]
    ),
    "the notebook's own training": (
        following(grid=[{"seed": [0], "tiling": ["image"], "epochs": [3]}]),
        ["filter_similarity: epochs, tiling is for a network of the notebook's own",
         "a study can set device, draws, images, "],
    ),
    "bad value of a follower": (
        following(common={"draws": 1}), ["draws: got 1, allowed: at least 2"]
    ),
    "device of a follower": (
        following(common={"device": "tpu"}), ["device: got 'tpu', allowed: auto, cpu"]
    ),
    "more images than a network was trained on": (
        following(common={"images": 513}),
        ["images: got 513, but MNIST", "has 512 training images"],
    ),
    "a network without tiles": (
        changed(accuracy__common__tiling="none", filter_similarity=FOLLOWER),
        ["network: no layer has several tiles"],
    ),
}  # fmt: skip


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """Start a study that must be refused; return what it says, having left nothing behind."""

    def start(text, *options, results=tmp_path / "results"):
        config = tmp_path / "study.yaml"
        if text is not None:
            config.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.chdir(tmp_path)  # main goes to the repository's root: come back after it
        arguments = ["run_study", config, "--results", results, *options]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        monkeypatch.setattr(run_study, "run_snakemake", lambda *_, **__: pytest.fail("it started"))
        with pytest.raises(SystemExit) as caught:
            run_study.main()
        assert isinstance(caught.value.code, str)  # a message: exit code 1
        assert caught.value.code.startswith("study not started: ")
        assert not list(tmp_path.rglob("runs"))
        return caught.value.code

    return start


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_study_is_refused(refusal, tmp_path, text, words):
    said = refusal(text)
    for word in words:
        assert word in said
    assert not (tmp_path / "results").exists()


def test_the_study_that_the_bad_ones_change_is_good():
    run_study.check_runs(Study.of(FRAGILE))
    run_study.check_runs(Study.of(yaml.safe_load(following())))


def test_a_missing_file_is_refused_with_the_studies_there_are(refusal, tmp_path):
    said = refusal(None)
    assert str(tmp_path / "study.yaml") in said
    assert said.endswith(": " + ", ".join(path.stem for path in STUDIES))


def test_a_folder_with_a_damaged_parquet_file_is_refused(refusal, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    said = refusal(changed(), "--data", data)
    named = Path(study_module.from_checkout(str(data)))
    assert f"{named / 'train-00000-of-00001.parquet'}: not a readable Parquet file" in said


def test_a_folder_beside_the_checkout_is_named_from_there(monkeypatch):
    """A run has one name, and a record no path of a machine, however its data's folder is given."""
    runs = Study.of(yaml.safe_load(changed()), str(ROOT.parent / "shared/data/x")).runs["accuracy"]
    assert {run.parameters["dataset"] for run in runs} == {"../shared/data/x"}
    monkeypatch.setattr(study_module, "ROOT", Path("/home/one/checkout"))
    for given, named in {
        None: None,
        "mnist5k": "mnist5k",
        "../shared/data/x": "../shared/data/x",
        "/home/one/shared/data/x": "../shared/data/x",
        "/home/one/checkout/data/x": "data/x",
        "/home/x": "/home/x",
        "/data/x": "/data/x",
    }.items():
        assert study_module.from_checkout(given) == named


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(refusal):
    said = refusal(changed(accuracy__common__device="cuda"))
    assert "device: got 'cuda', allowed: auto, cpu (this machine has no usable GPU)" in said


def test_results_that_cannot_be_written_are_refused(refusal, tmp_path):
    (tmp_path / "file").touch()
    said = refusal(changed(), results=tmp_path / "file/results")
    assert f"results: cannot write to {tmp_path / 'file/results/fragile'}" in said


def test_no_cores_are_refused(refusal):
    assert "cores: got 0, allowed: at least 1" in refusal(changed(), "--cores", 0)


def test_a_name_that_is_no_folders_is_refused(refusal):
    assert "$.study: '../mine' does not match" in refusal(changed(), "--name", "../mine")


def test_an_unknown_profile_is_refused_with_those_there_are(refusal):
    said = refusal(changed(), "--profile", "../local")
    assert said.endswith("profile: got '../local', allowed: local, slurm")


def test_cores_of_this_machine_are_refused_where_runs_are_elsewhere(refusal):
    said = refusal(changed(), "--profile", "slurm", "--cores", 2)
    assert "cores: got 2, but they are of this machine and profile slurm runs elsewhere" in said


def test_a_second_study_on_the_same_folder_is_refused(refusal, tmp_path):
    folder = tmp_path / "results/fragile"
    folder.mkdir(parents=True)
    with run_study.sole_user(folder):
        assert f"another one is running in {folder}" in refusal(changed())
    with run_study.sole_user(folder):
        pass  # let go of


@pytest.mark.parametrize("case", ["unknown parameter", "locked"])
def test_refusals_reach_the_command_line(house, tmp_path, case):
    folder = tmp_path / "results/fragile"
    folder.mkdir(parents=True)
    text, word = (changed(), "another one is running") if case == "locked" else REFUSED[case]
    config = tmp_path / "study.yaml"
    config.write_text(text)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = execute(house, *command(config, tmp_path / "results"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("study not started: ")
    assert len(done.stderr.splitlines()) == 1
    assert (word if case == "locked" else word[0]) in done.stderr
    assert [path.name for path in folder.iterdir()] == [".lock"]


# --- Names of runs ----------------------------------------------------------------------------


def study_of(common, *grid, threads=1, data=None):
    experiment = {"common": common, "grid": list(grid)}
    config = {"study": "s", "description": "d", "threads": threads, "accuracy": experiment}
    return Study.of(config, data).runs["accuracy"]


def parameters_of(notebook):
    return papermill.inspect_notebook(str(notebook))


def test_every_parameter_changes_the_name():
    names = [study_of({}, {"seed": [0]})[0].name, study_of({}, {"seed": [0]}, threads=2)[0].name]
    for parameter in set(parameters_of(ROOT / "notebooks/accuracy.ipynb")) - {"threads", "output"}:
        for value in ("one", [1, 2]):
            common = {} if parameter == "seed" else {"seed": 0}
            names.append(study_of(common, {parameter: [value]})[0].name)
    assert len(set(names)) == len(names)


def test_the_same_parameters_have_the_same_name_on_every_day():
    (run,) = study_of({"epochs": 2, "n_tiles": [4, 2, 1]}, {"tiling": ["image"], "seed": [3]})
    (other,) = study_of({"seed": 3}, {"tiling": ["image"], "n_tiles": [[4, 2, 1]], "epochs": [2]})
    assert run.name == other.name
    assert run.parameters == other.parameters
    # Where finished runs are looked for: under another name they would be trained again.
    assert run.name == "image-3-f74c1245"


def test_a_grid_is_the_union_of_its_products_without_repetition():
    runs = study_of(
        {"epochs": 2},
        {"tiling": ["none", "image"], "seed": [0, 1]},
        {"tiling": ["image", "random"], "seed": [1]},
    )
    got = [(run.parameters["tiling"], run.parameters["seed"]) for run in runs]
    assert got == [("none", 0), ("none", 1), ("image", 0), ("image", 1), ("random", 1)]
    assert all(run.parameters["epochs"] == 2 and run.parameters["threads"] == 1 for run in runs)
    assert len({run.name for run in runs}) == 5


def test_data_of_the_command_line_replace_those_of_every_run():
    grid = {"dataset": ["mnist5k", "svhn"], "seed": [0, 1]}
    runs = study_of({"dataset": "cifar100"}, grid, {"tiling": ["none"]}, data="some/folder")
    assert [run.parameters["dataset"] for run in runs] == ["some/folder"] * 3
    assert len({run.name for run in runs} | {run.name for run in study_of({}, grid)}) == 7


def followers_of(networks, common=None, **more):
    config = yaml.safe_load(
        changed(accuracy__grid=[{"tiling": ["none", "random"], "seed": [0, 1]}])
    )
    common = FOLLOWER["common"] if common is None else common
    follower = {"networks": networks, "common": common} | more
    return Study.of(config | {"filter_similarity": follower})


def test_a_follower_is_named_for_its_network_and_its_own_parameters():
    study = followers_of({"tiling": ["random"], "seed": [1, 7]}, grid=[{"seed": [3, 4]}])
    (network,) = [run for run in study.runs["accuracy"] if run.name.startswith("random-1-")]
    first, second = study.runs["filter_similarity"]
    for run, seed in ((first, 3), (second, 4)):
        assert run.network == network.name
        assert run.parameters == FOLLOWER["common"] | {"seed": seed, "threads": 1}
        assert re.fullmatch(re.escape(network.name) + "-[0-9a-f]{8}", run.name)
    assert first.name != second.name
    assert study.n_runs == 6
    assert all(run.network is None for run in study.runs["accuracy"])
    (other,) = followers_of({"seed": [1], "tiling": ["random"]}, {"seed": 3}).runs[
        "filter_similarity"
    ]
    assert other.name.startswith(network.name)
    assert other.name not in {first.name, second.name}


def test_no_condition_takes_every_network_and_defaults_count_as_given():
    names = [run.name for run in followers_of({}).runs["accuracy"]]
    for networks in ({}, {"pooling": ["max", "avg"]}, {"n_tiles": [[16, 4, 1]]}):
        taken = followers_of(networks).runs["filter_similarity"]
        assert [run.network for run in taken] == names
    with pytest.raises(ValueError, match="no run of the accuracy experiment has"):
        followers_of({"pooling": ["avg"]})


def test_trainings_go_first_and_followers_in_the_order_of_their_networks(house, tmp_path):
    """Of a grid in blocks: whole seeds of networks, then what each needs, as Snakemake plans it."""
    path = tmp_path / "study.yaml"
    config = yaml.safe_load(following())
    config["accuracy"]["grid"] = [{"tiling": ["none", "random"], "seed": [s]} for s in (7, 8)]
    path.write_text(yaml.safe_dump(config))
    plan = snakemake(house, "--configfile", path, "--cores", "1", "tables")
    jobs = re.findall(
        r"rule (\w+_run(?:_\d)?):.*?wildcards: .*?run=(\S+).*?priority: (\d+)", plan, re.S
    )
    ranks = {}
    for rule, run, priority in jobs:
        ranks.setdefault(int(priority), set()).add((rule.split("_run")[0], run.split("-")[1]))
    assert [ranks[rank] for rank in sorted(ranks, reverse=True)] == [
        {("accuracy", "7")}, {("accuracy", "8")},
        {("filter_similarity", "7")}, {("filter_similarity", "8")},
    ]  # fmt: skip


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_here_are_good(path):
    study = load_study(path)
    assert study.name == path.stem
    assert study.runs["accuracy"]


# --- Notebooks --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_one_cell_of_parameters_each_with_a_comment(path):
    notebook = nbformat.read(path, 4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    heads, lines = [], []
    for line in cell.source.splitlines():
        (heads if line.startswith("# ") else lines).append(line)
    for line in lines:
        assert re.fullmatch(r"\w+ = .+  # \S.*", line), line
    assert cell.source.startswith(heads[0])  # every parameter has its group
    names = [line.partition(" = ")[0] for line in lines]
    assert list(parameters_of(path)) == names
    assert 'output = ""' in cell.source  # run by hand, it writes nothing


def test_the_accuracy_notebook_has_every_parameter_of_its_run():
    names = set(parameters_of(ROOT / "notebooks/accuracy.ipynb"))
    assert names == {*Accuracy.names(), "output"}
