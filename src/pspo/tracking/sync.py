"""python -m pspo.tracking.sync [DIRECTORY ...]: uploads runs to W&B from their metrics.jsonl (`make wandb-sync`).

Each under the id that its directory keeps, from the step on that the server lacks: it may be repeated, also while a run
goes on offline. A directory is a run's, or holds runs (default: runs), of which those are taken that ask for W&B. One
that cannot be uploaded is named with the reason and passed over, and the exit status is 1.
"""

from __future__ import annotations

import fcntl
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pspo.config import TrainConfig, load_yaml
from pspo.config.compose import one_line_errors
from pspo.errors import ConfigError, PspoError
from pspo.tracking.record import lines_of
from pspo.tracking.wandb_files import mark_synced, remembered, run_id
from pspo.tracking.wandb_view import Lost, WandbRun, ask_server

UPLOAD = 600.0
"""Seconds that the upload of one run may take, after the server has answered."""


def main(arguments: Sequence[str]) -> int:
    failed: list[Path] = []
    runs = [run for argument in arguments or ["runs"] for run in runs_of(Path(argument), failed)]
    todo = [run for run in runs if not run.whole]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them uploaded before", flush=True)
    if todo:
        try:
            ask_server()  # once: with no answer, none is waited for at each run
        except Lost as error:
            raise PspoError(f"W&B: {error}; nothing is lost, and the same command goes on from here") from error
    for run in todo:
        with named(run.dir, failed):
            print(f"{run.dir}: {upload(run.dir, run.cfg)}", flush=True)
    return min(len(failed), 1)


@dataclass(frozen=True)
class Found:
    """A run; `whole` where all of it is on the server."""

    dir: Path
    cfg: TrainConfig
    whole: bool


def runs_of(directory: Path, failed: list[Path]) -> list[Found]:
    """The run that a directory is, or those in it that ask for W&B; `failed` gets those that cannot be read."""
    alone = (directory / "metrics.jsonl").exists()
    if not alone and not directory.is_dir():
        raise PspoError(f"{directory} is no directory of a run, or of runs")
    runs: list[Found] = []
    for path in [directory] if alone else [path.parent for path in sorted(directory.glob("*/metrics.jsonl"))]:
        with named(path, failed):
            cfg = config_of(path)
            if alone or cfg.tracking.wandb != "none":
                run_id(path)
                runs.append(Found(path, cfg, remembered(path, cfg).whole))
    return runs


def config_of(run_dir: Path) -> TrainConfig:
    try:
        return load_yaml(run_dir / "config.yaml", TrainConfig)
    except ConfigError as error:
        raise PspoError(f"its config.yaml is not one of this version ({error})") from error


@contextmanager
def named(run_dir: Path, failed: list[Path]) -> Iterator[None]:
    """Around what is done for one run: a failure of it is told, and the next one's turn comes."""
    try:
        yield
    except (Lost, PspoError, OSError) as error:
        print(f"{run_dir}: not uploaded: {error}", file=sys.stderr, flush=True)
        failed.append(run_dir)


def upload(run_dir: Path, cfg: TrainConfig) -> str:
    """Sends the steps that the server lacks; says which they were."""
    live = at_work(run_dir)
    if live and cfg.tracking.wandb == "online":
        return "at work, and uploads itself"
    done = (run_dir / "DONE").exists()  # looked at first: a run may end meanwhile
    lines: list[dict[str, Any]] = list(lines_of(run_dir / "metrics.jsonl"))
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
