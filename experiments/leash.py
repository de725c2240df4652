"""Runs one command that cannot outlive its owner: `python leash.py OWNER_PID COMMAND...`. Standard library only.

The command leads a process group of its own. The whole group ends when the command ends, when this process is told to
end (SIGTERM, SIGINT, SIGHUP), and, on Linux, when the owner dies in any way, SIGKILL included. The exit status is the
command's; 128 + n after signal n.

Told to end, the command may take as long as it takes to save what it is at; told twice, it is killed. Where its owner
has died nobody is there to tell it twice: then it is killed after ORPHAN_S.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

LEFT_S = 10.0
"""For what a command has left running when it ended: enough for an engine to shut down."""
ORPHAN_S = 1800.0
"""For a command whose owner has died: enough for a step of the largest run and its checkpoint."""


def main() -> int:
    owner, command = int(sys.argv[1]), sys.argv[2:]
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: asked.append(received))
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the command leaves behind becomes ours to wait for
    if os.getppid() != owner:  # it died before the line above
        return 128 + signal.SIGTERM
    # If this process is killed itself, the command at least goes with it. There are no threads here to trouble preexec.
    child = subprocess.Popen(command, process_group=0, preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
    while child.poll() is None and not asked:
        time.sleep(0.05)
    end_group(child, asked, owner)
    status = 128 + asked[0] if asked else child.returncode
    return status if status >= 0 else 128 - status


def end_group(child: subprocess.Popen[bytes], asked: list[int], owner: int) -> None:
    """Ends what is left of the child's process group: it is asked first, and killed when this process is asked a second
    time, LEFT_S after the child's end, or ORPHAN_S after the owner's."""
    at_work = owned = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        while len(asked) < 2 and time.monotonic() < min(at_work + LEFT_S, owned + ORPHAN_S):
            reap(child)
            at_work = time.monotonic() if child.poll() is None else at_work
            owned = time.monotonic() if os.getppid() == owner else owned
            os.killpg(child.pid, 0)  # the group is there for as long as any member is
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def reap(child: subprocess.Popen[bytes]) -> None:
    """Takes note of the members of the child's group that have ended; unreaped ones would still count as there."""
    if child.poll() is None:
        return
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-child.pid, os.WNOHANG) != (0, 0):
            pass


def prctl(option: int, value: int) -> None:
    """Linux's prctl; elsewhere does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
