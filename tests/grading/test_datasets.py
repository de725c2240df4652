"""The official solutions of GSM8K and MATH are right answers to their own problems, and wrong ones to others."""

import json
from pathlib import Path

import pytest

from pspo.grading import grade

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def solutions(path: str, field: str) -> list[str]:
    if not (DATA / path).exists():
        pytest.skip(f"no benchmark data at {path} beside the repository")
    with (DATA / path).open(encoding="utf-8") as lines:
        return [json.loads(line)[field] for line in lines]


@pytest.mark.parametrize("split", ["train", "test"])
def test_gsm8k_solutions(split: str) -> None:
    golds = solutions(f"gsm8k/{split}.jsonl", "answer")
    values = [int(gold.split("####")[-1].replace(",", "")) for gold in golds]
    assert [gold for gold in golds if not grade(gold, gold).correct] == []
    for gold, other, value, other_value in zip(golds[1:], golds, values[1:], values, strict=False):
        assert grade(other, gold).correct == (value == other_value)
        assert grade(other, gold).status == "ok"
        assert grade(gold.replace("####", "The answer is"), gold).lenient


@pytest.mark.parametrize(("split", "empty"), [("train", 2), ("test", 0)])
def test_math_solutions(split: str, empty: int) -> None:
    golds = solutions(f"math/{split}.jsonl", "solution")
    grades = [grade(gold, gold, "math") for gold in golds]
    assert sum(g.status == "gold_unreadable" for g in grades) == empty  # the rows whose box is empty
    assert [g for g in grades if not g.correct and g.status != "gold_unreadable"] == []
