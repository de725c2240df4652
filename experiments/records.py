"""What runs have written (CONTRACT.md's files), read back: metrics by step and graded problems. Never torch.

Only a run with DONE counts. A line that cannot be read in a finished run is an error that names file and line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pspo.errors import PspoError
from pspo.grading import Style
from pspo.scores import ks, majority_right, pass_at_k, right

NOT_GRADED = ("timeout", "gold_unreadable", "error")
"""Outcomes that are not answers at all; they count as not correct, and are shown apart."""

Metrics = Mapping[int, Mapping[str, float | None]]
"""Step -> metric -> value; None: not finite."""


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
    """Problem id -> what became of it, in the file's order. Raises PspoError for a file that is not whole.

    Tables, verdicts, figures and samples all ask for the same files: one that has not changed is read once.
    """
    found = path.stat() if path.is_file() else None
    return _read_graded(path, found and (found.st_ino, found.st_mtime_ns, found.st_size))


@cache
def _read_graded(path: Path, _version: tuple[int, int, int] | None) -> Mapping[str, Graded]:
    graded: dict[str, Graded] = {}
    for number, line in enumerate(read_jsonl(path), start=1):
        try:
            first = line["completions"][0]
            graded[line["id"]] = Graded(
                id=line["id"],
                level=str(line.get("level", "")),
                gold=line["gold"],
                text=first["text"],
                correct=bool(line["correct"]),
                lenient=bool(first["lenient"]),
                status=line["status"],
                finished=bool(first["finished"]),
                question=line.get("question"),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise PspoError(f"{path}, line {number}: no {error} there; evaluate again, or remove the file") from error
    if not graded:
        raise PspoError(f"{path}: no problems in it; evaluate again, or remove the file")
    return graded


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
    for number, line in enumerate(read_jsonl(path), start=1):
        try:
            samples, count = len(line["completions"]), right(line)
            pass_at = {k: pass_at_k(samples, count, k) for k in ks(samples)}
            found[line["id"]] = Drawn(count / samples, pass_at, majority_right(line["completions"], style))
        except (KeyError, ZeroDivisionError, TypeError) as error:
            raise PspoError(f"{path}, line {number}: no {error} there; evaluate again, or remove the file") from error
    return found


def read_metrics(run_dir: Path) -> Metrics:
    """The metrics of a run, steps in order. A step written twice has its later values."""
    steps: dict[int, Mapping[str, float | None]] = {}
    for number, line in enumerate(read_jsonl(run_dir / "metrics.jsonl"), start=1):
        try:
            steps[int(line["step"])] = line
        except (KeyError, TypeError) as error:
            raise PspoError(f"{run_dir / 'metrics.jsonl'}, line {number}: no {error} there") from error
    return {step: steps[step] for step in sorted(steps)}


def read_summary(run_dir: Path) -> dict[str, Any]:
    """A complete run's summary.json."""
    return read_json(run_dir / "summary.json")


def read_json(path: Path) -> dict[str, Any]:
    """Raises PspoError naming the file where it is missing, or holds something else than an object."""
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError as error:
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
        except json.JSONDecodeError as error:
            raise PspoError(f"{path}, line {number}: not JSON ({error})") from error
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = "remove DONE beside it to run it again"
        raise PspoError(f"{path} is missing though its run is marked complete; {remedy}") from None
    except UnicodeDecodeError as error:
        raise PspoError(f"{path}: not text in UTF-8 ({error})") from error
