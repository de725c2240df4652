"""What a program does before its work: threads, device, where a policy starts, which problems fit."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.utils import logging as transformers_logging

from pspo.checkpoint import verify_policy
from pspo.config import TrainConfig, config_hash, load_yaml, schema, warm_start_dir
from pspo.config.compose import CONF, NOT_IN_RUN_ID
from pspo.config.machine import Machine
from pspo.data import Prompter, load_problems, load_report
from pspo.errors import ConfigError, PspoError
from pspo.evalfile import problems_digest, weights_digest
from pspo.evaluation import prompts_of
from pspo.models import local_checkpoint
from pspo.plan.forecast import GIB, forecast, lengths_of, remedies
from pspo.plan.shapes import Shape, read_shape
from pspo.ranks import Ranks
from pspo.types import Problem

UNPLANNED = 0.4
"""Share of a GPU for the engine beside a learner whose memory is not known."""


def prepare(device: str, threads: int | None, deterministic: bool = False) -> None:
    """Sets the number of CPU threads of this process, for libraries loaded later too (None leaves it), and whether a
    GPU has to give the same bits each time; checks that the device is there. Before anything is computed on a GPU."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", device, "torch sees no CUDA device on this machine")
    if device == "cuda":
        # An operation that has no such kernel raises RuntimeError, and names itself.
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if deterministic:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it with its first product


def starting_checkpoint(cfg: TrainConfig) -> str:
    """Directory of the policy that training starts from; raises PspoError where the warm start has not been made, or a
    run's checkpoint is damaged."""
    if cfg.model.path is not None:
        directory = local_checkpoint(cfg.model.path, cfg.model.revision)
        verify_policy(Path(directory))
        return directory
    made = warm_start_dir(cfg)
    if not (made / "DONE").exists():
        raise PspoError(f"model={cfg.model.name} has no warm start at {made}: make it with `python -m pspo.sft`")
    return str(made)


def known_shape(checkpoint: str) -> Shape | None:
    """Of a policy that is counted (pspo.plan.shapes)."""
    try:
        return read_shape(Path(checkpoint) / "config.json")
    except PspoError:
        return None


def planned(cfg: TrainConfig, checkpoint: str, ranks: Ranks, memory_gib: float) -> schema.Rollout:
    """The run's settings of sampling, with the engine's share of a GPU of so much memory where they leave it open.

    The first rank says what is planned. Raises ConfigError where the run does not fit, with what would; where the
    engine's share was given by hand, or the policy is of a kind that is not counted, it is only said.
    """

    def say(text: str) -> None:
        if ranks.first:
            print(f"pspo: {text}", file=sys.stderr, flush=True)

    machine = replace(load_yaml(CONF / "gpu" / "h100.yaml", Machine), memory_gib=memory_gib)  # its rates are not used
    try:
        shape = read_shape(Path(checkpoint) / "config.json")
    except PspoError as error:
        say(f"memory is not planned: {error}")
        return _with_share(cfg.rollout, UNPLANNED)
    plan = forecast(cfg, shape, machine, ranks.size, lengths_of(cfg))
    sizes = f"{plan.needed / GIB:.1f} GiB of {memory_gib:.1f} on each GPU"
    if not plan.fits:
        found = next((f"with {settings}" for settings, _ in remedies(plan)), "with a smaller policy alone")
        if plan.given_share is None:
            anyway = "rollout.vllm.gpu_memory_utilization=<share of the engine> runs it anyway"
            allowed = f"the plan is {sizes}; it fits {found}; {anyway} (docs/scaling.md)"
            raise ConfigError("learner.token_budget", cfg.learner.token_budget, allowed)
        say(f"by the plan this run does not fit ({sizes}); it would {found}")
    say(f"{sizes} planned: learner {plan.learner_bytes / GIB:.1f}, engine {plan.engine_share * memory_gib:.1f}")
    return _with_share(cfg.rollout, plan.engine_share)


def _with_share(rollout: schema.Rollout, share: float) -> schema.Rollout:
    """Where it is left open."""
    if rollout.vllm is None or rollout.vllm.gpu_memory_utilization is not None:
        return rollout
    return replace(rollout, vllm=replace(rollout.vllm, gpu_memory_utilization=share))


@dataclass(frozen=True)
class Parts:
    """The problems of a run: to train on, to choose the best policy by, and to report."""

    train: Sequence[Problem]
    validation: Sequence[Problem]
    test: Sequence[Problem]


def load_parts(cfg: TrainConfig, prompter: Prompter) -> Parts:
    """The problems of a run in a fixed order.

    Training and validation problems that the prompt demonstrates are left out, and those with too long a prompt, which
    are counted. Of the test part none is left out: raises ConfigError where one does not fit, now rather than at the
    run's end.
    """
    load, ends, longest = partial(load_problems, cfg.data, seed=cfg.seed), cfg.eval, cfg.rollout.max_prompt_tokens
    test = load("test")[: ends.test_problems] if ends.at_end else ()
    parts = Parts(load("train"), load("validation")[: ends.validation_problems], test)
    if isinstance(cfg.data, schema.WordProblems):
        return parts  # made on demand, and short
    prompts_of(test, prompter, longest)
    shown = {shot.question for shot in prompter.shots}
    train, validation = (
        fitting([problem for problem in problems if problem.question not in shown], prompter, longest, part)
        for part, problems in (("train", parts.train), ("validation", parts.validation))
    )
    return Parts(train, validation, test)


def origins(cfg: TrainConfig, checkpoint: str, parts: Parts) -> dict[str, str]:
    """Digests of what a run is made from: its settings, and files, which may change under their names."""
    found = {"the settings": config_hash(cfg, NOT_IN_RUN_ID), "the starting policy": weights_digest(Path(checkpoint))}
    if not isinstance(cfg.data, schema.WordProblems):  # those follow from their settings
        found["the problems"] = problems_digest([*parts.train, *parts.validation])
    return found


def data_reports(cfg: TrainConfig) -> dict[str, dict[str, Any]]:
    """What was found on reading a published data set, by part (docs/data.md); empty for word problems."""
    parts: tuple[Literal["train", "test"], ...] = ("train", "test") if cfg.eval.at_end else ("train",)
    reports = {part: load_report(cfg.data, part) for part in parts}
    return {part: asdict(report) for part, report in reports.items() if report is not None}


def fitting(problems: Sequence[Problem], prompter: Prompter, longest: int, what: str) -> Sequence[Problem]:
    """The problems whose prompts have at most `longest` tokens; says how many were left out."""
    kept = [problem for problem in problems if len(prompter.encode(problem.question)) <= longest]
    if problems and not kept:
        raise ConfigError("rollout.max_prompt_tokens", longest, f"every prompt of the {what} problems is longer")
    if len(kept) < len(problems):
        left_out = len(problems) - len(kept)
        print(f"left out {left_out} of {len(problems)} {what} problems: prompts over {longest} tokens", file=sys.stderr)
    return kept
