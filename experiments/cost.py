"""What a study takes at each of its scales: counted from its settings, in hours where it was run. Never torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pspo.config import StudyConfig
from pspo.config.programs import TrainConfig
from records import read_metrics
from results import grouped
from studies import Cell, Study, cells_of

CLOCKS = ("time/step_s", "time/eval_s", "time/save_s")
"""What does not overlap of the seconds that a run writes down for each step."""


@dataclass(frozen=True)
class Cost:
    """Of all runs of one model and data set at a scale. Tokens are the most that the limits allow, ends included.

    completions  sampled in training
    sampled      their tokens
    learned      tokens of completions, or of solutions, gone through by the learner: each pass over a batch counts
    validated    completions of the validations
    hours        of the `done` runs, steps with evaluations and checkpoints between them; loading and the evaluation at
                 the end are not in it. Runs beside each other count each. None: none is complete.
    """

    scale: str
    model: str
    data: str
    done: int
    planned: int
    steps: int
    completions: int
    sampled: int
    learned: int
    validated: int
    hours: float | None

    @property
    def group(self) -> str:
        return self.scale


def costs_of(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> list[Cost]:
    """This scale's first; at another nothing has been run in `cfg.runs`, as far as is looked."""
    found = [cost_of(cfg.scale, here) for _, here in grouped(cells, place)]
    for scale in study.scales:
        if scale != cfg.scale:
            other = cells_of(study, replace(cfg, scale=scale, overrides=()))
            found += [cost_of(scale, here) for _, here in grouped(other, place)]
    return found


def place(cell: Cell) -> tuple[str, str]:
    return cell.model, cell.data


def cost_of(scale: str, cells: Sequence[Cell]) -> Cost:
    """Of cells of one model and data set."""
    complete = [cell for cell in cells if cell.complete]
    sequences = [sequences_of(cell.cfg) for cell in cells]
    return Cost(
        scale,
        *place(cells[0]),
        done=len(complete),
        planned=len(cells),
        steps=sum(cell.cfg.steps for cell in cells),
        completions=sum(n for cell, n in zip(cells, sequences, strict=True) if cell.cfg.train_on != "solutions"),
        sampled=sum(
            n * cell.cfg.rollout.max_new_tokens
            for cell, n in zip(cells, sequences, strict=True)
            if cell.cfg.train_on != "solutions"
        ),
        learned=sum(
            n * cell.cfg.rollout.max_new_tokens * cell.cfg.learner.passes
            for cell, n in zip(cells, sequences, strict=True)
        ),
        validated=sum(validations_of(cell.cfg) * cell.cfg.eval.validation_problems for cell in cells),
        hours=sum(seconds_of(cell) for cell in complete) / 3600 if complete else None,
    )


def sequences_of(cfg: TrainConfig) -> int:
    """That a run learns from: completions, or solutions, of which a problem has one."""
    return cfg.steps * cfg.rollout.prompts * (1 if cfg.train_on == "solutions" else cfg.rollout.group_size)


def validations_of(cfg: TrainConfig) -> int:
    """Before the first step, every `eval.every` steps, and after the last."""
    return 1 + -(-cfg.steps // cfg.eval.every) if cfg.eval.every else 0


def seconds_of(cell: Cell) -> float:
    lines = read_metrics(cell.run_dir).values()
    return sum(float(line.get(clock) or 0.0) for line in lines for clock in CLOCKS)
