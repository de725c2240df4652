"""Which training problems a step takes. Depends on the seed and the step alone. Standard library only."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

from pspo.seeds import derive
from pspo.types import Problem


def problems_of_step(train: Sequence[Problem], seed: int, step: int, size: int) -> list[Problem]:
    """The `size` problems of `step` (from 1), in epochs without repetition."""
    total = len(train)
    places = range((step - 1) * size, step * size)
    return [train[_epoch_order(seed, place // total, total)[place % total]] for place in places]


@lru_cache(maxsize=2)  # a step may reach into the next epoch
def _epoch_order(seed: int, epoch: int, total: int) -> tuple[int, ...]:
    order = list(range(total))
    random.Random(derive(seed, "epoch", epoch)).shuffle(order)
    return tuple(order)


def distinct(problems: Sequence[Problem]) -> list[tuple[str | int, ...]]:
    """A name for each problem of a step: its id and, where an epoch ends within the step and it comes again, how often
    it came before.

    >>> a, b = Problem("a", "", ""), Problem("b", "", "")
    >>> distinct([a, b, a])
    [('a',), ('b',), ('a', 1)]
    """
    seen: Counter[str] = Counter()
    names: list[tuple[str | int, ...]] = []
    for problem in problems:
        before = seen[problem.id]
        names.append((problem.id, before) if before else (problem.id,))
        seen[problem.id] += 1
    return names


def spare_problems(train: Sequence[Problem], taken: Sequence[Problem], seed: int) -> Iterator[Problem]:
    """Training problems other than `taken`, each once, in an order that follows from `seed`."""
    used, rng = {problem.id for problem in taken}, random.Random(seed)
    for place in rng.sample(range(len(train)), len(train)):
        if train[place].id not in used:
            yield train[place]
