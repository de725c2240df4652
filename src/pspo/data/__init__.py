"""Data: problems, and how they are put to a policy.

    load_problems   word problems (`wordproblems.py`) or a published data set (`benchmarks.py`) as a sequence of Problem
    load_tokenizer  a checkpoint's tokenizer (`tokenizer.py`); eos_ids: what ends a completion
    encode_prompt   a question as token ids (`prompts.py`); prompt_hash: which prompt it was

Importing this package imports neither torch nor transformers nor datasets; the functions that need them do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pspo.config import schema
from pspo.data.benchmarks import load_benchmark
from pspo.data.prompts import encode_prompt, prompt_hash
from pspo.data.tokenizer import eos_ids, load_tokenizer
from pspo.data.wordproblems import WordProblemSequence
from pspo.types import Problem

__all__ = ["encode_prompt", "eos_ids", "load_problems", "load_tokenizer", "prompt_hash"]


def load_problems(data: schema.Data, split: Literal["train", "validation", "test"], seed: int) -> Sequence[Problem]:
    """The problems of a split, in a fixed order. `seed` is the run's: some data sets are split by it."""
    if isinstance(data, schema.WordProblems):
        return WordProblemSequence(data, split)
    return load_benchmark(data, split, seed)
