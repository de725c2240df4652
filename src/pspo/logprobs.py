"""Hidden states to log-probs and entropies of the targets, without ever holding the logits of all of them.

At Qwen's vocabulary of 151,936 the fp32 logits of 8,192 tokens are 5 GB, and as much again for their gradient. Here
they exist for `chunk` tokens at a time, forward and backward; the backward computes them once more instead of keeping
them. Imports: torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Elements of the largest tile of logits that exist at a time, fp32: 64 MiB, by default.
TILE_ELEMENTS = 1 << 24


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy (nats) of the distribution softmax((hidden weight^T + bias) / temperature).

    hidden [M, D], weight [V, D], targets [M] integer, bias [V] -> log_probs [M], entropy [M], both fp32 (fp64 for fp64
    input). `chunk`: tokens a tile, None for as many as keep it under TILE_ELEMENTS. Gradients of both outputs flow to
    hidden, weight and bias; those of weight and bias are summed over tiles in fp32. Raises ValueError for shapes that
    do not fit or a temperature that is not positive.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"need hidden [M, D], weight [V, D], targets [M]; got {list(hidden.shape)}, {list(weight.shape)}, "
            f"{list(targets.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    tile = chunk or max(1, TILE_ELEMENTS // weight.shape[0])
    log_probs, entropy = _TokenLogProbs.apply(hidden, weight, bias, targets, float(temperature), tile)
    return log_probs, entropy


def _accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _tile_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = (hidden @ weight.T).to(_accumulate_dtype(hidden.dtype))
    if bias is not None:
        logits += bias
    return logits.div_(temperature)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, tile: int
    ) -> tuple[Tensor, Tensor]:
        dtype = _accumulate_dtype(hidden.dtype)
        log_probs, entropy, lse = (hidden.new_empty(len(hidden), dtype=dtype) for _ in range(3))
        for start in range(0, len(hidden), tile):
            rows = slice(start, start + tile)
            logits = _tile_logits(hidden[rows], weight, bias, temperature)
            lse[rows] = logits.logsumexp(dim=1)
            log_probs[rows] = logits.gather(1, targets[rows, None]).squeeze(1) - lse[rows]
            # H = lse - sum p z; the exponential is taken in place, as z is not needed after the product
            z = logits.clone()
            p = logits.sub_(lse[rows, None]).exp_()
            entropy[rows] = lse[rows] - z.mul_(p).sum(dim=1)
        ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
        ctx.temperature, ctx.tile = temperature, tile
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_log_probs, d_entropy = grads
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        dtype = _accumulate_dtype(hidden.dtype)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device) if need_weight else None
        d_bias = (
            torch.zeros(weight.shape[0], dtype=dtype, device=weight.device) if bias is not None and need_bias else None
        )
        for start in range(0, len(hidden), ctx.tile):
            rows = slice(start, start + ctx.tile)
            log_p = _tile_logits(hidden[rows], weight, bias, ctx.temperature).sub_(lse[rows, None])
            p = log_p.exp()
            # d log_prob / d z = onehot - p;  d H / d z = -p (log p + H)
            d_z = log_p.add_(entropy[rows, None]).mul_(-d_entropy[rows, None]).sub_(d_log_probs[rows, None]).mul_(p)
            d_z.scatter_add_(1, targets[rows, None], d_log_probs[rows, None])
            d_z.div_(ctx.temperature)
            if d_bias is not None:
                d_bias += d_z.sum(dim=0)
            d_z = d_z.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[rows] = d_z @ weight
            if d_weight is not None:
                d_weight += d_z.T @ hidden[rows]
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )
