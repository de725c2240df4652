"""The groups of settings as plain frozen dataclasses: names, types, bounds and the checks across fields of a group.

Values are not here: they stand in `conf/*.yaml`, each with its source. A field that came after the first published runs
has a default, which is what they did: configs written before it are read with it, and at it the field is no part of a
run's identity (`pspo.config.compose.config_hash`), so that those runs keep their names.

pydantic checks a composed config against these classes (`pspo.config.compose`), and what comes out are ordinary
dataclass instances. Imports: standard library and pydantic only, so that a wrong setting is told before torch or vLLM
is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, Strict

from pspo.errors import ConfigError

Flag = Annotated[bool, Strict()]
MANY = 10**12
"""Most of anything that is counted: more is a slip, and a product of several is still a number that a float holds."""
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**63)]
Count = Annotated[int, Strict(), Field(ge=1, le=MANY)]
Threads = Annotated[int, Strict(), Field(ge=1, le=1024)]
Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, Strict(), Field(ge=0, le=MANY)]
Real = Annotated[float, Strict()]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
MOST = 1e9  # of numbers that meet ratios, which are clamped at e^20
Positive = Annotated[float, Strict(), Field(gt=0)]
Decay = Annotated[float, Strict(), Field(ge=0, lt=1)]
NonNegative = Annotated[float, Strict(), Field(ge=0)]
DType = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]
Attention = Literal["auto", "padded", "varlen"]

FORBID = ConfigDict(extra="forbid", allow_inf_nan=False)


# --- surrogate: one class a method, told apart by `name` -------------------------------------------------------------


@dataclass(frozen=True)
class NoClip:
    """r A. No settings."""

    __pydantic_config__ = FORBID
    name: Literal["no_clip"]


@dataclass(frozen=True)
class Clip:
    """min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A); clip-higher is an epsilon_high above epsilon_low."""

    __pydantic_config__ = FORBID
    name: Literal["clip"]
    epsilon_low: Annotated[float, Strict(), Field(ge=0, le=1)]
    epsilon_high: Annotated[float, Strict(), Field(ge=0, le=MOST)]
    dual: Annotated[float, Strict(), Field(gt=1)] | None
    """Dual-clip: the largest ratio that counts where A < 0; null: any."""

    def __post_init__(self) -> None:
        if self.dual is not None and self.dual <= 1 + self.epsilon_high:
            allowed = f"must be above 1 + surrogate.epsilon_high = {1 + self.epsilon_high}"
            raise ConfigError("surrogate.dual", self.dual, allowed)


@dataclass(frozen=True)
class Sigmoid:
    """(4 / tau) sigmoid(tau (r - 1)) A with tau by the sign of A."""

    __pydantic_config__ = FORBID
    name: Literal["sigmoid"]
    tau_pos: Annotated[float, Strict(), Field(gt=0, le=MOST)]
    tau_neg: Annotated[float, Strict(), Field(gt=0, le=MOST)]


@dataclass(frozen=True)
class Pspo:
    """((1 - alpha) r + alpha) A."""

    __pydantic_config__ = FORBID
    name: Literal["pspo"]
    alpha: Share


Surrogate = Annotated[NoClip | Clip | Sigmoid | Pspo, Field(discriminator="name")]


# --- reward: told apart by `name` -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """1 for a right answer, `format_bonus` for a wrong one in the format that the prompt wants, else 0."""

    __pydantic_config__ = FORBID
    name: Literal["accuracy"]
    reading: Literal["strict", "lenient", "last_number"]
    """Right where the prompt wants the answer; also where one is found elsewhere; or by the last number of the text,
    even against an answer where the prompt wants it (`pspo.grading`)."""
    format_bonus: Share
    must_end: Flag
    """0 for completions that were cut by the token limit."""


@dataclass(frozen=True)
class Format:
    """1 for an answer in the format that the prompt wants, right or wrong, in a completion that ended by itself."""

    __pydantic_config__ = FORBID
    name: Literal["format"]


@dataclass(frozen=True)
class RandomReward:
    """1 with a probability, whatever was written."""

    __pydantic_config__ = FORBID
    name: Literal["random"]
    probability: Share


Reward = Annotated[Accuracy | Format | RandomReward, Field(discriminator="name")]


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
class Lora:
    """Low-rank adapters on linear layers: W + (alpha / rank) B A, with A and B learned and W frozen.

    There is no dropout: the log-probs that a ratio compares would come from two differently thinned policies, and the
    ratios of the first update would not be 1.
    """

    __pydantic_config__ = FORBID
    rank: Count
    alpha: Positive
    targets: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Last parts of the names of the layers to adapt, such as q_proj; or `all-linear`: all but the output head."""

    def __post_init__(self) -> None:
        if "all-linear" in self.targets and len(self.targets) > 1:
            raise ConfigError("model.lora.targets", list(self.targets), "all-linear stands alone")
        if frozen := [target for target in self.targets if target.split(".")[-1] in ("lm_head", "embed_tokens")]:
            raise ConfigError(
                "model.lora.targets", frozen[0], "embedding and output head take no adapter: leave it out"
            )


