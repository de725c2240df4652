"""The learner: one policy, its optimiser, and one update of it over a minibatch.

    update    for each pack of the minibatch: forward, loss (pspo.objective), backward; clip the gradient; one step
    log_probs the same forward passes without a gradient

Over several ranks the policy is sharded (`pspo.sharding`), each rank goes through its own packs, and the gradients add
up to that of the whole minibatch. Imports: torch, transformers for the model's type, and the rooms of the update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import embedding
from transformers import PreTrainedModel

from pspo import adapters, layers
from pspo.attention import choose_kernel, use_packed_attention
from pspo.batching import Batch, Pack, packs
from pspo.config import TrainConfig, schema
from pspo.errors import ConfigError, NonFiniteError
from pspo.logprobs import token_log_probs
from pspo.models import DTYPES, load_policy
from pspo.objective import Tokens, UpdateStats, loss_of, sequence_weights, token_stats
from pspo.offload import HostAdamW, host_like
from pspo.ranks import Ranks
from pspo.sharding import merged_known, reshard, shard
from pspo.surrogates import Surrogate, from_config
from pspo.trainstate import blank, on_device, optimizer_tensors, set_optimizers

ADAPTER = "adapter."

# What architectures do that the packed forward pass does not: settings, their value where nothing is done, the remedy.
NOT_DONE = (
    (  # Granite, Cohere, Gemma 2
        ("logits_scaling", "logit_scale", "final_logit_softcapping"),
        1.0,
        "must be a model whose logits are its head's output as it is",
    ),
    (("sliding_window",), None, "must be a model with full attention in every layer"),
    (("attention_dropout", "attn_pdrop"), 0.0, "must be a model without dropout: set it to 0 in its config.json"),
)


class Policy(nn.Module):
    """A causal language model as the learner calls it: a pack to log-probs and entropies of its completion tokens.

    With `autocast` the linear layers compute in bfloat16, whatever the dtype of the weights. Prompt positions are never
    projected to the vocabulary. Raises ConfigError for an architecture that does more.
    """

    def __init__(self, model: PreTrainedModel, temperature: float, autocast: bool) -> None:
        super().__init__()
        for settings, plain, allowed in NOT_DONE:
            for setting in settings:
                if (value := getattr(model.config, setting, None)) not in (None, plain):
                    raise ConfigError("model.path", f"{model.config.name_or_path} ({setting}={value})", allowed)
        self.model, self.temperature, self.autocast = model, temperature, autocast
        use_packed_attention(model)

    def forward(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """[M], [M], in fp32 (fp64 for an fp64 model), at the sampling temperature."""
        with torch.autocast(pack.ids.device.type, torch.bfloat16, enabled=self.autocast):
            hidden = self.model.base_model(
                input_ids=pack.ids[None], position_ids=pack.positions[None], use_cache=False, layout=pack.layout
            ).last_hidden_state[0]  # [L, D]
        head: Any = self.model.get_output_embeddings()
        weight = head.weight.bfloat16() if self.autocast else head.weight
        chosen = embedding(pack.at, hidden).to(weight.dtype)  # [M, D]; completions of one prompt share their first row
        return token_log_probs(chosen, weight, pack.targets, self.temperature, bias=head.bias)


class Learner:
    """Holds the policy being learned.

    The weights keep the dtype of `model`; with `compute_dtype` bfloat16 the forward pass runs under autocast.
    `temperature` is the one the completions were sampled at: it is part of the policy whose ratio is taken.
    `max_tokens` is the length that normalise=constant divides by. `planned_updates` is what the schedule decays over.
    `reference` is the policy of the KL term, which cfg.kl_coef above 0 needs. `compiler` is torch.compile's backend for
    the layers (None: they run as they are). `device` is where it computes (None: where `model` is): over several
    ranks the models may come in the host's memory, so that a device never holds one whole.
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
        attention: schema.Attention = "auto",
        reference: PreTrainedModel | None = None,
        ranks: Ranks | None = None,
        compiler: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.model, self.surrogate, self.cfg, self.ranks = model, surrogate, cfg, ranks or Ranks()
        self.max_tokens, self.planned_updates = max_tokens, planned_updates
        device = device or model.device
        self.kernel = choose_kernel(attention, device, DTYPES[compute_dtype])
        model.train()  # without it transformers leaves out gradient checkpointing
        if cfg.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        autocast = compute_dtype == "bfloat16"
        self.policy = Policy(model, temperature, autocast)
        self.reference = None if reference is None else Policy(reference.requires_grad_(False), temperature, autocast)
        for policy in filter(None, (self.policy, self.reference)):
            if compiler is not None:
                layers.compile_layers(policy.model, compiler)
            if self.ranks.size > 1:
                shard(policy, policy.model, self.ranks, device, torch.bfloat16 if autocast else None)
        self.optimizer = make_optimizer(model, cfg)

    def log_probs(self, batch: Batch, part: Sequence[int]) -> Tensor:
        """Log-probs [K] of the completion tokens of the samples `part` under the policy as it is now; NaN for the
        batch's other tokens."""
        return self._log_probs(self.policy, batch, part)

    def reference_log_probs(self, batch: Batch) -> Tensor:
        """Log-probs [K] under the policy that training started from: the policy without its adapters where it has any,
        else a model of its own."""
        if self.reference is not None:
            return self._log_probs(self.reference, batch, range(len(batch)))
        with adapters.reference(self.model):
            return self._log_probs(self.policy, batch, range(len(batch)))

    @torch.no_grad()
    def _log_probs(self, policy: Policy, batch: Batch, part: Sequence[int]) -> Tensor:
        found = torch.full_like(batch.sampler, torch.nan)
        finite = torch.ones((), dtype=torch.bool, device=batch.device)
        with self.ranks.expecting("log-probs of a batch"):
            for pack in self._packs(batch, part):
                log_probs, _ = policy(pack)
                if not pack.ghost:
                    finite &= log_probs.isfinite().all()
                    found[pack.flat] = log_probs.to(found)
            reshard(policy)
        (damaged,) = self.ranks.sum([float(~finite)], "log-probs that are not finite")
        if damaged:
            raise NonFiniteError("the policy's log-probs are not finite: it has diverged, or its weights are damaged")
        return merged_known(found, self.ranks, "exchange of log-probs")

    def update(self, batch: Batch, part: Sequence[int], number: int) -> UpdateStats:
        """One optimiser step on the minibatch of the samples `part`.

        Tokens whose `batch.old` is not known take the log-probs they have now, which become their old ones. `number`
        counts the planned updates of the run from 0 and sets the learning rate. Raises NonFiniteError, with the policy
        and the optimiser unmoved, where loss or gradient is not finite. There is a gradient only while it runs.
        """
        try:
            return self._update(batch, part, number)
        finally:
            self.optimizer.zero_grad(set_to_none=True)  # what samples or saves next has its memory

    def _update(self, batch: Batch, part: Sequence[int], number: int) -> UpdateStats:
        news = self.ranks.size > 1 and (not batch.moved or batch.unknown(part))
        with self.ranks.expecting(f"update {number}"):
            stats = UpdateStats.of(list(self._accumulate(batch, part)))
            grad_norm = clip_gradients(self.model, self.cfg.max_grad_norm)
            if news:  # what this rank has found out is needed by the one that meets the sample next
                batch.old = merged_known(batch.old, self.ranks, "exchange of old log-probs")
                batch.before = merged_known(batch.before, self.ranks, "exchange of old log-probs")
        (loss,) = self.ranks.sum([stats.loss], f"loss of update {number}")
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteError(f"loss {loss} and gradient norm {grad_norm} in update {number}: both must be finite")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.cfg, number, self.planned_updates)
        self.optimizer.step()
        batch.moved = True
        return replace(stats, grad_norm=grad_norm, updates=1.0)

    def release(self) -> None:
        """Gives back the memory of a GPU that torch keeps for tensors to come, so that an engine beside it has it."""
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def check_weights(self) -> None:
        """Raises NonFiniteError where what is learned is not finite any more. Every rank calls it."""
        learned = [parameter.detach() for parameter in self._learned().values()]
        local = [p.to_local() if isinstance(p, DTensor) else p for p in learned]
        damaged = sum(~part.isfinite().all() for part in local)
        (count,) = self.ranks.sum([float(damaged)], "weights that are not finite")
        if count:
            raise NonFiniteError(f"{count:.0f} tensors of the policy are not finite after an update: lower learner.lr")

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's parameters under their checkpoint names, one by one; tied ones once, adapters merged. Of several
        ranks each has to go through all of them: a parameter is gathered when its turn comes."""
        reshard(self.policy)
        return adapters.merged_weights(self.model)

    def state_dict(self, keep: bool) -> dict[str, Tensor]:
        """What a checkpoint is to hold; {} for a rank that does not write it (`keep`), which helps to gather."""
        reshard(self.policy)
        return adapters.state_dict_to_save(self.model, keep)

    def training_state(self) -> dict[str, Tensor]:
        """What the next update depends on beside the weights of `state_dict`: the optimiser's tensors, and adapters.
        Sharded as the policy is; the tensors themselves, not copies."""
        reshard(self.policy)
        learned = self._learned()
        adapted = {f"{ADAPTER}{name}": p.detach() for name, p in learned.items()}
        if not adapters.has_adapters(self.model):
            adapted = {}  # the weights are the policy's own, which every checkpoint holds
        return adapted | optimizer_tensors(learned.items(), self.optimizer)

    def blank(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """What a tensor of `training_state` is read into (pspo.checkpoint.Checkpoints.read)."""
        learned = self._learned()
        if name.startswith(ADAPTER):
            return learned[name.removeprefix(ADAPTER)].detach()
        return blank(learned, name, shape, dtype, host_like if self.cfg.offload_optimizer else on_device)

    def load_training_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what was read; adapters have been read into their place."""
        set_optimizers(self._learned(), tensors, self.optimizer)

    def _learned(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _packs(self, batch: Batch, part: Sequence[int]) -> Iterator[Pack]:
        """This rank's share of the samples."""
        return packs(batch, part, self.cfg.token_budget, self.kernel, self.ranks.rank, self.ranks.size)

    def _accumulate(self, batch: Batch, part: Sequence[int]) -> Iterator[Tensor]:
        """Adds the gradient of each pack to the parameters, yielding its statistics, which stay on the device."""
        lengths, count = torch.from_numpy(batch.lengths).to(batch.device), int(batch.lengths[list(part)].sum())
        weights = sequence_weights(lengths, self.cfg.normalise, self.max_tokens, tokens=count, sequences=len(part))
        for pack in self._packs(batch, part):
            log_probs, entropy = self.policy(pack)
            if pack.ghost:
                (0.0 * log_probs.sum()).backward()
                continue
            now = log_probs.detach().to(batch.old)
            old = batch.old[pack.flat]
            batch.old[pack.flat] = old = torch.where(old.isnan(), now, old)
            if not batch.moved:
                batch.before[pack.flat] = now
            tokens = Tokens(
                log_probs=log_probs,
                entropy=entropy,
                old=old.to(log_probs),
                sampler=batch.sampler[pack.flat].to(log_probs),
                reference=None if batch.reference is None else batch.reference[pack.flat].to(log_probs),
                advantage=batch.advantage[pack.sample].to(log_probs),
                weight=weights[pack.sample].to(log_probs),
                lengths=pack.lengths,
            )
            loss = loss_of(self.surrogate, tokens, self.cfg)
            loss.backward()
            yield token_stats(self.surrogate, tokens, loss, self.cfg)


def make_learner(cfg: TrainConfig, start: str, ranks: Ranks, saved: Path | None = None) -> Learner:
    """The learner of a run, from the checkpoint `start` that it begins at; with `saved`, at the weights that it had
    when that was written. Adapters and optimiser come with the training state."""

    def load(dtype: str, path: str | Path = start) -> PreTrainedModel:
        return load_policy(path, dtype=dtype, device=cfg.device if ranks.size == 1 else "cpu")  # sharding moves it

    lora = cfg.model.lora
    # Weights that are learned are fp32 whatever the dtype of the computation: a step of 5e-7 is lost in a bf16 weight.
    model = load("float32", saved or start) if lora is None else load(cfg.model.dtype)
    if lora is not None:
        adapters.add_lora(model, lora, cfg.seed)
    return Learner(
        model,
        from_config(cfg.surrogate),
        cfg.learner,
        compute_dtype=cfg.model.dtype,
        temperature=cfg.rollout.temperature if cfg.train_on == "samples" else 1.0,  # solutions were not sampled
        max_tokens=cfg.rollout.max_new_tokens,
        planned_updates=cfg.updates,
        attention=cfg.model.attention,
        # in the policy's own arithmetic: the KL starts at 0
        reference=load("float32") if cfg.learner.kl_coef and lora is None else None,
        ranks=ranks,
        compiler=layers.BACKEND if cfg.model.compile else None,
        device=torch.device(cfg.device),
    )


def learning_rate(cfg: schema.Learner, number: int, planned: int) -> float:
    """The rate of update `number` (from 0) of `planned`: linear warm-up to cfg.lr, then constant or linear to zero."""
    if number < cfg.warmup_updates:
        return cfg.lr * (number + 1) / cfg.warmup_updates
    if cfg.schedule == "constant":
        return cfg.lr
    return cfg.lr * max(0.0, (planned - number) / max(1, planned - cfg.warmup_updates))


def make_optimizer(model: PreTrainedModel, cfg: schema.Learner) -> torch.optim.Optimizer:
    """AdamW or plain SGD over all parameters, as the config names it; fused: no temporaries of the weights' size."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    adamw = HostAdamW if cfg.offload_optimizer else partial(torch.optim.AdamW, fused=True)
    return adamw(parameters, lr=cfg.lr, betas=cfg.betas, eps=cfg.adam_eps, weight_decay=cfg.weight_decay)


def clip_gradients(model: PreTrainedModel, max_norm: float | None) -> float:
    """Scales the gradient to `max_norm` (None: leaves it) and returns its norm from before."""
    if max_norm is not None:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    else:
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
