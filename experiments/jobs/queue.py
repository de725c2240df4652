"""What SLURM says of jobs: squeue of those that wait or run, sacct or scontrol of those that have ended.

Formats are those of squeue -o and scontrol -o, which every release has; --json is not everywhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from pspo.errors import PspoError

ANSWER_S = 60.0


class Queued(NamedTuple):
    """A job, or one task of an array, that SLURM has not done with."""

    job: str  # 17, or 17_3
    name: str
    task: int | None  # its index
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str
    nodes: str


class Ended(NamedTuple):
    """What SLURM remembers of a job that is no longer in the queue."""

    state: str  # NODE_FAIL, TIMEOUT, CANCELLED, FAILED, ...
    exit_code: str  # status:signal
    reason: str


def has_slurm() -> bool:
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def queued(names: Sequence[str]) -> list[Queued]:
    """The jobs of these names, each task of an array by itself. Raises PspoError where the queue cannot be read."""
    if not names:
        return []
    done = _ask("squeue", "--noheader", "--array", f"--name={','.join(names)}", "-o", "%F|%K|%T|%N|%j|%r")
    if done.returncode:
        raise PspoError(f"squeue: {' '.join(done.stderr.split()) or 'no answer'}")
    return queued_in(done.stdout)


def queued_in(text: str) -> list[Queued]:
    """
    >>> queued_in("17|3|RUNNING|n1|pspo-main-train-9f3c2a|None")[0][:4]
    ('17_3', 'pspo-main-train-9f3c2a', 3, 'RUNNING')
    """
    rows = []
    for line in text.splitlines():
        job, index, state, nodes, name, reason = line.strip().split("|", 5)
        task = int(index) if index.isdecimal() else None
        rows.append(Queued(job if task is None else f"{job}_{task}", name, task, state, reason, nodes))
    return rows


def ended(jobs: Sequence[str]) -> dict[str, Ended]:
    """Job (17, or 17_3 of an array) -> how it ended. From the accounting; where there is none, from what the controller
    still remembers, which it does for minutes. What nobody remembers is left out."""
    if not jobs:
        return {}
    wanted = sorted(set(jobs))
    done = _ask("sacct", "-n", "-P", "-X", "-j", ",".join(wanted), "-o", "JobID,State,ExitCode,Reason")
    found = sacct_says(done.stdout) if done.returncode == 0 else {}
    for job in sorted({one.partition("_")[0] for one in wanted if one not in found}):
        found |= scontrol_says(_ask("scontrol", "show", "job", "-o", job).stdout)
    return found


def sacct_says(text: str) -> dict[str, Ended]:
    """
    >>> sacct_says("17_3|CANCELLED by 1000|0:15|None")
    {'17_3': Ended(state='CANCELLED', exit_code='0:15', reason='None')}
    """
    found: dict[str, Ended] = {}
    for line in text.splitlines():
        if line.count("|") >= 3:
            job, state, code, reason = line.split("|", 3)
            end = Ended(state.split(" ")[0].rstrip("+"), code, reason)
            array, _, task = job.partition("_")
            found |= dict.fromkeys([f"{array}_{index}" for index in tasks_in(task)] or [job], end)
    return found


def scontrol_says(text: str) -> dict[str, Ended]:
    found: dict[str, Ended] = {}
    for line in text.splitlines():
        said = dict(re.findall(r"(\w+)=(\S*)", line))
        if "JobId" not in said:
            continue
        array, task = said.get("ArrayJobId"), said.get("ArrayTaskId", "")
        end = Ended(said.get("JobState", ""), said.get("ExitCode", ""), said.get("Reason", ""))
        found |= dict.fromkeys([f"{array}_{index}" for index in tasks_in(task)] or [said["JobId"]], end)
    return found


def tasks_in(text: str) -> list[int]:
    """The indices of tasks that SLURM still writes as one, since none of them has begun.

    >>> tasks_in("3"), tasks_in("0,2-4%2"), tasks_in("[0-8:4]"), tasks_in("")
    ([3], [0, 2, 3, 4], [0, 4, 8], [])
    """
    found: list[int] = []
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", text.strip("[]").partition("%")[0]):
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """A client's answer; status 127 where there is no such client, 124 where it does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not here")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {ANSWER_S:g} s")