@dataclass(frozen=True)
class Model:
    """A checkpoint directory or hub id (`path`), or an architecture to warm-start here (`arch`); one of the two."""

    __pydantic_config__ = FORBID
    name: str
    path: Text | None
    revision: Text | None
    arch: Architecture | None
    dtype: DType
    attention: Attention
    """The learner's kernel: varlen (flash attention over ragged sequences: CUDA, bfloat16), padded
    (scaled_dot_product_attention on rows of equal length), auto: varlen where it can be had."""
    lora: Lora | None
    """Learn adapters instead of the weights themselves; null: all weights."""
    compile: Flag = False
    """Have torch compile the layers of the learner's forward and backward pass; needs a C++ compiler, or Triton."""

    def __post_init__(self) -> None:
        if self.path is None and self.arch is None:
            raise ConfigError("model.path", None, "name a checkpoint directory or hub id, or give model.arch")
        if self.attention == "varlen" and self.dtype == "float32":
            raise ConfigError("model.attention", self.attention, "needs model.dtype=bfloat16")


@dataclass(frozen=True)
class WordProblems:
    """The built-in small world: templated word problems, made from `seed`; sizes are numbers of problems."""

    __pydantic_config__ = FORBID
    kind: Literal["wordproblems"]
    name: str
    seed: Seed
    levels: Annotated[tuple[Literal[2, 3, 4], ...], Field(min_length=1)]
    max_value: Annotated[int, Strict(), Field(ge=20, le=MANY)]
    distractor_share: Share
    train: Count
    validation: Count
    test: Count


Part = Literal["train", "test"]
"""Of a published data set. The validation problems are taken from the training part."""


@dataclass(frozen=True)
class Benchmark:
    """A published data set, from the hub or from local files of the same field names (`path`: their directory)."""

    __pydantic_config__ = FORBID
    kind: Literal["benchmark"]
    name: str
    hub: Text
    subset: str | None
    revision: str | None
    """Commit of the hub's repository; null: its newest."""
    path: str | None
    """Directory of <split>.jsonl or <split>.parquet; null: from the hub."""
    splits: dict[Part, Text]
    """The source's name of the split behind each part."""
    rows: dict[Part, Count] | None
    """Rows that each part must have; null: any number, as for files of one's own."""
    question: Text
    """Template over a row's fields, such as "{Body} {Question}"."""
    gold_field: str
    gold_from: Literal["after_hashes", "last_box", "field", "number_with_unit"]
    solution_field: str | None
    """The worked solution, for demonstrations in a few-shot prompt."""
    level_field: str | None
    subject_field: str | None
    validation: Whole
    """Problems taken from the end of the shuffled training part; 0: none."""
    split_seed: Seed | None
    """Seed of that shuffle; null: the run's seed, as the released code does."""

    def __post_init__(self) -> None:
        if "test" not in self.splits:
            raise ConfigError("data.splits", self.splits, "must name the split behind `test`")
        if self.validation and "train" not in self.splits:
            raise ConfigError("data.validation", self.validation, f"must be 0: {self.name} has no training part")


Data = Annotated[WordProblems | Benchmark, Field(discriminator="kind")]


@dataclass(frozen=True)
class Shot:
    """A demonstration: a question and how it is answered."""

    __pydantic_config__ = FORBID
    question: Text
    answer: Text


