"""What has been submitted of a study: <runs>/logs/<study>-<scale>.jobs.jsonl, a line a submission and a line a job.

    {"submission": "s9f3c2a", "time": TIME, "cells": [RUN, ...]}    names of run directories, by array index
    {"submission": "s9f3c2a", "stage": "train", "job": "17", "cells": [0, 2]}    an array's indices

The first line is written before anything is submitted, and a job's name holds the submission, so that a job is known
for what it is even if the second line was never written; and an array index means the run that it meant on submission,
whatever becomes of the study's file while the job waits.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from jobs import lines
from jobs.lines import now
from pspo.errors import PspoError

Stage = Literal["start", "train", "evaluate", "report"]
"""What the runs start from; a training run a cell; the study's benchmarks, a cell each; the tables."""
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Job:
    """A job of a submission; `cells` are the indices of an array, none of a single job."""

    stage: Stage
    job: str
    cells: tuple[int, ...]


@dataclass
class Submission:
    token: str
    time: str
    cells: tuple[str, ...]
    jobs: list[Job] = field(default_factory=list)


class Ledger:
    """The submissions of one study at one scale, oldest first."""

    def __init__(self, runs: str, study: str, scale: str) -> None:
        self.study = f"{study}-{scale}"
        self.path = Path(runs) / "logs" / f"{self.study}.jobs.jsonl"
        self.submissions: dict[str, Submission] = {}
        for line in lines.read(self.path):
            self._take(line)

    def open(self, cells: Sequence[str]) -> Submission:
        """A new submission of these runs."""
        made = Submission("s" + secrets.token_hex(3), now(), tuple(cells))
        self.submissions[made.token] = made
        lines.append(self.path, {"submission": made.token, "time": made.time, "cells": list(cells)})
        return made

    def add(self, submission: Submission, stage: Stage, job: str, cells: Sequence[int] = ()) -> None:
        submission.jobs.append(Job(stage, job, tuple(cells)))
        lines.append(self.path, {"submission": submission.token, "stage": stage, "job": job, "cells": list(cells)})

    def job_name(self, submission: Submission, stage: Stage) -> str:
        return f"pspo-{self.study}-{stage}-{submission.token}"

    def job_names(self) -> dict[str, tuple[Submission, Stage]]:
        """What every name that a job of this study can have stands for."""
        return {self.job_name(one, stage): (one, stage) for one in self.submissions.values() for stage in STAGES}

    def run_of(self, token: str, index: int) -> str:
        """The run that an array index stands for. Raises PspoError where the submission is not known here."""
        submission = self.submissions.get(token)
        if submission is None or index >= len(submission.cells):
            raise PspoError(f"{self.path} knows no run {index} of submission {token}: submit the study again")
        return submission.cells[index]

    def last_array(self, stage: Stage, run: str) -> Job | None:
        """The array of a stage that was submitted last with this run in it."""
        for submission in reversed(self.submissions.values()):
            for job in reversed(submission.jobs):
                if job.stage == stage and run in [submission.cells[index] for index in job.cells]:
                    return job
        return None

    def last_job(self, stage: Stage, cells: Sequence[str]) -> Job | None:
        """The single job of a stage that was submitted last for just these runs."""
        jobs = [job for one in self.submissions.values() if one.cells == tuple(cells) for job in one.jobs]
        return next((job for job in reversed(jobs) if job.stage == stage), None)

    def index_of(self, job: Job, run: str) -> int:
        """A run's index in an array of this ledger."""
        [submission] = [one for one in self.submissions.values() if job in one.jobs]
        return next(index for index in job.cells if submission.cells[index] == run)

    def _take(self, line: str) -> None:
        try:
            said = json.loads(line)
            if "time" in said:
                one = Submission(said["submission"], said["time"], tuple(said["cells"]))
                self.submissions[one.token] = one
            else:
                self.submissions[said["submission"]].jobs.append(Job(said["stage"], said["job"], tuple(said["cells"])))
        except (ValueError, KeyError, TypeError) as error:
            raise PspoError(f"{self.path}: a line cannot be read ({line[:80]!r}): remove that line") from error
