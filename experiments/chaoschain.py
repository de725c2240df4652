"""Runs that are stopped again and again until they are complete: when, how, and what is demanded of each start.

Imports chaosrun, samebits, pspo.seeds and pspo.stopping.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import chaosrun
import samebits
from chaosrun import Ended, Moment
from pspo.seeds import derive
from pspo.stopping import AGAIN

TOLD = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TOLD_SHARE, DAMAGED_SHARE = 0.15, 0.15
"""Of the stops: those that are no kill, and those after which something that was saved is damaged."""
STUCK, LET_GO = 2, 4
"""Stops in a row without a new checkpoint after which a run is left alone until there is one; until its end."""
AIMED_S = 0.03
"""How long after an event at most; the windows that are aimed at are some milliseconds long."""

Start = Callable[[str, Moment | None, signal.Signals], Ended]
"""(name of the run, when to stop it, by which signal): starts the program on it once more."""


class Difference(Exception):
    """A run is not what the reference is, or a start did not do what it should: what, and where."""


@dataclass
class Stop:
    """One stop, as it is printed and recorded.

    saved   the newest checkpoint then
    then    what the next start said
    """

    run: str
    signal: str
    moment: str
    seconds: float
    status: int
    place: str
    saved: int | None
    damage: str = ""
    then: str = ""

    def __str__(self) -> str:
        damage = f"; {self.damage}" if self.damage else ""
        saved = "nothing saved" if self.saved is None else f"step-{self.saved} saved"
        return (
            f"{self.run:5} {self.signal:7} {self.seconds:5.1f} s  {self.moment:20}  {self.place}, {saved}{damage}"
            f" -> {self.then}"
        )


class Quota:
    """The kills to be made by all chains together."""

    def __init__(self, kills: int) -> None:
        self.left, self.kills, self.starts = kills, kills, 0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """True: one more is the asker's, to be made or given back. Raises Difference where runs do not get on."""
        with self._lock:
            self.starts += 1
            if self.starts > 5 * self.kills + 20:
                raise Difference(f"{self.starts} starts were not enough for {self.kills} kills")
            self.left -= (wanted := self.left > 0)
            return wanted

    def give_back(self) -> None:
        with self._lock:
            self.left += 1


@dataclass(frozen=True)
class Pace:
    """Of the reference: its steps, and seconds before and after its first one began."""

    steps: int
    set_up: float
    rest: float


def plan(rng: random.Random, left: int, stuck: int, pace: Pace) -> Moment | None:
    """When to stop a start that has `left` steps to do, after `stuck` stops without a new checkpoint; None: never."""
    if stuck >= LET_GO or (stuck >= STUCK and not left):
        return None
    delay = AIMED_S * rng.random() ** 2
    if stuck >= STUCK:
        return Moment("saved", rng.randint(1, left), delay)
    kinds = {"set_up": 10, "any": 25, "aside": 5, "step": 40 if left else 0, "end": 20 if left else 60}
    match rng.choices(list(kinds), list(kinds.values()))[0]:
        case "set_up":
            return Moment("start", 1, rng.uniform(0, pace.set_up))
        case "any":
            return Moment("begun", 1, rng.uniform(0, pace.rest))
        case "aside":
            return Moment("aside", rng.randint(1, 3), delay / 10)
        case "step":
            return Moment(rng.choice(["line", "writing", "saved", "removing"]), rng.randint(1, min(4, left)), delay)
    event, most = rng.choice([("part", 6), ("graded", 4), ("summary", 1), ("done", 1)])
    return Moment(event, rng.randint(1, most), delay)


class Chain:
    """Runs one after another in `place`, beside the reference there."""

    def __init__(self, name: str, place: Path, seed: int, pace: Pace, start: Start, quota: Quota) -> None:
        self.name, self.place, self.pace, self.start, self.quota = name, place, pace, start, quota
        self.rng = random.Random(derive(seed, "chaos", name))
        self.runs = 0

    def go(self, tell: Callable[[Stop], None]) -> None:
        """Until the quota is used up; raises Difference."""
        while self.quota.left:
            self.runs += 1
            _Victim(self, f"{self.name}{self.runs}", tell).live()


