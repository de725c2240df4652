"""GSM8K style: what the strict and the lenient reading make of a completion. Each case was read by a person."""

import pytest

from pspo.grading import grade

R, W, N = "right", "wrong", "no_answer"  # W is a number that differs; N is no readable number after the last ####

# (completion, gold, strict outcome, right under the lenient reading)
CASES = [
    # plain
    ("#### 42", "42", R, True),
    ("#### 41", "42", W, False),
    ("so 6 * 7 = 42\n#### 42", "42", R, True),
    ("####42", "42", R, True),
    ("####\n42", "42", R, True),
    ("####\n\n  42", "42", R, True),
    ("#### 42\n", "42", R, True),
    ("#### 42\r\n", "42", R, True),
    ("##### 42", "42", R, True),
    ("#### 042", "42", R, True),
    ("#### 42.0", "42", R, True),
    ("#### 42.000", "42", R, True),
    ("#### 42.5", "42", W, False),
    ("#### 4.2", "42", W, False),
    ("#### 420", "42", W, False),
    ("#### 0", "0", R, True),
    ("#### -0", "0", R, True),
    # the last one counts
    ("#### 41\nno: 42\n#### 42", "42", R, True),
    ("#### 42\nwait\n#### 41", "42", W, False),
    ("#### 42\n####", "42", N, True),
    ("#### 42\n\nI checked this with 17 cows.", "42", R, True),
    # sign
    ("#### -5", "-5", R, True),
    ("#### \u22125", "-5", R, True),
    ("#### +5", "5", R, True),
    ("#### -5", "5", W, False),
    ("#### 5", "-5", W, False),
    ("#### -$5", "-5", R, True),
    ("#### $-5", "-5", R, True),
    ("#### --5", "5", N, False),
    # thousands
    ("#### 1,234", "1234", R, True),
    ("#### 1234", "1,234", R, True),
    ("#### 1,234,567.89", "1234567.89", R, True),
    ("#### 1\u202f234", "1234", R, True),
    ("#### 1\u00a0234\u00a0567", "1234567", R, True),
    ("#### 1\u2009234", "1234", R, True),
    ("#### 12 000", "12000", R, True),
    ("#### 1{,}234", "1234", R, True),
    ("#### 1,\\!234", "1234", R, True),
    ("#### 1,5", "15", N, False),
    ("#### 1,234", "1.234", W, False),
    ("#### 1,23", "123", N, False),
    # currency, units, punctuation
    ("#### $18", "18", R, True),
    ("#### \\$18", "18", R, True),
    ("#### €18", "18", R, True),
    ("#### $ 18.00", "18", R, True),
    ("#### 18 dollars", "18", R, True),
    ("#### 18 dollars.", "18", R, True),
    ("#### 18.", "18", R, True),
    ("#### 18!", "18", N, True),  # a factorial, for all one can see
    ("#### 18 apples!", "18", R, True),
    ("#### 18km", "18", R, True),
    ("#### 18 km/h", "18", R, True),
    ("#### 18 apples in 3 boxes", "18", R, True),
    ("#### 18 (half of 36)", "18", R, True),
    ("#### 3 million", "3000000", R, True),
    # percent is a unit here: GSM8K asks "what percentage"
    ("#### 25%", "25", R, True),
    ("#### 25\\%", "25", R, True),
    ("#### 25 percent", "25", R, True),
    ("#### 0.25", "25", W, False),
    # markup
    ("#### **42**", "42", R, True),
    ("**#### 42**", "42", R, True),
    ("#### **$1,234.50** per week.", "1234.5", R, True),
    ("#### __42__", "42", R, True),
    ("#### `42`", "42", R, True),
    ("#### $42$", "42", R, True),
    ("#### \\(42\\)", "42", R, True),
    ("#### \\boxed{42}", "42", R, True),
    ("#### $\\boxed{42}$.", "42", R, True),
    ("#### \\text{42}", "42", R, True),
    ("#### (42)", "42", R, True),
    ("#### \uff14\uff12", "42", R, True),
    ("#### \u200b42\u200b", "42", R, True),
    # labels
    ("#### Answer: 42", "42", R, True),
    ("#### **Answer:** 42", "42", R, True),
    ("#### The answer is 42.", "42", R, True),
    ("#### x = 42", "42", R, True),
    ("#### = 42", "42", R, True),
    # fractions and powers
    ("#### 3/4", "0.75", R, True),
    ("#### \\frac{3}{4}", "0.75", R, True),
    ("#### 2 1/2", "2.5", R, True),
    ("#### 1/3", "0.3333", W, False),
    ("#### .5", "0.5", R, True),
    ("#### 1e3", "1000", R, True),
    ("#### 1.5 x 10^3", "1500", R, True),
    ("#### 5/0", "5", N, False),
    # a number that is part of something else is not the answer
    ("#### 5 + 3", "5", N, False),
    ("#### 41=42", "42", N, True),
    ("#### 10-12", "10", N, False),
    ("#### 10\u201312", "10", N, False),
    ("#### 4:30", "4", N, False),
    ("#### 5 or 6", "5", N, False),
    ("#### 42 43", "42", N, False),
    (r"#### 42\\43", "42", N, False),
    ("#### 5 apples or 6", "5", N, False),
    ("#### 42, wait, 41", "42", N, False),
    ("#### 42, 43", "42", N, False),
    ("#### 2^10", "2", N, False),
    ("#### 2**3", "2", N, False),
    ("#### 9**9**9**9", "9", N, True),
    ("#### 5 ft 6 in", "5", N, False),
    ("#### 10\u00b2", "102", N, False),
    ("#### 10\u00b2", "10", N, True),
    ("#### Step 3", "3", N, True),
    *(
        (f"#### 5{rest}", "5", N, True)
        for rest in (
            "M",
            " dozen",
            " hundredths",
            "\u03c0",
            "x",
            " + x",
            " and a half",
            " minus one",
            " or six",
            " to six",
            " is wrong, six is right",
            "!",
            "\u00b2",
            "...",
            " maybe",
        )
    ),
    *(
        (f"#### 5{rest}", "5", N, False)
        for rest in (
            " \u2192 6",
            " ... 6",
            " [6]",
            " {6}",
            " (6)",
            "'6\"",
            " apples; 6 apples",
            " apples / 6 apples",
        )
    ),
    ("#### 5\u221a2", "5", N, False),
    ("#### 5\\sqrt{2}", "5", N, False),
    ("#### 5k", "5", W, False),
    ("#### 70k", "70", W, False),
    ("#### 70k", "70000", R, True),
    ("#### 9 * 2 = 19", "19", N, True),
    # more than the number, and no doubt about it
    *(
        (f"#### 18 {rest}", "18", R, True)
        for rest in (
            "times",
            "quarters",
            "more apples",
            "seconds",
            "dollars a day",
            "(his test score)",
            "I think",
            "in one week",
        )
    ),
    ("#### Step 3: 18", "18", R, True),
    ("#### 18 total (not 19)", "18", R, True),
    ("#### 18 of 20", "18", R, True),
    ("####: 18", "18", R, True),
    ("#### 9 * 2 = 18", "18", R, True),
    ("#### $9 x 2 = $18", "18", R, True),
    ("#### 18</s>", "18", R, True),
    ("#### 18<|im_end|>", "18", R, True),
    ("#### $18 for three hours", "18", R, True),
    # a heading is not the answer; the number below it is only for the lenient reading
    ("#### Final Answer\n18", "18", N, True),
    ("#### Answer\n\n18", "18", N, True),
    ("#### forty-two", "42", N, False),
    ("#### ?", "42", N, False),
    # no #### at all: the lenient reading alone
    ("", "42", N, False),
    ("   \n", "42", N, False),
    ("The answer is 42.", "42", N, True),
    ("The answer is 42, out of 100 in all.", "42", N, True),
    ("He has 6 * 7 = 42 eggs", "42", N, True),
    ("First 42, then 41", "42", N, False),
    ("So the answer is $1,234.", "1234", N, True),
    ("\\boxed{42}", "42", N, True),
    ("### 42", "42", N, True),
]


