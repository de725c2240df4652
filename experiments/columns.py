"""The columns of a study's tables, and what stands below each. Formats, and computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asked import Asked
from bests import NEAR, Best
from claims import load_claims
from cost import Cost
from results import Beside, Comparison, Row
from tabletext import (
    NONE,
    Column,
    bounds,
    change,
    in_percent,
    level,
    not_graded,
    percent,
    points,
    probability,
    runs_of,
    significant,
    size,
)
from training import Course
from verdicts import Finding, Verdict


@dataclass(frozen=True)
class Line:
    """A finding of a verdict, as the table of verdicts has it: the claim stands with its first."""

    verdict: Verdict
    finding: Finding
    first: bool

    @property
    def group(self) -> str:
        return self.verdict.claim.id


def places(rows: Sequence[Any], data: str = "trained and tested on") -> list[Column[Any]]:
    """Model and data set, where these differ."""
    if len({(row.model, row.data) for row in rows}) < 2:
        return []
    return [Column("model", lambda row: row.model), Column(data, lambda row: row.data)]


def result_columns(rows: Sequence[Row], baseline: str, paper: bool) -> list[Column[Row]]:
    """The columns these rows need: model and data only where they differ, the paper's figures only at its scale."""
    chosen: list[Column[Row]] = places(rows)
    chosen += [
        Column("regime", lambda row: row.regime or NONE),
        Column("method", lambda row: row.method),
        Column("accuracy, %", lambda row: bounds_only(row) if row.arm is None else level(row.last)),
        Column("at best validation, %", lambda row: level(row.best)),
        Column(f"minus {baseline}, points", lambda row: change(row.difference)),
        Column("gain over before, points", lambda row: change(row.gain)),
    ]
    if any(row.texts and row.texts.steps is not None for row in rows):
        chosen += [
            Column("step by step, %", lambda row: percent(row.texts.steps if row.texts else None)),
            Column("right of these, %", lambda row: percent(row.texts.right_steps if row.texts else None)),
            Column("arithmetic true, %", lambda row: percent(row.texts.arithmetic if row.texts else None)),
        ]
    chosen += [
        Column("lenient, %", lambda row: percent(row.texts.lenient if row.texts else None)),
        Column("truncated, %", lambda row: percent(row.texts.truncated if row.texts else None)),
        Column("no answer, %", lambda row: percent(row.texts.no_answer if row.texts else None)),
        Column("not graded", lambda row: not_graded(row.texts.failed) if row.texts else NONE),
        Column("runs", runs),
    ]
    if paper:
        chosen.append(Column("published, %", published))
    return chosen


def comparison_columns(comparisons: Sequence[Comparison]) -> list[Column[Comparison]]:
    chosen: list[Column[Comparison]] = places(comparisons)
    return [
        *chosen,
        Column("regime", lambda one: one.regime),
        Column("method", lambda one: one.arm),
        Column("beside", lambda one: one.than),
        Column("seeds", lambda one: str(one.seeds)),
        Column("difference, points", lambda one: points(one.value)),
        Column("interquartile mean, points", lambda one: points(one.middle)),
        Column("right in it alone / in the other alone", discordant),
        Column("p, seed by seed", lambda one: ", ".join(probability(of_seed.p) for of_seed in one.tests.by_seed)),
        Column("p, these policies", lambda one: probability(one.of_policies)),
        Column("p, these methods", lambda one: probability(one.of_methods)),
        Column("detectable, points", lambda one: size(None if one.detectable is None else 100 * one.detectable)),
    ]


def best_columns(rows: Sequence[Best], baseline: str) -> list[Column[Best]]:
    chosen: list[Column[Best]] = places(rows)
    chosen += [
        Column("method", lambda one: one.arm),
        Column("regime", lambda one: one.regime),
        Column("seeds", lambda one: str(one.seeds)),
        Column("validation, %", lambda one: percent(one.validated)),
        Column("accuracy, %", lambda one: level(one.accuracy)),
        Column(f"minus {baseline} at its best, points", lambda one: change(one.difference)),
    ]
    if any(one.farthest for one in rows):
        chosen.append(Column("still near it at", lambda one: one.farthest or NONE))
    return chosen


