"""A study on a SLURM cluster: `make slurm`, or `python experiments/reproduce.py launcher=slurm`.

    start      what the runs start from: made, and evaluated
    train      an array, a task a run that is missing; after start, where something has to be made for it
    evaluate   an array, a task a run: the study's benchmarks; each after its own run
    report     tables, figures and report; after all of them, however they ended

What is complete, in the queue, or has failed by itself is not submitted (docs/running-on-slurm.md). What jobs ask of
the cluster is in conf/slurm; jobs/ has the parts.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarking import benchmark_tasks
from jobs.ledger import Ledger, Stage, Submission
from jobs.options import sbatch_options
from jobs.queue import has_slurm
from jobs.states import State, Survey
from pspo.config import StudyConfig, compose
from pspo.config.schema import Slurm
from pspo.errors import ConfigError, PspoError
from studies import Cell, Study, override, quoted_value

ROOT = Path(__file__).resolve().parents[1]
OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "PMI", "OMPI_")
OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")


def submit(cfg: StudyConfig, study: Study, cells: Sequence[Cell], to_make: bool, to_evaluate: bool) -> None:
    """Submits what is missing of a study, and prints the jobs. `to_make`, `to_evaluate`: is something missing of what
    the runs start from? Raises PspoError where there is no cluster, or where that has failed by itself before."""
    if not has_slurm():
        raise PspoError("launcher=slurm needs sbatch, which is not here; run it where jobs are submitted, or locally")
    runs = [cell.run_dir.name for cell in cells]
    ledger = Ledger(cfg.runs, cfg.study, cfg.scale)
    survey = Survey(ledger, runs, cluster=True)
    wanted = [cell for cell in cells if cfg.cell in (None, cell.index)]
    states = {cell.index: train_state(cfg, survey, cell) for cell in wanted}
    train = [index for index, state in states.items() if submits(state, cfg)]
    new = Submitting(cfg, ledger, survey, runs)
    after = new.start(to_make, to_evaluate, bool(train))
    trained = new.array("train", train, after, f"{len(train)} of {len(cells)} runs")
    unevaluated = [cell for cell in wanted if benchmark_tasks([cell], study, cfg, whether_complete=True)]
    again = [one.index for one in unevaluated if submits(evaluate_state(cfg, survey, one, complete=False), cfg)]
    ready = [index for index in again if states[index].name == "complete"]
    new.array("evaluate", ready, [], f"the benchmarks of {len(ready)} complete runs")
    if following := [index for index in again if index in train]:
        depends = [f"--dependency=aftercorr:{trained}", "--kill-on-invalid-dep=yes"]
        new.array("evaluate", following, depends, f"the benchmarks of {len(following)} runs, each after its run")
    new.report()
    tell(cfg, cells, states, new)


class Submitting:
    """The jobs of one submission, as they are submitted."""

    def __init__(self, cfg: StudyConfig, ledger: Ledger, survey: Survey, runs: Sequence[str]) -> None:
        self.cfg, self.ledger, self.survey, self.runs = cfg, ledger, survey, runs
        self.submission: Submission | None = None
        self.jobs: list[str] = []

    def start(self, to_make: bool, to_evaluate: bool, needed: bool) -> list[str]:
        """Options that let the runs wait for what is made for them."""
        if not (needed and to_make) and not to_evaluate:
            return []
        state = self.survey.state("start", "", complete=False, log=log_of(self.cfg, "start"))
        if state.in_queue:
            job = state.job
        elif submits(state, self.cfg):
            job = self.job("start", [], "what the runs start from")
        elif not to_make:
            print(f"what the runs start from was not evaluated: {state.text}; {'; '.join(state.look)}")
            return []
        else:
            raise PspoError(
                f"what the runs start from failed by itself: {state.text}; {'; '.join(state.look)}; "
                "retry_failed=true submits it all the same"
            )
        return [f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes"] if to_make else []

    def array(self, stage: Stage, indices: Sequence[int], depends: Sequence[str], what: str) -> str:
        if not indices:
            return ""
        ranks = stage == "train"
        return self.job(stage, [f"--array={','.join(map(str, indices))}", *depends], what, indices, ranks)

    def report(self) -> None:
        """The tables, after everything that is under way; nothing where this submission brings nothing new."""
        if not self.jobs:
            return
        under_way = {row.job.partition("_")[0] for (stage, _), row in self.survey.rows.items() if stage != "report"}
        depends = f"--dependency=afterany:{':'.join(sorted(under_way | set(self.jobs), key=int))}"
        self.job("report", [depends], "tables and report, after them", gpus=False)

    def job(
        self,
        stage: Stage,
        options: Sequence[str],
        what: str,
        indices: Sequence[int] = (),
        ranks: bool = False,
        gpus: bool = True,
    ) -> str:
        self.submission = self.submission or self.ledger.open(self.runs)
        name = self.ledger.job_name(self.submission, stage)
        folder = Path(self.cfg.runs) / "logs" / "slurm"
        folder.mkdir(parents=True, exist_ok=True)
        pattern = log_pattern(folder, array=bool(indices))
        job = sbatch(
            self.cfg.slurm,
            [f"--job-name={name}", f"--output={pattern}", *sbatch_options(self.cfg.slurm, ranks, gpus), *options],
            "study.sh",
            [stage, *arguments_of(self.cfg), f"submission={self.submission.token}"],
        )
        self.ledger.add(self.submission, stage, job, indices)
        self.jobs.append(job)
        print(f"submitted {job}: {what}", flush=True)
        return job


def log_pattern(folder: Path, array: bool) -> str:
    """Where a job's own log goes, as sbatch reads it: a % of the folder's name is none of its symbols.

    >>> log_pattern(Path("/a/50%"), array=True)
    '/a/50%%/%A_%a.out'

    Raises ConfigError for a name with a backslash, at which sbatch leaves the symbols as they are.
    """
    if "\\" in str(folder):
        raise ConfigError("runs", folder, "must hold no backslash where sbatch writes the logs of jobs into it")
    return f"{folder}/".replace("%", "%%") + ("%A_%a.out" if array else "%j.out")


def sbatch(asked: Slurm, options: Sequence[str], script: str, arguments: Sequence[str]) -> str:
    """Submits one of slurm/'s scripts from the current directory; the job's id. Raises PspoError in sbatch's words."""
    done = subprocess.run(
        ["sbatch", "--parsable", "--export=ALL", *options, str(ROOT / "slurm" / script), *arguments],
        capture_output=True,
        text=True,
        env=environment(asked),
    )
    if done.returncode:
        raise PspoError(f"sbatch: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def environment(asked: Slurm) -> dict[str, str]:
    """Of a job: this one's, without what belongs to a job that this may run in, and what slurm/job.sh reads."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OF_A_JOB) or k in OF_THE_CLUSTER}
    ours = {"PSPO_HOME": str(ROOT), "PSPO_MAX_REQUEUES": str(asked.max_requeues)}
    where = {"PSPO_PYTHON": sys.executable} if asked.container is None else {"PSPO_CONTAINER": asked.container}
    return {**kept, **ours, **where}


def submits(state: State, cfg: StudyConfig) -> bool:
    """Is this to be submitted? Not what failed by itself, unless that is asked for."""
    return state.name in ("missing", "lost") or (state.name == "failed" and cfg.retry_failed)


def train_state(cfg: StudyConfig, survey: Survey, cell: Cell) -> State:
    return survey.state("train", cell.run_dir.name, cell.complete, log_of(cfg, "train", cell))


def evaluate_state(cfg: StudyConfig, survey: Survey, cell: Cell, complete: bool) -> State:
    return survey.state("evaluate", cell.run_dir.name, complete, log_of(cfg, "evaluate", cell))


def log_of(cfg: StudyConfig, stage: Stage, cell: Cell | None = None) -> Path:
    """Where the programs of a stage write, and beside it the record of its attempts (jobs/attempts.py)."""
    if cell is None:
        return Path(cfg.runs) / "logs" / f"{cfg.study}-{cfg.scale}.{stage}.log"
    return Path(cfg.runs) / "logs" / f"{cell.run_dir.name}{'' if stage == 'train' else '.benchmarks'}.log"


def tell(cfg: StudyConfig, cells: Sequence[Cell], states: dict[int, State], new: Submitting) -> None:
    """What was left alone, and what to do next."""
    counted = Counter(state.name for state in states.values())
    left = ", ".join(
        f"{number} {name}" for name, number in counted.items() if name in ("complete", "waiting", "running")
    )
    if left:
        print(f"not submitted: {left}")
    if failed := [] if cfg.retry_failed else [i for i, state in states.items() if state.name == "failed"]:
        print("not submitted, because they failed by themselves; retry_failed=true submits them all the same:")
        for index in failed:
            print(f"  {cells[index].name}: {states[index].text}")
            print(f"    {'; '.join(states[index].look)}")
    under_way = new.jobs or counted["waiting"] or counted["running"]
    print(f"next: {command(cfg, 'slurm-status' if under_way else 'report')}")


PROGRAMS = {"slurm": "reproduce.py", "slurm-status": "status.py", "report": "report.py"}


def command(cfg: StudyConfig, target: str, *more: str) -> str:
    """What to type for a target of the Makefile on this study, as short as its settings allow."""
    plain = arguments_of(compose("study", StudyConfig, [f"study={cfg.study}", f"scale={cfg.scale}"]))
    arguments = [*(text for text in arguments_of(cfg) if text not in plain), *more]
    typed = ["make", target, f"STUDY={cfg.study}", f"SCALE={cfg.scale}"]
    if any(shlex.quote(text) != text for text in arguments):  # in ARGS they would be quoted twice
        launcher = ["launcher=slurm"] if target == "slurm" else []
        words = ["python", f"experiments/{PROGRAMS[target]}", *launcher, *plain[:2], *arguments]
        return " ".join(map(quoted, words))
    return " ".join([*typed, f'ARGS="{" ".join(arguments)}"'] if arguments else typed)


def quoted(text: str) -> str:
    """For a shell; in double quotes where that will do, because settings have single ones.

    >>> print(quoted("steps=2"), quoted("overrides=['steps=2']"))
    steps=2 "overrides=['steps=2']"
    """
    return f'"{text}"' if shlex.quote(text) != text and not set(text) & set('"$`\\!') else shlex.quote(text)


def arguments_of(cfg: StudyConfig) -> list[str]:
    """The command line of reproduce.py and report.py that gives `cfg`, but for the launcher, the choice of cells and
    what is asked of a cluster."""
    plain = [f"{key}={getattr(cfg, key)}" for key in ("study", "scale", "jobs", "rollout", "tracking")]
    paths = [override(key, getattr(cfg, key)) for key in ("results", "runs", "models")]
    more = ",".join(map(quoted_value, cfg.overrides))
    return [*plain, *paths, f"overrides=[{more}]"]
