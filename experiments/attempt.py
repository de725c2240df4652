"""What slurm/job.sh asks of Python: `attempt.py begin PLAN STAGE SETTING...`, `attempt.py end LOG STATUS [REASON]`,
`attempt.py send LOG MOST`.

begin   writes into the file PLAN, each with a zero byte after it: the log, then the arguments of Python that do the
        job's work. Nothing where there is nothing to do. Notes the attempt (jobs/attempts.py)
end     notes how it ended, prints done, again or failed, and why
send    prints how often the job has sent itself back; if that is less than MOST, notes that it does so once more

Stages: those of a study (jobs/ledger.py), with the settings of reproduce.py; `run`, with those of pspo.train;
`evaluation`, with those of eval/evaluate.py.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs import attempts

HERE = Path(__file__).resolve().parent


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "end":
        log, status, *reason = rest
        verdict = attempts.end(Path(log), int(status), os.environ, " ".join(reason))
        print(": ".join(filter(None, (verdict.kind, verdict.reason))))
        return
    if what == "send":
        log, most = rest
        print(attempts.send(Path(log), int(most), os.environ))
        return
    from pspo.config.compose import one_line_errors  # not needed, and not loaded, at the end

    with one_line_errors():
        path, stage, *settings = rest
        plan = plan_of(stage, settings)
        Path(path).write_bytes(b"".join(part.encode() + b"\0" for part in plan))
        if plan:
            attempts.begin(Path(plan[0]), os.environ)


def plan_of(stage: str, settings: Sequence[str]) -> list[str]:
    """The log and the arguments of Python; [] where there is nothing to do."""
    from jobs.ledger import STAGES
    from pspo.config import EvalConfig, StudyConfig, TrainConfig, compose, run_dir_of
    from pspo.errors import PspoError

    if stage == "run":
        run = compose("train", TrainConfig, settings)
        if (run_dir_of(run) / "DONE").exists():
            print(f"{run_dir_of(run)} is complete")
            return []
        return [str(Path(run.runs) / "logs" / f"{run_dir_of(run).name}.log"), "-m", "pspo.train", *settings]
    if stage == "evaluation":
        asked = compose("eval", EvalConfig, settings)
        name = re.sub(r"[^\w.-]+", "-", f"{asked.checkpoint}-{asked.benchmark}").strip("-")
        return [str(Path("runs") / "logs" / f"eval-{name}.log"), str(HERE.parent / "eval" / "evaluate.py"), *settings]
    if stage not in STAGES:
        raise PspoError(f"{stage}: must be one of run, evaluation, {', '.join(STAGES)}")
    import reproduce
    import slurm
    from studies import cells_of, load_study

    cfg = replace(compose("study", StudyConfig, settings), jobs=1)  # a job has one GPU
    program = [str(HERE / "reproduce.py"), *slurm.arguments_of(cfg)]
    if stage in ("start", "report"):
        only = "only=start" if stage == "start" else "only=tables"
        return [str(slurm.log_of(cfg, stage)), *program, only]
    cell = reproduce.one_cell(cells_of(load_study(cfg.study), cfg), cfg)
    print(cell.name, flush=True)
    if stage == "evaluate":
        log = slurm.log_of(cfg, "evaluate", cell)
        return [str(log), *program, "only=benchmarks", f"cell={cell.index}"]
    if cell.complete:
        print(f"{cell.run_dir} is complete")
        return []
    return [str(slurm.log_of(cfg, "train", cell)), "-m", "pspo.train", *cell.overrides]


if __name__ == "__main__":
    main()
