"""One sampler made of those of all ranks, for work that only the first rank does: evaluation, which writes one file.

The first rank asks, every rank samples its share, the first gets all. Imports: pspo.ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from pspo.ranks import Ranks
from pspo.rollout import Completer, Decoding, Sampler
from pspo.types import Completion

T = TypeVar("T")
ASKED = "what the first rank evaluates next"


@dataclass(frozen=True)
class _Request:
    """Of the first rank: sample these, or (None) forget the prompts that were seen."""

    prompts: Sequence[tuple[int, ...]] = ()
    seeds: Sequence[int] = ()
    decoding: Decoding | None = None


@dataclass(frozen=True)
class _Done(Generic[T]):
    result: T


def sampled_by_all(work: Callable[[Completer], T], sampler: Sampler, ranks: Ranks) -> T:
    """What `work` returns on the first rank, on every rank; the sampler it is given draws on all ranks' samplers.

    Every rank calls it. What `work` raises on the first is raised on all.
    """
    if ranks.size == 1:
        return work(sampler)
    if ranks.first:
        outcome: Future[T] = Future()
        try:
            outcome.set_result(work(_AllRanks(sampler, ranks)))
        except Exception as error:
            outcome.set_exception(error)
        return ranks.from_first(lambda: _Done(outcome.result()), ASKED).result
    while True:
        told: _Request | _Done[T] = ranks.from_first(_Request, ASKED)
        if isinstance(told, _Done):
            return told.result
        _answer(told, sampler, ranks)


def _answer(request: _Request, sampler: Sampler, ranks: Ranks) -> list[list[tuple[int, list[Completion]]]]:
    """Every rank's share of what was asked for, as (index among all prompts, completions)."""
    if request.decoding is None:
        sampler.forget()
        return []
    prompts, seeds = ranks.share(request.prompts), ranks.share(request.seeds)
    mine = [(k * ranks.size + ranks.rank, drawn) for k, drawn in sampler.stream(prompts, seeds, request.decoding)]
    return ranks.gather(mine, "exchange of the evaluation's completions")


class _AllRanks:
    """`pspo.rollout.Completer` on the first rank."""

    def __init__(self, sampler: Sampler, ranks: Ranks) -> None:
        self.sampler, self.ranks = sampler, ranks

    def stream(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], decoding: Decoding
    ) -> Iterator[tuple[int, list[Completion]]]:
        request = self.ranks.from_first(lambda: _Request(prompts, seeds, decoding), ASKED)
        for share in _answer(request, self.sampler, self.ranks):
            yield from share

    def forget(self) -> None:
        _answer(self.ranks.from_first(_Request, ASKED), self.sampler, self.ranks)
