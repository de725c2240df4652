"""What a program does before its work: threads, device, where a policy starts, which problems fit."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pspo.config import TrainConfig, schema, warm_start_dir
from pspo.data import encode_prompt
from pspo.errors import ConfigError, PspoError
from pspo.models import local_checkpoint
from pspo.types import Problem


def prepare(device: str, threads: int | None) -> None:
    """Sets the number of CPU threads of this process, for libraries loaded later too (None leaves it), and checks that
    the device is there."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", device, "torch sees no CUDA device on this machine")


def starting_checkpoint(cfg: TrainConfig) -> str:
    """Directory of the policy that training starts from; raises PspoError where the warm start has not been made."""
    if cfg.model.path is not None:
        return local_checkpoint(cfg.model.path, cfg.model.revision)
    made = warm_start_dir(cfg)
    if not (made / "DONE").exists():
        raise PspoError(f"model={cfg.model.name} has no warm start at {made}: make it with `python -m pspo.sft`")
    return str(made)


def fitting(
    problems: Sequence[Problem], prompt: schema.Prompt, tokenizer: PreTrainedTokenizerBase, longest: int, what: str
) -> Sequence[Problem]:
    """The problems whose prompts have at most `longest` tokens; says how many were left out."""
    kept = [problem for problem in problems if len(encode_prompt(prompt, tokenizer, problem.question)) <= longest]
    if not kept:
        raise ConfigError("rollout.max_prompt_tokens", longest, f"every prompt of the {what} problems is longer")
    if len(kept) < len(problems):
        left_out = len(problems) - len(kept)
        print(f"left out {left_out} of {len(problems)} {what} problems: prompts over {longest} tokens", file=sys.stderr)
    return kept
