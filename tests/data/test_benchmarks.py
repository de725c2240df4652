"""Published data sets: gold answers, splits, reports and errors by hand-made files; the real files, where at hand."""

import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pspo.config import EvalConfig, TrainConfig, compose
from pspo.config.schema import Benchmark, Shot, WordProblems
from pspo.data import demonstrations, load_problems, load_report
from pspo.data.benchmarks import gold_answer
from pspo.errors import ConfigError, PspoError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def benchmark(name: str, path: Path | str | None, *overrides: str) -> Benchmark:
    """The settings of conf/data/<name>.yaml, for files with any number of rows."""
    where = [] if path is None else [f"data.path={path}"]
    choices = ["checkpoint=x", f"data={name}", "data.rows=null", *where, *overrides]
    data = compose("eval", EvalConfig, choices).data
    assert isinstance(data, Benchmark)
    return data


def real(name: str) -> Benchmark:
    data = compose("eval", EvalConfig, ["checkpoint=x", f"data={name}", f"data.path={DATA / name}"]).data
    assert isinstance(data, Benchmark)
    return data


def write(directory: Path, rows: list[object], name: str = "train") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return directory


def gsm8k_rows(count: int) -> list[object]:
    return [{"question": f"q{i}", "answer": f"work {i}\n#### {i}"} for i in range(count)]


# --- gold answers and questions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold_from", "text", "gold", "reason"),
    [
        ("after_hashes", "2+2=<<2+2=4>>4\n#### 4", "4", ""),
        ("after_hashes", "#### 3\n#### 1,200", "1,200", ""),
        ("after_hashes", "no answer", "", "no gold answer"),
        ("after_hashes", "#### ", "", "no gold answer"),
        ("after_hashes", "#### many", "many", "gold answer is not a number"),
        ("last_box", r"so \boxed{1}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}", ""),
        ("last_box", r"it is $\boxed 2$.", "2", ""),
        ("last_box", r"\boxed{ }", "", "no gold answer"),
        ("last_box", "no box", "", "no gold answer"),
        ("last_box", r"\boxed{\{1,2\}}", r"\{1,2\}", ""),
        ("last_box", r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", ""),
        ("field", "  7 ", "7", ""),
        ("field", 7, "7", ""),
        ("field", 7.5, "7.5", ""),
        ("field", " ", "", "no gold answer"),
        ("number_with_unit", "9 (apples)", "9", ""),
        ("number_with_unit", "14  (seats)", "14", ""),
        ("number_with_unit", "383", "383", ""),
        ("number_with_unit", "83.2 (dollars)", "83.2", ""),
        ("number_with_unit", "1,250 (km/hour)", "1,250", ""),
        ("number_with_unit", "3/7", "3/7", ""),
        ("number_with_unit", "17 (years old); 12 (years old)", "17 (years old); 12", "several gold answers"),
        ("number_with_unit", "5; 8", "5; 8", "several gold answers"),
        ("number_with_unit", "5:45", "5:45", "gold answer is not a number"),
        ("number_with_unit", "3:30 p.m.", "3:30 p.m.", "gold answer is not a number"),
        ("number_with_unit", "6th", "6th", "gold answer is not a number"),
        ("number_with_unit", "Mrs. Hilt", "Mrs. Hilt", "gold answer is not a number"),
        ("number_with_unit", "-(1/3)", "-", "gold answer is not a number"),
        ("number_with_unit", "(apples)", "", "gold answer is not a number"),
        ("number_with_unit", "", "", "no gold answer"),
    ],
)
def test_gold_answers(gold_from, text, gold, reason):
    cfg = replace(benchmark("gsm8k", "x"), gold_from=gold_from)
    assert gold_answer(cfg, {"answer": text}, "here") == (gold, reason)


def test_fields_of_a_row_become_a_problem(tmp_path):
    row = {"problem": "What is $\\{1\\}$?", "solution": "It is \\boxed{2}.", "level": 3, "type": "Algebra"}
    write(tmp_path, [row], "test")
    (problem,) = load_problems(benchmark("math", tmp_path), "test", 0)
    assert (problem.id, problem.question, problem.gold) == ("math-test-00000", row["problem"], "2")
    assert (problem.level, problem.subject, problem.solution) == ("3", "Algebra", row["solution"])


