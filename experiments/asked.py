"""What policies answer on a study's benchmarks, at each temperature: accuracy, pass@k, majority vote. Never torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean

import numpy as np
from numpy.typing import NDArray

from benchmarking import evaluated
from complete import aligned, grouped
from pspo.config import StudyConfig
from pspo.intervals import Estimate, estimate
from records import Drawn, read_drawn
from studies import Cell, Study


@dataclass(frozen=True)
class Asked:
    """A policy on a benchmark of the study at one temperature: means over the seeds of an arm.

    which     "last" or "best" checkpoint
    pass_at   k -> chance that one of k completions is right (scores.pass_at_k); the largest k with its interval
    majority  share of problems on which the most frequent answer is right
    Differences are to the baseline arm, on the seeds that both have; None for the baseline.
    """

    model: str
    data: str
    regime: str
    arm: str
    benchmark: str
    which: str
    temperature: float
    done: int
    planned: int
    problems: int
    samples: int
    accuracy: Estimate
    difference: Estimate | None
    pass_at: dict[int, float]
    pass_at_most: Estimate
    pass_difference: Estimate | None
    majority: Estimate

    @property
    def group(self) -> tuple[str, ...]:
        return self.model, self.data, self.regime, self.benchmark, self.which


def asked_of(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> list[Asked]:
    """Every evaluation on the study's benchmarks that is there; [] where it lists none."""
    rows: list[Asked] = []
    for place, members in grouped(cells, lambda cell: (cell.model, cell.data, cell.regime)):
        drawn: dict[tuple[str, str, float], dict[str, dict[int, dict[str, Drawn]]]] = {}
        for cell in members:
            for one in evaluated(cell, study, cfg) if cell.complete else ():
                key = (one.benchmark, one.which, one.temperature)
                drawn.setdefault(key, {}).setdefault(cell.arm, {})[cell.seed] = read_drawn(one.path, one.style)
        for key, of_arm in sorted(drawn.items()):
            baseline = of_arm.get(study.baseline, {})
            for arm, by_seed in of_arm.items():
                every = [one for problems in by_seed.values() for one in problems.values()]
                most = max(every[0].pass_at)
                other = {} if arm == study.baseline else baseline
                rows.append(
                    Asked(
                        *place,
                        arm,
                        *key,
                        done=len(by_seed),
                        planned=sum(cell.arm == arm for cell in members),
                        problems=len(next(iter(by_seed.values()))),
                        samples=most,
                        accuracy=estimate(_values(by_seed.values(), _share_right)),
                        difference=_difference_of_drawn(by_seed, other, _share_right),
                        pass_at={k: mean([one.pass_at[k] for one in every]) for k in every[0].pass_at},
                        pass_at_most=estimate(_values(by_seed.values(), _pass_at_most)),
                        pass_difference=_difference_of_drawn(by_seed, other, _pass_at_most),
                        majority=estimate(_values(by_seed.values(), _majority)),
                    )
                )
    return rows


def _share_right(one: Drawn) -> float:
    return one.share


def _pass_at_most(one: Drawn) -> float:
    return one.pass_at[max(one.pass_at)]


def _majority(one: Drawn) -> float:
    return one.majority


def _values(runs: Iterable[Mapping[str, Drawn]], value: Callable[[Drawn], float]) -> NDArray[np.float64]:
    return aligned([{name: value(one) for name, one in problems.items()} for problems in runs])


def _difference_of_drawn(
    ours: Mapping[int, Mapping[str, Drawn]], theirs: Mapping[int, Mapping[str, Drawn]], value: Callable[[Drawn], float]
) -> Estimate | None:
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    both = _values([by_seed[seed] for by_seed in (ours, theirs) for seed in seeds], value)
    return estimate(both[: len(seeds)] - both[len(seeds) :])
