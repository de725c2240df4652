"""Data: problems, and how they are put to a policy.

    load_problems   word problems (`wordproblems.py`) or a published data set (`benchmarks.py`) as a sequence of Problem
    load_report     what was found in a published data set: rows, what was left out, duplicates, overlap
    demonstrations  worked training examples, for a few-shot prompt
    load_tokenizer  a checkpoint's tokenizer (`tokenizer.py`); eos_ids: what ends a completion
    make_prompter   a Prompter: a question as token ids, and which prompt it was (`prompts.py`)

Importing this package imports neither torch nor transformers nor datasets; the functions that need them do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pspo.config import schema
from pspo.data import benchmarks
from pspo.data.benchmarks import DataReport, load_benchmark, report_benchmark
from pspo.data.prompts import Ends, Prompter
from pspo.data.tokenizer import eos_ids, load_tokenizer
from pspo.data.wordproblems import WordProblemSequence, demonstration, train_example
from pspo.errors import PspoError
from pspo.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DataReport",
    "Ends",
    "Prompter",
    "demonstrations",
    "eos_ids",
    "load_problems",
    "load_report",
    "load_tokenizer",
    "make_prompter",
]


def load_problems(data: schema.Data, split: Literal["train", "validation", "test"], seed: int) -> Sequence[Problem]:
    """The problems of a split, in a fixed order. `seed` is the run's: some data sets are split by it."""
    if isinstance(data, schema.WordProblems):
        return WordProblemSequence(data, split)
    return load_benchmark(data, split, seed)


def load_report(data: schema.Data, split: Literal["train", "validation", "test"]) -> DataReport | None:
    """What was found in the part of a published data set that a split comes from; None for word problems."""
    return None if isinstance(data, schema.WordProblems) else report_benchmark(data, split)


def demonstrations(data: schema.Data, count: int) -> tuple[schema.Shot, ...]:
    """The first `count` training problems with their worked solutions; PspoError where there are not so many."""
    if not isinstance(data, schema.WordProblems):
        return benchmarks.demonstrations(data, count)
    if count > data.train:
        raise PspoError(f"prompt.train_shots={count}: data.train={data.train} training problems in all")
    worked = [train_example(data, index) for index in range(count)]
    return tuple(schema.Shot(example.problem.question, demonstration(example, "steps")) for example in worked)


def make_prompter(prompt: schema.Prompt, data: schema.Data, tokenizer: PreTrainedTokenizerBase) -> Prompter:
    """The prompt with the demonstrations that it takes from the data set's training part."""
    return Prompter(prompt, tokenizer, demonstrations(data, prompt.train_shots) if prompt.train_shots else ())
