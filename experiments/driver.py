"""Runs tasks side by side, each on a leash (leash.py), and tells a view what happens. Knows nothing of studies.

A task is a command of its own, or a job for a worker: a process that takes one after another (worker.py). A task that
fails does not stop the others. SIGINT and SIGTERM end every process group, which may take as long as it takes to save
what it is at, and raise KeyboardInterrupt; a second one does not wait for that.
Imports the standard library and leash only.
"""

from __future__ import annotations

import contextlib
import json
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
    """A command and the file that exists when it has done its work.

    With `job` the command is a worker's: an idle one gets the job, as a JSON line, before another is started.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    product: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's own."""
    metrics: Path | None = None
    steps: int = 0
    """Planned steps; a view reads from `metrics` how many are done."""
    job: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Outcome:
    task: Task
    seconds: float
    status: int = 0
    error: str | None = None
    """None: it succeeded. Else one line: what its log says last."""


class View(Protocol):
    def started(self, task: Task) -> None: ...
    def ended(self, outcome: Outcome) -> None: ...
    def tick(self) -> None:
        """Called several times a second."""


@dataclass
class _Process:
    """A leashed process and the task it is at; a worker may be at none."""

    popen: subprocess.Popen[bytes]
    task: Task | None
    since: float

    def finished(self) -> int | None:
        """The exit status of the task, None while it goes on."""
        assert self.task is not None
        if self.task.job is not None and self.popen.stdout is not None and (line := self.popen.stdout.readline()):
            return int(json.loads(line)["status"])
        return self.popen.poll()


def run_tasks(tasks: Sequence[Task], at_once: int, view: View) -> list[Outcome]:
    """Runs every task, `at_once` at a time, in order; returns their outcomes as they ended.

    Raises KeyboardInterrupt on SIGINT or SIGTERM, after all children have ended.
    """
    waiting, processes, outcomes = deque(tasks), list[_Process](), list[Outcome]()
    with signals_interrupt():
        try:
            while waiting or any(one.task for one in processes):
                while waiting and sum(one.task is not None for one in processes) < at_once:
                    view.started(_start(waiting.popleft(), processes))
                time.sleep(0.1)
                for one in [one for one in processes if one.task]:
                    status = one.finished()
                    if status is None:
                        continue
                    outcomes.append(_outcome(one, status))
                    view.ended(outcomes[-1])
                    one.task = None
                    if status != 0 or one.popen.stdin is None:
                        processes.remove(one)  # a worker ends after a failure, and a command has ended
                        _end([one])
                view.tick()
        finally:
            _end(processes)
    return outcomes


def _start(task: Task, processes: list[_Process]) -> Task:
    """Gives the task to an idle worker of its kind, or to a process of its own, which is added to `processes`."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    task.product.parent.mkdir(parents=True, exist_ok=True)
    idle = [one for one in processes if one.task is None and one.popen.args == _leashed(task)]
    one = idle[0] if idle and task.job is not None else _process(task)
    one.task, one.since = task, time.monotonic()
    if one not in processes:
        processes.append(one)
    if task.job is not None and one.popen.stdin is not None:
        # A worker that is dead by now shows in its exit status.
        with contextlib.suppress(BrokenPipeError):
            one.popen.stdin.write(json.dumps(task.job).encode() + b"\n")
            one.popen.stdin.flush()
    return task


def _leashed(task: Task) -> tuple[str, ...]:
    return (sys.executable, "-I", leash.__file__, str(os.getpid()), *task.command)


def _process(task: Task) -> _Process:
    pipe = subprocess.PIPE if task.job is not None else None
    with task.log.open("wb") as log:
        popen = subprocess.Popen(
            _leashed(task),
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or log,
            stderr=log,  # a worker's own, from before its first job
            env={**os.environ, **task.environment},
            start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
        )
    if popen.stdout is not None:
        os.set_blocking(popen.stdout.fileno(), False)
    return _Process(popen, None, time.monotonic())


def _outcome(one: _Process, status: int) -> Outcome:
    assert one.task is not None
    task, error = one.task, None
    if status != 0:
        error = f"{last_line(task.log) or 'no output'} (exit status {status})"
    elif not task.product.exists():
        error = f"it ended without writing {task.product}"
    return Outcome(task, time.monotonic() - one.since, status, error)


def _end(processes: Sequence[_Process]) -> None:
    """Ends the leashes, which end their groups. What is at a task may take as long as it takes to save; after a second
    signal, and what has nothing to save after its time, it is killed, and its command with it."""
    saves = any(one.task for one in processes)
    for patience in (None if saves else leash.LEFT_S + 5, 5.0):
        for one in processes:
            one.popen.terminate()  # a leash that is told twice does not wait
        deadline = None if patience is None else time.monotonic() + patience
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            for one in processes:
                one.popen.wait(None if deadline is None else max(0.1, deadline - time.monotonic()))
            break
    for one in processes:
        one.popen.kill()
        one.popen.wait()
        for stream in (one.popen.stdin, one.popen.stdout):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGINT raise KeyboardInterrupt, and a second time while the children are ended; then no more."""
    numbers, told = (signal.SIGINT, signal.SIGTERM), []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        told.append(number)
        if len(told) == 1:
            os.write(2, b"ending what runs, which saves what it is at; once more to quit now\n")
        else:
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

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
            return file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []


def last_line(log: Path) -> str:
    """The last line of a log that says something, without a progress bar's earlier states."""
    lines = [line.split("\r")[-1].strip() for line in tail(log)]
    return next((line for line in reversed(lines) if line), "")
