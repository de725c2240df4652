"""The process that runs math-verify: `python -m pspo.grading.worker TIMEOUT PARENT_PID`. Started by `pool.py` only.

Imports the standard library and, when it starts, math-verify.

    stdin    one line a chunk: a JSON list of [gold, [claim, ...]]
    stdout   "ready" once math-verify is loaded; then, for each chunk, "begin" and one line an item: its verdict

The clock is the kernel's. Before each item the process arms ITIMER_REAL and leaves SIGALRM at its default action, so
the kernel kills it when the item's time is up, even inside one long C call that never gives Python a turn. The parent
sees the pipe close and knows the item by counting lines. The process also dies with its parent, whatever it is doing.
"""

import ctypes
import json
import os
import resource
import signal
import sys

MEMORY_BYTES = 4 << 30  # beyond it: MemoryError, which is an "error" verdict
_PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    """SIGKILL this process when the thread that started it ends (Linux); elsewhere closed stdin and timer end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def main() -> None:
    timeout, parent = float(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})

    # What libraries print must not mix with verdicts.
    verdicts = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)

    from pspo.grading.symbolic import compare

    compare(r"\frac{x}{2}", (r"0.5x",))  # imports sympy and fills its caches off the clock
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the parser complains there about each hostile text
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    verdicts.write("ready\n")

    for line in sys.stdin:
        chunk = json.loads(line)
        verdicts.write("begin\n")
        for gold, claims in chunk:
            signal.setitimer(signal.ITIMER_REAL, timeout)
            verdict = compare(gold, tuple(claims))
            signal.setitimer(signal.ITIMER_REAL, 0)
            verdicts.write(verdict + "\n")


if __name__ == "__main__":
    main()
