"""torchrun, of which the signals and exit statuses are those of its workers: `agent.py` takes torchrun's arguments.

By itself torchrun answers SIGTERM by killing its workers after 30 s, dies of SIGUSR1, and ends with status 1 whatever
they ended with. Here both signals go to the workers, and the status is theirs: 75 where they have saved. Where another
node's agent is gone, the status is 76, as of a rank that ends because of another one.

SLURM itself signals the workers too, so they are warned twice: one that ends has to ignore it (pspo.stopping.ending).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

import psutil

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch writes stacks when another node's agent has ended

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
SAVED, STOPPED = 75, 76  # pspo.stopping.AGAIN, pspo.ranks.watch.STOPPED

told: list[int] = []


def main() -> None:
    for number in PASSED_ON:
        signal.signal(number, pass_on)
    try:
        run.main(["--signals-to-handle=SIGINT,SIGHUP,SIGQUIT", *sys.argv[1:]])
    except ChildFailedError as error:
        leave(status_of([failure.exitcode for failure in error.failures.values()]))
    except RendezvousError as error:
        print(f"torchrun: the ranks of another node have ended ({' '.join(str(error).split())})", file=sys.stderr)
        leave(SAVED if told else STOPPED)


def leave(status: int) -> None:
    """Python's own end takes a moment, and srun's SIGTERM, when another agent has ended, would be the status then."""
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def pass_on(number: int, _frame: FrameType | None) -> None:
    told.append(number)
    for worker in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(number)


def status_of(codes: list[int]) -> int:
    """Of the workers that did not end well, as a shell would say it: the lowest, which is an error before a 75."""
    return min(code if code >= 0 else 128 - code for code in codes)


if __name__ == "__main__":
    main()
