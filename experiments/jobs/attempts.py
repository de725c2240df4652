"""The record of a run's attempts: <runs>/logs/<run>.attempts.jsonl, one line at the start of each and one at its end.

    {"begin": TIME, "job": "17_3", "restart": 0, "nodes": "n1"}
    {"end": TIME, "job": "17_3", "restart": 0, "status": 75, "kind": "again", "reason": "told to stop; saved"}
    {"send": TIME, "job": "17_3", "restart": 0}    the job sends itself back to the queue

Written by the job itself. An attempt without an end is one whose node or job was killed. Standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import lines
from jobs.lines import now
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
    lines.append(record_of(log), {"begin": now(), **who, "nodes": nodes})
    with log.open("a") as file:
        file.write(f"{MARK}attempt {int(who['restart']) + 1} of job {who['job']} on {nodes}, {now()}\n")


def end(log: Path, status: int, env: Mapping[str, str], reason: str = "") -> Verdict:
    """Writes how this job's attempt ended, and returns it. A `reason` given is that of a job that SLURM ends."""
    verdict = Verdict("again", reason) if reason else judge(status, lines_of_attempt(log))
    if status == KILLED and [one.status for one in attempts_of(log)[-PATIENCE:-1]] == [KILLED] * (PATIENCE - 1):
        verdict = Verdict("failed", f"killed {PATIENCE} times in a row without a warning: is there memory enough?")
    lines.append(record_of(log), {"end": now(), **_who(env), "status": status, **verdict._asdict()})
    return verdict


def send(log: Path, most: int, env: Mapping[str, str]) -> int:
    """How often this job has sent itself back before; less than `most` times, writes that it does so once more."""
    who = _who(env)
    times = sum("send" in said and said.get("job") == who["job"] for said in _said(log))
    if times < most:
        lines.append(record_of(log), {"send": now(), **who})
    return times


def attempts_of(log: Path) -> list[Attempt]:
    """All attempts in their order; [] where there was none. Lines that cannot be read are passed over."""
    found: dict[tuple[str, int], Attempt] = {}
    for said in _said(log):
        try:
            key = (said["job"], int(said["restart"]))
            if "begin" in said:
                found[key] = Attempt(*key, nodes=said["nodes"], began=said["begin"])
            elif "end" in said and key in found and found[key].ended is None:
                seen = found[key]
                verdict = Verdict(said["kind"], said["reason"])
                found[key] = Attempt(*key, seen.nodes, seen.began, said["end"], said["status"], verdict)
        except (ValueError, KeyError, TypeError):
            continue
    return list(found.values())


def _said(log: Path) -> Iterator[dict[str, Any]]:
    for line in lines.read(record_of(log)):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            yield said


def lines_of_attempt(log: Path, size: int = 65_536) -> list[str]:
    """The last lines of a log, as far as they are of its last attempt."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        last = file.read().decode(errors="replace").split("\n")  # a name may hold what else begins a line
    starts = [number for number, line in enumerate(last) if line.startswith(MARK)]
    return [line for line in (last[starts[-1] + 1 :] if starts else last) if line]


def _who(env: Mapping[str, str]) -> dict[str, str | int]:
    """This job as SLURM's clients name it (17, or 17_3 of an array), and how often it has been sent back."""
    array, job = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_JOB_ID", "none")
    name = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else job
    return {"job": name, "restart": int(env.get("SLURM_RESTART_COUNT") or 0)}
