"""The processes (ranks) of one run under torchrun or srun, and what they say to each other.

The only module that starts torch.distributed, and it imports torch inside functions only. One process alone, which is
any without torchrun's or srun's variables and any of size 1, has no process group, no thread and no cost.

Nothing waits for ever. Every wait for other ranks stands in `Ranks.expecting(what)`, and two things watch it:

    board      a thread of rank 0 with a TCP connection to every rank: what each is doing, who has failed, and, as a
               closed connection, who is dead. It tells a failure to all ranks at once.
    watchdog   a thread of every rank. Where its rank waits longer than the time-out, or does not end within GRACE_S
               of another rank's failure, it prints one line that names the ranks and the collectives, and ends the
               process with status STOPPED: a thread inside a C++ collective cannot be interrupted.

A rank whose own code raises ends with that error. So all ranks end with a status that is not 0, with or without a
launcher that kills them. What a run writes has to bear being cut off at any point, as with any kill.
"""

from __future__ import annotations

import faulthandler
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar

from pspo.errors import PspoError

T = TypeVar("T")

STOPPED = 75
"""Exit status where the watchdog ends a process: a time-out, or another rank's failure (EX_TEMPFAIL of sysexits.h)."""

GRACE_S = 5.0
"""From hearing of another rank's failure to the watchdog's exit, where this rank does not raise by itself before."""

CLOSING_S = 60.0
"""A rank that raises has this long to close its parts and end."""

TOGETHER_S = 30.0
"""How long a rank that failed in `together` waits for the others, which may be inside a collective that it has left."""

_TICK_S = 0.25
_SEND_S = 5.0


class PeerError(PspoError):
    """Another rank failed, died or did not come; the message says which, and in what."""


# --- what ranks say to each other ------------------------------------------------------------------------------------


