"""The settings of every program as plain frozen dataclasses: names, types, bounds and the checks across fields.

Values are not here: they stand in `conf/*.yaml`, each with its source. pydantic checks a composed config against these
classes (`pspo.config.compose`), and what comes out are ordinary dataclass instances. Imports: standard library and
pydantic only, so that a wrong setting is told before torch or vLLM is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, Strict

from pspo.errors import ConfigError

Flag = Annotated[bool, Strict()]
Seed = Annotated[int, Strict(), Field(ge=0)]
Count = Annotated[int, Strict(), Field(ge=1)]
Threads = Annotated[int, Strict(), Field(ge=1, le=1024)]
Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, Strict(), Field(ge=0)]
Real = Annotated[float, Strict()]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Positive = Annotated[float, Strict(), Field(gt=0)]
Decay = Annotated[float, Strict(), Field(ge=0, lt=1)]
NonNegative = Annotated[float, Strict(), Field(ge=0)]
DType = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]

FORBID = ConfigDict(extra="forbid", allow_inf_nan=False)


# --- surrogate: one class a method, told apart by `name` -------------------------------------------------------------


@dataclass(frozen=True)
class NoClip:
    """r A. No settings."""

    __pydantic_config__ = FORBID
    name: Literal["no_clip"]


@dataclass(frozen=True)
class Clip:
    """min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A)."""

    __pydantic_config__ = FORBID
    name: Literal["clip"]
    epsilon_low: Annotated[float, Strict(), Field(ge=0, le=1)]
    epsilon_high: NonNegative


@dataclass(frozen=True)
class Sigmoid:
    """(4 / tau) sigmoid(tau (r - 1)) A with tau by the sign of A."""

    __pydantic_config__ = FORBID
    name: Literal["sigmoid"]
    tau_pos: Positive
    tau_neg: Positive


@dataclass(frozen=True)
class Pspo:
    """((1 - alpha) r + alpha) A."""

    __pydantic_config__ = FORBID
    name: Literal["pspo"]
    alpha: Share


Surrogate = Annotated[NoClip | Clip | Sigmoid | Pspo, Field(discriminator="name")]


# --- model, data, prompt ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """Sizes of a Qwen2-architecture model that is made here rather than loaded."""

    __pydantic_config__ = FORBID
    hidden_size: Count
    layers: Count
    heads: Count
    kv_heads: Count
    mlp_size: Count
    max_positions: Count
    rope_theta: Positive
    tie_embeddings: Flag

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ConfigError("model.arch.heads", self.heads, f"must divide model.arch.hidden_size={self.hidden_size}")
        if self.heads % self.kv_heads:
            raise ConfigError("model.arch.kv_heads", self.kv_heads, f"must divide model.arch.heads={self.heads}")


@dataclass(frozen=True)
class Model:
    """A checkpoint directory or hub id (`path`), or an architecture to warm-start here (`arch`); one of the two."""

    __pydantic_config__ = FORBID
    name: str
    path: Text | None
    revision: Text | None
    arch: Architecture | None
    dtype: DType
    attention: Literal["eager", "sdpa", "flash_attention_2"]

    def __post_init__(self) -> None:
        if self.path is None and self.arch is None:
            raise ConfigError("model.path", None, "name a checkpoint directory or hub id, or give model.arch")
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ConfigError("model.attention", self.attention, "needs model.dtype=bfloat16")


@dataclass(frozen=True)
class WordProblems:
    """The built-in small world: templated word problems, made from `seed`; sizes are numbers of problems."""

    __pydantic_config__ = FORBID
    kind: Literal["wordproblems"]
    name: str
    seed: Seed
    levels: Annotated[tuple[Literal[2, 3, 4], ...], Field(min_length=1)]
    max_value: Annotated[int, Strict(), Field(ge=20)]
    distractor_share: Share
    train: Count
    validation: Count
    test: Count


@dataclass(frozen=True)
class Benchmark:
    """A published data set, from the hub or from local JSONL files of the same field names (`path`: a directory)."""

    __pydantic_config__ = FORBID
    kind: Literal["benchmark"]
    name: str
    hub: str
    subset: str | None
    revision: str | None
    path: str | None
    question_field: str
    gold_field: str
    gold_from: Literal["after_hashes", "last_box", "field"]
    level_field: str | None
    validation: Whole
    """Problems taken from the end of the shuffled training split; 0: none."""
    split_seed: Seed | None
    """Seed of that shuffle; null: the run's seed, as the released code does."""


Data = Annotated[WordProblems | Benchmark, Field(discriminator="kind")]


