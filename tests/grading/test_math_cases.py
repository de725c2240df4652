"""MATH style: last box; exact numbers, then strings, then math-verify. Each case was read by a person."""

import pytest

from pspo.grading import Grade, grade
from pspo.grading.answers import last_box
from pspo.grading.grade import settle
from pspo.grading.symbolic import compare

# (answer in the box, gold, equal?)
NUMBERS = [
    ("42", "42", True), ("41", "42", False), ("42.0", "42", True), ("042", "42", True), ("-7", "-7", True),
    ("7", "-7", False), (r"\frac12", "0.5", True), (r"\frac{1}{2}", ".5", True), (r"\dfrac{1}{2}", "1/2", True),
    (r"\tfrac12", r"\frac{2}{4}", True), (r"-\frac{33}{2}", r"\frac{-33}{2}", True),
    (r"\frac{1}{3}", "0.333333", False),
    (r"\frac9{5}", "1.8", True), (r"2\frac{1}{2}", "2.5", True), (r"2\frac12", "1", False), ("1,000", "1000", True),
    (r"1,\!000,\!000", "1000000", True), (r"1{,}000", "1000", True), (r"\$36", "36", True), ("$36$", "36", True),
    (r"\$1,\!657", "1657", True), (r"5\text{ cm}", "5", True), ("5", r"5\text{ cm}^2", True),
    ("8", r"\approx 8 \text{ mph}", True), (r"0.4\mbox{ miles}", "0.4", True), (r"30^\circ", "30", True),
    (r"30^{\circ}", "31", False), ("x = 5", "5", True), ("5", "x = 5", True), ("x = 6", "5", False),
    ("41=42", "42", False), ("42=42", "42", True), (r"3 \times 10^{4}", "30000", True), (r"\text{42}", "42", True),
    ("42.", "42", True), (r"\mathbf{42}", "42", True), (r"\frac{12}{5,\!525}", "12/5525", True), ("1/0", "1", False),
]  # fmt: skip

# The parser that comes with Hydra's antlr runtime turns these into bare strings, so they must not reach it as they are.
PERCENT = [
    (r"17\%", r"17\%", True), (r"17\%", "17", True), ("17", r"17\%", True), (r"40.0\%", "40", True),
    ("17%", r"17 \%", True),
    (r"18\%", r"17\%", False), (r"0.17", r"17\%", True), (r"0.018", r"17\%", False),
    (r"\frac{100}{3}\%", r"\frac{100}{3}", True),
    (r"x = 17\%", r"17\%", True), (r"\frac{50\sqrt{4}}{2}\%", r"50\%", True), (r"(10+7)\%", r"17\%", True),
    (r"(10+8)\%", r"17\%", False), (r"\sqrt{2}\%", r"\frac{2}{\sqrt{2}}\%", True),
]  # fmt: skip