class Ranks:
    """This process among the processes of a run; made by `joined`, or `Ranks()` for one process alone.

    Every method but `share`, `interleave` and `doing` has to be called by all ranks, in the same order, from the main
    thread. `what` names the call in messages: "gather of step 3". Of one process alone, all return at once.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, watch: _Watchdog | None = None) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._watch = watch

    @property
    def first(self) -> bool:
        """Is this the rank that writes files and talks to trackers?"""
        return self.rank == 0

    def gather(self, mine: T, what: str) -> list[T]:
        """Every rank's object, in rank order, on every rank. For plain Python data that pickle takes."""
        if self._watch is None:
            return [mine]
        import torch.distributed as dist

        everyone: list[Any] = [None] * self.size
        with self.expecting(what):
            dist.all_gather_object(everyone, mine)
        return everyone

    def from_first(self, make: Callable[[], T], what: str) -> T:
        """What `make` returns on rank 0, where alone it runs, on every rank. It may not wait for other ranks.

        Where it raises, rank 0 raises that error and the others a PspoError of the same text.
        """
        if self._watch is None:
            return make()
        import torch.distributed as dist

        failed: Exception | None = None
        outcome: list[Any] = [None, None]
        if self.first:
            with self.doing(what):
                try:
                    outcome[0] = make()
                except Exception as error:
                    failed = error
                    outcome[1] = _told(error, self.rank, what)
        with self.expecting(what):
            dist.broadcast_object_list(outcome, src=0)
        value, text = outcome
        if failed is not None:
            raise failed
        if text is not None:
            raise PspoError(text)
        result: T = value
        return result

    def together(self, do: Callable[[], T], what: str) -> T:
        """This rank's own result of `do`, which runs on every rank: for steps that may fail on one of them.

        Where any raised, all raise: a PspoError that names the ranks; a rank whose error is no PspoError raises that.
        `do` may contain collectives. A rank still inside `do` TOGETHER_S after another failed is ended by its watchdog.
        """
        if self._watch is None:
            return do()
        failed: Exception | None = None
        with self.doing(what):
            try:
                value = do()
            except PeerError:
                raise
            except Exception as error:
                failed = error
        text = None if failed is None else _told(failed, self.rank, what)
        failures = self._watch.settle(what, text)
        if failed is not None and not isinstance(failed, PspoError):
            raise failed
        if failures:
            raise PspoError(_by_rank(failures)) from failed
        return value

    def sum(self, values: Sequence[float], what: str) -> list[float]:
        """Element-wise over ranks, in fp64 and in rank order, so the same bits on every rank. The number of values has
        to be the same on all."""
        return [sum(column) for column in self._columns(values, what)]

    def max(self, values: Sequence[float], what: str) -> list[float]:
        """Element-wise over ranks; NaN where any rank has NaN."""
        return [next((v for v in column if v != v), max(column)) for column in self._columns(values, what)]

    def _columns(self, values: Sequence[float], what: str) -> list[tuple[float, ...]]:
        """For each value, that of every rank."""
        if self._watch is None:
            return [(float(value),) for value in values]
        import torch
        import torch.distributed as dist

        mine = torch.tensor(list(values), dtype=torch.float64)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        with self.expecting(what):
            dist.all_gather(everyone, mine)
        return list(zip(*(row.tolist() for row in everyone), strict=True))

    def barrier(self, what: str) -> None:
        """Returns when every rank has come here."""
        self.sum([0.0], what)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's share of what all ranks hold alike: items rank, rank + size, ..."""
        return items[self.rank :: self.size]

    def interleave(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """The whole in its order, from the shares of all ranks in rank order; ValueError where they are not shares of
        one sequence."""
        whole: list[Any] = [None] * sum(len(share) for share in shares)
        for rank, share in enumerate(shares):
            whole[rank :: len(shares)] = share
        return whole

    @contextmanager
    def expecting(self, what: str) -> Iterator[None]:
        """Around anything that waits for other ranks, collectives of other libraries too: at most the time-out long.

        Entering and leaving a phase inside starts the time anew. Raises PeerError where another rank has failed, and
        in place of what torch raises where a connection broke off.
        """
        with self._phase(what, waits=True):
            yield

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Around this rank's own work, which may take as long as it takes: messages of other ranks will name it."""
        with self._phase(what, waits=False):
            yield

    @contextmanager
    def _phase(self, what: str, waits: bool) -> Iterator[None]:
        if self._watch is None:
            yield
            return
        self._watch.enter(what, waits)
        try:
            yield
        except BaseException as error:
            self._watch.leave(failed=True)
            if _is_of_collective(error):
                raise self._watch.blame(what, error) from error
            raise
        self._watch.leave()


@contextmanager
def joined(device: Literal["cpu", "cuda"], timeout: float) -> Iterator[Ranks]:
    """The ranks of this run; `timeout` in seconds is how long one may wait for another, at the start too.

    Reads RANK, WORLD_SIZE and LOCAL_RANK of torchrun, or, where MASTER_ADDR is set, SLURM_PROCID, SLURM_NTASKS and
    SLURM_LOCALID, which it also writes as torchrun's variables, because vLLM's external launcher reads those.
    Collectives run on gloo for CPU tensors and NCCL for CUDA tensors; the CUDA device is the local rank. What uses the
    process group is to be closed inside the block. A closed vLLM engine takes the group with it: then `together` works,
    and no collective.

    Raises PspoError where variables contradict each other or a rank does not come. After an error has passed through,
    the process has CLOSING_S to end; then it is ended with a traceback.
    """
    place = find_place(os.environ)
    if place is None:
        yield Ranks()
        return
    local_rank = _take_device(place) if device == "cuda" else place.local_rank
    torchrun = {"RANK": place.rank, "WORLD_SIZE": place.size, "LOCAL_RANK": local_rank, "MASTER_PORT": place.port}
    os.environ.update({name: str(value) for name, value in torchrun.items()})
    import torch.distributed as dist

    with _meeting(place, timeout) as (store, watch):
        ranks = Ranks(place.rank, place.size, local_rank, watch)
        try:
            with ranks.expecting("connecting all ranks"):
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
                    store=store,
                    rank=place.rank,
                    world_size=place.size,
                    timeout=timedelta(seconds=timeout + 60),  # after ours, which says more
                )
            yield ranks
            ranks.together(lambda: None, "the end of the run")  # not a collective, see below
            if dist.is_initialized():  # closing vLLM's engine destroys the group, though it did not start it
                dist.destroy_process_group()
        except BaseException as error:
            # The process group stays: with a rank gone, closing NCCL's connections may wait for it.
            if not _is_of_collective(error):
                watch.fail(error)
                raise
            blamed = watch.blame("a collective outside any phase", error)
            watch.fail(blamed)
            raise blamed from error


