"""Tables, figures and report.html of a study, from its run directories; runs nothing, needs neither a GPU nor torch."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

import audit
import auditpage
import curves
import figures
import tables
import verdictfiles
from asked import asked_of
from bests import bests_of
from columns import found
from complete import grouped
from cost import Cost, costs_of
from figures import Figure
from meanwhile import Meanwhile
from pspo.config import StudyConfig
from pspo.config.schema import WordProblems
from pspo.data.wordproblems import examples
from pspo.files import write_whole
from pspo.provenance import provenance
from published import all_published
from records import Graded, read_graded, read_summary
from results import besides_of, comparisons_of, rows_of
from settings import settings_of
from slurm import arguments_of
from studies import Cell, Study
from suspicion import CLASSES
from tabletext import size
from training import courses_of
from verdicts import Verdict, of_other_scales, theory_verdicts, verdicts_of

TEMPLATE = Path(__file__).resolve().parent / "report.html.j2"
SAMPLES = {"told apart": 24, "all wrong": 8, "all right": 8}
"""Problems shown for each regime: those that methods differ on first."""
SHOWN = ("main", "bests", "comparisons", "benchmarks", "training")
"""The tables in the middle of the report; verdicts are before, published figures and the cost behind them."""
APART = 0.8
"""Share of the figures that a process beside this one draws."""
BADGES = {"reproduced": "yes", "not reproduced": "no", "underpowered": "open", "not run": "open"}


@dataclass(frozen=True)
class Sample:
    """One problem and what each method wrote, of the same seed."""

    id: str
    level: str
    question: str | None
    gold: str
    written: list[tuple[str, Graded]]


def write(
    study: Study, cells: Sequence[Cell], cfg: StudyConfig, meanwhile: Meanwhile, other_costs: Callable[[], list[Cost]]
) -> str:
    """Writes results/<study>/; returns the Markdown table with the table's path as its last line.

    `other_costs` waits for what the study takes at its other scales.
    """
    folder = Path(cfg.results) / cfg.study
    drawings = folder / "figures"
    first = meanwhile.start(figures.draw, drawings, cells, list(study.arms), end=APART)
    header, paper = header_of(study, cells, cfg), cfg.scale == "paper"
    rows, asked = rows_of(study, cells, cfg), asked_of(study, cells, cfg)
    compared, verdicts = comparisons_of(study, cells), verdicts_of(cfg.study, cfg.scale, study, cells)
    drawn = [
        *(Figure(one, CURVE) for one in curves.draw(drawings, study, cells, rows)),
        *curves.draw_by_temperature(drawings, study, asked),
    ]
    rest = figures.draw(drawings, cells, list(study.arms), start=APART)
    drawn += [*first(), *rest]
    figures.remove_others(drawings, drawn)
    made = tables.Contents(
        rows=rows,
        bests=bests_of(study, cells),
        comparisons=compared,
        asked=asked,
        courses=courses_of(cells),
        besides=besides_of(study, cells, cfg),
        verdicts=verdicts,
        costs=[*costs_of(study, cells, cfg), *other_costs()],
        baseline=study.baseline,
        paper=paper,
        benchmarks=bool(study.scales[cfg.scale].benchmarks),
    )
    parts = {part.name: part for part in tables.parts_of(made)}
    sizes = sorted({row.problems for row in made.rows if row.problems})
    header["test problems"] = ", ".join(map(str, sizes)) or "none graded yet"
    path = tables.write(folder, header, list(parts.values()), study.baseline)
    origin = {name: header[name] for name in ("date", "command", "commit", "machine")}
    write_whole(folder / verdictfiles.name_of(cfg.scale), verdictfiles.to_json(made.verdicts, cfg.scale, origin))
    theory = Path(cfg.results) / "theory"
    formal = theory_verdicts(theory / "theory.json")
    others = verdictfiles.of_other_studies(Path(cfg.results), cfg.study, cfg.scale)
    elsewhere = of_other_scales(cfg.scale)
    audited = auditpage.read_audit(folder)
    page = (
        auditpage.environment()
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            title=study.title,
            header=header,
            badges=BADGES,
            count=tally([*made.verdicts, *(one for other in others for one in other.verdicts), *formal, *elsewhere]),
            verdicts=made.verdicts,
            theory=formal,
            theory_figures=[
                (text, drawing) for name, text in CAPTIONS.items() if (drawing := svg(theory / name, text))
            ],
            counterparts=counterparts_of(theory / "theory.json"),
            others=others,
            elsewhere=elsewhere,
            mixed="(MIXED)" in " ".join(header.values()),
            verdict_legend=parts["verdicts"].legend,
            difference=found,
            size=size,
            parts=[part for name, part in parts.items() if name in SHOWN and (part.rows or part.without)],
            costs=parts["cost"],
            complete=sum(cell.complete for cell in cells),
            cells=cells,
            figures=[(figure.caption, svg(figure.path, figure.caption)) for figure in drawn],
            samples=[(name, samples_of(members)) for name, members in grouped(cells, regime_name)],
            audit=audited,
            audit_classes=CLASSES,
            audit_outdated=audit.outdated(audited, cells) if audited else 0,
            audit_command=shlex.join(["python", "experiments/audit.py", *arguments_of(cfg)]),
            published=all_published(),
            besides=parts["published"],
            paper=paper,
            settings=settings_of(cells),
            commands=commands_of(study, cells, cfg),
            most_text=auditpage.MAX_SHOWN,
        )
    )
    write_whole(folder / "report.html", page)
    return f"{path.read_text(encoding='utf-8')}\n{path}"


def tally(found: Sequence[Verdict]) -> list[str]:
    """How many claims hold: the paper's that training can refute, ours, and those that follow from the formulas.

    >>> tally([])
    ["The paper's claims about training: 0", 'Ours about training: 0', 'Formal results and what follows from them: 0']
    """
    kinds = {
        "The paper's claims about training": [one for one in found if one.claim.by == "paper" and not one.claim.formal],
        "Ours about training": [one for one in found if one.claim.by == "ours" and not one.claim.formal],
        "Formal results and what follows from them": [one for one in found if one.claim.formal],
    }
    lines = []
    for kind, some in kinds.items():
        outcomes = Counter(verdict.outcome for verdict in some).most_common()
        listed = ", ".join(f"{count} {outcome}" for outcome, count in outcomes)
        lines.append(f"{kind}: {len(some)}{f' ({listed})' if listed else ''}")
    return lines


CAPTIONS = {
    "figure_1.svg": "The paper's Figure 1: ratio against surrogate and slope, for A > 0 and A < 0 (make theory).",
    "ratios.svg": "Ratios of sampled tokens of real training steps, by the advantage's sign; dotted: clip's bounds.",
}


def counterparts_of(theory: Path) -> list[dict[str, Any]]:
    """What each method has in the place of the formal results, as `make theory` wrote it; [] where it has not."""
    wanted = {"method": str, "mass": float, "slope": float, "without": float, "factor": float, "unlike": float}
    try:
        found = json.loads(theory.read_text(encoding="utf-8"))["counterparts"]
        return [{name: kind(one[name]) for name, kind in wanted.items()} for one in found]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


CURVE = "Test accuracy of the last checkpoint against what the study goes over."


def commands_of(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> list[tuple[str, str]]:
    """What to type for the study, for one of its runs, and for this report: (what it does, the command)."""
    return [
        ("the whole study, set-up included", f"make reproduce STUDY={cfg.study} SCALE={cfg.scale}"),
        ("the same, with every setting", command(cfg)),
        ("one run of it", shlex.join(["python", "-m", "pspo.train", *cells[0].overrides])),
        ("tables and this report again, from what has been run", f"make report STUDY={cfg.study} SCALE={cfg.scale}"),
        ("the formal results", "make theory"),
    ]


def header_of(study: Study, cells: Sequence[Cell], cfg: StudyConfig) -> dict[str, str]:
    """Where the table comes from, name by name. Commit, packages and machine are those that the runs wrote down."""
    made = [read_summary(cell.run_dir)["provenance"] for cell in cells if cell.complete]
    head = {
        "study": f"{cfg.study}: {study.title}",
        "shows": " ".join(f"{study.shows} {study.scales[cfg.scale].shows}".split()),
        "command": command(cfg),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    for name in provenance():
        found = sorted({one.get(name, "unknown") for one in made})
        head[name] = " / ".join(found) + (" (MIXED)" if len(found) > 1 else "") if found else "no run is complete"
    return head


def command(cfg: StudyConfig) -> str:
    """What to type for the same runs."""
    return shlex.join(["python", "experiments/reproduce.py", *arguments_of(cfg)])


def regime_name(cell: Cell) -> str:
    return f"{cell.model}, {cell.data}, {cell.regime}"


def svg(path: Path, caption: str) -> Markup:
    """The drawing alone, without the XML declaration that has no place in a page; empty where there is none.

    `caption` is for who cannot see it.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    drawing = text[text.find("<svg") if "<svg" in text else len(text) :].replace(
        "<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1
    )
    return Markup(drawing)


