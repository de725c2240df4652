"""CPU time of what a test calls, and of nothing else: other threads, and a collection of what other tests have left."""

from __future__ import annotations

import gc
import time


class CpuTime:
    """`with CpuTime() as took: work()`, then `took.seconds` of this thread."""

    seconds = float("nan")

    def __enter__(self) -> CpuTime:
        gc.disable()
        self._start = time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.thread_time() - self._start
        gc.enable()
