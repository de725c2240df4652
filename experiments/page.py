"""Tables, figures and report.html of a study, from its run directories; runs nothing, needs neither a GPU nor torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import audit
import auditpage
import figures
import tables
from pspo.config import StudyConfig
from pspo.config.schema import WordProblems
from pspo.data.wordproblems import examples
from pspo.provenance import provenance
from records import Graded, read_graded
from results import all_published, comparisons_of, grouped, rows_of
from slurm import arguments_of
from studies import Cell, Study
from suspicion import CLASSES

TEMPLATE = Path(__file__).resolve().parent / "report.html.j2"
SAMPLES = 3
"""Problems shown for each regime."""


@dataclass(frozen=True)
class Sample:
    """One problem and what each method wrote, of the same seed."""

    id: str
    question: str | None
    gold: str
    written: list[tuple[str, Graded]]


def rebuild(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> str:
    """Writes results/<study>/; returns the Markdown table with the table's path as its last line."""
    folder = Path(cfg.results) / cfg.study
    header, rows, paper = header_of(study, cells, cfg), rows_of(study, cells, cfg), cfg.scale == "paper"
    sizes = sorted({row.problems for row in rows if row.problems})
    header["test problems"] = ", ".join(map(str, sizes)) or "none graded yet"
    comparisons = comparisons_of(study, cells)
    path = tables.write(folder, header, rows, comparisons, study.baseline, paper)
    drawn = figures.draw(folder / "figures", cells, list(study.arms))
    audited = auditpage.read_audit(folder)
    page = (
        auditpage.environment()
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            title=study.title,
            header=header,
            columns=tables.columns(rows, study.baseline, paper),
            rows=rows,
            legend=tables.legend(study.baseline),
            comparisons=comparisons,
            comparison_columns=tables.comparison_columns(comparisons, study.baseline),
            comparison_legend=tables.comparison_legend(study.baseline),
            complete=sum(cell.complete for cell in cells),
            cells=cells,
            figures=[svg(figure) for figure in drawn],
            samples=[(name, samples_of(members)) for name, members in grouped(cells, regime_name)],
            audit=audited,
            audit_classes=CLASSES,
            audit_outdated=audit.outdated(audited, cells) if audited else 0,
            audit_command=shlex.join(["python", "experiments/audit.py", *arguments_of(cfg)]),
            published=all_published(),
            paper=paper,
        )
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    return f"{path.read_text(encoding='utf-8')}\n{path}"


def header_of(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> dict[str, str]:
    """Where the table comes from, name by name. Commit, packages and machine are those that the runs wrote down."""
    made = [summary["provenance"] for cell in cells if cell.complete and (summary := read_summary(cell.run_dir))]
    head = {
        "study": f"{cfg.study}: {study.title}",
        "shows": " ".join(study.shows.split()),
        "command": command(cfg),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    for name in provenance():
        found = sorted({one[name] for one in made})
        head[name] = " / ".join(found) + (" (MIXED)" if len(found) > 1 else "") if found else "no run is complete"
    return head


def command(cfg: StudyConfig) -> str:
    """What to type for the same runs."""
    return shlex.join(["python", "experiments/reproduce.py", *arguments_of(cfg)])


def read_summary(run_dir: Path) -> dict[str, Any]:
    """A complete run's summary.json."""
    return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))


def regime_name(cell: Cell) -> str:
    return f"{cell.model}, {cell.data}, {cell.regime}"


def svg(path: Path) -> str:
    """The drawing alone, without the XML declaration that has no place inside a page."""
    text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]


def samples_of(cells: Sequence[Cell]) -> list[Sample]:
    """Problems that some methods got right and some wrong, from the first seed with two methods complete."""
    for _, of_seed in grouped([cell for cell in cells if cell.complete], lambda cell: cell.seed):
        if len(of_seed) < 2:
            continue
        answers = {cell.arm: read_graded(cell.run_dir / "eval" / f"{cell.data}.jsonl") for cell in of_seed}
        if of_seed[0].start_evaluation.is_file():
            answers = {"before RL": read_graded(of_seed[0].start_evaluation), **answers}
        first = next(iter(answers.values()))
        shared = [one for one in first if all(one in graded for graded in answers.values())]
        rows = [[graded[one] for graded in answers.values()] for one in shared]
        mixed = [row for row in rows if len({graded.correct for graded in row}) == 2]
        chosen = [Sample(row[0].id, None, row[0].gold, list(zip(answers, row, strict=True))) for row in mixed[:SAMPLES]]
        return with_questions(chosen, of_seed[0])
    return []


def with_questions(samples: Sequence[Sample], cell: Cell) -> list[Sample]:
    """Questions of the built-in world are made again; those of data sets are shown where the file has them."""
    data = cell.cfg.data
    made = {}
    if isinstance(data, WordProblems):
        made = {one.problem.id: one.problem.question for one in examples(data, "test", data.test)}
    return [
        Sample(sample.id, made.get(sample.id, sample.written[-1][1].question), sample.gold, sample.written)
        for sample in samples
    ]
