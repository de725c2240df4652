"""Sampling engines behind one small protocol: vLLM (`vllm.py`) and plain transformers (`hf.py`).

The module of an engine is imported when it is asked for, so that a machine without vLLM needs none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from pspo.config import schema
from pspo.errors import PspoError
from pspo.types import Completion

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class Sampler(Protocol):
    """A policy that can be sampled from and given new weights."""

    def sample(
        self,
        prompts: Sequence[tuple[int, ...]],
        n: int,
        seeds: Sequence[int],
        temperature: float,
        top_p: float,
        max_new_tokens: int,
    ) -> list[list[Completion]]:
        """n completions for each prompt (token ids), in order; the same for the same seeds, one seed a prompt.

        Each completion ends with its EOS token or is marked as not finished. Log-probs are those of the distribution
        sampled from: after temperature and top-p. Temperature 0 is greedy, with log-probs at temperature 1.
        """
        ...

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes new weights, given under their checkpoint names, and forgets everything computed with the old."""
        ...

    def close(self) -> None:
        """Gives back what the engine holds; it cannot be used afterwards."""
        ...


def make_sampler(
    checkpoint: str, cfg: schema.Rollout, tokenizer: PreTrainedTokenizerBase, device: str, max_tokens: int
) -> Sampler:
    """The engine that the config names, holding the weights of `checkpoint` (a directory or hub id).

    `max_tokens` bounds prompt and completion together. Raises PspoError where vLLM is asked for and not installed.
    """
    if cfg.engine == "hf":
        from pspo.rollout.hf import HfSampler

        return HfSampler(checkpoint, cfg, tokenizer, device)
    if importlib.util.find_spec("vllm") is None:
        raise PspoError("rollout=vllm, but vLLM is not installed here: run `make setup`, or choose rollout=hf")
    from pspo.rollout.vllm import VllmSampler

    return VllmSampler(checkpoint, cfg, tokenizer, device, max_tokens)
