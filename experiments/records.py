"""What runs have written (CONTRACT.md's files), read back: metrics by step and graded problems. Never torch.

Only a run with DONE counts. A line that cannot be read in a finished run is an error that names file and line.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pspo.errors import PspoError
from pspo.grading import Style
from pspo.scores import ks, majority_right, pass_at_k, right

NOT_GRADED = ("timeout", "gold_unreadable", "error")
"""Outcomes that are not answers at all; they count as not correct, and are shown apart."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Of a run by step, in order: steps [T], and a column [T] a metric. NaN: a step has it not on record; inf: it was
    not finite."""

    steps: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float64]]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """A column; all NaN for a metric that the run has not on record."""
        found = self.columns.get(name)
        return np.full(len(self.steps), np.nan) if found is None else found


@dataclass(frozen=True, slots=True)
class Graded:
    """The first completion of a problem of a per-problem file: at T=0 the only one."""

    id: str
    level: str
    gold: str
    text: str
    correct: bool
    lenient: bool
    status: str
    finished: bool
    question: str | None
    """Where the file has it."""


def read_graded(path: Path) -> Mapping[str, Graded]:
    """Problem id -> what became of it, in the file's order.

    Raises PspoError for a file that is not whole, or not the one that its summary is of. Tables, verdicts, figures and
    samples all ask for the same files: one that has not changed is read once.
    """
    return _read_graded(path, version_of(path))


Version = tuple[int, int, int] | None


def version_of(path: Path) -> Version:
    """What changes with a file's content."""
    found = path.stat() if path.is_file() else None
    return found and (found.st_ino, found.st_mtime_ns, found.st_size)


