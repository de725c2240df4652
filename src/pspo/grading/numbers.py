"""Exact numbers out of short texts, without evaluating anything. Imports the standard library only.

Two readings share one grammar of a number (sign, currency, thousands separators, decimals, powers of ten, fractions and
mixed numbers, in plain text or LaTeX):

    leading_number(text)   the number a line starts with, as in "**$1,234.50** per week."; for `####` lines
    exact_number(text)     the number the whole text is, as in r"\\frac{3}{4}"; for boxes and golds

Everything is capped in length and in exponent, so hostile text costs microseconds: "9**9**9**9" is not a number here.
"""

import functools
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from pspo.grading.values import value, values_differ
from pspo.grading.words import NUMBER_WORD, changes_nothing

MAX_LINE = 200  # characters; a longer line is cut here
MAX_CHARS = 200  # a longer text is not one number
MAX_DIGITS = 100  # a longer number is not read
MAX_EXPONENT = 100  # in 1e100 and 10^{100}
CANDIDATES = 50  # the lenient reading tries no more than this many, from the end


@dataclass(frozen=True)
class Number:
    """A number as written: its exact value (percent sign ignored), its digits, and whether a percent sign follows."""

    value: Fraction
    text: str
    percent: bool = False


# Characters that a person reads as an ASCII one. No NFKC: it would turn "10²" into 102 and "2½" into 21/2.
_ASCII = {ord(c): a for chars, a in [
    ("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d", "-"),
    ("\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    ("\u2044\u2215\uff0f", "/"), ("\uff0c", ","), ("\uff0e", "."), ("\uff05", "%"), ("\uff04", "$"), ("\uff0b", "+"),
    ("\uff1a", ":"), ("\uff1d", "="),
    ("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad", ""),
] for c in chars} | {0xFF10 + d: str(d) for d in range(10)}  # fmt: skip

_LATEX = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"\{,\}", ","),  # 1{,}000
    (r"\\!", ""),  # 1,\!000
    (r"(?<!\\)\\[,;: ]|~|\\q?quad\b", " "),
    (r"\\([$%#&_])", r"\1"),
    (r"\\left\b|\\right\b|\\[()\[\]]", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\times\b|\\cdot\b", "\u00d7"),
    (r"\\frac\s*\{\s*([-+]?)\s*([\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}", r" \1\2/\3"),
    (r"\\frac\s*(\d)\s*(?:(\d)|\{\s*(\d+)\s*\})", r" \1/\2\3"),  # \frac12, \frac1{2}
    (r"\\frac\s*\{\s*([-+]?)\s*(\d+)\s*\}\s*(\d)", r" \1\2/\3"),  # \frac{12}5
]]  # fmt: skip

_WRAPPED = re.compile(r"\\(?:boxed|text|textbf|textit|textrm|mathbf|mathrm|mbox|bf|rm)\s*\{([^{}]*)\}")
_APPROXIMATELY = re.compile(r"^\s*\\approx(?![A-Za-z])")
_DEGREE = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)\s*")

