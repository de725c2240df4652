"""One sampler made of those of all ranks, for work that only the first rank does: evaluation, which writes one file.

The first rank asks, every rank samples its share, the first gets all. Imports: pspo.ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from pspo.errors import PspoError
from pspo.ranks import Ranks, by_rank, one_line
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


def _answer(request: _Request, sampler: Sampler, ranks: Ranks) -> list[tuple[int, list[Completion]]]:
    """What was asked for, of all ranks, as (index among all prompts, completions).

    Where it fails on any rank, the first raises, and the others hear of it when they are told what comes next.
    """
    shares = ranks.gather(_attempt(request, sampler, ranks), "exchange of the evaluation's completions")
    failed = by_rank([share if isinstance(share, str) else "" for share in shares])
    if failed and ranks.first:
        raise PspoError(failed)
    return [drawn for share in shares if not isinstance(share, str) for drawn in share]


def _attempt(request: _Request, sampler: Sampler, ranks: Ranks) -> list[tuple[int, list[Completion]]] | str:
    """This rank's part, or why there is none."""
    prompts, seeds = ranks.share(request.prompts), ranks.share(request.seeds)
    try:
        if request.decoding is None:
            sampler.forget()
            return []
        return [(k * ranks.size + ranks.rank, drawn) for k, drawn in sampler.stream(prompts, seeds, request.decoding)]
    except Exception as error:
        logging.getLogger(__name__).exception("sampling for the evaluation failed on rank %d", ranks.rank)
        return one_line(error)


class _AllRanks:
    """`pspo.rollout.Completer` on the first rank."""

    def __init__(self, sampler: Sampler, ranks: Ranks) -> None:
        self.sampler, self.ranks = sampler, ranks

    def stream(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], decoding: Decoding
    ) -> Iterator[tuple[int, list[Completion]]]:
        request = self.ranks.from_first(lambda: _Request(prompts, seeds, decoding), ASKED)
        yield from _answer(request, self.sampler, self.ranks)

    def forget(self) -> None:
        _answer(self.ranks.from_first(_Request, ASKED), self.sampler, self.ranks)
