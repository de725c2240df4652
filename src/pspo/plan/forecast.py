"""A run on some devices: does it fit, what to change if it does not, how long it takes, how far it scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pspo.config import TrainConfig, schema
from pspo.config.machine import Machine
from pspo.plan.memory import CONTEXT, SPARE, Learning, Lengths, Sampling, learning, packs_of, sampling
from pspo.plan.shapes import Shape
from pspo.plan.speed import Step, rollout_s, step_of

GIB = 1 << 30


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
    def needed(self) -> int:
        spare = int(SPARE * self.learner.peak) if self.machine.kind == "cuda" else 0
        return self.learner.peak + spare + self.engine.total + CONTEXT[self.machine.kind]

    @property
    def available(self) -> int:
        return int(self.machine.memory_gib * self.machine.utilisation * GIB)

    @property
    def fits(self) -> bool:
        return self.needed <= self.available

    @property
    def engine_share(self) -> float:
        """Of the device's memory that the engine needs: the least rollout.vllm.gpu_memory_utilization."""
        return self.engine.total / (self.machine.memory_gib * GIB)

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

    def evaluation_s(self, completions: int) -> float:
        """Of so many completions, each as long as it may be, dealt to all engines."""
        if not completions:
            return 0.0
        longest = replace(self.lengths, completion=self.cfg.eval.max_new_tokens)
        mine = -(-completions // self.ranks)
        return rollout_s(self.cfg, self.shape, self.machine, mine, longest)

    @property
    def checkpoint_bytes(self) -> int:
        """On the disk at a time: those that are kept, the best and one being written; weights and moments in fp32."""
        return (self.cfg.saving.keep + 2) * (self.learner.weights + self.learner.moments) * self.ranks


def forecast(cfg: TrainConfig, shape: Shape, machine: Machine, ranks: int, lengths: Lengths) -> Forecast:
    """`lengths`: of prompts and completions on average; memory is counted for completions as long as they may be."""
    most = Lengths(lengths.prompt, cfg.rollout.max_new_tokens)
    longest = cfg.rollout.max_prompt_tokens + max(cfg.rollout.max_new_tokens, cfg.eval.max_new_tokens)
    return Forecast(
        cfg=cfg,
        shape=shape,
        machine=machine,
        ranks=ranks,
        lengths=lengths,
        learner=learning(cfg, shape, ranks, *packs_of(cfg, most, ranks)),
        engine=sampling(cfg, shape, ranks, longest),
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
    """Settings with which a run that does not fit does, and its forecast: smaller packs, layers computed twice, and
    each of these on more devices, up to as many as hold it as it is."""
    inner = plan.cfg.learner
    smallest = plan.cfg.rollout.max_prompt_tokens + plan.cfg.rollout.max_new_tokens
    budgets = [inner.token_budget, *(b for b in (8192, 4096, 2048) if smallest <= b < inner.token_budget)]
    for ranks in (plan.ranks * factor for factor in (1, 2, 4, 8, 16)):
        for again in (False, True):
            for budget in budgets:  # the largest packs that do
                learner = replace(inner, token_budget=budget)
                learner = replace(learner, gradient_checkpointing=True) if again else learner
                cfg = replace(plan.cfg, learner=learner)
                if not (found := forecast(cfg, plan.shape, plan.machine, ranks, plan.lengths)).fits:
                    continue
                changed = [
                    f"gpus={ranks}" if ranks != plan.ranks else "",
                    "learner.gradient_checkpointing=true" if again else "",
                    f"learner.token_budget={budget}" if budget != inner.token_budget else "",
                ]
                yield " ".join(filter(None, changed)), found
                if learner == inner:
                    return
                break
