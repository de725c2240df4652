"""The generator: its bits, its splits, and arithmetic checked by an evaluator of its own."""

import hashlib
import re
from dataclasses import replace

import pytest

from pspo.config import SftConfig, compose
from pspo.config.schema import WordProblems
from pspo.data import load_problems
from pspo.data.wordproblems import (
    WordProblemSequence,
    arithmetic_holds,
    demonstration,
    equations,
    examples,
    expression,
    split_of,
    style_of,
    train_example,
)

# A change of these is a change of the data set: every result made before is then of other problems.
HASHES = {"train": "90ae99aa75272501", "validation": "22f871a72380231b", "test": "9b19cc7bf4f95ad8"}


@pytest.fixture(scope="module")
def world() -> WordProblems:
    data = compose("sft", SftConfig).data
    assert isinstance(data, WordProblems)
    return data


def value(text: str) -> int:
    """An expression by recursive descent, division exact: independent of the generator and of Python's parser."""
    tokens = re.findall(r"\d+|[-+*/()]", text)
    assert "".join(tokens) == text

    def sum_() -> int:
        total = product()
        while tokens and tokens[0] in "+-":
            total = total + product() if tokens.pop(0) == "+" else total - product()
        return total

    def product() -> int:
        total = atom()
        while tokens and tokens[0] in "*/":
            if tokens.pop(0) == "*":
                total *= atom()
            else:
                total, rest = divmod(total, atom())
                assert rest == 0
        return total

    def atom() -> int:
        if tokens[0] != "(":
            return int(tokens.pop(0))
        tokens.pop(0)
        inner = sum_()
        assert tokens.pop(0) == ")"
        return inner

    result = sum_()
    assert not tokens
    return result


def digest(world: WordProblems, split: str) -> str:
    text = "\n".join(f"{p.id}|{p.question}|{p.gold}|{p.level}" for p in load_problems(world, split, seed=0)[:100])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_first_hundred_problems_of_each_split_are_fixed(world: WordProblems) -> None:
    assert {split: digest(world, split) for split in ("train", "validation", "test")} == HASHES


def test_a_problem_does_not_depend_on_how_many_there_are_nor_on_those_before(world: WordProblems) -> None:
    more = replace(world, train=7, test=world.test + 50)
    assert load_problems(world, "train", 0)[5] == load_problems(more, "train", 0)[-2]
    assert load_problems(world, "test", 0)[:] == load_problems(more, "test", 0)[: world.test]
    assert load_problems(world, "train", 0)[17].id == "wp-train-000017"
    with pytest.raises(IndexError):
        load_problems(more, "train", 0)[7]


def test_another_seed_gives_other_problems_and_the_same_split_of_arithmetic(world: WordProblems) -> None:
    other = replace(world, seed=1)
    assert train_example(world, 0).problem.question != train_example(other, 0).problem.question
    test = {e.signature for e in examples(world, "test", 500)}
    assert not test & {train_example(other, i).signature for i in range(3000)}


def test_no_arithmetic_is_in_two_splits_or_twice_in_a_held_out_one(world: WordProblems) -> None:
    held_out = [e.signature for split in ("validation", "test") for e in examples(world, split, 1500)]
    train = {train_example(world, i).signature for i in range(10_000)}
    assert len(set(held_out)) == 3000
    assert not train & set(held_out)


def test_the_split_by_hash_gives_eight_tenths_to_training() -> None:
    splits = [split_of(f"{a}+{b}") for a in range(2, 102) for b in range(2, 102)]
    assert splits.count("train") == pytest.approx(8000, abs=200)
    assert splits.count("validation") == pytest.approx(1000, abs=120)


def test_levels_bounds_and_text_of_thousands(world: WordProblems) -> None:
    for i in range(3000):
        example = train_example(world, i)
        level = int(example.problem.level)
        assert level == len(example.operations) == world.levels[i % 3]
        values = [example.start, *(result for *_, result in example.steps)]
        assert all(1 <= v <= world.max_value for v in values) and all(k >= 2 for _, k in example.operations)
        numbers = re.findall(r"\d+", example.problem.question)
        words = len(re.findall("twice|doubles|half", example.problem.question))
        assert level + 1 <= len(numbers) + words <= level + 2
        assert re.fullmatch(r"[A-Za-z0-9 .]+\?", example.problem.question)


def test_the_share_of_problems_with_a_sentence_that_does_not_matter(world: WordProblems) -> None:
    def extra(cfg: WordProblems, i: int) -> int:
        example = train_example(cfg, i)
        words = len(re.findall("twice|doubles|half", example.problem.question))
        return len(re.findall(r"\d+", example.problem.question)) + words - len(example.operations) - 1

    assert sum(extra(world, i) for i in range(2000)) == pytest.approx(2000 * world.distractor_share, abs=80)
    assert sum(extra(replace(world, distractor_share=0.0), i) for i in range(300)) == 0
    assert sum(extra(replace(world, distractor_share=1.0), i) for i in range(300)) == 300


@pytest.mark.parametrize("style", ["steps", "terse"])
def test_demonstrations_are_true_arithmetic(world: WordProblems, style: str) -> None:
    for i in range(2000):
        example = train_example(world, i)
        text = demonstration(example, style)
        work, answer = text.split("\n#### ")
        assert answer == example.problem.gold
        for equation in work.rstrip(".").split(". "):
            left, right = equation.split("=")
            assert value(left) == int(right), text
        assert int(right) == int(answer) and style_of(text) == style and arithmetic_holds(text)


def test_brackets_stand_where_they_are_needed_and_nowhere_else() -> None:
    assert expression(32, [("-", 9), ("-", 3)]) == "32-9-3"
    assert expression(32, [("*", 2), ("/", 4), ("+", 1)]) == "32*2/4+1"
    assert expression(32, [("+", 4), ("/", 6), ("-", 1), ("*", 2)]) == "((32+4)/6-1)*2"


@pytest.mark.parametrize(
    ("text", "style", "holds"),
    [
        ("32-9=23. 23-3=20.\n#### 20", "steps", True),
        ("32-9=24. 24-3=21.\n#### 21", "steps", False),
        ("32-9-3=20.\n#### 20", "terse", True),
        ("(32-9)*3=70.\n#### 70", "terse", False),
        ("32-9-3=20. 20+1=21.\n#### 21", "other", True),
        ("32-9=23.\n#### 23", "other", True),
        ("#### 20", "other", True),
        ("32--9)=20. 1/0=7.\n#### 3", "other", False),
        ("", "other", True),
    ],
)
def test_reading_solutions(text: str, style: str, holds: bool) -> None:
    assert (style_of(text), arithmetic_holds(text)) == (style, holds)


@pytest.mark.parametrize(
    ("text", "count", "holds"),
    [
        ("1" * 200_000 + "=1.", 0, True),
        ("1+1=" + "2" * 200_000, 0, True),
        ("1=" * 100_000, 50_000, True),
        ("(" * 200 + "=1.", 1, False),
        ("-" * 199 + "1=1.", 1, False),
        ("9**9**9**9=1.", 1, False),
        ("9" * 200 + "*" + "9" * 200 + "=1.", 0, True),
        ("9" * 99 + "*" + "9" * 99 + "=" + "9" * 100 + ".", 1, False),
    ],
    ids=["long left", "long right", "many", "brackets", "signs", "powers", "long factors", "factors"],
)
def test_reading_what_is_nobodys_arithmetic(text: str, count: int, holds: bool) -> None:
    """A policy may write anything; it is read in no time (the suite's time-out)."""
    assert (len(equations(text)), arithmetic_holds(text)) == (count, holds)


def test_the_sequence_is_lazy_where_it_is_long(world: WordProblems) -> None:
    endless = WordProblemSequence(replace(world, train=10**12), "train")
    assert len(endless) == 10**12
    assert endless[-1].id == f"wp-train-{10**12 - 1}"
