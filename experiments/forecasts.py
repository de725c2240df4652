"""Hours on a device of a study's runs, before they have run, by pspo.plan (docs/scaling.md). Never torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from benchmarking import evaluations_of
from pspo.config import StudyConfig, load_yaml
from pspo.config.compose import CONF
from pspo.config.machine import Machine
from pspo.plan.forecast import Forecast, fitting, forecast, lengths_of, problems_of
from pspo.plan.shapes import shape_of
from studies import Cell, Study

REFERENCE = "h100"
"""The device that a report's hours are for."""


@cache
def machine(name: str = REFERENCE) -> Machine:
    return load_yaml(CONF / "gpu" / f"{name}.yaml", Machine)


def forecast_of(cell: Cell, on: Machine, prompt: int | None = None, completion: int | None = None) -> Forecast:
    """Of a run on one device; `prompt`, `completion`: tokens on average. Raises PspoError for a policy whose sizes are
    not known."""
    shape = shape_of(cell.cfg.model, cell.start_dir)
    return forecast(cell.cfg, shape, on, 1, lengths_of(cell.cfg, prompt, completion))


def device_hours(cell: Cell, study: Study, cfg: StudyConfig, plan: Forecast) -> float | None:
    """Of the run with all its evaluations: also the study's benchmarks, of its last and its best policy, each a program
    of its own. With the first remedy where it does not fit; None where there is none. A data set that does not say how
    many problems it has counts none."""
    found = fitting(plan)
    if found is None:
        return None
    seconds = 3600 * found.hours
    for asked in evaluations_of(cell, study, cfg).values():
        there = replace(found, cfg=replace(found.cfg, eval=asked.eval))
        problems = problems_of(asked.data, asked.limit) or 0
        each = sum(there.evaluation_s(problems, 1 if T == 0 else asked.samples) for T in asked.temperatures)
        seconds += 2 * (found.machine.start_s + each)
    return found.ranks * seconds / 3600
