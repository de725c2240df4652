"""One completion graded against one gold answer. Imports the standard library; math-verify only through `symbolic`.

`settle` decides everything that exact numbers and strings can decide. What is left (math style only) is `Undecided` and
goes to math-verify, in a worker that can be killed.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from pspo.grading import symbolic
from pspo.grading.answers import last_box, last_hash_line, lenient_expression
from pspo.grading.normalise import (
    claims,
    column_as_point,
    in_latex,
    is_relation,
    normalise,
    union_of_bounds,
    without_base,
    without_name,
)
from pspo.grading.numbers import Number, exact_number, last_number, leading_number, lenient_number
from pspo.grading.shapes import cannot_equal, expand_signs, shape
from pspo.grading.units import Unit, split_unit
from pspo.grading.values import value, values_differ

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
             failed, which says nothing about the answer. "gold_unreadable": the gold is empty, or nothing but an equal
             string can be compared with it, and this answer is not that
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


def settle(completion: str, gold: str, style: Style) -> Grade | Undecided:
    """The grade if it needs no computer algebra, in microseconds; else what math-verify has to decide."""
    if style == "gsm8k":
        return _settle_gsm8k(completion, gold)
    if style == "math":
        return _settle_math(completion, gold)
    raise _unknown(style)


def bare_gold(gold: str, style: Style) -> str | None:
    """The answer in `gold`, bare or at the end of a whole solution: a number's digits, a box's content; or None."""
    if style == "gsm8k":
        line = last_hash_line(gold)
        number = leading_number(gold if line is None else line)
        return number.text if number else None
    if style == "math":
        box = last_box(gold)
        return (gold if box is None else box).strip() or None
    raise _unknown(style)


def last_number_is(completion: str, gold: str) -> bool:
    """Is the last number of a completion, wherever it stands, that of the gold? The released code's reading; no grade.

    >>> last_number_is("#### 8. So it is 7", "7"), last_number_is("#### 7. There are 9 of them", "7")
    (True, False)
    """
    found, gold_line = last_number(completion), last_hash_line(gold)
    target = leading_number(gold if gold_line is None else gold_line)
    return found is not None and target is not None and found.value == target.value


def answer_key(answer: str, style: Style) -> str:
    r"""A spelling that answers share if they are equal, for majority votes: "1/2" for `\frac12`, `0.5` and `x = 0.50`.

    answer   what `Grade.answer` holds: the number's digits, or the content of the box

    Best effort: equal answers that only computer algebra tells equal have different keys, and so have 40 and 40%,
    because 40% may also be 0.4 (in math style; in gsm8k style the percent sign is nothing). Units are dropped. No
    text raises; what is not readable is its own key.
    """
    if style == "gsm8k":
        number = leading_number(answer)
        return str(number.value) if number else " ".join(answer.split())
    if style != "math":
        raise _unknown(style)
    if len(answer) > MAX_EXPRESSION:
        return answer
    whole = expand_signs(in_latex(answer))
    sides = claims("", whole)
    text = split_unit(sides[-1])[0]
    number = exact_number(text)
    if number is not None:
        return f"{number.value}{'%' if number.percent else ''}"
    bracket, parts = shape(normalise(text))
    if len(parts) < 2:
        return normalise(text) or " ".join(answer.split())
    keys = [_part_key(part) for part in parts]
    if bracket in ("", "{"):
        return ",".join(sorted(keys))
    return normalise(text)[0] + ",".join(keys) + normalise(text)[-1]


def _part_key(part: str) -> str:
    number = exact_number(without_name(part))
    return str(number.value) if number else part


def _unknown(style: str) -> ValueError:
    return ValueError(f"grading style {style!r} is unknown; it must be one of {', '.join(get_args(Style))}")


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
    if answer and len(answer) <= MAX_EXPRESSION and not in_latex(answer):
        answer = None
    if not target or len(target) > MAX_EXPRESSION or not normalise(target):  # length before any regular expression
        return Grade(False, answer, "gold_unreadable")
    if answer is None:
        return Grade(False, None, "no_answer", lenient=_lenient_math(completion, target))
    if len(answer) > MAX_EXPRESSION:
        return Grade(False, answer, "error")  # refused, not compared
    equal = _compare(target, answer)
    if isinstance(equal, bool):
        return Grade(equal, answer, "ok", lenient=equal)
    return Undecided(answer, *equal)


def _compare(gold: str, answer: str) -> bool | tuple[str, tuple[str, ...]]:
    """Equal as numbers, as strings, or impossible by form? Else the gold and the claims for math-verify."""
    if "\\cup" in gold or "\u222a" in gold:
        answer = union_of_bounds(answer)
    gold, answer = expand_signs(in_latex(gold)), expand_signs(in_latex(answer))
    if gold == answer:
        return True
    if (letter := _chosen(gold, answer)) is not None:
        return letter == normalise(gold)
    if ("\\begin" in gold) != ("\\begin" in answer):
        gold, answer = column_as_point(gold), column_as_point(answer)
    target, unit = split_unit(without_name(gold))
    sides = [split_unit(claim) for claim in claims(gold, answer)]
    factors = [_factor(unit, other) for _, other in sides]
    if None in factors:
        return False
    number = exact_number(target)
    if number is not None:
        numbers = [exact_number(text) for text, _ in sides]
        if None not in numbers:
            return all(_same(number, n, f) for n, f in zip(numbers, factors, strict=True) if n and f)
    texts = [text for text, _ in sides]
    if _same_string(gold, answer) or (set(factors) == {1} and all(_same_string(target, text) for text in texts)):
        return True
    if is_relation(gold):
        if any(values_differ(target, text) for text in texts):
            return False
        target, texts = gold, [answer]
    if any(cannot_equal(target, text) for text in texts):
        return False
    return target, tuple(_scaled(text, f) for text, f in zip(texts, factors, strict=True) if f)


_CHOICE = re.compile(r"\(?([A-E])\)(.+)")


def _chosen(gold: str, answer: str) -> str | None:
    r"""The letter of a choice that is written with its value, as `\text{(E) } 5`, where the gold is such a letter."""
    if ")" not in answer or normalise(gold) not in tuple("ABCDE"):
        return None
    match = _CHOICE.fullmatch(normalise(answer))
    return match[1] if match and value(match[2]) is not None else None


def _factor(gold: Unit | None, answer: Unit | None) -> Fraction | None:
    """By which the answer's value becomes one in the gold's unit; 1 if a unit is missing, None if they disagree."""
    if gold is None or answer is None:
        return Fraction(1)
    return answer.factor / gold.factor if answer.dimensions == gold.dimensions else None


def _scaled(text: str, factor: Fraction) -> str:
    return text if factor == 1 else rf"\frac{{{factor.numerator}}}{{{factor.denominator}}}\cdot({text})"


def _same(gold: Number, answer: Number, factor: Fraction) -> bool:
    """Equal values. A percent sign on one side only is either a unit (40% for 40) or a factor (40% for 0.4)."""
    if gold.value == answer.value * factor:
        return True
    if gold.percent == answer.percent:
        return False
    percent, plain = (gold, answer) if gold.percent else (answer, gold)
    return percent.value == plain.value * 100


def _same_string(gold: str, answer: str) -> bool:
    """Spellings of one answer. A base that the answer does not repeat is that of the question; half days likewise."""
    first, second = normalise(gold), normalise(answer)
    if first == second:
        return bool(first)
    (digits, base), (others, base2) = without_base(first), without_base(second)
    return digits == others and (base2 is None or (base is None and base2 == "10"))


def _lenient_math(completion: str, gold: str) -> bool:
    """Does the text say the gold without a box? Judged as number or string only: not worth a worker's time."""
    stated = lenient_expression(completion)
    if stated and len(stated) <= MAX_EXPRESSION and _compare(gold, stated) is True:
        return True
    target, guess = exact_number(split_unit(without_name(gold))[0]), lenient_number(completion)
    return target is not None and guess is not None and target.value == guess.value
