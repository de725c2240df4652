"""`Grader`: many items from any thread, math-verify in processes that can be killed. Imports the standard library.

    grade(items), submit(items)      settle what numbers and strings decide, here, in the calling thread
        |  chunks of undecided pairs
        v
    one queue  ->  N slots, each a thread that owns one worker process (started when first needed)

A plain subprocess, not multiprocessing: its "spawn" would import the training script again in every worker, and "fork"
would inherit a CUDA context. A worker starts in its own session, so that Ctrl-C reaches the training process alone. The
owning thread lives as long as the slot, which the worker's parent-death signal depends on.
"""

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import get_args

from pspo.grading.grade import Grade, Style, Undecided, settle
from pspo.grading.symbolic import Verdict

Item = tuple[str, str, Style]  # completion, gold, style
Pair = tuple[str, tuple[str, ...]]  # gold, claims

CHUNK = 16  # pairs a message: large enough that the pipe costs little, small enough to share out a batch
START_SECONDS = 120.0  # for importing sympy on a loaded machine
MAX_LOST = 3  # idle workers that may be found dead, for one chunk
GRACE_SECONDS = 5.0  # on top of the item's own time, for a worker that is stopped rather than hung


_VERDICTS: dict[str, Verdict] = {verdict: verdict for verdict in get_args(Verdict)}


