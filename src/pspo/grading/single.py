"""`grade`: one item, from any thread. Imports the standard library.

Computer algebra takes any amount of time on hostile text ("9^{9^{9}}"), so it never runs in the caller's process: what
`settle` cannot decide goes to one `Grader` with one worker, which this process starts with the first such item and ends
when it exits. A forked child starts one of its own: its parent's threads do not exist there.
"""

import atexit
import os
import threading

from pspo.grading.grade import Grade, Style, settle
from pspo.grading.pool import Grader

_lock = threading.Lock()
_grader: Grader | None = None


def grade(completion: str, gold: str, style: Style = "gsm8k") -> Grade:
    """Grade `completion` against `gold`. No text raises or hangs.

    gold    the bare answer, or a whole reference solution ending in `#### 42` (gsm8k) or holding a box (math)
    style   "gsm8k" or "math"; anything else is a ValueError

    Math style may wait for a worker: a second for the first item, then at most the default time-out of `Grader`. For
    more than a few items use a `Grader`, which works on many at a time. RuntimeError if no worker can be started.
    """
    outcome = settle(completion, gold, style)
    return outcome if isinstance(outcome, Grade) else _shared().grade([(completion, gold, style)])[0]


def _shared() -> Grader:
    global _grader
    with _lock:
        if _grader is None:
            _grader = Grader(workers=1)
        return _grader


def _close() -> None:
    if _grader is not None:
        _grader.close()


def _forget() -> None:
    """In a forked child: the lock may be held by a thread that is not there, and the worker is the parent's."""
    global _lock, _grader
    _lock, _grader = threading.Lock(), None


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)
