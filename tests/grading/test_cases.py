"""Labelled completions, each of which a person could judge at a glance, and texts made to break a grader.

The cases are data (`cases/README.md` says what a line holds); each is a test of its own.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cputime import CpuTime

from pspo.grading import Grade, Grader, grade
from pspo.grading.pool import Item

CASES = Path(__file__).parent / "cases"


def cases(*names: str) -> list[dict[str, Any]]:
    lines = (line for name in names for line in (CASES / f"{name}.jsonl").read_text(encoding="utf-8").split("\n"))
    return [json.loads(line) for line in lines if line.strip()]


def text(value: Any) -> str:
    """A text as it is, or one written as what repeats and what stands around it."""
    return value if isinstance(value, str) else value["before"] + value["repeat"] * value["times"] + value["after"]


def item(case: dict[str, Any]) -> Item:
    return text(case["completion"]), text(case["gold"]), case["style"]


def agrees(outcome: Grade, expected: str) -> bool:
    if expected == "not_right":
        return not outcome.correct
    seen = ("right" if outcome.correct else "wrong") if outcome.status == "ok" else outcome.status
    return seen == expected


LABELLED, HOSTILE = cases("gsm8k", "math"), cases("hostile")


def names(given: list[dict[str, Any]]) -> list[str]:
    return [case["id"] for case in given]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1, timeout=2.0) as grader:
        grader.grade([(r"\boxed{(x+1)^2}", "x^2+2x+1", "math")])  # the worker is up
        yield grader


def test_there_are_enough_cases() -> None:
    assert len(LABELLED) >= 300 and len(HOSTILE) >= 100
    every = names(LABELLED + HOSTILE)
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("case", LABELLED, ids=names(LABELLED))
def test_labelled(case: dict[str, Any], grader: Grader) -> None:
    (outcome,) = grader.grade([item(case)])
    assert agrees(outcome, case["expect"]), (case, outcome)


def check_cheap(case: dict[str, Any], graded: Callable[[], Grade]) -> None:
    """The label holds, and so do the bounds: of CPU time here, and a generous one of time on the wall."""
    wall = time.monotonic()
    with CpuTime() as cpu:
        outcome = graded()
    assert cpu.seconds < min(case["seconds"], 0.5), (case["id"], outcome.status)
    assert time.monotonic() - wall < 30 + case["seconds"], (case["id"], outcome.status)
    assert agrees(outcome, case["expect"]), (case["id"], outcome)


@pytest.mark.parametrize("case", HOSTILE, ids=names(HOSTILE))
def test_hostile(case: dict[str, Any], grader: Grader) -> None:
    check_cheap(case, lambda: grader.grade([item(case)])[0])


@pytest.mark.parametrize("case", HOSTILE[::4], ids=names(HOSTILE[::4]))
def test_hostile_in_process(case: dict[str, Any]) -> None:
    grade(r"\boxed{(x+1)^2}", "x^2+2x+1", "math")  # the worker is up
    check_cheap(case, lambda: grade(*item(case)))
