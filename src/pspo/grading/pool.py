"""`Grader`: many items from any thread, math-verify in processes that can be killed. Imports the standard library.

    grade(items), submit(items)      settle what numbers and strings decide, here, in the calling thread
        |  chunks of undecided pairs
        v
    one queue  ->  N slots, each a thread that owns one worker process (started when first needed, or by `start`)

Why exec'ed subprocesses and not multiprocessing: its "fork" copies the caller's memory map, with a CUDA context that a
child may not touch and locks that other threads hold; its "spawn" imports the training script again in every worker.
`subprocess` goes from vfork straight to exec, so a worker shares nothing with the caller but two pipes. A worker starts
in its own session, so that Ctrl-C reaches the training process alone. The owning thread lives as long as the slot,
which the worker's parent-death signal depends on.

The clock of an item is the worker's own CPU time (`worker.py`): on a machine with more to do than cores a comparison
takes longer but is not cut off earlier, so outcomes do not depend on load. Wall time counts only as a backstop, at
`WALL_FACTOR` times the time-out, for a worker that is stopped or blocked. A worker whose item ran out of time is
replaced by a fork of a process that has math-verify loaded already, so an item that hangs costs its time-out and some
milliseconds.
"""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, get_args

from pspo.errors import PspoError
from pspo.grading.grade import Grade, Style, Undecided, bare_gold, settle
from pspo.grading.symbolic import Task, Verdict

T = TypeVar("T")
Item = tuple[str, str, Style]  # completion, gold, style

CHUNK = 16  # tasks a message: large enough that the pipe costs little, small enough to share out a batch
START_SECONDS = 120.0  # for importing sympy on a loaded machine
MAX_LOST = 3  # idle workers that may be found dead, for one chunk
MAX_TIMEOUT = 1e6  # seconds; timers refuse far larger ones
WALL_FACTOR = 10.0  # wall time that an item may take, in time-outs; the time-out itself is CPU time
GRACE_SECONDS = 5.0  # on top of it, for a worker that is stopped rather than hung
MAX_COMPLETION = 10_000  # characters of a completion, from its end, that a second opinion is asked of


_VERDICTS: dict[str, Verdict] = {verdict: verdict for verdict in get_args(Verdict)}
_log = logging.getLogger(__name__)


class _Batch(Generic[T]):
    """One call's tasks on their way: the verdicts known so far, and what to make of them when all are."""

    def __init__(self, tasks: Iterable[Task], finish: Callable[[dict[Task, Verdict]], list[T]]) -> None:
        self.finish = finish
        self.verdicts: dict[Task, Verdict] = {}
        self.tasks = list(dict.fromkeys(tasks))  # completions of a group often give one answer: compared once
        self.missing = len(self.tasks)
        self.failed = False
        self.lock = threading.Lock()
        self.future: Future[list[T]] = Future()
        self.future.set_running_or_notify_cancel()  # cannot be cancelled: its tasks may be in a worker

    def add(self, verdicts: dict[Task, Verdict]) -> None:
        with self.lock:
            self.verdicts |= verdicts
            self.missing -= len(verdicts)
            complete = self.missing == 0  # never again after `fail`: its chunk stays missing
        if complete:
            self.future.set_result(self.finish(self.verdicts))

    def fail(self, error: Exception) -> None:
        with self.lock:
            first, self.failed = not self.failed, True
        if first:
            self.future.set_exception(error)


class WorkerError(PspoError, RuntimeError):
    """No worker can be started, or none stays alive."""


@dataclass(frozen=True)
class _Chunk:
    batch: _Batch[Any]
    tasks: Sequence[Task]


