"""What holds for every text: nothing raises, nothing empty is right, and hostile text costs next to nothing."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import get_args

import pytest
from cputime import CpuTime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pspo.grading import STATUSES, Grade, Grader, grade
from pspo.grading.grade import Style, settle

anything = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates and controls included
fragments = (
    "#### |####|**|$|\\$|-|+|1|23|456|,|.|/|0| |\u202f|\u2212|%|e9|\n|answer is |x|=|(|)|{|}|\\frac|\\boxed{|\\text{"
)
fragments += r"|^|_|\|\\|or|²"
pieces = st.lists(st.sampled_from(fragments.split("|")), max_size=14).map("".join)
texts = st.one_of(
    anything, pieces, anything.map(lambda text: f"#### {text}"), anything.map(lambda t: f"\\boxed{{{t}}}")
)


def check(outcome: Grade) -> None:
    assert outcome.status in STATUSES
    assert not outcome.correct or (outcome.answer and outcome.answer.strip() and outcome.status == "ok")
    assert outcome.lenient or not outcome.correct
    assert (outcome.status == "no_answer") <= (outcome.answer is None)


@settings(max_examples=400, deadline=None)
@given(texts, texts)
def test_no_text_raises_in_gsm8k_style(completion: str, gold: str) -> None:
    check(grade(completion, gold, "gsm8k"))


@settings(max_examples=400, deadline=None)
@given(texts, texts)
def test_no_text_raises_before_math_verify(completion: str, gold: str) -> None:
    outcome = settle(completion, gold, "math")
    if isinstance(outcome, Grade):
        check(outcome)
    else:
        assert outcome.gold.strip() and outcome.answer.strip() and all(claim.strip() for claim in outcome.claims)


@settings(max_examples=60, deadline=None)
@given(anything.map(lambda t: f"\\boxed{{{t}}}"), st.sampled_from(["x+1", r"\sqrt{2}", "(1,2)", "[0,1)", "x=y"]))
def test_no_text_raises_in_math_style(completion: str, gold: str) -> None:
    check(grade(completion, gold, "math"))


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1) as grader:
        yield grader


latex = st.recursive(
    st.sampled_from(
        ["x", "1", "23", "0.5", r"\pi", "i", "e", "", r"\%", r"\text{or}", r"\infty", "\ud800", "½", "\x00"]
    ),
    lambda inner: st.one_of(
        st.builds("\\frac{{{}}}{{{}}}".format, inner, inner),
        st.builds("\\sqrt[{}]{{{}}}".format, inner, inner),
        st.builds("{}^{{{}}}".format, inner, inner),
        st.builds("({},{})".format, inner, inner),
        st.builds("\\{{{},{}\\}}".format, inner, inner),
        st.builds("\\begin{{pmatrix}}{}\\\\{}\\end{{pmatrix}}".format, inner, inner),
        st.builds("{}={}".format, inner, inner),
        st.builds("{}\\text{{{}}}".format, inner, inner),
        st.builds("\\boxed{{{}}}".format, inner),
        st.builds("{}{}".format, inner, st.sampled_from(["!", "_2", "%", "}", "{", "\\", "$", " ", "-", ":30"])),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.one_of(latex, anything, pieces), st.one_of(latex, pieces)), min_size=4, max_size=4))
def test_no_text_raises_or_hangs_through_math_verify(grader: Grader, pairs: list[tuple[str, str]]) -> None:
    items = [(f"\\boxed{{{answer}}}", gold, "math") for answer, gold in pairs]
    start = time.monotonic()
    grades, opinions = grader.grade(items), grader.second_opinion(items)
    assert time.monotonic() - start < 60.0  # eight time-outs of two seconds of CPU, on a busy machine
    assert len(grades) == len(opinions) == len(items)
    for outcome in grades:
        check(outcome)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["{:d}", "{:,}", "**{:,}**", "${:,}.00", "{:d}.", "\\boxed{{{:d}}}"]),
)
def test_an_integer_is_read_back_in_every_spelling(value: int, spelling: str) -> None:
    line = "#### " + spelling.format(value)
    assert grade(line, str(value)).correct
    assert not grade(line, str(value + 1)).correct


HOSTILE = [
    "9**9**9**9",
    "9^{9^{9^9}}",
    "1e999999999",
    "1e-999999999",
    "10^{999999999}",
    "1" * 100_000,
    "1," * 50_000,
    "1/" * 50_000,
    "-" * 100_000,
    " " * 100_000 + "1",
    "1 " * 50_000,
    "(" * 100_000,
    "{" * 100_000,
    "}" * 100_000,
    "\\frac" * 20_000,
    "\\frac{" * 20_000 + "1" + "}" * 20_000,
    "\\boxed{" * 20_000,
    "\\text{" * 20_000 + "1" + "}" * 20_000,
    "$" * 100_000,
    "*" * 100_000 + "42",
    "answer is " * 10_000,
    "answer is 1/0 " * 10_000,
    "#### " * 20_000,
    "or 1 " * 20_000,
    "x=" * 50_000,
    "1/0 " * 25_000,
    "a" * 100_000 + ":",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: f"{text[:14]}-{len(text)}")
@pytest.mark.parametrize("wrap", ["#### {}", "\\boxed{{{}}}", "{}"])
def test_hostile_text_is_cheap(text: str, wrap: str) -> None:
    completion = wrap.format(text)
    with CpuTime() as took:
        results = [
            grade(completion, "42", "gsm8k"),
            grade("#### 42", completion, "gsm8k"),
            grade(f"#### 1\n{completion[:900]}", "42", "gsm8k"),
        ]
        outcomes = [settle(completion, "42", "math"), settle(completion[:900] + "}" * 80, "x+1", "math")]
    assert took.seconds < 0.5  # of CPU; a few milliseconds each
    assert not any(result.correct for result in results[1:])
    assert all(not outcome.correct for outcome in outcomes if isinstance(outcome, Grade))


# Behind each of these a pattern may begin that what repeats below never ends.
BEGINNINGS = [
    "",
    "5",
    "#### ",
    "#### 5 ",
    "The answer is ",
    "The answer",
    "5 or",
    r"5\text{ cm}",
    r"\text{",
    "x=",
    r"\frac{1}",
]
BEGINNINGS += [r"\sqrt", r"\pm ", "5^", "x_", "(1,", r"\$", r"\sin 3", "5 apples for ", r"5\approx ", "5 random"]
REPEATED = [
    "\n",
    " ",
    "\t",
    "~",
    r"\,",
    r"\ ",
    "{",
    "}",
    "(",
    "a",
    "a ",
    "1",
    "1 ",
    "1,",
    "1/",
    "-",
    "*",
    "=",
    ".",
    r"\text{a}",
]
REPEATED += [r"\text{ }", r"\text{or}", "or ", "and ", "answer ", "#", "$", r"\$", "^", "_{", "x=", "x<1 or ", r"\pm1,"]
REPEATED += ["\\", r"\!", "\u00b2", "\u00bd", "for 3 ", "percent ", r"\approx 1", "twenty-", "<a>", r"\mathrm{i}", ":"]
SIZE = 10_000


def cpu_seconds(completion: str, gold: str) -> float:
    for module in [m for name, m in sys.modules.items() if name.startswith("pspo.grading")]:
        for member in vars(module).values():
            if hasattr(member, "cache_clear"):
                member.cache_clear()
    with CpuTime() as took:
        for style in get_args(Style):
            settle(completion, gold, style)
    return took.seconds


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_time_grows_no_faster_than_the_text(beginning: str) -> None:
    for token in REPEATED:
        texts = [beginning + token * (size // len(token)) + "6" for size in (950, SIZE, 2 * SIZE)]
        for place, items in (
            ("box", [(f"\\boxed{{{text[-990:]}}}", "5") for text in texts[:1]]),
            ("long box", [(f"\\boxed{{{text}}}", "5") for text in texts]),
            ("line", [(f"#### {text}", "5") for text in texts]),
            ("neither", [(text, "5") for text in texts]),
            ("gold", [(r"\boxed{x+1} #### 6", text) for text in texts]),
        ):
            seconds = [cpu_seconds(*item) for item in items]
            assert seconds[0] < 0.15, (token, place)
            if len(seconds) > 1:
                assert seconds[2] < 3 * seconds[1] + 0.05, (token, place, seconds)


def test_an_answer_too_long_to_compare_is_an_error() -> None:
    assert grade(f"\\boxed{{{'x+' * 600}x}}", "x", "math").status == "error"


def test_import_is_light() -> None:
    code = (
        "import sys, pspo.grading as g; g.grade('#### 1', '1'); g.grade(r'\\boxed{\\frac12}', '0.5', 'math');"
        "g.Grader(workers=1).close();"
        "print([m for m in ('torch', 'vllm', 'transformers', 'math_verify', 'sympy', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
