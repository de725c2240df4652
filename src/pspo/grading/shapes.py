r"""Answers that cannot equal the gold, told by their form, where math-verify would accept them or take long to refuse.

    r"5\text{ is wrong}" for 5, (1,2) for \{1,2\}, "neve" for "even", 4:30 for 2/15, "5x" for 5, "1, 2, \ldots" for 1, 2

math-verify drops words, multiplies letters, and forgets brackets, colons and dots before it compares. Imports the
standard library only.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from pspo.grading.normalise import normalise, without_base
from pspo.grading.units import read_unit
from pspo.grading.values import value, values_differ

_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|rm|bf|operatorname)\s*\{([^{}]*)\}")
_WORD = re.compile(r"[^\W\d_]{2,}")
_BARE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")
_CONNECTORS = {"sqrt", "frac", "infinity", "units", "unit"}
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z]*\*?\}(?:\{[clr|]*\})?")
_MARKS = ("'", "\\prime", "\\equiv")  # which math-verify overlooks
_DOTS = re.compile(r"\\[lcvd]?dots(?![A-Za-z])|\.\.+")
_TIME = re.compile(r"\d{1,2}:[0-5]\d(?!\d|:)")
_HALF_DAY = re.compile(r"[ap]m$")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_SPLIT_DIGITS = re.compile(r"\d \d")
_TAKES_DIGITS = re.compile(r"[_^]|\\(?:frac|sqrt|binom|log)")
_MARK = re.compile(r"[(\[{\x01)\]}\x02,;]")
_GROUP = re.compile(r",\d{3}(?!\d)")
_LETTER = re.compile(r"[A-Za-z]")
# What restates a question instead of answering it: an integral is not its own value.
_UNDONE = re.compile(r"\\(?:i?int|sum|prod|lim)(?![A-Za-z])|\\frac\{d\}\{d")
_FUNCTION = re.compile(
    r"\\(?:int|sum|prod|lim|sin|cos|tan|cot|sec|csc|ln|log|text|mathrm|operatorname|mathbb|emptyset|in\b)|[=<>&]|\\[lgn]e"
)
_CONSTANTS = {"e", "i", "C", "P"}  # C and P as in 5C2


_CAPITALS = re.compile(r"[A-Z]{2,}")  # HTH, ABCD: a string of outcomes or points, not a product


def cannot_equal(gold: str, answer: str) -> str | None:
    """Why `answer` is certainly something else than `gold`, in a few words; None if it may equal it.

    Called for unequal strings that are not both numbers.
    """
    if _words(gold) != _words(answer):
        return "other words"
    if _CAPITALS.fullmatch(gold.strip()) and _CAPITALS.fullmatch(answer.strip()):
        return "other letters"
    texts = normalise(gold), normalise(answer)
    for reason, differ in _REASONS.items():
        if differ(*texts):
            return reason
    return "another value" if values_differ(gold, answer) else None


def _one_only(pattern: re.Pattern[str]) -> Callable[[str, str], bool]:
    return lambda gold, answer: bool(pattern.search(gold)) != bool(pattern.search(answer))


def _either(test: Callable[[str], Any]) -> Callable[[str, str], bool]:
    return lambda gold, answer: bool(test(gold) or test(answer))


def _words(text: str) -> Counter[str]:
    """The words of `text` that carry meaning: none that connect, and no units."""
    plain = _ENVIRONMENT.sub(" ", text)
    found = [word for group in _TEXT.findall(plain) for word in _WORD.findall(group)]
    found += _BARE_WORD.findall(_COMMAND.sub(" ", _TEXT.sub(" ", plain)))
    words = (word.casefold() for word in found)
    return Counter(word for word in words if word not in _CONNECTORS and read_unit(word) is None)


def _brackets_differ(gold: str, answer: str) -> bool:
    """A number against what has parts; a set against a point or an interval; lists of different lengths or points."""
    (kind, parts), (other, others) = shape(gold), shape(answer)
    if "\\pm" in gold + answer:
        return False
    if min(len(parts), len(others)) < 2:
        whole = [_is_composite(gold, parts), _is_composite(answer, others)]
        return whole[0] != whole[1] and value(answer if whole[0] else gold) is not None
    if "{" in (kind, other):
        return kind != other and "" not in (kind, other)
    if len(parts) != len(others):
        return True
    ordered = kind and other
    return bool(ordered) and any(map(values_differ, parts, others))


def _is_composite(normalised: str, parts: list[str]) -> bool:
    return len(parts) > 1 or "\\begin" in normalised or "\\cup" in normalised


def _names_out_of_order(gold: str, answer: str) -> bool:
    """The point (1, 2) as "y = 1, x = 2" or "(y, x) = (1, 2)": math-verify drops the names."""
    if "=" in gold or not gold.startswith("("):
        return False
    listed = re.fullmatch(r"\(?([A-Za-z](?:,[A-Za-z])+)\)?=.*", answer)
    names = listed[1].split(",") if listed else [part.partition("=")[0] for part in answer.split(",") if "=" in part]
    return len(names) > 1 and names != sorted(names)


def _names_reordered(gold: str, answer: str) -> bool:
    """Bare values for a gold like "x=1,y=2", and not in its order: math-verify takes both for sets."""
    named = [part.split("=") for part in gold.split(",")]
    if len(named) < 2 or "=" in answer or not all(len(part) == 2 and part[0].isalpha() for part in named):
        return False
    return len({name for name, _ in named}) > 1 and answer.strip("()").split(",") != [value for _, value in named]


def shape(normalised: str) -> tuple[str, list[str]]:
    """The bracket around the whole ("(", "[", "{" or "") and the parts that it holds at the top level."""
    text = (
        normalised.replace("\\{", "\x01").replace("\\}", "\x02").replace("\\lbrace", "\x01").replace("\\rbrace", "\x02")
    )
    opening = text[:1]
    wrapped = opening in ("(", "[", "\x01") and text[-1:] in (")", "]", "\x02") and _encloses(text)
    inner = text[1:-1] if wrapped else text
    depth, start, parts = 0, 0, []
    for mark in _MARK.finditer(inner):
        c, i = mark.group(), mark.start()
        depth += (c in "([{\x01") - (c in ")]}\x02")
        if depth == 0 and c in ",;" and not (_GROUP.match(inner, i) and inner[i - 1 : i].isdigit()):
            parts.append(inner[start:i])
            start = i + 1
    return ("{" if opening == "\x01" else opening) if wrapped else "", [*parts, inner[start:]]


def _encloses(text: str) -> bool:
    depth = 0
    for mark in _MARK.finditer(text):
        depth += (mark.group() in "([{\x01") - (mark.group() in ")]}\x02")
        if depth == 0:
            return mark.end() == len(text)
    return False


def _variables_differ(gold: str, answer: str) -> bool:
    """Letters on one side and none on the other: an expression in x is no number. A function may cancel them."""
    if _FUNCTION.search(gold) or _FUNCTION.search(answer):
        return False
    return bool(_variables(gold)) != bool(_variables(answer))


def _variables(text: str) -> set[str]:
    return set(_LETTER.findall(_COMMAND.sub(" ", _ENVIRONMENT.sub(" ", text)))) - _CONSTANTS


# Each is asked of the normalised gold and answer; they are not equal strings.
_REASONS: dict[str, Callable[[str, str], bool]] = {
    "dots on one side": _one_only(_DOTS),
    "a mark on one side": lambda gold, answer: any((mark in gold) != (mark in answer) for mark in _MARKS),
    "not worked out": lambda gold, answer: bool(_UNDONE.search(answer) and not _UNDONE.search(gold)),
    "a clock time": _either(lambda text: _TIME.match(text) or _HALF_DAY.search(text)),
    "ratios of different lengths": lambda gold, answer: 0 < gold.count(":") != answer.count(":") > 0,
    "a base": _either(lambda text: without_base(text)[1]),
    "two numbers side by side": _either(lambda text: _SPLIT_DIGITS.search(text) and not _TAKES_DIGITS.search(text)),
    "other brackets or parts": _brackets_differ,
    "a variable on one side": _variables_differ,
    "names in another order": _names_reordered,
    "names out of order": _names_out_of_order,
}


_SIGNS = re.compile(r"\\pm(?![A-Za-z])")
MAX_SIGNS = 2  # in one part: four values


def expand_signs(text: str) -> str:
    r"""`1\pm\sqrt{2}` as `1+\sqrt{2},1-\sqrt{2}`, within a set as its elements; text without such a sign unchanged."""
    if "\\pm" not in text or "\\mp" in text:
        return text
    text = _SIZES.sub("", text)
    bracket, parts = shape(text)
    found = [len(_SIGNS.findall(part)) for part in parts]
    if max(found) > MAX_SIGNS:
        return text
    if bracket in ("(", "["):
        return ",".join(_both(text)) if sum(found) <= MAX_SIGNS else text
    inner = ",".join(value for part in parts for value in _both(_raw(part)))
    return rf"\{{{inner}\}}" if bracket else inner


_SIZES = re.compile(r"\\(?:left|right)(?![A-Za-z])")


def _raw(part: str) -> str:
    return part.replace("\x01", "\\{").replace("\x02", "\\}")


def _both(part: str) -> list[str]:
    if not _SIGNS.search(part):
        return [part]
    return [whole for sign in "+-" for whole in _both(_SIGNS.sub(sign, part, count=1))]
