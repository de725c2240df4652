"""Accuracy of a policy on a list of problems, one record a problem; used while training and by eval/evaluate.py.

As a file that an interruption does not harm: `evalfile`. Imports: rollout, grading, data. No torch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from pspo.data import Prompter
from pspo.errors import ConfigError, NonFiniteError
from pspo.grading import Grade, Grader, Style
from pspo.rollout import Completer, Decoding
from pspo.scores import Record
from pspo.seeds import derive
from pspo.types import Completion, Problem

FIRST = ("correct", "status", "tokens")  # of the first completion, at the record's top level


@dataclass(frozen=True)
class Protocol:
    """How completions are drawn: T=0 and one sample is the paper's."""

    decoding: Decoding
    max_prompt_tokens: int
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.decoding.temperature == 0


def evaluate(
    sampler: Completer, prompter: Prompter, grader: Grader, problems: Sequence[Problem], protocol: Protocol
) -> list[Record]:
    """One record a problem, in order, of the form written to `<run_dir>/eval/<benchmark>.jsonl` (docs/files.md).

    Completions of a problem are graded while others are still being sampled. Raises ConfigError for a prompt that is
    too long, NonFiniteError where the policy is damaged.
    """
    prompts = prompts_of(problems, prompter, protocol.max_prompt_tokens)
    seeds = [derive(protocol.seed, "evaluation", problem.id) for problem in problems]
    drawn: dict[int, tuple[list[Completion], Future[list[Grade]]]] = {}
    for index, completions in sampler.stream(prompts, seeds, protocol.decoding):
        stop_if_not_finite(completions)
        gold = problems[index].gold
        drawn[index] = completions, grader.submit([(c.text, gold, prompter.style) for c in completions])
    return [_record(problem, prompter.hash, *drawn[index]) for index, problem in enumerate(problems)]


def prompts_of(problems: Iterable[Problem], prompter: Prompter, longest: int) -> list[tuple[int, ...]]:
    """The prompts as token ids; raises ConfigError where one is longer than that: no problem is left out silently."""
    prompts = []
    for problem in problems:
        prompts.append(prompter.encode(problem.question))
        if len(prompts[-1]) > longest:
            needed = f"problem {problem.id} has a prompt of {len(prompts[-1])} tokens"
            raise ConfigError("rollout.max_prompt_tokens", longest, needed)
    return prompts


def _record(
    problem: Problem, prompt_hash: str, completions: Sequence[Completion], grades: Future[list[Grade]]
) -> Record:
    written = [
        _written(c.text, grade, len(c.token_ids), c.finished)
        for c, grade in zip(completions, grades.result(), strict=True)
    ]
    return {
        "id": problem.id,
        "level": problem.level,
        "subject": problem.subject,
        "prompt_hash": prompt_hash,
        "question": problem.question,
        "gold": problem.gold,
        **{key: written[0][key] for key in FIRST},
        "completions": written,
    }


def _written(text: str, grade: Grade, tokens: int, finished: bool) -> dict[str, Any]:
    # An answer in a text that never ended is not counted: with a longer limit the policy might have gone on.
    fields = asdict(grade) | {"right_if_finished": grade.correct}
    if not finished:
        fields |= {"correct": False, "lenient": False}
    return {"text": text, **fields, "tokens": tokens, "finished": finished}


def stop_if_not_finite(completions: Iterable[Completion]) -> None:
    """Raises NonFiniteError where a sampled token's log-prob is not a number: the policy has diverged, or its
    checkpoint is damaged, and what it wrote is noise that must not be reported as wrong answers."""
    for completion in completions:
        if not all(map(math.isfinite, completion.log_probs)):
            raise NonFiniteError("the policy's log-probs are not finite: it has diverged, or its weights are damaged")


def graded_again(records: Sequence[Record], grader: Grader, style: Style) -> list[Record]:
    """The same completions with the grades of today's grader."""
    items = [(c["text"], record["gold"], style) for record in records for c in record["completions"]]
    grades = iter(grader.grade(items))
    again = []
    for record in records:
        written = [_written(c["text"], next(grades), c["tokens"], c["finished"]) for c in record["completions"]]
        again.append({**record, **{key: written[0][key] for key in FIRST}, "completions": written})
    return again
