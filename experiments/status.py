"""make slurm-status, or `python experiments/status.py study=main`: every run of a study, by what became of it.

Asks SLURM where it is here, and says what the files say elsewhere. With what failed: why, and commands that show more.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import slurm
from benchmarking import benchmark_tasks
from driver import tail
from jobs.ledger import Ledger
from jobs.queue import has_slurm
from jobs.states import Name, State, Survey
from pspo.config import StudyConfig, program
from pspo.errors import PspoError
from slurm import command
from studies import Cell, Study, cells_of, load_study


@program("study", StudyConfig)
def main(cfg: StudyConfig) -> None:
    study = load_study(cfg.study)
    cells, ledger = cells_of(study, cfg), Ledger(cfg.runs, cfg.study, cfg.scale)
    runs = [cell.run_dir.name for cell in cells]
    try:
        survey = Survey(ledger, runs, cluster=has_slurm())
    except PspoError as error:
        print(f"the queue cannot be read, so this is what the files say: {error}", file=sys.stderr)
        survey = Survey(ledger, runs, cluster=False)
    for line in lines(study, cells, cfg, survey):
        print(line)


def lines(study: Study, cells: Sequence[Cell], cfg: StudyConfig, survey: Survey) -> Iterator[str]:
    states = {cell.name: with_progress(cell, slurm.train_state(cfg, survey, cell)) for cell in cells}
    counted = Counter(state.name for state in states.values())
    summary = ", ".join(f"{counted[name]} {name}" for name in get_args(Name) if counted[name])
    yield f"study {cfg.study} at scale {cfg.scale}: {len(cells)} runs: {summary}"
    for name, state in states.items():
        yield from shown(name, state)
    for name, state in besides(study, cells, cfg, survey):
        yield from shown(name, state)
    yield next_step(cfg, counted)


def besides(study: Study, cells: Sequence[Cell], cfg: StudyConfig, survey: Survey) -> Iterator[tuple[str, State]]:
    """What is not a run: where there is something to say of it."""
    made = all(cell.start_evaluation.exists() for cell in cells)
    start = survey.state("start", "", made, slurm.log_of(cfg, "start"))
    if start.name != "complete":
        yield "(what the runs start from)", start
    for cell in cells:
        if cell.complete and (missing := benchmark_tasks([cell], study, cfg)):
            state = slurm.evaluate_state(cfg, survey, cell, complete=False)
            names = ", ".join(sorted({task.name.partition(" ")[0] for task in missing}))
            yield f"(benchmarks of {cell.name})", State(state.name, f"{names}; {state.text}".strip("; "), state.look)
    report = survey.state("report", "", complete=False, log=slurm.log_of(cfg, "report"))
    if report.in_queue or report.name in ("failed", "lost"):
        yield "(the report)", report


def with_progress(cell: Cell, state: State) -> State:
    """The state of a run, with the last step that it has written where it has begun and not ended."""
    step = last_step(cell.run_dir)
    if state.name == "complete" or step is None:
        return state
    text = f"step {step} of {cell.cfg.steps}; {state.text}".strip("; ")
    name: Name = "lost" if state.name == "missing" else state.name
    unknown = "" if state.name != "missing" else "; begun, and not by a job"
    return State(name, text + unknown, state.look, state.job)


def last_step(run_dir: Path) -> int | None:
    """The step of the last whole line of metrics.jsonl; None where there is none."""
    for line in reversed(tail(run_dir / "metrics.jsonl", 32_768)):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # being written, or the first, which may be cut
            continue
    return None


def shown(name: str, state: State) -> Iterator[str]:
    yield f"  {state.name:<9} {name}{': ' if state.text else ''}{state.text}"
    if state.name in ("failed", "lost"):
        yield from (f"            {command}" for command in state.look)


def next_step(cfg: StudyConfig, counted: Counter[Name]) -> str:
    if left := counted["lost"] + counted["missing"]:
        return f"to submit the {left} that are neither complete, nor in the queue, nor failed: {command(cfg, 'slurm')}"
    if counted["failed"]:
        return f"to submit what failed all the same: {command(cfg, 'slurm', 'retry_failed=true')}"
    if counted["running"] or counted["waiting"]:
        return "nothing to do"
    return f"all complete: {command(cfg, 'report')}"


if __name__ == "__main__":
    main()
