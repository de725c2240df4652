"""A study on the cluster, from nothing to its table: jobs that wait for one another, and an array with a task a run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from cluster import Cluster, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

PLENTY = 400  # seconds for a job, of which this machine takes a tenth when it does nothing else


def test_a_study_from_nothing_to_its_table(cluster: Cluster, root: Path, tmp_path: Path) -> None:
    """One of its runs is sent back on the way."""
    places = [f"{name}={tmp_path / name}" for name in ("results", "runs", "models")]
    study = ["study=smoke", "scale=cpu", "rollout=hf", *places]

    def program(name: str, *more: str) -> str:
        script = str(root / "experiments" / name)
        return cluster.call(sys.executable, script, *study, *more, cwd=tmp_path, OMP_NUM_THREADS="1")

    said = program("reproduce.py", "launcher=slurm", "slurm.time=00:30:00", "slurm.warn_s=60")
    start, array, report = re.findall(r"submitted (\d+)", said)
    runs = [f"{array}_{cell}" for cell in range(4)]
    assert f"afterok:{start}" in cluster.job(array)["Dependency"]
    assert f"afterany:{array}" in cluster.job(report)["Dependency"]
    assert "4 runs: 4 waiting" in program("status.py")
    assert not re.search(r"submitted \d", program("reproduce.py", "launcher=slurm"))  # all of it is in the queue

    cluster.wait_for_job(start, "COMPLETED", within=PLENTY)
    logs = tmp_path / "runs/logs"
    wait_for(lambda: list(logs.glob("pspo-gentle-s0-*.attempts.jsonl")), "the second run to begin", within=PLENTY)
    cluster.call("scontrol", "requeue", runs[1])
    cluster.restart_now(runs[1])
    for run in runs:
        cluster.wait_for_job(run, "COMPLETED", within=PLENTY)
    assert [cluster.job(run)["Restarts"] for run in runs] == ["0", "1", "0", "0"]
    cluster.wait_for_job(report, "COMPLETED", within=PLENTY)

    rows = json.loads((tmp_path / "results/smoke/table_main.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == [None, "no_clip", "pspo"]
    assert [(row["done"], row["planned"], row["problems"]) for row in rows] == [(1, 1, 16), (2, 2, 16), (2, 2, 16)]
    assert (tmp_path / "results/smoke/report.html").stat().st_size > 10_000
    assert "4 runs: 4 complete" in program("status.py")
    wait_for(lambda: not cluster.call("squeue", "-h"), "the queue to be empty")
    assert not re.search(r"submitted \d", program("reproduce.py", "launcher=slurm"))
