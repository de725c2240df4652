r"""LaTeX answers as comparable strings, for what is neither a number nor worth a computer-algebra system.

Imports the standard library only. `normalise` maps spellings that typeset the same (`\dfrac12`, `\frac{1}{2}`) or that
a person reads as the same answer (`\text{(B)}`, `B`) to one string; it never changes a value.
"""

import functools
import re

from pspo.grading.numbers import to_ascii

_RULES = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"\\(?:left|right|[bB]ig[lr]?)(?![A-Za-z])", ""),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|rm|bf)\s*\{([^{}]*)\}", r"\1"),
    (r"(?<!\\)\\(?:displaystyle|limits|!|,|;|:|q?quad| |[()\[\]])|~", ""),  # not the second half of "\\ "
    (r"(?<!\\)\$", ""),
    (r"\\\$", ""),
    (r"\{,\}", ","),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}"),
    (r"\\sqrt\s*([A-Za-z0-9])", r"\\sqrt{\1}"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|°", ""),
    (r"([_^])\s*\{([A-Za-z0-9])\}", r"\1\2"),
    (r"\\leq(?![A-Za-z])|≤", r"\\le"),
    (r"\\geq(?![A-Za-z])|≥", r"\\ge"),
    (r"\\neq(?![A-Za-z])|≠", r"\\ne"),
    (r"π", r"\\pi"),
    (r"\\?%", ""),
    (r"\s+", ""),
]]  # fmt: skip

_CHOICE = re.compile(r"\(([A-Za-z])\)")


@functools.lru_cache(maxsize=4096)
def normalise(latex: str) -> str:
    """A string equal for spellings of one answer; "" for an empty one."""
    text = to_ascii(latex)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = text.rstrip(".")
    if choice := _CHOICE.fullmatch(text):
        text = choice[1]
    return text.casefold() if text.isalpha() and len(text) > 1 else text


_BASED = re.compile(r"[0-9A-Z]+_(?:[0-9]|\{[0-9]+\})")


def is_based(normalised: str) -> bool:
    """Is it a numeral with its base, as in "1010_2"? (math-verify ignores the base: 1010_3 would pass for 1010_2.)"""
    return _BASED.fullmatch(normalised) is not None


_EQUALS = re.compile(r"(?<![\\<>!:=])=(?!=)")
_RELATION = re.compile(r"[=<>]|\\(?:[lg]eq?|[lg]t|neq?|in|equiv)(?![A-Za-z])")
_NAME = re.compile(r"(?!\\[dtc]?frac|\\sqrt)[A-Za-z\\][A-Za-z\\_{}' ()0-9]{0,40}")


def claims(gold: str, answer: str) -> list[str]:
    """The expressions of `answer` that must each equal `gold`: "x = 5" claims 5, and "41 = 42" claims both 41 and 42.

    An answer to a gold that is itself a relation ("y = 2x") is left whole, and so is a list ("x = 1, y = 2").
    """
    if _RELATION.search(gold) or any(mark in answer for mark in ",;&"):
        return [answer]
    parts = [part.strip() for part in _EQUALS.split(answer)]
    if len(parts) > 1 and _NAME.fullmatch(parts[0]):
        parts = parts[1:]
    return parts if all(parts) else [answer]


def without_name(gold: str) -> str:
    """A gold "x = 5" as "5"; any other gold unchanged."""
    parts = _EQUALS.split(gold)
    return parts[1].strip() if len(parts) == 2 and _NAME.fullmatch(parts[0].strip()) else gold
