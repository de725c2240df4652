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

# Spellings that math-verify's parser gives up on; each replacement means the same.
_RESPELL = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"\s*\\?%", ""),
    (r"(?<=\d)(?:,\\!|\{,\}|\\,)(?=\d{3})", ""),  # thousands
    (r"\\phantom(?![A-Za-z])|^\s*\\approx(?![A-Za-z])", ""),
    (r"\\frac\s*(\\[a-z]+|\d)\s*(\\[a-z]+|\d)(?![A-Za-z])", r"\\frac{\1}{\2}"),
    (r"[.,;\s]+$", ""),
]]  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _parse(latex: str) -> list[Any]:
    """math-verify's readings of `latex`: sympy objects, and the normalised string as a last resort."""
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off
    for pattern, replacement in _RESPELL:
        latex = pattern.sub(replacement, latex)
    return parse(
        r"\boxed{" + latex + "}", extraction_config=[LatexExtractionConfig()], parsing_timeout=None, raise_on_error=True
    )


def compare(gold: str, claims: tuple[str, ...]) -> Verdict:
    """Does every one of `claims` equal `gold`? Never raises; may take any amount of time.

    "gold_unreadable": math-verify makes nothing but a string of the gold, so only an equal string could be right, and
    that has been tried before. "error": math-verify itself failed (also out of memory or recursion).
    """
    from math_verify import verify

    try:
        gold_readings = _parse(gold)
        if all(isinstance(reading, str) for reading in gold_readings):
            return "gold_unreadable"
        equal = all(verify(gold_readings, _parse(c), timeout_seconds=None, raise_on_error=True) for c in claims)
    except Exception:  # whatever sympy raises on such text; the outcome is reported as "error", not as a wrong answer
        return "error"
    return "equal" if equal else "different"