@pytest.mark.parametrize(("completion", "gold", "outcome", "lenient"), CASES)
def test_case(completion: str, gold: str, outcome: str, lenient: bool) -> None:
    result = grade(completion, gold, "gsm8k")
    seen = result.status if result.status != "ok" else R if result.correct else W
    assert (seen, result.lenient) == (outcome, lenient), result
    assert result.correct == (outcome == R)
    assert (result.answer is None) == (outcome == N)


def test_the_table_is_large_enough() -> None:
    assert len(set(CASES)) == len(CASES) >= 80


@pytest.mark.parametrize(
    "gold", ["42", " 42 ", "42.0", "6 * 7 = <<6*7=42>>42 eggs.\n#### 42", "#### 7\n#### 42", "42 (eggs)"]
)
def test_gold_bare_or_as_a_whole_solution(gold: str) -> None:
    assert grade("#### 42", gold).correct
    assert not grade("#### 7", gold).correct


@pytest.mark.parametrize("gold", ["", "   ", "####", "#### ", "forty", "1:2", "5 or 6", "the sum of 6 and 7"])
def test_a_gold_without_a_number_is_the_gold_s_fault(gold: str) -> None:
    result = grade("#### 5", gold)
    assert (result.correct, result.status, result.answer) == (False, "gold_unreadable", "5")


def test_an_answer_is_spelt_without_separators() -> None:
    assert grade("#### **$1,234.50** a week", "1").answer == "1234.50"
    assert grade("#### -$3/4", "1").answer == "-3/4"