# --- where this process stands ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """What a launcher told this process."""

    rank: int
    size: int
    local_rank: int
    host: str
    port: int
    name: str
    """Of the run, so that two runs at one address do not mix."""
    launcher: Literal["torchrun", "srun"]
    store_is_there: bool = False
    """The launcher holds the store at host:port, and not rank 0."""


def find_place(env: Mapping[str, str]) -> Place | None:
    """From the environment; None for one process alone. Raises PspoError naming a variable that cannot be."""
    if "RANK" in env:
        names, launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "torchrun"
        run = (env.get("TORCHELASTIC_RUN_ID", ""), env.get("TORCHELASTIC_RESTART_COUNT", ""))
    elif "MASTER_ADDR" in env and "SLURM_PROCID" in env:
        # The tasks of the step, which may be fewer than those of the job.
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        names, launcher = ("SLURM_PROCID", size, "SLURM_LOCALID"), "srun"
        run = (env.get("SLURM_JOB_ID", ""), env.get("SLURM_STEP_ID", ""))
    else:
        return None
    rank, size_, local_rank = (_whole(env, name) for name in names)
    if size_ == 1 and rank == 0:
        return None
    if not rank < size_:
        raise PspoError(f"{names[0]}={rank}: must be below {names[1]}={size_}")
    host, port = env.get("MASTER_ADDR", ""), _whole(env, "MASTER_PORT", default=29500)
    if not host:
        raise PspoError("MASTER_ADDR is not set: it has to name the machine of rank 0 (torchrun sets it)")
    there = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and launcher == "torchrun"
    kind: Literal["torchrun", "srun"] = "torchrun" if launcher == "torchrun" else "srun"
    return Place(rank, size_, local_rank, host, port, "/".join(("pspo", *run)), kind, there)