def best_legend(baseline: str) -> list[str]:
    return [
        "Each method in the regime where its last checkpoint is most accurate on the validation part (mean over "
        f"seeds), graded on the test part, and beside {baseline} in its own. Still near: the last regime whose "
        f"validation accuracy is within {100 * NEAR:.0f} points of that.",
    ]


def asked_columns(rows: Sequence[Asked], baseline: str) -> list[Column[Asked]]:
    chosen: list[Column[Asked]] = places(rows, "trained on")
    chosen += [
        Column("regime", lambda row: row.regime),
        Column("method", lambda row: row.arm),
        Column("benchmark", lambda row: row.benchmark),
        Column("checkpoint", lambda row: row.which),
        Column("T", lambda row: f"{row.temperature:g}"),
        Column("accuracy, %", lambda row: level(row.accuracy)),
        Column(f"minus {baseline}, points", lambda row: change(row.difference)),
    ]
    if (most := max((row.samples for row in rows), default=1)) > 1:
        chosen += [
            Column(f"pass@{most}, %", lambda row: level(row.pass_at_most) if row.samples == most else NONE),
            Column("minus, points", lambda row: change(row.pass_difference) if row.samples == most else NONE),
            Column("majority, %", lambda row: level(row.majority) if row.samples > 1 else NONE),
        ]
    return [
        *chosen,
        Column("problems", lambda row: str(row.problems)),
        Column("runs", lambda row: runs_of(row.done, row.planned)),
    ]


def asked_legend(baseline: str) -> list[str]:
    return [
        "Evaluations on the study's benchmarks (eval/evaluate.py). Accuracy: mean over problems of the share of "
        "right completions, mean over seeds; intervals as above. Pass@k: chance that one of k completions is "
        f"right. Majority: the most frequent answer is right. Minus {baseline}: paired, on the same seeds and "
        "problems. Best: the checkpoint that was best on the validation part, which may be the last.",
    ]


def course_columns(rows: Sequence[Course]) -> list[Column[Course]]:
    chosen: list[Column[Course]] = places(rows, "trained on")
    return [
        *chosen,
        Column("regime", lambda row: row.regime),
        Column("method", lambda row: row.arm),
        Column("|r - 1|", lambda row: significant(row.ratio)),
        Column("without slope, %", lambda row: significant(in_percent(row.no_slope))),
        Column("slope < 0.1 A, %", lambda row: significant(in_percent(row.small_slope))),
        Column("KL to the sampling policy, nats a token", lambda row: significant(row.kl)),
        Column("entropy at the end, nats a token", lambda row: significant(row.entropy)),
        Column("gradient norm", lambda row: significant(row.grad_norm)),
        *(
            [Column[Course]("steps not finite", lambda row: str(row.not_finite))]
            if any(r.not_finite for r in rows)
            else []
        ),
        Column("highest validation, %", lambda row: percent(row.highest)),
        Column("at step", lambda row: NONE if row.at is None else str(row.at)),
        Column("validation at the end, %", lambda row: percent(row.end)),
        Column("seconds a step", lambda row: significant(row.seconds)),
        Column("runs", lambda row: runs_of(row.done, row.planned)),
    ]


COURSE_LEGEND = [
    "What training was like: means over the steps with an update, then over seeds. |r - 1|, how far a token's ratio "
    "is from 1, and KL are measured before each update: where a batch has a single one they are 0. Without slope: "
    "share of tokens with an advantage from which the surrogate takes no gradient. Slope < 0.1 A: of which it passes "
    "on less than a tenth, those without slope included. Gradient norm: before clipping. Steps not finite: of all "
    "runs; such values are in no mean. Highest validation: of the mean over seeds; step 0 is before training. "
    "Seconds: median of the steps, without validation and checkpoint; runs may share a machine. Of SFT the tokens are "
    "those of solutions, which no policy has sampled.",
]


