"""Stands where a job has its interpreter, so that tests of jobs need not wait for models: `behaves.py ARGUMENTS...`

Everything but training runs with the real interpreter. In place of pspo.train it does what BEHAVIOUR says, in the first
attempt of a job; a later attempt ends well at once. Tasks have a rank of their own.

    wait       until it is told to stop; then as if it had saved
    deaf       does not listen to signals, so a warning ends it
    stubborn   listens, and goes on
    fail       ends with an error of its own; `fail1`: rank 1 alone does, the others wait
"""

from __future__ import annotations

import os
import signal
import sys
import time

SAVED = 75
WARNINGS = (signal.SIGTERM, signal.SIGUSR1)


def main() -> None:
    if sys.argv[1:3] != ["-m", "pspo.train"]:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    behave(os.environ["BEHAVIOUR"], int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))))


def behave(what: str, rank: int) -> None:
    attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if what != "deaf":
        for number in WARNINGS:
            signal.signal(number, lambda received, _: stop(received, what))
    print(f"rank {rank} in attempt {attempt}", flush=True)
    if attempt > 0:
        sys.exit(0)
    if what == "fail" or (what == "fail1" and rank == 1):
        time.sleep(1)
        sys.exit(f"pspo: rank {rank} cannot go on")
    time.sleep(600)


def stop(received: int, what: str) -> None:
    os.write(2, f"pspo: {signal.Signals(received).name}: saving after this step\n".encode())
    if what != "stubborn":
        for number in WARNINGS:  # torchrun's workers are warned twice, and Python's end takes a moment
            signal.signal(number, signal.SIG_IGN)
        sys.exit(SAVED)


if __name__ == "__main__":
    main()