def test_the_question_template_puts_fields_in_as_they_are(tmp_path):
    write(tmp_path, [{"Body": "{Question} costs {x}.", "Question": "How much?", "Answer": 3, "Type": "t"}], "test")
    assert load_problems(benchmark("svamp", tmp_path), "test", 0)[0].question == "{Question} costs {x}. How much?"


def test_line_separators_inside_a_text_do_not_split_a_row(tmp_path):
    write(tmp_path, [{"question": "a\u2028b\x85c", "answer": "#### 1"}], "test")
    assert load_problems(benchmark("gsm8k", tmp_path), "test", 0)[0].question == "a\u2028b\x85c"


def test_blank_lines_a_byte_order_mark_and_crlf_do_no_harm(tmp_path):
    lines = ['{"question": "a", "answer": "#### 1"}', "", '{"question": "b", "answer": "#### 2"}', ""]
    (tmp_path / "test.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [p.question for p in load_problems(benchmark("gsm8k", tmp_path), "test", 0)] == ["a", "b"]


# --- splits ----------------------------------------------------------------------------------------------------------


def test_the_split_is_a_partition_by_the_split_seed(tmp_path):
    cfg = replace(benchmark("gsm8k", write(tmp_path, gsm8k_rows(50))), validation=10)
    train, validation = load_problems(cfg, "train", 3), load_problems(cfg, "validation", 3)
    assert (len(train), len(validation)) == (40, 10)
    assert {p.id for p in [*train, *validation]} == {f"gsm8k-train-{i:05d}" for i in range(50)}
    assert all(p.question == f"q{int(p.gold)}" and p.id.endswith(f"{int(p.gold):05d}") for p in train)
    assert load_problems(cfg, "train", 4) != train == load_problems(cfg, "train", 3)
    fixed = replace(cfg, split_seed=3)
    assert load_problems(fixed, "train", 4) == load_problems(fixed, "train", 5) == train
    assert len(load_problems(replace(cfg, validation=0), "train", 3)) == 50
    with pytest.raises(PspoError, match=r"data\.validation=50"):
        load_problems(replace(cfg, validation=50), "train", 3)


def test_the_source_decides_the_name_of_the_file(tmp_path):
    row = {"body": "b", "question": "q", "answer": "2 (kg)", "solution_type": "Sum"}
    cfg = benchmark("asdiv", write(tmp_path, [row], "validation"))
    assert [p.id for p in load_problems(cfg, "test", 0)] == ["asdiv-test-00000"]
    for split in ("train", "validation"):
        with pytest.raises(PspoError, match=r"^data=asdiv has no training part: data.splits names test only$"):
            load_problems(cfg, split, 0)


# --- rows left out, and the report -----------------------------------------------------------------------------------


def test_rows_that_cannot_be_graded_are_left_out_and_told(tmp_path):
    answers = ["#### 1", "#### ", "none", "#### 2", "#### ", "", "#### many", "#### 3"]
    rows = [{"question": " " if a == "#### 3" else f"q{i}", "answer": a} for i, a in enumerate(answers)]
    cfg = benchmark("gsm8k", write(tmp_path, rows, "test"))
    with pytest.warns(UserWarning) as told:
        problems = load_problems(cfg, "test", 0)
    assert [p.id for p in problems] == ["gsm8k-test-00000", "gsm8k-test-00003"]
    (message,) = {str(warning.message) for warning in told}
    file = tmp_path / "test.jsonl"
    assert message == (
        f"gsm8k: 6 of 8 rows left out: no gold answer: 4 ({file}:2, {file}:3, {file}:5, ...); "
        f"gold answer is not a number: 1 ({file}:7); no question: 1 ({file}:8)"
    )
    report = load_report(cfg, "test")
    assert report is not None and (report.rows, report.kept) == (8, 2)
    assert report.dropped_by_reason == {"no gold answer": 4, "gold answer is not a number": 1, "no question": 1}
    assert [place for place, _ in report.dropped] == [f"{file}:{line}" for line in (2, 3, 5, 6, 7, 8)]


def test_the_report_finds_repeats_within_and_between_parts(tmp_path):
    write(tmp_path, [{"question": q, "answer": "#### 1"} for q in ("What is $x+1$?", "b", " what  is $X + 1$?", "c")])
    write(tmp_path, [{"question": q, "answer": "#### 1"} for q in ("d", "WHAT IS $x+1$?", "C")], "test")
    cfg = benchmark("gsm8k", tmp_path)
    report = load_report(cfg, "train")
    assert report is not None and report.duplicates == (("gsm8k-train-00000", "gsm8k-train-00002"),)
    assert report.overlap == (
        ("gsm8k-train-00000", "gsm8k-test-00001"),
        ("gsm8k-train-00002", "gsm8k-test-00001"),
        ("gsm8k-train-00003", "gsm8k-test-00002"),
    )
    assert report.kept == 4  # told, and kept
    assert load_report(cfg, "validation") == report  # it is about the part, not the split
    test = load_report(cfg, "test")
    assert test is not None and test.duplicates == () and test.overlap is not None
    assert {(b, a) for a, b in test.overlap} == set(report.overlap)
    assert json.loads(json.dumps(asdict(report)))["overlap"][0] == ["gsm8k-train-00000", "gsm8k-test-00001"]


def test_the_report_tells_the_source_by_its_bytes_and_by_its_problems(tmp_path):
    write(tmp_path / "a", gsm8k_rows(2), "test")
    write(tmp_path / "b", gsm8k_rows(2), "test")
    with (tmp_path / "b" / "test.jsonl").open("a") as file:
        file.write("\n")
    one, other = (load_report(benchmark("gsm8k", tmp_path / name), "test") for name in "ab")
    assert one is not None and other is not None and one.source == str(tmp_path / "a" / "test.jsonl")
    done = subprocess.run(["sha256sum", one.source], capture_output=True, text=True, check=True)
    assert one.file_sha256 == done.stdout.split()[0] != other.file_sha256
    assert one.problems_sha256 == other.problems_sha256
    write(tmp_path / "b", gsm8k_rows(3)[1:], "test")
    changed = load_report(benchmark("gsm8k", tmp_path / "b"), "test")
    assert changed is not None and changed.problems_sha256 != other.problems_sha256


def test_a_directory_with_the_test_part_alone_is_enough(tmp_path):
    report = load_report(benchmark("gsm8k", write(tmp_path, gsm8k_rows(2), "test")), "test")
    assert report is not None and report.overlap is None and report.duplicates == ()


def test_a_part_is_read_once_and_again_when_its_file_changes(tmp_path):
    cfg = replace(benchmark("gsm8k", write(tmp_path, gsm8k_rows(9))), validation=3)
    by_id = {p.id: p for p in load_problems(cfg, "train", 0)}
    again = {p.id: p for p in load_problems(replace(cfg, validation=0, split_seed=7), "train", 1)}
    assert all(again[name] is problem for name, problem in by_id.items())  # the same objects, so not parsed again
    load_problems(cfg, "train", 0).clear()
    assert len(load_problems(cfg, "train", 0)) == 6  # a caller's list is its own
    write(tmp_path, gsm8k_rows(12))
    assert len(load_problems(cfg, "train", 0)) == 9
    other = replace(cfg, question="{question}!")
    assert all(p.question.endswith("!") for p in load_problems(other, "train", 0))


# --- demonstrations --------------------------------------------------------------------------------------------------


def test_demonstrations_are_the_first_training_rows_with_a_solution(tmp_path):
    rows = [{"problem": f"q{i}", "level": "1", "type": "t", "solution": s} for i, s in enumerate(
        (r"\boxed{1}", r"\boxed{}", r"so \boxed{3}", r"\boxed{4}"))]  # fmt: skip
    cfg = benchmark("math", write(tmp_path, rows))
    assert demonstrations(cfg, 2) == (Shot("q0", r"\boxed{1}"), Shot("q2", r"so \boxed{3}"))
    assert demonstrations(cfg, 0) == ()
    with pytest.raises(PspoError, match=r"^prompt.train_shots=4: math has 3 training problems with a worked solution"):
        demonstrations(cfg, 4)


def test_a_row_with_a_gold_and_no_solution_is_no_demonstration(tmp_path):
    rows = [{"problem": f"q{i}", "level": 1, "subject": "t", "answer": i, "solution": "s" * i} for i in range(3)]
    cfg = replace(benchmark("math500", write(tmp_path, rows)), splits={"train": "train", "test": "test"})
    assert [shot.question for shot in demonstrations(cfg, 2)] == ["q1", "q2"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("math500", "math500 has no training part"),
        ("asdiv", "asdiv has no training part"),
        ("svamp", "svamp has no worked solutions"),
    ],
)
def test_data_sets_without_demonstrations_say_so(name, told, tmp_path):
    with pytest.raises(PspoError, match=f"^prompt.train_shots=1: {told}"):
        demonstrations(benchmark(name, tmp_path), 1)


