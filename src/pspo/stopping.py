"""How a run is told to stop, and stops where nothing is lost. Standard library only.

    SIGTERM, SIGUSR1, SIGUSR2   a cluster's warning: save after this step, and end with status AGAIN
    SIGINT (Ctrl-C)             the same from a person, with status 130; a second one quits at once

Where nothing would be lost (while a run loads, or grades its test part, which is saved by the chunk) it stops at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN = 75
"""Exit status (EX_TEMPFAIL of sysexits.h): the run was told to stop, what it needs to go on is on the disk, and the
same command goes on from there. slurm/train.sh sends a job that ends with it back to the queue."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Stopped(SystemExit):
    """The run ends because it was told to. No Exception: what catches those would go on."""


class Stop:
    """What this process has been told. Made by `stoppable`."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._waits = False
        self._before: dict[int, Any] = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a request waits until `asked` is looked at; a second Ctrl-C does not."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def end(self) -> None:
        """Ends the program as it was asked to: after its parts are closed. Returns where it was not asked."""
        if self.asked is None:
            return
        earlier = self._before.get(self.asked)
        if callable(earlier) and self.asked != signal.SIGINT:
            earlier(self.asked, None)  # of a launcher, such as submitit's, which puts the job back into the queue
        raise Stopped(128 + signal.SIGINT if self.asked == signal.SIGINT else AGAIN)

    def _told(self, number: int, _frame: FrameType | None) -> None:
        again, name = self.asked is not None, signal.Signals(number).name
        self.asked = self.asked or signal.Signals(number)
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if self._waits:
            quits = "; Ctrl-C again quits now" if number == signal.SIGINT else ""
            os.write(2, f"pspo: {name}: saving after this step{quits}\n".encode())
        elif not again:
            os.write(2, f"pspo: {name}: stopping; nothing is lost\n".encode())
            self.end()


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Listens to SIGNALS within the block, in the main thread; elsewhere nobody can ask."""
    stop = Stop()
    try:
        stop._before = {number: signal.signal(number, stop._told) for number in SIGNALS}
    except ValueError:  # not the main thread
        yield stop
        return
    try:
        yield stop
    finally:
        for number, earlier in stop._before.items():
            signal.signal(number, earlier)
