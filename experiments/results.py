"""From what a study's runs have written to the numbers of its table: one Row a method, regime, model and data set.

Reads run directories through records.py, turns them into estimates with intervals.py, and formats nothing. Never torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarking import evaluated
from pspo.config import StudyConfig
from pspo.config.schema import WordProblems
from pspo.data.wordproblems import arithmetic_holds, equations, style_of
from pspo.errors import PspoError
from pspo.intervals import Bounds, Estimate, estimate, wilson
from published import Published, all_published, published_for
from records import NOT_GRADED, Drawn, Graded, Metrics, read_drawn, read_graded, read_metrics, read_summary
from significance import LEVEL, Tests, corrected, detectable, interquartile_mean, paired
from studies import Cell, Curve, Study

K = TypeVar("K")
Answers = Mapping[str, Graded]


@dataclass(frozen=True)
class Texts:
    """Shares of completions of the test part at T=0, last checkpoint, all seeds together."""

    lenient: float
    """Right under the lenient reading: accuracy if a missed format were forgiven."""
    truncated: float
    no_answer: float
    failed: dict[str, int]
    """Number of time-outs, unreadable golds and errors, each: in no way answers, and hopefully 0."""
    steps: float | None
    """Written step by step; None where the data set knows no styles."""
    right_steps: float | None
    """Of these the share that is right; None where there are none."""
    arithmetic: float | None
    """With equations, all of them true: right arithmetic, whether or not it answers the question."""


@dataclass(frozen=True)
class Row:
    """A line of the table. `arm` None: the policy that every method of this model starts from, `start` names it."""

    model: str
    data: str
    regime: str | None
    arm: str | None
    done: int
    planned: int
    problems: int
    last: Estimate | None
    """Accuracy of the last checkpoint; None: no run is complete."""
    best: Estimate | None
    """Accuracy, on the test part, of the checkpoint that was best on the validation part."""
    difference: Estimate | None
    """To the baseline arm on the same seeds and problems; None for the baseline itself."""
    gain: Estimate | None
    """To the starting policy on the same problems."""
    wilson: Bounds | None
    """Of the starting policy alone."""
    texts: Texts | None
    published: tuple[Published, ...]
    start: str = ""

    @property
    def method(self) -> str:
        return self.arm or f"before RL ({self.start})"

    @property
    def incomplete(self) -> bool:
        return self.done < self.planned

    @property
    def group(self) -> tuple[str, str, str | None]:
        """What lines stand together for."""
        return self.model, self.data, self.regime


def rows_of(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> list[Row]:
    """For each model and data set the starting policy, then each method in each regime, in the study's order."""
    rows: list[Row] = []
    beside = study.scales[cfg.scale].published
    for place, of_place in grouped(cells, lambda cell: (cell.model, cell.data)):
        start_path = of_place[0].start_evaluation
        start = read_graded(start_path) if start_path.is_file() else None
        rows.append(_start_row(of_place[0], start))
        for regime, of_regime in grouped(of_place, lambda cell: cell.regime):
            of_arm = dict(grouped(of_regime, lambda cell: cell.arm))
            baseline = _by_seed(of_arm.get(study.baseline, []), "")
            for arm, members in of_arm.items():
                last = _by_seed(members, "")
                rows.append(
                    Row(
                        model=place[0],
                        data=place[1],
                        regime=regime,
                        arm=arm,
                        done=len(last),
                        planned=len(members),
                        problems=len(next(iter(last.values()))) if last else 0,
                        last=accuracy(last),
                        best=accuracy(_by_seed(members, ".best")),
                        difference=None if arm == study.baseline else difference(last, baseline),
                        gain=None if start is None else difference(last, dict.fromkeys(last, start)),
                        wilson=None,
                        texts=texts_of([one for answers in last.values() for one in answers.values()], members[0]),
                        published=published_for(place[0], place[1], beside[arm]) if arm in beside else (),
                    )
                )
    return rows


@dataclass(frozen=True)
class Beside:
    """A published figure, and what our runs of that model and method have on its benchmark: those trained on what its
    source says, or, where it does not say, on the benchmark itself."""

    figure: Published
    arm: str
    """Ours; the figure's method where the study has none of them."""
    done: int
    planned: int
    ours: Estimate | None
    difference: Estimate | None
    """Ours minus theirs, which is taken as a number without spread."""

    @property
    def group(self) -> tuple[str, str]:
        return self.figure.version, self.figure.model


