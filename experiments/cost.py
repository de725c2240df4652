"""What a study takes at each of its scales: counted from its settings, in hours where it was run. Never torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarking import evaluations_of
from complete import grouped, metrics_of
from forecasts import device_hours, forecast_of, machine
from pspo.config import StudyConfig
from pspo.config.programs import TrainConfig
from pspo.errors import PspoError
from pspo.plan.forecast import problems_of, validations_of
from studies import Cell, Study, cells_of

CLOCKS = ("time/step_s", "time/eval_s", "time/save_s")
"""What does not overlap of the seconds that a run writes down for each step."""


@dataclass(frozen=True)
class Cost:
    """Of all runs of one model and data set at a scale. Tokens are the most that the limits allow, ends included.

    completions  sampled in training
    sampled      their tokens
    learned      tokens of completions, or of solutions, gone through by the learner: each pass over a batch counts
    evaluated    completions of validations, of the test part at the end (last and best policy), and of the study's
                 benchmarks; None where a data set does not say how many problems it has
    hours        of the `done` runs, steps with evaluations and checkpoints between them; loading and the evaluation at
                 the end are not in it. Runs beside each other count each. None: none is complete.
    forecast     GPU-hours of all of them and all their evaluations (forecasts.py); None where they run on a CPU, the
                 policy's sizes are not known, or one fits nowhere
    unlike       how many of them fit on one GPU only with other settings, or need several
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
    evaluated: int | None
    hours: float | None
    forecast: float | None
    unlike: int

    @property
    def group(self) -> str:
        return self.scale


def costs_of(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> list[Cost]:
    """At the scale of the cells, of which some may have been run: a Cost a model and data set."""
    return [cost_of(here, study, cfg) for _, here in grouped(cells, place)]


def costs_elsewhere(study: Study, cfg: StudyConfig) -> list[Cost]:
    """At the study's other scales, without the settings that were chosen for this one; there nothing has been run in
    `cfg.runs`, as far as is looked."""
    others = [replace(cfg, scale=scale, overrides=()) for scale in study.scales if scale != cfg.scale]
    return [cost for other in others for cost in costs_of(study, cells_of(study, other), other)]


def place(cell: Cell) -> tuple[str, str]:
    return cell.model, cell.data


def cost_of(cells: Sequence[Cell], study: Study, cfg: StudyConfig) -> Cost:
    """Of cells of one model and data set."""
    evaluations = [evaluated_by(cell, study, cfg) for cell in cells]
    complete = [cell for cell in cells if cell.complete]
    sequences = [sequences_of(cell.cfg) for cell in cells]
    forecast, unlike = gpu_hours(cells, study, cfg)
    return Cost(
        cfg.scale,
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
        evaluated=None if None in evaluations else sum(one for one in evaluations if one is not None),
        hours=sum(seconds_of(cell) for cell in complete) / 3600 if complete else None,
        forecast=forecast,
        unlike=unlike,
    )


def gpu_hours(cells: Sequence[Cell], study: Study, cfg: StudyConfig) -> tuple[float | None, int]:
    """Of all of them, and how many are not as they are set up."""
    if any(cell.cfg.device == "cpu" for cell in cells):
        return None, 0
    try:
        plans = [forecast_of(cell, machine()) for cell in cells]
    except PspoError:  # a policy of one's own, which is not on this machine
        return None, 0
    hours = [device_hours(cell, study, cfg, plan) for cell, plan in zip(cells, plans, strict=True)]
    known = [one for one in hours if one is not None]
    return sum(known) if len(known) == len(hours) else None, sum(not plan.fits for plan in plans)


def sequences_of(cfg: TrainConfig) -> int:
    """That a run learns from: completions, or solutions, of which a problem has one."""
    return cfg.steps * cfg.rollout.prompts * (1 if cfg.train_on == "solutions" else cfg.rollout.group_size)


def evaluated_by(cell: Cell, study: Study, cfg: StudyConfig) -> int | None:
    """Completions of a run's evaluations, and of its policies' on the study's benchmarks. The best policy is counted
    beside the last, though they may be the same."""
    validations = validations_of(cell.cfg) * cell.cfg.eval.validation_problems
    at_end = [(cell.cfg.data, cell.cfg.eval.test_problems, 1)]
    for asked in evaluations_of(cell, study, cfg).values():
        each = sum(1 if T == 0 else asked.samples for T in asked.temperatures)
        at_end.append((asked.data, asked.limit, each))
    counts = [(problems_of(data, limit), each) for data, limit, each in at_end]
    if any(problems is None for problems, _ in counts):
        return None
    return validations + 2 * sum((problems or 0) * each for problems, each in counts)


def seconds_of(cell: Cell) -> float:
    columns = [metrics_of(cell)[clock] for clock in CLOCKS]
    return sum(float(column[np.isfinite(column)].sum()) for column in columns)