def test_the_small_world_has_demonstrations_of_its_own():
    data = compose("train", TrainConfig).data
    assert isinstance(data, WordProblems) and load_report(data, "train") is None
    shots = demonstrations(data, 3)
    assert [shot.question for shot in shots] == [p.question for p in load_problems(data, "train", 0)[:3]]
    for shot, problem in zip(shots, load_problems(data, "train", 0), strict=False):
        assert shot.answer.endswith(f"\n#### {problem.gold}") and "=" in shot.answer
    with pytest.raises(PspoError, match=r"^prompt.train_shots=4: data.train=3"):
        demonstrations(replace(data, train=3), 4)


# --- errors ----------------------------------------------------------------------------------------------------------

GOOD = b'{"question": "a", "answer": "#### 1"}\n'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"question": "q"}', ":2: the field 'answer' (data.gold_field) must be a text or a number; the row has"),
        (b"{}", "; the row has no fields"),
        (b'{"question": "q", "answer": ["#### 1"]}', "(data.gold_field) must be a text or a number; it is a list"),
        (b'{"question": true, "answer": "#### 1"}', "(data.question) must be a text or a number; it is a bool"),
        (b'{"question": null, "answer": "#### 1"}', "must be a text or a number; it is null"),
        (b'{"question": "q", "answer": NaN}', "must be a text or a number; it is nan"),
        (b'{"question": "q", "answer": -Infinity}', "must be a text or a number; it is -inf"),
        (b'{"question": "\\ud800", "answer": "#### 1"}', "must be a text or a number; it holds half a surrogate pair"),
        (b"{broken", ":2: not a JSON object: Expecting property name"),
        (b'{"question": "q", "answer": "#### 1"', ":2: not a JSON object: Expecting ',' delimiter"),
        (b"[1]", ":2: not a JSON object but a list"),
        (b"null", ":2: not a JSON object but a NoneType"),
        (b"[" * 100_000, ":2: not a JSON object that can be read: "),
        (b'{"answer": ' + b"9" * 5000 + b"}", ":2: not a JSON object that can be read: "),
        (b'\n{"question": "caf\xe9", "answer": "#### 1"}', ":3: not valid UTF-8; save the file as UTF-8"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_errors_name_file_and_line(tmp_path, line, told):
    (tmp_path / "test.jsonl").write_bytes(GOOD + line + b"\n")
    with pytest.raises(PspoError) as error:
        load_problems(benchmark("gsm8k", tmp_path), "test", 0)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'test.jsonl'}:") and told in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "row", "field", "setting"),
    [
        ("svamp", {"Body": "b", "Answer": "1", "Type": "t"}, "Question", "question"),
        ("math", {"problem": "q", "solution": r"\boxed{1}", "type": "t"}, "level", "level_field"),
        ("math", {"problem": "q", "solution": r"\boxed{1}", "level": "1"}, "type", "subject_field"),
        ("math500", {"problem": "q", "answer": "1", "level": 1, "subject": "s"}, "solution", "solution_field"),
    ],
)
def test_every_field_that_is_named_must_be_there(tmp_path, name, row, field, setting):
    write(tmp_path, [row], "test")
    with pytest.raises(PspoError, match=rf"test\.jsonl:1: the field '{field}' \(data\.{setting}\) must be"):
        load_problems(benchmark(name, tmp_path), "test", 0)