def _whole(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise PspoError(f"{name}={text or None}: the launcher has to set it to a whole number")
    return int(text)


def _take_device(place: Place) -> int:
    """Makes the local rank's CUDA device this process's own; returns its index."""
    import torch

    seen, index = torch.cuda.device_count(), place.local_rank
    if place.launcher == "srun" and seen == 1:
        index = 0  # --gpus-per-task shows each task its own device alone
    if index >= seen:
        raise PspoError(
            f"rank {place.rank} is process {index} of its machine, on which torch sees {seen} CUDA devices: start "
            "at most one process a device"
        )
    torch.cuda.set_device(index)
    return index


# --- meeting at the start --------------------------------------------------------------------------------------------


@contextmanager
def _meeting(place: Place, timeout: float) -> Iterator[tuple[Any, _Watchdog]]:
    """All ranks have come: the store of the process group, and the watchdog, which ends with the block."""
    from torch.distributed import DistError, PrefixStore

    deadline = time.monotonic() + timeout
    store = PrefixStore(place.name, _open_store(place, deadline))
    board = None
    if place.rank == 0:
        board = _Board(place.size, token=secrets.token_hex(16))
        board.start()
        store.set("board", json.dumps([board.port, board.token]))
    try:
        while not store.check(["board"]):
            if time.monotonic() > deadline:
                at = f"MASTER_ADDR={place.host} MASTER_PORT={place.port}"
                raise PspoError(f"rank {place.rank}: rank 0 did not come within {timeout:g} s of the start, at {at}")
            time.sleep(0.05)
    except DistError as error:
        raise PeerError(f"rank {place.rank}: rank 0 went away at the start: {_line(error)}") from error
    port, token = json.loads(store.get("board"))
    watch = _Watchdog(place, _reach(place, port, deadline), token, timeout)
    with _interrupts_seen_by(watch):
        watch.meet(deadline)
        try:
            yield store, watch
            watch.say({"end": None})
        finally:
            watch.close()
            if board is not None:
                board.close()


def _open_store(place: Place, deadline: float) -> Any:
    """The key-value store at MASTER_ADDR:MASTER_PORT; rank 0 opens it where the launcher has not."""
    from torch.distributed import DistError, TCPStore

    at = f"MASTER_ADDR={place.host} MASTER_PORT={place.port}"
    hosts = place.rank == 0 and not place.store_is_there
    server = None
    try:
        if hosts:  # at the loopback address: a wrong MASTER_ADDR is then told by _reach, and can be interrupted
            limit = timedelta(seconds=30)
            server = TCPStore("127.0.0.1", place.port, None, True, timeout=limit, wait_for_workers=False)
    except (DistError, RuntimeError) as error:
        why = "is taken by another program" if "EADDRINUSE" in str(error) else f"cannot be opened ({_line(error)})"
        raise PspoError(f"rank 0: {at}: the port {why}; choose another") from error
    _reach(place, place.port, deadline).close()
    if server is not None:
        return server
    left = timedelta(seconds=max(1.0, deadline - time.monotonic()))
    try:
        return TCPStore(place.host, place.port, None, False, timeout=left, wait_for_workers=False)
    except (DistError, RuntimeError) as error:
        raise PspoError(f"rank {place.rank}: {at}: what answers there is no store of torch ({_line(error)})") from error


def _reach(place: Place, port: int, deadline: float) -> socket.socket:
    """A connection to the machine of rank 0, which may start later than this process."""
    while True:
        try:
            return socket.create_connection(
                (place.host, port), timeout=min(_SEND_S, max(0.1, deadline - time.monotonic()))
            )
        except OSError as error:
            if time.monotonic() > deadline:
                raise PspoError(
                    f"rank {place.rank}: no answer at MASTER_ADDR={place.host}, port {port} ({_line(error)}): rank 0 "
                    "has not started, or this is not its machine"
                ) from error
        time.sleep(0.1)


# --- the board, on rank 0 --------------------------------------------------------------------------------------------


@dataclass
class _Seat:
    """What the board knows of one rank."""

    wire: socket.socket
    state: dict[str, Any] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)
    ended: bool = False


