"""The key of a majority vote: shared by equal answers, as far as no computer algebra is needed."""

import pytest

from pspo.grading import Style, answer_key


@pytest.mark.parametrize(
    ("style", "answers"),
    [
        ("math", [r"\frac12", "0.5", "x = 0.50", "1/2", r"\dfrac{2}{4}", r"0.5\text{ cm}"]),
        ("math", ["50%", r"50\%", r"50 \%"]),
        ("math", ["2,1", "1, 2", r"\{2,1\}", "1.0, 2", r"x=1\text{ or }x=2"]),
        ("math", ["(1,2)", r"\left( 1, 2 \right)", "(1.0,2)"]),
        ("math", [r"\text{(B)}", "B", "(B)"]),
        ("math", [r"2\sqrt{3}", r"2\sqrt3"]),
        ("math", [r"1\pm\sqrt2", r"1-\sqrt2, 1+\sqrt2"]),
        ("gsm8k", ["1234", "1,234", "$1,234.00", "1234%"]),
    ],
)
def test_equal_answers_share_a_key(style: Style, answers: list[str]) -> None:
    assert len({answer_key(answer, style) for answer in answers}) == 1


@pytest.mark.parametrize(
    ("style", "answers"),
    [
        ("math", ["40", r"40\%", "0.4", "4"]),
        ("math", ["(1,2)", "(2,1)", "[1,2]", "[1,2)", "1,2", "1,2,2"]),
        ("math", ["x", "y", "x+1", "", "A", "B"]),
        ("gsm8k", ["5", "-5", "5.5", "none", ""]),
    ],
)
def test_other_answers_have_another(style: Style, answers: list[str]) -> None:
    assert len({answer_key(answer, style) for answer in answers}) == len(answers)


@pytest.mark.parametrize("answer", ["", " ", "\ud800", "{" * 5000, "\\pm" * 200, "9^{9^{9}}", "1" * 5000, "(,)", "="])
def test_no_text_raises(answer: str) -> None:
    assert isinstance(answer_key(answer, "math"), str) and isinstance(answer_key(answer, "gsm8k"), str)


def test_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="'latex'"):
        answer_key("1", "latex")  # type: ignore[arg-type]
