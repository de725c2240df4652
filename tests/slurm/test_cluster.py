"""What SLURM itself does with jobs, nodes and signals, as the scripts of slurm/ and the docs take it to be."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cluster import MESSAGE_TIMEOUT_S, SLURMD_TIMEOUT_S, Cluster, wait_for

pytestmark = pytest.mark.slurm


def tasks(cluster: Cluster, job: str) -> dict[str, int]:
    """Of the tasks that have said so, in the order they did: the node each runs on, and its process."""
    return {node: int(pid) for node, pid in re.findall(r"task \d+ of \d+ on (\w+) is (\d+)", cluster.output(job))}


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_job_on_two_nodes_runs_a_task_on_each(cluster: Cluster, script: Path) -> None:
    job = cluster.sbatch("-N2", str(script), "0")
    ended = cluster.wait_for_job(job, "COMPLETED")
    assert (ended["NumNodes"], ended["Restarts"], ended["ExitCode"]) == ("2", "0", "0:0")
    said = sorted(re.findall(r"task (\d) of (\d) on (\w+)", cluster.output(job)))
    assert said == [("0", "2", "n1"), ("1", "2", "n2")]


def test_a_requeued_job_is_asked_to_end_and_starts_again_with_its_number(cluster: Cluster, script: Path) -> None:
    job = cluster.sbatch("-N2", str(script), "1")
    wait_for(lambda: len(tasks(cluster, job)) == 2, "the tasks to start")
    first = tasks(cluster, job)
    cluster.call("scontrol", "requeue", job)
    cluster.restart_now(job)
    ended = cluster.wait_for_job(job, "COMPLETED")
    said = cluster.output(job)
    assert ended["Restarts"] == "1"
    assert said.count("attempt 0") == said.count("attempt 1") == 1 and said.count("asked to end") == 2
    assert not any(map(alive, first.values()))


def test_a_warning_before_the_time_limit_reaches_the_tasks_alone(cluster: Cluster, tmp_path: Path) -> None:
    """SLURM looks every half minute, so it may come up to a minute early."""
    script = tmp_path / "job.sh"
    waiting = "trap 'echo warned; exit 0' USR1; for i in {1..900}; do sleep 0.1; done"
    script.write_text(f'#!/bin/bash\nsrun bash -c "{waiting}"')
    job = cluster.sbatch("-N2", "--time=1", "--signal=USR1@55", str(script))
    cluster.wait_for_job(job, "COMPLETED")
    assert cluster.output(job).count("warned") == 2


def test_a_job_of_a_dead_node_goes_back_into_the_queue(cluster: Cluster, script: Path) -> None:
    job = cluster.sbatch("-N2", str(script), "1")
    wait_for(lambda: len(tasks(cluster, job)) == 2, "the tasks to start")
    first = tasks(cluster, job)
    cluster.kill_node("n2")
    assert not alive(first["n2"]) and not cluster.processes("n2")
    cluster.wait_for_nodes("DOWN*", nodes=["n2"], within=4 * SLURMD_TIMEOUT_S)
    cluster.wait_for_job(job, "PENDING")
    assert not alive(first["n1"]) and "asked to end" in cluster.output(job)
    cluster.start_slurmd("n2")
    cluster.wait_for_nodes()
    cluster.restart_now(job)
    assert cluster.wait_for_job(job, "COMPLETED")["Restarts"] == "1"


def test_a_job_does_not_notice_that_slurmd_was_away_for_a_moment(cluster: Cluster, script: Path) -> None:
    job = cluster.sbatch("-N1", "-w", "n1", str(script), "1")
    wait_for(lambda: tasks(cluster, job), "the task to start")
    task = tasks(cluster, job)["n1"]
    cluster.kill_slurmd("n1")
    cluster.start_slurmd("n1")
    time.sleep(1)
    assert alive(task) and cluster.job(job)["JobState"] == "RUNNING" and cluster.job(job)["Restarts"] == "0"


def test_tasks_of_a_slurmd_that_stays_away_outlive_the_next_attempt(cluster: Cluster, script: Path) -> None:
    """So a run has to hold its directory against an earlier attempt of itself. The return of slurmd ends that one."""
    job = cluster.sbatch("-N1", str(script), "1")
    wait_for(lambda: tasks(cluster, job), "the task to start")
    ((lost, task),) = tasks(cluster, job).items()
    cluster.kill_slurmd(lost)
    cluster.restart_now(job, within=4 * SLURMD_TIMEOUT_S)
    ended = cluster.wait_for_job(job, "COMPLETED")
    assert ended["Restarts"] == "1" and ended["NodeList"] != lost
    time.sleep(MESSAGE_TIMEOUT_S + 1)  # before that a slurmd that returns may keep them, up to a minute
    assert alive(task)
    cluster.start_slurmd(lost)
    wait_for(lambda: not alive(task), "the task to be ended")


HOLDER = """
import sys, time
from pathlib import Path
from cluster import Cluster
with Cluster(Path(sys.argv[1])) as cluster:
    job = cluster.sbatch("-N2", "--wrap", "srun sleep 1000")
    cluster.wait_for_job(job, "RUNNING")
    while not all(any(p.name() == "sleep" for p in cluster.processes(node)) for node in ("n1", "n2")):
        time.sleep(0.1)
    print(*(p.pid for name in ("munge", "control", "n1", "n2") for p in cluster.processes(name)), flush=True)
    time.sleep(1000)
"""


def test_a_killed_owner_leaves_nothing_running(cluster: Cluster, tmp_path: Path, root: Path) -> None:
    """And two clusters stand beside each other."""
    env = os.environ | {"PYTHONPATH": str(root / "tests/programs")}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "other")]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) >= 8 and all(map(alive, pids))
        owner.send_signal(signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), "the other cluster to end", within=20)
    assert cluster.call("sinfo", "-h", "-o", "%T").split() == ["idle"]
