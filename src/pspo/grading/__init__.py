"""Grading: from a completion and a gold answer to a `Grade`.

    grade(completion, gold, style)     one item; math style may wait for one worker process that all calls share
    Grader(workers, timeout)           many items, from any thread; math-verify runs in processes that can be killed
    answer_key(answer, style)          a spelling that equal answers share, for majority votes
    last_number_is(completion, gold)   the released code's reading, for its reward
    Grader.second_opinion(items)       what math-verify alone says, for audits

Two styles, named after what the prompt asks the policy for:

    "gsm8k"   a last line `#### <number>`; exact rational comparison, never needs a worker
    "math"    a last `\\boxed{...}`; exact number, then normalised string, then math-verify

Imports the standard library only. math-verify (and sympy) are imported by `symbolic.py`, in the workers, when a math
answer first needs them, so this package imports where they, torch and vLLM are not installed. docs/grading.md says what
counts as equal.
"""

from pspo.grading.grade import STATUSES, Grade, Status, Style, answer_key, last_number_is
from pspo.grading.pool import Grader
from pspo.grading.single import grade
from pspo.grading.symbolic import Verdict

__all__ = ["STATUSES", "Grade", "Grader", "Status", "Style", "Verdict", "answer_key", "grade", "last_number_is"]
