"""Rows of results (results.py) as Markdown, CSV, LaTeX (booktabs) and JSON. Formats, and computes nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pspo.intervals import Bounds, Estimate
from records import NOT_GRADED
from results import Row

NONE = "-"


@dataclass(frozen=True)
class Column:
    title: str
    text: Callable[[Row], str]


def columns(rows: Sequence[Row], baseline: str, paper: bool) -> list[Column]:
    """The columns these rows need: model and data only where they differ, the paper's figures only at its scale."""
    chosen: list[Column] = []
    if len({(row.model, row.data) for row in rows}) > 1:
        chosen += [Column("model", lambda row: row.model), Column("trained and tested on", lambda row: row.data)]
    chosen += [
        Column("regime", lambda row: row.regime or NONE),
        Column("method", lambda row: row.arm or "before RL"),
        Column("accuracy, %", lambda row: bounds_only(row) if row.arm is None else level(row.last)),
        Column("at best validation, %", lambda row: level(row.best)),
        Column(f"minus {baseline}, points", lambda row: change(row.difference)),
        Column("gain over before, points", lambda row: change(row.gain)),
    ]
    if any(row.texts and row.texts.steps is not None for row in rows):
        chosen += [
            Column("step by step, %", lambda row: percent(row.texts.steps if row.texts else None)),
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


def legend(baseline: str) -> list[str]:
    """What the columns mean."""
    return [
        "Accuracy: T=0, one completion a problem, test part, last checkpoint, mean over seeds; then the 95% interval "
        "over seeds (Student's t) / over seeds and problems (bootstrap of both); before RL: Wilson's, over problems.",
        "At best validation: the checkpoint that was best on the validation part, graded on the test part.",
        f"Minus {baseline}: paired, on the same seeds and problems. Gain: paired with the policy before RL, on the "
        "same problems. No interval is corrected for the number of comparisons.",
        "Step by step: completions of one operation an equation. Arithmetic true: those with "
        "equations, all of which hold. "
        "Lenient: accuracy if an answer without its #### or box counted as well. No answer: nothing where the prompt "
        "wants it. Not graded: time-outs, unreadable golds and errors of the grader; they count as not correct.",
    ]


def not_graded(failed: Mapping[str, int]) -> str:
    """
    >>> not_graded({"timeout": 2, "gold_unreadable": 0, "error": 1})
    '2 timeout, 1 error'
    """
    return ", ".join(f"{count} {status}" for status, count in failed.items() if count) or "0"


def level(estimate: Estimate | None) -> str:
    """
    >>> level(Estimate(0.729, (0.7, 0.758), (0.68, 0.77), 3, 500))
    '72.9 [70.0, 75.8] / [68.0, 77.0]'
    """
    return NONE if estimate is None else f"{100 * estimate.value:.1f}{intervals(estimate, '')}"


def change(estimate: Estimate | None) -> str:
    return NONE if estimate is None else f"{100 * estimate.value:+.1f}{intervals(estimate, '+')}"


def intervals(estimate: Estimate, sign: str) -> str:
    over_seeds = bounds(estimate.over_seeds, sign) if estimate.over_seeds else "[one seed]"
    return f" {over_seeds} / {bounds(estimate.over_both, sign)}"


def bounds(pair: Bounds, sign: str = "") -> str:
    low, high = (f"{100 * value:{sign}.1f}" for value in pair)
    return f"[{low}, {high}]"


def bounds_only(row: Row) -> str:
    if row.last is None or row.wilson is None:
        return "not evaluated"
    return f"{100 * row.last.value:.1f} {bounds(row.wilson)}"


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def runs(row: Row) -> str:
    if row.arm is None:
        return NONE
    return f"{row.done} of {row.planned}{', incomplete' if row.incomplete else ''}"


def published(row: Row) -> str:
    if row.arm is None:
        return "unknown"
    found = [
        f"{entry.accuracy:.1f} ({entry.version}{'' if entry.trained_on else ', trained on unknown'})"
        for entry in row.published
    ]
    return "; ".join(found) or "unknown"


def markdown(header: Mapping[str, str], rows: Sequence[Row], baseline: str, paper: bool) -> str:
    chosen = columns(rows, baseline, paper)
    lines = [f"- {name}: {value}" for name, value in header.items()]
    table = [[column.title for column in chosen], ["---" for _ in chosen]]
    table += [[column.text(row) for column in chosen] for row in rows]
    lines += ["", *(f"| {' | '.join(line)} |" for line in table), ""]
    return "\n".join([*lines, *legend(baseline)]) + "\n"


def tex(header: Mapping[str, str], rows: Sequence[Row], baseline: str, paper: bool) -> str:
    """A tabular to \\input; needs the package booktabs."""
    chosen = columns(rows, baseline, paper)
    lines = [f"% {name}: {' '.join(value.split())}" for name, value in header.items()]
    lines += [f"% {line}" for line in legend(baseline)]
    lines += [rf"\begin{{tabular}}{{{'l' * len(chosen)}}}", r"\toprule"]
    lines += [" & ".join(escape(column.title) for column in chosen) + r" \\", r"\midrule"]
    for above, row in zip([None, *rows], rows, strict=False):
        if above is not None and (above.model, above.data, above.regime) != (row.model, row.data, row.regime):
            lines.append(r"\midrule")
        lines.append(" & ".join(escape(column.text(row)) for column in chosen) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # after \\ a bracket would be its optional argument
    "]": "{]}",
}


def escape(text: str) -> str:
    r"""
    >>> escape("no_clip & 5%")
    'no\\_clip \\& 5\\%'
    """
    return "".join(TEX.get(character, character) for character in text)


def comma_separated(rows: Sequence[Row]) -> str:
    """One line a row, shares as numbers in [0, 1], every interval with two columns; empty: none."""
    out = io.StringIO()
    lines = [flat(row) for row in rows]
    writer = csv.DictWriter(out, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def flat(row: Row) -> dict[str, object]:
    found: dict[str, object] = {
        "model": row.model,
        "data": row.data,
        "regime": row.regime,
        "method": row.arm or "before RL",
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
    for name in ("lenient", "truncated", "no_answer", "steps", "arithmetic"):
        found[name] = getattr(row.texts, name, None)
    for status in NOT_GRADED:
        found[status] = row.texts.failed[status] if row.texts else None
    return found


def write(folder: Path, header: Mapping[str, str], rows: Sequence[Row], baseline: str, paper: bool) -> Path:
    """Writes table_main.{md,csv,tex,json} into a folder; returns the path of the Markdown one."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"header": dict(header), "baseline": baseline, "rows": [asdict(row) for row in rows]}
    texts = {
        "md": markdown(header, rows, baseline, paper),
        "csv": comma_separated(rows),
        "tex": tex(header, rows, baseline, paper),
        "json": json.dumps(record, indent=1) + "\n",
    }
    for ending, text in texts.items():
        (folder / f"table_main.{ending}").write_text(text, encoding="utf-8")
    return folder / "table_main.md"