@dataclass(frozen=True)
class Prompt:
    """How a question becomes token ids, and which answer format the grader expects of the completion."""

    __pydantic_config__ = FORBID
    name: str
    chat: Flag
    """Put the text into the model's chat template, as a user's turn, and open the assistant's."""
    chat_template: Text | None
    """A Jinja template instead of the tokenizer's own, for tokenizers that have none."""
    system: str | None
    template: str
    """The question's text; "{question}" stands for the question."""
    shots: tuple[Shot, ...]
    """Demonstrations that go before the question."""
    train_shots: Whole
    """Demonstrations taken from the data set: its first so many training rows that have a solution."""
    shot: str
    """What follows the question in a demonstration, up to the next question; "{answer}" stands for the answer. In a
    chat the two are turns, and this is not used."""
    stop: tuple[Text, ...]
    """Strings that end a completion, beside EOS; the text from the first of them on is cut off."""
    style: Literal["gsm8k", "math"]

    def __post_init__(self) -> None:
        if self.template.count("{question}") != 1:
            raise ConfigError("prompt.template", repr(self.template), "must contain {question} exactly once")
        if self.shot.count("{answer}") != 1:
            raise ConfigError("prompt.shot", repr(self.shot), "must contain {answer} exactly once")
        for field in ("system", "chat_template"):
            if getattr(self, field) is not None and not self.chat:
                raise ConfigError(f"prompt.{field}", repr(getattr(self, field)), "needs prompt.chat=true")
        if self.shots and self.train_shots:
            raise ConfigError("prompt.train_shots", self.train_shots, "must be 0 beside prompt.shots")


# --- rollout, learner, evaluation, tracking --------------------------------------------------------------------------


@dataclass(frozen=True)
class Vllm:
    """Settings of the vLLM engine alone."""

    __pydantic_config__ = FORBID
    kv_cache_gib: Count
    """Memory of the KV cache on a CPU, GiB."""
    gpu_memory_utilization: Annotated[float, Strict(), Field(gt=0, le=1)] | None
    """Share of a GPU's memory for the engine: weights and KV cache; null: what it needs beside the learner
    (`pspo.plan`), or nearly all where there is none."""
    enforce_eager: Flag
    max_sequences: Count
    """Most sequences decoded at once."""
    tensor_parallel: Count = 1
    """Ranks that share one engine, and a copy of the weights, for policies of which a device does not hold one."""
    sleep: Flag = False
    """The engine gives back a GPU's memory, weights and keys and values, while the learner learns."""


@dataclass(frozen=True)
class Rollout:
    """What is sampled in a step, and by which engine."""

    __pydantic_config__ = FORBID
    engine: Literal["vllm", "hf"]
    vllm: Vllm | None
    dtype: DType
    prompts: Count
    group_size: Annotated[int, Strict(), Field(ge=2, le=MANY)]
    temperature: Annotated[float, Strict(), Field(ge=1e-3, le=1e3)]
    top_p: Annotated[float, Strict(), Field(gt=0, le=1)]
    max_prompt_tokens: Count
    max_new_tokens: Count
    refill: Whole
    """Times that groups without signal are replaced by those of other problems before a step learns; 0: never."""
    max_gap: Positive
    """Largest mean |r - 1| between sampler and learner on the first batch and on the first with new weights; above it
    the run stops."""
    ahead: Flag = False
    """Sample the next step's completions while this one is learned from: their policy is one step older."""

    def __post_init__(self) -> None:
        if self.engine == "vllm" and self.vllm is None:
            raise ConfigError("rollout.vllm", None, "rollout.engine=vllm needs its settings: choose rollout=vllm")
        if self.ahead and self.vllm is not None and self.vllm.sleep:
            raise ConfigError("rollout.ahead", True, "needs rollout.vllm.sleep=false: the engine samples meanwhile")
        if self.ahead and self.vllm is not None and self.vllm.tensor_parallel > 1:
            allowed = "needs rollout.vllm.tensor_parallel=1: ranks cannot exchange for two purposes at once"
            raise ConfigError("rollout.ahead", True, allowed)

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
    minibatch_of: Literal["groups", "samples"]
    """What is dealt into minibatches: whole groups, or their completions one by one."""
    token_budget: Count
    """Most tokens of a pack, the part of a minibatch that goes through the model at once; changes memory and speed,
    never the gradient beyond rounding."""
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
    """Leave out groups whose rewards are all equal, where they give no gradient: their advantages are zero, and only a
    KL term or an entropy bonus would have one. They would dilute the mean: `normalise` counts what is left."""
    old_log_probs: Literal["learner", "sampler"]
    """Whose log-probs stand in the denominator of the ratios."""
    ratio_level: Literal["token", "sequence"]
    """Ratios of tokens, or for each token that of its sequence: exp of the mean log-ratio (GSPO)."""
    kl_coef: NonNegative
    """Weight of the KL to the starting policy; 0: no such term, and no second model in memory."""
    kl_estimator: Literal["k1", "k2", "k3"]
    entropy_bonus: Real
    """Weight of the policy's entropy, which is raised by a positive one."""
    correction: Literal["none", "token", "sequence"]
    """Importance weights for a sampler that is not the learner's old policy, truncated at correction_cap."""
    correction_cap: Annotated[float, Strict(), Field(ge=1, le=MOST)]
    gradient_checkpointing: Flag
    offload_optimizer: Flag = False
    """Keep the optimiser's moments in the host's memory; they come to the device for their update. The same bits."""

    def __post_init__(self) -> None:
        if self.correction != "none" and self.old_log_probs == "sampler":
            allowed = "needs learner.old_log_probs=learner: against the sampler's log-probs there is nothing to correct"
            raise ConfigError("learner.correction", self.correction, allowed)
        if self.offload_optimizer and self.optimizer == "sgd":
            allowed = "needs learner.optimizer=adamw: sgd has no moments to keep"
            raise ConfigError("learner.offload_optimizer", self.offload_optimizer, allowed)


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
    chunk: Count
    """Problems of the test part that are sampled and saved together: an interrupted evaluation loses less than that."""


