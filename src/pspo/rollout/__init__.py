"""Sampling engines behind one small protocol: vLLM (`vllm.py`) and plain transformers (`hf.py`).

The module of an engine is imported when it is asked for, so that a machine without vLLM needs none.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pspo.config import schema
from pspo.data import Ends, eos_ids
from pspo.errors import PspoError
from pspo.ranks import Ranks
from pspo.types import Completion

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn: n for each prompt, at most `max_new_tokens` tokens each. Temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1


class Completer(Protocol):
    """A policy that can be sampled from."""

    def stream(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], decoding: Decoding
    ) -> Iterator[tuple[int, list[Completion]]]:
        """(index of a prompt, its n completions), each prompt as soon as the last of its completions has ended.

        Prompts are token ids. The completions are the same for the same seeds, one seed a prompt. Each ends with its
        EOS token, or where its text shows a stop string, or is marked as not finished. Log-probs are those of the
        distribution sampled from: after temperature and top-p. Temperature 0 has the log-probs of temperature 1.
        """
        ...

    def forget(self) -> None:
        """Forgets the prompts it has seen, so that what comes next has the same bits whatever came before."""
        ...


class Sampler(Completer, Protocol):
    """An engine of this process, which can be given new weights."""

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes new weights, given under their checkpoint names, and forgets everything computed with the old. A
        sampler that sleeps is awake afterwards."""
        ...

    def sleep(self) -> None:
        """Gives back the device's memory, weights too, until `load`; nothing where the config does not want it."""
        ...

    @property
    def asleep(self) -> bool: ...

    def close(self) -> None:
        """Gives back what the engine holds; it cannot be used afterwards."""
        ...


def sample(
    sampler: Completer, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], decoding: Decoding
) -> list[list[Completion]]:
    """`stream`, waited for: the completions of each prompt, in the order of the prompts."""
    drawn = dict(sampler.stream(prompts, seeds, decoding))
    return [drawn[index] for index in range(len(prompts))]


def make_sampler(
    checkpoint: str,
    cfg: schema.Rollout,
    tokenizer: PreTrainedTokenizerBase,
    device: str,
    max_tokens: int,
    ends: Ends | None = None,
    ranks: Ranks | None = None,
) -> Sampler:
    """The engine that the config names, holding the weights of `checkpoint` (a directory or hub id).

    max_tokens    bounds prompt and completion together
    ranks         of the run; each holds an engine of its own, and all make them at the same time
    ends          what ends a completion; None: the tokenizer's EOS. The EOS tokens of the checkpoint's generation
                  config count besides

    Raises PspoError where vLLM is asked for and not installed.
    """
    ends = ends or Ends(eos_ids(tokenizer))
    ends = replace(ends, ids=tuple(dict.fromkeys((*ends.ids, *generation_eos(checkpoint)))))
    if cfg.engine == "hf":
        from pspo.rollout.hf import HfSampler

        return HfSampler(checkpoint, cfg, tokenizer, device, ends)
    if importlib.util.find_spec("vllm") is None:
        raise PspoError("rollout=vllm, but vLLM is not installed here: run `make setup`, or choose rollout=hf")
    from pspo.rollout.vllm import VllmSampler

    return VllmSampler(checkpoint, cfg, tokenizer, device, max_tokens, ends, ranks or Ranks())


def generation_eos(checkpoint: str) -> list[int]:
    """The EOS tokens that a checkpoint directory's generation_config.json names: a chat model's end of turn, mostly."""
    path = Path(checkpoint) / "generation_config.json"
    if not path.is_file():
        return []
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise PspoError(f"{path}: not a JSON object: {error}") from error
    return named if isinstance(named, list) else [] if named is None else [named]
