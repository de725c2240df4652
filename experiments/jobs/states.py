"""What became of each thing that a study needs: from its files, its attempts, and what SLURM says, to one state.

complete   its product is there
running    a job is at work on it
waiting    a job for it is in the queue
failed     it failed by itself: the same would happen again
lost       the cluster ended it, or it was told to stop; it goes on when it is submitted again
missing    nobody has tried yet
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from jobs.attempts import Attempt, attempts_of, lines_of_attempt
from jobs.ledger import Ledger, Stage
from jobs.queue import Ended, Queued, ended, queued
from jobs.verdicts import BY_ITSELF, BY_THE_CLUSTER, DONE, reason_in

Name = Literal["complete", "running", "waiting", "failed", "lost", "missing"]


@dataclass(frozen=True)
class State:
    """`text` is one line, with the reason; `look` the commands that show more."""

    name: Name
    text: str = ""
    look: tuple[str, ...] = ()
    job: str = ""

    @property
    def in_queue(self) -> bool:
        return self.name in ("running", "waiting")


@dataclass(frozen=True)
class Facts:
    """Of one thing that a job makes. `job` is the last that was submitted for it, "" where none was."""

    complete: bool
    log: Path
    queued: Queued | None = None
    attempts: Sequence[Attempt] = ()
    job: str = ""
    ended: Ended | None = None
    out: Path | None = None
    """Where that job's own output is: what went wrong before the program began."""


def state_of(facts: Facts) -> State:
    """
    >>> state_of(Facts(complete=False, log=Path("x.log"))).name
    'missing'
    """
    look = look_closer(facts)
    if facts.complete:
        return State("complete")
    if (row := facts.queued) is not None:
        times = sent_back(facts.attempts, row)
        if row.state == "PENDING":
            return State("waiting", f"job {row.job}: {row.reason}{times}", look if times else (), row.job)
        return State("running", f"job {row.job} on {row.nodes or '?'}{times}", look, row.job)
    return replace(_ended(facts), look=look)


def _ended(facts: Facts) -> State:
    attempts = [one for one in facts.attempts if one.job == facts.job] or ([] if facts.ended else facts.attempts)
    last, slurm = attempts[-1] if attempts else None, facts.ended.state if facts.ended else ""
    code = f" ({facts.ended.exit_code})" if facts.ended and slurm == "FAILED" else ""
    if slurm in BY_ITSELF:
        return State("failed", BY_ITSELF[slurm])
    if last is not None and last.verdict is not None:
        if slurm in BY_THE_CLUSTER and last.verdict.kind != "done":
            return State("lost", _cluster(facts, slurm))
        if last.verdict.kind == "again":
            return State("lost", last.verdict.reason)
        done = f"it ended without an error, and its product is not there ({facts.log.name})"
        return State("failed", last.verdict.reason or done)
    if slurm in BY_THE_CLUSTER:
        return State("lost", _cluster(facts, slurm))
    if last is not None:
        return State("lost", f"{last.nodes}: no end was written, so its node or its job was killed")
    if slurm == "FAILED":
        return State("failed", f"{_said(facts.out)}{code}")
    if facts.job:
        return State("lost", f"job {facts.job} left the queue before it began")
    return State("missing")


def _cluster(facts: Facts, slurm: str) -> str:
    """SLURM's word for it. A job is cancelled by a person, or because what it was to follow failed."""
    reason = facts.ended.reason if facts.ended else ""
    text = BY_THE_CLUSTER[slurm]
    if slurm == "CANCELLED" and reason == "DependencyNeverSatisfied":
        return "not begun: what it needs has failed"
    return text


def _said(out: Path | None) -> str:
    return reason_in(lines_of_attempt(out)) if out is not None else "no output"


def sent_back(attempts: Sequence[Attempt], row: Queued) -> str:
    """, sent back twice: how often this job has returned to the queue."""
    times = sum(one.job == row.job for one in attempts) - (row.state != "PENDING")
    if times <= 0:
        return ""
    last = [one for one in attempts if one.job == row.job][-1 if row.state == "PENDING" else -2]
    why = last.verdict.reason if last.verdict else f"{last.nodes} or the job on it was killed"
    return f"; sent back {'once' if times == 1 else f'{times} times'}, last: {why}"


def look_closer(facts: Facts) -> tuple[str, ...]:
    shown = []
    if facts.log.exists():
        shown.append(f"less +G {facts.log}")
    elif facts.out is not None and facts.out.exists():
        shown.append(f"less +G {facts.out}")
    if facts.job:
        shown.append(f"scontrol show job {facts.job}")
    return tuple(shown)


class Survey:
    """Everything that is known of a study's jobs, asked once. Without a cluster: what the files say.

    runs   the study's as it is now, by number: a single job, such as the one before all runs, was for just these
    """

    def __init__(self, ledger: Ledger, runs: Sequence[str], cluster: bool) -> None:
        self.ledger, self.runs, names = ledger, tuple(runs), ledger.job_names()
        self.rows: dict[tuple[Stage, str], Queued] = {}
        self.ends: dict[str, Ended] = {}
        if not cluster:
            return
        for row in queued(list(names)):
            submission, stage = names[row.name]
            if row.task is not None:
                self.rows[stage, submission.cells[row.task]] = row
            elif submission.cells == self.runs:
                self.rows[stage, ""] = row
        self.ends = ended([job.job for one in ledger.submissions.values() for job in one.jobs])

    def state(self, stage: Stage, run: str, complete: bool, log: Path) -> State:
        """Of one run in a stage; `run` is "" where the stage is a single job."""
        row, attempts = self.rows.get((stage, run)), attempts_of(log)
        job = row.job if row is not None else self._last_job(stage, run)
        if not run:  # the log is that of other runs' jobs too
            attempts = [one for one in attempts if one.job == job]
            if row is None and attempts and attempts[-1].verdict == DONE:
                return State("complete" if complete else "missing")
        out = log.parent / "slurm" / f"{job}.out" if job else None
        return state_of(Facts(complete, log, row, attempts, job, self.ends.get(job), out))

    def _last_job(self, stage: Stage, run: str) -> str:
        last = self.ledger.last_array(stage, run) if run else self.ledger.last_job(stage, self.runs)
        if last is None:
            return ""
        return f"{last.job}_{self.ledger.index_of(last, run)}" if run else last.job
