"""Scores by hand: pass@k, majority votes, intervals, outcomes and lengths of small made-up evaluations."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pspo.intervals import wilson
from pspo.scores import ks, lines, majority_right, pass_at_k, scores


def completion(answer="4", correct=True, finished=True, status="ok", tokens=10, lenient=None):
    return {
        "text": "", "answer": answer, "correct": correct and finished, "right_if_finished": correct,
        "lenient": correct if lenient is None else lenient, "status": status, "tokens": tokens, "finished": finished,
    }  # fmt: skip


def record(*completions, level="", subject=""):
    return {"id": "x", "level": level, "subject": subject, "completions": list(completions)}


WRONG = completion("5", correct=False)
NONE = completion(None, correct=False, status="no_answer")


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case):
    n, c, k = case
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("samples", "expected"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (16, [1, 2, 4, 8, 16])])
def test_ks(samples, expected):
    assert ks(samples) == expected


@pytest.mark.parametrize(
    ("completions", "expected", "style"),
    [
        ([completion(), completion("4.0"), WRONG], 1.0, "gsm8k"),  # 4 and 4.0 are one answer
        ([completion(), WRONG, WRONG], 0.0, "gsm8k"),
        ([completion(), WRONG], 0.5, "gsm8k"),  # a tie
        ([completion(), WRONG, completion("6", correct=False)], 1 / 3, "gsm8k"),
        ([completion(), NONE, NONE, NONE], 1.0, "gsm8k"),  # no answer, no vote
        ([completion(finished=False), WRONG], 0.0, "gsm8k"),  # nor one that was cut
        ([NONE, NONE], 0.0, "gsm8k"),
        ([completion(r"\frac{1}{2}"), completion("0.5"), completion("1", correct=False)], 1.0, "math"),
        ([completion(r"\text{(B)}"), completion("B"), completion("A", correct=False)], 1.0, "math"),
        ([completion("x=4"), completion(r"4\text{ cm}"), completion("4"), WRONG, WRONG], 1.0, "math"),
        ([completion("1,2"), completion("2,1"), completion(r"\{1, 2\}"), WRONG, WRONG], 1.0, "math"),
        ([completion("(1,2)"), completion("(2,1)", correct=False), WRONG], 1 / 3, "math"),
    ],
)
def test_majority(completions, expected, style):
    assert majority_right(completions, style) == pytest.approx(expected)


def test_greedy_scores_by_hand():
    cut = completion(finished=False, tokens=40)
    records = [
        record(completion(tokens=20), level="1", subject="Algebra"),
        record(WRONG, level="1", subject="Geometry"),
        record(cut, level="2", subject="Algebra"),
        record(NONE | {"lenient": True}, level="2", subject="Algebra"),
    ]
    found = scores(records, "gsm8k")
    assert (found["problems"], found["samples"], found["accuracy"]) == (4, 1, 0.25)
    assert found["interval"] == list(wilson(1, 4)) and found["interval_method"] == "Wilson"
    assert found["lenient_accuracy"] == 0.75  # of `cut` the record itself says that it does not count
    assert found["status"] == {"ok": 3, "no_answer": 1, "timeout": 0, "gold_unreadable": 0, "error": 0}
    assert (found["truncated_share"], found["truncated_right_share"], found["no_answer_share"]) == (0.25, 0.25, 0.25)
    assert found["tokens"] == {"mean": 20, "median": 15, "p95": 40, "max": 40, "mean_right": 20, "mean_wrong": 20}
    assert found["by_level"]["1"]["accuracy"] == 0.5 and found["by_level"]["2"]["problems"] == 2
    assert found["by_subject"]["Algebra"]["accuracy"] == pytest.approx(1 / 3)
    text = "\n".join(lines(found))
    assert "accuracy 25.0%" in text and "truncated 25.0%" in text and "Algebra 33.3%" in text


def test_scores_of_several_samples():
    records = [record(completion(), WRONG), record(WRONG, WRONG), record(completion(), completion())]
    found = scores(records, "gsm8k", greedy=False)
    assert found["accuracy"] == 0.5 and found["pass_at"] == {"1": 0.5, "2": pytest.approx(2 / 3)}
    assert found["majority"] == 0.5
    low, high = found["interval"]
    assert found["interval_method"] == "bootstrap over problems" and 0 <= low < 0.5 < high <= 1
    assert found["by_level"] == found["by_subject"] == {}
    assert found == scores(records, "gsm8k", greedy=False)  # its draws are seeded
    assert "pass@2 66.7%" in "\n".join(lines(found))


def test_outcomes_that_are_not_answers_are_told():
    found = scores([record(completion("x", correct=False, status="timeout")), record(completion())], "gsm8k")
    assert "not graded: 1 timeout" in lines(found)


def test_the_bootstrap_over_problems_has_its_textbook_width():
    records = [record(completion(), WRONG) if i % 2 else record(completion(), completion()) for i in range(400)]
    low, high = scores(records, "gsm8k", greedy=False)["interval"]
    assert high - low == pytest.approx(2 * 1.96 * 0.25 / math.sqrt(400), rel=0.1)