def besides_of(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> list[Beside]:
    """Every published figure, run or not; [] at a scale whose arms stand beside none."""
    arms = {method: arm for arm, method in study.scales[cfg.scale].published.items()}
    found: list[Beside] = []
    for figure in all_published() if arms else ():
        arm = arms.get(figure.arm, figure.arm)
        wanted = (figure.model, arm, figure.trained_on or figure.benchmark)
        mine = [cell for cell in cells if (cell.model, cell.arm, cell.data) == wanted and cell.data == figure.benchmark]
        complete = _by_seed(mine, "")
        ours = correct_of(complete.values()) if complete else None
        found.append(
            Beside(
                *(figure, arm, len(complete), len(mine)),
                None if ours is None else estimate(ours),
                None if ours is None else estimate(ours - figure.accuracy / 100),
            )
        )
    return found


@dataclass(frozen=True)
class Comparison:
    """An arm beside another, the study's baseline or one of its contrasts, on the seeds that both have. p-values are
    corrected (Holm) for the number of comparisons of the study, run or not, those of policies and of methods each among
    themselves."""

    model: str
    data: str
    regime: str
    arm: str
    than: str
    seeds: int
    problems: int
    value: float
    """Accuracy minus the other's, mean over seeds."""
    middle: float | None
    """Interquartile mean over seeds of the same; None for fewer than four."""
    tests: Tests
    of_policies: float | None
    of_methods: float | None
    detectable: float | None
    """The smallest true difference that the corrected test of methods finds with probability 0.8, if seeds spread so:
    at the level of the smallest of so many p-values, which is what Holm's correction asks of the first."""

    @property
    def group(self) -> tuple[str, str, str]:
        return self.model, self.data, self.regime


def pairs_of(study: Study, arms: Iterable[str]) -> list[tuple[str, str]]:
    """(arm, than) of those arms: each with the baseline, then the contrasts."""
    here = list(arms)
    pairs = [(arm, study.baseline) for arm in here if arm != study.baseline]
    return [(arm, than) for arm, than in dict.fromkeys([*pairs, *study.contrasts]) if arm in here and than in here]


def comparisons_of(study: Study, cells: Sequence[Cell]) -> list[Comparison]:
    """Every pair of the study in each place where its two arms have a seed in common."""
    planned = 0
    found: list[tuple[tuple[str, str, str, str, str], NDArray[np.float64], NDArray[np.float64]]] = []
    for place, members in grouped(cells, lambda cell: (cell.model, cell.data, cell.regime)):
        of_arm = {arm: _by_seed(of_arm, "") for arm, of_arm in grouped(members, lambda cell: cell.arm)}
        pairs = pairs_of(study, of_arm)
        planned += len(pairs)
        for arm, than in pairs:
            if seeds := [seed for seed in of_arm[arm] if seed in of_arm[than]]:
                both = correct_of([of_arm[name][seed] for name in (arm, than) for seed in seeds])
                found.append(((*place, arm, than), both[: len(seeds)], both[len(seeds) :]))
    tests = [paired(ours_SN, theirs_SN) for _, ours_SN, theirs_SN in found]
    of_policies = corrected([test.of_policies for test in tests], planned)
    of_methods = corrected([test.of_methods for test in tests], planned)
    comparisons: list[Comparison] = []
    for k, (names, ours_SN, theirs_SN) in enumerate(found):
        by_seed = (ours_SN - theirs_SN).mean(axis=1)
        count, problems = ours_SN.shape
        comparisons.append(
            Comparison(
                *names,
                count,
                problems,
                float(by_seed.mean()),
                interquartile_mean(by_seed),
                tests[k],
                of_policies[k],
                of_methods[k],
                detectable(tests[k].spread, count, LEVEL / planned),
            )
        )
    return comparisons


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
        baseline = _by_seed(chosen.get(study.baseline) or [], "")
        for arm, of_arm in grouped(here, lambda cell: cell.arm):
            best = chosen[arm]
            if best is None or len({cell.regime for cell in of_arm}) < 2:
                continue
            last = _by_seed(best, "")
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
                    _farthest(study.curve, of_arm, reached),
                )
            )
    return rows


def _farthest(curve: Curve, of_arm: Sequence[Cell], reached: float) -> str | None:
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
    return float(np.mean(known)) if known else None


def _start_row(cell: Cell, start: Answers | None) -> Row:
    one = {} if start is None else {0: start}
    return Row(
        model=cell.model,
        data=cell.data,
        regime=None,
        arm=None,
        done=len(one),
        planned=1,
        problems=len(start or {}),
        last=accuracy(one),
        best=None,
        difference=None,
        gain=None,
        wilson=wilson(sum(graded.correct for graded in start.values()), len(start)) if start else None,
        texts=texts_of(list(start.values()), cell) if start else None,
        published=(),
        start="the warm start" if cell.cfg.model.path is None else "the base model",
    )


def _by_seed(cells: Sequence[Cell], which: str) -> dict[int, Answers]:
    """Seed -> graded problems of the complete runs.

    `which` is "" for the last checkpoint, ".best" for the best, which a run without validation does not have.
    """
    found: dict[int, Answers] = {}
    for cell in cells:
        if cell.complete and (which == "" or read_summary(cell.run_dir)["validation"]):
            found[cell.seed] = read_graded(cell.evaluation.with_suffix(f"{which}.jsonl"))
    return found


def accuracy(by_seed: Mapping[int, Answers]) -> Estimate | None:
    """None without a run. Raises PspoError where seeds were graded on different problems."""
    return estimate(correct_of(by_seed.values())) if by_seed else None


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


def texts_of(graded: Sequence[Graded], cell: Cell) -> Texts | None:
    """`cell`: a run that they are of, or are before. None where nothing is graded."""
    if not graded:
        return None
    has_styles = isinstance(cell.cfg.data, WordProblems)
    in_steps = [one for one in graded if style_of(one.text) == "steps"] if has_styles else []
    return Texts(
        lenient=_share(one.lenient for one in graded),
        truncated=_share(not one.finished for one in graded),
        no_answer=_share(one.status == "no_answer" for one in graded),
        failed={status: sum(one.status == status for one in graded) for status in NOT_GRADED},
        steps=len(in_steps) / len(graded) if has_styles else None,
        right_steps=_share(one.correct for one in in_steps) if in_steps else None,
        arithmetic=_share(bool(equations(one.text)) and arithmetic_holds(one.text) for one in graded)
        if has_styles
        else None,
    )


def _share(flags: Iterable[bool]) -> float:
    return float(np.mean(list(flags)))


def metrics_of(cell: Cell) -> Metrics:
    """Of a complete run: raises PspoError where steps are missing."""
    return read_metrics(cell.run_dir, steps=cell.cfg.steps)


def grouped(cells: Sequence[Cell], key: Callable[[Cell], K]) -> list[tuple[K, list[Cell]]]:
    """The cells by key, keys in the order in which they first appear."""
    found: dict[K, list[Cell]] = {}
    for cell in cells:
        found.setdefault(key(cell), []).append(cell)
    return list(found.items())
