"""Accuracy of a policy on a list of problems, one record a problem; used while training and by eval/evaluate.py.

    evaluate            the records, here and now
    evaluate_to_file    the same in chunks, each saved when it is done, so that an interrupted evaluation goes on

Imports: rollout, grading, data. No torch of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pspo.grading
from pspo.config import schema
from pspo.data import Prompter
from pspo.errors import ConfigError, NonFiniteError, PspoError
from pspo.grading import Grade, Grader
from pspo.provenance import provenance, versions
from pspo.rollout import Decoding, Sampler
from pspo.scores import Record, scores
from pspo.seeds import derive
from pspo.types import Completion, Problem


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
    sampler: Sampler, prompter: Prompter, grader: Grader, problems: Sequence[Problem], protocol: Protocol
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
    written = [_completion(c, grade) for c, grade in zip(completions, grades.result(), strict=True)]
    return {
        "id": problem.id,
        "level": problem.level,
        "subject": problem.subject,
        "prompt_hash": prompt_hash,
        "question": problem.question,
        "gold": problem.gold,
        **{key: written[0][key] for key in ("correct", "status", "tokens")},
        "completions": written,
    }


def _completion(completion: Completion, grade: Grade) -> dict[str, Any]:
    # An answer in a text that never ended is not counted: with a longer limit the policy might have gone on.
    fields = asdict(grade) | {"right_if_finished": grade.correct}
    if not completion.finished:
        fields |= {"correct": False, "lenient": False}
    return {"text": completion.text, **fields, "tokens": len(completion.token_ids), "finished": completion.finished}


def stop_if_not_finite(completions: Iterable[Completion]) -> None:
    """Raises NonFiniteError where a sampled token's log-prob is not a number: the policy has diverged, or its
    checkpoint is damaged, and what it wrote is noise that must not be reported as wrong answers."""
    for completion in completions:
        if not all(map(math.isfinite, completion.log_probs)):
            raise NonFiniteError("the policy's log-probs are not finite: it has diverged, or its weights are damaged")


# --- an evaluation as a file -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalFile:
    """<name>.jsonl with one record a problem, and <name>.summary.json beside it, written after it.

    identity   all that decides the records. Where the files of the same identity are there, nothing is done again;
               a part of them that an interrupted evaluation left is taken over
    about      what a reader wants to know besides: written into the summary
    """

    path: Path
    identity: dict[str, Any]
    about: dict[str, Any]

    @property
    def summary_path(self) -> Path:
        return self.path.with_suffix(".summary.json")

    @property
    def parts(self) -> Path:
        return self.path.with_name(f".{self.path.name}.parts")

    def complete(self) -> list[Record] | None:
        """The records, where they are all there, unchanged, and of this identity."""
        try:
            summary = json.loads(self.summary_path.read_text(encoding="utf-8"))
            whole = self.path.read_bytes()
        except (OSError, json.JSONDecodeError):
            return None
        if (summary.get("identity"), summary.get("sha256")) != (self.identity, hashlib.sha256(whole).hexdigest()):
            return None
        return [json.loads(line) for line in whole.decode().split("\n") if line]

    def write(self, records: Sequence[Record], greedy: bool) -> None:
        write_records(self.path, records)
        summary = {
            **self.about,
            "scores": scores(records, greedy),
            "identity": self.identity,
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "provenance": provenance(),
        }
        write_whole(self.summary_path, json.dumps(summary, indent=1) + "\n")

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder of finished chunks, for one process at a time; chunks of another identity are thrown away."""
        self.parts.mkdir(parents=True, exist_ok=True)
        with open(self.parts / ".lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PspoError(f"another process is writing {self.path}; wait for it, or end it") from None
            written = self.parts / "identity.json"
            if not written.exists() or written.read_text(encoding="utf-8") != json.dumps(self.identity):
                for part in self.parts.glob("[0-9]*.jsonl"):
                    part.unlink()
                write_whole(written, json.dumps(self.identity))
            yield


def evaluate_to_file(
    file: EvalFile,
    sampler: Sampler,
    prompter: Prompter,
    grader: Grader,
    problems: Sequence[Problem],
    protocol: Protocol,
    chunk: int,
) -> list[Record]:
    """The records of `evaluate`, on disk; `chunk` problems at a time, each saved when it is done.

    Interrupted and started again, it samples what is missing and ends with the same file: a chunk's records depend on
    nothing that was sampled before it.
    """
    if (records := file.complete()) is not None:
        return records
    with file.held():
        records = []
        for start in range(0, len(problems), chunk):
            part, some = file.parts / f"{start:07d}.jsonl", problems[start : start + chunk]
            if not part.exists():
                sampler.forget()
                write_records(part, evaluate(sampler, prompter, grader, some, protocol))
            records += [json.loads(line) for line in part.read_text(encoding="utf-8").split("\n") if line]
            if len(problems) > chunk:
                print(f"{file.path.name}: {len(records)} of {len(problems)} problems", file=sys.stderr, flush=True)
        file.write(records, protocol.greedy)
        shutil.rmtree(file.parts)
    return records


def identity(
    checkpoint: Path,
    rollout: schema.Rollout,
    device: str,
    prompter: Prompter,
    problems: Sequence[Problem],
    protocol: Protocol,
    chunk: int,
) -> dict[str, Any]:
    """All that decides the records of an evaluation: weights, engine, prompts, problems, decoding, grader, versions."""
    asked = [(problem.id, problem.question, problem.gold) for problem in problems]
    graders = sorted(Path(pspo.grading.__file__).parent.glob("*.py"))
    return {
        "checkpoint": digest(sorted([*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.json")])),
        "prompt": prompter.hash,
        "style": prompter.style,
        "problems": hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16],
        "protocol": asdict(protocol),
        "engine": {"name": rollout.engine, "dtype": rollout.dtype, "device": device},
        "chunk": chunk,
        "grading": digest(graders),
        "packages": versions(),
    }


def digest(files: Iterable[Path]) -> str:
    """Sixteen hex digits of the files' names and contents."""
    whole = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Writes the file whole: complete or as it was."""
    write_whole(path, "".join(json.dumps(record) + "\n" for record in records))


def write_whole(path: Path, text: str) -> None:
    """Writes a file complete or leaves it as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