class _Board(threading.Thread):
    """Knows what every rank does, and tells all ranks of the first failure. Messages are JSON, one a line.

    From a rank: hello (token, rank), now (its state), ask, done (number and failure of a `together`), end (None, or
    why). To ranks: all (every rank has come), refused, board (an answer to ask), settled, root (the first failure).
    """

    def __init__(self, size: int, token: str) -> None:
        super().__init__(name="ranks-board", daemon=True)
        self.size, self.token = size, token
        self._seats: dict[int, _Seat] = {}
        self._lines: dict[socket.socket, bytes] = {}
        self._rank_of: dict[socket.socket, int] = {}
        self._settling: dict[int, dict[int, str | None]] = {}
        self._root: str | None = None
        self._closing = threading.Event()
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        self._server = socket.create_server(
            ("", 0), family=family, backlog=size + 8, dualstack_ipv6=family == socket.AF_INET6
        )
        self.port: int = self._server.getsockname()[1]

    def run(self) -> None:
        with selectors.DefaultSelector() as self._waiting, self._server:
            self._waiting.register(self._server, selectors.EVENT_READ)
            while not (self._closing.is_set() and all(seat.ended for seat in self._seats.values())):
                for key, _ in self._waiting.select(_TICK_S):
                    if key.fileobj is self._server:
                        self._accept()
                    else:
                        self._read(key.fileobj)  # type: ignore[arg-type]  # only sockets are registered
            for wire in list(self._lines):
                self._drop(wire)

    def close(self) -> None:
        """Waits for the others to leave; not long, because where one has failed they need not say so."""
        self._closing.set()
        self.join(1.0 if self._root is not None else _SEND_S)

    def _accept(self) -> None:
        wire, _ = self._server.accept()
        _keep_alive(wire)
        self._lines[wire] = b""
        self._waiting.register(wire, selectors.EVENT_READ)

    def _read(self, wire: socket.socket) -> None:
        try:
            got = wire.recv(1 << 16)
        except OSError:  # reset: the process is dead, as with an empty read
            got = b""
        if not got:
            rank = self._rank_of.get(wire)
            self._drop(wire)
            if rank is not None and not self._seats[rank].ended:
                self._seats[rank].ended = True
                was = _is_in(self._seats[rank].state)
                self._fail(f"rank {rank} has died or lost its connection (killed? out of memory?); it was {was}")
            return
        *lines, self._lines[wire] = (self._lines[wire] + got).split(b"\n")
        for line in lines:
            if wire in self._lines:  # else dropped on an earlier line
                self._take(wire, line)

    def _take(self, wire: socket.socket, line: bytes) -> None:
        rank = self._rank_of.get(wire)
        if rank is None:
            self._hello(wire, line)
            return
        said = json.loads(line)
        if "now" in said:
            self._seats[rank].state, self._seats[rank].since = said["now"], time.monotonic()
        elif "ask" in said:
            now = time.monotonic()
            states = {r: {**seat.state, "for": now - seat.since} for r, seat in self._seats.items()}
            self._tell(rank, {"board": states})
        elif "done" in said:
            number, text = said["done"]
            outcomes = self._settling.setdefault(number, {})
            outcomes[rank] = text
            if len(outcomes) == self.size:
                del self._settling[number]
                failures = {r: told for r, told in outcomes.items() if told is not None}
                self._tell_all({"settled": [number, failures]})
        elif "end" in said:
            self._seats[rank].ended = True
            if said["end"] is not None:
                self._fail(said["end"])

    def _hello(self, wire: socket.socket, line: bytes) -> None:
        if self.token.encode() not in line:  # not one of ours
            self._drop(wire)
            return
        said = json.loads(line)
        rank = said["rank"]
        if rank in self._seats or said["size"] != self.size:
            two = f"two processes call themselves rank {rank}"
            other = f"rank {rank} was told of {said['size']} processes, rank 0 of {self.size}"
            why = (two if rank in self._seats else other) + ": they were not started as one run"
            _send(wire, {"refused": why})
            self._fail(why)
            self._drop(wire)
            return
        self._seats[rank] = _Seat(wire)
        self._rank_of[wire] = rank
        if self._root is not None:
            self._tell(rank, {"root": self._root})
        if len(self._seats) == self.size:
            self._tell_all({"all": True})

    def _fail(self, text: str) -> None:
        if self._root is None:
            self._root = text
            self._tell_all({"root": text})

    def _tell_all(self, message: dict[str, Any]) -> None:
        for rank in sorted(self._seats, reverse=True):  # this process last: having heard it, it may end
            self._tell(rank, message)

    def _tell(self, rank: int, message: dict[str, Any]) -> None:
        _send(self._seats[rank].wire, message)

    def _drop(self, wire: socket.socket) -> None:
        self._lines.pop(wire)
        self._rank_of.pop(wire, None)
        self._waiting.unregister(wire)
        wire.close()