@cache
def _read_graded(path: Path, _version: Version) -> Mapping[str, Graded]:
    graded: dict[str, Graded] = {}
    for number, line in enumerate(read_evaluation(path), start=1):
        try:
            first = line["completions"][0]
            one = Graded(
                id=line["id"],
                level=str(line.get("level", "")),
                gold=str(line["gold"]),
                text=first["text"],
                correct=line["correct"],
                lenient=bool(first["lenient"]),
                status=str(line["status"]),
                finished=bool(first["finished"]),
                question=line.get("question"),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise PspoError(f"{path}, line {number}: no {error} there; {AGAIN}") from error
        if type(one.correct) is not bool or not isinstance(one.text, str):
            raise PspoError(f"{path}, line {number}: not a completion that was graded; {AGAIN}")
        graded[one.id] = one
    return graded


AGAIN = "evaluate again, or remove the file"


def read_evaluation(path: Path) -> list[dict[str, Any]]:
    """The lines of a per-problem file, whose summary beside it has its hash. Raises PspoError where it is another, or a
    line names no problem, or one that is there already."""
    lines = read_jsonl(path)
    if not lines:
        raise PspoError(f"{path}: no problems in it; {AGAIN}")
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not isinstance(line.get("id"), str):
            raise PspoError(f"{path}, line {number}: its id is no text, so it is no problem's; {AGAIN}")
        if line["id"] in seen:
            raise PspoError(f"{path}, line {number}: problem {line['id']} is there twice; {AGAIN}")
        seen.add(line["id"])
    summary = path.with_suffix(".summary.json")
    if summary.is_file():
        recorded = read_json(summary).get("sha256")
        if recorded is not None and recorded != hashlib.sha256(path.read_bytes()).hexdigest():
            raise PspoError(f"{path}: not the file that {summary.name} was made from; {AGAIN}")
    return lines


@dataclass(frozen=True, slots=True)
class Drawn:
    """What became of the completions of a problem: the share that is right, pass@k (k -> chance) and majority vote."""

    share: float
    pass_at: Mapping[int, float]
    majority: float


def read_drawn(path: Path, style: Style) -> dict[str, Drawn]:
    """Problem id -> its completions together. Raises PspoError for a file that is not whole.

    `style` in which they were graded: it decides which answers are one in the vote.
    """
    found: dict[str, Drawn] = {}
    counts = set()
    for number, line in enumerate(read_evaluation(path), start=1):
        try:
            samples, count = len(line["completions"]), right(line)
            pass_at = {k: pass_at_k(samples, count, k) for k in ks(samples)}
            found[line["id"]] = Drawn(count / samples, pass_at, majority_right(line["completions"], style))
            counts.add(samples)
        except (KeyError, ZeroDivisionError, TypeError) as error:
            raise PspoError(f"{path}, line {number}: no {error} there; {AGAIN}") from error
    if len(counts) > 1:
        raise PspoError(f"{path}: not the same number of completions for each problem; {AGAIN}")
    return found


def read_metrics(run_dir: Path, steps: int | None = None) -> Metrics:
    """The metrics of a run. A step written twice has its later values.

    `steps` that it has to have, 0 included. Raises PspoError for a file that is not whole. Read once, as graded
    problems are.
    """
    path = run_dir / "metrics.jsonl"
    found = _read_metrics(path, version_of(path))
    if steps is not None:
        planned, there = set(range(steps + 1)), set(found.steps.tolist())
        if missing := planned - there:
            raise PspoError(f"{path}: step {min(missing)} is missing though the run is marked complete")
        if others := there - planned:
            raise PspoError(f"{path}: step {min(others)} in a run of {steps} steps")
    return found


@cache
def _read_metrics(path: Path, _version: Version) -> Metrics:
    by_step: dict[int, dict[str, float]] = {}
    for number, line in enumerate(read_jsonl(path), start=1):
        try:
            step = line["step"]
            if type(step) is not int or not 0 <= step < 2**63:
                raise ValueError(f"step {step!r}")
            by_step[step] = {name: finite(value) for name, value in line.items()}
            if wrong := [name for name in line if is_clock(name) and not 0 <= by_step[step][name] < math.inf]:
                raise ValueError(f"{wrong[0]} {line[wrong[0]]!r}")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise PspoError(f"{path}, line {number}: not the metrics of a step ({error})") from error
    steps = sorted(by_step)
    names = dict.fromkeys(name for step in steps for name in by_step[step])
    columns = {name: np.array([by_step[step].get(name, math.nan) for step in steps]) for name in names}
    return Metrics(np.array(steps, dtype=np.int64), columns)


def is_clock(name: str) -> bool:
    """Is it a metric of seconds that went by? time/other_s is what is left of them, and may be rounded below zero."""
    return name.startswith("time/") and name != "time/other_s"


def finite(value: float | None) -> float:
    """
    >>> finite(2), finite(None), finite(float("nan"))
    (2.0, inf, inf)
    """
    return float(value) if value is not None and math.isfinite(value) else math.inf


def read_summary(run_dir: Path) -> dict[str, Any]:
    """A complete run's summary.json; raises PspoError where it does not say what is needed of it here."""
    path = run_dir / "summary.json"
    found = read_json(path)
    made, validation = found.get("provenance"), found.setdefault("validation", {})
    if not (isinstance(made, dict) and all(isinstance(one, str) for one in made.values())):
        raise PspoError(f"{path}: no provenance in it")
    if not (isinstance(validation, dict) and all(isinstance(one, int | float) for one in validation.values())):
        raise PspoError(f"{path}: validation is not accuracies by step")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Raises PspoError naming the file where it is missing, or holds something else than an object."""
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise PspoError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise PspoError(f"{path}: not a JSON object")
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Raises PspoError naming the file, and the line where there is one."""
    found = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError) as error:  # not JSON, a number too long to be read, brackets without end
            raise PspoError(f"{path}, line {number}: not JSON ({error})") from error
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = "remove DONE beside it to run it again"
        raise PspoError(f"{path} is missing though its run is marked complete; {remedy}") from None
    except UnicodeDecodeError as error:
        raise PspoError(f"{path}: not UTF-8 ({error})") from error
