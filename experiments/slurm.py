"""A study on a SLURM cluster: one job that makes what the runs start from, an array with a task a cell, a report job.

Which partition, account, time and GPUs a job gets is the cluster's business: set SBATCH_PARTITION, SBATCH_ACCOUNT,
SBATCH_TIMELIMIT, SBATCH_GPUS_PER_TASK and their like, which sbatch reads.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pspo.config import StudyConfig
from pspo.errors import PspoError
from studies import Cell, override

SCRIPT = Path(__file__).resolve().parents[1] / "slurm" / "study.sh"


def submit(cfg: StudyConfig, cells: Sequence[Cell], prepare: bool) -> None:
    """Submits the cells that are not complete, then audit and report. Raises PspoError without sbatch."""
    if shutil.which("sbatch") is None:
        raise PspoError("launcher=slurm needs sbatch, which is not here; run it where jobs are submitted, or locally")
    arguments = arguments_of(cfg)
    wanted = cells if cfg.cell is None else [cell for cell in cells if cell.index == cfg.cell]
    missing = [cell.index for cell in wanted if not cell.complete]
    after: list[str] = []
    if prepare:
        start = sbatch([], [*arguments, "start_only=true"])
        print(f"submitted {start}: what the runs start from")
        after = [f"--dependency=afterok:{start}", "--kill-on-invalid-dep=yes"]
    if missing:
        array = sbatch([f"--array={','.join(map(str, missing))}", *after], arguments)
        print(f"submitted {array}: {len(missing)} of {len(cells)} runs")
        after = [f"--dependency=afterany:{array}"]
    last = sbatch(after, ["report", *arguments])
    print(f"submitted {last}: the report, after them; then see {Path(cfg.results) / cfg.study / 'table_main.md'}")


def sbatch(options: Sequence[str], arguments: Sequence[str]) -> str:
    """Submits slurm/study.sh and returns the job's id; raises PspoError with sbatch's own words."""
    done = subprocess.run(
        ["sbatch", "--parsable", *options, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    if done.returncode:
        raise PspoError(f"sbatch: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def arguments_of(cfg: StudyConfig) -> list[str]:
    """The command line of reproduce.py and report.py that gives `cfg`, but for the launcher and the choice of cells."""
    plain = [f"{key}={getattr(cfg, key)}" for key in ("study", "scale", "jobs", "rollout", "tracking")]
    paths = [override(key, getattr(cfg, key)) for key in ("results", "runs", "models")]
    more = ",".join("'" + text.replace("'", "\\'") + "'" for text in cfg.overrides)
    return [*plain, *paths, f"overrides=[{more}]"]
