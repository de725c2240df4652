"""Does each claim hold? claims.yaml says what is claimed and by which test it is decided; this decides it.

    reproduced       the test says so: a bound at 95% for all comparisons of its study's claims together
    not reproduced   an effect as large as the claim's margin is ruled out at the same level, or the opposite is shown
    underpowered     neither: the intervals are too wide for the margin
    not run          no seed of what it needs is complete
    incomplete       says as much on fewer runs than were planned

Accuracies are those of the last checkpoint at T=0. Imports numpy and scipy, never torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bests import best_regime
from claims import (
    AllEqual,
    AsPublished,
    Claim,
    Equal,
    Greater,
    Identical,
    LargerLead,
    Metric,
    NoGain,
    NoneGreater,
    Theorem,
    check_names,
    compares,
    load_claims,
)
from complete import correct_of, grouped, metrics_of, without_clamped
from pspo.intervals import LEVEL, Bounds, student_t
from published import Published, all_published, beside
from records import Graded, read_graded
from significance import detectable
from studies import Cell, Study

REAL = "policies of training steps"
"""What theory.py calls its check on real policies; without a warm start it has random distributions alone."""

Outcome = Literal["reproduced", "not reproduced", "underpowered", "not run"]
Answers = Mapping[str, Graded]


@dataclass(frozen=True)
class Finding:
    """A claim in one place (regime, model, data), or one line of it.

    value, interval   in points of accuracy, at the level that holds for all findings of a study together
    detectable        smallest true difference in points that the test finds with probability 0.8, if seeds spread so: a
                      lead for "greater", for the others one beyond the margin
    """

    where: str
    outcome: Outcome
    value: float | None = None
    interval: Bounds | None = None
    seeds: int = 0
    planned: int = 0
    note: str = ""
    detectable: float | None = None


@dataclass(frozen=True)
class Verdict:
    claim: Claim
    outcome: Outcome
    """The worst of its findings: reproduced only where all are."""
    findings: tuple[Finding, ...]
    decided: str

    @property
    def incomplete(self) -> bool:
        """Something has been run, and not all."""
        return any(one.seeds for one in self.findings) and any(one.seeds < one.planned for one in self.findings)


def verdicts_of(name: str, scale: str, study: Study, cells: Sequence[Cell]) -> list[Verdict]:
    """Of the claims that this study's runs decide at this scale."""
    known = load_claims()
    chosen = [claim for claim in known.claims if claim.study == name and claim.scale in (None, scale)]
    for claim in chosen:
        check_names(claim, study, scale)
    # Bonferroni over the comparisons to be made, whether or not they have been run: the level stays as runs come in.
    comparisons = sum(len(list(lines_of(claim, cells))) for claim in chosen if compares(claim))
    # Each bound alone, as every test here asks on one side, or on each of two (equivalence) for itself.
    level = 1 - 2 * (1 - LEVEL) / max(comparisons, 1)
    found = []
    for claim in chosen:
        findings = tuple(decide(level) for decide in lines_of(claim, cells))
        found.append(Verdict(claim, overall(findings), findings, str(known.decided)))
    return found


def theory_verdicts(path: Path) -> list[Verdict]:
    """Of the formal results, from what `make theory` has written; "not run" where it has not."""
    known = load_claims()
    kinds = {"statement": str, "on": str, "holds": bool, "violation": float | int, "cases": int}
    try:
        written = json.loads(path.read_text(encoding="utf-8"))["statements"]
        violations = [one for one in written if all(isinstance(one[name], kind) for name, kind in kinds.items())]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        violations = []
    found = []
    for claim in known.claims:
        if isinstance(claim.test, Theorem):
            mine = [one for one in violations if one["statement"].startswith(claim.test.result)]
            findings = tuple(
                Finding(
                    f"{one['statement']}; {one['on']}",
                    "reproduced" if one["holds"] else "not reproduced",
                    note=f"largest violation {one['violation']:.1e} in {one['cases']} cases",
                )
                for one in mine
            ) or (Finding("", "not run"),)
            if mine and not any(one["on"] == REAL for one in mine):
                findings = (*findings, Finding(REAL, "not run"))
            found.append(Verdict(claim, overall(findings), findings, str(known.decided)))
    return found


