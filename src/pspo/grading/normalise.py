r"""LaTeX answers as comparable strings, for what is neither a number nor worth a computer-algebra system.

Imports the standard library only. `normalise` maps spellings that typeset the same (`\dfrac12`, `\frac{1}{2}`) or that
a person reads as the same answer (`\text{(B)}`, `B`) to one string; it never changes a value.
"""

import functools
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

from pspo.grading.numbers import to_ascii
from pspo.grading.units import TRIGONOMETRIC, split_unit
from pspo.grading.values import value
from pspo.grading.words import UNIT_LETTERS

_RULES = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"\\(?:left|right|[bB]ig[lr]?)(?![A-Za-z])", ""),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|rm|bf)\s*\{([^{}]*)\}", r"\1"),
    (r"(?<!\\)\\(?:displaystyle(?![A-Za-z])|limits(?![A-Za-z])|!|[()\[\]])", ""),  # not the second half of "\\ "
    (r"(?:(?<!\\)\\(?:[,;: ]|q?quad(?![A-Za-z]))|~|\s)+", " "),
    (r"(?<!\\)\$", ""),
    (r"\\\$", ""),
    (r"\{,\}", ","),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}"),
    (r"\\sqrt\s*([A-Za-z0-9])", r"\\sqrt{\1}"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])", "°"),
    (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
    (r"([_^])\s*\{([A-Za-z0-9])\}", r"\1\2"),
    (r"\\leq(?![A-Za-z])|≤", r"\\le"),
    (r"\\geq(?![A-Za-z])|≥", r"\\ge"),
    (r"\\neq(?![A-Za-z])|≠", r"\\ne"),
    (r"π", r"\\pi"),
    (r"\\?%", ""),
    (r"(\\[A-Za-z]+)\s+(?=[A-Za-z])", r"\1{}"),  # "\pi n" is not the command "\pin"
    (r"(?<=\d)\s+(?=\d{3}(?!\d))", ""),  # thousands; any other space between digits parts two numbers: "4 2" is not 42
    (r"(?<!\d)\s+|\s+(?!\d)", ""),
    (r"\s+", " "),
    (r"(?<=\d)[Aa]\.?[Mm]\b\.?", "am"),
    (r"(?<=\d)[Pp]\.?[Mm]\b\.?", "pm"),
    (r"\\mathbb\s*\{?R\}?", r"(-\\infty,\\infty)"),
    (r"\+\\infty", r"\\infty"),
]]  # fmt: skip

_NUMERALS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
_BASES = {name: str(number) for number, name in enumerate(_NUMERALS, 2)} | {"ten": "{10}", "twelve": "{12}"}
_BASE_WORD = re.compile(rf"_\{{({'|'.join(_BASES)})\}}")
_CHOICE = re.compile(r"\(([A-Za-z])\)")


@functools.lru_cache(maxsize=4096)
def normalise(latex: str) -> str:
    """A string equal for spellings of one answer; "" for an empty one."""
    text = to_ascii(latex)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = text.removesuffix(".")
    if not TRIGONOMETRIC.search(text):  # where a degree is not the same as a radian
        text = text.replace("°", "")
    if "_{" in text:
        text = _BASE_WORD.sub(lambda m: f"_{_BASES[m[1]]}", text)
    if choice := _CHOICE.fullmatch(text):
        text = choice[1]
    return text.casefold() if text.isalpha() and len(text) > 1 else text


_BASED = re.compile(r"([0-9A-Z]+)_(?:([0-9])|\{([0-9]+)\})")


def without_base(normalised: str) -> tuple[str, str | None]:
    """The numeral and its base, as ("1010", "2") of "1010_2"; None for the base where none is written."""
    match = _BASED.fullmatch(normalised)
    return (match[1], match[2] or match[3]) if match else (normalised, None)


