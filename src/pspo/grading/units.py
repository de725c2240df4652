r"""Units of measurement at the end of an answer, with exact factors. Imports the standard library only.

    split_unit(r"100\text{ cm}")   -> (r"100", Unit(1/100, length))

A unit on one side only is ignored: the question said which one. With a known unit on both sides the two must measure
the same thing, and the values are compared after conversion. Words that are no known unit ("apples") are ignored,
unless they may change the number before them (`words.py`).
"""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from pspo.grading.words import changes_nothing, word_set

_TABLE = """
L 1         m metre metres meter meters
L 1/1000    mm millimetre millimetres millimeter millimeters
L 1/100     cm centimetre centimetres centimeter centimeters
L 1/10      dm
L 1000      km kilometre kilometres kilometer kilometers
L 0.0254    in inch inches
L 0.3048    ft foot feet
L 0.9144    yd yard yards
L 1609.344  mi mile miles
M 1         g gram grams
M 1/1000    mg milligram milligrams
M 1000      kg kilogram kilograms
M 453.59237 lb lbs pound pounds
M 28.349523125  oz ounce ounces
T 1         s sec secs second seconds
T 60        min mins minute minutes
T 3600      h hr hrs hour hours
T 86400     day days
T 604800    week weeks
T 31536000  year years yr yrs
D 1         dollar dollars usd
D 1/100     cent cents
A 1         degree degrees deg
R 1         radian radians rad
"""  # no month: its length varies. A radian is a dimension of its own, because its factor to a degree is not rational.


@dataclass(frozen=True)
class Unit:
    """`factor` in base units (metre, gram, second, dollar, degree), `dimensions` as (letter, power) pairs in order."""

    factor: Fraction
    dimensions: tuple[tuple[str, int], ...]


_BASE: dict[str, tuple[Fraction, str]] = {
    name: (Fraction(factor), letter)
    for letter, factor, *names in map(str.split, filter(str.strip, _TABLE.splitlines()))
    for name in names
}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_SUFFIXES = {"squared": 2, "cubed": 3}
_ABBREVIATIONS = {"mph": "miles per hour", "kph": "kilometers per hour"}
DEGREE = Unit(Fraction(1), (("A", 1),))
DOLLAR = Unit(Fraction(1), (("D", 1),))


@functools.lru_cache(maxsize=1024)
def read_unit(words: str) -> Unit | None:
    """The unit that `words` name, as in "cm^2", "square feet", "miles per hour", "km/h"; None for any other words."""
    words = _ABBREVIATIONS.get(words.strip(" .").lower(), words)
    factor, powers, sign = Fraction(1), dict[str, int](), 1
    for number, part in enumerate(re.split(r"/|\bper\b", words)):
        sign = -1 if number else 1
        power, seen = 1, 0
        tokens = re.findall(r"[A-Za-z]+|\^\s*\{?\s*[23]", part.replace(".", " "))
        for token in tokens:
            name = token if len(token) == 1 else token.lower()  # "M" and "S" are not metre and second
            if token[0] == "^":
                power = int(token[-1])
            elif name in _POWERS and not seen:
                power = _POWERS[name]
            elif name in _SUFFIXES and seen:
                power = _SUFFIXES[name]
            elif name in _BASE and not seen:
                seen, (unit, letter) = 1, _BASE[name]
            else:
                return None
        if not seen:
            return None
        factor *= unit ** (sign * power)
        powers[letter] = powers.get(letter, 0) + sign * power
    return Unit(factor, tuple(sorted((letter, power) for letter, power in powers.items() if power)))


_TEXT = r"\\(?:text|textbf|textit|textrm|mathrm|mbox|rm)\s*\{[^{}\d]*\}"
_SPACE = r"(?:\s|\\[,;:! ]|~|\\q?quad(?![A-Za-z]))"
_POWER = r"(?:\s*\^\s*(?:\{\s*[23]\s*\}|[23]))?"
_TAIL = re.compile(rf"(?:{_SPACE}*(?:/\s*)?{_TEXT}{_POWER})+{_SPACE}*\.?\s*$")
_BARE_TAIL = re.compile(rf"(?<=[\d}}a-z)]){_SPACE}+([A-Za-z][A-Za-z ]{{1,40}}(?:/\s*[A-Za-z]{{1,20}})?{_POWER})[\s.]*$")
_DEGREES = re.compile(r"(?:\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])|°)[\s.]*$")
TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_ALL_TEXT = re.compile(r"\s*\\(?:text|textrm|mathrm|mbox)\s*\{\s*([-+]?[\d.,/]+)\s+([^{}\d]*)\}\s*")
_DOLLARS = re.compile(r"^\s*\\\$\s*")
# Beyond the words that `changes_nothing` refuses: bounds and claims about the number, which no unit begins with.
_NO_UNIT = word_set(
    "and to is are no but if when for than least most more less between about approximately percent times base am pm"
)
_SUPERSCRIPT = re.compile(_POWER.removesuffix("?"))


@functools.lru_cache(maxsize=4096)
def split_unit(text: str) -> tuple[str, Unit | None]:
    r"""`text` without the unit at its end (or the `\$` at its start), and the unit where it is a known one.

    Bare letters count only as the name of a known unit of two letters or more, because "5 x" is an expression.
    """
    if dollars := _DOLLARS.match(text):
        return text[dollars.end() :], DOLLAR
    if all_text := _ALL_TEXT.fullmatch(text):
        text = rf"{all_text[1]}\text{{ {all_text[2]}}}"
    if TRIGONOMETRIC.search(text):
        return text, None
    if degrees := _DEGREES.search(text):
        return text[: degrees.start()], DEGREE
    if tail := _TAIL.search(text):
        words = re.sub(r"\\[A-Za-z]+\s*\{([^{}\d]*)\}", r" \1 ", re.sub(_SPACE, " ", tail.group()))
        if tail.start() and changes_nothing(_SUPERSCRIPT.sub(" ", words), "./-'()", also=_NO_UNIT):
            return text[: tail.start()], read_unit(words)
    elif (bare := _BARE_TAIL.search(text)) and (unit := read_unit(bare[1])):
        return text[: bare.start()], unit
    return text, None
