"""The policy before and after real training steps, over the whole vocabulary, at the tokens that were sampled.

Takes the steps of pspo.train with its own parts (sampler, grader, learner). Imports torch and the rooms of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pspo.advantages import group_advantages
from pspo.batching import minibatches
from pspo.config import TrainConfig, compose, warm_start_dir
from pspo.learner import Learner
from pspo.ranks import Ranks
from pspo.run import Run
from pspo.rundir import Place
from pspo.seeds import derive
from pspo.startup import starting_checkpoint
from pspo.types import Group

SETTINGS = ("experiment=stress", "rollout=hf", "eval.every=0", "eval.at_end=false")


@dataclass(frozen=True)
class Moved:
    """A training step at M sampled tokens: float64 log-probs [M, V] of either policy, tokens [M], advantages [M]."""

    step: int
    old: Tensor
    new: Tensor
    tokens: Tensor
    advantage: Tensor


def warm_start(overrides: Sequence[str] = ()) -> Path:
    """Where the small world's starting policy is, if it has been made."""
    return warm_start_dir(compose("train", TrainConfig, [*SETTINGS, *overrides]))


def training_steps(overrides: Sequence[str], steps: int) -> Iterator[Moved]:
    """The first `steps` steps of a run with these settings of pspo.train, stress regime. Leaves nothing on the disk."""
    with TemporaryDirectory(prefix="pspo-theory-") as folder:
        cfg = compose("train", TrainConfig, [*SETTINGS, *overrides, f"steps={steps}", f"run_dir={folder}"])
        with Place(Path(folder)) as place, Run(cfg, Ranks(), place) as run:
            run.resume()
            # Its own copy: the learner's model computes on packs.
            plain = AutoModelForCausalLM.from_pretrained(starting_checkpoint(cfg), dtype=torch.float64)
            for step in range(1, steps + 1):
                yield one_step(run, cfg, step, plain)


def one_step(run: Run, cfg: TrainConfig, step: int, plain: PreTrainedModel) -> Moved:
    """As pspo.train.optimise takes it; `plain` is given the policy's weights, and left with those after it."""
    inner = cfg.learner
    groups = run.sample(run.problems(step), step)
    rewards = run.reward(groups, step)
    advantages = group_advantages(rewards, inner.advantage_scale, inner.advantage_eps)
    batch = run.batch(groups, advantages, rewards)
    passes = [
        minibatches(batch, inner.minibatches, derive(cfg.seed, "pass", step, k), inner.minibatch_of)
        for k in range(inner.passes)
    ]
    run.fix_old_log_probs(batch, passes)
    old = log_probs(run.learner, plain, groups, cfg.rollout.temperature)
    for parts in passes:
        for part in parts:
            run.update(batch, part, step)
    new = log_probs(run.learner, plain, groups, cfg.rollout.temperature)
    run.sync()
    run._clear()
    lengths = torch.tensor([len(c.token_ids) for group in groups for c in group.completions])
    tokens = torch.tensor([token for group in groups for c in group.completions for token in c.token_ids])
    return Moved(step, old, new, tokens, advantages.flatten().repeat_interleave(lengths).double())


@torch.no_grad()
def log_probs(learner: Learner, plain: PreTrainedModel, groups: Sequence[Group], temperature: float) -> Tensor:
    """Log-probs [M, V] of the learner's policy at each completion token of each group in order, computed in float64."""
    plain.load_state_dict(dict(learner.weights()), strict=False)  # tied ones come once
    found: list[Tensor] = []
    for group in groups:
        rows = [[*group.prompt_ids, *completion.token_ids] for completion in group.completions]
        longest, first = max(map(len, rows)), len(group.prompt_ids) - 1
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=plain.device)
        logits = plain(input_ids=padded).logits / temperature  # causal: what is padded on the right is not seen
        found += [logits[k, first : len(row) - 1].log_softmax(-1) for k, row in enumerate(rows)]
    return torch.cat(found).cpu()