class _Worker:
    """One worker process and the pipes to it. Used by one thread, but may be killed from any."""

    def __init__(self, timeout: float) -> None:
        # -P and an explicit path: the working directory must not shadow a module, and a parent that found this package
        # through sys.path alone must have workers that find it too.
        source = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        self.timeout = timeout
        self.wall = timeout * WALL_FACTOR
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pspo.grading.worker", str(timeout), str(self.wall), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # One thread: the worker forks, and its CPU time is the clock.
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)  # a stopped worker must not hold up the thread
        self.received = b""
        self.ready = False

    def wait_until_ready(self) -> bool:
        """False where it was killed by someone while it was starting: another may fare better."""
        if self.ready:
            return True
        line = self._read_line(START_SECONDS)
        if line == "ready":
            self.ready = True
            return True
        silent = line is None
        self.kill()
        if not silent and self.process.returncode < 0:
            return False
        raise WorkerError(
            f"a grading worker did not start (exit status {self.process.returncode}); it needs math-verify: "
            f"try `{sys.executable} -c 'import math_verify'`"
        )

    def decide(self, tasks: Sequence[Task]) -> list[Verdict]:
        """Verdicts of `tasks` in order. Fewer than asked for: the last task ended the chunk, the rest is not begun.

        None at all: the worker had died before it began, so no task is to blame.
        """
        if not self._begin(tasks):
            self.kill()
            return []
        verdicts: list[Verdict] = []
        while len(verdicts) < len(tasks):
            line = self._read_line(self.wall + GRACE_SECONDS)
            if not line:  # silent or gone
                self.kill()
                return [*verdicts, "timeout" if line is None else "error"]
            verdicts.append(_VERDICTS.get(line, "error"))
            if line in ("timeout", "died"):
                break
        return verdicts

    def _begin(self, tasks: Sequence[Task]) -> bool:
        try:
            if not self._write(json.dumps(tasks).encode() + b"\n"):
                return False
        except BrokenPipeError:
            return False
        line = self._read_line(GRACE_SECONDS)
        while line == "died":  # while it was idle; another process has taken over
            line = self._read_line(GRACE_SECONDS)
        return line == "begin"

    def _write(self, message: bytes) -> bool:
        """False if the process does not read for `GRACE_SECONDS`."""
        assert self.process.stdin is not None
        writable = select.poll()  # not select.select, which refuses file descriptors above 1023
        writable.register(self.process.stdin, select.POLLOUT)
        while message:
            if not writable.poll(1000 * GRACE_SECONDS):
                return False
            message = message[self.process.stdin.write(message) or 0 :]
        return True

    def _read_line(self, seconds: float) -> str | None:
        """The next line; "" if the process has ended, None if it says nothing for `seconds`."""
        assert self.process.stdout is not None
        readable = select.poll()
        readable.register(self.process.stdout, select.POLLIN)
        while b"\n" not in self.received:
            if not readable.poll(1000 * seconds):
                return None
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                return ""
            self.received += data
        line, _, self.received = self.received.partition(b"\n")
        return line.decode()

    def send_kill(self) -> None:
        """End both processes of the worker. From any thread; `kill` also waits."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def kill(self) -> None:
        self.send_kill()
        self.process.wait()

    def release(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Grader:
    """Grades items in order; an item that hangs costs its own time-out and nothing else.

        with Grader(workers=4) as grader:
            grader.start()  # optional: now, in the background, instead of with the first batch that needs one
            grades = grader.grade([(completion, gold, "gsm8k"), ...])

    workers   processes for math-verify. None is started before `start` or an item that needs one; gsm8k style never
              does
    timeout   seconds of CPU that one comparison may take in its worker; queueing, and time in which a busy machine does
              not run the worker, are not counted. `WALL_FACTOR` times that in wall time is the backstop
    """

    def __init__(self, workers: int = 2, timeout: float = 2.0) -> None:
        if type(workers) is not int or workers < 1:
            raise ValueError(f"workers is {workers!r}; a Grader needs at least 1")
        if isinstance(timeout, bool) or not 0 < timeout <= MAX_TIMEOUT:
            raise ValueError(f"timeout is {timeout!r}; it must be a number of seconds above 0, at most {MAX_TIMEOUT:g}")
        self._timeout = timeout
        self._process_id = os.getpid()
        self._changed = threading.Condition()  # guards all that follows
        self._chunks: deque[_Chunk] = deque()
        self._to_start: set[int] = set()  # slots that `start` has asked to start their worker
        self._workers: dict[int, _Worker] = {}  # slot -> its process
        self._closed = False
        self._slots = [
            threading.Thread(target=self._serve, args=(slot,), name=f"grader-{slot}", daemon=True)
            for slot in range(workers)
        ]
        for thread in self._slots:
            thread.start()

    def start(self) -> None:
        """Start all workers now, in the background, and return at once.

        For a training program, before it touches the accelerator: the first batch then does not wait the second that
        importing sympy takes. Workers that do not start are reported by the batch that needs them.
        """
        with self._open():
            self._to_start |= set(range(len(self._slots))) - set(self._workers)
            self._changed.notify_all()

    def grade(self, items: Iterable[Item]) -> list[Grade]:
        """One grade an item, in order. Raises RuntimeError if no worker can be started or the Grader is closed."""
        return self.submit(items).result()

    def submit(self, items: Iterable[Item]) -> "Future[list[Grade]]":
        """`grade` without the wait: math-verify goes on in the workers while the caller does something else."""
        outcomes = [settle(completion, gold, style) for completion, gold, style in items]
        tasks = {o: _task(o) for o in outcomes if isinstance(o, Undecided)}

        def finish(verdicts: dict[Task, Verdict]) -> list[Grade]:
            return [o if isinstance(o, Grade) else o.grade(verdicts[tasks[o]]) for o in outcomes]

        return self._enqueue(_Batch(tasks.values(), finish))

    def second_opinion(self, items: Iterable[Item]) -> list[Verdict]:
        """What math-verify alone, with its own extraction, says of each whole completion; a verdict an item, in order.

        For audits of `grade`, never for a reward: it accepts much that is wrong (docs/grading.md). The gold is the bare
        number (gsm8k) or the content of the box (math); of a completion, the last `MAX_COMPLETION` characters are read.
        Same workers and same clock as `grade`; no text raises.
        """
        tasks = [_opinion(*item) for item in items]

        def finish(verdicts: dict[Task, Verdict]) -> list[Verdict]:
            return ["gold_unreadable" if task is None else verdicts[task] for task in tasks]

        return self._enqueue(_Batch([task for task in tasks if task is not None], finish)).result()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are running; each is the parent of the process that does the work."""
        with self._changed:
            return [w.process.pid for w in self._workers.values() if w.process.poll() is None]

    def close(self) -> None:
        """Kill the workers, at once; batches that are not finished fail with RuntimeError. May be called twice."""
        with self._changed:
            self._closed = True
            for worker in self._workers.values():
                worker.send_kill()
            self._changed.notify_all()
        for thread in self._slots:
            thread.join()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> threading.Condition:
        """The condition to enter; raises if this Grader is of no use any more, or none in this process."""
        if self._process_id != os.getpid():
            raise RuntimeError("this Grader belongs to the process that forked this one; make a new one here")
        if self._closed:
            raise RuntimeError("this Grader is closed")
        return self._changed

    def _enqueue(self, batch: _Batch[T]) -> "Future[list[T]]":
        size = max(1, min(CHUNK, len(batch.tasks) // (2 * len(self._slots))))
        with self._open():
            for start in range(0, len(batch.tasks), size):
                self._chunks.append(_Chunk(batch, batch.tasks[start : start + size]))
            self._changed.notify_all()
        if not batch.tasks:
            batch.add({})
        return batch.future

    def _serve(self, slot: int) -> None:
        """One slot's thread: chunks from the queue to its worker, until closed."""
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._chunks or slot in self._to_start)
                chunk = self._chunks.popleft() if self._chunks else None
                self._to_start.discard(slot)
            try:
                if chunk is None:
                    self._start_early(slot)
                else:
                    self._work(slot, chunk)
            except Exception as error:  # belongs to whoever waits for the batch
                if chunk is not None:
                    chunk.batch.fail(error)
        with self._changed:
            worker = self._workers.pop(slot, None)
            left, self._chunks = self._chunks, deque()
        if worker is not None:
            worker.release()
        for chunk in left:
            chunk.batch.fail(RuntimeError("the Grader was closed before this batch was done"))

    def _start_early(self, slot: int) -> None:
        try:
            self._worker(slot)
        except (OSError, RuntimeError) as error:
            if not self._closed:
                _log.warning("%s; the next batch that needs a worker tries again", error)

    def _work(self, slot: int, chunk: _Chunk) -> None:
        verdicts: list[Verdict] = []
        lost = 0
        while len(verdicts) < len(chunk.tasks):
            known = len(verdicts)
            worker = self._worker(slot)
            verdicts += worker.decide(chunk.tasks[known:]) if worker else []
            lost += len(verdicts) == known
            if lost > MAX_LOST:
                raise WorkerError(f"{lost} grading workers died before they began; is this machine out of memory?")
        if self._closed:  # the last verdicts are those of a worker that close() killed
            raise RuntimeError("the Grader was closed before this batch was done")
        chunk.batch.add(dict(zip(chunk.tasks, verdicts, strict=True)))

    def _worker(self, slot: int) -> _Worker | None:
        """The slot's running worker, started or replaced if need be; None if it was killed while it was starting."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the Grader was closed before this batch was done")
            worker = self._workers.get(slot)
            if worker is not None and worker.process.poll() is None:
                current = worker
            else:
                current = self._workers[slot] = _Worker(self._timeout)
        if worker is not None and worker is not current:
            worker.release()
        return current if current.wait_until_ready() else None


def _task(undecided: Undecided) -> Task:
    return "claims", undecided.gold, undecided.claims


def _opinion(completion: str, gold: str, style: Style) -> Task | None:
    """The task of a second opinion; None if there is no gold."""
    target = bare_gold(gold, style)
    if target is None:
        return None
    return "whole", target if style == "gsm8k" else f"\\boxed{{{target}}}", (completion[-MAX_COMPLETION:],)