@dataclass(frozen=True)
class Prompt:
    """How a question becomes token ids, and which answer format the grader expects of the completion."""

    __pydantic_config__ = FORBID
    name: str
    chat: Flag
    system: str | None
    template: str
    style: Literal["gsm8k", "math"]

    def __post_init__(self) -> None:
        if self.template.count("{question}") != 1:
            raise ConfigError("prompt.template", repr(self.template), "must contain {question} exactly once")
        if self.system is not None and not self.chat:
            raise ConfigError("prompt.system", repr(self.system), "needs prompt.chat=true")


# --- rollout, learner, evaluation, tracking --------------------------------------------------------------------------


@dataclass(frozen=True)
class Vllm:
    """Settings of the vLLM engine alone."""

    __pydantic_config__ = FORBID
    kv_cache_gib: Count
    """Memory of the KV cache on a CPU, GiB."""
    gpu_memory_utilization: Share
    """Share of a GPU's memory for the engine: weights and KV cache."""
    enforce_eager: Flag
    max_sequences: Count
    """Most sequences decoded at once."""


@dataclass(frozen=True)
class Rollout:
    """What is sampled in a step, and by which engine."""

    __pydantic_config__ = FORBID
    engine: Literal["vllm", "hf"]
    vllm: Vllm | None
    dtype: DType
    prompts: Count
    group_size: Annotated[int, Strict(), Field(ge=2)]
    temperature: Positive
    top_p: Annotated[float, Strict(), Field(gt=0, le=1)]
    max_prompt_tokens: Count
    max_new_tokens: Count
    max_gap: Positive
    """Largest mean |r - 1| between sampler and learner on the first batch and on the first with new weights; above it
    the run stops."""

    def __post_init__(self) -> None:
        if self.engine == "vllm" and self.vllm is None:
            raise ConfigError("rollout.vllm", None, "rollout.engine=vllm needs its settings: choose rollout=vllm")

    @property
    def sequences(self) -> int:
        """P * G: completions of one step."""
        return self.prompts * self.group_size


@dataclass(frozen=True)
class Learner:
    """The inner loop: how a batch of groups becomes updates of the policy."""

    __pydantic_config__ = FORBID
    passes: Count
    """mu: times each batch is gone through."""
    minibatches: Count
    """Optimiser updates in a pass."""
    token_budget: Count
    """Most padded tokens of a micro-batch; changes memory and speed, never the gradient."""
    optimizer: Literal["adamw", "sgd"]
    lr: Positive
    betas: tuple[Decay, Decay]
    adam_eps: NonNegative
    weight_decay: NonNegative
    warmup_updates: Whole
    schedule: Literal["constant", "linear"]
    """After the warm-up: constant, or linear decay to zero at the last planned update."""
    max_grad_norm: Positive | None
    normalise: Literal["token", "sequence", "constant"]
    advantage_scale: Literal["std", "none"]
    advantage_eps: NonNegative
    drop_no_signal: Flag
    """Leave out groups whose rewards are all equal: their advantages are zero; they only dilute the mean. What
    is left is dealt into minibatches whose sizes differ by one at most; `normalise` counts what is left."""
    old_log_probs: Literal["learner", "sampler"]
    gradient_checkpointing: Flag


@dataclass(frozen=True)
class Evaluation:
    """Evaluation during a training run: on validation problems while it runs, on the test part at its end."""

    __pydantic_config__ = FORBID
    every: Whole
    """Steps between evaluations on the validation part; 0: never."""
    validation_problems: Count
    test_problems: Count | None
    """Problems of the test part graded at the end; null: all."""
    at_end: Flag
    max_new_tokens: Count


@dataclass(frozen=True)
class Tracking:
    """Where a run is written beside its metrics.jsonl, which is always written."""

    __pydantic_config__ = FORBID
    wandb: Literal["online", "offline", "none"]
    project: str
    group: str | None
    tags: tuple[str, ...]
    progress: Flag


@dataclass(frozen=True)
class WarmStart:
    """Supervised fine-tuning that makes the small world's starting policy (docs/small-world.md)."""

    __pydantic_config__ = FORBID
    seed: Seed
    steps: Count
    batch: Count
    """Sequences of an update."""
    lr: Positive
    betas: tuple[Decay, Decay]
    weight_decay: NonNegative
    max_grad_norm: Positive
    warmup_steps: Whole
    decay_share: Share
    """Share of the steps, at the end, over which the rate falls linearly to zero."""
    terse_after: Share
    """Terse demonstrations appear only after this share of the steps."""
    terse: dict[Literal[2, 3, 4], Share]
    """Probability of a terse demonstration by the problem's level, once they appear."""
    threads: Threads


