"""One cluster for all tests of a worker. Without SLURM they skip with the reason; with PSPO_NEED_SLURM=1 they fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two idle nodes."""
    if reason := missing():
        if os.environ.get("PSPO_NEED_SLURM") == "1":
            pytest.fail(f"PSPO_NEED_SLURM=1, and {reason}")
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(started: Cluster) -> Iterator[Cluster]:
    """The same, without jobs of other tests."""
    yield started
    started.clear()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A job that says which attempt it is and where its tasks run. They wait to be interrupted, up to the attempt that
    the argument names, which ends at once."""
    path = tmp_path / "job.sh"
    path.write_text(
        """#!/bin/bash
#SBATCH --requeue --open-mode=append
echo "attempt ${SLURM_RESTART_COUNT:-0}"
srun --kill-on-bad-exit=1 bash -c '
    trap "echo asked to end; exit 75" TERM
    echo "task $SLURM_PROCID of $SLURM_STEP_NUM_TASKS on $SLURMD_NODENAME is $BASHPID"
    ((${SLURM_RESTART_COUNT:-0} >= $0)) || for ((i = 0; i < 600; i++)); do sleep 0.1; done
' "$1"
"""
    )
    return path
