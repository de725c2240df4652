"""A study's tables as Markdown, CSV, LaTeX (booktabs) and JSON: which there are, and their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asked import Asked
from bests import Best
from columns import (
    BESIDE_COLUMNS,
    BESIDE_LEGEND,
    COST_COLUMNS,
    COST_LEGEND,
    COURSE_LEGEND,
    VERDICT_COLUMNS,
    Line,
    asked_columns,
    asked_legend,
    best_columns,
    best_legend,
    comparison_columns,
    comparison_legend,
    course_columns,
    result_columns,
    result_legend,
    verdict_legend,
    verdict_lines,
)
from cost import Cost
from pspo.files import write_whole
from pspo.intervals import Estimate
from records import NOT_GRADED
from results import Beside, Comparison, Row
from tabletext import (
    Column,
    comma_separated,
    markdown,
    tex,
)
from training import Course
from verdicts import Verdict


def flat(row: Row) -> dict[str, object]:
    found: dict[str, object] = {
        "model": row.model,
        "data": row.data,
        "regime": row.regime,
        "method": row.method,
        "runs_done": row.done,
        "runs_planned": row.planned,
        "problems": row.problems,
    }
    for name in ("last", "best", "difference", "gain"):
        estimate: Estimate | None = getattr(row, name)
        found[name] = estimate.value if estimate else None
        for kind in ("over_seeds", "over_both"):
            pair = getattr(estimate, kind, None) if row.arm else None  # one policy has no spread over seeds
            found[f"{name}_{kind}_low"], found[f"{name}_{kind}_high"] = pair or (None, None)
    found["wilson_low"], found["wilson_high"] = row.wilson or (None, None)
    for name in ("lenient", "truncated", "no_answer", "steps", "right_steps", "arithmetic"):
        found[name] = getattr(row.texts, name, None)
    for status in NOT_GRADED:
        found[status] = row.texts.failed[status] if row.texts else None
    return found


def flat_comparison(one: Comparison) -> dict[str, object]:
    found = {name: value for name, value in asdict(one).items() if name != "tests"}
    uncorrected = {f"{name}_uncorrected": getattr(one.tests, name) for name in ("of_policies", "of_methods")}
    return found | uncorrected | {"by_seed": " ".join(f"{of_seed.p:.6g}" for of_seed in one.tests.by_seed)}


def flat_best(one: Best) -> dict[str, object]:
    found: dict[str, object] = {name: value for name, value in asdict(one).items() if name not in ESTIMATES}
    return found | flat_estimates(one)


def flat_asked(row: Asked) -> dict[str, object]:
    place, asked = ("model", "data", "regime", "arm"), ("benchmark", "which", "temperature", "problems", "samples")
    found: dict[str, object] = {name: getattr(row, name) for name in (*place, *asked, "done", "planned")}
    return found | flat_estimates(row)


def flat_beside(row: Beside) -> dict[str, object]:
    figure = {name: value for name, value in asdict(row.figure).items() if name not in ("arm", "accuracy")}
    found: dict[str, object] = figure | {"method": row.figure.arm, "theirs": row.figure.accuracy / 100}
    found |= {"arm": row.arm, "our_protocol": row.protocol, "done": row.done, "planned": row.planned}
    return found | flat_estimates(row)


ESTIMATES = ("accuracy", "difference", "pass_at_most", "pass_difference", "majority", "ours")


def flat_estimates(row: Asked | Best | Beside) -> dict[str, object]:
    """Each with its two intervals, in columns of their own."""
    found: dict[str, object] = {}
    for name in ESTIMATES:
        if hasattr(row, name):
            estimate: Estimate | None = getattr(row, name)
            found[name] = estimate.value if estimate else None
            for kind in ("over_seeds", "over_both"):
                found[f"{name}_{kind}_low"], found[f"{name}_{kind}_high"] = getattr(estimate, kind, None) or (
                    None,
                    None,
                )
    return found


def flat_line(line: Line) -> dict[str, object]:
    claim, one = line.verdict.claim, line.finding
    low, high = one.interval or (None, None)
    return {
        "claim": claim.id,
        "by": claim.by,
        "verdict": line.verdict.outcome,
        "where": one.where,
        "there": one.outcome,
        "difference_points": one.value,
        "low": low,
        "high": high,
        "seeds": one.seeds,
        "planned": one.planned,
        "note": one.note,
    }


@dataclass(frozen=True)
class Contents:
    """What a study's tables are made from. `verdicts`: of this study's claims. `benchmarks`: has it any?"""

    rows: Sequence[Row]
    bests: Sequence[Best]
    comparisons: Sequence[Comparison]
    asked: Sequence[Asked]
    courses: Sequence[Course]
    besides: Sequence[Beside]
    verdicts: Sequence[Verdict]
    costs: Sequence[Cost]
    baseline: str
    paper: bool
    benchmarks: bool


@dataclass(frozen=True)
class Part:
    """A table. `name`: in file names and JSON; `flat`: a row as a line of CSV; `without`: what the report says where
    there are no rows."""

    name: str
    title: str
    columns: Sequence[Column[Any]]
    rows: Sequence[Any]
    legend: Sequence[str]
    flat: Callable[[Any], Mapping[str, object]] = asdict
    without: str = ""


def parts_of(made: Contents) -> list[Part]:
    """Every table of the study, in the order in which they are shown; those without rows and reason included."""
    baseline, rows, compared = made.baseline, made.rows, made.comparisons
    best, asked = best_columns(made.bests, baseline), asked_columns(made.asked, baseline)
    none = "No run is complete."
    return [
        Part("main", "Results", result_columns(rows, baseline, made.paper), rows, result_legend(baseline), flat, none),
        Part("bests", "Each method at its best", best, made.bests, best_legend(baseline), flat_best),
        Part(
            *("comparisons", "Told apart?", comparison_columns(compared), compared, comparison_legend()),
            *(flat_comparison, "No seed has two methods complete."),
        ),
        Part(
            *("benchmarks", "Benchmarks and temperatures", asked, made.asked, asked_legend(baseline), flat_asked),
            "None is evaluated yet." if made.benchmarks else "",
        ),
        Part("training", "What training was like", course_columns(made.courses), made.courses, COURSE_LEGEND),
        Part("published", "Figures that the paper publishes", BESIDE_COLUMNS, made.besides, BESIDE_LEGEND, flat_beside),
        Part("verdicts", "Verdicts", VERDICT_COLUMNS, verdict_lines(made.verdicts), verdict_legend(), flat_line),
        Part("cost", "What it takes", COST_COLUMNS, made.costs, COST_LEGEND),
    ]


def write(folder: Path, header: Mapping[str, str], parts: Sequence[Part], baseline: str) -> Path:
    """Writes table_main.{md,csv,tex,json} into a folder, and {bests,comparisons,...}.{csv,tex} of what there is, which
    the Markdown and JSON ones hold as well; returns the path of the Markdown one."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*(f"- {name}: {value}" for name, value in header.items()), ""]
    record: dict[str, object] = {"header": dict(header), "baseline": baseline}
    texts: dict[str, str] = {}
    for part in parts:
        record["rows" if part.name == "main" else part.name] = [asdict(row) for row in part.rows]
        if part.rows:
            title = [] if part.name == "main" else ["", f"## {part.title}", ""]
            lines += [*title, *markdown(part.columns, part.rows, part.legend)]
            texts[f"{part.name}.csv"] = comma_separated([part.flat(row) for row in part.rows])
            texts[f"{part.name}.tex"] = tex(header, part.columns, part.rows, part.legend)
    texts["main.json"] = json.dumps(record, indent=1, default=str) + "\n"
    texts["main.md"] = "\n".join(lines) + "\n"
    for name, text in texts.items():
        write_whole(folder / f"table_{name}", text)
    for part in parts:
        for ending in ("csv", "tex"):
            if f"{part.name}.{ending}" not in texts:  # of an earlier state, or another scale
                (folder / f"table_{part.name}.{ending}").unlink(missing_ok=True)
    return folder / "table_main.md"
