"""Hidden states to log-probs and entropies of the targets, without ever holding the logits of all of them.

At Qwen's vocabulary of 151,936 the fp32 logits of 8,192 tokens are 5 GB, and as much again for their gradient. Here
they exist for one tile of tokens times vocabulary at a time, forward and backward: the forward keeps a running maximum
and running sums per token (the online softmax of Milakov and Gimelshein, arXiv 1805.02867, with one sum more for the
entropy), the backward computes each tile once more. Imports: torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of a tile of logits, and its tokens where it does not hold the whole vocabulary; forward and backward have
# two such tiles at a time. On a CPU 4 MiB in fp32, as square as can be: the passes over it stay in the cache, and the
# matrix products are no faster in larger ones. On a GPU 128 MiB: adding a tile's share to d_weight reads and writes 8
# bytes an element for 2 flops a token, so that hundreds of flops for each byte of memory traffic (the balance of an
# H100 in bf16) take thousands of tokens, and every kernel should have enough work to fill the device. Other devices are
# taken for GPUs.
TILE_ELEMENTS = {"cpu": 1 << 20, "gpu": 1 << 25}
TILE_TOKENS = {"cpu": 1024, "gpu": 8192}
# Up to this many, tokens times vocabulary are one tile: it is kept for the backward, which saves one product of four
# and the exponentials, worth more than the cache.
WHOLE_ELEMENTS = {"cpu": 1 << 22, "gpu": 1 << 25}
# Tiles chosen here are whole multiples of this many vocabulary entries, so that the rows of a tile stay aligned.
ALIGNMENT = 64

# All exponents are to base 2: exp2 takes half the time of exp on a CPU and is what a GPU computes anyway.
LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)
# 2^y is exactly 0 below this in fp32 and fp64, so that clamping y there changes nothing but 0 * -inf.
FLOOR = -2048.0


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    chunk: int | None = None,
    vocab_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy (nats) of the distribution softmax((hidden weight^T + bias) / temperature).

    hidden [M, D], weight [V, D], targets [M] integer, bias [V] -> log_probs [M], entropy [M], both fp32 (fp64 for fp64
    input). `chunk`, `vocab_chunk`: tokens and vocabulary entries a tile, None for those of `tile_sizes`. A bias of
    -inf takes its entry out of the distribution.

    Gradients of both outputs flow to hidden, weight and bias, in their dtypes; an output that the loss does not use
    costs the backward nothing, nor does an input that needs no gradient. Where one tile holds everything, it is kept
    for the backward instead of computed again. There is no second derivative.

    Precision, which the inputs' dtype decides and an enclosing autocast does not:
    - everything between the matrix products, and the sums of d_hidden, d_weight and d_bias over tiles: fp32, or fp64
      for fp64 input; gradients are rounded to the input's dtype once, at the end;
    - fp32 and fp64 products: in that dtype (on CUDA fp32 follows torch's own TF32 setting);
    - bf16 and fp16 on a CPU: operands widened tile by tile, products in fp32: exact up to fp32, and faster than torch's
      own products wherever the processor has none for these formats;
    - bf16 and fp16 elsewhere: operands as they are and fp32 results, so that logits are never rounded; the logits'
      gradient is, once, as an operand of the backward's two products. Where torch has no products with fp32 results
      for the device, each product is rounded to the input's dtype and widened again.

    Raises ValueError for shapes or dtypes that do not fit, a temperature or tile size that is not positive and, on a
    CPU, a target outside the vocabulary (elsewhere its log-prob is NaN, as finding it would wait for the device).
    """
    _check(hidden, weight, targets, temperature, bias, chunk, vocab_chunk)
    tiles = tile_sizes(len(hidden), len(weight), hidden.device.type, chunk, vocab_chunk)
    log_probs, entropy = _TokenLogProbs.apply(hidden, weight, bias, targets, float(temperature), tiles)
    return log_probs, entropy


