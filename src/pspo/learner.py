"""The learner: one policy, its optimiser, and one update of it over a minibatch.

    L(theta) = - sum over tokens of  weight * surrogate(log pi_theta - log pi_old, A)

The weights come from counts of the whole minibatch (`pspo.objective`), so micro-batches only add up to its gradient.
Imports: torch, transformers for the model's type, pspo.batching, pspo.logprobs, pspo.objective, pspo.surrogates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pspo.batching import MicroBatch, micro_batches
from pspo.config import schema
from pspo.errors import NonFiniteError
from pspo.logprobs import token_log_probs
from pspo.objective import UpdateStats, sequence_weights, token_stats
from pspo.surrogates import Surrogate
from pspo.types import Sample


class Learner:
    """Holds the policy being learned.

    The weights keep the dtype of `model`; with `compute_dtype` bfloat16 the forward pass runs under autocast.
    `temperature` is the one the completions were sampled at: it is part of the policy whose ratio is taken.
    `max_tokens` is the length that normalise=constant divides by. `planned_updates` is what the schedule decays over.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        surrogate: Surrogate,
        cfg: schema.Learner,
        *,
        compute_dtype: schema.DType = "float32",
        temperature: float,
        max_tokens: int,
        planned_updates: int,
    ) -> None:
        self.model, self.surrogate, self.cfg = model, surrogate, cfg
        self.autocast = compute_dtype == "bfloat16"
        self.temperature, self.max_tokens, self.planned_updates = temperature, max_tokens, planned_updates
        if cfg.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.optimizer = make_optimizer(model, cfg)

    @torch.no_grad()
    def log_probs(self, samples: Sequence[Sample]) -> list[tuple[float, ...]]:
        """Log-probs of every completion token under the policy as it is now, at the sampling temperature."""
        found = [[0.0] * len(sample.completion_ids) for sample in samples]
        for micro in micro_batches(samples, self.cfg.token_budget, self.model.device):
            log_probs, _ = self._forward(micro)
            places = zip(micro.index.tolist(), micro.offsets.tolist(), log_probs.tolist(), strict=True)
            for sample, offset, value in places:
                found[sample][offset] = value
        return [tuple(row) for row in found]

    def update(self, samples: Sequence[Sample], old: Sequence[Sequence[float]], number: int) -> UpdateStats:
        """One optimiser step on a minibatch, given the log-probs of its tokens under the old policy.

        `number` counts the planned updates of the run from 0 and sets the learning rate. Raises NonFiniteError, with
        the policy and the optimiser unmoved, where loss or gradient is not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        stats = UpdateStats.total(self._accumulate(samples, old))
        grad_norm = clip_gradients(self.model, self.cfg.max_grad_norm)
        if not (math.isfinite(stats.loss) and math.isfinite(grad_norm)):
            raise NonFiniteError(
                f"loss {stats.loss} and gradient norm {grad_norm} in update {number}: both must be finite"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.cfg, number, self.planned_updates)
        self.optimizer.step()
        return replace(stats, grad_norm=grad_norm, updates=1.0)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's parameters under their checkpoint names, one by one; tied ones once."""
        yield from ((name, parameter.detach()) for name, parameter in self.model.named_parameters())

    def _accumulate(self, samples: Sequence[Sample], old: Sequence[Sequence[float]]) -> Iterator[UpdateStats]:
        """Adds the gradient of each micro-batch to the parameters, yielding its statistics."""
        lengths = torch.tensor([len(sample.completion_ids) for sample in samples])
        weights = sequence_weights(
            lengths, self.cfg.normalise, self.max_tokens, tokens=int(lengths.sum()), sequences=len(samples)
        )
        for micro in micro_batches(samples, self.cfg.token_budget, self.model.device):
            log_probs, entropy = self._forward(micro)
            index, offsets = micro.index.tolist(), micro.offsets.tolist()
            old_log_probs = log_probs.new_tensor([old[i][k] for i, k in zip(index, offsets, strict=True)])
            advantage = log_probs.new_tensor([samples[i].advantage for i in index])
            weight = weights[micro.index.cpu()].to(log_probs)

            log_ratio = log_probs - old_log_probs
            loss = -(weight * self.surrogate(log_ratio, advantage)).sum()
            loss.backward()
            yield replace(
                token_stats(self.surrogate, log_ratio, advantage, entropy.detach()), loss=float(loss.detach())
            )

    def _forward(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [M] of a micro-batch's completion tokens; prompt positions are never projected."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.autocast):
            hidden = self.model.base_model(input_ids=micro.input_ids, use_cache=False).last_hidden_state  # [N, T, D]
        head: Any = self.model.get_output_embeddings()
        weight = head.weight.bfloat16() if self.autocast else head.weight
        chosen = hidden[micro.rows, micro.cols].to(weight.dtype)
        return token_log_probs(chosen, weight, micro.targets, self.temperature)


def learning_rate(cfg: schema.Learner, number: int, planned: int) -> float:
    """The rate of update `number` (from 0) of `planned`: linear warm-up to cfg.lr, then constant or linear to zero."""
    if number < cfg.warmup_updates:
        return cfg.lr * (number + 1) / cfg.warmup_updates
    if cfg.schedule == "constant":
        return cfg.lr
    return cfg.lr * max(0.0, (planned - number) / max(1, planned - cfg.warmup_updates))


def make_optimizer(model: PreTrainedModel, cfg: schema.Learner) -> torch.optim.Optimizer:
    """AdamW or plain SGD over all parameters, as the config names it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)
    return torch.optim.AdamW(
        parameters, lr=cfg.lr, betas=cfg.betas, eps=cfg.adam_eps, weight_decay=cfg.weight_decay, foreach=True
    )


def clip_gradients(model: PreTrainedModel, max_norm: float | None) -> float:
    """Scales the gradient to `max_norm` (None: leaves it) and returns its norm from before."""
    if max_norm is not None:
        return float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))
    return float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
