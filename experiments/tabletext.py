"""Numbers as text, and rows as Markdown, LaTeX (booktabs) and CSV. Knows neither studies nor claims."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pspo.intervals import Bounds, Estimate

NONE = "-"
"""In the place of a number that there is not."""


class Grouped(Protocol):
    @property
    def group(self) -> object:
        """What lines stand together for."""


R = TypeVar("R", bound=Grouped)


@dataclass(frozen=True)
class Column(Generic[R]):
    title: str
    text: Callable[[R], str]
    wrap: bool = False
    """Sentences, which may take several lines."""


def level(estimate: Estimate | None) -> str:
    """
    >>> level(Estimate(0.729, (0.7, 0.758), (0.68, 0.77), 3, 500))
    '72.9 [70.0, 75.8] / [68.0, 77.0]'
    """
    return NONE if estimate is None else f"{100 * estimate.value:.1f}{intervals(estimate, '')}"


def change(estimate: Estimate | None) -> str:
    return NONE if estimate is None else f"{100 * estimate.value:+.1f}{intervals(estimate, '+')}"


def intervals(estimate: Estimate, sign: str) -> str:
    none = "[one seed]" if estimate.seeds == 1 else "[no spread]"
    over_seeds = bounds(estimate.over_seeds, sign) if estimate.over_seeds else none
    return f" {over_seeds} / {bounds(estimate.over_both, sign)}"


def bounds(pair: Bounds, sign: str = "") -> str:
    low, high = (f"{100 * value:{sign}.1f}" for value in pair)
    return f"[{low}, {high}]"


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def significant(value: float | None) -> str:
    """Two digits, or all before the point.

    >>> [significant(value) for value in (0.01634, 0.3, 9.96, 12.345, 99.6, 1234.0, 1.2e9, 0.0, None)]
    ['0.016', '0.30', '10', '12', '100', '1,234', '1.2e+09', '0', '-']
    """
    if value is None:
        return NONE
    if abs(value) >= 1e6 or value == 0:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:#.2g}".rstrip(".")


def in_percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def points(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:+.1f}"


def size(points: float | None) -> str:
    """
    >>> size(4.25), size(374.9), size(None)
    ('4.2', '> 100', '-')
    """
    return NONE if points is None else "> 100" if points > 100 else f"{points:.1f}"


def probability(p: float | None) -> str:
    """
    >>> [probability(p) for p in (0.04321, 0.00002, 1.0, None)]
    ['0.043', '< 0.001', '1.000', '-']
    """
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def not_graded(failed: Mapping[str, int]) -> str:
    """
    >>> not_graded({"timeout": 2, "gold_unreadable": 0, "error": 1})
    '2 timeout, 1 error'
    """
    return ", ".join(f"{count} {status}" for status, count in failed.items() if count) or "0"


def runs_of(done: int, planned: int) -> str:
    return f"{done} of {planned}{', incomplete' if done < planned else ''}"


def markdown(chosen: Sequence[Column[R]], rows: Sequence[R], notes: Sequence[str]) -> list[str]:
    table = [[cell(column.title) for column in chosen], ["---" for _ in chosen]]
    table += [[cell(column.text(row)) for column in chosen] for row in rows]
    return [*(f"| {' | '.join(line)} |" for line in table), "", *notes]


def cell(text: str) -> str:
    r"""Of a table in Markdown.

    >>> print(cell("|r - 1|"))
    \|r - 1\|
    """
    return text.replace("|", r"\|")


def tex(header: Mapping[str, str], chosen: Sequence[Column[R]], rows: Sequence[R], notes: Sequence[str]) -> str:
    """A tabular to \\input; needs the package booktabs."""
    lines = [f"% {name}: {' '.join(value.split())}" for name, value in header.items()]
    lines += [f"% {line}" for line in notes]
    lines += [rf"\begin{{tabular}}{{{''.join('p{6cm}' if column.wrap else 'l' for column in chosen)}}}", r"\toprule"]
    lines += [" & ".join(escape(column.title) for column in chosen) + r" \\", r"\midrule"]
    for above, row in zip([None, *rows], rows, strict=False):
        if above is not None and above.group != row.group:
            lines.append(r"\midrule")
        lines.append(" & ".join(escape(column.text(row)) for column in chosen) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "<": r"\textless{}",  # in the default encoding of fonts these are other characters
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
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


def comma_separated(lines: Sequence[Mapping[str, object]]) -> str:
    """One line a row, shares as numbers in [0, 1], every interval with two columns; empty: none."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
