"""What is suspicious about a graded completion.

    CLASSES                    the classes of suspicion, in the order in which they are listed (docs/audit.md)
    Source, Item               an evaluation file; a completion of it, its classes and its line of audit.jsonl
    Counts, counts_of          of a file, or of several together
    regions, answers, tricks   what a text marks as its answer, and what is odd about how it does so

Reads, grades and writes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pspo.grading import Grade, Style, Verdict
from pspo.grading.answers import last_box, last_hash_line
from pspo.grading.grade import bare_gold
from pspo.grading.normalise import normalise
from pspo.grading.numbers import leading_number
from records import NOT_GRADED

Entry = dict[str, Any]
"""A line of audit.jsonl (docs/audit.md)."""


@dataclass(frozen=True)
class Class:
    """A class of suspicion. `sampled`: it can be seen only in the completions that were looked at, not in all."""

    title: str
    explanation: str
    sampled: bool


CLASSES = {
    "regraded": Class(
        "graded differently today",
        "The stored grade is not what today's grader gives: the file was made with another version, or a comparison "
        "ran out of time then or now. Evaluate again before trusting this file.",
        sampled=True,
    ),
    "not_graded": Class(
        "not graded",
        "The comparison timed out or failed, or the gold answer cannot be read. It counts as not correct, and says "
        "nothing about the answer.",
        sampled=False,
    ),
    "false_accept": Class(
        "false-accept suspect",
        "Graded right, and math-verify alone says different. Either a wrong answer was rewarded or math-verify, which "
        "extracts by rules of its own, misread the text.",
        sampled=True,
    ),
    "false_reject": Class(
        "false-reject suspect",
        "Graded wrong also by the lenient reading, and math-verify alone says equal. Either a right answer was refused "
        "or math-verify, which accepts rounded values and numbers that are not the answer, is too generous.",
        sampled=True,
    ),
    "format_missed": Class(
        "format missed",
        "Graded wrong, and the lenient reading finds the gold answer in the text without its #### or box: the policy "
        "may know the answer and not the format.",
        sampled=False,
    ),
    "cut_off": Class(
        "right, but cut",
        "The answer is right and the text was cut at the token limit before it ended, so it counts as wrong.",
        sampled=False,
    ),
    "restated": Class(
        "restates the question",
        "The answer is right, is not written as the gold is, and stands in the question as it is: an expression that "
        "was copied and not worked out. Equality cannot tell; a policy may learn that it pays.",
        sampled=False,
    ),
    "format_trick": Class(
        "format trick",
        "The answer is right, and several different answers are marked, or one is marked more than once, or there is "
        "hardly a word and no number beside it. Often innocent; a policy that games the grader would show here.",
        sampled=False,
    ),
    "ordinary": Class(
        "ordinary",
        "A random sample of those looked at that fit none of the classes above, half of it right and half wrong.",
        sampled=True,
    ),
}
PERCENT = (
    "A percent sign is in the gold or the answer: math-verify fails silently on those of LaTeX with the antlr "
    "runtime that Hydra requires, so its verdict says little here."
)


@dataclass(frozen=True)
class Source:
    """An evaluation file. `group` is its line in the table of counts: in a study the seeds of an arm together."""

    path: Path
    style: Style
    group: str


@dataclass
class Item:
    """A graded completion. What a file may lack, or is found only for those looked at, is None until known."""

    source: Source
    place: tuple[int, int, int]
    """Number of the file, of the problem and of the sample: the order in which items are shown."""
    key: int
    """Random and derived: the smallest are chosen."""
    id: str
    question: str | None
    gold: str
    text: str
    answer: str | None
    counted: bool
    right: bool | None
    """Under the strict reading, whether or not the text ended."""
    lenient: bool | None
    status: str
    finished: bool
    today: Grade | None = None
    second: Verdict | None = None

    @property
    def strict(self) -> bool | None:
        return self.right if self.right is not None or self.today is None else self.today.correct

    def changes(self) -> list[str]:
        """How today's grade differs from what the file says; nothing where either is unknown."""
        if self.today is None:
            return []
        pairs: list[tuple[str, object, object]] = [
            ("right", self.right, self.right if self.right is None else self.today.correct),
            ("answer", self.answer, self.today.answer),
            ("status", self.status, self.today.status),
        ]
        if self.finished and self.lenient is not None:
            pairs.append(("lenient", self.lenient, self.today.lenient))
        return [f"today {name} is {now!r}, in the file {then!r}" for name, then, now in pairs if then != now]

    def classes(self) -> list[str]:
        """Every class that it fits, in the order of CLASSES; ["ordinary"] for none. A text that was cut counts as wrong
        whatever it says, so readings that disagree on it are no suspicion."""
        lenient = self.lenient if self.lenient is not None or self.today is None else self.today.lenient
        graded, whole = self.status not in NOT_GRADED, self.finished
        fits = {
            "regraded": bool(self.changes()),
            "not_graded": not graded,
            "false_accept": graded and whole and self.strict is True and self.second == "different",
            "false_reject": graded and whole and self.strict is False and not lenient and self.second == "equal",
            "format_missed": graded and whole and self.strict is False and bool(lenient),
            "cut_off": not whole and self.strict is True,
            "restated": self.strict is True and restates(self.question, self.answer, self.gold),
            "format_trick": self.strict is True and bool(tricks(self.text, self.source.style)),
        }
        return [name for name, fit in fits.items() if fit] or ["ordinary"]

    def notes(self) -> list[str]:
        found = self.changes() + (tricks(self.text, self.source.style) if self.strict else [])
        gold, marked = bare_gold(self.gold, self.source.style), answers(self.text, self.source.style)[-1:]
        if self.second == "different" and self.strict and "%" in "".join([gold or "", self.answer or "", *marked]):
            found.append(PERCENT)
        return found

    def entry(self, kind: str) -> Entry:
        return {
            "class": kind,
            "also": [name for name in self.classes() if name not in (kind, "ordinary")],
            "file": str(self.source.path),
            "group": self.source.group,
            "id": self.id,
            "sample": self.place[2],
            "style": self.source.style,
            "question": self.question,
            "gold": self.gold,
            "answer": self.answer,
            "counted": self.counted,
            "strict": self.strict,
            "lenient": self.lenient,
            "second_opinion": self.second,
            "today": asdict(self.today) if self.today else None,
            "status": self.status,
            "finished": self.finished,
            "notes": self.notes(),
            "text": self.text,
        }