@dataclass(frozen=True)
class Grading:
    """The processes that compare answers for which numbers and strings are not enough (`style: math`)."""

    __pydantic_config__ = FORBID
    workers: Count
    timeout: Positive
    """Seconds of processor time that one comparison may take."""


@dataclass(frozen=True)
class Tracking:
    """Where a run is written beside its metrics.jsonl, which is always written."""

    __pydantic_config__ = FORBID
    wandb: Literal["online", "offline", "none"]
    project: str
    group: str | None
    tags: tuple[str, ...]
    timeout: Positive
    """Seconds that a run waits for W&B's server at its start, and at its end; after them it goes on without."""
    progress: Flag


@dataclass(frozen=True)
class Saving:
    """When a training run saves what its next step depends on, and how much of it is kept."""

    __pydantic_config__ = FORBID
    every: Count
    """Steps between checkpoints. The best step, the last, and that after which a run is told to stop are saved too."""
    keep: Count
    """The newest ones that are kept, beside the best."""


def minutes(limit: str | int) -> int:
    """A time limit as sbatch writes it, in minutes, which submitit wants; a part of one counts as one.

    >>> [minutes(limit) for limit in (90, "90:30", "24:00:00", "2-12", "1-00:00:01")]
    [90, 91, 1440, 3600, 1441]
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(limit))
    parts = [int(part) for part in found.groups()[1:] if part is not None] if found else []
    if found and found[1] is None and len(parts) < 3:
        parts = [0, *parts]  # minutes, or minutes:seconds
    days, (hours, mins, seconds) = int((found and found[1]) or 0), (*parts, 0, 0, 0)[:3]
    total = -(-(((days * 24 + hours) * 60 + mins) * 60 + seconds) // 60)
    if not total:
        raise ConfigError("slurm.time", limit, "must be a limit above zero as sbatch writes it, such as 90 or 24:00:00")
    return total


@dataclass(frozen=True)
class Slurm:
    """What a job asks of a SLURM cluster; null leaves it to the cluster's defaults."""

    __pydantic_config__ = FORBID
    partition: Text | None
    account: Text | None
    qos: Text | None
    time: Text | Count
    """Limit of one attempt, as sbatch takes it: minutes, or [days-]hours:minutes:seconds."""
    nodes: Count
    tasks_per_node: Count
    """Ranks on a node."""
    gpus_per_task: Whole
    cpus_per_task: Count
    memory: Text | None
    """Of a node, as sbatch takes it."""
    warn_s: Count
    """Seconds before the limit at which SLURM warns the job (SIGUSR1), which then saves."""
    max_requeues: Whole
    """Times that a job is sent back to the queue by itself."""
    container: Text | None
    """An apptainer image to run in; null: .venv."""
    extra: tuple[Text, ...]
    """More options of sbatch."""

    def __post_init__(self) -> None:
        if self.warn_s >= 60 * minutes(self.time):
            raise ConfigError("slurm.warn_s", self.warn_s, f"must be less than slurm.time={self.time}: in seconds")


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
