"""Sampling by plain transformers: for machines without vLLM, and the oracle that vLLM is tested against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from pspo.config import schema
from pspo.data import Ends
from pspo.models import load_policy
from pspo.rollout import Decoding
from pspo.rollout.completions import completion_of, has_stop
from pspo.seeds import derive
from pspo.types import Completion

MAX_ROWS = 256  # completions decoded at once; vLLM's own default


class HfSampler:
    """`pspo.rollout.Sampler` by a decoding loop over a transformers model.

    Prompts are padded on the left so that all rows decode at the same column; each row has its own generator, so what
    is sampled for a prompt does not depend on what else is in the batch (up to rounding of the batched matmuls).
    """

    def __init__(
        self,
        checkpoint: str,
        cfg: schema.Rollout,
        tokenizer: PreTrainedTokenizerBase,
        device: str,
        ends: Ends,
    ) -> None:
        self.tokenizer, self.device, self.eos, self.stop = tokenizer, device, ends.ids, ends.strings
        self.model = load_policy(checkpoint, dtype=cfg.dtype, attention="sdpa", device=device).eval()

    @torch.inference_mode()
    def stream(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], decoding: Decoding
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Of at most `MAX_ROWS` completions at a time."""
        step = max(1, MAX_ROWS // decoding.n)
        for start in range(0, len(prompts), step):
            part = slice(start, start + step)
            for index, completions in self._stream(prompts[part], seeds[part], decoding):
                yield start + index, completions

    def _stream(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], decoding: Decoding
    ) -> Iterator[tuple[int, list[Completion]]]:
        n = decoding.n
        rows = [prompt for prompt in prompts for _ in range(n)]
        generators = [
            torch.Generator(self.device).manual_seed(derive("sample", seed, k)) for seed in seeds for k in range(n)
        ]
        tokens: list[list[int]] = [[] for _ in rows]
        log_probs: list[list[float]] = [[] for _ in rows]
        active = torch.arange(len(rows), device=self.device)  # row of each line of the batch that still decodes
        writing = [n] * len(prompts)  # completions of each prompt that have not ended

        def ended(some: Iterable[int]) -> Iterator[tuple[int, list[Completion]]]:
            for row in some:
                writing[row // n] -= 1
                if not writing[row // n]:
                    group = range(row // n * n, row // n * n + n)
                    yield row // n, [self._completion(tokens[k], log_probs[k]) for k in group]

        width = max(len(row) for row in rows)
        input_ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=self.device)
        seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device)
        cache = DynamicCache(config=self.model.config)
        for _ in range(decoding.max_new_tokens):
            positions = (seen.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
            logits = self.model(
                input_ids=input_ids,
                attention_mask=seen,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            lines = active.tolist()
            drawing = [generators[row] for row in lines]
            choice, chosen_log_prob = choose(logits, decoding.temperature, decoding.top_p, drawing)
            for row, token, log_prob in zip(lines, choice.tolist(), chosen_log_prob.tolist(), strict=True):
                tokens[row].append(token)
                log_probs[row].append(log_prob)
            over = [tokens[row][-1] in self.eos or has_stop(tokens[row], self.tokenizer, self.stop) for row in lines]
            yield from ended(row for row, done in zip(lines, over, strict=True) if done)
            keep = torch.tensor([k for k, done in enumerate(over) if not done], device=self.device, dtype=torch.long)
            if len(keep) == 0:
                return
            if len(keep) < len(active):  # finished rows leave the batch
                active, choice, seen = active[keep], choice[keep], seen[keep]
                cache.batch_select_indices(keep)
            input_ids = choice[:, None]
            seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)

        yield from ended(active.tolist())  # cut at the limit

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        mine = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in weights:
                mine[name].copy_(value)

    def forget(self) -> None:
        """Nothing is kept between calls."""

    def sleep(self) -> None:
        """It stays where it is: rollout.vllm.sleep is vLLM's."""

    @property
    def asleep(self) -> bool:
        return False

    def close(self) -> None:
        del self.model

    def _completion(self, ids: list[int], log_probs: list[float]) -> Completion:
        return completion_of(ids, log_probs, self.tokenizer, self.eos, self.stop)


def choose(
    logits: Tensor, temperature: float, top_p: float, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """One token for each row of logits [N, V], with its log-prob in the distribution it was drawn from: [N], [N].

    Temperature 0 takes the largest; its log-prob is the one at temperature 1. Row i draws from generators[i].
    """
    log_p = (logits.float() / (temperature or 1.0)).log_softmax(dim=1)
    if temperature == 0:
        best = log_p.argmax(dim=1)
        return best, log_p.gather(1, best[:, None]).squeeze(1)
    if top_p < 1:
        log_p = nucleus(log_p, top_p)
    # The exponential race: argmax of p / e with e ~ Exp(1) is distributed as p.
    noise = torch.stack([torch.empty_like(log_p[0]).exponential_(generator=generator) for generator in generators])
    drawn = (log_p - noise.log()).argmax(dim=1)
    return drawn, log_p.gather(1, drawn[:, None]).squeeze(1)


def nucleus(log_p: Tensor, top_p: float) -> Tensor:
    """Log-probs [N, V] restricted to each row's smallest set of tokens with mass of at least top_p, renormalised."""
    values, order = log_p.sort(dim=1, descending=True)
    before = values.exp().cumsum(dim=1) - values.exp()  # mass of the more likely tokens
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)
    return log_p.masked_fill(dropped, -torch.inf).log_softmax(dim=1)
