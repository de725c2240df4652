"""What training was like: one Course a method and regime, from the metrics that its runs wrote. Never torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from complete import grouped, metrics_of, without_clamped
from records import Metrics
from studies import Cell

VALIDATION = "eval/validation_accuracy"
OF_SAMPLES = ("ratio/abs_dev_mean", "kl/k3")
"""Metrics that compare with the policy that sampled: of solutions there is none."""


@dataclass(frozen=True)
class Course:
    """Of a method's complete runs: the mean over their seeds, of each its mean over the steps with an update.

    None where a run has no finite value on record. Ratio and kl are measured before each update, against the policy
    that sampled: a single update a step has none, and SFT has None.

    ratio        |r - 1| (ratio/abs_dev_mean)
    no_slope     share of tokens with an advantage from which the surrogate takes no gradient (slope/zero_share), less
                 those whose ratio is beyond what is computed
    small_slope  share of tokens with an advantage of which it passes on less than a tenth, or nothing
                 (slope/small_share)
    kl           nats a token (kl/k3)
    entropy      of the last step that has one, nats a token (policy/entropy)
    grad_norm    before clipping (optim/grad_norm)
    not_finite   steps, of all runs, in which one of these was not finite; such values are in no mean
    highest      the highest mean accuracy on the validation part, at step `at` (0: before training), the first of
                 equals; `end`: that of the last step
    seconds      median of the steps, evaluations and checkpoints apart (time/step_s)
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
    not_finite: int
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
        sampled = members[0].cfg.train_on != "solutions"
        shown = ["slope/zero_share", "slope/small_share", "policy/entropy", "optim/grad_norm"]
        shown += OF_SAMPLES if sampled else ()
        validated = validations_of(runs)
        best = max(validated, key=lambda step: validated[step], default=None)
        found.append(
            Course(
                *(model, data, regime, arm, len(runs), len(members)),
                ratio=over_seeds([mean(run["ratio/abs_dev_mean"]) for run in runs]) if sampled else None,
                no_slope=over_seeds([mean(without_clamped(run, "slope/zero_share")) for run in runs]),
                small_slope=over_seeds([mean(run["slope/small_share"]) for run in runs]),
                kl=over_seeds([mean(run["kl/k3"]) for run in runs]) if sampled else None,
                entropy=over_seeds([last(run["policy/entropy"]) for run in runs]),
                grad_norm=over_seeds([mean(run["optim/grad_norm"]) for run in runs]),
                not_finite=sum(int(np.any([np.isinf(run[one]) for one in shown], axis=0).sum()) for run in runs),
                highest=None if best is None else validated[best],
                at=best,
                end=validated.get(members[0].cfg.steps),
                seconds=over_seeds([median(run["time/step_s"]) for run in runs]),
            )
        )
    return found


def validations_of(runs: Sequence[Metrics]) -> dict[int, float]:
    """Step -> accuracy on the validation part, mean over runs, of the steps at which all have it."""
    known = [np.isfinite(run[VALIDATION]) for run in runs]
    steps = reduce(np.intersect1d, [run.steps[there] for run, there in zip(runs, known, strict=True)])
    values = np.array([run[VALIDATION][np.searchsorted(run.steps, steps)] for run in runs])
    return {int(step): fmean(of_runs) for step, of_runs in zip(steps, values.T, strict=True)}


def over_seeds(values: Sequence[float | None]) -> float | None:
    """The mean; None where a run has none.

    >>> over_seeds([1.0, 2.0]), over_seeds([1.0, None])
    (1.5, None)
    """
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def mean(column: NDArray[np.float64]) -> float | None:
    """Of what is there and finite."""
    known = column[np.isfinite(column)]
    return float(known.mean()) if len(known) else None


def median(column: NDArray[np.float64]) -> float | None:
    known = column[np.isfinite(column)]
    return float(np.median(known)) if len(known) else None


def last(column: NDArray[np.float64]) -> float | None:
    known = column[np.isfinite(column)]
    return float(known[-1]) if len(known) else None
