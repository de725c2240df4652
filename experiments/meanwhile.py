"""Work that goes on in processes of its own while this one does something else: drawing, counting costs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Meanwhile:
    """A context manager. With `processes` 0 work is done when it is started, here: a process takes seconds to start."""

    def __init__(self, processes: int) -> None:
        # Not forked: numpy's threads may hold locks that a fork would never see released.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(processes, mp_context=context) if processes else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def start(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
        """A function that waits for the result, and raises what `work` raised. Both travel between processes."""
        if self._pool is None:
            found = work(*args, **kwargs)
            return lambda: found
        return self._pool.submit(work, *args, **kwargs).result