_INTEGER = re.compile(r"-?[1-9]\d{0,17}|0")  # most golds: read without the rest of this module
_DIGIT = re.compile(r"\d")
_TIMES = r"[x\u00d7*]"
_INT = r"(?:\d{1,3}(?:[ ]\d{3})+(?!\d)|\d+(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s*(?:[$€£¥₹]\s*)?(?P<inner_sign>[-+]?)\s*
    (?: (?P<whole>{_INT})\ +(?P<numerator>\d+)\s*/\s*(?P<denominator>\d+)
      | (?P<decimal>{_INT}(?:\.\d+)?|\.\d+)
        (?:[eE](?P<exp>[-+]?\d+)|\s*{_TIMES}\s*10\s*\^\s*\{{?\s*(?P<power>[-+]?\d+)\s*\}}?)?
        (?:\s*/\s*(?P<divisor>{_INT}(?:\.\d+)?))? )""",
    re.VERBOSE,
)
_PERCENT = re.compile(r"\s*(?:%|percent\b)", re.IGNORECASE)
_MAGNITUDE = re.compile(r"\s*(hundred|thousand|million|billion|trillion)\b|(k)\b", re.IGNORECASE)
_MAGNITUDES = {"k": 10**3, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_MARKUP = "*_`~ \t"
_LABEL = re.compile(
    r"(?:(?:Step|Part|Question|Problem|Exercise) \d{1,3}:\s"
    r"|[A-Za-z][A-Za-z '\u2019()]{0,80}?(?::|=|\bis\b|\bare\b))?[*_`~ \t]*[=:\u2248]?[*_`~ \t]*",
    re.IGNORECASE,
)
# What may follow a number: words that change nothing, and these. No letter, digit or operator is among them.
_HARMLESS = ".,;:?!'\"\u2019\u201c\u201d\u3002*_`~$€£¥₹%°()[]{}/-|&"
_COUNT = r"\d[\d,]*(?:\.\d+)?(?![\w.]*\d)"
_REMOVED = [(re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in [
    (r"</?[a-z][a-z_]{0,20}>|<\|[a-z_]{1,30}\|>", " "),  # </s>, <|im_end|>
    (r"(?<=[a-z]) ?(?:\^ ?\{? ?[23] ?\}?|[\u00b2\u00b3])", " "),  # cm^2
    (r"\^ ?\{? ?\\circ ?\}?|\\degree(?![a-z])", " "),
    (r"\b[ap]\. ?m\b", " "),
    # "18 of the 20", "$18 for 3 people", "18, not 19"
    (rf"\b(?:half )?(?:of|in|per|each|every|for|not) (?:the |all )?[$€£]?(?:{_COUNT}|{NUMBER_WORD}\b)", " "),
]]  # fmt: skip
_ATTACHED = re.compile(r"!|\.\.|\(\s*[-+$]?\d")  # a factorial, a number that goes on, a factor


def _changes_number(rest: str) -> bool:
    """Does what follows a number make it something else: a term, a range, a clock time, one of several answers?"""
    if _ATTACHED.match(rest):
        return True
    for pattern, replacement in _REMOVED:
        rest = pattern.sub(replacement, rest)
    return not changes_nothing(rest.rstrip("\\ "), _HARMLESS)


def to_ascii(text: str) -> str:
    """Typographic digits, dashes and spaces as their ASCII counterparts; zero-width characters removed.

    White space comes out as single blanks, so that no regular expression meets a long run of it.
    """
    return " ".join((text if text.isascii() else text.translate(_ASCII)).split())


_SYMBOLS = re.compile("[\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]+")  # a tick or an emoji beside the number
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")


def _vulgar(match: re.Match[str]) -> str:
    """A one-character fraction as " 1/2", so that one and a half is a mixed number and not 11/2."""
    value = Fraction(unicodedata.numeric(match.group())).limit_denominator(10)
    return f" {value.numerator}/{value.denominator}"


def _plain(text: str) -> str:
    """LaTeX spelling of a number as plain text: \\$1{,}000 -> $1,000, \\dfrac{1}{2} -> 1/2."""
    text = to_ascii(text)
    if not text.isascii():
        text = _SYMBOLS.sub(" ", _VULGAR.sub(_vulgar, text))
    if "\\" in text or "{" in text or "~" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    return text.strip()


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match.group()) > MAX_DIGITS or (match["sign"] and match["inner_sign"]):
        return None

    def digits(name: str) -> Fraction:
        return Fraction(match[name].replace(",", "").replace(" ", ""))

    if match["whole"] is not None:
        divisor = digits("denominator")
        if not divisor:
            return None
        value = digits("whole") + digits("numerator") / divisor
    else:
        exponent = int(match["exp"] or match["power"] or 0)
        divisor = digits("divisor") if match["divisor"] else Fraction(1)
        if abs(exponent) > MAX_EXPONENT or not divisor:
            return None
        value = digits("decimal") * Fraction(10) ** exponent / divisor
    return -value if "-" in (match["sign"], match["inner_sign"]) else value


def _spelling(match: re.Match[str], value: Fraction) -> str:
    """The number without currency and separators, as one would compare it by eye: "1234.50", "-3/4", "2 1/2"."""
    sign = "-" if value < 0 else ""
    if match["whole"] is not None:
        return f"{sign}{match['whole']} {match['numerator']}/{match['denominator']}"
    unsigned = match.group().lstrip("-+$€£¥₹ \t")
    return sign + re.sub(r"[,\s]", "", unsigned)


@functools.lru_cache(maxsize=4096)  # a group of completions shares its gold, and often its answer
def _leading(line: str) -> Number | None:
    text = _plain(line)
    for _ in range(2):  # \boxed{\text{42}}
        text = _WRAPPED.sub(r" \1 ", text)
    text = text.strip().lstrip(_MARKUP)
    if text.startswith("$") and text.rstrip(" .").endswith("$"):  # $42$ in math mode, not dollars
        text = text.rstrip(" .")[1:-1].strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    label = _LABEL.match(text)
    text = text[label.end() if label else 0 :]
    return _stated(text) or _end_of_chain(text)


def leading_number(line: str) -> Number | None:
    """The number that `line` states: optional label, markup or currency, the number, then words or punctuation.

    None if there is none, or if what follows may make it something else: "5 + 3", "10-12", "4:30", "5 or 6", "5x". Of a
    chain the last side counts, if the others have its value: 18 in "9 * 2 = 18", None in "41=42".
    """
    if len(line) <= 20 and _INTEGER.fullmatch(line):
        return Number(Fraction(int(line)), line)
    return _leading(line[:MAX_LINE])


def _stated(text: str) -> Number | None:
    match = _NUMBER.match(text)
    value = _value(match) if match else None
    if match is None or value is None:
        return None
    spelling, rest = _spelling(match, value), text[match.end() :]
    if magnitude := _MAGNITUDE.match(rest):
        factor = _MAGNITUDES[(magnitude[1] or magnitude[2]).lower()]
        value, spelling, rest = value * factor, str(value * factor), rest[magnitude.end() :]
    percent = _PERCENT.match(rest)
    rest = rest[percent.end() if percent else 0 :].lstrip("$")
    return None if _changes_number(rest) else Number(value, spelling, percent is not None)


_SIGN_OF_PRODUCT = re.compile(r"(?<=\d) ?[x\u00d7] ?(?=\d)")


def _end_of_chain(text: str) -> Number | None:
    if text.count("=") not in (1, 2, 3):
        return None
    *sides, last = _SIGN_OF_PRODUCT.sub("*", text.replace("$", "").replace("\u00f7", "/")).split("=")
    number = _stated(last.strip())
    if number is None or any(value(side) is None or values_differ(side, number.text) for side in sides):
        return None
    return number


_REPEATING = re.compile(r"([-+]?)(\d{0,30})\.(\d{0,30})\\(?:overline|bar)\s*(?:\{(\d{1,30})\}|(\d))")
_SIGNED_BELOW = re.compile(r"\\frac\s*\{\s*([-+]?)\s*(\d+)\s*\}\s*\{\s*-\s*(\d+)\s*\}")


def exact_number(text: str) -> Number | None:
    r"""The number that the whole of `text` is, or None. A degree or percent sign may follow it, a unit not."""
    return _exact(text) if len(text) <= MAX_CHARS else None


@functools.lru_cache(maxsize=4096)
def _exact(text: str) -> Number | None:
    if len(text) <= 20 and _INTEGER.fullmatch(text):
        return Number(Fraction(int(text)), text)
    if not _DIGIT.search(text):
        return None
    if "\\overline" in text or "\\bar" in text:
        return _repeating(to_ascii(text))
    text = _DEGREE.sub(" ", to_ascii(text)).strip()
    text = _APPROXIMATELY.sub("", _WRAPPED.sub(r"\1", text))
    text = _SIGNED_BELOW.sub(lambda m: rf"\frac{{{'' if m[1] == '-' else '-'}{m[2]}}}{{{m[3]}}}", text)
    text = _plain(text).removesuffix(".").rstrip()
    while len(text) > 1 and (text[0], text[-1]) in (("$", "$"), ("{", "}")):
        text = text[1:-1].strip()
    match = _NUMBER.match(text)
    value = _value(match) if match else None
    if match is None or value is None:
        return None
    rest = text[match.end() :]
    percent = _PERCENT.match(rest)
    if rest[percent.end() if percent else 0 :].strip(" $"):
        return None
    return Number(value, _spelling(match, value), percent is not None)


def _repeating(text: str) -> Number | None:
    r"""0.1\overline{6} as 1/6."""
    text = text.rstrip(". ")
    number = text.rstrip("\\% ")
    match = _REPEATING.fullmatch(number)
    if match is None:
        return None
    digits, again = match[3], match[4] or match[5]
    whole = Fraction(f"{match[2] or 0}.{digits or 0}")
    value = whole + Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(digits))
    return Number(-value if match[1] == "-" else value, text, percent="%" in text)


_ANY_NUMBER = re.compile(r"(?<![\w.])[-+]?[$€£]?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
_ANSWER_IS = re.compile(r"answer(?:\s+is)?", re.IGNORECASE)


def after_answer(text: str, tail: int = 20_000) -> list[str]:
    """The rest of the line, or the next line, after each "answer" or "answer is" near the end of `text`; last first."""
    text = text[-tail:]
    phrases = reversed(list(_ANSWER_IS.finditer(text))[-CANDIDATES:])
    return [text[phrase.end() : phrase.end() + 2 * MAX_LINE].lstrip(" :=\n").split("\n", 1)[0] for phrase in phrases]


def lenient_number(text: str, tail: int = 20_000) -> Number | None:
    """What a person would guess is meant: the number after the last "the answer is", else the last number at all.

    Only the last `tail` characters are looked at.
    """
    for rest in after_answer(text, tail):
        if number := leading_number(rest):
            return number
    return last_number(text, tail)


def last_number(text: str, tail: int = 20_000) -> Number | None:
    """The last number of a text, whatever stands around it; only the last `tail` characters are looked at."""
    for match in reversed(list(_ANY_NUMBER.finditer(to_ascii(text[-tail:])))[-CANDIDATES:]):
        if number := leading_number(match.group()):
            return number
    return None
