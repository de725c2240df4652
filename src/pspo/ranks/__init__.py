"""The processes (ranks) of one run under torchrun or srun, and what they say to each other.

The only package that starts torch.distributed, and it imports torch inside functions only. One process alone, which is
any without torchrun's or srun's variables and any of size 1, has no process group, no thread and no cost.

Nothing waits for ever: every wait for other ranks stands in `Ranks.expecting(what)`, and `watch` ends this process
where it lasts longer than the time-out or another rank has failed. What a run writes has to bear being cut off.

    place.py    where a process stands: variables of the launcher, its CUDA device, the store at MASTER_ADDR
    watch.py    what ranks know of each other, and how a process ends that would wait for ever
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal, TypeVar

from pspo.errors import BusyError, PspoError
from pspo.ranks.place import find_place, open_store, take_device
from pspo.ranks.watch import STOPPED, PeerError, Watch, by_rank, one_line

__all__ = ["STOPPED", "PeerError", "Ranks", "by_rank", "find_place", "joined", "one_line"]

T = TypeVar("T")


class Ranks:
    """This process among the processes of a run; made by `joined`, or `Ranks()` for one process alone.

    Every method but `share`, `interleave` and `doing` has to be called by all ranks, in the same order, from the main
    thread. `what` names the call in messages: "gather of step 3". Of one process alone, all return at once.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, watch: Watch | None = None) -> None:
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
        made, failed = self._attempt(make, what) if self.first else (None, None)
        kind = BusyError if isinstance(failed, BusyError) else PspoError  # which decides the exit status
        told, text, kind = self.gather((made, None if failed is None else one_line(failed), kind), what)[0]
        if failed is not None:
            raise failed
        if text is not None:
            raise kind(text)
        return made if self.first else told  # type: ignore[return-value]

    def together(self, do: Callable[[], T], what: str) -> T:
        """This rank's own result of `do`, which runs on every rank: for steps that may fail on one of them.

        Where any raised, all raise: a PspoError that names the ranks; a rank whose error is no PspoError raises that.
        `do` may contain collectives: a rank left alone in one is ended by its watch.
        """
        if self._watch is None:
            return do()
        value, failed = self._attempt(do, what)
        with self.expecting(what):
            texts = self._watch.settle("" if failed is None else one_line(failed))
        if failed is not None and not isinstance(failed, PspoError):
            raise failed
        if any(texts):
            raise PspoError(by_rank(texts)) from failed
        return value  # type: ignore[return-value]

    def _attempt(self, do: Callable[[], T], what: str) -> tuple[T | None, Exception | None]:
        with self.doing(what):
            try:
                return do(), None
            except PeerError:
                raise
            except Exception as error:
                return None, error

    def sum(self, values: Sequence[float], what: str) -> list[float]:
        """Element-wise over ranks, in fp64 and in rank order, so the same bits on every rank; equally many on all."""
        everyone = self.gather([float(value) for value in values], what)
        return [sum(column) for column in zip(*everyone, strict=True)]

    def barrier(self, what: str) -> None:
        """Returns when every rank has come here."""
        self.gather(None, what)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's share of what all ranks hold alike: items rank, rank + size, ..."""
        return items[self.rank :: self.size]

    def interleave(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """The whole in its order, from all ranks' shares in rank order; ValueError where they are no such shares."""
        whole: list[Any] = [None] * sum(len(share) for share in shares)
        for rank, share in enumerate(shares):
            whole[rank :: len(shares)] = share
        return whole

    def expecting(self, what: str) -> AbstractContextManager[None]:
        """Around anything that waits for other ranks, collectives of other libraries too: at most the time-out long.

        Leaving a phase inside starts the time anew. Raises PeerError at once where another rank has failed.
        """
        return nullcontext() if self._watch is None else self._watch.phase(what, waits=True)

    def doing(self, what: str) -> AbstractContextManager[None]:
        """Around this rank's own work, which may take as long as it takes: messages of other ranks will name it."""
        return nullcontext() if self._watch is None else self._watch.phase(what, waits=False)


@contextmanager
def joined(device: Literal["cpu", "cuda"], timeout: float) -> Iterator[Ranks]:
    """The ranks of this run; `timeout` in seconds is how long one may wait for another, at the start too.

    Under srun it also sets torchrun's variables, because vLLM's external launcher reads those. Collectives run on gloo
    for CPU tensors and NCCL for CUDA tensors; the CUDA device is the local rank. What uses the process group is to be
    closed inside the block. A closed vLLM engine takes the group with it: then `together` works, and no collective.

    Raises PspoError where variables contradict each other or a rank does not come. After an error has passed through,
    the process has CLOSING_S to end.
    """
    place = find_place(os.environ)
    if place is None:
        yield Ranks()
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch warns, with stacks, of what one line here says
    local_rank = take_device(place) if device == "cuda" else place.local_rank
    torchrun = {"RANK": place.rank, "WORLD_SIZE": place.size, "LOCAL_RANK": local_rank, "MASTER_PORT": place.port}
    os.environ.update({name: str(value) for name, value in torchrun.items()})
    import torch.distributed as dist

    server, client = open_store(place, timeout)
    watch = Watch(place, dist.PrefixStore(place.name, client), timeout)
    ranks = Ranks(place.rank, place.size, local_rank, watch)
    try:
        watch.meet()
        with ranks.expecting("connecting all ranks"):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
                store=dist.PrefixStore(f"{place.name}/torch", server or client.clone()),
                rank=place.rank,
                world_size=place.size,
                timeout=timedelta(seconds=timeout + 60),  # after ours, which says more
            )
        yield ranks
        ranks.together(lambda: None, "the end of the run")
        if dist.is_initialized():  # closing vLLM's engine destroys the group, though it did not start it
            with ranks.expecting("closing the connections"):
                dist.destroy_process_group()
        watch.close()
    except BaseException as error:
        watch.fail(error)  # the group stays: with a rank gone, closing NCCL's connections may wait for it
        raise
