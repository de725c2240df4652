r"""The approximate value of a simple LaTeX expression, to tell unequal answers apart without computer algebra.

Numbers, letters, `\pi`, `e`, `i`, + - * / ^, `\frac`, `\sqrt`, brackets and products without a sign. Each letter stands
for a fixed number, so polynomials that differ have different values. What is ambiguous ("1/2x", "4 2", "2^10") or not
known here has no value. Equal values prove nothing and are left to math-verify. Every value carries a bound of its
error: where terms cancel, as in 3363 - 2378\sqrt{2}, a difference of the results proves nothing either. Imports the
standard library only.
"""

import functools
import re
from dataclasses import dataclass

_TOKEN = re.compile(r"\s*(\\[A-Za-z]+|\d+\.?\d*|\.\d+|[A-Za-z]|[-+*/^_(){}\[\]])")
_IGNORED = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])|\\[!,;: ]|\\%|%|(?<!\\)\$|~")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,(?:\\!)?)(?=\d{3}(?!\d))")
_CONSTANTS: dict[str, complex] = {r"\pi": 3.141592653589793, "e": 2.718281828459045, "i": 1j}
_FRACTIONS = (r"\frac", r"\dfrac", r"\tfrac", r"\cfrac")
_TIMES = (r"\cdot", r"\times", "*")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
MAX_CHARS = 300
ROUNDING = 1e-12  # relative error allowed to every constant and operation; that of a float is a thousandth of it


class _NoValueError(Exception):
    pass


@dataclass(frozen=True)
class Approximate:
    """A value and a bound of its absolute error, both carried through the operations to first order."""

    value: complex
    error: float

    def __add__(self, other: "Approximate") -> "Approximate":
        result = self.value + other.value
        return Approximate(result, self.error + other.error + ROUNDING * abs(result))

    def __neg__(self) -> "Approximate":
        return Approximate(-self.value, self.error)

    def __mul__(self, other: "Approximate") -> "Approximate":
        result = self.value * other.value
        spread = abs(self.value) * other.error + abs(other.value) * self.error + self.error * other.error
        return Approximate(result, spread + ROUNDING * abs(result))

    def __truediv__(self, other: "Approximate") -> "Approximate":
        least = abs(other.value) - other.error
        if least <= 0:
            raise _NoValueError  # it may be a division by zero
        result = self.value / other.value
        return Approximate(result, (self.error + abs(result) * other.error) / least + ROUNDING * abs(result))

    def __pow__(self, other: "Approximate") -> "Approximate":
        """A power that has one value: roots of what is negative or not real are left to computer algebra."""
        base, exponent = self.value, other.value
        whole = exponent.imag == 0 and exponent.real == int(exponent.real) and other.error < 1e-6
        if not whole and (base.imag != 0 or base.real < 0 or exponent.imag != 0):
            raise _NoValueError
        result = base ** int(exponent.real) if whole else base**exponent
        if base == 0 or abs(base) <= 2 * self.error:  # too near zero for a bound: of 0 itself nothing is uncertain
            if self.error > 0 or not whole:
                raise _NoValueError
            return Approximate(result, 0.0)
        relative = abs(exponent) * self.error / (abs(base) - self.error) + (0 if whole else other.error * 300)
        if relative > 1e-3:
            raise _NoValueError
        return Approximate(result, abs(result) * (2 * relative + ROUNDING))


def values_differ(gold: str, answer: str) -> bool:
    """Do both have a value here, and not the same one, by more than their errors?"""
    first, second = _approximate(gold), _approximate(answer)
    if first is None or second is None:
        return False
    return abs(first.value - second.value) > first.error + second.error


def value(latex: str) -> complex | None:
    """The value of `latex`, every letter taken for the number `_letter` says; None without one."""
    result = _approximate(latex)
    return None if result is None else result.value


@functools.lru_cache(maxsize=4096)
def _approximate(latex: str) -> Approximate | None:
    if len(latex) > MAX_CHARS:
        return None
    try:
        result = _Reader(_THOUSANDS.sub("", _IGNORED.sub(" ", latex))).whole()
    except (_NoValueError, ArithmeticError, ValueError, RecursionError):
        return None
    return result if 1e-100 < abs(result.value) < 1e100 or result.value == 0 else None


