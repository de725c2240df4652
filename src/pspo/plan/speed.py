"""Seconds of a step by phase, on one of several ranks, from the machine's rates (`conf/gpu/`). Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pspo.config import TrainConfig, schema
from pspo.config.machine import Machine
from pspo.plan.memory import (
    BYTES,
    FP32,
    WHOLE,
    Lengths,
    Pack,
    activations,
    learned_parameters,
    moments,
    most_at_once,
    packs_of,
    ranks_per_engine,
)
from pspo.plan.shapes import Shape

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Step:
    """Seconds of a step.

    rollout    sampling of this rank's prompts, all completions as long as planned
    learn      forward and backward passes of all updates: no group is without signal
    exchange   gathering and reducing of a sharded policy, as far as the passes do not hide it
    optimizer  the updates of the weights
    sync       new weights to the engine
    ahead      of these, sampling that the learner hides or is hidden by, at best (rollout.ahead)
    """

    rollout: float
    learn: float
    exchange: float
    optimizer: float
    sync: float
    ahead: float = 0.0

    @property
    def total(self) -> float:
        return self.rollout + self.learn + self.exchange + self.optimizer + self.sync - self.ahead


def step_of(cfg: TrainConfig, shape: Shape, machine: Machine, ranks: int, lengths: Lengths) -> Step:
    updates = cfg.learner.passes * cfg.learner.minibatches
    packs, each = packs_of(cfg, lengths, ranks)
    learned = packs * updates * pass_s(cfg, shape, machine, ranks, each) * (1 + _forwards(cfg) / 3)
    moved = packs * updates * exchange_s(cfg, shape, machine, ranks)
    samples = cfg.train_on == "samples"
    prompts = math.ceil(cfg.rollout.prompts * ranks_per_engine(cfg) / ranks)
    step = Step(
        rollout=rollout_s(cfg, shape, machine, prompts, cfg.rollout.group_size, lengths) if samples else 0.0,
        learn=learned,
        exchange=max(0.0, moved - learned),
        optimizer=updates * optimizer_s(cfg, shape, machine, ranks),
        sync=sync_s(shape, machine, ranks) if samples else 0.0,
    )
    hidden = min(step.rollout, step.learn + step.exchange + step.optimizer)
    return replace(step, ahead=hidden if cfg.rollout.ahead else 0.0)


def _forwards(cfg: TrainConfig) -> float:
    """Forward passes over a pack beside the one of its update, for each update: layers computed once more, old
    log-probs of minibatches that come after the first update, the reference policy's."""
    inner = cfg.learner
    old = (1 - 1 / inner.minibatches) / inner.passes if inner.old_log_probs == "learner" else 0.0
    return (1.0 if inner.gradient_checkpointing else 0.0) + old + (1 / inner.passes if inner.kl_coef else 0.0)


def rate(machine: Machine, dtype: schema.DType) -> float:
    """Flops a second."""
    return (machine.bf16_tflops if dtype == "bfloat16" else machine.fp32_tflops) * TERA


def pass_s(cfg: TrainConfig, shape: Shape, machine: Machine, ranks: int, pack: Pack) -> float:
    """Of one pack, forward and backward: 6 flops a token for each weight of the layers, and 6 for the head's at each
    target, 8 where its tiles are computed again (pspo.logprobs); 2 less where weights are frozen and have no gradient;
    attention; element-wise work by what is kept."""
    flops, frozen = rate(machine, cfg.model.dtype), 0 if cfg.model.lora is None else 2
    attended = 14 * shape.hidden_size * pack.visible * pack.tokens
    matrices = ((6 - frozen) * shape.matrices * pack.tokens + attended) / flops
    kept = activations(cfg, shape, ranks, pack) / shape.layers / machine.activation_gbs / GIGA
    host = machine.layer_host_ms / 1e3
    layer = max(host, matrices + kept) if machine.kind == "cuda" else host + matrices + kept
    each = (6 if pack.targets * shape.vocabulary <= WHOLE[machine.kind] else 8) - frozen
    logits = 2 * pack.targets * shape.vocabulary * machine.head_bytes / machine.bandwidth_gbs / GIGA
    return shape.layers * layer + each * shape.embedding * pack.targets / flops + logits


def optimizer_s(cfg: TrainConfig, shape: Shape, machine: Machine, ranks: int) -> float:
    """Of one update: Adam reads weight, gradient and two moments and writes three, SGD reads two and writes one. What
    the host keeps comes and goes, one way at a time."""
    moved, learned = 7 if cfg.learner.optimizer == "adamw" else 3, learned_parameters(cfg, shape)
    travels = 2 * moments(cfg, learned) / machine.host_gbs if cfg.learner.offload_optimizer else 0.0
    return (moved * FP32 * learned / machine.bandwidth_gbs + travels) / ranks / GIGA


def exchange_s(cfg: TrainConfig, shape: Shape, machine: Machine, ranks: int) -> float:
    """Of one pack of a sharded policy: the weights gathered twice, forward and backward, and fp32 gradients reduced."""
    if ranks == 1:
        return 0.0
    moved = 2 * BYTES[cfg.model.dtype] * shape.total + FP32 * learned_parameters(cfg, shape)
    return moved * (ranks - 1) / ranks / _link(machine, ranks)


def sync_s(shape: Shape, machine: Machine, ranks: int) -> float:
    """fp32 weights gathered, and taken in by the engine."""
    gathered = FP32 * shape.total * (ranks - 1) / ranks / _link(machine, ranks) if ranks > 1 else 0.0
    return gathered + machine.sync_ms / 1e3 + FP32 * shape.total / machine.sync_gbs / GIGA


def _link(machine: Machine, ranks: int) -> float:
    return (machine.link_gbs if ranks <= machine.per_node else machine.network_gbs) * GIGA


def rollout_s(
    cfg: TrainConfig, shape: Shape, machine: Machine, prompts: int, completions: int, lengths: Lengths
) -> float:
    """Of so many completions of each prompt: a step of the engine for each token of a wave, and the prompts once. Ranks
    that share an engine share its weights, keys and products, and add up two hidden states of a token in each layer."""
    sequences = prompts * completions
    waves = math.ceil(sequences / most_at_once(cfg))
    if not waves:
        return 0.0
    at_once, width, flops = sequences / waves, BYTES[cfg.rollout.dtype], rate(machine, cfg.rollout.dtype)
    token = 2 * width * shape.layers * shape.kv_size
    cache = at_once * token * (lengths.prompt + lengths.completion / 2)
    weights = shape.layers * shape.layer + shape.embedding  # the embedding is looked up, the head multiplied
    each = ranks_per_engine(cfg)
    reads = (width * weights / each + cache / min(each, shape.kv_heads)) / machine.bandwidth_gbs / GIGA
    products = 2 * weights * at_once / flops / each
    added = 2 * 2 * width * shape.layers * shape.hidden_size * (each - 1) / each / _link(machine, each)
    overhead = (machine.engine_step_ms + machine.engine_sequence_ms * at_once) / 1e3 + added * at_once
    prefill = prompts * lengths.prompt * (2 * weights / flops / each + added)
    return waves * lengths.completion * (overhead + max(reads, products)) + prefill
