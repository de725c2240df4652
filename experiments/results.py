"""From what a study's runs have written to the numbers of its table: one Row a method, regime, model and data set.

Reads run directories through records.py, turns them into estimates with intervals.py, and formats nothing. Never torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from complete import Answers, accuracy, by_seed, correct_of, difference, grouped
from pspo.config import StudyConfig
from pspo.config.schema import Reward, Surrogate, WordProblems
from pspo.data.wordproblems import arithmetic_holds, equations, style_of
from pspo.intervals import Bounds, Estimate, estimate, wilson
from published import Published, all_published, beside, published_for
from records import NOT_GRADED, Graded, read_graded
from significance import LEVEL, Tests, corrected, detectable, interquartile_mean, paired
from studies import Cell, Study


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
            baseline = by_seed(of_arm.get(study.baseline, []), "")
            for arm, members in of_arm.items():
                last = by_seed(members, "")
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
                        best=accuracy(by_seed(members, ".best")),
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
    """A published figure and our runs that stand beside it (published.beside)."""

    figure: Published
    regime: str
    arm: str
    protocol: str
    """Ours, in what is known to differ between reproductions."""
    done: int
    planned: int
    ours: Estimate | None
    difference: Estimate | None
    """Ours minus theirs, which is taken as a number without spread."""

    @property
    def group(self) -> tuple[str, str]:
        return self.figure.version, self.figure.model


def besides_of(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> list[Beside]:
    """For every published figure the arms that the study puts beside its method, run or not."""
    found: list[Beside] = []
    for figure in all_published():
        mine = beside(figure, cells, study.scales[cfg.scale].published)
        for (regime, arm), members in grouped(mine, lambda cell: (cell.regime, cell.arm)):
            complete = by_seed(members, "")
            ours = correct_of(complete.values()) if complete else None
            found.append(
                Beside(
                    *(figure, regime, arm, protocol_of(members[0]), len(complete), len(members)),
                    None if ours is None else estimate(ours),
                    None if ours is None else estimate(ours - figure.accuracy / 100),
                )
            )
    return found


def protocol_of(cell: Cell) -> str:
    def named(one: Surrogate | Reward) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in asdict(one).items() if name != "name")
        return f"{one.name} ({settings})" if settings else one.name

    cfg = cell.cfg
    sampled = f"top-p {cfg.rollout.top_p:g}, {cfg.rollout.max_new_tokens} new tokens"
    return (
        f"{named(cfg.surrogate)}, learning rate {cfg.learner.lr:g}, mu {cfg.learner.passes}; {sampled}; reward "
        f"{named(cfg.reward)}; prompt {cfg.prompt.name}; graded strictly, a cut completion is wrong"
    )


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
        of_arm = {arm: by_seed(of_arm, "") for arm, of_arm in grouped(members, lambda cell: cell.arm)}
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
        d_S = (ours_SN - theirs_SN).mean(axis=1)
        count, problems = ours_SN.shape
        comparisons.append(
            Comparison(
                *names,
                count,
                problems,
                float(d_S.mean()),
                interquartile_mean(d_S),
                tests[k],
                of_policies[k],
                of_methods[k],
                detectable(tests[k].spread, count, LEVEL / planned),
            )
        )
    return comparisons


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
