"""Seconds of a step by phase, on one of several ranks, from the machine's rates (`conf/gpu/`). Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pspo.config import TrainConfig
from pspo.config.machine import Machine
from pspo.plan.memory import BF16, BYTES, FP32, Lengths, Pack, activations, packs_of
from pspo.plan.shapes import Shape

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Step:
    """Seconds of a step.

    rollout    sampling of this rank's prompts, all completions as long as planned
    learn      forward and backward passes of all updates, without what follows
    exchange   gathering and reducing of a sharded policy, as far as the passes do not hide it
    optimizer  the updates of the weights
    sync       new weights to the engine
    """

    rollout: float
    learn: float
    exchange: float
    optimizer: float
    sync: float

    @property
    def total(self) -> float:
        return self.rollout + self.learn + self.exchange + self.optimizer + self.sync


def step_of(cfg: TrainConfig, shape: Shape, machine: Machine, ranks: int, lengths: Lengths) -> Step:
    inner, rollout = cfg.learner, cfg.rollout
    updates = inner.passes * inner.minibatches
    samples = cfg.train_on == "samples"
    size = rollout.group_size if samples else 1
    packs, each = packs_of(cfg, lengths, ranks)
    passes = pass_s(cfg, shape, machine, ranks, each)
    forwards = _forwards(cfg)
    learned = packs * updates * passes * (1 + forwards / 3)
    moved = packs * updates * exchange_s(cfg, shape, machine, ranks)
    return Step(
        rollout=rollout_s(cfg, shape, machine, math.ceil(rollout.prompts / ranks) * size, lengths) if samples else 0.0,
        learn=learned,
        exchange=max(0.0, moved - learned),
        optimizer=updates * 7 * FP32 * shape.total / ranks / machine.bandwidth_gbs / GIGA,
        sync=sync_s(shape, machine, ranks) if samples else 0.0,
    )


def _forwards(cfg: TrainConfig) -> float:
    """Forward passes over a pack beside the one of its update, for each update: layers computed once more, old
    log-probs of minibatches that come after the first update, the reference policy's."""
    inner = cfg.learner
    old = (1 - 1 / inner.minibatches) / inner.passes if inner.old_log_probs == "learner" else 0.0
    return (1.0 if inner.gradient_checkpointing else 0.0) + old + (1 / inner.passes if inner.kl_coef else 0.0)


def pass_s(cfg: TrainConfig, shape: Shape, machine: Machine, ranks: int, pack: Pack) -> float:
    """Of one pack, forward and backward: 6 flops a token for each weight of the layers and as many for the head's at
    each target, 8 where its tiles are computed again (pspo.logprobs); attention; element-wise work by what is kept."""
    rate = machine.matmul_tflops * TERA
    attended = 14 * shape.hidden_size * pack.context * pack.tokens
    matrices = (6 * (shape.layer - 3 * shape.hidden_size) * pack.tokens + attended) / rate
    kept = activations(cfg, shape, ranks, pack) / shape.layers / machine.activation_gbs / GIGA
    launch = machine.launch_ms / 1e3
    layer = max(launch, matrices + kept) if machine.kind == "cuda" else launch + matrices + kept
    again = 8 if pack.targets * shape.vocabulary > (1 << 22 if machine.kind == "cpu" else 1 << 25) else 6
    logits = 2 * pack.targets * shape.vocabulary * machine.logit_bytes / machine.bandwidth_gbs / GIGA
    return shape.layers * layer + again * shape.embedding * pack.targets / rate + logits


def exchange_s(cfg: TrainConfig, shape: Shape, machine: Machine, ranks: int) -> float:
    """Of one pack of a sharded policy: the weights gathered twice, forward and backward, and fp32 gradients reduced."""
    if ranks == 1:
        return 0.0
    bytes_ = (2 * BYTES[cfg.model.dtype] + FP32) * shape.total * (ranks - 1) / ranks
    return bytes_ / _link(machine, ranks)


def sync_s(shape: Shape, machine: Machine, ranks: int) -> float:
    """fp32 weights gathered, read, and written into the engine."""
    gathered = FP32 * shape.total * (ranks - 1) / ranks / _link(machine, ranks) if ranks > 1 else 0.0
    return gathered + (FP32 + BF16) * shape.total / machine.bandwidth_gbs / GIGA


def _link(machine: Machine, ranks: int) -> float:
    return (machine.link_gbs if ranks <= machine.per_node else machine.network_gbs) * GIGA


def rollout_s(cfg: TrainConfig, shape: Shape, machine: Machine, sequences: int, lengths: Lengths) -> float:
    """Of `sequences` completions: a step of the engine for each token of a wave, and the prompts once."""
    width, most = BYTES[cfg.rollout.dtype], cfg.rollout.vllm.max_sequences if cfg.rollout.vllm else sequences
    waves = math.ceil(sequences / most)
    at_once = sequences / waves
    token = 2 * width * shape.layers * shape.kv_size
    cache = at_once * token * (lengths.prompt + lengths.completion / 2)
    weights = shape.layers * shape.layer + shape.embedding  # the embedding is looked up, the head multiplied
    reads = (width * weights + cache) / machine.bandwidth_gbs / GIGA
    products = 2 * weights * at_once / machine.matmul_tflops / TERA
    overhead = (machine.engine_step_ms + machine.engine_sequence_ms * at_once) / 1e3
    prefill = 2 * weights * sequences / cfg.rollout.group_size * lengths.prompt / machine.matmul_tflops / TERA
    return waves * lengths.completion * (overhead + max(reads, products)) + prefill
