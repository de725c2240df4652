"""Attention over packed sequences: sequences laid end to end, a prompt that several of them share laid down once.

The linear layers of a model see each token of a pack once; only attention asks which tokens may see which:

    pack     p0 p1 a0 a1 b0        a prompt and two completions of it, in rows 0 to 4
    prompt   p0 p1                 sees itself                     queries 0 1    keys 0 1
    a        a0 a1                 sees the prompt and itself      queries 2 3    keys 0 1 2 3
    b        b0                                                    queries 4      keys 0 1 4

Keys and values are gathered for each segment, all of them causal, so no completion can see another. The gradient of a
shared prompt is the sum over all that saw it. Two layouts, for two kernels:

    Varlen   flash attention over ragged segments (torch.nn.attention.varlen): CUDA, 16 bit
    Padded   scaled_dot_product_attention over segments of similar length, padded: everywhere

Imports: torch, numpy, transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from pspo.errors import ConfigError

Kernel = Literal["padded", "varlen"]
NAME = "pspo_packed"

# Segments are padded together down to this share of the longest one's queries, and in blocks of no fewer than so many.
SIMILAR, FEWEST = 0.6, 4


@dataclass(frozen=True)
class Segment:
    """Rows of the pack that are computed, and those they may see: `queries` are the last of `keys`."""

    queries: np.ndarray
    keys: np.ndarray


@dataclass(frozen=True)
class Varlen:
    """The segments' queries are the pack's rows in their order; S segments with R keys altogether.

    keys [R]    the row behind each key               query_bounds, key_bounds [S + 1]  int32, where a segment begins
    """

    keys: Tensor
    query_bounds: Tensor
    key_bounds: Tensor
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> Varlen:
        queries, keys = ([len(getattr(s, name)) for s in segments] for name in ("queries", "keys"))
        rows = torch.from_numpy(np.concatenate([s.keys for s in segments])).to(device)
        q, k = (torch.tensor([0, *np.cumsum(n)], dtype=torch.int32, device=device) for n in (queries, keys))
        return cls(rows, q, k, max(queries), max(keys))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """query [L, H, d], key and value [L, K, d] -> [L, H, d]."""
        from torch.nn.attention.varlen import varlen_attn

        k, v = _rows(key, self.keys), _rows(value, self.keys)
        bounds = (self.query_bounds, self.key_bounds, self.most_queries, self.most_keys)
        grouped = k.shape[1] != query.shape[1]
        # Causal, aligned at the last query and the last key of a segment.
        out: Any = varlen_attn(
            query.contiguous(), k, v, *bounds, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
        )
        return out


@dataclass(frozen=True)
class Block:
    """n segments of similar length: queries [n, q] and keys [n, k] are rows of the pack, padded with row 0, and
    mask [n, 1, q, k] says which key each query sees; a padded query sees something, and nobody reads it."""

    queries: Tensor
    keys: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Padded:
    """Blocks of segments; owner [L] is where each row of the pack stands among all the blocks' queries."""

    blocks: tuple[Block, ...]
    owner: Tensor

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> Padded:
        owner = np.empty(sum(len(s.queries) for s in segments), dtype=np.int64)
        blocks, start = [], 0
        for block in _similar(segments):
            q, before = max(len(s.queries) for s in block), max(len(s.keys) - len(s.queries) for s in block)
            queries = np.zeros((len(block), q), dtype=np.int64)
            keys = np.zeros((len(block), before + q), dtype=np.int64)
            seen = np.zeros((len(block), before + q), dtype=bool)
            for n, s in enumerate(block):
                own, prior = len(s.queries), len(s.keys) - len(s.queries)
                queries[n, :own] = s.queries
                keys[n, :prior], keys[n, before : before + own] = s.keys[:prior], s.queries
                seen[n, :prior] = seen[n, before : before + q] = True
                owner[s.queries] = start + n * q + np.arange(own)
            start += queries.size
            mask = seen[:, None, None, :] & np.tri(q, before + q, before, dtype=bool)
            blocks.append(Block(*(torch.from_numpy(x).to(device) for x in (queries, keys, mask))))
        return cls(tuple(blocks), torch.from_numpy(owner).to(device))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """query [L, H, d], key and value [L, K, d] -> [L, H, d]."""
        outs = []
        for block in self.blocks:
            q = _rows(query, block.queries).transpose(1, 2)  # [n, H, q, d]
            k, v = (_rows(x, block.keys).transpose(1, 2) for x in (key, value))  # [n, K, k, d]
            grouped = k.shape[1] != q.shape[1]
            if grouped and q.is_cuda:  # beside a mask, CUDA has grouped heads in its slowest kernel alone
                k, v, grouped = *(x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v)), False
            out = scaled_dot_product_attention(q, k, v, attn_mask=block.mask, scale=scaling, enable_gqa=grouped)
            outs.append(out.transpose(1, 2).flatten(0, 1))
        return _rows(torch.cat(outs), self.owner)


Layout = Varlen | Padded


def layout_of(segments: Sequence[Segment], kernel: Kernel, device: torch.device) -> Layout:
    """What `kernel` needs to know. The segments' queries are the rows of a pack, each once and in order."""
    return (Varlen if kernel == "varlen" else Padded).of([s for s in segments if len(s.queries)], device)


def choose_kernel(wanted: Literal["auto", "padded", "varlen"], device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel that a config names, or the best that the device has; ConfigError where it cannot be had."""
    possible = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and _has_varlen()
    if wanted == "varlen" and not possible:
        raise ConfigError("model.attention", wanted, "needs device=cuda and model.dtype=bfloat16; take auto")
    if wanted == "auto":
        return "varlen" if possible else "padded"
    return wanted


def use_packed_attention(model: PreTrainedModel) -> None:
    """Has the model's layers call `packed_attention`: its forward takes the keyword `layout` from then on."""
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


@torch.compiler.disable  # its blocks are as many and as long as a pack has them: most packs would be compiled anew
def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [1, H, L, d], key and value [1, K, L, d] of a pack (K divides H) -> [1, L, H, d].

    As transformers calls it. Raises ValueError for what a pack cannot have: a mask, dropout, a sliding window, or
    soft-capped logits.
    """
    if layout is None or attention_mask is not None or dropout:
        raise ValueError("packed attention takes the keyword `layout` of a pack, no mask and no dropout")
    if options.get("sliding_window") is not None or options.get("softcap") is not None:
        raise ValueError("packed attention knows neither sliding windows nor soft-capped logits")
    # Under autocast the rotary embedding leaves queries and keys in fp32, and no kernel takes them beside bf16 values.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # [L, H, d]
    return layout.attend(q, k, v, scaling)[None], None


def _rows(states: Tensor, rows: Tensor) -> Tensor:
    """states [L, H, d], rows [...] -> [..., H, d]; a look-up, whose own backward adds up in one order on a GPU too."""
    heads, width = states.shape[1:]
    return embedding(rows, states.reshape(-1, heads * width)).view(*rows.shape, heads, width)


def _similar(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The segments in blocks of similarly many queries, in the order of their keys, most first; those that see nothing
    but themselves apart."""
    blocks = []
    for alone in (True, False):
        kind = [s for s in segments if (len(s.queries) == len(s.keys)) == alone]
        kind.sort(key=lambda s: -len(s.keys))
        block: list[Segment] = []
        for segment in kind:
            if len(block) >= FEWEST and len(segment.queries) < SIMILAR * max(len(s.queries) for s in block):
                blocks.append(block)
                block = []
            block.append(segment)
        if block:
            blocks.append(block)
    return blocks


def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    return True
