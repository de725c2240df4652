"""The record of a run's attempts: <runs>/logs/<run>.attempts.jsonl, one line at the start of each and one at its end.

    {"begin": TIME, "job": "17_3", "restart": 0, "nodes": "n1"}
    {"end": TIME, "job": "17_3", "restart": 0, "status": 75, "kind": "again", "reason": "told to stop; saved"}

Written by the job itself. An attempt without an end is one whose node or job was killed. Standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jobs.verdicts import MARK, Verdict, judge

KILLED = 137
"""Exit status after SIGKILL: of a node's last moments, or of a kernel that is out of memory."""
PATIENCE = 3


@dataclass(frozen=True)
class Attempt:
    """`status` and `verdict` are None where no end was written. Times are UTC, in ISO 8601."""

    job: str
    restart: int
    nodes: str
    began: str
    ended: str | None = None
    status: int | None = None
    verdict: Verdict | None = None


def record_of(log: Path) -> Path:
    return log.with_name(log.name.removesuffix(".log") + ".attempts.jsonl")


def begin(log: Path, env: Mapping[str, str]) -> None:
    """Writes that this job begins an attempt, into the record and into the log that belong together."""
    log.parent.mkdir(parents=True, exist_ok=True)
    who = _who(env)
    nodes = env.get("SLURM_JOB_NODELIST", os.uname().nodename)
    _append(record_of(log), {"begin": now(), **who, "nodes": nodes})
    with log.open("a") as file:
        file.write(f"{MARK}attempt {int(who['restart']) + 1} of job {who['job']} on {nodes}, {now()}\n")


def end(log: Path, status: int, env: Mapping[str, str], reason: str = "") -> Verdict:
    """Writes how this job's attempt ended, and returns it. A `reason` given is that of a job that SLURM ends."""
    verdict = Verdict("again", reason) if reason else judge(status, lines_of_attempt(log))
    if status == KILLED and [one.status for one in attempts_of(log)[-PATIENCE:-1]] == [KILLED] * (PATIENCE - 1):
        verdict = Verdict("failed", f"killed {PATIENCE} times in a row without a warning: is there memory enough?")
    _append(record_of(log), {"end": now(), **_who(env), "status": status, **verdict._asdict()})
    return verdict


def attempts_of(log: Path) -> list[Attempt]:
    """All attempts in their order; [] where there was none. Lines cut by a crash of the machine are passed over."""
    found: dict[tuple[str, int], Attempt] = {}
    for line in _lines(record_of(log)):
        try:
            said = json.loads(line)
            key = (said["job"], int(said["restart"]))
            if "begin" in said:
                found[key] = Attempt(*key, nodes=said["nodes"], began=said["begin"])
            elif key in found and found[key].ended is None:
                seen = found[key]
                verdict = Verdict(said["kind"], said["reason"])
                found[key] = Attempt(*key, seen.nodes, seen.began, said["end"], said["status"], verdict)
        except (ValueError, KeyError, TypeError):
            continue
    return list(found.values())


def lines_of_attempt(log: Path, size: int = 65_536) -> list[str]:
    """The last lines of a log, as far as they are of its last attempt."""
    lines = _lines(log, size)
    starts = [number for number, line in enumerate(lines) if line.startswith(MARK)]
    return lines[starts[-1] + 1 :] if starts else lines


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _who(env: Mapping[str, str]) -> dict[str, str | int]:
    """This job as SLURM's clients name it (17, or 17_3 of an array), and how often it has been sent back."""
    array, job = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_JOB_ID", "none")
    name = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else job
    return {"job": name, "restart": int(env.get("SLURM_RESTART_COUNT") or 0)}


def _append(path: Path, said: Mapping[str, str | int]) -> None:
    """One write of a whole line, so that lines of two jobs never mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(said).encode() + b"\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else b"\n" + line  # a line that a crash has cut stays one line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path, size: int | None = None) -> list[str]:
    try:
        with path.open("rb") as file:
            if size is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
