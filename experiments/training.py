"""What training was like: one Course a method and regime, from the metrics that its runs wrote. Never torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from records import Metrics
from results import grouped, metrics_of
from studies import Cell

VALIDATION = "eval/validation_accuracy"


@dataclass(frozen=True)
class Course:
    """Of a method's complete runs: the mean over their seeds, of each its mean over steps where nothing else is said.
    None: no run has it on record.

    ratio        |r - 1| (ratio/abs_dev_mean)
    no_slope     share of tokens with an advantage from which the surrogate takes no gradient (slope/zero_share)
    small_slope  share of those of which it passes on less than a tenth (slope/small_share)
    kl           of a step, nats a token (kl/k3)
    entropy      of the last step, nats a token (policy/entropy)
    grad_norm    before clipping (optim/grad_norm)
    highest      the highest mean accuracy on the validation part, at step `at`; `end`: that of the last step
    seconds      of a step, evaluations and checkpoints apart (time/step_s)
    """

    model: str
    data: str
    regime: str
    arm: str
    done: int
    planned: int
    ratio: float | None
    no_slope: float | None
    small_slope: float | None
    kl: float | None
    entropy: float | None
    grad_norm: float | None
    highest: float | None
    at: int | None
    end: float | None
    seconds: float | None

    @property
    def group(self) -> tuple[str, str, str]:
        return self.model, self.data, self.regime


def courses_of(cells: Sequence[Cell]) -> list[Course]:
    """In the study's order; a method without a complete run has no line."""
    found: list[Course] = []
    for (model, data, regime, arm), members in grouped(cells, lambda c: (c.model, c.data, c.regime, c.arm)):
        runs = [metrics_of(cell) for cell in members if cell.complete]
        if not runs:
            continue
        steps = runs[0].steps.tolist()
        validated = {step: value for step in steps if (value := at(runs, step)) is not None}
        best = max(validated, key=lambda step: validated[step], default=None)
        found.append(
            Course(
                *(model, data, regime, arm, len(runs), len(members)),
                ratio=over_steps(runs, "ratio/abs_dev_mean"),
                no_slope=over_steps(runs, "slope/zero_share"),
                small_slope=over_steps(runs, "slope/small_share"),
                kl=over_steps(runs, "kl/k3"),
                entropy=mean([last(run, "policy/entropy") for run in runs]),
                grad_norm=over_steps(runs, "optim/grad_norm"),
                highest=None if best is None else validated[best],
                at=best,
                end=validated.get(int(runs[0].steps[-1])),
                seconds=over_steps(runs, "time/step_s"),
            )
        )
    return found


def over_steps(runs: Sequence[Metrics], metric: str) -> float | None:
    return mean([mean(run[metric].tolist()) for run in runs])


def last(run: Metrics, metric: str) -> float | None:
    return float(run[metric][-1]) if len(run.steps) else None


def at(runs: Sequence[Metrics], step: int) -> float | None:
    """Mean validation accuracy at a step; None where not every run has it."""
    values = [float(value) for run in runs for value in run[VALIDATION][run.steps == step]]
    return float(np.mean(values)) if len(values) == len(runs) and np.isfinite(values).all() else None


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there and finite.

    >>> mean([1.0, None, float("inf"), 2.0]), mean([])
    (1.5, None)
    """
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None
