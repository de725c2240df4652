"""Each method at its best: chosen on the validation part, graded on the test part. Never torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from complete import by_seed, correct_of, difference, grouped
from pspo.intervals import Estimate, estimate
from records import read_summary
from studies import Cell, Curve, Study


@dataclass(frozen=True)
class Best:
    """An arm in the regime where its accuracy on the validation part is highest; graded on the test part."""

    model: str
    data: str
    arm: str
    regime: str
    seeds: int
    validated: float
    accuracy: Estimate
    difference: Estimate | None
    """To the baseline at its own best, on the seeds that both have; None for the baseline."""
    farthest: str | None
    """The last regime along the study's curve that is within NEAR of it on the validation part, which is where its edge
    lies; None where regimes do not follow one setting."""

    @property
    def group(self) -> tuple[str, str]:
        return self.model, self.data


NEAR = 0.05
"""Of accuracy: what a method may lose before a regime counts as beyond its edge."""


def bests_of(study: Study, cells: Sequence[Cell]) -> list[Best]:
    """For each model and data set every arm that has several regimes, at its best; [] where none has, and for a study
    without a curve: its regimes are not settings that one would tune."""
    rows: list[Best] = []
    if study.curve is None:
        return rows
    for (model, data), here in grouped(cells, lambda cell: (cell.model, cell.data)):
        chosen = {arm: best_regime(of_arm) for arm, of_arm in grouped(here, lambda cell: cell.arm)}
        baseline = by_seed(chosen.get(study.baseline) or [], "")
        for arm, of_arm in grouped(here, lambda cell: cell.arm):
            best = chosen[arm]
            if best is None or len({cell.regime for cell in of_arm}) < 2:
                continue
            last = by_seed(best, "")
            reached = validated(best)
            assert reached is not None  # it was chosen by it
            rows.append(
                Best(
                    model,
                    data,
                    arm,
                    best[0].regime,
                    len(last),
                    reached,
                    estimate(correct_of(last.values())),
                    None if arm == study.baseline else difference(last, baseline),
                    farthest_of(study.curve, of_arm, reached),
                )
            )
    return rows


def farthest_of(curve: Curve, of_arm: Sequence[Cell], reached: float) -> str | None:
    if curve.panel is not None:
        return None
    along = sorted(grouped(of_arm, lambda cell: cell.regime), key=lambda one: curve.x.value(one[1][0].cfg))
    near = [regime for regime, members in along if (validated(members) or 0.0) >= reached - NEAR]
    return near[-1] if near else None


def best_regime(cells: Sequence[Cell]) -> list[Cell] | None:
    """An arm's cells in the regime of the highest accuracy on the validation part at the last step, mean over complete
    seeds; the first of equals. None where none is complete."""
    found = [(regime, validated(members)) for regime, members in grouped(cells, lambda cell: cell.regime)]
    known = [(accuracy, regime) for regime, accuracy in found if accuracy is not None]
    if not known:
        return None
    best = max(accuracy for accuracy, _ in known)
    chosen = next(regime for accuracy, regime in known if accuracy == best)
    return [cell for cell in cells if cell.regime == chosen]


def validated(cells: Sequence[Cell]) -> float | None:
    """Accuracy on the validation part at the last step, mean over complete runs; None where there is none on record."""
    found = [read_summary(cell.run_dir)["validation"].get(str(cell.cfg.steps)) for cell in cells if cell.complete]
    known = [float(value) for value in found if value is not None]
    return fmean(known) if known else None
