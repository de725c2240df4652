"""One completion graded against one gold answer. Imports the standard library; math-verify only through `symbolic`.

`settle` decides everything that exact numbers and strings can decide. What is left (math style only) is `Undecided` and
goes to math-verify: in this process from `grade`, in a worker that can be killed from `Grader`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from pspo.grading import symbolic
from pspo.grading.answers import last_box, last_hash_line, lenient_expression
from pspo.grading.normalise import claims, is_based, normalise, without_name
from pspo.grading.numbers import Number, exact_number, leading_number, lenient_number

Style = Literal["gsm8k", "math"]
Status = Literal["ok", "no_answer", "timeout", "gold_unreadable", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)

MAX_EXPRESSION = 1000  # characters; the longest gold of MATH has 159


@dataclass(frozen=True)
class Grade:
    """The outcome for one completion.

    correct  right under the strict reading, the one that the prompt asks for
    answer   what was read as the answer; None without one
    status   "ok": compared. "no_answer": nothing readable where the answer belongs. "timeout", "error": the comparison
             failed, which says nothing about the answer. "gold_unreadable": the gold answer is at fault
    lenient  right when an answer without its `####` or box is also looked for; implied by `correct`. A second, lenient
             accuracy, never to be mixed into the first
    """

    correct: bool
    answer: str | None
    status: Status = "ok"
    lenient: bool = False


@dataclass(frozen=True)
class Undecided:
    """An answer for math-verify: right if every one of `claims` equals `gold`."""

    answer: str
    gold: str
    claims: tuple[str, ...]

    def grade(self, verdict: symbolic.Verdict) -> Grade:
        correct = verdict == "equal"
        if verdict == "equal" or verdict == "different":
            return Grade(correct, self.answer, "ok", lenient=correct)
        return Grade(False, self.answer, verdict)


def grade(completion: str, gold: str, style: Style = "gsm8k") -> Grade:
    """Grade `completion` against `gold`, in this process.

    gold    the bare answer, or a whole reference solution ending in `#### 42` (gsm8k) or holding a box (math)
    style   "gsm8k" or "math"; anything else is a ValueError. No text raises

    Math style may call math-verify, which takes any amount of time on hostile text ("9^{9^{9}}"): what a policy in
    training writes belongs to `Grader`.
    """
    outcome = settle(completion, gold, style)
    return outcome if isinstance(outcome, Grade) else outcome.grade(symbolic.compare(outcome.gold, outcome.claims))


def settle(completion: str, gold: str, style: Style) -> Grade | Undecided:
    """The grade if it needs no computer algebra, in microseconds; else what math-verify has to decide."""
    if style == "gsm8k":
        return _settle_gsm8k(completion, gold)
    if style == "math":
        return _settle_math(completion, gold)
    raise ValueError(f"grading style {style!r} is unknown; it must be one of {', '.join(get_args(Style))}")


def _settle_gsm8k(completion: str, gold: str) -> Grade:
    gold_line = last_hash_line(gold)
    target = leading_number(gold if gold_line is None else gold_line)
    line = last_hash_line(completion)
    number = leading_number(line) if line else None
    answer = number.text if number else None
    if target is None:
        return Grade(False, answer, "gold_unreadable")
    if number is not None:
        correct = number.value == target.value
        return Grade(correct, answer, "ok", lenient=correct)
    guess = lenient_number(completion)
    return Grade(False, None, "no_answer", lenient=guess is not None and guess.value == target.value)


def _settle_math(completion: str, gold: str) -> Grade | Undecided:
    gold_box = last_box(gold)
    target = (gold if gold_box is None else gold_box).strip()
    answer = last_box(completion) or None
    if not target or not normalise(target) or len(target) > MAX_EXPRESSION:
        return Grade(False, answer, "gold_unreadable")
    if answer is None:
        return Grade(False, None, "no_answer", lenient=_lenient_math(completion, target))
    if len(answer) > MAX_EXPRESSION:
        return Grade(False, answer, "error")  # refused, not compared
    equal = _equal(target, answer)
    if equal is None:
        return Undecided(answer, target, tuple(claims(target, answer)))
    return Grade(equal, answer, "ok", lenient=equal)


def _equal(gold: str, answer: str) -> bool | None:
    """Equal as numbers or as strings? None if neither can tell."""
    target = exact_number(without_name(gold))
    if target is not None:
        numbers = [exact_number(claim) for claim in claims(without_name(gold), answer)]
        if all(number is not None for number in numbers):
            return all(_same(target, number) for number in numbers if number is not None)
    texts = normalise(gold), normalise(answer)
    if texts[0] == texts[1] or all(map(is_based, texts)):
        return texts[0] == texts[1]
    return None


def _same(gold: Number, answer: Number) -> bool:
    """Equal values. A percent sign on one side only is either a unit (40% for 40) or a factor (40% for 0.4)."""
    if gold.value == answer.value:
        return True
    if gold.percent == answer.percent:
        return False
    percent, plain = (gold, answer) if gold.percent else (answer, gold)
    return percent.value == plain.value * 100


def _lenient_math(completion: str, gold: str) -> bool:
    """Does the text say the gold without a box? Judged as number or string only: not worth a worker's time."""
    stated = lenient_expression(completion)
    if stated and _equal(gold, stated):
        return True
    target, guess = exact_number(without_name(gold)), lenient_number(completion)
    return target is not None and guess is not None and target.value == guess.value