def _vulgar(fraction: str) -> str:
    value = Fraction(unicodedata.numeric(fraction)).limit_denominator(10)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_UNICODE = [(re.compile(pattern), replacement) for pattern, replacement in [
    ("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda m: f"^{{{m.group().translate(_SUPERSCRIPTS)}}}"),
    ("[¼½¾⅐-⅞]", lambda m: _vulgar(m.group())),
    (r"√\s*\(([^()]*)\)", lambda m: rf"\sqrt{{{m[1]}}}"),
    (r"√\s*(\d+|[A-Za-z])", lambda m: rf"\sqrt{{{m[1]}}}"),
    ("π", lambda _: r"\pi "), ("∞", lambda _: r"\infty "), ("\u222a", lambda _: r"\cup "), ("∩", lambda _: r"\cap "),
    ("∅", lambda _: r"\emptyset "), ("\u00d7", lambda _: r"\times "), ("·|⋅", lambda _: r"\cdot "),
    ("±", lambda _: r"\pm "), ("≈", lambda _: r"\approx "),
    ("≤", lambda _: r"\le "), ("≥", lambda _: r"\ge "), ("≠", lambda _: r"\ne "), ("∈", lambda _: r"\in "),
    ("\u211d", lambda _: r"\mathbb{R}"), ("°", lambda _: r"^\circ "), ("…", lambda _: r"\ldots "),
]]  # fmt: skip


_MANY_BLANKS = re.compile(r"(?:(?<!\\)\\(?:[,;: ]|q?quad(?![A-Za-z]))|~|\s){2,}")
_TEXT = r"\\(?:text|textrm|textit|mathrm|mathit|mbox|rm)\s*"
_Replacement = str | Callable[[re.Match[str]], str]
_WORD_RULES: list[tuple[str, _Replacement]] = [
    (r"\\[hv]?phantom\s*\{[^{}]*\}", ""),
    (_TEXT + r"\{\s*all real(?:s| numbers)\s*\}", r"(-\\infty,\\infty)"),
    (r"^" + _TEXT + r"\{\s*(?:[Tt]he )?(?:final )?[Aa]nswer(?: is)?\s*:?\s*\}", ""),
    (r"(" + _TEXT + r"\{) ?(?:an?|[Aa]n|[Tt]he) (?!or )", r"\1"),  # an ellipse
    (r"\\[dt]?frac\s*\{ ?" + _TEXT + r"\{([^{}\d]*)\} ?\}\s*\{ ?" + _TEXT + r"\{([^{}\d]*)\} ?\}", r"\\text{\1/\2}"),
    (rf"{_TEXT}\{{ ?([A-Za-z]) ?\}}", lambda m: m[0] if m[1] in UNIT_LETTERS else f" {m[1]}"),  # \mathrm{i} is no unit
    (r"\\langle(?![A-Za-z])", "("), (r"\\rangle(?![A-Za-z])", ")"),
]  # fmt: skip
_WORDS = [(re.compile(pattern), replacement) for pattern, replacement in _WORD_RULES]
_CONNECTED = re.compile(
    r" ?,? ?(?:\\(?:text|textrm|mathrm|mbox) ?\{ ?,? ?(?:and|or) ?\}|(?<![\\A-Za-z])(?:and|or)(?![A-Za-z])) ?"
)


# What changes how an answer looks, and other names of brackets and bars.
_STYLES = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"\\(?:bf|it|rm|large|Large|huge|Huge|small|boldmath)(?![A-Za-z{]) ?", ""),
    (r"\\(?:underline|boldsymbol|bm|displaystyle) ?\{([^{}]*)\}", r"\1"),
    (r"\\(?:textcolor|color) ?\{[A-Za-z]*\} ?\{([^{}]*)\}", r"\1"),
    (r"\\lbrace(?![A-Za-z])", r"\\{"), (r"\\rbrace(?![A-Za-z])", r"\\}"), (r"\\[lr]?vert(?![A-Za-z])", "|"),
    (r"\\\\\[[0-9.]+ ?(?:pt|ex|em|mm)\]", r"\\\\"),
    (r"\\(text|textrm|mathrm|mbox) ?\{([^{}^\d]*) ?(\^ ?[23])\}", r"\\\1{\2}\3"),
]]  # fmt: skip


def in_latex(text: str) -> str:
    r"""`text` with LaTeX commands for mathematical characters ("x^{2}" for "x²"), and "2\text{ and }3" as "2,3".

    Runs of blanks come out as one, letters in \text as letters, and words that say nothing are dropped.
    """
    text = " ".join(text.split())
    if "\\" in text or "~" in text:
        text = _MANY_BLANKS.sub(" ", text)
        for style, plain in _STYLES:
            text = style.sub(plain, text)
        for pattern, replacement in _WORDS:
            text = pattern.sub(replacement, text)
    if not text.isascii():
        text = to_ascii(text)
        for pattern, replacement in _UNICODE:
            text = pattern.sub(replacement, text)
    return (_CONNECTED.sub(",", text) if "and" in text or "or" in text else text).strip()


_OR = re.compile(r" ?(?:\\(?:text|textrm|mathrm|mbox) ?\{ ?or ?\}|\\lor(?![A-Za-z])|(?<![\\A-Za-z])or(?![A-Za-z])) ?")
_BOUND = re.compile(r"[A-Za-z] ?(<|>|\\[lg]eq?(?![A-Za-z])) ?([^<>=]+)")