def tile_sizes(
    tokens: int, vocabulary: int, device_type: str, chunk: int | None = None, vocab_chunk: int | None = None
) -> tuple[int, int]:
    """Tokens and vocabulary entries a tile, both at least 1; what is not given is chosen.

    With neither given, tokens x vocabulary is one tile if it has at most WHOLE_ELEMENTS of the device. Otherwise a tile
    has at most TILE_ELEMENTS, unless `chunk` and `vocab_chunk` ask for more, and chosen sizes split the whole evenly.
    """
    kind = "cpu" if device_type == "cpu" else "gpu"
    elements = TILE_ELEMENTS[kind]
    if chunk is None and vocab_chunk is None and tokens * vocabulary <= WHOLE_ELEMENTS[kind]:
        return max(1, tokens), max(1, vocabulary)
    if chunk is None:
        room = elements // (vocab_chunk or min(vocabulary, elements // TILE_TOKENS[kind]))
        chunk = _even(tokens, max(1, room))
    chunk = max(1, min(chunk, tokens))
    if vocab_chunk is None:
        vocab_chunk = _even(vocabulary, max(ALIGNMENT, elements // chunk), ALIGNMENT)
    return chunk, max(1, min(vocab_chunk, vocabulary))


def _even(length: int, largest: int, multiple: int = 1) -> int:
    """The tile that splits `length` evenly into as few as go with at most `largest`, rounded up to a multiple."""
    if length <= largest:
        return length
    tile = math.ceil(length / math.ceil(length / largest))
    return min(math.ceil(tile / multiple) * multiple, max(multiple, largest // multiple * multiple))


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    bias: Tensor | None,
    chunk: int | None,
    vocab_chunk: int | None,
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"need hidden [M, D], weight [V, D], targets [M]; got {list(hidden.shape)}, {list(weight.shape)}, "
            f"{list(targets.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"need bias [V] with V = {len(weight)}, not {list(bias.shape)}")
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} and weight {weight.dtype}: cast one to the other's dtype")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if min(chunk or 1, vocab_chunk or 1) < 1 or 0 in (chunk, vocab_chunk):
        raise ValueError(f"chunk and vocab_chunk must be positive or None, not {chunk} and {vocab_chunk}")
    if targets.device.type == "cpu" and len(targets):
        low, high = (int(x) for x in targets.aminmax())
        if low < 0 or high >= len(weight):
            raise ValueError(f"targets must be in [0, {len(weight)}), not {low} to {high}")


class _TokenLogProbs(torch.autograd.Function):
    """Notation: y = log2(e) (logit / temperature) less its maximum over the vocabulary, e = 2^y, per token the sums
    S = sum e and U = sum e y. Then log_prob = ln 2 * y[target] - ln S and entropy = ln S - ln 2 * U / S."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        tiles: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        kept = tiles[0] >= len(hidden) and tiles[1] >= len(weight)
        with torch.autocast(hidden.device.type, enabled=False):
            maximum, total, mean, at_target, last = _statistics(hidden, weight, bias, targets, temperature, tiles)
        ln_total = total.log()
        needed = hidden if not kept or ctx.needs_input_grad[1] else None
        ctx.save_for_backward(needed, weight, bias, targets, maximum, total, mean, last if kept else None)
        ctx.temperature, ctx.tiles = temperature, tiles
        return (at_target - maximum) * LN_2 - ln_total, ln_total - mean * LN_2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_probs: Tensor | None, d_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        if d_log_probs is None and d_entropy is None:
            return (None,) * 6
        with torch.autocast(ctx.saved_tensors[1].device.type, enabled=False):
            grads = _gradients(ctx.saved_tensors, ctx.temperature, ctx.tiles, needs, d_log_probs, d_entropy)
        return (*grads, None, None, None)


def _statistics(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    tiles: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Per token: the maximum logit, S, U / S and the target's logit; and e of the last tile (logits in base 2)."""
    wide = _wide(hidden.dtype)
    operands = _product_dtype(hidden)
    states = hidden.to(operands).contiguous()
    # Starting at the least number instead of -inf: a difference of two maxima is never inf - inf.
    maximum = hidden.new_full((len(hidden),), torch.finfo(wide).min, dtype=wide)
    at_target = hidden.new_full((len(hidden),), torch.nan, dtype=wide)
    total, weighted = (hidden.new_zeros(len(hidden), dtype=wide) for _ in range(2))
    first, second = (hidden.new_empty(tiles[0] * tiles[1], dtype=wide) for _ in range(2))
    for cols in _spans(len(weight), tiles[1]):
        block = weight[cols].to(operands)
        for rows in _spans(len(hidden), tiles[0]):
            z = _logits(states[rows], block, None if bias is None else bias[cols], temperature, first)
            column, inside = _locate(targets[rows], cols)
            at_target[rows] = torch.where(inside, z.gather(1, column[:, None]).squeeze(1), at_target[rows])
            before = maximum[rows]
            now = torch.maximum(before, z.amax(dim=1))
            y = _below(z, now, bias)
            e = torch.exp2(y, out=_shaped(second, y.shape))
            # the sums so far were taken against the maximum so far: e shrinks by 2^shift, y by shift
            shift = (before - now).clamp_(min=FLOOR)
            fade = shift.exp2()
            weighted[rows] = (weighted[rows] + total[rows] * shift) * fade + y.mul_(e).sum(dim=1)
            total[rows] = total[rows] * fade + e.sum(dim=1)
            maximum[rows] = now
    return maximum, total, weighted / total, at_target, second.view(-1)


def _gradients(
    saved: tuple[Tensor, ...],
    temperature: float,
    tiles: tuple[int, int],
    needs: tuple[bool, bool, bool],
    d_log_probs: Tensor | None,
    d_entropy: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, weight and bias, each where it is needed; at least one upstream gradient is there.

    The vocabulary is the outer loop: a tile of d_weight is summed over all tokens in fp32 and rounded once, so that no
    second [V, D] exists. d_hidden is summed over the vocabulary in fp32.
    """
    hidden, weight, bias, targets, maximum, total, _, kept = saved
    need_hidden, need_weight, need_bias = needs
    tokens, (vocabulary, width) = len(targets), weight.shape
    wide, operands = total.dtype, _product_dtype(weight)
    states = None if hidden is None else hidden.to(operands).contiguous()
    d_hidden = weight.new_zeros(tokens, width, dtype=wide) if need_hidden else None
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if need_weight else None
    d_bias = weight.new_zeros(vocabulary, dtype=wide) if need_bias else None
    slope, factor, jump = _coefficients(saved, temperature, d_log_probs, d_entropy)

    size = tiles[0] * tiles[1]
    first = weight.new_empty(size, dtype=wide)
    second = weight.new_empty(size, dtype=wide) if slope is not None and kept is None else first
    rounded = weight.new_empty(size, dtype=operands) if operands != wide else None
    d_block = weight.new_empty(tiles[1], width, dtype=wide) if need_weight and weight.dtype != wide else None
    for cols in _spans(vocabulary, tiles[1]):
        block = weight[cols].to(operands)
        d_cols = None if d_weight is None else d_weight[cols] if d_block is None else d_block[: len(block)]
        if d_cols is not None:
            d_cols.zero_()
        for rows in _spans(tokens, tiles[0]):
            if kept is None:
                assert states is not None
                z = _logits(states[rows], block, None if bias is None else bias[cols], temperature, first)
                y = _below(z, maximum[rows], bias)
                e = torch.exp2(y, out=_shaped(second, y.shape))
            else:
                e = kept.view(tokens, vocabulary)
                y = torch.log2(e, out=_shaped(first, e.shape)).clamp_(min=FLOOR) if slope is not None else e
            by = factor[rows, None] if slope is None else y.mul_(slope[rows, None]).add_(factor[rows, None])
            # the kept tile is only read, for there may be a second backward
            out = rounded if rounded is not None else first if kept is not None else second
            place = None if jump is None else (*_locate(targets[rows], cols), jump[rows])
            d = _times(e, by, place, out)
            if d_bias is not None:
                d_bias[cols] += d.sum(dim=0, dtype=wide)
            if d_hidden is not None:
                _add_product(d_hidden[rows], d, block)
            if d_cols is not None:
                assert states is not None
                _add_product(d_cols, d.T, states[rows])
        if d_weight is not None and d_block is not None and d_cols is not None:
            d_weight[cols] = d_cols
    return (
        None if d_hidden is None else d_hidden.to(weight.dtype),
        d_weight,
        None if d_bias is None or bias is None else d_bias.to(bias.dtype),
    )


def _coefficients(
    saved: tuple[Tensor, ...], temperature: float, d_log_probs: Tensor | None, d_entropy: Tensor | None
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Per token (slope, factor, jump): the gradient of the logits is e (slope y + factor) + jump at the target.

    From d log_prob / d z = onehot - p and d H / d z = -p (ln p + H), where p = e / S and ln p + H = ln 2 (y - U / S).
    Without an entropy gradient slope is None, without one of the log-probs jump is.
    """
    total, mean = saved[5], saved[6]
    if d_log_probs is None:
        jump, factor = None, torch.zeros_like(total)
    else:
        jump = d_log_probs / temperature
        factor = -jump / total
    if d_entropy is None:
        return None, factor, jump
    slope = d_entropy * (-LN_2 / temperature) / total
    return slope, factor - slope * mean, jump


def _times(e: Tensor, by: Tensor, place: tuple[Tensor, Tensor, Tensor] | None, out: Tensor) -> Tensor:
    """e * by, plus jump at the target's column where this tile has it, in the memory and dtype of `out`.

    place: column [m], inside [m], jump [m]. The target's element is added up before it is rounded: p - 1 of a token
    that is all but certain would otherwise be what is left of two numbers near 1.
    """
    if place is None:
        return torch.mul(e, by, out=_shaped(out, e.shape))
    column, inside, jump = place[0][:, None], place[1][:, None], place[2][:, None]
    exact = e.gather(1, column) * by.expand_as(e).gather(1, column)
    exact = torch.where(inside, exact + jump, exact)
    return torch.mul(e, by, out=_shaped(out, e.shape)).scatter_(1, column, exact.to(out.dtype))


def _logits(states: Tensor, block: Tensor, bias: Tensor | None, temperature: float, out: Tensor) -> Tensor:
    """The tile's logits / temperature, to base 2, in the memory of `out` [at least m * n]."""
    scale = LOG2_E / temperature
    z = _shaped(out, (len(states), len(block)))
    if _products_are_wide(states, out.dtype):
        # the scale is a factor inside the product
        _add_product(z, states, block.T, beta=0, alpha=scale)
    else:
        z.copy_(states @ block.T).mul_(scale)
    return z if bias is None else z.add_(bias.to(z.dtype), alpha=scale)


def _below(z: Tensor, maximum: Tensor, bias: Tensor | None) -> Tensor:
    """z less the tokens' maximum, in place. Only a bias makes -inf, whose product with e = 0 is to be 0."""
    y = z.sub_(maximum[:, None])
    return y if bias is None else y.clamp_(min=FLOOR)


def _locate(targets: Tensor, cols: slice) -> tuple[Tensor, Tensor]:
    """Column of each target within the tile (some column of it, if it is elsewhere), and whether it is in the tile."""
    column = (targets - cols.start).long()
    inside = (column >= 0) & (column < cols.stop - cols.start)
    return torch.where(inside, column, 0), inside


def _add_product(total: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> None:
    """total = beta total + alpha a b in place, with products of a's dtype added up in total's."""
    if a.dtype == total.dtype:
        total.addmm_(a, b, beta=beta, alpha=alpha)
    elif _products_are_wide(a, total.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, alpha=alpha, out=total)
    else:
        total.mul_(beta).add_(a @ b, alpha=alpha)


def _products_are_wide(operand: Tensor, wide: torch.dtype) -> bool:
    """Whether a product of such operands can be had in `wide`."""
    return operand.dtype == wide or _has_wide_products(operand.device, operand.dtype)


@cache
def _has_wide_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies this low precision into fp32 on this device, tried once.

    Some versions lack the overload, some have it without fp32 for the addend: all of those raise here.
    """
    ones = torch.ones(16, 16, dtype=dtype, device=device)
    total = torch.ones(16, 16, dtype=torch.float32, device=device)
    try:
        torch.addmm(total, ones, ones, out_dtype=torch.float32, beta=1, alpha=0.5, out=total)
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    return bool((total == 9).all())


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _product_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype of the matrix products' operands: the tensor's own, except that a CPU widens."""
    return _wide(tensor.dtype) if tensor.device.type == "cpu" else tensor.dtype


def _shaped(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The beginning of `memory` as a contiguous matrix."""
    return memory.view(-1)[: shape[0] * shape[1]].view(shape)


def _spans(length: int, tile: int) -> Iterator[slice]:
    for start in range(0, length, tile):
        yield slice(start, min(start + tile, length))