def overall(findings: Sequence[Finding]) -> Outcome:
    """
    >>> overall([Finding("gentle", "reproduced"), Finding("stress", "underpowered")])
    'underpowered'
    """
    order: tuple[Outcome, ...] = ("not reproduced", "underpowered", "not run", "reproduced")
    outcomes = {finding.outcome for finding in findings}
    return next((outcome for outcome in order if outcome in outcomes), "not run")


def lines_of(claim: Claim, cells: Sequence[Cell]) -> Iterator[Callable[[float], Finding]]:
    """What there is to decide: a function from the confidence level to a finding, for each place or line."""
    test = claim.test
    here = [cell for cell in cells if claim.regimes is None or cell.regime in claim.regimes]
    if isinstance(test, LargerLead):
        for (data, regime), members in grouped(here, lambda cell: (cell.data, cell.regime)):
            yield partial(larger_lead, test, members, f"{data}, {regime}")
        return
    if isinstance(test, AsPublished):
        yield from published_lines(test, here)
        return
    several = len({(cell.model, cell.data) for cell in cells}) > 1
    if isinstance(test, Greater | Equal) and test.at_best:
        for (model, data), members in grouped(here, lambda cell: (cell.model, cell.data)):
            where = f"{model}, {data}, each at its best" if several else "each at its best"
            yield partial(compared_at_best, test, where, members)
        return
    for (model, data, regime), members in grouped(here, lambda cell: (cell.model, cell.data, cell.regime)):
        of_arm = dict(grouped(members, lambda cell: cell.arm))
        where = f"{model}, {data}, {regime}" if several else regime
        if isinstance(test, Greater | Equal):
            if test.arm in of_arm and test.than in of_arm:
                yield partial(compared, test, where, of_arm[test.arm], of_arm[test.than])
        elif isinstance(test, NoneGreater | AllEqual):
            for arm, ours in of_arm.items():
                if isinstance(test, AllEqual) and arm not in test.arms:
                    continue
                if arm != test.than and test.than in of_arm:
                    yield partial(compared, test, f"{where}: {arm}", ours, of_arm[test.than])
        elif isinstance(test, NoGain):
            for arm, ours in of_arm.items():
                yield partial(compared, test, f"{where}: {arm}", ours, None)
        elif isinstance(test, Identical):
            if test.arm in of_arm and test.than in of_arm:
                yield partial(identical, where, of_arm[test.arm], of_arm[test.than])
        elif isinstance(test, Metric) and test.arm in of_arm:
            yield partial(at_most, test, where, of_arm[test.arm])


def last_of(cell: Cell) -> Answers:
    return read_graded(cell.evaluation)


