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
WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (*WARNINGS, signal.SIGINT)


class Stopped(SystemExit):
    """The run ends because it was told to. No Exception: what catches those would go on."""

    def __init__(self, asked: signal.Signals) -> None:
        super().__init__(128 + signal.SIGINT if asked == signal.SIGINT else AGAIN)
        self.asked = asked

    def __reduce__(self) -> tuple[type[Stopped], tuple[signal.Signals]]:
        return Stopped, (self.asked,)  # a launcher may carry it to another process

    def __str__(self) -> str:
        return self.asked.name


class Stop:
    """What this process has been told. Made by `stoppable`; `Stop()` is never told anything."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._waits = False
        self._before: dict[int, Any] = {}

    def wait(self) -> None:
        """From here on a request waits until somebody looks at `asked`; a second Ctrl-C does not."""
        self._waits = True

    def at_once(self) -> None:
        """From here on, and now where there has been a request, the program ends at once."""
        self._waits = False
        self.end()

    def end(self) -> None:
        """Ends the program as it was asked to; returns where it was not."""
        if self.asked is None:
            return
        earlier = self._before.get(self.asked)
        if (
            callable(earlier)
            and self.asked != signal.SIGINT
            and not isinstance(getattr(earlier, "__self__", None), Stop)
        ):
            earlier(self.asked, None)  # of a launcher, such as submitit's, which puts the job back into the queue
        raise Stopped(self.asked)

    def _told(self, number: int, _frame: FrameType | None) -> None:
        asked, again = signal.Signals(number), self.asked is not None
        if again and asked == signal.SIGINT:
            raise KeyboardInterrupt
        if again:
            if asked == signal.SIGUSR2:  # of a launcher that waits for it, after SLURM's SIGTERM
                self.asked = asked
            return
        self.asked = asked
        if self._waits:
            quits = "; Ctrl-C again quits now" if asked == signal.SIGINT else ""
            os.write(2, f"pspo: {asked.name}: saving after this step{quits}\n".encode())
        else:
            os.write(2, f"pspo: {asked.name}: stopping; the same command goes on from what is saved\n".encode())
            self.end()


@contextmanager
def ending() -> Iterator[None]:
    """Around the work of a program. What is left to do then takes a while, and nothing can be lost in it: a cluster's
    warnings, of which a second one may come, do not change the exit status any more, and Ctrl-C does not wait."""
    try:
        yield
    finally:
        for number in WARNINGS:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))


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
