"""A step's samples as flat tensors, dealt into minibatches, and these laid out as packs under a token budget.

    Batch        all samples of a step, and what is known of each completion token
    minibatches  which samples an optimiser update takes
    packs        how an update goes through them: balanced over ranks, prompts shared, no padding

Imports: torch, numpy, pspo.attention, pspo.types.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pspo.attention import Kernel, Layout, Segment, layout_of
from pspo.types import Sample

# Over several ranks, groups are split until the fullest pack has at most so much of the mean.
UNEVEN = 1.1


@dataclass
class Batch:
    """S samples with K completion tokens altogether, laid flat in the order of the samples.

        prompts   the distinct prompts, in order of appearance
        prompt    [S]  which of them each sample has           starts  [S + 1]  where each completion begins in [K]
        tokens    [K]  the completions' token ids              advantage  [S]
        sampler   [K]  log-probs of the distribution they were sampled from
        old       [K]  log-probs under the policy in the denominator of the ratios; NaN: those it has when it is
                       first met in an update
        before    [K]  log-probs under the policy as the learner had it before the first update; NaN where unknown
        reference [K]  log-probs under the reference policy of a KL term, or None

    `prompt`, `starts`, `tokens` are numpy arrays, as they decide the layout; the others are tensors on `device`.
    """

    prompts: list[np.ndarray]
    prompt: np.ndarray
    starts: np.ndarray
    tokens: np.ndarray
    advantage: Tensor
    sampler: Tensor
    old: Tensor
    before: Tensor
    reference: Tensor | None = None
    moved: bool = False
    """Has an update moved the policy since `before`?"""

    @classmethod
    def of(cls, samples: Sequence[Sample], device: torch.device | str = "cpu") -> Batch:
        """`old` and `before` are not known yet. Raises ValueError for a prompt or a completion without tokens."""
        if any(not sample.prompt_ids or not sample.completion_ids for sample in samples):
            raise ValueError("every sample needs at least one prompt token and one completion token")
        numbers: dict[tuple[int, ...], int] = {}
        prompt = [numbers.setdefault(sample.prompt_ids, len(numbers)) for sample in samples]
        lengths = [len(sample.completion_ids) for sample in samples]
        nothing = [np.zeros(0)]
        tokens = np.concatenate([*nothing, *(sample.completion_ids for sample in samples)]).astype(np.int64)
        sampled = np.concatenate([*nothing, *(sample.sampler_log_probs for sample in samples)])
        sampler = torch.from_numpy(sampled).to(device)
        return cls(
            prompts=[np.array(ids, dtype=np.int64) for ids in numbers],
            prompt=np.array(prompt, dtype=np.int64),
            starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            tokens=tokens,
            advantage=torch.tensor([sample.advantage for sample in samples], dtype=torch.float64, device=device),
            sampler=sampler,
            old=torch.full_like(sampler, torch.nan),
            before=torch.full_like(sampler, torch.nan),
        )

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def device(self) -> torch.device:
        return self.sampler.device

    @property
    def lengths(self) -> np.ndarray:
        """[S] completion tokens."""
        return np.diff(self.starts)

    def rows(self, part: Sequence[int]) -> list[dict[str, Any]]:
        """The samples as plain data, to be looked into; null for what is not known or not finite."""
        flat = {"sampler_log_probs": self.sampler, "old_log_probs": self.old}
        return [
            {
                "prompt_ids": self.prompts[self.prompt[i]].tolist(),
                "completion_ids": self.tokens[self.starts[i] : self.starts[i + 1]].tolist(),
                "advantage": _finite(self.advantage[i : i + 1])[0],
                **{name: _finite(values[self.starts[i] : self.starts[i + 1]]) for name, values in flat.items()},
            }
            for i in part
        ]

    def unknown(self, part: Sequence[int]) -> bool:
        """Has any token of the samples no old log-prob yet?"""
        flat = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in part])
        return bool(self.old[torch.from_numpy(flat).to(self.device)].isnan().any())

    def sequence_tokens(self, part: Sequence[int]) -> int:
        """Prompt and completion tokens of the samples, each prompt as often as it is used."""
        chosen = np.asarray(part, dtype=np.int64)
        widths = np.array([len(ids) for ids in self.prompts], dtype=np.int64)
        return int(self.lengths[chosen].sum() + widths[self.prompt[chosen]].sum())


@dataclass(frozen=True)
class Pack:
    """Sequences laid end to end with L tokens and M completion tokens, for one forward pass.

        ids, positions  [L]  token ids, and the place of each in its own sequence
        layout               who sees whom (pspo.attention)
        at              [M]  the row of the pack whose hidden state predicts each completion token
        targets         [M]  that token                        flat  [M]  its place among the batch's K tokens
        sample          [M]  its sample's number in the batch
        lengths         [N]  completion tokens of each sequence, in the order of the M
        ghost                a pack gone through for the company of the other ranks: it weighs nothing

    The last token of a completion predicts nothing and is not in the pack. One sample, prompt (7, 8), completion
    (5, 1): ids [7, 8, 5], positions [0, 1, 2], at [1, 2], targets [5, 1], flat [0, 1].
    """

    ids: Tensor
    positions: Tensor
    layout: Layout
    at: Tensor
    targets: Tensor
    flat: Tensor
    sample: Tensor
    lengths: Tensor
    ghost: bool = False


def minibatches(batch: Batch, parts: int, seed: int, of: Literal["groups", "samples"] = "groups") -> list[list[int]]:
    """The batch's samples, dealt at random into `parts` lists: whole groups, whose prompt is then gone through once
    and whose advantages sum to zero, or samples one by one. Numbers of groups (samples) differ by at most one; groups
    with the same prompt count as one.

    The order follows from `seed` alone. With fewer groups (samples) than parts the empty lists are left out.
    """
    units = _members(batch, range(len(batch))) if of == "groups" else [[i] for i in range(len(batch))]
    random.Random(seed).shuffle(units)
    dealt = [[i for unit in units[k::parts] for i in unit] for k in range(parts)]
    return [part for part in dealt if part]


def packs(
    batch: Batch, part: Sequence[int], token_budget: int, kernel: Kernel, rank: int = 0, ranks: int = 1
) -> Iterator[Pack]:
    """The packs of one rank for the samples `part`, largest first, each of at most `token_budget` tokens.

    All ranks get the same number of packs, of nearly equal size, so that none waits long for another; where there are
    fewer sequences than ranks, the rest get a ghost. A sequence longer than the budget is a pack by itself.
    """
    for members, ghost in balanced(batch, part, token_budget, ranks)[rank]:
        yield lay_out(batch, members, kernel, ghost)


def balanced(
    batch: Batch, part: Sequence[int], token_budget: int, ranks: int = 1
) -> list[list[tuple[list[list[int]], bool]]]:
    """For each rank its packs, the largest first: (samples grouped by prompt, whether it is a ghost).

    The pieces, which are groups or parts of groups, go to the emptiest bin, the longest first (Graham 1969: at most a
    third over the best); the number of bins a rank is the smallest with which all stay within the budget.
    """
    pieces = [piece for group in _members(batch, part) for piece in _within(batch, group, token_budget)]
    if not pieces:
        return [[] for _ in range(ranks)]
    total = sum(_cost(batch, piece) for piece in pieces)
    rounds = max(1, -(-total // (token_budget * ranks)))
    while True:
        pieces = _at_least(batch, pieces, rounds * ranks)
        bins = _dealt(batch, pieces, rounds * ranks)
        fits = all(len(found) <= 1 or _filled(batch, found) <= token_budget for found in bins)
        if fits or len(pieces) <= rounds * ranks:
            break
        rounds += 1
    if ranks > 1:
        bins = _evened(batch, bins)
    filled = [(found, False) for found in bins if found]
    filled += [([smallest(batch, pieces)], True)] * (-len(filled) % ranks)
    return [filled[rank::ranks] for rank in range(ranks)]


def _evened(batch: Batch, bins: list[list[list[int]]]) -> list[list[list[int]]]:
    """The same samples in as many bins, the fullest with at most UNEVEN of the mean where splitting groups, at the
    price of their prompt once more, can do that."""
    while True:
        filled = [_filled(batch, found) for found in bins]
        fullest = bins[filled.index(max(filled))]
        divisible = [piece for piece in fullest if len(piece) > 1]
        if max(filled) <= UNEVEN * sum(filled) / len(bins) or not divisible:
            return bins
        longest = max(divisible, key=lambda piece: _cost(batch, piece))
        pieces = [piece for found in bins for piece in found if piece is not longest]
        again = _dealt(batch, [*pieces, longest[::2], longest[1::2]], len(bins))
        if max(_filled(batch, found) for found in again) >= max(filled):
            return bins
        bins = again


def _filled(batch: Batch, pieces: Sequence[Sequence[int]]) -> int:
    """Tokens of a bin."""
    return sum(_cost(batch, piece) for piece in pieces)


def smallest(batch: Batch, pieces: list[list[int]]) -> list[int]:
    """One sample of the shortest piece: what a ghost goes through."""
    return min(pieces, key=lambda piece: _cost(batch, piece))[:1]


def lay_out(batch: Batch, pieces: Sequence[Sequence[int]], kernel: Kernel, ghost: bool = False) -> Pack:
    """The samples of each piece, which share their prompt, as one pack."""
    ids, positions, at, flat, lengths, samples = ([] for _ in range(6))
    segments: list[Segment] = []
    end = 0
    for piece in pieces:
        prompt = batch.prompts[batch.prompt[piece[0]]]
        prompt_rows = np.arange(end, end + len(prompt))
        segments.append(Segment(prompt_rows, prompt_rows))
        ids.append(prompt)
        positions.append(np.arange(len(prompt)))
        end += len(prompt)
        for i in piece:
            first, last = batch.starts[i], batch.starts[i + 1]
            own = np.arange(end, end + last - first - 1)  # the completion's last token predicts nothing
            segments.append(Segment(own, np.concatenate([prompt_rows, own])))
            ids.append(batch.tokens[first : last - 1])
            positions.append(np.arange(len(prompt), len(prompt) + len(own)))
            at.append(np.concatenate([prompt_rows[-1:], own]))
            flat.append(np.arange(first, last))
            lengths.append(last - first)
            samples.append(np.full(last - first, i))
            end += len(own)
    places = np.concatenate(flat)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(batch.device)

    return Pack(
        ids=tensor(np.concatenate(ids)),
        positions=tensor(np.concatenate(positions)),
        layout=layout_of(segments, kernel, batch.device),
        at=tensor(np.concatenate(at)),
        targets=tensor(batch.tokens[places]),
        flat=tensor(places),
        sample=tensor(np.concatenate(samples)),
        lengths=tensor(np.array(lengths)),
        ghost=ghost,
    )


def _finite(values: Tensor) -> list[float | None]:
    """As JSON has them."""
    return [x if math.isfinite(x) else None for x in values.tolist()]


def _members(batch: Batch, part: Sequence[int]) -> list[list[int]]:
    """The samples by prompt, in order of appearance."""
    found: dict[int, list[int]] = {}
    for i in part:
        found.setdefault(int(batch.prompt[i]), []).append(i)
    return list(found.values())


def _cost(batch: Batch, piece: Sequence[int]) -> int:
    """Tokens of a piece in a pack."""
    prompt = len(batch.prompts[batch.prompt[piece[0]]])
    return prompt + int(sum(batch.starts[i + 1] - batch.starts[i] - 1 for i in piece))


def _within(batch: Batch, group: list[int], token_budget: int) -> list[list[int]]:
    """A group in as few pieces as stay within the budget, each with the prompt; single samples at the worst."""
    parts = 1
    while True:
        pieces = [group[k::parts] for k in range(parts)]
        if parts >= len(group) or all(_cost(batch, piece) <= token_budget for piece in pieces):
            return pieces
        parts += 1


def _at_least(batch: Batch, pieces: list[list[int]], count: int) -> list[list[int]]:
    """The same samples in at least `count` pieces where there are so many: the longest are halved."""
    pieces = list(pieces)
    while len(pieces) < count and any(len(piece) > 1 for piece in pieces):
        longest = max((piece for piece in pieces if len(piece) > 1), key=lambda piece: _cost(batch, piece))
        pieces.remove(longest)
        pieces += [longest[::2], longest[1::2]]
    return pieces


def _dealt(batch: Batch, pieces: list[list[int]], count: int) -> list[list[list[int]]]:
    """The pieces in `count` bins, the fullest first."""
    bins: list[list[list[int]]] = [[] for _ in range(count)]
    filled = [0] * count
    for piece in sorted(pieces, key=lambda piece: -_cost(batch, piece)):
        emptiest = min(range(count), key=lambda k: filled[k])
        bins[emptiest].append(piece)
        filled[emptiest] += _cost(batch, piece)
    return [bins[k] for k in sorted(range(count), key=lambda k: -filled[k])]