def _send(wire: socket.socket, message: dict[str, Any]) -> None:
    """Sends a line. A connection that is broken is not an error here: the reading side of it tells who is gone."""
    try:
        wire.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return


def _keep_alive(wire: socket.socket) -> None:
    """A machine that vanishes closes no connection; the kernel's probes find it within about a minute and a half."""
    wire.settimeout(_SEND_S)
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


# --- the watchdog, on every rank -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Phase:
    what: str
    waits: bool
    number: int
    """Of waits since the start: equal on ranks that wait for each other."""
    since: float
    inside: bool = True
    """False: between phases, `what` being the last."""

    def said(self) -> dict[str, Any]:
        return {"what": self.what, "number": self.number, "inside": self.inside}


class _Watchdog:
    """Says what this rank does, hears of other ranks' failures, and ends the process where it would wait for ever."""

    def __init__(self, place: Place, wire: socket.socket, token: str, timeout: float) -> None:
        self.rank, self.size, self.timeout = place.rank, place.size, timeout
        self._wire, self._token = wire, token
        _keep_alive(wire)
        self._sending = threading.Lock()
        self._heard = threading.Condition()
        self._all = self._stopped = self._ending = False
        self._refused: str | None = None
        self._root: str | None = None
        self._root_at = 0.0
        self._board: dict[int, dict[str, Any]] | None = None
        self._settled: dict[int, dict[int, str]] = {}
        self._together = 0
        self._waits = 0
        self._stack: list[tuple[str, bool]] = []
        self._now = _Phase("the start", False, 0, time.monotonic())
        self._changed = threading.Event()
        self._failed_in: str | None = None
        self.signals: list[tuple[int, float]] = []
        self.signal_fd: int | None = None
        self._listener = threading.Thread(target=self._listen, name="ranks-listener", daemon=True)
        self._judging = threading.Thread(target=self._judge, name="ranks-watchdog", daemon=True)

    # --- for the main thread

    def meet(self, deadline: float) -> None:
        """Returns when every rank has come."""
        self.say({"token": self._token, "rank": self.rank, "size": self.size})
        self._listener.start()
        self._judging.start()
        if self._wait(lambda: self._all, deadline):
            return
        if self._root is not None:
            raise PeerError(self._root)
        if self._refused is not None:
            raise PspoError(self._refused)
        missing = sorted(set(range(self.size)) - set(self._ask()))
        text = (
            f"{_names(missing)} of {self.size} did not come within {self.timeout:g} s of the start"
            if missing
            else f"rank {self.rank}: not all ranks came within {self.timeout:g} s of the start"
        )
        self._claim(text)
        raise PeerError(text)

    def enter(self, what: str, waits: bool) -> None:
        self._failed_in = None
        if waits:
            self._waits += 1
            if self._root is not None:
                self._failed_in = what
                raise PeerError(self._root)
        self._stack.append((what, waits))
        self._set(what, waits)

    def leave(self, failed: bool = False) -> None:
        left, _ = self._stack.pop()
        if failed:
            self._failed_in = self._failed_in or left  # the innermost
        if self._stack:
            self._set(*self._stack[-1])
        else:
            self._set(left, False, inside=False)

    def _set(self, what: str, waits: bool, inside: bool = True) -> None:
        self._now = _Phase(what, waits, self._waits, time.monotonic(), inside)
        self._changed.set()

    def blame(self, what: str, error: BaseException) -> PspoError:
        """The error to raise where a collective broke off: the board says within moments who is gone."""
        if self._wait(lambda: self._root is not None, time.monotonic() + GRACE_S):
            return PeerError(f'{self._root}; rank {self.rank} was in "{what}"')
        return PspoError(f'rank {self.rank}: "{what}" broke off, though every rank is connected: {_line(error)}')

    def settle(self, what: str, failure: str | None) -> dict[int, str]:
        """Failures of all ranks by rank, when all have come to the end of a `together`."""
        self._together += 1
        number = self._together
        self.enter(what, waits=True)
        self.say({"done": [number, failure]})
        patience = self.timeout if failure is None else min(self.timeout / 2, TOGETHER_S)
        came = self._wait(lambda: number in self._settled, time.monotonic() + patience + (failure is None) * GRACE_S)
        if not came and failure is None:  # by itself the watchdog's time-out comes before this one
            self.leave(failed=True)
            raise PeerError(self._root or f'rank {self.rank}: the other ranks did not come to the end of "{what}"')
        failures = self._settled.pop(number) if came else {self.rank: failure or ""}
        self.leave(failed=bool(failures))
        return failures

    def fail(self, error: BaseException) -> None:
        """Tells all ranks that this one ends with an error; from here on the process has CLOSING_S."""
        what = self._failed_in or self._now.what
        self._ending = True
        self._claim(str(error) if isinstance(error, PeerError) else _told(error, self.rank, what, always=True))

    def close(self) -> None:
        """Ends the threads. After an error a timer stays, which no Python code can hold up."""
        self._stopped = True
        self._changed.set()
        self._judging.join(_SEND_S)
        faulthandler.cancel_dump_traceback_later()
        if self._ending:
            faulthandler.dump_traceback_later(CLOSING_S, exit=True, file=2)
        try:
            self._wire.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side was faster
            self._stopped = True
        self._listener.join(_SEND_S)
        self._wire.close()

    def say(self, message: dict[str, Any]) -> None:
        with self._sending:
            _send(self._wire, message)

    def _claim(self, text: str) -> None:
        """Says that this rank ends and why; waits for the moment until the board has told the others."""
        self.say({"end": text})
        self._wait(lambda: self._root is not None, time.monotonic() + 1)

    def _wait(self, done: Callable[[], bool], deadline: float) -> bool:
        """Waits for something to be heard; False at the deadline, or where another rank failed meanwhile."""
        while not done():
            left = deadline - time.monotonic()
            if left <= 0 or self._root is not None or self._refused is not None:
                return done()
            with self._heard:  # in short turns, so that Ctrl-C is seen at once
                self._heard.wait(min(left, _TICK_S))
        return True

    def _ask(self) -> dict[int, dict[str, Any]]:
        """What every rank said last; empty where rank 0 does not answer."""
        self._board = None
        self.say({"ask": True})
        deadline = time.monotonic() + 2
        while self._board is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._board or {}

    # --- the thread that listens

    def _listen(self) -> None:
        rest = b""
        while True:
            try:
                got = self._wire.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                got = b""
            if not got:
                if not self._stopped:
                    self._hear({"root": "rank 0 has died or lost its connection (killed? out of memory?)"})
                return
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))

    def _hear(self, told: dict[str, Any]) -> None:
        with self._heard:
            if "all" in told:
                self._all = True
            elif "refused" in told:
                self._refused = told["refused"]
            elif "board" in told:
                self._board = {int(rank): state for rank, state in told["board"].items()}
            elif "settled" in told:
                number, failures = told["settled"]
                self._settled[number] = {int(rank): text for rank, text in failures.items()}
            elif "root" in told and self._root is None and self._refused is None:
                self._root, self._root_at = told["root"], time.monotonic()
            self._heard.notify_all()

    # --- the thread that judges

    def _judge(self) -> None:
        armed = -float("inf")
        while not self._stopped:
            now = time.monotonic()
            if now - armed > _SEND_S:  # for C code that holds Python's lock, under which this thread cannot run
                faulthandler.dump_traceback_later(self.timeout + CLOSING_S, exit=True, file=2)
                armed = now
            if self._changed.wait(_TICK_S):
                self._changed.clear()
                self.say({"now": self._now.said()})
                time.sleep(0.02)  # phases may follow each other faster than anybody reads
            self._read_signals()
            self._decide(time.monotonic(), self._now)

    def _decide(self, now: float, phase: _Phase) -> None:
        """Ends the process where it is time to."""
        if self.signals:
            number, at = self.signals[0]
            if len(self.signals) > 1 or (phase.waits and now - at > GRACE_S):
                self._stop(f'interrupted by {signal.Signals(number).name} in "{phase.what}"', 128 + number)
        if self._root is not None:
            # An error on its way out has parts to close; otherwise nothing here will end by itself.
            patience = CLOSING_S if self._failed_in is not None else GRACE_S
            if now - self._root_at > patience:
                self._stop(f"{self._root}; rank {self.rank} was {_is_in(phase.said())}", STOPPED)
        elif phase.waits and now - phase.since > self.timeout:
            self._stop(self._timed_out(phase), STOPPED)

    def _timed_out(self, mine: _Phase) -> str:
        waited = f'waited {self.timeout:g} s in "{mine.what}"'
        states = self._ask()
        if not states:
            return f"{waited}; rank 0 does not answer"
        others: dict[str, list[int]] = {}
        for rank, state in sorted(states.items()):
            if rank != self.rank and (state.get("number"), state.get("what")) != (mine.number, mine.what):
                already = "already" if state.get("number", 0) > mine.number else "still"
                others.setdefault(f"{already} {_is_in(state)}, for {state['for']:.0f} s", []).append(rank)
        if not others:
            return f"{waited}; so did all ranks: a collective inside it does not end"
        return f"{waited}; " + "; ".join(
            f"{_names(ranks)} {'is' if len(ranks) == 1 else 'are'} {state}" for state, ranks in others.items()
        )

    def _stop(self, text: str, status: int) -> None:
        if self._stopped:
            return
        line = f"rank {self.rank}: {text}"
        try:
            sys.stdout.flush()
            os.write(2, f"{line}\n".encode())
            self._claim(line)
        finally:
            os._exit(status)

    def _read_signals(self) -> None:
        if self.signal_fd is None:
            return
        try:
            numbers = os.read(self.signal_fd, 64)
        except BlockingIOError:
            return
        ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self.signals += [(number, time.monotonic()) for number in numbers if number in ends]