BESIDE_COLUMNS: list[Column[Beside]] = [
    Column("version", lambda row: row.figure.version),
    Column("model", lambda row: row.figure.model),
    Column("trained on", lambda row: row.figure.trained_on or "unknown"),
    Column("method", lambda row: row.figure.arm),
    Column("benchmark", lambda row: row.figure.benchmark),
    Column("theirs, %", lambda row: f"{row.figure.accuracy:.1f}"),
    Column("ours", lambda row: row.arm),
    Column("ours, %", lambda row: level(row.ours)),
    Column("difference, points", lambda row: change(row.difference)),
    Column("runs", lambda row: runs_of(row.done, row.planned)),
    Column("protocol of theirs", lambda row: row.figure.protocol, wrap=True),
    Column("of ours", lambda row: row.protocol, wrap=True),
    Column("source", lambda row: row.figure.source, wrap=True),
]
BESIDE_LEGEND = [
    "Ours: last checkpoint, T=0, trained on what theirs were, or on the benchmark itself where that is unknown. "
    "Difference: ours minus theirs with ours' intervals, not corrected for the number of figures; theirs is a number "
    "whose spread is unknown. Which version of the code made these figures is unknown.",
]


def forecast_text(one: Cost) -> str:
    unlike = f" ({one.unlike} runs changed)" if one.unlike else ""
    return NONE if one.forecast is None else f"{one.forecast:,.0f}{unlike}"


COST_COLUMNS: list[Column[Cost]] = [
    Column("scale", lambda one: one.scale),
    Column("model", lambda one: one.model),
    Column("trained on", lambda one: one.data),
    Column("runs", lambda one: str(one.planned)),
    Column("steps", lambda one: f"{one.steps:,}"),
    Column("completions sampled", lambda one: f"{one.completions:,}"),
    Column("of tokens, at most", lambda one: f"{one.sampled:,}"),
    Column("tokens learned from, at most", lambda one: f"{one.learned:,}"),
    Column("completions of evaluations", lambda one: NONE if one.evaluated is None else f"{one.evaluated:,}"),
    Column("hours", lambda one: NONE if one.hours is None else f"{one.hours:.2f} of {one.done} runs"),
    Column("GPU-hours, forecast", forecast_text),
]
COST_LEGEND = [
    "Counted from the settings: all runs of a model and data set. Tokens are limits, and each pass over a batch "
    "counts. Evaluations: validations, the test part for the last and the best policy, and the study's benchmarks. "
    "Hours: measured, of training with its validations and checkpoints, each run for itself though two shared the "
    "machine; none where nothing was run. GPU-hours: on H100s, every completion as long as it may be, evaluations "
    "included, from a model of the machine of which parts are assumed (docs/scaling.md); changed: runs that do not fit "
    "on one as they are set up, with smaller packs, layers computed twice, or more devices.",
]


VERDICT_COLUMNS: list[Column[Line]] = [
    Column("claim", lambda line: line.verdict.claim.statement if line.first else ""),
    Column("of", lambda line: line.verdict.claim.source if line.first else ""),
    Column("verdict", lambda line: verdict_text(line.verdict) if line.first else ""),
    Column("where", lambda line: line.finding.where or NONE),
    Column("there", lambda line: line.finding.outcome),
    Column("difference, points", lambda line: found(line.finding)),
    Column("margin, points", lambda line: margin(line.verdict)),
    Column("detectable, points", lambda line: size(line.finding.detectable)),
    Column("seeds", lambda line: f"{line.finding.seeds} of {line.finding.planned}" if line.finding.planned else NONE),
]


def verdict_lines(verdicts: Sequence[Verdict]) -> list[Line]:
    return [Line(verdict, one, k == 0) for verdict in verdicts for k, one in enumerate(verdict.findings)]


