"""What a rank tells the others and hears of them, and how its process ends where it would wait for ever."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pspo.errors import PspoError
from pspo.ranks.place import Place
from pspo.stopping import AGAIN, Stopped

STOPPED = 76  # exit status where the watch ends a process: not AGAIN, the cause may be an error
TOLD = "was told to stop"  # the cause was none
BEAT_S = 0.5  # between two looks at the store
GRACE_S = 3.0  # from hearing of another rank's failure to the exit, where this rank raises nothing by itself
CLOSING_S = 60.0  # the same where it has raised, and closes its parts
ALONE_S = 30.0  # a rank that failed in `together` waits for the others, which may be in a collective that it has left
LOST_S = 60.0  # a rank without a beat is lost: longer than C code may hold Python's lock, under which no thread beats
LINGER_S = 2.0  # rank 0, which holds the store, waits for the others to read its last word


class PeerError(PspoError):
    """Another rank failed, died, was told to stop or did not come; the message says which, and in what."""

    @property
    def status(self) -> int:  # type: ignore[override]
        return status_after(str(self))


def status_after(text: str) -> int:
    """Of a process that ends because of another rank, of which `text` tells."""
    return AGAIN if TOLD in text else STOPPED


class Phase(NamedTuple):
    """What the main thread is in."""

    where: str
    waits: bool
    number: int  # of waits since the start: equal on ranks that wait for each other
    since: float


class Watch:
    """Two threads: one tells the other ranks through the store what this one does, and hears what they do; one ends
    the process where it would wait for ever, for a thread inside a C++ collective cannot be interrupted.

    Keys of the store: rank/R (what rank R does, with a beat: anew every BEAT_S), failed (the line of the first rank
    that failed), left/R (rank R has read it, or has ended well), outcomeN/R (of rank R, in the N-th `together`).
    """

    def __init__(self, place: Place, store: Any, timeout: float) -> None:
        self.rank, self.size, self.timeout = place.rank, place.size, timeout
        self.failure: str | None = None
        self._place, self._store, self._process = place, store, _this_process()
        self._now = Phase("at the start", False, 0, time.monotonic())
        self._raised_in: str | None = None
        self._failed_at, self._claimed, self._rounds, self._broken = 0.0, "", 0, False
        self._told: list[dict[str, Any]] = [{"where": "at the start", "number": 0, "for": 0.0}] * self.size
        self._heard_at = [time.monotonic()] * self.size
        self._ended, self._wake = threading.Event(), threading.Event()
        self._talker = threading.Thread(target=self._talk, name="ranks-talk", daemon=True)
        self._judging = threading.Thread(target=self._judge, name="ranks-judge", daemon=True)

    # Of the main thread.

    def meet(self) -> None:
        """Returns when every rank has come."""
        for thread in (self._talker, self._judging):
            thread.start()
        _until(lambda: self.failure is not None or not self._missing("rank"), self.timeout)
        if missing := ", ".join(map(str, self._missing("rank"))):
            late = f"rank {missing} of {self.size} did not come within {self.timeout:g} s of the start"
            raise PeerError(self.failure or late)

    @contextmanager
    def phase(self, what: str, waits: bool) -> Iterator[None]:
        """The main thread is in `what` as long as the block."""
        self._raised_in = None
        if waits and self.failure is not None:
            self._raised_in = what
            raise PeerError(self.failure)
        outer = self._now
        self._now = Phase(f'in "{what}"', waits, outer.number + waits, time.monotonic())
        try:
            yield
        except BaseException:
            self._raised_in = self._raised_in or what  # the innermost
            raise
        finally:
            where = outer.where if outer.where.startswith("in ") else f'after "{what}"'
            self._now = Phase(where, outer.waits, self._now.number, time.monotonic())

    def settle(self, failure: str) -> list[str]:
        """What every rank says of its part of a `together` ("": it did not fail), when all have come to its end."""
        self._rounds += 1
        name = f"outcome{self._rounds}"
        self._store.set(f"{name}/{self.rank}", failure)
        patience = min(self.timeout / 2, ALONE_S) if failure else float("inf")  # the latter ended by _judge
        _until(lambda: self.failure is not None or not self._missing(name), patience)
        if not self._missing(name):
            return self._read(name)
        if not failure:
            raise PeerError(self.failure)
        return [failure if rank == self.rank else "" for rank in range(self.size)]

    def close(self) -> None:
        """The run has ended well, and every rank knows."""
        self._ended.set()
        self._claim("")

    def fail(self, error: BaseException) -> None:
        """Tells all ranks that this one ends with an error. Raises PeerError where another rank is the cause."""
        what, text = self._raised_in or self._now.where, one_line(error)
        self._raised_in, self._broken = what, isinstance(error, RuntimeError)
        if self._broken and _until(lambda: self.failure is not None, GRACE_S):  # a collective that broke off?
            self._claim("")
            raise PeerError(f'{self.failure}; rank {self.rank} was in "{what}"') from error
        does = TOLD if isinstance(error, Stopped) else "failed"
        self._claim(text if text.startswith("rank ") else f'rank {self.rank} {does} in "{what}": {text}')

    def _claim(self, text: str) -> None:
        """This rank ends, and the run too if there is a text and no other rank was first."""
        self._claimed = text
        self._wake.set()
        self._talker.join(2 * LINGER_S)  # a Python that ends under a thread inside C++ aborts

    # Of the thread that uses the store, which may not answer.

    def _missing(self, name: str) -> list[int]:
        """The ranks that have not written this key."""
        keys = [f"{name}/{rank}" for rank in range(self.size)]
        return [] if self._store.check(keys) else [r for r, key in enumerate(keys) if not self._store.check([key])]

    def _read(self, name: str) -> list[str]:
        return [text.decode() for text in self._store.multi_get([f"{name}/{rank}" for rank in range(self.size)])]

    def _hear(self, failure: str) -> None:
        self._failed_at = time.monotonic()
        self.failure = failure

    def _talk(self) -> None:
        try:
            while self.failure is None and not self._ended.is_set():
                self._exchange()
                self._wake.wait(BEAT_S)
                self._wake.clear()
            self._store.set(f"left/{self.rank}", "")
            _until(lambda: not self._place.hosts or not self._missing("left"), LINGER_S)  # the store ends with rank 0
        except RuntimeError as error:  # torch's
            if self.failure is None and not self._ended.is_set():
                self._hear(f"rank 0 has died, or the launcher that holds the store ({one_line(error)})")

    def _exchange(self) -> None:
        now, (where, _, number, since) = time.monotonic(), self._now
        state = {"where": where, "number": number, "for": now - since, "process": self._process}
        self._store.set(f"rank/{self.rank}", json.dumps(state))
        if self._claimed:
            self._store.compare_set("failed", "", self._claimed)
        if self._store.check(["failed"]):
            self._hear(self._store.get("failed").decode())
            return
        if self._missing("rank"):  # at the start
            self._heard_at = [now] * self.size
            return
        for rank, told in enumerate(map(json.loads, self._read("rank"))):
            if told != self._told[rank]:
                self._told[rank], self._heard_at[rank] = told, now
            silent, gone = now - self._heard_at[rank], _has_ended(told["process"], self._process)
            lost = gone or silent > (4 * BEAT_S if self._broken else LOST_S)
            if lost and not self._store.check([f"left/{rank}"]):
                why = "died" if gone else f"given no sign of life for {silent:.0f} s"
                self._store.compare_set("failed", "", f"rank {rank} has {why}; it was {told['where']}")
                self._store.set(f"left/{rank}", "")
                self._wake.set()

    # Of the thread that ends the process.

    def _judge(self) -> None:
        while not self._ended.wait(BEAT_S / 2):
            now, (where, waits, _, since) = time.monotonic(), self._now
            silent = now - self._heard_at[self.rank]
            if self.failure is not None:
                if now - self._failed_at > (GRACE_S if self._raised_in is None else CLOSING_S):
                    self._stop(f"{self.failure}; rank {self.rank} was {where}")
            elif waits and now - since > self.timeout:
                self._stop(f"rank {self.rank}: waited {self.timeout:g} s {where}; {self._others()}")
            elif silent > 2 * LOST_S:
                self._stop(f"rank {self.rank}: the store of the run has not answered for {silent:.0f} s")

    def _others(self) -> str:
        """Of the ranks that are not in the same collective as this one: where they were at their last beat."""
        mine = self._told[self.rank]
        apart = (told["number"] != mine["number"] or told["where"] != mine["where"] for told in self._told)
        texts = [f"{t['where']} ({t['for']:.0f} s)" if a else "" for t, a in zip(self._told, apart, strict=True)]
        return by_rank(texts) or "all ranks are in it, and it does not end"

    def _stop(self, text: str) -> None:
        try:
            os.write(2, f"{text}\n".encode())
            sys.stdout.flush()
            self._claim(text)
        finally:
            os._exit(status_after(text))


def _until(done: Callable[[], bool], seconds: float) -> bool:
    """Waits in short turns, so that Ctrl-C is seen; False where the time is over."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.03)
    return True


def _this_process() -> list[Any]:
    """Its machine and what numbers processes there (a container may have its own numbers), and its number."""
    return [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid"), os.getpid()]


def _has_ended(process: list[Any], this: list[Any]) -> bool:
    """Has it, as far as this process can see? Not of another machine, of which only its beats are known."""
    try:
        return process[:2] == this[:2] and Path(f"/proc/{process[2]}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def one_line(error: BaseException) -> str:
    """One line: a user's error as it is, others with their type."""
    line = " ".join(str(error).split())[:2000]
    return line if isinstance(error, PspoError) else f"{type(error).__name__}: {line}".removesuffix(": ")


def by_rank(texts: Sequence[str]) -> str:
    """`rank 1: text; rank 0, 2: text`, without the ranks of no text."""
    ranks: dict[str, list[str]] = {}
    for rank, text in enumerate(texts):
        ranks.setdefault(text, []).append(str(rank))
    return "; ".join(f"rank {', '.join(which)}: {text}" for text, which in ranks.items() if text)
