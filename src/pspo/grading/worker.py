"""The process that runs math-verify: `python -m pspo.grading.worker CPU_SECONDS WALL_SECONDS PARENT_PID`.

Started by `pool.py` only. Imports the standard library and, when it starts, math-verify.

    stdin    one line a chunk: a JSON list of tasks. One chunk at a time: the next comes after the last verdict
    stdout   "ready" once math-verify is loaded; then, for each chunk, "begin" and one line a task: its verdict;
             "timeout" and "died" end a chunk early: what is left of it must be sent again

    ["claims", gold, [claim, ...]]     does every claim equal the gold? (`symbolic.compare`)
    ["whole", gold, [completion]]      math-verify alone on the whole completion (`symbolic.second_opinion`)

It is two processes. The first imports math-verify, which takes seconds, and forks the second, which does the work; when
that one is killed, the first says so and forks another within milliseconds. (Forking is safe here: one thread, nothing
of the training program's.)

The clock is the kernel's. Before each task the second process arms ITIMER_PROF, which counts the CPU time it uses (user
and system), and leaves SIGPROF at its default action: the kernel kills it when the time is up, even inside one long C
call that never gives Python a turn. CPU time, because wall time would turn right answers into time-outs on a busy
machine. ITIMER_REAL (SIGALRM) is the backstop for a process that is blocked and uses no CPU. Each process dies with the
one that started it, whatever it is doing.
"""

import ctypes
import fcntl
import gc
import json
import os
import resource
import signal
import sys

MEMORY_BYTES = 4 << 30  # beyond it: MemoryError, which is an "error" verdict
# Imports sympy and what it imports late, and fills its caches, off the clock.
WARM_UP = [
    ("x^2+2x+1", "(x+1)^2"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("y=2x+1", "2x-y+1=0"),
    ("1,2", "2,3"),
]
_PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    """SIGKILL this process when the thread that started it ends (Linux); elsewhere closed stdin and timer end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def _set_timers(cpu: float, wall: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, cpu)
    signal.setitimer(signal.ITIMER_REAL, wall)


def _serve(verdicts: int, cpu: float, wall: float) -> None:
    """Chunks from stdin until it is closed."""
    from pspo.grading.symbolic import compare, second_opinion

    for line in sys.stdin.buffer:
        chunk = json.loads(line)
        os.write(verdicts, b"begin\n")
        for kind, gold, texts in chunk:
            _set_timers(cpu, wall)
            verdict = compare(gold, tuple(texts)) if kind == "claims" else second_opinion(gold, texts[0])
            _set_timers(0, 0)
            os.write(verdicts, verdict.encode() + b"\n")


def main() -> None:
    cpu, wall, parent = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    _die_with(parent)
    timers = (signal.SIGPROF, signal.SIGALRM)
    for timer in timers:
        signal.signal(timer, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, timers)
    # A cluster's warning, or Ctrl-C, reaches all processes of a job. The one that started this goes on to the end of
    # its step, where a worker that is gone would be an answer not graded.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

    # What libraries print must not mix with verdicts. Not os.dup, which takes 2 where a daemon has closed it.
    verdicts = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
    nowhere = fcntl.fcntl(os.open(os.devnull, os.O_WRONLY), fcntl.F_DUPFD_CLOEXEC, 10)
    try:
        os.dup2(2, 1)
    except OSError:  # closed
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)

    from pspo.grading.symbolic import compare

    for gold, claim in WARM_UP:
        compare(gold, (claim,))
    os.dup2(nowhere, 2)  # the parser complains there about each hostile text
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    gc.freeze()  # what is there now stays shared with the forked process
    os.write(verdicts, b"ready\n")

    this, ended = os.getpid(), -1
    while ended:
        child = os.fork()
        if child == 0:
            try:
                _die_with(this)
                _serve(verdicts, cpu, wall)
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended:
            os.write(verdicts, b"timeout\n" if -ended in timers else b"died\n")


if __name__ == "__main__":
    main()
