"""The small world: templated word problems with 2 to 4 operations, and demonstrations of their solutions.

    Grace has 32 books. Grace sells 9 books. Then 3 of them break. How many books are left for Grace?
        steps   32-9=23. 23-3=20.\n#### 20
        terse   32-9-3=20.\n#### 20

Everything follows from seeds. Which split a problem belongs to is a hash of its arithmetic (operations and operands),
so that no computation of the test part is ever seen in training, under any seed. Imports the standard library,
`pspo.seeds` and `pspo.types` only.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Literal, get_args, overload

from pspo.config.schema import WordProblems
from pspo.data.sentences import Operator, render
from pspo.errors import ConfigError
from pspo.seeds import derive
from pspo.types import Problem

Split = Literal["train", "validation", "test"]
Style = Literal["steps", "terse"]

OPERATORS: tuple[Operator, ...] = get_args(Operator)
FACTORS = range(2, 13)


@dataclass(frozen=True, slots=True)
class Example:
    """A problem with its arithmetic: `start`, then the operations from left to right."""

    problem: Problem
    start: int
    operations: tuple[tuple[Operator, int], ...]

    @property
    def signature(self) -> str:
        """The arithmetic alone: "32-9*3" stands for (32-9)*3. What the split is decided by."""
        return _signature(self.start, self.operations)

    @property
    def steps(self) -> tuple[tuple[int, Operator, int, int], ...]:
        """(left, operator, right, result) of each operation."""
        steps, value = [], self.start
        for operator, operand in self.operations:
            result = apply(value, operator, operand)
            steps.append((value, operator, operand, result))
            value = result
        return tuple(steps)


class WordProblemSequence(Sequence[Problem]):
    """The problems of a split. Training problems are made when asked for; the others, a few hundred, at once."""

    def __init__(self, cfg: WordProblems, split: Split) -> None:
        self.cfg, self.split = cfg, split
        self._size = {"train": cfg.train, "validation": cfg.validation, "test": cfg.test}[split]
        self._made = None if split == "train" else examples(cfg, split, self._size)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.example(range(self._size)[index]).problem

    def example(self, index: int) -> Example:
        """The problem with its arithmetic; `index` from 0 to len - 1."""
        return train_example(self.cfg, index) if self._made is None else self._made[index]


def train_example(cfg: WordProblems, index: int) -> Example:
    """Training problem `index`, at no cost for those before it; any index, whatever `cfg.train` is."""
    return _draw(cfg, "train", index, frozenset())


def examples(cfg: WordProblems, split: Split, size: int) -> list[Example]:
    """The first `size` problems of a split, no arithmetic twice; more of them leave the first ones as they are."""
    made: list[Example] = []
    seen: set[str] = set()
    for index in range(size):
        made.append(_draw(cfg, split, index, seen))
        seen.add(made[-1].signature)
    return made


def split_of(signature: str) -> Split:
    """80% of all arithmetic is for training, 10% for validation, 10% for the test; the same under every seed."""
    tenth = int.from_bytes(hashlib.sha256(f"pspo word problem {signature}".encode()).digest()[:8], "big") % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"


def demonstration(example: Example, style: Style) -> str:
    """A correct solution in one of the two styles; both are true arithmetic."""
    answer = example.steps[-1][-1]
    if style == "steps":
        work = " ".join(f"{left}{operator}{right}={result}." for left, operator, right, result in example.steps)
    else:
        work = f"{expression(example.start, example.operations)}={answer}."
    return f"{work}\n#### {answer}"


def expression(start: int, operations: Sequence[tuple[Operator, int]]) -> str:
    """The chain as one expression, with the brackets that the usual order of operations needs and no others.

    >>> expression(32, [("-", 9), ("*", 3), ("-", 4)])
    '(32-9)*3-4'
    """
    text, sum_so_far = str(start), False
    for operator, operand in operations:
        if operator in "*/" and sum_so_far:
            text = f"({text})"
        text, sum_so_far = f"{text}{operator}{operand}", operator in "+-"
    return text


def apply(left: int, operator: Operator, right: int) -> int:
    """One operation on whole numbers; ValueError where the result is not whole."""
    if operator == "/":
        if left % right:
            raise ValueError(f"{left}/{right} is not whole")
        return left // right
    return left + right if operator == "+" else left - right if operator == "-" else left * right


# --- reading solutions -----------------------------------------------------------------------------------------------

_EQUATION = re.compile(r"(?<![-+*/()\d])([-+*/()\d]{1,200})=(\d{1,100})(?!\d)")  # longer ones are nobody's arithmetic


def equations(text: str) -> list[tuple[str, str]]:
    """(left side, right side) of each equation before the answer line.

    >>> equations("32-9=23. 23-3=20.\\n#### 20")
    [('32-9', '23'), ('23-3', '20')]
    """
    return [(match[1], match[2]) for match in _EQUATION.finditer(text.split("####")[0])]


def style_of(text: str) -> Literal["steps", "terse", "other"]:
    """ "steps": equations of one operation each, two or more; "terse": a single equation of several operations."""
    counts = [sum(left.count(operator) for operator in OPERATORS) for left, _ in equations(text)]
    if len(counts) >= 2 and all(count == 1 for count in counts):
        return "steps"
    return "terse" if len(counts) == 1 and counts[0] >= 2 else "other"


def arithmetic_holds(text: str) -> bool:
    """Is every equation of a solution true? A wrong answer of true equations is a misread problem."""
    return all(_value(left) == int(right) for left, right in equations(text))


@lru_cache(maxsize=1 << 16)  # a study's solutions have few different ones
def _value(text: str) -> Fraction | None:
    """The value of an expression of whole numbers, + - * / and brackets; None where it has none."""
    try:
        return _fold(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _fold(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.BinOp):
        left, right = _fold(node.left), _fold(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div):
            return left / right
    raise ValueError("not the arithmetic of a solution")


# --- drawing problems ------------------------------------------------------------------------------------------------


ATTEMPTS = 20_000  # a split's arithmetic is used up long before


def _draw(cfg: WordProblems, split: Split, index: int, seen: frozenset[str] | set[str]) -> Example:
    """Problem `index` of a split: the first chain of its seed whose arithmetic belongs there and is not in `seen`."""
    rng = random.Random(derive(cfg.seed, "wordproblems", split, index))
    level = cfg.levels[index % len(cfg.levels)]
    for _ in range(ATTEMPTS):
        start, operations = _chain(rng, level, cfg.max_value)
        signature = _signature(start, operations)
        if split_of(signature) == split and signature not in seen:
            break
    else:
        few = f"too little arithmetic of {level} operations for more than {len(seen)} {split} problems"
        raise ConfigError("data.max_value", cfg.max_value, few)
    aside = rng.randint(2, 99) if rng.random() < cfg.distractor_share else None
    question = render(rng, start, operations, aside)
    gold = start
    for operator, operand in operations:
        gold = apply(gold, operator, operand)
    example = Example(Problem(f"wp-{split}-{index:06d}", question, str(gold), str(level)), start, operations)
    return replace(example, problem=replace(example.problem, solution=demonstration(example, "steps")))


def _chain(rng: random.Random, level: int, largest: int) -> tuple[int, tuple[tuple[Operator, int], ...]]:
    """A start value and `level` operations; all values are whole, from 1 to `largest`, and operands at least 2."""
    start = value = rng.randint(4, largest // 3)
    operations: list[tuple[Operator, int]] = []
    while len(operations) < level:
        operator = rng.choice(OPERATORS)
        operands = _operands(operator, value, largest)
        if not operands:
            continue
        operand = rng.choice(operands)
        value = apply(value, operator, operand)
        operations.append((operator, operand))
    return start, tuple(operations)


def _operands(operator: Operator, value: int, largest: int) -> Sequence[int]:
    """What may stand on the right of `value operator`."""
    if operator == "+":
        return range(2, min(largest // 3, largest - value) + 1)
    if operator == "-":
        return range(2, value)
    if operator == "*":
        return [factor for factor in FACTORS if value * factor <= largest]
    return [factor for factor in FACTORS if value % factor == 0]


def _signature(start: int, operations: Sequence[tuple[Operator, int]]) -> str:
    return str(start) + "".join(f"{operator}{operand}" for operator, operand in operations)