def union_of_bounds(text: str) -> str:
    r"""`x<2 \text{ or } x\ge 3` as `(-\infty,2)\cup[3,\infty)`; any other text unchanged."""
    text = " ".join(text.split())
    bounds = [_BOUND.fullmatch(part.strip()) for part in _OR.split(text)]
    if len(bounds) < 2 or None in bounds:
        return text
    return r"\cup".join(_interval(match[1], match[2].strip()) for match in bounds if match)


def _interval(sign: str, bound: str) -> str:
    closed = sign not in "<>"
    if sign in ("<", r"\le", r"\leq"):
        return rf"(-\infty,{bound}{']' if closed else ')'}"
    return rf"{'[' if closed else '('}{bound},\infty)"


_COLUMN = re.compile(r"\\begin\{[pb]matrix\}([^&]*)\\end\{[pb]matrix\}")


def column_as_point(text: str) -> str:
    r"""A matrix of one column as the point that it is; any other text unchanged."""
    column = _COLUMN.fullmatch(text.strip())
    if column is None or "\\\\" not in column[1] or "matrix" in column[1]:
        return text
    return f"({','.join(part.strip() for part in column[1].split(chr(92) * 2))})"


_EQUALS = re.compile(r"(?<![\\<>!:=])=(?!=)")
_RELATION = re.compile(r"[=<>]|\\(?:[lg]eq?|[lg]t|neq?|in|equiv)(?![A-Za-z])")
_NAME = re.compile(r"(?!\\[dtc]?frac|\\sqrt)[A-Za-z\\][A-Za-z\\_{}' ()0-9]{0,40}")
_POINT_NAME = re.compile(r"\s*(?:\\left)?\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*(?:\\right)?\)\s*=(?!=)")
# P(X=2) = 1/2, |AB| = 5, [ABC] = 12
_MEASURE = re.compile(r"\s*(?:P ?(?:\\left)?\([^()]*\)|\|[A-Za-z]+\||\[[A-Z]{2,}\])\s*=(?!=)")
_MEMBER = re.compile(r"\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*")


def is_relation(gold: str) -> bool:
    """Is it an equation, inequality or membership? "x = 5" is one too."""
    return _RELATION.search(gold) is not None


_APPROX = re.compile(r"(?<=\S) ?\\approx(?![A-Za-z]) ?")
_VARIABLE = re.compile(r"[A-Za-z](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]+\}))?")
ROUNDED = 0.01  # relative: how far from its value what follows an \approx may be


def claims(gold: str, answer: str) -> list[str]:
    """The expressions of `answer` that must each equal `gold`: "x = 5" claims 5, and "41 = 42" claims both 41 and 42.

    An answer to a gold that is itself a relation ("y = 2x") is left whole, and so is a list ("x = 1, y = 2").
    """
    if is_relation(gold):
        return [answer]
    for prefix in (_MEMBER, _POINT_NAME, _MEASURE):
        if (match := prefix.match(answer)) and _in_order(match.group()):
            return [answer[match.end() :].strip()]
    exact, *rounded = _APPROX.split(answer)
    if rounded:
        answer = exact if all(_rounds(text, exact) for text in rounded) else "=".join([exact, *rounded])
    if "=" not in answer or any(mark in answer for mark in ",;&"):
        return [answer]
    parts = [part.strip() for part in _EQUALS.split(answer)]
    if len(parts) > 1 and _NAME.fullmatch(parts[0]) and "\\text" not in parts[0]:
        parts = parts[1:]
    if len(parts) == 2 and len(parts[1]) == 1 and parts[1].isalpha() and gold != parts[1]:  # 12 = x
        parts = parts[:1]
    while len(parts) > 1 and _VARIABLE.fullmatch(parts[0]):  # x_1 = x_2 = 2
        parts = parts[1:]
    return parts if all(parts) else [answer]


def _in_order(name: str) -> bool:
    """Are the letters of a point's name, as of "(x, y) =", in their order? "(y, x) = (1, 2)" is the point (2, 1)."""
    letters = re.findall(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])", name)
    return "," not in name or letters == sorted(letters)


def _rounds(text: str, exact: str) -> bool:
    """Is `text` a rounded value of (the last side of) `exact`?"""
    rounded, whole = value(split_unit(text)[0]), value(split_unit(exact.rpartition("=")[2])[0])
    return rounded is not None and whole is not None and abs(rounded - whole) <= ROUNDED * abs(whole)


def without_name(gold: str) -> str:
    """A gold "x = 5" as "5"; any other gold unchanged."""
    if "=" not in gold:
        return gold
    parts = _EQUALS.split(gold)
    return parts[1].strip() if len(parts) == 2 and _NAME.fullmatch(parts[0].strip()) else gold
