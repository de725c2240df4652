"""The language of the word problems: names, things, a sentence for each operation. Imports the standard library only.

A chain of operations becomes a body (the start value, then a sentence an operation) and a question, which may carry the
last operation itself ("Tom has 9 cups. How many cups do they have together?"). The words are few on purpose: with the
vocabulary of `tokenizer.py` nearly every one of them is a single token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

Operator = Literal["+", "-", "*", "/"]

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo",
    "Ivy", "Jack", "Kate", "Leo", "Maria", "Noah", "Olga", "Tom",
)  # fmt: skip
THINGS = (
    "apples", "balls", "beads", "books", "cards", "coins", "cups", "eggs",
    "nuts", "pens", "plums", "rings", "roses", "shells", "stamps", "toys",
)  # fmt: skip

# n: who it is about; f: somebody else; t: the things; u: other things; k: the number. Always the things by their name,
# never "them": a sentence that does not matter may stand before.
STARTS = ("{n} has {k} {t}.", "{n} owns {k} {t}.", "{n} starts with {k} {t}.", "There are {k} {t} in the box of {n}.")

BODY: dict[Operator, tuple[str, ...]] = {
    "+": (
        "{n} buys {k} {t}.",
        "{n} finds {k} more {t}.",
        "{f} gives {n} {k} {t}.",
        "{n} gets {k} {t} from {f}.",
        "Then {n} wins {k} more {t}.",
    ),
    "-": (
        "{n} sells {k} {t}.",
        "{n} loses {k} of the {t}.",
        "{n} gives {k} {t} to {f}.",
        "{f} takes {k} {t} from {n}.",
        "Then {k} {t} break.",
    ),
    "*": (
        "Then {n} has {k} times as many {t}.",
        "{n} makes the number of {t} {k} times as large.",
    ),
    "/": (
        "{n} makes {k} equal parts of the {t} and keeps one.",
        "{n} shares the {t} in {k} equal parts and keeps one.",
    ),
}
DOUBLE = ("Then the number of {t} doubles.", "Now {n} has twice as many {t}.")
HALF = ("{n} gives half of the {t} to {f}.", "{n} keeps half of the {t}.")

# Questions that add no operation, and questions that carry the last one.
PLAIN_QUESTIONS = ("How many {t} does {n} have now?", "How many {t} are left for {n}?", "How many {t} does {n} keep?")
QUESTIONS: dict[Operator, tuple[str, ...]] = {
    "+": (
        "{f} has {k} {t}. How many {t} do they have together?",
        "{f} owns {k} {t}. How many {t} do {n} and {f} have in all?",
    ),
    "-": (
        "{f} has {k} {t}. How many more {t} does {n} have?",
        "{n} keeps {k} and sells all other {t}. How many {t} does {n} sell?",
    ),
    "*": (
        "{n} sells the {t} for {k} dollars each. How many dollars does {n} get?",
        "The price of the {t} is {k} dollars each. How many dollars are all of the {t}?",
    ),
    "/": (
        "{n} puts {k} {t} in each box. How many boxes are there?",
        "{n} puts the {t} in {k} boxes. How many {t} are in each box?",
    ),
}

# What does not matter. The first are told from an operand only by the question, and stand right before it.
SAME_THINGS = ("{f} has {k} {t}.", "{f} owns {k} {t}.")
ASIDES = ("{f} has {k} {u}.", "{n} also has {k} {u}.", "{n} is {k} years old.", "{f} has {k} dollars.")


def render(rng: random.Random, start: int, operations: Sequence[tuple[Operator, int]], aside: int | None) -> str:
    """A chain of operations as text; `aside`: the number of a sentence that does not matter, None for none."""
    name, friend, other = rng.sample(NAMES, 3)
    thing, unlike = rng.sample(THINGS, 2)
    words = {"n": name, "f": friend, "t": thing, "u": unlike}
    in_question = rng.random() < 0.5
    body = operations[:-1] if in_question else operations

    sentences = [rng.choice(STARTS).format(k=start, **words)]
    for operator, operand in body:
        sentences.append(rng.choice(_sentences(operator, operand)).format(k=operand, **words))
    if aside is not None:
        words_aside = words | {"f": other}
        # "They" and "more" must have one meaning, so beside such a question nobody else has the same things.
        if not in_question and rng.random() < 0.5:
            sentences.append(rng.choice(SAME_THINGS).format(k=aside, **words_aside))
        else:
            place = rng.randint(1, len(sentences))
            sentences.insert(place, rng.choice(ASIDES).format(k=aside, **words_aside))
    if in_question:
        operator, operand = operations[-1]
        sentences.append(rng.choice(QUESTIONS[operator]).format(k=operand, **words))
    else:
        sentences.append(rng.choice(PLAIN_QUESTIONS).format(**words))
    return " ".join(sentences)


def _sentences(operator: Operator, operand: int) -> tuple[str, ...]:
    if operand == 2 and operator == "*":
        return BODY["*"] + DOUBLE
    if operand == 2 and operator == "/":
        return BODY["/"] + HALF
    return BODY[operator]