STRINGS = [
    (r"\text{(B)}", "B", True), ("(B)", r"\text{B}", True), ("A", "B", False),
    (r"\text{friday}", r"\text{Friday}", True),
    (r"\text{even}", r"\text{odd}", False), (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
    (r"[-2, 0]", "[-2,0]", True), ("(1,2,3)", "(1, 2, 3)", True), ("1242_6", "1242_{6}", True),
    (r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", True),
    (r"3 \sqrt{5}", r"3\sqrt5", True), (r"x \leq 4", r"x\le 4", True), ("3:1", "3 : 1", True),
    ("1010_2", "1010_3", False), ("1010_2", "1011_2", False),
]  # fmt: skip

SYMBOLIC = [
    ("(x+1)^2", "x^2+2x+1", True), ("(x+1)^2", "x^2+2x", False), (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\sqrt{8}", r"2\sqrt{3}", False), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True), ("2^{10}", "1024", True),
    (r"\frac{\pi}{2}", r"0.5\pi", True), ("3-i", "-i+3", True), ("(5,6)", "(6,5)", False), (r"1, -2", r"-2, 1", True),
    (r"\left(\frac12, 3\right)", "(0.5,3)", True), ("y = 2x + 1", "y = 1 + 2x", True),
    ("y = 2x - 1", "y = 1 + 2x", False),
    ("y=-2x+1", "2x+y=1", True), (r"(-\infty,2)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,2)", True),
    ("[0,1)", "[0,1]", False),
    (r"\frac{a}{b}", "a/b", True), ("5+3=8", "8", True), ("40+1=42", "42", False), ("x = 2 + 3", "5", True),
    ("4:30", "4:45", False), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}", False),
    (r"\sin^2(x)+\cos^2(x)", "1", True), (r"\log_2 8", "3", True), (r"\binom{5}{2}", "10", True), 
]  # fmt: skip

CANCELLING = [
    (r"\frac12-\frac13-\frac16", "0", True), (r"\sqrt3\cdot\sqrt3-3", "0", True),
    (r"3363-2378\sqrt2", r"(\sqrt2-1)^{10}", True), (r"(\sqrt2-1)^{10}", r"3363-2378\sqrt2", True),
    (r"19601-13860\sqrt2", r"(3+2\sqrt2)^{-6}", True), (r"3363-2379\sqrt2", r"(\sqrt2-1)^{10}", False),
]  # fmt: skip

LETTERS = [
    (r"3+4\mathrm{i}", "7", False), (r"7\mathrm{i}", "7", False), (r"\frac12\mathrm{i}", r"\frac12", False),
    (r"2\mathrm{e}", "2", False), (r"2\text{x}", "2", False), (r"x\text{y}", "x", False),
    (r"3+4\mathrm{i}", "3+4i", True), (r"2\mathrm{e}", "2e", True), (r"5\text{ g}", "5", True),
    ("HTH", "HTH", True), ("HHT", "HTH", False), ("ACT", "CAT", False),
    *((rf"5\text{{ {words}}}", "5", False) for words in (
        "k", "dozen", "squared", "factorial", "tenths", "plus one", "maybe six", "bananas minus one apple", "pi",
    )),
]  # fmt: skip

FORMS = [
    (r"\frac{1+\sqrt5}{2},\frac{1-\sqrt5}{2}", r"\frac{1\pm\sqrt5}{2}", True),
    (r"x=\frac{1\pm\sqrt5}{2}", r"\frac{1+\sqrt5}{2},\frac{1-\sqrt5}{2}", True),
    (r"\frac{1+\sqrt5}{2}", r"\frac{1\pm\sqrt5}{2}", False), (r"\{\pm1\}", r"\{1,-1\}", True),
    (r"\sin 30^\circ", r"\sin 30", False), (r"\sin 30", r"\sin 30^\circ", False), (r"\sin 30°", r"\sin 30^\circ", True),
    (r"5\approx 6", "5", False), (r"5\approx 6", "6", False), (r"\sqrt2\approx 1.414", r"\sqrt2", True),
    (r"x<2 \text{ or } x>3", r"(-\infty,2)\cup(3,\infty)", True),
    (r"x\le 2 \text{ or } x>3", r"(-\infty,2)\cup(3,\infty)", False),
    (r"x<2 \text{ and } x>3", r"(-\infty,2)\cup(3,\infty)", False),
    (r"\textbf{(E) } 5", r"\text{(E)}", True), (r"\textbf{(D) } 5", r"\text{(E)}", False), (r"\text{A) }5", "A", True),
    (r"\text{The answer is }5", "5", True), (r"\text{The answer is }6", "5", False),
    (r"10\frac{\text{km}}{\text{h}}", "10", True), (r"10\frac{\text{km}}{\text{h}}", r"10\text{ m/s}", False),
    (r"\varnothing", r"\emptyset", True), (r"1010_{\text{two}}", "1010_2", True),
    (r"1010_{\text{three}}", "1010_2", False),
    (r"33.\overline{3}\%", r"\frac13", True), (r"33.\overline{4}\%", r"\frac13", False), ("x_1=x_2=2", "2", True),
    ("x_1=3=2", "2", False), (r"\text{an ellipse}", r"\text{ellipse}", True),
    (r"\text{not an ellipse}", r"\text{ellipse}", False),
    (r"\langle 1,2\rangle", "(1,2)", True), (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)", True),
    (r"\begin{pmatrix}2\\1\end{pmatrix}", "(1,2)", False),
]  # fmt: skip

CASES = [*NUMBERS, *PERCENT, *STRINGS, *SYMBOLIC, *CANCELLING, *LETTERS, *FORMS]


@pytest.mark.parametrize(("answer", "gold", "equal"), CASES)
def test_case(answer: str, gold: str, equal: bool) -> None:
    result = grade(f"Thus \\boxed{{{answer}}}.", gold, "math")
    assert (result.correct, result.status, result.answer) == (equal, "ok", answer)
    assert result.lenient == equal


def test_the_table_is_large_enough() -> None:
    assert len(set(CASES)) == len(CASES) >= 60


@pytest.mark.parametrize(("answer", "gold", "equal"), [*NUMBERS[:-1], *PERCENT[:8], *[c for c in STRINGS if c[2]]])
def test_no_computer_algebra_for_numbers_and_equal_strings(answer: str, gold: str, equal: bool) -> None:
    result = settle(f"\\boxed{{{answer}}}", gold, "math")
    assert isinstance(result, Grade)
    assert result.correct == equal


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("no box", None),
        (r"\boxed{1}", "1"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} done }", r"\frac{1}{2}"),
        (r"\boxed {3}", "3"),
        (r"\fbox{3} \fboxed{4}", "4"),
        (r"$\boxed 2$ feet", "2"),
        (r"\boxed 2.", "2"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{}", ""),
        (r"\boxed{1} and \boxed{2", ""),
        (r"\boxedtext{1}", None),
        (r"\boxed", ""),
    ],
)
def test_last_box(text: str, box: str | None) -> None:
    assert last_box(text) == box


