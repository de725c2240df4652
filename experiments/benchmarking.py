"""The benchmarks that a study lists for its trained policies: the last and the best checkpoint of each complete run.

Each is `python eval/evaluate.py` on a checkpoint, under the benchmark's own protocol and at its temperatures, into the
run's eval/ directory; beside it the run has graded itself on its own test part (src/pspo/run.py).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from driver import Task
from pspo.config import EvalConfig, StudyConfig, compose, to_yaml
from pspo.errors import PspoError
from pspo.grading import Style
from records import read_json
from studies import Cell, Study, group_of, override, threads

EVALUATE = Path(__file__).resolve().parents[1] / "eval" / "evaluate.py"


def benchmark_tasks(
    cells: Sequence[Cell], study: Study, cfg: StudyConfig, whether_complete: bool = False
) -> list[Task]:
    """The evaluations that are missing, of the runs that are complete.

    `whether_complete` also of those that are not: then they say what will be missing, and are not to be run.
    """
    tasks = []
    for cell in cells:
        if not cell.complete and not whether_complete:
            continue
        for name, overrides in study.scales[cfg.scale].benchmarks.items():
            for which, step in checkpoints_of(cell).items():
                task = _task(cell, cfg, name, which, step, overrides)
                if not task.product.exists():
                    tasks.append(task)
    return tasks


def checkpoints_of(cell: Cell) -> dict[str, int]:
    """Which checkpoint -> its step: "" is the last one, ".best" the best by validation, where that is another."""
    last = {"": cell.cfg.steps}
    if not cell.complete:
        return last
    path = cell.run_dir / "summary.json"
    best = read_json(path).get("best_step")
    if not isinstance(best, int | None):
        raise PspoError(f"{path}: best_step is not a step")
    return last if best in (None, cell.cfg.steps) else {**last, ".best": best}


def evaluations_of(cell: Cell, study: Study, cfg: StudyConfig) -> dict[str, EvalConfig]:
    """The study's benchmarks as this cell's policy is asked them; raises ConfigError for a setting that cannot be."""
    return {
        name: _composed(_settings(cell, overrides)) for name, overrides in study.scales[cfg.scale].benchmarks.items()
    }


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of one policy: the "last" or the "best" checkpoint, which may be the same; its file."""

    benchmark: str
    which: str
    temperature: float
    path: Path
    style: Style


def evaluated(cell: Cell, study: Study, cfg: StudyConfig) -> list[Evaluated]:
    """The evaluations of a complete run that the study asks for, and that are there. Where the last checkpoint is the
    best its evaluation stands for both: else "best" would be of those runs alone that got worse."""
    best = ".best" if ".best" in checkpoints_of(cell) else ""
    found = []
    for name, overrides in study.scales[cfg.scale].benchmarks.items():
        settings = _settings(cell, overrides)
        asked = _composed(settings)
        for label, which in (("last", ""), ("best", best)):
            out = _out(cell, name, which, settings)
            found += [Evaluated(name, label, T, _at(out, T), asked.prompt.style) for T in asked.temperatures]
    return [one for one in found if one.path.with_suffix(".summary.json").exists()]


def _out(cell: Cell, name: str, which: str, settings: tuple[str, ...]) -> Path:
    """Where evaluations are, {T} for the temperature where there are several."""
    asked = _composed(settings)
    protocol = hashlib.sha256(to_yaml(asked).encode()).hexdigest()[:8]
    at = ".T{T}" if len(asked.temperatures) > 1 else ""
    return cell.run_dir / "eval" / f"{name}{which}.{protocol}{at}.jsonl"


def _at(out: Path, temperature: float) -> Path:
    return out.with_name(out.name.replace("{T}", f"{temperature:g}"))


def _task(cell: Cell, cfg: StudyConfig, name: str, which: str, step: int, overrides: Sequence[str]) -> Task:
    settings = _settings(cell, overrides)
    out = _out(cell, name, which, settings)
    last = _composed(settings).temperatures[-1]  # they are evaluated in order
    checkpoint = override("checkpoint", str(cell.run_dir / "checkpoints" / f"step-{step}"))
    return Task(
        name=f"{name} of {cell.name}{which}",
        command=(sys.executable, str(EVALUATE), checkpoint, override("out", str(out)), *settings),
        log=Path(cfg.runs) / "logs" / f"{cell.run_dir.name}.{name}{which}.log",
        product=_at(out, last).with_suffix(".summary.json"),
        environment=threads(cfg),
    )


def _settings(cell: Cell, overrides: Sequence[str]) -> tuple[str, ...]:
    """The benchmark picks data, prompt and token limits; what the run says of model and engine holds here as well."""
    return (
        *overrides,
        *(text for text in cell.overrides if group_of(text) in ("model", "rollout")),
        f"device={cell.cfg.device}",
        f"threads={'null' if cell.cfg.threads is None else cell.cfg.threads}",
    )


@cache
def _composed(settings: tuple[str, ...]) -> EvalConfig:
    return compose("eval", EvalConfig, ["checkpoint=any", "out='any{T}'", *settings])