def test_an_int_of_any_size_is_a_number(tmp_path):
    write(tmp_path, [{"Body": "b", "Question": "q", "Answer": 10**400, "Type": "t"}], "test")
    assert load_problems(benchmark("svamp", tmp_path), "test", 0)[0].gold == str(10**400)


def test_a_template_must_name_a_field(tmp_path):
    write(tmp_path, gsm8k_rows(1), "test")
    with pytest.raises(ConfigError, match=r"^data\.question='What\?': must name a field"):
        load_problems(replace(benchmark("gsm8k", tmp_path), question="What?"), "test", 0)


def test_missing_files_are_told_with_the_names_looked_for(tmp_path):
    with pytest.raises(PspoError, match=r"none: no such directory; it should have test.jsonl or test.parquet$"):
        load_problems(benchmark("gsm8k", tmp_path / "none"), "test", 0)
    with pytest.raises(PspoError, match=r"there is no validation.jsonl or validation.parquet in it$"):
        load_problems(benchmark("asdiv", tmp_path), "test", 0)
    write(tmp_path, gsm8k_rows(1), "test")
    with pytest.raises(PspoError, match=r"there is no train.jsonl or train.parquet in it$"):
        load_problems(benchmark("gsm8k", tmp_path), "train", 0)
    (tmp_path / "test.parquet").touch()
    with pytest.raises(PspoError, match=r"which of test.jsonl or test.parquet is meant\? Leave one of them$"):
        load_problems(benchmark("gsm8k", tmp_path), "test", 0)


