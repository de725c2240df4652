"""The official solutions of GSM8K and MATH are right answers to their own problems, and wrong ones to others."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest

from pspo.grading import Grader, grade
from pspo.grading.answers import last_box

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
    order = list(range(len(golds)))
    random.Random(0).shuffle(order)
    for others in (order, [*range(1, len(golds)), 0]):
        for gold, value, other in zip(golds, values, others, strict=True):
            outcome = grade(golds[other], gold)
            assert (outcome.correct, outcome.status) == (value == values[other], "ok")
    for gold in golds:
        assert grade(gold.replace("####", "The answer is"), gold).lenient


@pytest.mark.parametrize(("split", "empty"), [("train", 2), ("test", 0)])
def test_math_solutions(split: str, empty: int) -> None:
    golds = solutions(f"math/{split}.jsonl", "solution")
    grades = [grade(gold, gold, "math") for gold in golds]
    assert sum(g.status == "gold_unreadable" for g in grades) == empty  # the rows whose box is empty
    assert [g for g in grades if not g.correct and g.status != "gold_unreadable"] == []


def bare(gold: str) -> str:
    """A gold without name, unit, degree, percent and dollar sign, in one spelling; written apart from the grader's."""
    text = re.sub(r"^[A-Za-z]\s*=\s*", "", gold)
    text = re.sub(r"\^\{?\\circ\}?|\\?%|\\\$|\\text\{[^{}]*\}|\\[dt](?=frac)|\\!|\s", "", text)
    return re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text.replace("\\dfrac", "\\frac"))


EQUAL = {(r"\frac{2 \pi}{3}", r"\frac{2}{3}\pi")}  # the one accepted pair that differs in more than `bare` removes


@pytest.mark.parametrize("split", ["train", "test"])
def test_math_solutions_of_other_problems(split: str) -> None:
    """A pair of problems is accepted only where their golds are one answer in two spellings."""
    golds = [g for g in solutions(f"math/{split}.jsonl", "solution") if last_box(g)]
    shuffled = random.Random(1).sample(golds, len(golds))
    pairs = [*itertools.pairwise(golds), *zip(golds, shuffled, strict=True)]
    with Grader(workers=2) as grader:
        grades = grader.grade([(other, gold, "math") for gold, other in pairs])
    accepted = [(last_box(g), last_box(o)) for (g, o), grade in zip(pairs, grades, strict=True) if grade.correct]
    assert accepted
    assert [pair for pair in accepted if bare(pair[0] or "") != bare(pair[1] or "") and pair not in EQUAL] == []
    assert sum(g.status not in ("ok", "gold_unreadable") for g in grades) == 0
    same = [grade for (g, o), grade in zip(pairs, grades, strict=True) if last_box(g) == last_box(o)]
    assert same and all(grade.correct for grade in same)
