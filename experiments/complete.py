"""The complete runs of cells: what they answered, by seed and problem, and their metrics. Never torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pspo.errors import PspoError
from pspo.intervals import Estimate, estimate
from records import Graded, Metrics, read_graded, read_metrics, read_summary
from studies import Cell

K = TypeVar("K")
Answers = Mapping[str, Graded]


def metrics_of(cell: Cell) -> Metrics:
    """Of a complete run: raises PspoError where steps are missing."""
    return read_metrics(cell.run_dir, steps=cell.cfg.steps)


def without_clamped(run: Metrics, metric: str) -> NDArray[np.float64]:
    """A column. Of slope/zero_share without the ratios beyond what is computed, which have no slope either: that is
    ours, and not the surrogate's."""
    clamped = run["ratio/clamped_share"] if metric == "slope/zero_share" else np.zeros(len(run.steps))
    return run[metric] - np.nan_to_num(clamped, posinf=0.0)


def grouped(cells: Sequence[Cell], key: Callable[[Cell], K]) -> list[tuple[K, list[Cell]]]:
    """The cells by key, keys in the order in which they first appear."""
    found: dict[K, list[Cell]] = {}
    for cell in cells:
        found.setdefault(key(cell), []).append(cell)
    return list(found.items())


def by_seed(cells: Sequence[Cell], which: str) -> dict[int, Answers]:
    """Seed -> graded problems of the complete runs.

    `which` is "" for the last checkpoint, ".best" for the best, which a run without validation does not have.
    """
    found: dict[int, Answers] = {}
    for cell in cells:
        if cell.complete and (which == "" or read_summary(cell.run_dir)["validation"]):
            found[cell.seed] = read_graded(cell.evaluation.with_suffix(f"{which}.jsonl"))
    return found


def accuracy(runs: Mapping[int, Answers]) -> Estimate | None:
    """None without a run. Raises PspoError where seeds were graded on different problems."""
    return estimate(correct_of(runs.values())) if runs else None


def difference(ours: Mapping[int, Answers], theirs: Mapping[int, Answers]) -> Estimate | None:
    """Ours minus theirs on the seeds that both have; None where there is none."""
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    correct_2SN = correct_of([answers[seed] for answers in (ours, theirs) for seed in seeds])
    return estimate(correct_2SN[: len(seeds)] - correct_2SN[len(seeds) :])


def correct_of(runs: Iterable[Answers]) -> NDArray[np.float64]:
    """Right (1) or not (0) [runs, N], columns in one order; raises PspoError where the problems are not the same."""
    return aligned([{one: float(graded.correct) for one, graded in answers.items()} for answers in runs])


def aligned(runs: Iterable[Mapping[str, float]]) -> NDArray[np.float64]:
    """Values by problem [runs, N], columns in one order; raises PspoError where the problems are not the same."""
    every = list(runs)
    ids = list(every[0])
    for values in every[1:]:
        if values.keys() != every[0].keys():
            raise PspoError(
                f"runs of one comparison were graded on different problems ({len(ids)} and {len(values)}); "
                "remove those that are out of date and run the study again"
            )
    return np.array([[values[one] for one in ids] for values in every], dtype=np.float64)