class _Victim:
    """One run."""

    def __init__(self, chain: Chain, name: str, tell: Callable[[Stop], None]) -> None:
        self.chain, self.name, self.tell = chain, name, tell
        self.dir = chain.place / name
        self.damaged: dict[int, chaosrun.Identity] = {}  # by the step of the checkpoint
        self.stuck, self.furthest = 0, -1
        self.last: Stop | None = None

    def live(self) -> None:
        while self._one_start():
            pass
        if found := list(samebits.differences(self.chain.place / "reference", self.dir)):
            more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
            raise Difference(f"{self.name} is not what the reference is: {'; '.join(found[:5])}{more}")
        shutil.rmtree(self.dir)

    def _one_start(self) -> bool:
        """Starts the run once more; whether it was stopped."""
        chain, done = self.chain, (self.dir / "DONE").exists()
        goes_on_after, skips = chaosrun.expected(self.dir, self.damaged, chain.pace.steps)
        number = chain.rng.choice(TOLD) if chain.rng.random() < TOLD_SHARE else signal.SIGKILL
        left = chain.pace.steps - (goes_on_after or 0)
        wanted = chain.quota.take()
        moment = plan(chain.rng, left, self.stuck, chain.pace) if wanted and not done else None
        try:
            ended = chain.start(self.name, moment, number)
        except TimeoutError as error:
            raise Difference(f"{self.name}: {error}; {self._before()}") from error
        if wanted and not (ended.hit and number == signal.SIGKILL):
            chain.quota.give_back()
        if self.last is not None:
            self.last.then = said_of(ended)
            self.tell(self.last)
        self._check_start(ended, done, goes_on_after, skips)
        if number != signal.SIGKILL and ended.status == 0:
            self._check_heard(ended, number, goes_on_after or 0)
        if ended.hit:
            self._stopped(ended, number, str(moment))
        return ended.hit

    def _check_start(self, ended: Ended, done: bool, goes_on_after: int | None, skips: list[int]) -> None:
        """Did it begin where it should, and end where nobody stopped it?"""
        if ended.survivors:
            raise Difference(f"{self.name}: processes {list(ended.survivors)} outlived it; {self._before()}")
        if not ended.hit and (ended.status or not (self.dir / "DONE").exists()):
            what = f"{self.name} has failed with status {ended.status}; {self._before()}"
            raise Difference(f"{what}\n{ended.said[-2000:]}")
        if done or not ended.begun:
            return
        found = re.search(r"goes on after step (\d+)", ended.said)
        if (int(found[1]) if found else None) != goes_on_after:
            raise Difference(f"{self.name} should go on after step {goes_on_after}: {said_of(ended)}; {self._before()}")
        if unnamed := [step for step in skips if f"step-{step} is skipped" not in ended.said]:
            raise Difference(f"{self.name} does not say that step-{unnamed[0]} is skipped; {self._before()}")

    def _stopped(self, ended: Ended, number: signal.Signals, moment: str) -> None:
        saved = max(chaosrun.steps_saved(self.dir), default=None)
        where = chaosrun.place(self.dir, ended, self.chain.pace.steps)
        self.last = Stop(self.name, number.name, moment, round(ended.seconds, 2), ended.status, where, saved)
        if number != signal.SIGKILL:
            self._check_told(ended, number, where, saved)
        self.stuck = 0 if (saved or 0) > self.furthest else self.stuck + 1
        self.furthest = max(self.furthest, saved or 0)
        newest, _ = chaosrun.expected(self.dir, self.damaged, self.chain.pace.steps)
        if self.chain.rng.random() < DAMAGED_SHARE and newest is not None and where != "after DONE":
            self.last.damage, spoilt = chaosrun.damage(self.dir, newest, self.chain.rng)
            if spoilt:
                self.damaged[newest] = chaosrun.identity_of(self.dir, newest)

    def _check_told(self, ended: Ended, number: signal.Signals, where: str, saved: int | None) -> None:
        """A run that was told to stop says so with its status, and has lost nothing."""
        status, line = 130 if number == signal.SIGINT else AGAIN, chaosrun.last_line(self.dir)
        allowed = {status}
        if where in ("start-up", "after DONE"):
            allowed.add(-number)  # before it listens, and when it no longer does
        if ended.status not in allowed:
            what = f"{self.name} was told to stop by {number.name} and ended with {ended.status} instead of {status}"
            raise Difference(f"{what}; {self.last}\n{ended.said[-2000:]}")
        if ended.begun and line and line != saved:
            raise Difference(f"{self.name} was told to stop and has not saved step {line}: {self.last}")

    def _check_heard(self, ended: Ended, number: signal.Signals, goes_on_after: int) -> None:
        """A run that ended well although it was told to stop was in its last step then, or through."""
        if ended.sent_at is None:
            return
        under_way, last = max(ended.sent_at, goes_on_after) + 1, chaosrun.last_step(self.dir)
        if last > under_way:
            what = f"{self.name} was told to stop by {number.name} in step {under_way}, and went on to step {last}"
            raise Difference(f"{what}; {self._before()}")

    def _before(self) -> str:
        return f"before that: {self.last}" if self.last else "nothing had been done to it"


def said_of(ended: Ended) -> str:
    """What a start said about what it had found."""
    skipped = re.findall(r"(step-\d+) is skipped: (.*)", ended.said)
    found = re.search(r"goes on after step \d+|is complete", ended.said)
    what = found[0] if found else "begins anew" if ended.begun else "stopped before it had said anything"
    return ", ".join([*(f"{name} is skipped: {why}" for name, why in skipped), what])