@contextmanager
def _interrupts_seen_by(watch: _Watchdog) -> Iterator[None]:
    """The watchdog learns of signals that have a Python handler, which itself runs only when the main thread comes back
    from C++."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watch.signal_fd = reading
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        watch.signal_fd = None
        os.close(reading)
        os.close(writing)


# --- words -----------------------------------------------------------------------------------------------------------


def _is_of_collective(error: BaseException) -> bool:
    """Did torch raise it because a collective could not be finished? gloo raises plain RuntimeErrors."""
    if not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, DistError) or any(sign in str(error) for sign in signs)


def _told(error: BaseException, rank: int, what: str, always: bool = False) -> str:
    """One line for other ranks: a user's error as it is, others with their type and where they came from."""
    if isinstance(error, PspoError):
        line = _line(error)
        return f'rank {rank} failed in "{what}": {line}' if always and not line.startswith("rank ") else line
    return f'rank {rank} failed in "{what}": {type(error).__name__}: {_line(error)}'.removesuffix(": ")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 2000 else text[:2000] + " ..."


def _by_rank(failures: Mapping[int, str]) -> str:
    """`rank 1: text`, ranks of the same text put together."""
    ranks: dict[str, list[int]] = {}
    for rank, text in sorted(failures.items()):
        ranks.setdefault(text, []).append(rank)
    return "; ".join(
        text if text.startswith(_names(which)) else f"{_names(which)}: {text}" for text, which in ranks.items()
    )


def _names(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _is_in(state: Mapping[str, Any]) -> str:
    if not state:
        return "at the start"
    return f'in "{state["what"]}"' if state["inside"] else f'in what follows "{state["what"]}"'