def test_what_cannot_be_opened_is_told(tmp_path):
    (tmp_path / "test.jsonl").mkdir()
    with pytest.raises(PspoError, match=r"test\.jsonl: cannot be read: Is a directory$"):
        load_problems(benchmark("gsm8k", tmp_path), "test", 0)


def test_the_number_of_rows_is_checked(tmp_path):
    write(tmp_path, gsm8k_rows(7), "test")
    cfg = replace(benchmark("gsm8k", tmp_path), rows={"train": 7473, "test": 1319})
    told = r"test\.jsonl: 7 rows, but gsm8k's test part has data\.rows\.test=1319; data\.rows=null accepts any number$"
    with pytest.raises(PspoError, match=told):
        load_problems(cfg, "test", 0)
    assert len(load_problems(replace(cfg, rows={"test": 7}), "test", 0)) == 7
    assert len(load_problems(replace(cfg, rows={"train": 7473}), "test", 0)) == 7


def test_a_file_without_any_usable_row_is_an_error(tmp_path):
    write(tmp_path, [], "test")
    with pytest.raises(PspoError, match=r"test\.jsonl: no rows in it$"):
        load_problems(benchmark("gsm8k", tmp_path), "test", 0)
    write(tmp_path, [{"question": "a", "answer": "none"}] * 2, "test")
    with pytest.raises(PspoError, match=r"test\.jsonl: none of its 2 rows can be used: no gold answer$"):
        load_problems(benchmark("gsm8k", tmp_path), "test", 0)


# --- Parquet and the hub ---------------------------------------------------------------------------------------------


def write_parquet(directory: Path, rows: list[object], name: str = "train") -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    directory.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), directory / f"{name}.parquet", row_group_size=700)
    return directory


def test_parquet_and_jsonl_give_the_same_problems(tmp_path):
    rows = gsm8k_rows(2500)  # several row groups and batches
    rows[2400] = {"question": "u\u2028v", "answer": "none"}
    lines, table = (
        benchmark("gsm8k", write(tmp_path / "a", rows)),
        benchmark("gsm8k", write_parquet(tmp_path / "b", rows)),
    )
    with pytest.warns(UserWarning, match=r"train\.parquet row 2401\)"):
        from_table = load_problems(table, "train", 0)
    with pytest.warns(UserWarning, match=r"train\.jsonl:2401\)"):
        assert load_problems(lines, "train", 0) == from_table
    one, other = load_report(lines, "train"), load_report(table, "train")
    assert one is not None and other is not None and one.problems_sha256 == other.problems_sha256
    assert (other.source, other.rows) == (str(tmp_path / "b" / "train.parquet"), 2500)


def test_errors_in_parquet_name_file_and_row(tmp_path):
    pytest.importorskip("pyarrow")
    cfg = benchmark("gsm8k", write_parquet(tmp_path, [*gsm8k_rows(2), {"question": None, "answer": "#### 1"}], "test"))
    with pytest.raises(PspoError, match=r"test\.parquet row 3: the field 'question' .*; it is null$"):
        load_problems(cfg, "test", 0)
    whole = (write_parquet(tmp_path, gsm8k_rows(3000), "test") / "test.parquet").read_bytes()
    for content in (b"", b"PAR1 is not enough", whole[:-100], whole[100:], whole[:4] + bytes(2000) + whole[2004:]):
        (tmp_path / "test.parquet").write_bytes(content)
        with pytest.raises(PspoError, match=r"test\.parquet: .*not a Parquet file that can be read: ") as error:
            load_problems(cfg, "test", 0)
        assert "\n" not in str(error.value)


HUB = """
import json, sys, warnings
from dataclasses import asdict, replace
from pspo.config.schema import Benchmark
from pspo.data import load_problems, load_report
from pspo.errors import PspoError
cfg = Benchmark(**json.loads(sys.argv[1]))
told = {}
for name, change in json.loads(sys.argv[2]).items():
    try:
        load_problems(replace(cfg, **change), "test", 0)
    except PspoError as error:
        told[name] = str(error)
problems = [asdict(p) for p in load_problems(cfg, "train", 0)]
print(json.dumps({"problems": problems, "report": asdict(load_report(cfg, "test")), "told": told}))
"""