def _letter(name: str) -> float:
    return 1.0 + sum((ord(c) * 0.6180339887498949) % 1 / (i + 1) for i, c in enumerate(name))


def _constant(number: complex) -> Approximate:
    """A constant: a whole number of up to 15 digits is a float without an error, others are rounded."""
    whole = abs(number) < 1e15 and number == int(number.real)
    return Approximate(complex(number), 0.0 if whole else ROUNDING * abs(number))


class _Reader:
    """Recursive descent over tokens; each method reads one level of precedence and returns its value."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        position = 0
        text = text.strip().removesuffix(".").rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise _NoValueError
            self.tokens.append(match[1])
            position = match.end()
        self.tokens.append("")
        self.at = 0

    @property
    def next(self) -> str:
        return self.tokens[self.at]

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def whole(self) -> Approximate:
        result = self.sum()
        if self.next:
            raise _NoValueError
        return result

    def sum(self) -> Approximate:
        result = self.signed_product()
        while self.next in ("+", "-"):
            result += self.signed_product()
        return result

    def signed_product(self) -> Approximate:
        negative = False
        while self.next in ("+", "-"):
            negative ^= self.take() == "-"
        return -self.product() if negative else self.product()

    def product(self) -> Approximate:
        first = self.next
        result = self.power()
        divided = False
        while True:
            token = self.next
            if token in _TIMES:
                self.take()
                result *= self.signed_power()
            elif token == "/":
                self.take()
                result /= self.signed_power()
                divided = True
            elif token and token not in ("+", "-", ")", "]", "}"):
                if divided or token[0].isdigit() or token[0] == ".":  # 1/2x, x2, 4 2
                    raise _NoValueError
                if token in _FRACTIONS and first.isdigit() and self.tokens[self.at - 1] == first:
                    result += self.mixed_part()
                else:
                    result *= self.power()
            else:
                return result

    def mixed_part(self) -> Approximate:
        """The fraction of a mixed number. Of a product like 2\\frac{x}{3} it would be wrong: that has no value here."""
        start = self.at
        result = self.power()
        if not all(token in "{}" or token.isdigit() or token in _FRACTIONS for token in self.tokens[start : self.at]):
            raise _NoValueError
        return result

    def signed_power(self) -> Approximate:
        if self.next == "-":
            self.take()
            return -self.power()
        return self.power()

    def power(self) -> Approximate:
        base = self.atom()
        if self.next != "^":
            return base
        self.take()
        if self.next not in ("{",) and not (len(self.next) == 1 and self.next.isalnum()):
            raise _NoValueError
        exponent = self.atom()
        if self.next == "^":
            raise _NoValueError
        if abs(exponent.value) > 1000:
            raise _NoValueError
        return base**exponent

    def atom(self) -> Approximate:
        token = self.take()
        if token in _CLOSING:
            result = self.sum()
            if self.take() != _CLOSING[token]:
                raise _NoValueError
            return result
        if token in _FRACTIONS:
            return self.argument() / self.argument()
        if token == r"\sqrt":
            return self.root()
        if token[:1].isdigit() or token[:1] == ".":
            return _constant(float(token))
        if token in _CONSTANTS:
            return _constant(_CONSTANTS[token])
        if len(token) == 1 and token.isalpha():
            return _constant(_letter(token + self.subscript()))
        raise _NoValueError

    def subscript(self) -> str:
        if self.next != "_":
            return ""
        self.take()
        token = self.take()
        if token == "{":
            token = self.take()
            if self.take() != "}":
                raise _NoValueError
        if not token.isalnum():
            raise _NoValueError
        return token

    def root(self) -> Approximate:
        degree = _constant(2)
        if self.next == "[":
            degree = self.atom()
        return self.argument() ** (_constant(1) / degree)

    def argument(self) -> Approximate:
        r"""A braced group, or the one character that TeX takes: \frac12, \sqrt2, \frac\pi4."""
        if self.next.isdigit() and len(self.next) > 1:
            self.tokens[self.at : self.at + 1] = [self.next[0], self.next[1:]]
        if self.next in ("+", "-", "(", "["):
            raise _NoValueError
        return self.atom()