def pairs(ours: Sequence[Cell], theirs: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """Complete runs of a seed in both."""
    other = {cell.seed: cell for cell in theirs if cell.complete}
    return [(cell, other[cell.seed]) for cell in ours if cell.complete and cell.seed in other]


def differences(ours: Sequence[Cell], theirs: Sequence[Cell] | None) -> NDArray[np.float64]:
    """Points of accuracy, one a seed [S]: ours minus theirs, or minus the starting policy's."""
    if theirs is None:
        some = [cell for cell in ours if cell.complete and cell.start_evaluation.is_file()]
        two = [(last_of(cell), read_graded(cell.start_evaluation)) for cell in some]
    else:
        two = [(last_of(a), last_of(b)) for a, b in pairs(ours, theirs)]
    return np.array([100 * float(np.diff(correct_of([b, a]).mean(axis=1))[0]) for a, b in two])


def compared(
    test: Greater | Equal | AllEqual | NoneGreater | NoGain,
    where: str,
    ours: Sequence[Cell],
    theirs: Sequence[Cell] | None,
    level: float,
) -> Finding:
    """`theirs` None: the policy that ours start from."""
    d_S = differences(ours, theirs)
    if not len(d_S):
        return Finding(where, "not run", planned=len(ours))
    kind = "equal" if test.kind == "all_equal" else test.kind
    alike = kind == "equal" and len(d_S) > 1 and not d_S.any()
    if alike and theirs is not None and not differing(pairs(ours, theirs))[0]:
        return Finding(where, "reproduced", 0.0, None, len(d_S), len(ours), "every completion is the same")
    return judged(kind, test.margin, where, d_S, len(ours), level)


def judged(
    kind: str, margin: float, where: str, d_S: NDArray[np.float64], planned: int, level: float, note: str = ""
) -> Finding:
    interval = interval_of(d_S, level)
    least = detectable(None if interval is None else float(d_S.std(ddof=1)), len(d_S), 1 - level)
    if least is not None and kind != "greater":
        least += margin  # these tests ask whether a difference lies beyond it
    return Finding(
        where,
        outcome_of(kind, interval, margin),
        float(d_S.mean()),
        interval,
        len(d_S),
        planned,
        note,
        least,
    )


def compared_at_best(test: Greater | Equal, where: str, cells: Sequence[Cell], level: float) -> Finding:
    """Of one model and data set. Chosen on the validation part, compared on the test part."""
    chosen = {arm: best_regime([cell for cell in cells if cell.arm == arm]) for arm in (test.arm, test.than)}
    ours, theirs = chosen[test.arm], chosen[test.than]
    if ours is None or theirs is None or not pairs(ours, theirs):
        return Finding(where, "not run", planned=len({cell.seed for cell in cells}))
    note = "; ".join(f"{arm}: {found[0].regime}" for arm, found in chosen.items() if found)
    return judged(test.kind, test.margin, where, differences(ours, theirs), len(ours), level, note)


def interval_of(d_S: NDArray[np.float64], level: float) -> Bounds | None:
    """Student's t over seeds; None where they have no spread to go by: one seed, or all alike by chance."""
    return student_t(d_S, level) if len(d_S) > 1 and np.ptp(d_S) > 1e-9 else None


def outcome_of(kind: str, interval: Bounds | None, margin: float) -> Outcome:
    """From the interval of a difference in points. A lead that is shown is shown, also where it is below the margin.

    >>> [outcome_of("greater", interval, 2.0) for interval in ((0.5, 4.0), (-3.0, 1.9), (-1.0, 5.0))]
    ['reproduced', 'not reproduced', 'underpowered']
    >>> [outcome_of("equal", interval, 2.0) for interval in ((-1.0, 1.5), (2.5, 9.0), (-5.0, 5.0))]
    ['reproduced', 'not reproduced', 'underpowered']
    """
    if interval is None:
        return "underpowered"
    low, high = interval
    match kind:
        case "greater" | "larger_lead":
            return "reproduced" if low > 0 else "not reproduced" if high < margin else "underpowered"
        case "equal":
            if -margin < low and high < margin:
                return "reproduced"
            return "not reproduced" if low > margin or high < -margin else "underpowered"
        case _:  # none_greater, no_gain: by the margin or more
            return "reproduced" if high < margin else "not reproduced" if low > margin else "underpowered"


def identical(where: str, ours: Sequence[Cell], theirs: Sequence[Cell], _level: float) -> Finding:
    both = pairs(ours, theirs)
    if not both:
        return Finding(where, "not run", planned=len(ours))
    other, total = differing(both)
    note = f"{other} of {total} completions differ" if other else f"all {total} completions are the same"
    return Finding(where, "not reproduced" if other else "reproduced", None, None, len(both), len(ours), note)


def differing(both: Sequence[tuple[Cell, Cell]]) -> tuple[int, int]:
    """How many completions of the test part are not the same, and of how many."""
    total = other = 0
    for a, b in both:
        x, y = last_of(a), last_of(b)
        total += len(x)
        other += sum(x[one].text != y[one].text for one in x) if x.keys() == y.keys() else len(x)
    return other, total


def at_most(test: Metric, where: str, cells: Sequence[Cell], _level: float) -> Finding:
    complete = [cell for cell in cells if cell.complete]
    values = np.concatenate([[], *(without_clamped(metrics_of(cell), test.metric) for cell in complete)])
    values = values[~np.isnan(values)]
    if not len(values):
        return Finding(where, "not run", planned=len(cells))
    known = values[np.isfinite(values)]
    worst = float(known.max()) if len(known) else 0.0
    outcome: Outcome = "reproduced" if worst <= test.at_most and len(known) == len(values) else "not reproduced"
    missing = f", not finite in {len(values) - len(known)}" if len(known) < len(values) else ""
    note = f"{test.metric} at most {worst:g} in {len(values)} steps{missing}"
    return Finding(where, outcome, None, None, len(complete), len(cells), note)


def larger_lead(test: LargerLead, cells: Sequence[Cell], where: str, level: float) -> Finding:
    def lead(model: str) -> NDArray[np.float64]:
        of_arm = {arm: [c for c in cells if c.model == model and c.arm == arm] for arm in (test.arm, test.than)}
        return differences(of_arm[test.arm], of_arm[test.than])

    a, b = lead(test.model), lead(test.than_model)
    planned = sum(cell.model == test.model and cell.arm == test.arm for cell in cells)
    if not len(a) or not len(b):
        return Finding(where, "not run", planned=planned)
    value = float(a.mean() - b.mean())
    interval = None
    if min(len(a), len(b)) > 1 and max(np.ptp(a), np.ptp(b)) > 1e-9:
        found = stats.ttest_ind(a, b, equal_var=False).confidence_interval(level)
        interval = (float(found.low), float(found.high))
    outcome = outcome_of(test.kind, interval, test.margin)
    return Finding(where, outcome, value, interval, min(len(a), len(b)), planned)


def published_lines(test: AsPublished, cells: Sequence[Cell]) -> Iterator[Callable[[float], Finding]]:
    """A line for each known figure, with the runs that stand beside it."""
    arms = {cell.arm: cell.arm for cell in cells}  # named as the paper's methods
    for figure in all_published():
        yield partial(as_published, test, figure, beside(figure, cells, arms))


def as_published(test: AsPublished, figure: Published, cells: Sequence[Cell], level: float) -> Finding:
    where = f"{figure.model}, {figure.arm}, {figure.benchmark} ({figure.version}: {figure.accuracy:.1f})"
    complete = [cell for cell in cells if cell.complete]
    if not complete:
        return Finding(where, "not run", planned=len(cells))
    correct_SN = 100 * correct_of([last_of(cell) for cell in complete])
    d_S = correct_SN.mean(axis=1) - figure.accuracy
    interval = interval_of(d_S, level)
    outcome = outcome_of("equal", interval, test.margin)
    p = figure.accuracy / 100
    own = float(stats.norm.isf((1 - LEVEL) / 2) * 100 * np.sqrt(p * (1 - p) / correct_SN.shape[1]))
    note = f"ours {correct_SN.mean():.1f}, theirs {figure.accuracy:.1f}, itself +- {own:.1f} on so many problems"
    if figure.trained_on is None:
        note += ", trained on unknown"
        outcome = "underpowered" if outcome == "not reproduced" else outcome  # it may have been another data set
    return Finding(where, outcome, float(d_S.mean()), interval, len(complete), len(cells), note)


def of_other_scales(scale: str) -> list[Verdict]:
    """The claims that speak of another scale alone: not run at this one."""
    known = load_claims()
    lines = (Finding("", "not run"),)
    return [
        Verdict(claim, "not run", lines, str(known.decided))
        for claim in known.claims
        if claim.scale not in (None, scale)
    ]