def test_what_stands_twice_or_hides_is_told(tmp_path) -> None:
    write(tmp_path, gsm8k_rows(3), "test")
    (tmp_path / "test.jsonl").open("a").write('{"question": "q", "answer": "#### 1", "answer": "#### 2"}\n')
    with pytest.raises(PspoError, match=r"test\.jsonl:4: .*a field stands in it twice"):
        load_problems(benchmark("gsm8k", tmp_path), "test", 0)
    (tmp_path / "test.jsonl").write_text(json.dumps({f"a\n\x1b[31m{i}": 1 for i in range(5000)}) + "\n")
    with pytest.raises(PspoError, match=r"the row has .*, \.\.\.") as error:
        load_problems(benchmark("gsm8k", tmp_path), "test", 0)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-of-that-name/x"])
def test_a_path_that_cannot_be_looked_into_is_told(path) -> None:
    with pytest.raises(PspoError, match=r"data\.path=.*: cannot be looked into: ") as error:
        load_problems(replace(benchmark("gsm8k", "x"), path=path), "test", 0)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_a_parquet_time_beyond_python_s_is_told(tmp_path) -> None:
    import pyarrow
    from pyarrow import parquet

    times = pyarrow.array([2**62], pyarrow.timestamp("us"))
    columns = {"question": ["q"], "answer": ["#### 1"], "when": times}
    parquet.write_table(pyarrow.table(columns), tmp_path / "test.parquet")
    with pytest.raises(PspoError, match=r"test\.parquet: not a Parquet file that can be read"):
        load_problems(benchmark("gsm8k", tmp_path), "test", 0)


@pytest.mark.slow
def test_the_hub_gives_the_same_problems_as_its_files(tmp_path):
    """`datasets` loads a directory as it loads a hub id. In another process, because its cache is set on import."""
    pytest.importorskip("datasets")
    write_parquet(tmp_path / "hub" / "data", gsm8k_rows(60), "train-00000-of-00001")
    write_parquet(tmp_path / "hub" / "data", gsm8k_rows(9)[5:], "test-00000-of-00001")
    local = replace(benchmark("gsm8k", write(tmp_path / "local", gsm8k_rows(60))), validation=20)
    write(tmp_path / "local", gsm8k_rows(9)[5:], "test")
    cfg = replace(local, path=None, hub=str(tmp_path / "hub"), subset=None, revision=None)
    wrong = {
        "split": {"splits": {"train": "train", "test": "dev"}},
        "subset": {"subset": "other"},
        "hub": {"hub": str(tmp_path / "nowhere")},
        "rows": {"rows": {"test": 5}},
        "field": {"gold_field": "gold"},
    }
    offline = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", HUB, json.dumps(asdict(cfg)), json.dumps(wrong)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | offline)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == [asdict(p) for p in load_problems(local, "train", 0)] and len(found["problems"]) == 40
    report, beside = found["report"], load_report(local, "test")
    assert beside is not None and report["problems_sha256"] == beside.problems_sha256
    assert (report["source"], report["file_sha256"]) == (f"{tmp_path / 'hub'}@newest", None)
    assert report["overlap"] == [[f"gsm8k-test-{i:05d}", f"gsm8k-train-{i + 5:05d}"] for i in range(4)]
    told = found["told"]
    assert told["split"].endswith("hub has train, test, and no dev") and told["split"].startswith("data.splits=")
    for name in ("subset", "hub"):
        assert re.match(r"data\.hub=\S+: .+; with the files at hand, give their directory as data\.path$", told[name])
    assert "4 rows, but gsm8k's test part has data.rows.test=5" in told["rows"]
    assert f"{tmp_path / 'hub'} test row 1: the field 'gold' (data.gold_field)" in told["field"]
    assert told.keys() == wrong.keys() and "\n" not in "".join(told.values())


# --- the real files --------------------------------------------------------------------------------------------------