class _Batch:
    """One call's items on their way: the grades known so far and the pairs still out."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.outcomes = [settle(completion, gold, style) for completion, gold, style in items]
        self.verdicts: dict[Pair, Verdict] = {}
        # The completions of a group often give the same answer: each pair is compared once.
        self.pairs = list(dict.fromkeys((o.gold, o.claims) for o in self.outcomes if isinstance(o, Undecided)))
        self.missing = len(self.pairs)
        self.failed = False
        self.lock = threading.Lock()
        self.future: Future[list[Grade]] = Future()
        self.future.set_running_or_notify_cancel()  # cannot be cancelled: its items may be in a worker

    def add(self, verdicts: dict[Pair, Verdict]) -> None:
        with self.lock:
            self.verdicts |= verdicts
            self.missing -= len(verdicts)
            complete = self.missing == 0  # never again after `fail`: its chunk stays missing
        if complete:
            self.future.set_result([
                o if isinstance(o, Grade) else o.grade(self.verdicts[o.gold, o.claims]) for o in self.outcomes
            ])  # fmt: skip

    def fail(self, error: Exception) -> None:
        with self.lock:
            first, self.failed = not self.failed, True
        if first:
            self.future.set_exception(error)


@dataclass(frozen=True)
class _Chunk:
    batch: _Batch
    pairs: Sequence[Pair]


class _Worker:
    """One worker process and the pipe to it. Used by one thread, but may be killed from any."""

    def __init__(self, timeout: float) -> None:
        # -P and an explicit path: the working directory must not shadow a module, and a parent that found this package
        # through sys.path alone must have workers that find it too.
        source = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        self.timeout = timeout
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pspo.grading.worker", str(timeout), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        self.received = b""

    def wait_until_ready(self) -> None:
        if self._read_line(START_SECONDS) != "ready":
            self.kill()
            raise RuntimeError(
                f"a grading worker did not start (exit status {self.process.returncode}); it needs math-verify: "
                f"try `{sys.executable} -c 'import math_verify'`"
            )

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Verdicts of `pairs` in order. Fewer than asked for: the worker is dead, and the last verdict says of what.

        None at all: it had died before it began, so no item is to blame.
        """
        assert self.process.stdin is not None
        verdicts: list[Verdict] = []
        try:
            self._write(json.dumps(pairs).encode() + b"\n")
            begun = self._read_line(GRACE_SECONDS) == "begin"
        except BrokenPipeError:
            begun = False
        if not begun:
            self.kill()
            return []
        while len(verdicts) < len(pairs) and (line := self._read_line(self.timeout + GRACE_SECONDS)):
            verdicts.append(_VERDICTS[line])
        if len(verdicts) < len(pairs):
            stopped = self.process.poll() is None and not self._ended(1.0)
            self.kill()
            verdicts.append("timeout" if stopped or self.process.returncode == -signal.SIGALRM else "error")
        return verdicts

    def _ended(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _write(self, message: bytes) -> None:
        assert self.process.stdin is not None
        while message:
            message = message[self.process.stdin.write(message) or 0 :]

    def _read_line(self, seconds: float) -> str:
        """The next line; "" if the process has ended or says nothing for `seconds`."""
        assert self.process.stdout is not None
        while b"\n" not in self.received:
            readable = select.poll()  # not select.select, which refuses file descriptors above 1023
            readable.register(self.process.stdout, select.POLLIN)
            data = os.read(self.process.stdout.fileno(), 1 << 16) if readable.poll(1000 * seconds) else b""
            if not data:
                return ""
            self.received += data
        line, _, self.received = self.received.partition(b"\n")
        return line.decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def release(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Grader:
    """Grades items in order; an item that hangs costs its own time-out and nothing else.

        with Grader(workers=4, timeout=5.0) as grader:
            grades = grader.grade([(completion, gold, "gsm8k"), ...])

    workers   processes for math-verify. None is started before an item needs one, and gsm8k style never does
    timeout   seconds that one comparison may take, from the moment a worker begins it; queueing is not counted
    """

    def __init__(self, workers: int = 2, timeout: float = 5.0) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; a Grader needs at least 1")
        if not 0 < timeout < float("inf"):
            raise ValueError(f"timeout is {timeout}; it must be a finite number of seconds above 0")
        self._timeout = timeout
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards _closed and _workers
        self._closed = False
        self._workers: dict[int, _Worker] = {}  # slot -> its process
        self._slots = [
            threading.Thread(target=self._serve, args=(slot,), name=f"grader-{slot}", daemon=True)
            for slot in range(workers)
        ]
        for thread in self._slots:
            thread.start()

    def grade(self, items: Iterable[Item]) -> list[Grade]:
        """One grade an item, in order. Raises RuntimeError if no worker can be started or the Grader is closed."""
        return self.submit(items).result()

    def submit(self, items: Iterable[Item]) -> "Future[list[Grade]]":
        """`grade` without the wait: math-verify goes on in the workers while the caller does something else."""
        batch = _Batch(items)
        chunk = max(1, min(CHUNK, len(batch.pairs) // (2 * len(self._slots))))
        with self._lock:
            if self._closed:
                raise RuntimeError("this Grader is closed")
            for start in range(0, len(batch.pairs), chunk):
                self._chunks.put(_Chunk(batch, batch.pairs[start : start + chunk]))
        if not batch.pairs:
            batch.add({})
        return batch.future

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are running."""
        with self._lock:
            return [w.process.pid for w in self._workers.values() if w.process.poll() is None]

    def close(self) -> None:
        """Kill the workers, at once; batches that are not finished fail with RuntimeError. May be called twice."""
        with self._lock:
            self._closed = True
            for worker in self._workers.values():
                worker.process.kill()
        for _ in self._slots:
            self._chunks.put(None)
        for thread in self._slots:
            thread.join()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self, slot: int) -> None:
        """One slot's thread: chunks from the queue to its worker, until None or closed."""
        try:
            while (chunk := self._chunks.get()) is not None:
                try:
                    self._work(slot, chunk)
                except Exception as error:  # belongs to whoever waits for the batch
                    chunk.batch.fail(error)
        finally:
            with self._lock:
                worker = self._workers.pop(slot, None)
            if worker is not None:
                worker.release()

    def _work(self, slot: int, chunk: _Chunk) -> None:
        verdicts: list[Verdict] = []
        lost = 0
        while len(verdicts) < len(chunk.pairs):
            known = len(verdicts)
            verdicts += self._worker(slot).compare(chunk.pairs[known:])
            lost += len(verdicts) == known
            if lost > MAX_LOST:
                raise RuntimeError(f"{lost} grading workers died before they began; is this machine out of memory?")
        if self._closed:  # the last verdicts are those of a worker that close() killed
            raise RuntimeError("the Grader was closed before this batch was done")
        chunk.batch.add(dict(zip(chunk.pairs, verdicts, strict=True)))

    def _worker(self, slot: int) -> _Worker:
        """The slot's running worker, started or replaced if need be."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the Grader was closed before this batch was done")
            worker = self._workers.get(slot)
            if worker is not None and worker.process.poll() is None:
                return worker
            fresh = self._workers[slot] = _Worker(self._timeout)
        if worker is not None:
            worker.release()
        fresh.wait_until_ready()
        return fresh
