"""How one attempt at a program ended: done, to be tried again, or failed by itself. Standard library only.

Again is what the cluster did or a request to stop, after which the same command goes on. Failed is what would happen
again: an error of ours, a crash, too little memory. Decided from the exit status of `srun` and from the log, because
srun tells the highest status of its tasks alone, and ends the others with SIGTERM when one has failed: one rank's
error can look like a request to stop.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Literal, NamedTuple

AGAIN = 75  # pspo.stopping.AGAIN: told to stop, and saved
STOPPED = 76  # pspo.ranks.watch.STOPPED: ended because of another rank, with a cause that only that one may know
BUSY = 77  # pspo.errors.BusyError: another process, such as an attempt that SLURM took for dead, holds what it needs
ENDING = ("SIGHUP", "SIGINT", "SIGKILL", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # what ends a job from outside

Kind = Literal["done", "again", "failed"]


class Verdict(NamedTuple):
    kind: Kind
    reason: str  # one line; "" where it is done


DONE = Verdict("done", "")
MARK = "== "
"""Begins the line in a log that an attempt opens with (attempts.py)."""
TASK = re.compile(r"^srun: error: \S+: tasks? [\d,\[\]-]+: Exited with exit code (\d+)")
WORKER = re.compile(r"\bfailed \(exitcode: (\d+)\) local_rank: ")  # torchrun, whose own status may come too late
CRASH = re.compile(
    r"^srun: error: \S+: tasks? [\d,\[\]-]+: (?:Segmentation fault|Aborted|Bus error|Illegal|Floating|Out Of Memory).*"
    r"|^(?:slurmstepd|srun).*\boom.kill.*",
    re.IGNORECASE,
)
CLUSTER = re.compile(
    r"^srun: error: (?:Node failure|Unable to create step|Unable to confirm allocation|Unable to allocate|"
    r"Task launch for .* failed|Timed out waiting|.*(?:Socket timed out|Unable to contact slurm|"
    r"Communication connection|Connection refused|Zero Bytes were transmitted)).*"
    r"|(?:pspo: )?(?:rank [\d, ]+: )*rank \d[\d, ]* has (?:died|given no sign of life)\b.*"
)
TOLD_RANK = re.compile(r"(?:pspo: )?(?:rank [\d, ]+: )*rank \d+ was told to stop in .*")
FAILED_RANK = re.compile(r"\brank \d+ failed in ")
NOISE = ("srun:", "slurmstepd", "wandb:", MARK, "pspo: SIG", "Terminated", "[rank")
ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*")


def judge(status: int, log: Sequence[str]) -> Verdict:
    """Of an attempt with this exit status, as a shell sees it, whose log has these lines.

    >>> judge(75, ["pspo: SIGUSR1: saving after this step"]).kind, judge(1, ["pspo: lr=0"])
    ('again', Verdict(kind='failed', reason='pspo: lr=0 (exit status 1)'))
    """
    if status == 0:
        return DONE
    if crashes := [line for line in log if CRASH.match(line)]:
        return Verdict("failed", crashes[-1])
    wrong = any(line.startswith("pspo: wrong setting: ") for line in log)  # and what it quotes may look like anything
    if not wrong and (lost := [line for line in log if CLUSTER.match(line)]):
        return Verdict("again", lost[-1])
    statuses = {status, *(int(found.group(1)) for line in log if (found := TASK.match(line) or WORKER.search(line)))}
    if BUSY in statuses:
        return Verdict("again", reason_in(log))
    own = sorted(code for code in statuses if code not in (0, AGAIN, STOPPED) and not ended_by(code))
    told = [line for line in log if TOLD_RANK.match(line)]  # the end of its rank comes to the others as an error
    if own and not told:
        return Verdict("failed", f"{reason_in(log)} (exit status {own[0]})")
    number = ended_by(status)
    # srun sends SIGTERM to those that take longer to end; a warning may come again to one that has saved and ends.
    if AGAIN in statuses and number in ("", "SIGTERM", "SIGUSR1"):
        return Verdict("again", "told to stop; saved")
    if number or told:
        return Verdict("again", told[-1] if told else f"ended by {number}")
    ranks = any(FAILED_RANK.search(line) for line in log)  # 76: another rank is the cause, by an error or by being gone
    return Verdict("failed" if ranks else "again", f"{reason_in(log)} (exit status {STOPPED})")


def ended_by(status: int) -> str:
    """The signal that ended a process of this status from outside; "" where it was none of those.

    >>> ended_by(137), ended_by(139), ended_by(1)
    ('SIGKILL', '', '')
    """
    try:
        name = signal.Signals(status - 128).name
    except ValueError:
        return ""
    return name if name in ENDING else ""


def reason_in(log: Sequence[str]) -> str:
    """The line that says best why: an error of ours or the end of a traceback, else what was written last."""
    said = [line for line in (text.split("\r")[-1].strip() for text in log) if line and not line.startswith(NOISE)]
    errors = [line for line in said if line.startswith("pspo: ") or ERROR.match(line)]
    return (errors or said or ["no output"])[-1][:500]


# What SLURM's own word for a job's end means; the others (COMPLETED, FAILED) say no more than the exit status.
BY_THE_CLUSTER = {
    "NODE_FAIL": "the node failed",
    "BOOT_FAIL": "the node did not start",
    "PREEMPTED": "preempted",
    "TIMEOUT": "time limit reached before it could save (slurm.time, slurm.warn_s)",
    "DEADLINE": "deadline reached",
    "REVOKED": "revoked",
    "CANCELLED": "cancelled",
}
BY_ITSELF = {"OUT_OF_MEMORY": "out of memory (slurm.memory)"}
