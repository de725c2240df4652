"""Memory of a rank's device, part by part: the learner's at its fullest moments, and the sampling engine's.

Counted from the settings and the policy's sizes alone: what each part is, and which code it comes from, stands beside
it. Compared with what was measured in tests/plan/ and docs/scaling.md. Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pspo.config import TrainConfig, schema
from pspo.errors import ConfigError
from pspo.plan.shapes import Shape

FP32, BF16 = 4, 2
BYTES = {"float32": FP32, "bfloat16": BF16}
TILE = {"cpu": 1 << 20, "cuda": 1 << 25}
WHOLE = {"cpu": 1 << 22, "cuda": 1 << 25}
"""Logits of a tile, and of one that is the whole and is kept (pspo.logprobs, which needs torch)."""
PREFILL = 8192
"""Tokens that vLLM prefills at once on a GPU (pspo.rollout.vllm)."""
UNEVEN = 1.1
"""Tokens of the rank with the most, over the mean (pspo.batching); a group that is split has its prompt again."""
HF_ROWS = 256
"""Completions that pspo.rollout.hf decodes at once."""
CUDA_CONTEXT = 1 << 30
"""What a process takes of a GPU before any tensor: CUDA's context, cuBLAS's workspaces, NCCL's buffers. Assumed."""
PIECES = 1 << 28
"""What moments that are in the host's memory take on the device, on their way there and back (pspo.offload)."""
SPARE = 0.05
"""Share of the learner's tensors that a GPU's caching allocator holds beside them. Assumed."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt, and of each of the completions that share it."""

    prompt: int
    completion: int

    def pack_tokens(self, prompts: float, group_size: int) -> float:
        """Of so many groups in packs: a prompt once, and all of a completion but its last token."""
        return prompts * (self.prompt + group_size * (self.completion - 1))


@dataclass(frozen=True)
class Pack:
    """What goes through the policy at once: `tokens` rows, `targets` log-probs, `keys` that attention gathers (for a
    completion those of its prompt and its own), of which a row sees `visible` on average."""

    tokens: float
    targets: float
    keys: float
    visible: float

    @classmethod
    def of(cls, tokens: float, group_size: int, lengths: Lengths) -> Pack:
        """With so many tokens of whole groups."""
        groups = tokens / lengths.pack_tokens(1, group_size)
        targets = groups * group_size * lengths.completion
        keys = targets + groups * (group_size + 1) * lengths.prompt
        seen = lengths.prompt**2 / 2 + group_size * lengths.completion * (lengths.prompt + lengths.completion / 2)
        return cls(tokens, targets, keys, groups * seen / tokens)


def group_size(cfg: TrainConfig) -> int:
    return cfg.rollout.group_size if cfg.train_on == "samples" else 1


