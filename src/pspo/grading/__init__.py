"""Grading: from a completion and a gold answer to a `Grade`.

    grade(completion, gold, style)     one item, here and now; math style may call math-verify in this process
    Grader(workers, timeout)           many items, from any thread; math-verify runs in processes that can be killed

Two styles, named after what the prompt asks the policy for:

    "gsm8k"   a last line `#### <number>`; exact rational comparison, never needs a worker
    "math"    a last `\\boxed{...}`; exact number, then normalised string, then math-verify

Imports the standard library only. math-verify (and sympy) are imported by `symbolic.py` when a math answer first needs
them, so this package imports where they, torch and vLLM are not installed.
"""

from pspo.grading.grade import STATUSES, Grade, Status, Style, grade
from pspo.grading.pool import Grader

__all__ = ["STATUSES", "Grade", "Grader", "Status", "Style", "grade"]
