"""What each program takes: the groups of `schema.py` put together, and the checks across them.

Imports: standard library and pydantic only, like `schema.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, Strict

from pspo.config.machine import Machine
from pspo.config.schema import (
    FORBID,
    Count,
    Data,
    Device,
    Evaluation,
    Flag,
    Grading,
    Learner,
    Model,
    NonNegative,
    Positive,
    Prompt,
    Reward,
    Rollout,
    Saving,
    Seed,
    Slurm,
    Surrogate,
    Text,
    Threads,
    Tracking,
    WarmStart,
    Whole,
)
from pspo.errors import ConfigError


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
    deterministic: Flag
    """On a GPU: kernels that give the same bits each time they are run; on a CPU all do."""
    rank_timeout: Positive
    """Seconds that one rank waits for another before the run is ended (docs/performance.md)."""
    train_on: Literal["samples", "solutions"]
    """The policy's own completions, by their rewards; or the data set's worked solutions: supervised fine-tuning."""
    surrogate: Surrogate
    model: Model
    sft: WarmStart
    data: Data
    prompt: Prompt
    rollout: Rollout
    grading: Grading
    reward: Reward
    learner: Learner
    eval: Evaluation
    tracking: Tracking
    saving: Saving
    slurm: Slurm

    def __post_init__(self) -> None:
        rollout, learner = self.rollout, self.learner
        if learner.minibatch_of == "groups" and rollout.prompts % learner.minibatches:
            allowed = f"must divide rollout.prompts={rollout.prompts} where learner.minibatch_of=groups"
            raise ConfigError("learner.minibatches", learner.minibatches, allowed)
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
        if rollout.ahead and learner.correction == "none" and learner.old_log_probs == "learner":
            allowed = (
                "needs a correction for the policy that sampled: learner.correction=token, or sequence, or ratios "
            )
            raise ConfigError("rollout.ahead", True, allowed + "to that policy, learner.old_log_probs=sampler")
        if self.data.kind == "benchmark" and "train" not in self.data.splits:
            raise ConfigError("data", self.data.name, "has no training part: it can only be evaluated on")
        if self.eval.every and self.eval.validation_problems > self.data.validation:
            raise ConfigError(
                "eval.validation_problems",
                self.eval.validation_problems,
                f"data.validation={self.data.validation} are held out",
            )
        longest = rollout.max_prompt_tokens + max(rollout.max_new_tokens, self.eval.max_new_tokens)
        if learner.token_budget < (most := rollout.max_prompt_tokens + rollout.max_new_tokens):
            raise ConfigError("learner.token_budget", learner.token_budget, f"one sequence may have {most} tokens")
        if self.model.arch is not None and longest > self.model.arch.max_positions:
            raise ConfigError("model.arch.max_positions", self.model.arch.max_positions, f"needs {longest} or more")
        if self.model.path is None and self.data.kind != "wordproblems":
            raise ConfigError("model.path", None, f"a model made here speaks only word problems, not {self.data.name}")
        if self.train_on == "solutions":
            self._check_supervised()
        needs_device(self.device, self.model)

    def _check_supervised(self) -> None:
        """Settings with which the loss is not the solutions' cross-entropy, or that there are no solutions for."""
        learner, data = self.learner, self.data
        allowed = {
            "surrogate": (self.surrogate.name, "no_clip"),
            "learner.passes": (learner.passes, 1),
            "learner.kl_coef": (learner.kl_coef, 0.0),
            "learner.entropy_bonus": (learner.entropy_bonus, 0.0),
            "learner.correction": (learner.correction, "none"),
            "rollout.refill": (self.rollout.refill, 0),
            "rollout.ahead": (self.rollout.ahead, False),
        }
        for setting, (value, wanted) in allowed.items():
            if value != wanted:
                raise ConfigError(setting, value, f"must be {wanted} with train_on=solutions")
        if data.kind == "benchmark" and data.solution_field is None:
            raise ConfigError("train_on", self.train_on, f"{data.name} has no worked solutions")

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
    revision: Text | None
    """Commit of a hub checkpoint; null: the one pinned in conf/model/ for this model, or the newest."""
    benchmark: str
    split: Literal["validation", "test"]
    temperature: NonNegative | Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    samples: Count
    limit: Count | None
    out: Text | None
    """A file; {T} in it stands for the temperature."""
    overwrite: Flag
    """Sample again where the file is complete."""
    seed: Seed
    device: Device
    threads: Threads | None
    model: Model
    data: Data
    prompt: Prompt
    rollout: Rollout
    grading: Grading
    eval: Evaluation

    def __post_init__(self) -> None:
        if self.temperatures == (0.0,) and self.samples > 1:
            raise ConfigError("samples", self.samples, "must be 1 at temperature=0: every draw would be the same")
        if self.out is not None and len(self.temperatures) > 1 and "{T}" not in self.out:
            raise ConfigError("out", self.out, "names one file: for several temperatures it must hold {T}")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise ConfigError("temperature", list(self.temperatures), "names one twice")
        needs_device(self.device, self.model)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """One or several; `samples` are drawn at each but 0, where one says all."""
        return self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)


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
    submission: Text | None
    """The SLURM submission whose numbers of cells `cell` means; null: the study's as it is now."""
    only: Literal["start", "benchmarks", "tables"] | None
    """Stop after what the cells start from; or only evaluate complete runs on the benchmarks; or only make tables."""
    retry_failed: Flag
    """Submit runs that have failed by themselves as well."""
    slurm: Slurm
    overrides: tuple[str, ...]
    """Train settings added to every cell, as on the command line of pspo.train."""


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """python -m pspo.plan: a training run, and the devices that it is to run on."""

    gpu: Machine
    gpus: Annotated[int, Strict(), Field(ge=1, le=65_536)]
    prompt_tokens: Count | None
    """Of a prompt, on average; null: an eighth of the most that it may have."""
    completion_tokens: Count | None
    """Of a completion, on average; null: as many as it may have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpu.kind != self.device:
            allowed = f"is a {self.gpu.kind} device, and the run has device={self.device} (scale={self.scale})"
            raise ConfigError("gpu", self.gpu.name, allowed)
        limits = {"prompt_tokens": self.rollout.max_prompt_tokens, "completion_tokens": self.rollout.max_new_tokens}
        for setting, most in limits.items():
            if (getattr(self, setting) or 0) > most:
                raise ConfigError(setting, getattr(self, setting), f"must be at most {most}, as the run's limit is")


@dataclass(frozen=True)
class FetchConfig:
    """python -m pspo.fetch"""

    __pydantic_config__ = FORBID
    to: Text
    models: tuple[str, ...] | None
    problems: tuple[str, ...] | None


def needs_device(device: Device, model: Model) -> None:
    """Settings that only one kind of device can honour."""
    if device == "cpu" and model.attention == "varlen":
        raise ConfigError("model.attention", model.attention, "needs device=cuda")
