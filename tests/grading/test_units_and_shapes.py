"""Units with their factors, approximate values, and answers told apart by their form."""

from fractions import Fraction

import pytest

from pspo.grading import Grade
from pspo.grading.grade import settle
from pspo.grading.shapes import cannot_equal, expand_signs
from pspo.grading.units import read_unit, split_unit
from pspo.grading.values import value, values_differ


@pytest.mark.parametrize(
    ("words", "factor", "dimensions"),
    [
        ("cm", Fraction(1, 100), "L1"),
        ("cm^2", Fraction(1, 10_000), "L2"),
        ("square centimeters", Fraction(1, 10_000), "L2"),
        ("cubic feet", Fraction(3048, 10_000) ** 3, "L3"),
        ("sq. ft.", Fraction(3048, 10_000) ** 2, "L2"),
        ("meters squared", Fraction(1), "L2"),
        ("km/h", Fraction(5, 18), "L1T-1"),
        ("mph", Fraction(1_609_344, 3_600_000), "L1T-1"),
        ("miles per hour", Fraction(1_609_344, 3_600_000), "L1T-1"),
        ("dollars per hour", Fraction(1, 3600), "D1T-1"),
        ("cents", Fraction(1, 100), "D1"),
        ("Degrees", Fraction(1), "A1"),
    ],
)
def test_a_unit_is_read(words: str, factor: Fraction, dimensions: str) -> None:
    unit = read_unit(words)
    assert unit is not None
    assert unit.factor == factor
    assert "".join(f"{letter}{power}" for letter, power in unit.dimensions) == dimensions


@pytest.mark.parametrize("words", ["", "apples", "square", "cm cm", "M", "per", "units", "cm per", "of cm"])
def test_other_words_are_no_unit(words: str) -> None:
    assert read_unit(words) is None


@pytest.mark.parametrize(
    ("text", "rest", "known"),
    [
        (r"100\text{ cm}", "100", True), (r"5\,\mathrm{cm}^{2}", "5", True), ("5 cm", "5", True), (r"\$5", "5", True),
        (r"\text{2 hours}", "2", True), (r"45^{\circ}", "45", True), (r"12\pi\text{ square units}", r"12\pi", False),
        (r"3\text{ apples}", "3", False), ("5 x", "5 x", False), (r"\text{even}", r"\text{even}", False),
        (r"5\text{ or more}", r"5\text{ or more}", False), (r"4:30\text{ p.m.}", r"4:30\text{ p.m.}", False),
        (r"\sin 30^\circ", r"\sin 30^\circ", False),
    ],
)  # fmt: skip
def test_a_unit_is_split_off(text: str, rest: str, known: bool) -> None:
    assert (split_unit(text)[0], split_unit(text)[1] is not None) == (rest, known)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("(x+1)^2", "x^2+2x+1"), (r"\frac12", "0.5"), (r"\frac\pi4", r"\pi/4"), (r"2\frac12", "2.5"),
        (r"2\sqrt3", r"\sqrt{12}"),
        (r"\sqrt[3]{8}", "2"), ("-2^2", "-4"), ("(1+i)^2", "2i"), (r"2\cdot-3", "-6"), ("1,000", "10^3"),
        ("x_1", "x_{1}"),
        (r"x\frac{1}{2}", "x/2"), (r"\left(2\right)\!^{10}", "1024"), ("--3", "3"), (".5", r"50\cdot0.01"),
    ],
)  # fmt: skip
def test_equal_expressions_have_one_value(first: str, second: str) -> None:
    one, other = value(first), value(second)
    assert one is not None and other is not None
    assert not values_differ(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [("x^2", "y^2"), ("(x+1)^2", "x^2+1"), (r"2\frac12", "1"), ("i", "-i"), (r"\pi", "3.14"), ("0", "x")],
)
def test_other_expressions_have_another(first: str, second: str) -> None:
    assert values_differ(first, second)
    assert values_differ(second, first)


@pytest.mark.parametrize(
    "text",
    ["", "1/2x", "4 2", "2^10", "5!", "x'", r"\sin x", "(1,2)", "9^{9^{9}}", "1/0", r"\sqrt{-x}x=",
     "(" * 5000, "2^{3}^{4}",
     r"(-8)^{1/3}", r"\text{5}", "x=5", "5|6", r"\frac{}{}", r"\frac{1}", "x_", "2^{-"],
)  # fmt: skip
def test_what_is_ambiguous_or_unknown_has_no_value(text: str) -> None:
    assert value(text) is None
    assert not values_differ(text, "7")


