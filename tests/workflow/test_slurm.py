"""A study on a real Slurm of one node, started here for it: ``make test-slurm``."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml
from workflow_house import command, execute, kill_with_descendants, tables, write_yaml

pytestmark = pytest.mark.slurm

DAEMONS = ["munged", "slurmctld", "slurmd"]
PROGRAMS = [*DAEMONS, "mungekey", "sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun"]

# One node, which is this machine, and no accounting.
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
MinJobAge=600
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def until(happened, seconds, what):
    """Wait for something; fail with what there is to say if it does not happen."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            pytest.fail(what())
        time.sleep(0.2)


def free_ports(n):
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in with_ports]
    for one in with_ports:
        one.close()
    return ports


@pytest.fixture(scope="module")
def slurm():
    """The environment of a Slurm of this machine alone, whose commands are in its ``PATH``."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
        pytest.skip(
            f"Slurm is not installed, there is no {', '.join(missing)}; "
            "on Debian: apt install slurm-wlm munge"
        )
    # Short, for a socket's path is; and munge trusts no folder that others may not enter.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    for name in ("bin", "state", "spool"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(
        folder=folder, host=socket.gethostname().split(".")[0], user=getpass.getuser(),
        ports=free_ports(2), cpus=os.cpu_count(),
        megabytes=int(0.9 * psutil.virtual_memory().total / 2**20),
    ))  # fmt: skip
    # Snakemake's job steps drop SLURM_CONF, for a cluster's lies where Slurm looks for it.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={config} exec {shutil.which("srun", path=path)} "$@"\n')
    srun.chmod(0o755)
    environment = os.environ | {"PATH": f"{srun.parent}:{path}", "SLURM_CONF": str(config)}
    subprocess.run(
        ["mungekey", "--create", f"--keyfile={folder}/munge.key"], env=environment, check=True
    )
    daemons = []

    def start(name, *options):
        with (folder / f"{name}.log").open("w") as log:
            daemons.append(subprocess.Popen(
                [name, *options], env=environment, stdout=log, stderr=log, start_new_session=True
            ))  # fmt: skip

    def logs():
        texts = [f"{name}:\n{(folder / f'{name}.log').read_text()}" for name in DAEMONS
                 if (folder / f"{name}.log").exists()]  # fmt: skip
        return "\n".join(texts)

    def idle():
        asked = subprocess.run(
            ["sinfo", "--noheader", "--format=%t"], env=environment, capture_output=True, text=True
        )
        return asked.stdout.strip() == "idle"

    try:
        start(
            "munged", "--foreground", f"--key-file={folder}/munge.key",
            f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
            f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munged.messages",
        )  # fmt: skip
        until((folder / "munge.socket").exists, 20, logs)
        start("slurmctld", "-D")
        start("slurmd", "-D")
        until(idle, 60, logs)
        yield environment
    finally:
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=environment, check=False)
        for daemon in reversed(daemons):
            kill_with_descendants(daemon)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def clustered(house, slurm):
    """Run a study as Slurm's jobs; its profile is ours, where there is no accounting."""
    path = house / "profiles/slurm/config.yaml"
    profile = yaml.safe_load(path.read_text())
    profile |= {
        "slurm-status-command": "squeue",
        "slurm-init-seconds-before-status-checks": 2,
        "seconds-between-status-checks": 2,
        "latency-wait": 10,
    }
    write_yaml(path, profile)

    def run(config, results):
        start = command(config, results, "--profile", "slurm")
        return execute(house, *start, environment=slurm, seconds=900)

    return run


def test_a_study_run_by_slurm_has_the_tables_of_a_local_one(clustered, slurm, smoke, tmp_path):
    done = clustered("config/smoke.yaml", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tables(tmp_path / "smoke") == tables(smoke.folder)
    assert (tmp_path / "smoke/report.html").exists()
    told = subprocess.run(
        ["scontrol", "show", "jobs", "--oneliner"], env=slurm, capture_output=True, text=True
    ).stdout.splitlines()
    completed = [job for job in told if "JobState=COMPLETED" in job]
    # At least every run was a job, with the time of its limits and what there is to spare.
    assert sum("TimeLimit=00:45:00" in job for job in completed) >= smoke.study.n_runs, told


def test_what_slurm_itself_refuses_is_named_and_the_rest_completes(clustered, house, tmp_path):
    study = yaml.safe_load((house / "config/smoke.yaml").read_text())
    for experiment in ("fault_tolerance", "adversarial_robustness", "analog_training"):
        del study[experiment]
    study["accuracy"]["grid"] = [{"tiling": ["random"], "seed": [0]}]
    study["acceleration"]["limits"] = {"memory_gb": 1_000_000}  # no node has it
    config = write_yaml(tmp_path / "study.yaml", study | {"study": "greedy"})
    done = clustered(config, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED acceleration" in done.stdout
    assert "greedy: 2 of 3 runs are in" in done.stdout
    assert (tmp_path / "greedy/report.html").exists()
