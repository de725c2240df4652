"""One machine of a cluster in the tests: `python machine.py COMMAND...` runs a daemon that cannot outlive its owner.

All that comes of the daemon stays below this process, also what has left it and its session (a slurmstepd does). When
standard input ends, which it does when the owner dies in any way, or on SIGTERM, everything below is stopped and killed
at one blow, as by a power cut. The daemon's own end ends nothing else. Standard library only, and Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, reap)
    signal.signal(signal.SIGTERM, lambda *_: power_off())
    # No thread is here to trouble preexec_fn; if this process is killed itself, the daemon at least goes with it.
    subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
    )
    sys.stdin.buffer.read()
    power_off()


def reap(*_: object) -> None:
    """Takes note of what has ended below; nobody else does of what has left its parent."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def power_off() -> None:
    """Ends everything below, then this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    frozen: set[int] = set()
    while fresh := below(os.getpid()) - frozen:  # all are stopped before the first dies: none tells of another's death
        send(fresh, signal.SIGSTOP)
        frozen |= fresh
    send(frozen, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    os._exit(0)


def send(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def below(root: int) -> set[int]:
    """The processes that descend from `root`."""
    children: dict[int, set[int]] = defaultdict(set)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children[int(stat.read_text().rpartition(") ")[2].split()[1])].add(int(stat.parent.name))
    found, queue = set(), [root]
    while queue:
        fresh = children[queue.pop()] - found
        found |= fresh
        queue += fresh
    return found


if __name__ == "__main__":
    main()
