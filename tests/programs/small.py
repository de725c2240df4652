"""A small policy of the real architecture, for tests and for the programs that they start."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from pspo.config.schema import Architecture
from pspo.models import build


def small_policy(
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    vocab: int = 31,
    tie: bool = True,
    heads: int = 2,
    layers: int = 2,
) -> Qwen2ForCausalLM:
    """Weights from a seed; two query heads share one of keys and values.

    Computes in its dtype throughout: norms and attention are torch's own, as those of transformers ("eager") round to
    fp32, which turns the last bit of an fp64 number into one of an fp32 number.
    """
    arch = Architecture(
        hidden_size=16,
        layers=layers,
        heads=heads,
        kv_heads=heads // 2,
        mlp_size=32,
        max_positions=64,
        rope_theta=10000.0,
        tie_embeddings=tie,
    )
    model = build(arch, vocab, eos_id=1, pad_id=0, seed=seed, attention="sdpa")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "Qwen2RMSNorm":
                setattr(parent, name, nn.RMSNorm(arch.hidden_size, eps=model.config.rms_norm_eps))
    return model.to(dtype)
