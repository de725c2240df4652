"""Samples to minibatches, and minibatches to padded micro-batches under a token budget. Imports: torch, pspo.types."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pspo.types import Sample

# Padded lengths are rounded up to this: fewer distinct shapes, aligned rows.
LENGTH_MULTIPLE = 8


@dataclass(frozen=True)
class MicroBatch:
    """Sequences padded on the right, and where their completion tokens are, laid flat sequence by sequence.

        input_ids   [N, T]  token ids, 0 after the end: under a causal mask no real token sees them
        rows, cols  [M]     the position whose hidden state predicts each completion token
        targets     [M]     that token
        index       [M]     which sample of the given list it belongs to
        offsets     [M]     its place within the completion

    One sample, prompt (7, 8), completion (5, 1): input_ids [[7, 8, 5, 1, 0, 0, 0, 0]], rows [0, 0], cols [1, 2],
    targets [5, 1], index [0, 0], offsets [0, 1].
    """

    input_ids: Tensor
    rows: Tensor
    cols: Tensor
    targets: Tensor
    index: Tensor
    offsets: Tensor


def minibatches(count: int, parts: int, seed: int) -> list[list[int]]:
    """The numbers 0..count-1 shuffled by `seed` and dealt into `parts` lists whose lengths differ by at most one.

    With fewer numbers than parts the empty ones are left out.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return [part for part in (order[k::parts] for k in range(parts)) if part]


def micro_batches(
    samples: Sequence[Sample], token_budget: int, device: torch.device | str = "cpu"
) -> Iterator[MicroBatch]:
    """Samples, bucketed by length, as micro-batches of at most `token_budget` padded tokens, the longest first.

    The longest come first so that a run that does not fit in memory fails at its first micro-batch. A single sample
    longer than the budget is a batch by itself.
    """
    by_length = sorted(range(len(samples)), key=lambda i: (-len(samples[i]), i))
    start = 0
    while start < len(by_length):
        width = _rounded(len(samples[by_length[start]]))
        rows = max(1, token_budget // width)
        yield _padded(samples, by_length[start : start + rows], width, device)
        start += rows


def _rounded(length: int) -> int:
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def _padded(samples: Sequence[Sample], chosen: Sequence[int], width: int, device: torch.device | str) -> MicroBatch:
    ids = [(*samples[i].prompt_ids, *samples[i].completion_ids) for i in chosen]
    places = [
        (row, len(samples[i].prompt_ids) - 1 + offset, target, i, offset)
        for row, i in enumerate(chosen)
        for offset, target in enumerate(samples[i].completion_ids)
    ]
    padded = torch.tensor([(*row, *[0] * (width - len(row))) for row in ids], device=device)
    return MicroBatch(padded, *torch.tensor(places, device=device).T)