SIZES = [  # rows, kept, duplicates, overlap
    ("gsm8k", "train", 7473, 7473, 0, 0),
    ("gsm8k", "test", 1319, 1319, 0, 0),
    ("math", "train", 7500, 7498, 2, 2),
    ("math", "test", 5000, 5000, 0, 2),
    ("math500", "test", 500, 500, 0, None),
    ("svamp", "train", 700, 700, 0, 0),
    ("svamp", "test", 300, 300, 0, 0),
    ("asdiv", "test", 2305, 2092, 1, None),
]


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not beside the repository (../shared/data)")
class TestReal:
    """conf/data/*.yaml as they are, on the published rows: the figures of docs/data.md."""

    @pytest.mark.parametrize(("name", "part", "rows", "kept", "duplicates", "overlap"), SIZES)
    def test_sizes(self, name, part, rows, kept, duplicates, overlap):
        report = load_report(real(name), part)
        assert report is not None and (report.rows, report.kept, report.part) == (rows, kept, part)
        assert len(report.duplicates) == duplicates and all(len(group) == 2 for group in report.duplicates)
        assert (None if report.overlap is None else len(report.overlap)) == overlap
        assert len(report.dropped) == rows - kept == sum(report.dropped_by_reason.values())

    def test_what_is_left_out(self):
        math, asdiv = load_report(real("math"), "train"), load_report(real("asdiv"), "test")
        assert math is not None and asdiv is not None
        assert [place.rpartition(":")[2] for place, _ in math.dropped] == ["5342", "5344"]
        assert math.dropped_by_reason == {"no gold answer": 2}
        assert asdiv.dropped_by_reason == {"several gold answers": 90, "gold answer is not a number": 123}

    def test_the_docs_have_the_fingerprints(self, root):
        page = (root / "docs" / "data.md").read_text()
        for name, part in [(row[0], row[1]) for row in SIZES]:
            report = load_report(real(name), part)
            assert report is not None
            line = next(line for line in page.splitlines() if line.startswith(f"| {name} {part} |"))
            assert f"`{report.problems_sha256[:12]}`" in line and f"| {report.rows:,} | {report.kept:,} |" in line

    @pytest.mark.filterwarnings("ignore:.*rows left out")
    def test_splits(self):
        sizes = {
            name: [len(load_problems(real(name), split, 0)) for split in ("train", "validation", "test")]
            for name in ("gsm8k", "math", "svamp")
        }
        assert sizes == {"gsm8k": [7000, 473, 1319], "math": [6998, 500, 5000], "svamp": [500, 200, 300]}

    def test_the_first_problem_of_gsm8k(self):
        first = load_problems(real("gsm8k"), "test", 0)[0]
        assert first.id == "gsm8k-test-00000" and first.question.startswith("Janet\u2019s ducks") and first.gold == "18"
        shots = demonstrations(real("gsm8k"), 8)
        assert len(shots) == 8 and shots[0].question.startswith("Natalia") and shots[0].answer.endswith("\n#### 72")

    @pytest.mark.filterwarnings("ignore:.*rows left out")
    def test_math500_lies_in_the_test_part_of_math(self):
        whole = {p.question: p for p in load_problems(real("math"), "test", 0)}
        few = load_problems(real("math500"), "test", 0)
        for problem in few:
            same = whole[problem.question]
            assert (same.solution, same.subject, same.level) == (
                problem.solution,
                problem.subject,
                f"Level {problem.level}",
            )
            assert same.gold == problem.gold
        assert {p.level for p in few} == set("12345")
        train = {p.question for split in ("train", "validation") for p in load_problems(real("math"), split, 0)}
        assert not train & {p.question for p in few}

    def test_the_question_of_svamp_is_its_own_concatenation(self):
        for part in ("train", "test"):
            with (DATA / "svamp" / f"{part}.jsonl").open(encoding="utf-8") as file:
                own = [json.loads(line)["question_concat"] for line in file]
            by_id = sorted(load_problems(replace(real("svamp"), validation=0), part, 0), key=lambda p: p.id)
            assert [p.question for p in by_id] == own

    def test_numbers_of_asdiv(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            golds = [p.gold for p in load_problems(real("asdiv"), "test", 0)]
        assert sum(bool(re.fullmatch(r"\d+(\.\d+)?", gold)) for gold in golds) == 2084
        assert sum(bool(re.fullmatch(r"\d+/\d+", gold)) for gold in golds) == 8


def test_importing_the_package_is_light():
    heavy = "{'torch', 'transformers', 'datasets', 'tokenizers', 'vllm', 'numpy', 'pyarrow'}"
    code = f"import sys, pspo.data; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