@dataclass
class Counts:
    """Of a file or a group. Of `classes`, those that are `sampled` are out of `looked_at`, the others out of all."""

    completions: int = 0
    right: int = 0
    looked_at: int = 0
    no_opinion: int = 0
    """Of those looked at: math-verify alone failed, ran out of time or could not read the gold."""
    classes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        self.completions += other.completions
        self.right += other.right
        self.looked_at += other.looked_at
        self.no_opinion += other.no_opinion
        self.classes += other.classes

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"classes": {name: self.classes[name] for name in CLASSES}}


def counts_of(items: Sequence[Item]) -> Counts:
    """Of the completions of a file, some of which were looked at."""
    looked = [item for item in items if item.today is not None]
    seen: Counter[str] = Counter()
    for item in items:
        # An item that was not looked at is not known to be ordinary.
        seen.update(name for name in item.classes() if item.today is not None or name != "ordinary")
    no_opinion = sum(item.second not in ("equal", "different") for item in looked)
    return Counts(len(items), sum(item.counted for item in items), len(looked), no_opinion, seen)


# --- what a completion marks as its answer ---------------------------------------------------------------------------

_MARKS = {"gsm8k": re.compile(r"#{4,}"), "math": re.compile(r"\\f?boxed(?![A-Za-z])")}


def regions(text: str, style: Style) -> list[tuple[int, int, str]]:
    """(start, end, content) of every marked answer, in order; content "" where a mark has none of its own."""
    starts = [match.start() for match in _MARKS[style].finditer(text)]
    found = []
    for start, following in pairwise([*starts, len(text)]):
        part = text[start:following]
        content = (last_hash_line(part) if style == "gsm8k" else last_box(part)) or ""
        # The mark comes first, so a content of "#" or "b" must not be looked for within it.
        mark = _MARKS[style].match(part)
        end = part.index(content, mark.end() if mark else 0) + len(content)
        end += style == "math" and bool(content) and part[end : end + 1] == "}"
        found.append((start, start + end, content))
    return found


def answers(text: str, style: Style) -> list[str]:
    """The contents of `regions` that are not empty."""
    return [content for _, _, content in regions(text, style) if content]


def restates(question: str | None, answer: str | None, gold: str) -> bool:
    """Is the answer an expression of the question, and not the gold answer as it is written?"""
    if not question or not answer:
        return False
    asked, said = normalise(question), normalise(answer)
    return len(said) > 2 and said in asked and said != normalise(gold)


def tricks(text: str, style: Style) -> list[str]:
    """What is odd about how a text marks its answer, one phrase each. Looks at form alone."""
    marked = answers(text, style)
    values = list(dict.fromkeys(_value(content, style) for content in marked))
    found = []
    if len(values) > 1:
        shown = ", ".join(values[:4]) + (", ..." if len(values) > 4 else "")
        found.append(f"{len(values)} different answers are marked: {shown}; the last one counts")
    elif len(marked) > 1:
        found.append(f"the same answer is marked {len(marked)} times")
    beside = "".join(_outside(text, style).split())
    if marked and len(beside) <= 20 and not re.search(r"\d", beside):
        found.append("no working: hardly a word, and no number, beside the answer")
    return found


def _value(content: str, style: Style) -> str:
    """Equal for two spellings of one answer, as far as that is cheap to tell."""
    number = leading_number(content) if style == "gsm8k" else None
    return str(number.value) if number else normalise(content)


def _outside(text: str, style: Style) -> str:
    parts, last = [], 0
    for start, end, _ in regions(text, style):
        parts.append(text[last:start])
        last = end
    return " ".join([*parts, text[last:]])
