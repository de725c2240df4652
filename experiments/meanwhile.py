"""Work that goes on in processes of its own while this one does something else: drawing, counting costs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast

from pspo.errors import PspoError

P = ParamSpec("P")
T = TypeVar("T")

# Not forked: numpy's threads may hold locks that a fork would never see released.
CONTEXT = multiprocessing.get_context("spawn")


class Meanwhile:
    """A context manager whose work ends with it, asked for or not, and with this process, however that ends. Without
    `apart` work is done where and when it is started: a process takes seconds to start."""

    def __init__(self, apart: bool) -> None:
        self._apart = apart
        self._processes: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()  # one that was not asked for its result would wait for us to take it
            process.join()

    def start(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
        """A function that waits for the result, once, and raises what `work` raised; PspoError where its process was
        killed. What goes to the process and what comes back is pickled."""
        if not self._apart:
            found = work(*args, **kwargs)
            return lambda: found
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_process, args=(theirs, work, args, kwargs), daemon=True)
        resource_tracker.ensure_running()  # it would come with the first process, and unblock SIGINT before that starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it begins so, and Ctrl-C is for us alone
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # or its end would not be heard
        self._processes.append(process)

        def result() -> T:
            try:
                found, error = ours.recv()
            except EOFError:
                name = getattr(work, "__name__", "work")
                raise PspoError(
                    f"the process of {name} was killed (no memory left?); the same command tries again"
                ) from None
            if error is not None:
                raise error
            return cast("T", found)

        return result


def _process(out: Connection, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        out.send((work(*args, **kwargs), None))
    except Exception as error:
        error.add_note(f"in a process of its own:\n{traceback.format_exc()}")
        out.send((None, error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
