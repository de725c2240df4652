"""python experiments/reproduce.py study=main scale=cpu: runs what is missing of a study, then rebuilds its tables.

    what the cells start from: made (pspo.sft) and evaluated (eval/evaluate.py) where that is missing
    every cell without DONE:   python -m pspo.train <its overrides>, `jobs` at a time, log in <runs>/logs/
    the study's benchmarks:    eval/evaluate.py on each complete run's last and best policy (benchmarking.py)
    the audit of the grader:   audit.py, where the study is complete
    tables, figures, report:   report.py; the table's path is the last line of the output

A run that fails does not stop the others; the program then ends with status 1 (77 where all that failed was held by
another process) and names each, with the table written
from what there is. Interrupted, it ends its children and exits with 130. Imports no torch: that is for the children.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import changes
import slurm
from benchmarking import benchmark_tasks
from driver import Outcome, Task, run_tasks
from progress import Progress
from pspo.config import EvalConfig, SftConfig, StudyConfig, compose, program, warm_start_dir
from pspo.errors import BusyError, ConfigError, PspoError
from pspo.rundir import locked
from report import rebuild
from studies import Cell, Study, cells_of, group_of, load_study, override, threads

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0
"""Of a job that makes the tables, for another process: `make slurm` holds the study while it submits."""


@program("study", StudyConfig)
def main(cfg: StudyConfig) -> None:
    try:
        reproduce(cfg)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        sys.exit(130)


def reproduce(cfg: StudyConfig) -> None:
    study = load_study(cfg.study)
    cells = cells_of(study, cfg)
    chosen = cells if cfg.cell is None else [one_cell(cells, cfg)]
    benchmark_tasks(cells, study, cfg, whether_complete=True)  # what cannot be is told before hours of training
    lock = Path(cfg.runs) / f".study-{cfg.study}.lock"
    if cfg.launcher == "slurm":
        with alone(lock, patience=0):
            changes.tell(cfg, cells)
            slurm.submit(cfg, study, cells, bool(start_tasks(chosen, cfg)), bool(evaluation_tasks(chosen, cfg)))
        return
    whole = cfg.cell is None and cfg.only in (None, "tables")
    patience = PATIENCE_S if cfg.only == "tables" else 0
    with alone(lock, patience) if whole else contextlib.nullcontext():
        if whole:
            changes.tell(cfg, cells)
        failures = run_missing(chosen, cfg) if cfg.only in (None, "start") else []
        if cfg.only in (None, "benchmarks"):
            failures += run_benchmarks(chosen, study, cfg)
        if whole:
            if not failures:
                audit_grades(cells, cfg)
            print(rebuild(study, cells, cfg))
    if failures:
        for outcome in failures:
            say(f"FAILED {outcome.task.name}: {outcome.error}; log: {outcome.task.log}")
        sys.exit(BusyError.status if all(outcome.status == BusyError.status for outcome in failures) else 1)


def one_cell(cells: Sequence[Cell], cfg: StudyConfig) -> Cell:
    """The cell that `cfg.cell` names: by its number in a submission, where there is one, else in the study as it is.

    Raises PspoError where the study was edited since, and has that run no more; ConfigError for a number it has not.
    """
    assert cfg.cell is not None
    if cfg.submission is not None:
        run = slurm.Ledger(cfg.runs, cfg.study, cfg.scale).run_of(cfg.submission, cfg.cell)
        for cell in cells:
            if cell.run_dir.name == run:
                return cell
        raise PspoError(
            f"study {cfg.study} was changed since this job was submitted and has no run {run} any more: nothing was "
            f"run, nothing is lost; submit the study as it is now (make slurm STUDY={cfg.study} SCALE={cfg.scale})"
        )
    if cfg.cell >= len(cells):
        last = len(cells) - 1
        raise ConfigError("cell", cfg.cell, f"study {cfg.study} has cells 0 to {last} at scale={cfg.scale}")
    return cells[cfg.cell]


def run_missing(cells: Sequence[Cell], cfg: StudyConfig) -> list[Outcome]:
    """Makes what the cells start from, then runs those that are not complete; returns the failures."""
    with alone(Path(cfg.models) / f".start-{cfg.study}.lock", patience=None):
        run_or_stop(start_tasks(cells, cfg), cfg)
        # Beside the first cells it would be quicker, but then each job of an array would evaluate it.
        run_or_stop(evaluation_tasks(cells, cfg), cfg)
    if cfg.only == "start":
        return []
    missing = [cell for cell in cells if not cell.complete]
    if not missing:
        what = cells[0].name if len(cells) == 1 else f"all {len(cells)} runs of study {cfg.study}"
        say(f"nothing to run: {what} complete")
        return []
    with Progress(len(cells), len(cells) - len(missing), cfg.jobs) as view:
        outcomes = run_tasks([cell_task(cell, cfg) for cell in missing], cfg.jobs, view)
    return [outcome for outcome in outcomes if outcome.error]


def run_benchmarks(cells: Sequence[Cell], study: Study, cfg: StudyConfig) -> list[Outcome]:
    """Evaluates complete runs on the study's benchmarks, where that is missing; returns the failures."""
    tasks = benchmark_tasks(cells, study, cfg)
    if not tasks:
        return []
    with Progress(len(tasks), 0, cfg.jobs) as view:
        return [outcome for outcome in run_tasks(tasks, cfg.jobs, view) if outcome.error]


