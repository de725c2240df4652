"""Published data sets: gold answers by hand, splits, errors; and the real GSM8K and MATH where they are at hand."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pspo.config import TrainConfig, compose
from pspo.config.schema import Benchmark
from pspo.data import load_problems
from pspo.data.benchmarks import gold_answer
from pspo.errors import PspoError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def benchmark(name: str, path: Path | str) -> Benchmark:
    data = compose("train", TrainConfig, ["scale=paper", f"data={name}", f"data.path={path}"]).data
    assert isinstance(data, Benchmark)
    return data


def write(directory: Path, rows: list[object], name: str = "train") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return directory


@pytest.mark.parametrize(
    ("gold_from", "text", "gold"),
    [
        ("after_hashes", "2+2=<<2+2=4>>4\n#### 4", "4"),
        ("after_hashes", "#### 3\n#### 1,200", "1,200"),
        ("after_hashes", "no answer", ""),
        ("last_box", r"so \boxed{1}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("last_box", r"it is $\boxed 2$.", "2"),
        ("last_box", r"\boxed{ }", ""),
        ("last_box", r"\boxed{\{1,2\}}", r"\{1,2\}"),
        ("field", "  7 ", "7"),
    ],
)
def test_gold_answers(gold_from: str, text: str, gold: str) -> None:
    cfg = replace(benchmark("gsm8k", "x"), gold_from=gold_from)
    assert gold_answer(cfg, {"answer": text}, "here") == gold


def test_the_split_is_a_partition_by_the_split_seed(tmp_path) -> None:
    path = write(tmp_path, [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(50)])
    cfg = replace(benchmark("gsm8k", path), validation=10)
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


def test_rows_without_gold_are_left_out_and_told(tmp_path) -> None:
    path = write(tmp_path, [{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "#### "}], "test")
    with pytest.warns(UserWarning, match=r"gsm8k: 1 rows without a gold answer left out: .*test.jsonl:2"):
        problems = load_problems(benchmark("gsm8k", path), "test", 0)
    assert [p.id for p in problems] == ["gsm8k-test-00000"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"question": "q"}', "test.jsonl:2: the field 'answer'"),
        ('{"question": 1, "answer": ["#### 1"]}', "test.jsonl:2: the field 'answer'"),
        ("{broken", "test.jsonl:2: not a JSON object"),
        ("[1]", "test.jsonl:2: not a JSON object but a list"),
    ],
)
def test_errors_name_file_and_line(tmp_path, line: str, told: str) -> None:
    path = write(tmp_path, [{"question": "a", "answer": "#### 1"}], "test")
    (path / "test.jsonl").open("a").write(line + "\n")
    with pytest.raises(PspoError, match=told) as error:
        load_problems(benchmark("gsm8k", path), "test", 0)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told(tmp_path) -> None:
    with pytest.raises(PspoError, match=r"test\.jsonl: cannot be read"):
        load_problems(benchmark("gsm8k", tmp_path), "test", 0)


def test_line_separators_inside_a_text_do_not_split_a_row(tmp_path) -> None:
    path = write(tmp_path, [{"question": "a\u2028b\x85c", "answer": "#### 1"}], "test")
    assert load_problems(benchmark("gsm8k", path), "test", 0)[0].question == "a\u2028b\x85c"


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not beside the repository (../shared/data)")
class TestReal:
    def test_gsm8k(self) -> None:
        cfg = benchmark("gsm8k", DATA / "gsm8k")
        sizes = [len(load_problems(cfg, split, 0)) for split in ("train", "validation", "test")]
        assert sizes == [7000, 473, 1319]
        first = load_problems(cfg, "test", 0)[0]
        assert first.id == "gsm8k-test-00000" and first.question.startswith("Janet\u2019s ducks") and first.gold == "18"

    def test_math(self) -> None:
        cfg = benchmark("math", DATA / "math")
        with pytest.warns(UserWarning, match="2 rows without a gold answer"):
            train = load_problems(cfg, "train", 0)
        assert len(train) == 7498 - cfg.validation and all(p.gold for p in train)
        test = load_problems(cfg, "test", 0)
        assert len(test) == 5000 and {p.level for p in test} == {f"Level {k}" for k in range(1, 6)}


def test_importing_the_package_is_light() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'tokenizers', 'vllm', 'numpy'}"
    code = f"import sys, pspo.data; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