def samples_of(cells: Sequence[Cell]) -> list[Sample]:
    """Of the first seed with two methods complete: problems on which methods differ, then all wrong, all right."""
    for _, of_seed in grouped([cell for cell in cells if cell.complete], lambda cell: cell.seed):
        if len(of_seed) < 2:
            continue
        answers = {cell.arm: read_graded(cell.evaluation) for cell in of_seed}
        if of_seed[0].start_evaluation.is_file():
            answers = {"before RL": read_graded(of_seed[0].start_evaluation), **answers}
        first = next(iter(answers.values()))
        shared = [one for one in first if all(one in graded for graded in answers.values())]
        kinds: dict[str, list[list[Graded]]] = {kind: [] for kind in SAMPLES}
        for one in shared:
            row = [graded[one] for graded in answers.values()]
            right = {graded.correct for name, graded in zip(answers, row, strict=True) if name != "before RL"}
            kinds["told apart" if len(right) == 2 else "all right" if True in right else "all wrong"].append(row)
        some = [row for kind, most in SAMPLES.items() for row in kinds[kind][:most]]
        chosen = [
            Sample(row[0].id, row[0].level, None, row[0].gold, list(zip(answers, row, strict=True))) for row in some
        ]
        return with_questions(chosen, of_seed[0])
    return []


def with_questions(samples: Sequence[Sample], cell: Cell) -> list[Sample]:
    """Questions of the built-in world are made again; those of data sets are shown where the file has them."""
    data = cell.cfg.data
    made = questions(data) if isinstance(data, WordProblems) else {}
    return [replace(sample, question=made.get(sample.id, sample.written[-1][1].question)) for sample in samples]


@cache
def questions(data: WordProblems) -> Mapping[str, str]:
    """Of the test part, by problem id."""
    return {one.problem.id: one.problem.question for one in examples(data, "test", data.test)}