def audit_grades(cells: Sequence[Cell], cfg: StudyConfig) -> None:
    """The audit of the grader for the report, where runs are new. The report does not depend on it."""
    from audit import audit_study

    try:
        audit_study(cells, cfg)
    except PspoError as error:
        say(f"no audit of the grader: {error}")


def run_or_stop(tasks: Sequence[Task], cfg: StudyConfig) -> None:
    """Runs what everything else needs, one after the other."""
    if not tasks:
        return
    with Progress(len(tasks), 0, 1) as view:
        for task in tasks:
            [outcome] = run_tasks([task], 1, view)
            if outcome.error:
                kind = BusyError if outcome.status == BusyError.status else PspoError
                raise kind(f"{task.name} failed: {outcome.error}; log: {task.log}")


def cell_task(cell: Cell, cfg: StudyConfig) -> Task:
    """`python -m pspo.train <overrides>`, in a worker that goes on to the next: loading takes half of a small run."""
    log = Path(cfg.runs) / "logs" / f"{cell.run_dir.name}.log"
    return Task(
        name=cell.name,
        command=(sys.executable, str(ROOT / "experiments" / "worker.py")),
        job={"overrides": list(cell.overrides), "log": str(log)},
        log=log,
        product=cell.run_dir / "DONE",
        environment=threads(cfg),
        metrics=cell.run_dir / "metrics.jsonl",
        steps=cell.cfg.steps,
    )


def start_tasks(cells: Sequence[Cell], cfg: StudyConfig) -> list[Task]:
    """The warm starts that the cells need and that are not there."""
    tasks: dict[Path, Task] = {}
    for cell in cells:
        start = cell.start_dir
        if cell.cfg.model.path is not None or start in tasks or (start / "DONE").exists():
            continue
        overrides = [text for text in cell.overrides if group_of(text) in ("models", "model", "sft", "data", "prompt")]
        if warm_start_dir(compose("sft", SftConfig, overrides)) != start:
            raise PspoError(f"{cell.name} starts from {start}, which pspo.sft {' '.join(overrides)} would not make")
        tasks[start] = Task(
            name=f"warm start {start.name}",
            command=(sys.executable, "-m", "pspo.sft", *overrides),
            log=Path(cfg.runs) / "logs" / f"sft-{start.name}.log",
            product=start / "DONE",
        )
    return list(tasks.values())


def evaluation_tasks(cells: Sequence[Cell], cfg: StudyConfig) -> list[Task]:
    """The evaluations of starting policies, on the cells' test parts, that are not there in the size asked for."""
    tasks: dict[Path, Task] = {}
    for cell in cells:
        path = cell.start_evaluation
        if path in tasks or path.exists():
            continue
        limit = cell.cfg.eval.test_problems
        # The benchmark picks model, prompt and token limits; what was chosen for the run holds here as well.
        settings = ("model", "data", "prompt", "sampling", "rollout", "eval")
        arguments = [
            override("checkpoint", cell.start_checkpoint),
            f"benchmark={cell.cfg.data.name}",
            override("out", str(path)),
            f"device={cell.cfg.device}",
            f"threads={'null' if cell.cfg.threads is None else cell.cfg.threads}",
            f"limit={'null' if limit is None else limit}",
            *(text for text in cell.overrides if group_of(text) in settings),
        ]
        same = compose("eval", EvalConfig, arguments)
        if (same.data, same.prompt, same.eval.max_new_tokens, same.rollout.dtype, same.rollout.engine) != (
            cell.cfg.data,
            cell.cfg.prompt,
            cell.cfg.eval.max_new_tokens,
            cell.cfg.rollout.dtype,
            cell.cfg.rollout.engine,
        ):
            raise PspoError(f"{cell.name} is graded under another protocol than eval/evaluate.py {' '.join(arguments)}")
        tasks[path] = Task(
            name=f"evaluation of {cell.start_dir.name} on {cell.cfg.data.name}",
            command=(sys.executable, str(ROOT / "eval" / "evaluate.py"), *arguments),
            log=Path(cfg.runs) / "logs" / f"eval-{cell.start_dir.name}-{cell.cfg.data.name}.log",
            product=path,
            environment=threads(cfg),
        )
    return list(tasks.values())


@contextlib.contextmanager
def alone(path: Path, patience: float | None) -> Iterator[None]:
    """Holds a lock that ends with this process; `patience` in seconds, None: without end.

    Raises PspoError where another process holds it for longer: a job then tries again later (jobs/verdicts.py).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if patience is not None and not locked(file, patience):
            raise BusyError(f"another process runs this study (it holds {path}); wait for it, or end it")
        if patience is None and not locked(file, 0):
            say("waiting for another process that makes what the runs start from")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
