"""A run on some devices: does it fit, what to change if it does not, how long it takes, how far it scales."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pspo.config import TrainConfig, schema
from pspo.config.machine import Machine
from pspo.errors import ConfigError
from pspo.plan.memory import (
    CUDA_CONTEXT,
    FP32,
    SPARE,
    Learning,
    Lengths,
    Sampling,
    fullest_pack,
    learned_parameters,
    learning,
    moments,
    ranks_per_engine,
    sampling,
)
from pspo.plan.shapes import Shape, check_shared
from pspo.plan.speed import Step, rollout_s, step_of

GIB = 1 << 30
MOST_DEVICES = 65_536
ENGINE_SPARE = GIB // 2
"""What vLLM counts as its own beside weights, cache and a step's work. Assumed."""
ASLEEP = GIB // 2
"""What an engine keeps of a GPU while it sleeps. Assumed."""


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
        return self._allocated(self.learner.peak)

    def _allocated(self, tensors: int) -> int:
        return tensors + (int(SPARE * tensors) if self.machine.kind == "cuda" else 0)

    @property
    def sleeps(self) -> bool:
        """Does the engine give its memory back while the learner learns?"""
        vllm = self.cfg.rollout.vllm if self.cfg.rollout.engine == "vllm" and self.machine.kind == "cuda" else None
        return vllm is not None and vllm.sleep

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
        """At the fullest of two times, where the engine sleeps: it samples beside what the learner holds between
        updates, or the learner learns. Else of both together."""
        engine = int(self.engine_share * self.machine.memory_gib * GIB)
        both = self.learner_bytes + engine
        if self.sleeps:
            both = max(self.learner_bytes + ASLEEP, self._allocated(self.learner.held) + engine)
        return both + (CUDA_CONTEXT if self.machine.kind == "cuda" else 0)

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
        mine = -(-problems * ranks_per_engine(self.cfg) // self.ranks)
        return rollout_s(self.cfg, self.shape, self.machine, mine, completions, longest)

    @property
    def host_bytes(self) -> int:
        """Of the host's memory, for each device's process of several: the policy while it is loaded, and the reference
        beside it; or the moments that are kept there, which torch page-locks in powers of two: at most twice these."""
        copies = 2 if self.learner.reference else 1
        loading = copies * FP32 * self.shape.total if self.ranks > 1 and self.machine.kind == "cuda" else 0
        return max(loading, self.learner.away)

    @property
    def checkpoint_bytes(self) -> int:
        """On the disk at a time: those that are kept, the best and one being written; weights and moments in fp32."""
        learned = moments(self.cfg, learned_parameters(self.cfg, self.shape))
        return (self.cfg.saving.keep + 2) * (self.learner.weights * self.ranks + learned)


def forecast(cfg: TrainConfig, shape: Shape, machine: Machine, ranks: int, lengths: Lengths) -> Forecast:
    """`lengths`: of prompts and completions on average; memory is counted for completions as long as they may be.

    Raises ConfigError where the ranks do not divide among engines.
    """
    if ranks % (each := ranks_per_engine(cfg)):
        raise ConfigError("rollout.vllm.tensor_parallel", each, f"must divide the number of devices, which is {ranks}")
    check_shared(shape, each)
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
    """Settings with which a run that does not fit does, and its forecast: what the engine needs and no more, an engine
    that sleeps, layers computed twice, moments in the host's memory, smaller packs, an engine over several devices. On
    as many devices as there are, and on more, up to as many as hold it with its own settings; nothing is changed that
    it fits without."""
    factors = (1, 2, 4, 8, 16) if plan.machine.kind == "cuda" else (1,)  # ranks on a CPU share its memory
    for ranks in (plan.ranks * factor for factor in factors if plan.ranks * factor <= MOST_DEVICES):
        enough: list[tuple[bool, ...]] = []
        for changes in sorted(_choices(plan.cfg), key=sum):
            if any(all(change or not made for change, made in zip(changes, before, strict=True)) for before in enough):
                continue  # with fewer it fits already
            for found in _with(plan, ranks, *changes):
                if found.fits:
                    enough.append(changes)
                    yield _changed(plan, found), found
                    break
        if (False, False, False) in enough:
            return


def _choices(cfg: TrainConfig) -> list[tuple[bool, bool, bool]]:
    """Of an engine that sleeps, layers computed twice and offloaded moments, what can be changed."""
    sleep = cfg.rollout.engine == "vllm" and cfg.device == "cuda" and not cfg.rollout.ahead
    offload = cfg.learner.optimizer == "adamw" and cfg.device == "cuda"
    return list(itertools.product((False, True)[: 1 + sleep], (False, True), (False, True)[: 1 + offload]))


def _with(plan: Forecast, ranks: int, sleep: bool, again: bool, offload: bool) -> Iterator[Forecast]:
    """Forecasts with these changes: engines of as few devices, and packs as large, as can be first."""
    inner, vllm = plan.cfg.learner, plan.cfg.rollout.vllm
    together = [1] if vllm is None else [n for n in (1, 2, 4, 8) if n >= vllm.tensor_parallel and not ranks % n]
    for each, share, budget in itertools.product(together, _shares(plan.cfg), _budgets(plan.cfg)):
        try:
            check_shared(plan.shape, each)
        except ConfigError:
            continue
        if plan.cfg.rollout.ahead and each > 1:
            continue
        learner = replace(
            inner,
            token_budget=budget,
            gradient_checkpointing=inner.gradient_checkpointing or again,
            offload_optimizer=inner.offload_optimizer or offload,
        )
        rollout = plan.cfg.rollout
        if vllm is not None:
            engine = replace(vllm, gpu_memory_utilization=share, sleep=vllm.sleep or sleep, tensor_parallel=each)
            rollout = replace(rollout, vllm=engine)
        cfg = replace(plan.cfg, learner=learner, rollout=rollout)
        yield forecast(cfg, plan.shape, plan.machine, ranks, plan.lengths)


def fitting(plan: Forecast) -> Forecast | None:
    """The plan where it fits, else with the first remedy; None where there is none."""
    return plan if plan.fits else next((found for _, found in remedies(plan)), None)


def _budgets(cfg: TrainConfig) -> list[int]:
    smallest, now = cfg.rollout.max_prompt_tokens + cfg.rollout.max_new_tokens, cfg.learner.token_budget
    return [now, *(budget for budget in (8192, 4096, 2048) if smallest <= budget < now)]


def _shares(cfg: TrainConfig) -> list[float | None]:
    share = None if cfg.rollout.vllm is None else cfg.rollout.vllm.gpu_memory_utilization
    return list(dict.fromkeys((None, share)))


def _changed(plan: Forecast, found: Forecast) -> str:
    """What to type."""
    before, after = _settings(plan), _settings(found)
    return " ".join(f"{name}={value}" for name, value in after.items() if value != before[name])


def _settings(plan: Forecast) -> dict[str, str]:
    """Those that remedies change."""
    inner, vllm = plan.cfg.learner, plan.cfg.rollout.vllm
    found: dict[str, object] = {"gpus": plan.ranks}
    if vllm is not None:
        found |= {
            "rollout.vllm.gpu_memory_utilization": vllm.gpu_memory_utilization,
            "rollout.vllm.sleep": vllm.sleep,
            "rollout.vllm.tensor_parallel": vllm.tensor_parallel,
        }
    found |= {
        "learner.gradient_checkpointing": inner.gradient_checkpointing,
        "learner.offload_optimizer": inner.offload_optimizer,
        "learner.token_budget": inner.token_budget,
    }
    return {name: "null" if value is None else str(value).lower() for name, value in found.items()}
