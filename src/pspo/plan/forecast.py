"""A run on some devices: does it fit, what to change if it does not, how long it takes, how far it scales."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pspo.config import TrainConfig, schema
from pspo.config.machine import Machine
from pspo.plan.memory import CUDA_CONTEXT, SPARE, Learning, Lengths, Sampling, fullest_pack, learning, sampling
from pspo.plan.shapes import Shape
from pspo.plan.speed import Step, rollout_s, step_of

GIB = 1 << 30
MOST_DEVICES = 65_536
ENGINE_SPARE = GIB // 2
"""What vLLM counts as its own beside weights, cache and a step's work. Assumed."""


@dataclass(frozen=True)
class Forecast:
    """Of one run over `ranks` devices; bytes of the fullest of them, seconds of a step."""

    cfg: TrainConfig
    shape: Shape
    machine: Machine
    ranks: int
    lengths: Lengths
    learner: Learning
    engine: Sampling
    step: Step

    @property
    def learner_bytes(self) -> int:
        """With what the allocator holds beside its tensors, on a GPU."""
        return self.learner.peak + (int(SPARE * self.learner.peak) if self.machine.kind == "cuda" else 0)

    @property
    def given_share(self) -> float | None:
        """rollout.vllm.gpu_memory_utilization, where it counts and is not left open."""
        vllm = self.cfg.rollout.vllm if self.cfg.rollout.engine == "vllm" and self.machine.kind == "cuda" else None
        return None if vllm is None else vllm.gpu_memory_utilization

    @property
    def engine_share(self) -> float:
        """Of the device's memory that the engine takes from the start to the end: on a GPU vLLM what it is given, or
        what it needs, in hundredths."""
        if self.given_share is not None:
            return self.given_share
        memory = self.machine.memory_gib * GIB
        if self.machine.kind == "cuda" and self.cfg.rollout.engine == "vllm":
            return math.ceil(100 * (self.engine.total + ENGINE_SPARE) / memory) / 100
        return self.engine.total / memory

    @property
    def engine_fits(self) -> bool:
        """In the share that it is given."""
        return self.given_share is None or self.engine.total <= self.given_share * self.machine.memory_gib * GIB

    @property
    def needed(self) -> int:
        engine = int(self.engine_share * self.machine.memory_gib * GIB)
        return self.learner_bytes + engine + (CUDA_CONTEXT if self.machine.kind == "cuda" else 0)

    @property
    def available(self) -> int:
        return int(self.machine.memory_gib * self.machine.utilisation * GIB)

    @property
    def fits(self) -> bool:
        return self.needed <= self.available and self.engine_fits

    @property
    def completions_per_s(self) -> float:
        return self.cfg.rollout.sequences / self.step.total

    @property
    def hours(self) -> float:
        """Of the whole run: start, steps, validations and the test part at the end, of its last and best policy."""
        ends = self.cfg.eval
        test = (problems_of(self.cfg.data, ends.test_problems) or 0) if ends.at_end else 0
        seconds = self.machine.start_s + self.cfg.steps * self.step.total
        seconds += validations_of(self.cfg) * self.evaluation_s(ends.validation_problems) + 2 * self.evaluation_s(test)
        return seconds / 3600

    def evaluation_s(self, problems: int, completions: int = 1) -> float:
        """Of so many completions of each problem, each as long as it may be, dealt to all engines."""
        longest = replace(self.lengths, completion=self.cfg.eval.max_new_tokens)
        mine = -(-problems // self.ranks)
        return rollout_s(self.cfg, self.shape, self.machine, mine, completions, longest)

    @property
    def checkpoint_bytes(self) -> int:
        """On the disk at a time: those that are kept, the best and one being written; weights and moments in fp32."""
        return (self.cfg.saving.keep + 2) * (self.learner.weights + self.learner.moments) * self.ranks


def forecast(cfg: TrainConfig, shape: Shape, machine: Machine, ranks: int, lengths: Lengths) -> Forecast:
    """`lengths`: of prompts and completions on average; memory is counted for completions as long as they may be."""
    return Forecast(
        cfg=cfg,
        shape=shape,
        machine=machine,
        ranks=ranks,
        lengths=lengths,
        learner=learning(cfg, shape, ranks, *fullest_pack(cfg, lengths, ranks)),
        engine=sampling(cfg, shape, ranks),
        step=step_of(cfg, shape, machine, ranks, lengths),
    )


def problems_of(data: schema.Data, limit: int | None) -> int | None:
    """Of a test part; None where the data set's file does not say."""
    size = data.test if isinstance(data, schema.WordProblems) else (data.rows or {}).get("test")
    return size if limit is None or size is None else min(size, limit)


def validations_of(cfg: TrainConfig) -> int:
    """Before the first step, every `eval.every` steps, and after the last."""
    return 1 + -(-cfg.steps // cfg.eval.every) if cfg.eval.every else 0


def lengths_of(cfg: TrainConfig, prompt: int | None = None, completion: int | None = None) -> Lengths:
    """What is assumed where nothing is known: prompts an eighth of the most, completions the most they may have."""
    return Lengths(prompt or max(1, cfg.rollout.max_prompt_tokens // 8), completion or cfg.rollout.max_new_tokens)


def remedies(plan: Forecast) -> Iterator[tuple[str, Forecast]]:
    """Settings with which a run that does not fit does, and its forecast: what the engine needs and no more, smaller
    packs, layers computed twice, and each of these on more devices, up to as many as hold it with its own."""
    for ranks in (plan.ranks * factor for factor in (1, 2, 4, 8, 16) if plan.ranks * factor <= MOST_DEVICES):
        for share in _shares(plan.cfg):
            for again in dict.fromkeys((plan.cfg.learner.gradient_checkpointing, True)):
                for budget in _budgets(plan.cfg):  # the largest packs that do
                    learner = replace(plan.cfg.learner, token_budget=budget, gradient_checkpointing=again)
                    cfg = replace(plan.cfg, learner=learner, rollout=_with_share(plan.cfg.rollout, share))
                    found = forecast(cfg, plan.shape, plan.machine, ranks, plan.lengths)
                    if found.fits:
                        yield _changed(plan, found), found
                        if learner == plan.cfg.learner:
                            return
                        break


def fitting(plan: Forecast) -> Forecast | None:
    """The plan where it fits, else with the first remedy; None where there is none."""
    return plan if plan.fits else next((found for _, found in remedies(plan)), None)


def _budgets(cfg: TrainConfig) -> list[int]:
    smallest, now = cfg.rollout.max_prompt_tokens + cfg.rollout.max_new_tokens, cfg.learner.token_budget
    return [now, *(budget for budget in (8192, 4096, 2048) if smallest <= budget < now)]


def _shares(cfg: TrainConfig) -> list[float | None]:
    share = None if cfg.rollout.vllm is None else cfg.rollout.vllm.gpu_memory_utilization
    return list(dict.fromkeys((None, share)))


def _with_share(rollout: schema.Rollout, share: float | None) -> schema.Rollout:
    return (
        rollout if rollout.vllm is None else replace(rollout, vllm=replace(rollout.vllm, gpu_memory_utilization=share))
    )


def _changed(plan: Forecast, found: Forecast) -> str:
    """What to type."""
    before, after = plan.cfg, found.cfg
    return " ".join(
        filter(
            None,
            [
                f"gpus={found.ranks}" if found.ranks != plan.ranks else "",
                "rollout.vllm.gpu_memory_utilization=null" if after.rollout != before.rollout else "",
                "learner.gradient_checkpointing=true"
                if after.learner.gradient_checkpointing != before.learner.gradient_checkpointing
                else "",
                f"learner.token_budget={after.learner.token_budget}"
                if after.learner.token_budget != before.learner.token_budget
                else "",
            ],
        )
    )