def packs_of(cfg: TrainConfig, lengths: Lengths, ranks: int) -> tuple[int, Pack]:
    """Into how many packs one of `ranks` lays its share of an update, and the mean one, where all prompts and
    completions are as long as `lengths` says. Groups stay whole where budget and ranks let them (pspo.batching)."""
    size, budget = group_size(cfg), cfg.learner.token_budget
    groups, group = cfg.rollout.prompts / cfg.learner.minibatches / ranks, lengths.pack_tokens(1, size)
    if groups < 1:  # halved until there is a piece for each rank, of a sequence at the least
        samples = max(1, size >> int(math.log2(1 / groups)))
        tokens = lengths.pack_tokens(1, samples)
        return 1, Pack.of(tokens, samples, lengths)
    count = math.ceil(groups / (budget // group)) if group <= budget else math.ceil(groups * group / budget)
    return count, Pack.of(groups * group / count, size, lengths)


def fullest_pack(cfg: TrainConfig, lengths: Lengths, ranks: int) -> tuple[int, Pack]:
    """How many packs an update of longest sequences has, and the most that one may hold: the token budget, or all that
    there is. What is in it is taken to have prompts of the usual length: they bring the most log-probs."""
    longest = Lengths(cfg.rollout.max_prompt_tokens, cfg.rollout.max_new_tokens)
    count, pack = packs_of(cfg, longest, ranks)
    usual = Lengths(lengths.prompt, cfg.rollout.max_new_tokens)
    tokens = pack.tokens if ranks == 1 else UNEVEN * pack.tokens + longest.prompt
    tokens = cfg.learner.token_budget if count > 1 else min(tokens, cfg.learner.token_budget)
    return count, Pack.of(tokens, group_size(cfg), usual)


@dataclass(frozen=True)
class Learning:
    """Bytes of the learner on one rank.

    weights      what is learned, in fp32 (with LoRA: the frozen weights in the model's dtype, and the adapters)
    gradients    of the same, at the end of the backward pass
    moments      Adam's two
    away         the same, where the host's memory has them (pspo.offload)
    reference    a second policy for the KL term
    copies       in bfloat16: autocast's copies of the layers' weights; of a sharded policy, what is whole at a time
    activations  of the fullest pack
    head         the output weight's copy, its gradient, and tiles of logits
    embedding    the embedding's gradient, before it is added to what the head has left
    """

    weights: int
    gradients: int
    moments: int
    away: int
    reference: int
    copies: int
    activations: int
    head: int
    embedding: int
    several_packs: bool

    @property
    def held(self) -> int:
        """Between two steps, while the engine samples."""
        return self.weights + self.moments + self.reference

    @property
    def peak(self) -> int:
        """At the fullest of three times: where the backward pass begins, where it ends, and where pieces of moments are
        brought from the host. With several packs the gradients of those before are there from the beginning."""
        begins = self.activations + self.copies + self.head + (self.gradients if self.several_packs else 0)
        ends = self.gradients + self.embedding
        return self.held + max(begins, ends, self.gradients + min(self.away, PIECES))


def learned_parameters(cfg: TrainConfig, shape: Shape) -> int:
    return shape.total if cfg.model.lora is None else adapter_parameters(shape, cfg.model.lora)


def learning(cfg: TrainConfig, shape: Shape, ranks: int, packs: int, pack: Pack) -> Learning:
    """Of one of `ranks` ranks whose share of an update is `packs` like `pack`."""
    bf16, lora = cfg.model.dtype == "bfloat16", cfg.model.lora
    frozen, learned = shape.total if lora is not None else 0, learned_parameters(cfg, shape)
    width, output = BYTES[cfg.model.dtype], shape.embedding
    offloaded = cfg.learner.offload_optimizer and cfg.device == "cuda"
    if ranks == 1:
        copies = BF16 * shape.layers * shape.layer if bf16 and lora is None else 0
        weight_copy = BF16 * output if bf16 and lora is None else 0
    else:  # layers are gathered one ahead, and given to the reduction in the dtype of what is learned
        copies = width * 2 * shape.layer + FP32 * shape.layer
        weight_copy = width * output * (1 if shape.tied else 2)
    tile = FP32 * TILE[cfg.device]
    tiles = 2 * tile + (tile // 2 if bf16 and cfg.device == "cuda" else 0)
    if lora is None:  # its gradient, and what is rounded to fp32 once the tiles are gone
        gradient, after = width * output, FP32 * output if bf16 else 0
    else:
        gradient, after = 0, 0
    return Learning(
        weights=(width * frozen + FP32 * learned) // ranks,
        gradients=FP32 * learned // ranks,
        moments=0 if offloaded else moments(cfg, learned) // ranks,
        away=moments(cfg, learned) // ranks if offloaded else 0,
        reference=FP32 * shape.total // ranks if cfg.learner.kl_coef and lora is None else 0,
        copies=copies,
        activations=activations(cfg, shape, ranks, pack),
        head=weight_copy + gradient + max(tiles, after),
        embedding=FP32 * shape.embedding if lora is None else 0,
        several_packs=packs > 1,
    )


def moments(cfg: TrainConfig, learned: int) -> int:
    """Bytes of all ranks' moments."""
    return 2 * FP32 * learned if cfg.learner.optimizer == "adamw" else 0


def activations(cfg: TrainConfig, shape: Shape, ranks: int, pack: Pack) -> int:
    """What the backward pass of one pack needs of its forward pass, by what transformers' Qwen2 layers save.

    In a layer, for a row: two norms, which save their input and what they have normalised; the linear layers' inputs;
    queries and attention's output, before and after they are put in the rows' order; of the MLP the gate, its silu, the
    other half and their product. Keys and values are those gathered. Under autocast the stream is in fp32, and each
    linear layer saves a copy of its input for itself; in a sharded policy, and beside adapters, the stream is in
    bfloat16; an adapter keeps its own inputs, a tenth more.
    """
    h, m, kv = shape.hidden_size, shape.mlp_size, shape.kv_size
    if cfg.model.dtype == "float32":
        row, key, stream = FP32 * (6 * h + 4 * h + 4 * m), FP32 * 2 * kv, FP32 * h
    elif ranks == 1 and cfg.model.lora is None:
        row, key, stream = FP32 * 4 * h + BF16 * (5 * h + 2 * h + 4 * m), BF16 * 2 * kv, FP32 * h
    else:
        row, key, stream = FP32 * 2 * h + BF16 * (4 * h + 2 * h + 4 * m), BF16 * 2 * kv, BF16 * h
    layer = (row * pack.tokens + key * pack.keys) * (1 if cfg.model.lora is None else 1.1)
    ends = BYTES[cfg.model.dtype] * h * pack.targets + FP32 * h * pack.tokens  # the head's input, the last norm's
    if cfg.learner.gradient_checkpointing:
        return math.ceil(shape.layers * stream * pack.tokens + layer + ends)
    return math.ceil(shape.layers * layer + ends)


def adapter_parameters(shape: Shape, lora: schema.Lora) -> int:
    """Of rank-r adapters: r (in + out) of each adapted linear layer."""
    h, m, kv = shape.hidden_size, shape.mlp_size, shape.kv_size
    sizes = {"q_proj": 2 * h, "k_proj": h + kv, "v_proj": h + kv, "o_proj": 2 * h} | dict.fromkeys(
        ("gate_proj", "up_proj", "down_proj"), h + m
    )
    named = {target.split(".")[-1] for target in lora.targets}
    adapted = sizes if "all-linear" in lora.targets else {name for name in sizes if name in named}
    if not adapted:
        raise ConfigError("model.lora.targets", list(lora.targets), f"names none of {', '.join(sizes)}")
    return shape.layers * lora.rank * sum(sizes[name] for name in adapted)


@dataclass(frozen=True)
class Sampling:
    """Bytes of a rank's engine, or of its part of one: weights, keys and values of the sequences that it decodes at
    once, and what a step of it takes."""

    weights: int
    cache: int
    work: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work


def most_at_once(cfg: TrainConfig) -> int:
    """Sequences that the engine decodes together, where there are so many."""
    return HF_ROWS if cfg.rollout.engine == "hf" or cfg.rollout.vllm is None else cfg.rollout.vllm.max_sequences


def ranks_per_engine(cfg: TrainConfig) -> int:
    return 1 if cfg.rollout.engine == "hf" or cfg.rollout.vllm is None else cfg.rollout.vllm.tensor_parallel


def sampling(cfg: TrainConfig, shape: Shape, ranks: int) -> Sampling:
    """For as many sequences at once as a step, or an evaluation, has for a rank: a step's each as long as it may be, an
    evaluation's half as long, since not all are long at once, and one as long as it may be."""
    width, most, each = BYTES[cfg.rollout.dtype], most_at_once(cfg), ranks_per_engine(cfg)
    engines = ranks // each
    rollout = -(-cfg.rollout.prompts // engines) * cfg.rollout.group_size
    asked = max(cfg.eval.validation_problems if cfg.eval.every else 0, cfg.eval.chunk if cfg.eval.at_end else 0)
    evaluation = -(-asked // engines)
    token = 2 * width * shape.layers * shape.kv_size
    longest = cfg.rollout.max_prompt_tokens + cfg.eval.max_new_tokens
    cached = max(
        min(most, rollout) * (cfg.rollout.max_prompt_tokens + cfg.rollout.max_new_tokens),
        min(most, evaluation) * longest // 2,
        longest if asked else 0,
    )
    # Logits in fp32, their softmax and a sorted copy, of as many sequences as it is set up for; a prefill's rows.
    work = 3 * FP32 * most * shape.vocabulary + PREFILL * width * (2 * shape.mlp_size + 4 * shape.hidden_size)
    return Sampling(width * shape.total // each, token * cached // min(each, shape.kv_heads), work)
