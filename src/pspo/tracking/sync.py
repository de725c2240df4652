"""python -m pspo.tracking.sync [DIRECTORY ...]: uploads runs to W&B from their metrics.jsonl (`make wandb-sync`).

Each under the id that its directory keeps, from the step on that the server lacks: it may be repeated, also while a run
goes on offline. A directory is a run's, or holds runs (default: runs), of which those are taken that ask for W&B. Exit
status 1 where one could not be uploaded, with a line that says why.
"""

from __future__ import annotations

import fcntl
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pspo.config import TrainConfig, load_yaml
from pspo.config.compose import one_line_errors
from pspo.errors import PspoError
from pspo.tracking.record import lines_of
from pspo.tracking.wandb_files import mark_synced, remembered, run_id
from pspo.tracking.wandb_view import Lost, WandbRun, set_up

UPLOAD = 600.0
"""Seconds that the upload of one run may take, after the server has answered."""


def main(arguments: Sequence[str]) -> int:
    runs = [run for argument in arguments or ["runs"] for run in runs_of(Path(argument))]
    todo = [(run_dir, cfg) for run_dir, cfg in runs if not complete(run_dir, cfg)]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them uploaded before")
    if not todo:
        return 0
    try:
        set_up(log_in=True, verify=True)  # once: with no answer, none is waited for at each run
    except Lost as error:
        raise PspoError(f"W&B: {error}; nothing is lost, and the same command goes on from here") from error
    failures = 0
    for run_dir, cfg in todo:
        try:
            print(f"{run_dir}: {upload(run_dir, cfg)}", flush=True)
        except Lost as error:
            print(f"{run_dir}: not uploaded: {error}", file=sys.stderr, flush=True)
            failures += 1
    return min(failures, 1)


def runs_of(directory: Path) -> list[tuple[Path, TrainConfig]]:
    """The run that a directory is, or those in it that ask for W&B."""
    if (directory / "metrics.jsonl").exists():
        return [(directory, load_yaml(directory / "config.yaml", TrainConfig))]
    if not directory.is_dir():
        raise PspoError(f"{directory} is no directory of a run, or of runs")
    inside = [path.parent for path in sorted(directory.glob("*/metrics.jsonl"))]
    read = [(path, load_yaml(path / "config.yaml", TrainConfig)) for path in inside]
    return [(path, cfg) for path, cfg in read if cfg.tracking.wandb != "none"]


def complete(run_dir: Path, cfg: TrainConfig) -> bool:
    """Is a run that is done on the server?"""
    run_id(run_dir)
    return remembered(run_dir, cfg).whole


def upload(run_dir: Path, cfg: TrainConfig) -> str:
    """Sends the steps that the server lacks; says which they were."""
    live = at_work(run_dir)
    if live and cfg.tracking.wandb == "online":
        return "at work, and uploads itself"
    lines: list[dict[str, Any]] = list(lines_of(run_dir / "metrics.jsonl"))
    done = (run_dir / "DONE").exists()
    if not done and (not lines or lines[-1]["step"] <= remembered(run_dir, cfg).last):
        return "nothing new"
    with tempfile.TemporaryDirectory() as scratch:  # what W&B writes itself is not the run's
        run = WandbRun(run_dir, cfg, "online", Path(scratch), (cfg.tracking.timeout, UPLOAD))
        for line in lines:
            run.log(line)
        run.finish(exit_code=0 if done else 1)
    if not live:
        mark_synced(run_dir)
    if run.last < run.first:
        return "nothing new"
    return f"steps {run.first} to {run.last} uploaded{'' if done else ', of a run that is not complete'}"


def at_work(run_dir: Path) -> bool:
    """Does a process hold the run's directory?"""
    if not (run_dir / ".lock").exists():
        return False
    with open(run_dir / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
