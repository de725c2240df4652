"""What a sweep (`-m`) needs beside Hydra: what its jobs ask of SLURM, how a cell fails, what is told of the jobs.

Which launcher starts the cells is conf/hydra/launcher/'s business; docs/sweeps.md says how a sweep ends under each.
Imports submitit only where jobs are submitted.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pspo.config.schema import minutes
from pspo.errors import ConfigError, PspoError
from pspo.stopping import AGAIN, Stopped, stoppable

MEETING = (
    # SLURM's own address of the first node: its name need not resolve on the others. A port of the job's own, below
    # those that systems give out. As in slurm/job.sh.
    'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
    'export MASTER_ADDR=$(scontrol show node "$first" | grep -oP "NodeAddr=\\K\\S+")',
    "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))",
)
"""Lines of a batch script by which the ranks of a run find each other (pspo.ranks.place)."""


def batch_lines(slurm: Mapping[str, Any]) -> str:
    """The lines that a job's batch script needs before srun, from conf/slurm: options that submitit has no field for,
    or takes in other units than sbatch, and where several ranks meet."""
    if slurm["container"] is not None:
        allowed = "a sweep's jobs run in .venv; for a container use slurm/train.sh, or a study"
        raise ConfigError("slurm.container", slurm["container"], allowed)
    options = [] if slurm["memory"] is None else [f"--mem={slurm['memory']}"]
    options += [f"--gpus-per-task={slurm['gpus_per_task']}"] if slurm["gpus_per_task"] else []
    lines = [f"#SBATCH {option}" for option in (*options, *slurm["extra"])]
    lines.append(f"export SRUN_CPUS_PER_TASK={slurm['cpus_per_task']}")  # since SLURM 22.05 srun does not ask sbatch
    return "\n".join(lines if slurm["nodes"] * slurm["tasks_per_node"] == 1 else [*lines, *MEETING])


OmegaConf.register_new_resolver("pspo.minutes", minutes, replace=True)
OmegaConf.register_new_resolver("pspo.batch_lines", batch_lines, replace=True)


def one_cell(name: str, run: Callable[[], None], full: bool) -> None:
    """Runs a cell of a sweep. What goes wrong is said where it runs (with `full` a traceback always), and raised as a
    PspoError that names the cell: the launchers go on with the others and carry it to where the sweep was started."""
    failure = _failure(run, full)
    if failure is not None:  # raised here, where no traceback holds the run's memory any more
        say(f"{name}: {failure}")
        raise PspoError(f"{name}: {failure}")


def _failure(run: Callable[[], None], full: bool) -> str | None:
    try:
        run()
    except Exception as error:
        ours = isinstance(error, PspoError | OSError)
        if full or not ours:
            traceback.print_exc()
        return str(error) if ours else f"{type(error).__name__}: {error}"
    return None


def one_answer(name: str, answer: Callable[[], None], full: bool) -> int:
    """A cell of a sweep whose program looks and makes nothing; its exit status. What goes wrong is said here, with
    `full` as a traceback."""
    try:
        failure = _failure(answer, full)
    except Stopped:
        raise  # the sweep is told to stop, not this cell
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    if failure is not None:
        say(f"{name}: {failure}")
    return int(failure is not None)


@contextmanager
def beside(parent: int) -> Iterator[None]:
    """Around a cell in a process that joblib has started. A terminal's Ctrl-C is for the sweep's own process, which
    ends this one; and should that be killed, this one stops as well, where joblib would go on and wait for more."""
    if os.getpgrp() != os.getpid():  # the first cell here
        os.setpgid(0, 0)
        threading.Thread(target=_outlive, args=(parent,), daemon=True).start()
    try:
        yield
    finally:
        if os.getppid() != parent:
            os._exit(AGAIN)


def _outlive(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def launched() -> Iterator[None]:
    """Around a launcher's work. Signals end it, and with it the processes that it has here; what goes wrong between it
    and its cells is raised as a PspoError of one line."""
    try:
        with stoppable(), _hydra_raises():
            yield
    except (PspoError, OSError):
        raise
    except Exception as error:
        first = " ".join(str(error).strip().splitlines()[:2])  # what follows is a whole log
        raise PspoError(f"{type(error).__name__}: {first} (HYDRA_FULL_ERROR=1 shows where)") from error


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Hydra prints a traceback of what ends a sweep, unless it is told to raise it."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def what_is_left(places: Sequence[Path], launcher: str) -> Iterator[None]:
    """Around a sweep of training runs: where it ends early, says which of their directories are not complete."""
    try:
        yield
    except BaseException:
        left = [str(place) for place in places if not (place / "DONE").exists()]
        if left:
            after = " when no job of it is in the queue any more" if launcher == "SlurmLauncher" else ""
            say(f"{len(left)} of {len(places)} runs are not complete: {', '.join(left)}")
            say(f"the same command goes on with them{after}")
        raise


def say(text: str) -> None:
    print(f"pspo: {text}", file=sys.stderr, flush=True)


def watch_queue(logs: str) -> None:
    """Before jobs are submitted: says which they are, with the folder of their logs, and has submitit ask squeue.

    Raises PspoError where there is no SLURM. submitit would ask sacct, every ten minutes; without accounting that never
    answers, and a job that was killed would be waited for without end.
    """
    if shutil.which("sbatch") is None:
        raise PspoError("hydra/launcher=slurm needs sbatch, which is not here; run it where jobs are submitted")
    from submitit.slurm import slurm

    over = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}

    class Queue(slurm.SlurmInfoWatcher):
        def register_job(self, job_id: str) -> None:
            main = job_id.partition("_")[0]
            if main not in {one.partition("_")[0] for one in self._registered}:
                say(f"SLURM job {main}, logs in {logs}; it does not need this command, which waits for it")
                say(f"squeue -j {main} shows it, scancel {main} ends it")
            super().register_job(job_id)

        def _make_command(self) -> list[str] | None:
            return ["squeue", "-h", "-r", "--me", "-t", "all", "-o", "%i|%T"] if self._registered else None

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            text = string if isinstance(string, str) else string.decode()
            states = dict(line.strip().split("|", 1) for line in text.splitlines() if "|" in line)
            found = {job: states.get(job, "GONE") for job in self._registered}  # it forgets a job after some minutes
            return {job: {"State": state if state in over | {"GONE"} else "RUNNING"} for job, state in found.items()}

    slurm.SlurmJob.watcher = Queue(delay_s=30)