# Each of these math-verify accepts, or has accepted in a neighbouring spelling.
FALSE = [
    ("5", r"5\text{ is wrong}"), ("5", r"\text{not }5"), (r"\{1,2\}", "(1,2)"), (r"\{1,2\}", "(2,1)"),
    ("(1,2)", r"\{1,2\}"),
    ("even", "neve"), ("1,2,3", r"1,2,3,\ldots"), ("5", r"5\ldots"), ("1,1,2", "1,2"), ("5", r"4\equiv5"), ("x", "x'"),
    (r"\frac{2}{15}", r"4:30\text{ p.m.}"), ("10:30", r"\frac{1}{3}"), ("12", "12_3"), ("1", r"\frac{x}{x}"),
    ("3:2", "3:2:1"), ("x=1,y=2", "2,1"), (r"\frac12", r"\int_0^1 x dx"), ("55", r"\sum_{n=1}^{10} n"), ("42", "4 2"),
    (r"\pi", "3.14159265"), (r"\frac13", "0.3333333"), ("0.1234567", "0.1234568"), ("5", "5..."),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), FALSE)
def test_what_math_verify_would_accept_is_refused_without_it(gold: str, answer: str) -> None:
    outcome = settle(f"\\boxed{{{answer}}}", gold, "math")
    assert isinstance(outcome, Grade)
    assert (outcome.correct, outcome.status) == (False, "ok")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("(x+1)^2", "x^2+2x+1"),
        (r"\{1,2\}", "2,1"),
        ("(1,2)", "1, 2.0"),
        (r"1\pm\sqrt2", r"1+\sqrt2,1-\sqrt2"),
        (r"\log_2 8", "3"),
    ],
)
def test_what_may_be_equal_is_not_refused_by_its_form(gold: str, answer: str) -> None:
    assert cannot_equal(gold, answer) is None


@pytest.mark.parametrize(
    ("gold", "answer", "reason"),
    [
        ("even", "neve", "other words"), ("HTH", "HHT", "other letters"), ("CAT", "ACT", "other letters"),
        ("x", "x'", "a mark on one side"), ("12", "12_3", "a base"), ("x^2", "y^2", "another value"),
        (r"\{1,2\}", "(1,2)", "other brackets or parts"), ("5", "5x", "a variable on one side"),
    ],
)  # fmt: skip
def test_a_refusal_says_why(gold: str, answer: str, reason: str) -> None:
    assert cannot_equal(gold, answer) == reason


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        (r"\pm 2", "+ 2,- 2"), (r"\frac{1\pm\sqrt5}{2}", r"\frac{1+\sqrt5}{2},\frac{1-\sqrt5}{2}"), ("1,2", "1,2"),
        (r"\left\{\pm1,3\right\}", r"\{+1,-1,3\}"), (r"(\pm1,2)", "(+1,2),(-1,2)"),
        (r"1\pm2\pm3", "1+2+3,1+2-3,1-2+3,1-2-3"), (r"1\pm2\pm3\pm4", r"1\pm2\pm3\pm4"), (r"1\pm2\mp3", r"1\pm2\mp3"),
    ],
)  # fmt: skip
def test_both_signs_are_written_out(text: str, expanded: str) -> None:
    assert expand_signs(text) == expanded


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("0", r"\frac12-\frac13-\frac16"), ("0", r"\sqrt3\cdot\sqrt3-3"),
        (r"(\sqrt2-1)^{10}", r"3363-2378\sqrt2"), (r"(3+2\sqrt2)^{-6}", r"19601-13860\sqrt2"),
        ("2", r"\frac{2\cdot(3363-2378\sqrt2)}{(\sqrt2-1)^{10}}"),
    ],
)  # fmt: skip
def test_terms_that_cancel_prove_no_difference(gold: str, answer: str) -> None:
    assert not values_differ(gold, answer) and not values_differ(answer, gold)


@pytest.mark.parametrize(
    "words",
    ["k", "dozen", "squared", "factorial", "tenths", "plus one", "maybe six", "bananas minus one apple", "pi", "or so"],
)
def test_words_that_change_a_number_are_no_unit(words: str) -> None:
    assert split_unit(rf"5\text{{ {words}}}") == (rf"5\text{{ {words}}}", None)
