"""Runs commands side by side, each on a leash (leash.py), and tells a view what happens. Knows nothing of studies.

A command that fails does not stop the others. SIGINT and SIGTERM end every process group and raise KeyboardInterrupt.
Imports the standard library and leash only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

import leash


@dataclass(frozen=True)
class Task:
    """A command and the file that exists when it has done its work."""

    name: str
    command: tuple[str, ...]
    log: Path
    product: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's own."""
    metrics: Path | None = None
    steps: int = 0
    """Planned steps; a view reads from `metrics` how many are done."""


@dataclass(frozen=True)
class Outcome:
    task: Task
    seconds: float
    error: str | None = None
    """None: it succeeded. Else one line: what its log says last."""


class View(Protocol):
    def started(self, task: Task) -> None: ...
    def ended(self, outcome: Outcome) -> None: ...
    def tick(self) -> None:
        """Called several times a second."""


@dataclass(frozen=True)
class _Running:
    task: Task
    process: subprocess.Popen[bytes]
    since: float


def run_tasks(tasks: Sequence[Task], at_once: int, view: View) -> list[Outcome]:
    """Runs every task, `at_once` at a time, in order; returns their outcomes as they ended.

    Raises KeyboardInterrupt on SIGINT or SIGTERM, after all children have ended.
    """
    waiting, running, outcomes = deque(tasks), list[_Running](), list[Outcome]()
    with signals_interrupt():
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append(_start(waiting.popleft()))
                    view.started(running[-1].task)
                time.sleep(0.1)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    outcomes.append(_outcome(one))
                    view.ended(outcomes[-1])
                view.tick()
        finally:
            _end(running)
    return outcomes


def _start(task: Task) -> _Running:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    task.product.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("wb") as log:
        process = subprocess.Popen(
            (sys.executable, "-I", leash.__file__, str(os.getpid()), *task.command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **task.environment},
            start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
        )
    return _Running(task, process, time.monotonic())


def _outcome(one: _Running) -> Outcome:
    task, status = one.task, one.process.returncode
    error = None
    if status != 0:
        error = f"{last_line(task.log) or 'no output'} (exit status {status})"
    elif not task.product.exists():
        error = f"it ended without writing {task.product}"
    return Outcome(task, time.monotonic() - one.since, error)


def _end(running: Sequence[_Running]) -> None:
    """Ends the leashes, which end their groups; one that does not answer in time is killed, and its command with it."""
    for one in running:
        one.process.terminate()
    deadline = time.monotonic() + leash.GRACE_S + 5
    for one in running:
        try:
            one.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGINT raise KeyboardInterrupt once; further ones are ignored while the children are ended."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def tail(path: Path, size: int = 8192) -> list[str]:
    """The last lines of a file that may be growing, the first of them possibly cut; [] if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def last_line(log: Path) -> str:
    """The last line of a log that says something, without a progress bar's earlier states."""
    lines = [line.split("\r")[-1].strip() for line in tail(log)]
    return next((line for line in reversed(lines) if line), "")