# --- the programs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig:
    """python -m pspo.train"""

    __pydantic_config__ = FORBID
    scale: Literal["cpu", "paper"]
    regime: str | None
    seed: Seed
    steps: Count
    run_dir: Text | None
    runs: str
    models: str
    device: Device
    threads: Threads | None
    surrogate: Surrogate
    model: Model
    sft: WarmStart
    data: Data
    prompt: Prompt
    rollout: Rollout
    learner: Learner
    eval: Evaluation
    tracking: Tracking

    def __post_init__(self) -> None:
        rollout, learner = self.rollout, self.learner
        if rollout.sequences % learner.minibatches:
            raise ConfigError(
                "learner.minibatches",
                learner.minibatches,
                f"must divide the batch of rollout.prompts * rollout.group_size = {rollout.prompts} * "
                f"{rollout.group_size} = {rollout.sequences} completions",
            )
        if rollout.top_p < 1:
            raise ConfigError(
                "rollout.top_p",
                rollout.top_p,
                "must be 1.0 in training: below it the sampler renormalises over the tokens it keeps, so its log-probs "
                "are not the learner's and ratios do not start at 1",
            )
        if self.eval.every and self.eval.validation_problems > self.data.validation:
            raise ConfigError(
                "eval.validation_problems",
                self.eval.validation_problems,
                f"data.validation={self.data.validation} are held out",
            )
        longest = rollout.max_prompt_tokens + max(rollout.max_new_tokens, self.eval.max_new_tokens)
        if learner.token_budget < rollout.max_prompt_tokens + rollout.max_new_tokens:
            raise ConfigError("learner.token_budget", learner.token_budget, f"one sequence may have {longest} tokens")
        if self.model.arch is not None and longest > self.model.arch.max_positions:
            raise ConfigError("model.arch.max_positions", self.model.arch.max_positions, f"needs {longest} or more")
        if self.model.path is None and self.data.kind != "wordproblems":
            raise ConfigError("model.path", None, f"a model made here speaks only word problems, not {self.data.name}")
        needs_device(self.device, self.model)

    @property
    def updates(self) -> int:
        """Planned optimiser updates of the whole run."""
        return self.steps * self.learner.passes * self.learner.minibatches


@dataclass(frozen=True)
class SftConfig:
    """python -m pspo.sft"""

    __pydantic_config__ = FORBID
    models: str
    out: Text | None
    device: Device
    model: Model
    sft: WarmStart
    data: Data
    prompt: Prompt
    rollout: Rollout
    eval: Evaluation

    def __post_init__(self) -> None:
        if self.model.arch is None:
            raise ConfigError("model", self.model.name, "the warm start makes a model: choose model=tiny")
        if self.data.kind != "wordproblems":
            raise ConfigError("data", self.data.name, "the warm start has demonstrations for data=wordproblems only")


@dataclass(frozen=True)
class EvalConfig:
    """python eval/evaluate.py"""

    __pydantic_config__ = FORBID
    checkpoint: Text
    benchmark: str
    split: Literal["validation", "test"]
    temperature: NonNegative
    samples: Count
    limit: Count | None
    out: Text | None
    seed: Seed
    device: Device
    threads: Threads | None
    model: Model
    data: Data
    prompt: Prompt
    rollout: Rollout
    eval: Evaluation

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError("samples", self.samples, "must be 1 at temperature=0: every draw would be the same")
        needs_device(self.device, self.model)


@dataclass(frozen=True)
class StudyConfig:
    """python experiments/reproduce.py and experiments/report.py"""

    __pydantic_config__ = FORBID
    study: str
    scale: Literal["cpu", "paper"]
    launcher: Literal["local", "slurm"]
    jobs: Count
    """Runs at a time on this machine."""
    results: str
    runs: str
    models: str
    rollout: Literal["vllm", "hf"]
    tracking: Literal["online", "offline", "none"]
    cell: Whole | None
    """Run this one cell alone, by its number in the study; null: all."""
    start_only: Flag
    """Make and evaluate what the cells start from, and stop."""
    overrides: tuple[str, ...]
    """Train settings added to every cell, as on the command line of pspo.train."""


def needs_device(device: Device, model: Model) -> None:
    """Settings that only one kind of device can honour."""
    if device == "cpu" and model.attention == "flash_attention_2":
        raise ConfigError("model.attention", model.attention, "needs device=cuda")
