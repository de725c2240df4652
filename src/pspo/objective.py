"""From per-token values to a loss, and what one update tells about itself. Imports: torch, pspo.surrogates.

The loss of a minibatch is a weighted sum over its tokens. The weights depend on counts of the whole minibatch alone, so
a minibatch may be split into micro-batches, or over ranks, in any way: the gradient is the same sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from pspo.surrogates import Surrogate, log_ratio_limit, ratio, relative_slope

Normalise = Literal["token", "sequence", "constant"]

# A token counts as having nearly no slope where the surrogate passes on less than a tenth of the advantage.
SMALL_SLOPE = 0.1


def sequence_weights(lengths: Tensor, how: Normalise, length: int | None, tokens: int, sequences: int) -> Tensor:
    """Weight of each token of a sequence, [N] -> [N], given the counts of the whole minibatch.

    token      1 / tokens                 every token counts the same (DAPO, arXiv 2503.14476)
    sequence   1 / (sequences * len_i)    every sequence counts the same (GRPO, arXiv 2402.03300)
    constant   1 / (sequences * length)   neither is rewarded (Dr. GRPO, arXiv 2503.20783)
    """
    ones = torch.ones(lengths.shape, dtype=torch.float64, device=lengths.device)
    if how == "token":
        return ones / max(tokens, 1)
    if how == "sequence":
        return ones / (sequences * lengths.clamp(min=1))
    if how == "constant":
        if not length:
            raise ValueError('how="constant" needs length, the number of tokens to divide by')
        return ones / (sequences * length)
    raise ValueError(f'how must be "token", "sequence" or "constant", not {how!r}')


def aggregate(values: Tensor, mask: Tensor, how: Normalise = "token", length: int | None = None) -> Tensor:
    """Per-token values [N, T] under a mask [N, T] to a scalar; see `sequence_weights` for `how`.

    Values outside the mask do not count, whatever they are (NaN included).

    >>> float(aggregate(torch.ones(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]]), how="constant", length=3))
    0.5
    """
    inside = mask.bool()
    lengths = inside.sum(dim=1)
    weights = sequence_weights(lengths, how, length, tokens=int(lengths.sum()), sequences=len(lengths))
    return (values.masked_fill(~inside, 0.0) * weights[:, None].to(values.dtype)).sum()


@dataclass
class UpdateStats:
    """What one update, or several added together, saw; sums over completion tokens unless said otherwise."""

    tokens: float = 0.0
    abs_dev: float = 0.0
    """|r - 1|"""
    max_ratio: float = 0.0
    """largest ratio of any token; the maximum, not a sum"""
    max_abs_log_ratio: float = 0.0
    """the same of |log r|"""
    clamped: float = 0.0
    """tokens whose log-ratio was clamped"""
    signal: float = 0.0
    """tokens with an advantage other than zero: those that have a slope to lose"""
    zero_slope: float = 0.0
    small_slope: float = 0.0
    k1: float = 0.0
    """-log r: KL(old || new), unbiased (Schulman, "Approximating KL divergence", 2020)"""
    k3: float = 0.0
    """r - 1 - log r: the same, never negative"""
    entropy: float = 0.0
    """nats"""
    loss: float = 0.0
    """sum over updates"""
    grad_norm: float = 0.0
    """sum over updates, before clipping"""
    updates: float = 0.0

    def __add__(self, other: UpdateStats) -> UpdateStats:
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return UpdateStats(**{name: max(a, b) if name.startswith("max_") else a + b for name, (a, b) in pairs.items()})

    @staticmethod
    def total(parts: Iterable[UpdateStats]) -> UpdateStats:
        return sum(parts, start=UpdateStats())


@torch.no_grad()
def token_stats(surrogate: Surrogate, log_ratio: Tensor, advantage: Tensor, entropy: Tensor) -> UpdateStats:
    """The statistics of a micro-batch's tokens, each argument [M]; one transfer from the device for all of them."""
    log_ratio = log_ratio.detach().double()
    advantage, r = advantage.double(), ratio(log_ratio)
    slope = relative_slope(surrogate, log_ratio, advantage).abs()
    signal = advantage != 0
    numbers = torch.stack(
        [
            (r - 1).abs().sum(),
            r.max(),
            log_ratio.abs().max(),
            (log_ratio.abs() > log_ratio_limit(log_ratio.dtype)).sum(),
            signal.sum(),
            (signal & (slope == 0)).sum(),
            (signal & (slope < SMALL_SLOPE)).sum(),
            -log_ratio.sum(),
            (r - 1 - log_ratio).sum(),
            entropy.double().sum(),
        ]
    ).tolist()
    names = [f.name for f in fields(UpdateStats)][1 : 1 + len(numbers)]  # the order above is the order there
    return UpdateStats(tokens=float(len(log_ratio)), **dict(zip(names, numbers, strict=True)))
