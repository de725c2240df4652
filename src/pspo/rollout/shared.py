"""The engines of all ranks: who samples what, and one sampler made of all of them, for work that only the first rank
does: evaluation, which writes one file.

The first rank asks, every engine samples its share, the first gets all. Imports: pspo.ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

from pspo.config import schema
from pspo.errors import ConfigError, PspoError
from pspo.ranks import Ranks, by_rank, one_line
from pspo.rollout import Completer, Decoding, Sampler
from pspo.types import Completion

T = TypeVar("T")
ASKED = "what the first rank evaluates next"


@dataclass(frozen=True)
class Engines:
    """One engine for every `each` neighbouring ranks, which share its weights and all sample the same.

    Raises ConfigError where the ranks do not divide among engines.
    """

    ranks: Ranks
    each: int = 1

    def __post_init__(self) -> None:
        if self.ranks.size % self.each:
            allowed = f"must divide the number of ranks, which is {self.ranks.size}"
            raise ConfigError("rollout.vllm.tensor_parallel", self.each, allowed)

    @classmethod
    def of(cls, cfg: schema.Rollout, ranks: Ranks) -> Engines:
        """Those that a config asks for."""
        return cls(ranks, cfg.vllm.tensor_parallel if cfg.engine == "vllm" and cfg.vllm is not None else 1)

    @property
    def number(self) -> int:
        """How many there are."""
        return self.ranks.size // self.each

    @property
    def mine(self) -> int:
        """Which of them this rank has a part of."""
        return self.ranks.rank // self.each

    @property
    def leads(self) -> bool:
        """Does this rank answer for its engine?"""
        return self.ranks.rank % self.each == 0

    def sampling(self, what: str) -> AbstractContextManager[None]:
        """Around this rank's sampling: its own work, or, where ranks share an engine, a wait for the others of it."""
        return self.ranks.doing(what) if self.each == 1 else self.ranks.expecting(what)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What this rank's engine samples of what all ranks hold alike: items mine, mine + number, ..."""
        return items[self.mine :: self.number]

    def gather(self, share: Sequence[T], what: str) -> list[T]:
        """The whole in its order on every rank, from what ranks have made of their shares; `what` as of Ranks."""
        return self.ranks.interleave(self.ranks.gather(share if self.leads else (), what)[:: self.each])


@dataclass(frozen=True)
class _Request:
    """Of the first rank: sample these, or (None) forget the prompts that were seen."""

    prompts: Sequence[tuple[int, ...]] = ()
    seeds: Sequence[int] = ()
    decoding: Decoding | None = None


@dataclass(frozen=True)
class _Done(Generic[T]):
    result: T


def sampled_by_all(work: Callable[[Completer], T], sampler: Sampler, engines: Engines) -> T:
    """What `work` returns on the first rank, on every rank; the sampler it is given draws on all ranks' samplers.

    Every rank calls it. What `work` raises on the first is raised on all.
    """
    ranks = engines.ranks
    if ranks.size == 1:
        return work(sampler)
    if ranks.first:
        outcome: Future[T] = Future()
        try:
            outcome.set_result(work(_AllRanks(sampler, engines)))
        except Exception as error:
            outcome.set_exception(error)
        return ranks.from_first(lambda: _Done(outcome.result()), ASKED).result
    while True:
        told: _Request | _Done[T] = ranks.from_first(_Request, ASKED)
        if isinstance(told, _Done):
            return told.result
        _answer(told, sampler, engines)


def _answer(request: _Request, sampler: Sampler, engines: Engines) -> list[tuple[int, list[Completion]]]:
    """What was asked for, of all ranks, as (index among all prompts, completions).

    Where it fails on any rank, the first raises, and the others hear of it when they are told what comes next.
    """
    shares = engines.ranks.gather(_attempt(request, sampler, engines), "exchange of the evaluation's completions")
    failed = by_rank([share if isinstance(share, str) else "" for share in shares])
    if failed and engines.ranks.first:
        raise PspoError(failed)
    return [drawn for share in shares if not isinstance(share, str) for drawn in share]


def _attempt(request: _Request, sampler: Sampler, engines: Engines) -> list[tuple[int, list[Completion]]] | str:
    """This rank's part, or why there is none."""
    prompts, seeds = engines.share(request.prompts), engines.share(request.seeds)
    try:
        if request.decoding is None:
            sampler.forget()
            return []
        with engines.sampling("sampling for the evaluation"):
            drawn = list(sampler.stream(prompts, seeds, request.decoding))
        return [(k * engines.number + engines.mine, completions) for k, completions in drawn if engines.leads]
    except Exception as error:
        if engines.each > 1:
            raise  # the other ranks of the engine wait in the middle of a step: their watch ends them
        logging.getLogger(__name__).exception("sampling for the evaluation failed on rank %d", engines.ranks.rank)
        return one_line(error)


class _AllRanks:
    """`pspo.rollout.Completer` on the first rank."""

    def __init__(self, sampler: Sampler, engines: Engines) -> None:
        self.sampler, self.engines = sampler, engines

    def stream(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], decoding: Decoding
    ) -> Iterator[tuple[int, list[Completion]]]:
        request = self.engines.ranks.from_first(lambda: _Request(prompts, seeds, decoding), ASKED)
        yield from _answer(request, self.sampler, self.engines)

    def forget(self) -> None:
        _answer(self.engines.ranks.from_first(_Request, ASKED), self.sampler, self.engines)
