"""Accuracy of a policy on a list of problems, one record a problem; used while training and by eval/evaluate.py.

Imports: rollout, grading, data. No torch of its own.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspo.config import schema
from pspo.data import encode_prompt, prompt_hash
from pspo.errors import ConfigError, NonFiniteError
from pspo.grading import Grade, Grader
from pspo.rollout import Sampler
from pspo.seeds import derive
from pspo.types import Completion, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Protocol:
    """How completions are drawn: T=0 and one sample is the paper's."""

    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0


def evaluate(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader,
    problems: Sequence[Problem],
    prompt: schema.Prompt,
    protocol: Protocol,
) -> list[dict[str, Any]]:
    """One record a problem, in order, of the form written to `<run_dir>/eval/<benchmark>.jsonl`:

    {"id", "level", "prompt_hash", "gold", "correct", "status", "tokens",
     "completions": [{"text", "answer", "correct", "lenient", "status", "tokens", "finished"}, ...]}

    The top-level correct, status and tokens are those of the first completion.
    """
    prompts = [encode_prompt(prompt, tokenizer, problem.question) for problem in problems]
    for problem, ids in zip(problems, prompts, strict=True):
        if len(ids) > protocol.max_prompt_tokens:
            needed = f"problem {problem.id} has a prompt of {len(ids)} tokens"
            raise ConfigError("rollout.max_prompt_tokens", protocol.max_prompt_tokens, needed)
    drawn = sampler.sample(
        prompts,
        n=protocol.samples,
        seeds=[derive(protocol.seed, "evaluation", problem.id) for problem in problems],
        temperature=protocol.temperature,
        top_p=protocol.top_p,
        max_new_tokens=protocol.max_new_tokens,
    )
    stop_if_not_finite(completion for row in drawn for completion in row)
    pairs = [(problem, completion) for problem, row in zip(problems, drawn, strict=True) for completion in row]
    grades = grader.grade([(completion.text, problem.gold, prompt.style) for problem, completion in pairs])
    written = [_completion(c, grade) for (_, c), grade in zip(pairs, grades, strict=True)]
    hashed = prompt_hash(prompt)
    return [
        {
            "id": problem.id,
            "level": problem.level,
            "prompt_hash": hashed,
            "gold": problem.gold,
            **{key: written[start][key] for key in ("correct", "status", "tokens")},
            "completions": written[start : start + protocol.samples],
        }
        for problem, start in zip(problems, range(0, len(written), protocol.samples), strict=True)
    ]


def stop_if_not_finite(completions: Iterable[Completion]) -> None:
    """Raises NonFiniteError where a sampled token's log-prob is not a number: the policy has diverged, or its
    checkpoint is damaged, and what it wrote is noise that must not be reported as wrong answers."""
    for completion in completions:
        if not all(map(math.isfinite, completion.log_probs)):
            raise NonFiniteError("the policy's log-probs are not finite: it has diverged, or its weights are damaged")


def _completion(completion: Completion, grade: Grade) -> dict[str, Any]:
    # An answer in a text that never ended is not counted: with a longer limit the policy might have gone on.
    fields = asdict(grade)
    if not completion.finished:
        fields |= {"correct": False, "lenient": False}
    return {"text": completion.text, **fields, "tokens": len(completion.token_ids), "finished": completion.finished}


def summary(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Over all completions: accuracy, strict and lenient; truncated, without answer, in error; mean length."""
    drawn = [completion for record in records for completion in record["completions"]]
    count = len(drawn)
    return {
        "problems": len(records),
        "accuracy": sum(c["correct"] for c in drawn) / count,
        "lenient_accuracy": sum(c["lenient"] for c in drawn) / count,
        "truncated_share": sum(not c["finished"] for c in drawn) / count,
        "no_answer_share": sum(c["status"] == "no_answer" for c in drawn) / count,
        "error_share": sum(c["status"] in ("timeout", "gold_unreadable", "error") for c in drawn) / count,
        "tokens_mean": sum(c["tokens"] for c in drawn) / count,
    }


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes the file whole: complete or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
