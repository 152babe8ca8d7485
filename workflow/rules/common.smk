# What all rules share: the study, its folders, and what its runs may take.

import json
import math
import os
import shlex
import sys

sys.path.insert(0, os.path.join(workflow.basedir, "scripts"))
from study import Study

from rapa_lib.experiments.catalogue import CATALOGUE

DATA = config.pop("data", None)
RESULTS = config.pop("results", "results")
# Collect what is there, although runs are missing: they failed.
PARTIAL = config.pop("partial", False)

study = Study.of(config, DATA)
FOLDER = f"{RESULTS}/{study.name}"
# The hash of what tuning chose goes into every record. No input of the rules: it is committed, and
# a study whose records have another is not started.
CHOSEN = f"--chosen {shlex.quote(study.chosen)}" if study.chosen else ""
RUN = f"{FOLDER}/runs/{{experiment}}/{{run}}"
RUNS = {
    experiment: {run.name: run for run in runs} for experiment, runs in study.runs.items()
}
BLOCKS = {}
for experiment, runs in study.runs.items():
    for run in runs:
        BLOCKS.setdefault((experiment, run.block), []).append(run.name)
SCRIPTS = "workflow/scripts"
# Python on the script that is named next, forked from the nursery if there is one. Not a parameter
# of the rules: another interpreter is no reason to train again.
BORN = f"{shlex.quote(sys.executable)} -S -I {SCRIPTS}/nursery.py run"
# The names are those of rapa_lib/experiments/archive.py, which would load pandas in every job.
ARCHIVE, RESTORED = "records.jsonl.xz", "restored"


def collected(experiment):
    """The folders of an experiment's runs, or of the runs that it is derived from."""
    source = study.collected[experiment]
    folders = [f"{FOLDER}/runs/{source}/{run}" for run in RUNS[source]]
    return [f for f in folders if not PARTIAL or os.path.exists(f"{f}/record.json")]


def wanted(folder):
    """The files of a finished run that must be there; of a restored one no more than records."""
    experiment = folder.split("/")[-2]
    left = ("record.json", *CATALOGUE[experiment].leaves, f"{experiment}.ipynb")
    if os.path.exists(f"{folder}/{RESTORED}"):
        left = [name for name in left if name.endswith(".json")]
    return [f"{folder}/{name}" for name in left]


def files(experiment):
    """What an experiment leaves in the study's folder."""
    return [f"{FOLDER}/{name}" for name in CATALOGUE[experiment].files]


# Where no run of an experiment is in, there is nothing to collect.
TABLED = [experiment for experiment in study.collected if collected(experiment)]

# A run stops itself at its limits and says so. A cluster, which would kill it unexplained, gives
# more: it also counts the processes around the notebook, and their start on a slow file system.
SPARE_MINUTES, SPARE_MB = 15, 2000


def resources(experiment):
    """What a run may take: for Snakemake, and as options of run_notebook.py."""
    limits = study.limits[experiment]

    def options(wildcards, attempt):
        given = {"minutes": limits.minutes, "memory-gb": limits.memory_gb}
        words = [f"--{name} {value}" for name, value in given.items() if value is not None]
        return " ".join([f"--attempt {attempt}", *words])

    taken = {"options": options}
    if limits.minutes is not None:
        taken["runtime"] = math.ceil(limits.minutes) + SPARE_MINUTES
    if limits.memory_gb is not None:
        taken["mem_mb"] = lambda wildcards, attempt: (
            math.ceil(1000 * limits.memory_gb * attempt) + SPARE_MB
        )
    if study.gpu_percent:  # the local profile shares a GPU by percents, clusters hand out whole ones
        taken |= {"gpu_percent": study.gpu_percent, "gpu": 1}
    return taken
