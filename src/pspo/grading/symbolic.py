"""Two LaTeX expressions compared by math-verify. Imports math-verify (and with it sympy) when first called.

Nothing here bounds time: math-verify's own time-outs use SIGALRM, fail off the main thread, and are switched off. The
clock is the worker's (`worker.py`); what is bounded here is length.

Percent signs are removed before math-verify sees them: on the antlr runtime that Hydra requires (4.9.3) its LaTeX
parser fails silently on `\\%`, and a right answer would be rejected.
"""

import functools
import logging
import re
from typing import Any, Literal

Verdict = Literal["equal", "different", "gold_unreadable", "error", "timeout"]
Task = tuple[str, str, tuple[str, ...]]  # kind ("claims" or "whole"), gold, texts: what a worker is asked

# Spellings that math-verify's parser gives up on; each replacement means the same.
_RESPELL = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"\s*\\?%", ""),
    (r"(?<=\d)(?:,\\!|\{,\}|\\,)(?=\d{3})", ""),  # thousands
    (r"\\phantom(?![A-Za-z])|^\s*\\approx(?![A-Za-z])", ""),
    (r"\\frac\s*(\\[a-z]+|\d)\s*(\\[a-z]+|\d)(?![A-Za-z])", r"\\frac{\1}{\2}"),
    (r"[.,;\s]+$", ""),
]]  # fmt: skip


_DEGREES = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*)(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?")
DIGITS = 30  # two numbers that agree to so many are equal


@functools.lru_cache(maxsize=1024)
def _parse(latex: str) -> list[Any]:
    """math-verify's readings of `latex`: sympy objects; the normalised string only where there is nothing else."""
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off
    for pattern, replacement in _RESPELL:
        latex = pattern.sub(replacement, latex)
    latex = _DEGREES.sub(r"\1\\left(\\frac{\2\\pi}{180}\\right)", latex)
    readings = parse(
        r"\boxed{" + latex + "}", extraction_config=[LatexExtractionConfig()], parsing_timeout=None, raise_on_error=True
    )
    objects = [_exact(reading) for reading in readings if not isinstance(reading, str)]
    return objects or readings


def _exact(reading: Any) -> Any:
    """Decimals as the fractions they are, `i` as the imaginary unit: math-verify rounds to six places, and has no i."""
    from sympy import Float, I, Rational, Symbol

    exact = {number: Rational(str(number)) for number in reading.atoms(Float)}
    exact |= {symbol: I for symbol in reading.atoms(Symbol) if symbol.name == "i"}
    return reading.xreplace(exact) if exact else reading


def _really_equal(gold: Any, claim: Any) -> bool:
    """Two numbers to `DIGITS` digits: math-verify takes differences below 1e-15 for zero. True for all else."""
    from sympy import Expr

    if not (isinstance(gold, Expr) and isinstance(claim, Expr) and gold.is_number and claim.is_number):
        return True
    if gold == claim:
        return True
    difference, size = abs((gold - claim).evalf(DIGITS)), abs(gold.evalf(DIGITS))
    return bool(difference <= size * 10**-DIGITS or difference < 10 ** (-3 * DIGITS))


def compare(gold: str, claims: tuple[str, ...]) -> Verdict:
    """Does every one of `claims` equal `gold`? Never raises; may take any amount of time.

    "gold_unreadable": math-verify makes nothing but a string of the gold, so only an equal string could be right, and
    that has been tried before. "error": math-verify itself failed (also out of memory or recursion).
    """
    try:
        golds = _parse(gold)
        if all(isinstance(reading, str) for reading in golds):
            return "gold_unreadable"
        equal = all(_equal(golds, _parse(claim)) for claim in claims)
    except Exception:  # whatever sympy raises on such text; the outcome is reported as "error", not as a wrong answer
        return "error"
    return "equal" if equal else "different"


def _equal(golds: list[Any], readings: list[Any]) -> bool:
    from math_verify import verify

    return any(
        verify(gold, reading, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
        and _really_equal(gold, reading)
        for gold in golds
        for reading in readings
    )


def second_opinion(gold: str, completion: str) -> Verdict:
    """What math-verify says of a whole completion when nothing of ours is between: its own extraction, its own rules.

    Never raises; may take any amount of time. "gold_unreadable": it finds nothing in the gold.
    """
    from math_verify import parse, verify

    try:
        golds = parse(gold, parsing_timeout=None, raise_on_error=True)
        if not golds:
            return "gold_unreadable"
        readings = parse(completion, parsing_timeout=None, raise_on_error=True)
        equal = verify(golds, readings, timeout_seconds=None, raise_on_error=True)
    except Exception:  # whatever math-verify raises is its own answer to such text
        return "error"
    return "equal" if equal else "different"
