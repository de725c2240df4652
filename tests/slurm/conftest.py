"""One cluster for all tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from cluster import started as started


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
    ((${SLURM_RESTART_COUNT:-0} >= $0)) || for ((i = 0; i < 6000; i++)); do sleep 0.1; done
' "$1"
"""
    )
    return path