@pytest.mark.parametrize("completion", ["", "It is 5.", r"\boxed{}", r"\boxed{ }", r"\boxed{5} or \boxed{", "#### 5"])
def test_without_a_box_there_is_no_answer(completion: str) -> None:
    result = grade(completion, "5", "math")
    assert (result.correct, result.answer, result.status) == (False, None, "no_answer")


@pytest.mark.parametrize(
    ("completion", "gold", "lenient"),
    [
        ("So the answer is $5$.", "5", True),
        ("The answer is x+1.", "x+1", True),
        ("it is 6", "5", False),
        ("", "5", False),
    ],
)
def test_lenient_reading_without_a_box(completion: str, gold: str, lenient: bool) -> None:
    result = grade(completion, gold, "math")
    assert (result.correct, result.lenient, result.status) == (False, lenient, "no_answer")


def test_gold_may_be_a_whole_solution() -> None:
    solution = r"First \boxed{7}, so $x = \boxed{\frac{1}{2}}$, as 1 < 2."
    assert grade(r"\boxed{0.5}", solution, "math").correct
    assert not grade(r"\boxed{7}", solution, "math").correct


@pytest.mark.parametrize("gold", ["", "  ", r"so \boxed{}", r"\boxed{", "$$"])
def test_an_empty_gold_is_the_gold_s_fault(gold: str) -> None:
    assert grade(r"\boxed{1}", gold, "math") == Grade(False, "1", "gold_unreadable")


def test_a_gold_that_only_matches_as_a_string() -> None:
    gold = r"\begin{pmatrix} 1 & 2"  # no parser reads it
    assert grade(rf"\boxed{{{gold}}}", gold, "math").correct
    assert grade(r"\boxed{12}", gold, "math").status == "ok"  # a number is no matrix, readable or not
    assert grade(r"\boxed{\sin x}", gold, "math").status == "gold_unreadable"


def test_a_failure_inside_math_verify_is_an_error_not_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import math_verify

    def broken(*_: object, **__: object) -> bool:
        raise RecursionError("as sympy does on deep expressions")

    monkeypatch.setattr(math_verify, "verify", broken)
    assert compare("x", ("y",)) == "error"
    outcome = settle(r"\boxed{\sin x}", r"\cos x", "math")
    assert not isinstance(outcome, Grade)
    assert outcome.grade("error") == Grade(False, r"\sin x", "error")


def test_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'mmlu'.*gsm8k, math"):
        grade("#### 1", "1", "mmlu")  # type: ignore[arg-type]