def verdict_legend() -> list[str]:
    return [
        f"Each claim with the test that decides it, as written down on {load_claims().decided} "
        f"(experiments/claims.yaml). {load_claims().pilot} A claim whose test was written or changed later says so.",
        "Reproduced: the interval of the difference says so; not reproduced: a difference as large as the margin "
        "is ruled out, or the opposite is shown; underpowered: neither, the seeds are too few. Intervals are "
        "Student's t over seeds; each bound holds at 95% for all comparisons of a study's claims together "
        "(Bonferroni). Seeds that differ all alike have no spread, and no interval. Detectable: the smallest true "
        "difference that the test finds with probability 0.8, if seeds spread as these do.",
    ]


def margin(verdict: Verdict) -> str:
    points: float | None = getattr(verdict.claim.test, "margin", None)
    return NONE if points is None else f"{points:g}"


def verdict_text(verdict: Verdict) -> str:
    return verdict.outcome + (" (incomplete)" if verdict.incomplete else "")


def found(finding: Finding) -> str:
    """
    >>> found(Finding("stress", "underpowered", 1.25, (-3.0, 5.5), 5, 5)), found(Finding("", "not run"))
    ('+1.2 [-3.0, +5.5]', '-')
    """
    if finding.value is None:
        return finding.note or NONE
    pair, none = finding.interval, "[one seed]" if finding.seeds == 1 else "[no spread]"
    text = f"{finding.value:+.1f} " + (f"[{pair[0]:+.1f}, {pair[1]:+.1f}]" if pair else none)
    return f"{text} ({finding.note})" if finding.note else text


def comparison_legend() -> list[str]:
    return [
        "Two methods beside each other on the same seeds and problems, last checkpoint, T=0. p-values are "
        "two-sided. Seed by seed: McNemar's exact test, not corrected. The others are corrected (Holm) for the "
        "number of comparisons of the study, run or not. These policies: the seeds combined, an exact sign-flip "
        "test over problems on the differences of all seeds together; it is sharp with many problems, and the luck "
        "of a seed counts as the method's.",
        "These methods: Student's t on the differences per seed: would other seeds say the same? Detectable: the "
        "smallest true difference that this corrected test finds with probability 0.8, if seeds spread as these do; "
        "where the difference seen is smaller and p large, the seeds are too few to tell: nothing is shown equal.",
    ]


def discordant(one: Comparison) -> str:
    return f"{sum(d.ours for d in one.tests.by_seed)} / {sum(d.theirs for d in one.tests.by_seed)}"


def result_legend(baseline: str) -> list[str]:
    """What the columns mean."""
    return [
        "Accuracy: T=0, one completion a problem, test part, last checkpoint, mean over seeds; then the 95% interval "
        "over seeds (Student's t) / over seeds and problems (bootstrap of both); before RL: Wilson's, over problems.",
        "At best validation: the checkpoint that was best on the validation part, graded on the test part.",
        f"Minus {baseline}: paired, on the same seeds and problems. Gain: paired with the policy before RL, on the "
        "same problems. No interval is corrected for the number of comparisons.",
        "Step by step: completions of one operation an equation; beside it, how many of these are right. Arithmetic "
        "true: those with "
        "equations, all of which hold. "
        "Lenient: accuracy if an answer without its #### or box counted as well. No answer: nothing where the prompt "
        "wants it. Not graded: time-outs, unreadable golds and errors of the grader; they count as not correct.",
    ]


def bounds_only(row: Row) -> str:
    if row.last is None or row.wilson is None:
        return "not evaluated"
    return f"{100 * row.last.value:.1f} {bounds(row.wilson)}"


def runs(row: Row) -> str:
    if row.arm is None:
        return NONE
    return runs_of(row.done, row.planned)


def published(row: Row) -> str:
    if row.arm is None:
        return "unknown"
    found = [
        f"{entry.accuracy:.1f} ({entry.version}{'' if entry.trained_on else ', trained on unknown'})"
        for entry in row.published
    ]
    return "; ".join(found) or "unknown"
