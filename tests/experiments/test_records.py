"""What runs have written, read back: a file that is not whole is one line that names it."""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from written_runs import write_graded

from pspo.errors import PspoError
from records import read_drawn, read_graded, read_metrics, read_summary


@pytest.mark.parametrize("text", [b"null\n", b"[]\n", b"{}\n", b'{"id": "a"', b"", b"\xff\n", b'{"completions": []}\n'])
def test_a_damaged_file_of_graded_problems_is_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_bytes(text)
    with pytest.raises(PspoError, match=r"gsm8k\.jsonl") as caught:
        read_graded(path)
    assert "\n" not in str(caught.value)
    if text:
        with pytest.raises(PspoError, match=r"gsm8k\.jsonl"):
            read_drawn(path, "gsm8k")


def test_a_problem_twice_a_verdict_that_is_none_and_another_file_than_the_summarys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    write_graded(path, [True, False])
    whole = path.read_text()
    summary = {"sha256": hashlib.sha256(whole.encode()).hexdigest()}
    path.with_suffix(".summary.json").write_text(json.dumps(summary))
    assert len(read_graded(path)) == 2
    for damaged in (whole.splitlines()[0] + "\n", whole.replace("true", "false", 1)):
        path.write_text(damaged)
        with pytest.raises(PspoError, match=r"gsm8k.jsonl: not the file that gsm8k.summary.json was made from"):
            read_graded(path)
    path.with_suffix(".summary.json").unlink()
    for damaged, complaint in (
        (whole + whole, "line 3: problem wp-0 is there twice"),
        (whole.replace('"correct": true, "status"', '"correct": "true", "status"'), "line 1: not a completion"),
    ):
        path.write_text(damaged)
        with pytest.raises(PspoError, match=complaint):
            read_graded(path)
    for number in ("7", "null", "[1]"):
        path.write_text(whole.replace('"wp-1"', number))
        for read in (read_graded, partial(read_drawn, style="gsm8k")):
            with pytest.raises(PspoError, match=r"gsm8k\.jsonl, line 2: its id is no text"):
                read(path)


def test_steps_that_are_missing_and_numbers_that_are_none(tmp_path: Path) -> None:
    lines = [{"step": 0, "kl/k3": 1}, {"step": 2, "kl/k3": float("inf"), "reward/mean": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_metrics(tmp_path)
    assert found.steps.tolist() == [0, 2]
    assert found["kl/k3"].tolist() == [1, math.inf] and np.isnan(found["none/such"]).all()
    assert np.isnan(found["reward/mean"][0]) and found["reward/mean"][1] == math.inf
    with pytest.raises(PspoError, match=r"metrics.jsonl: step 1 is missing"):
        read_metrics(tmp_path, steps=2)
    with pytest.raises(PspoError, match=r"metrics.jsonl: step 2 in a run of 0 steps"):
        read_metrics(tmp_path, steps=0)


@pytest.mark.parametrize(
    "text",
    [
        *(b"null\n", b'{"stop": 1}\n', b'{"step": "abc"}\n', b'{"step": 1, "kl/k3": "x"}\n', b'{"step": 1', b"\xff\n"),
        *(b'{"step": 1.5}\n', b'{"step": true}\n', b'{"step": -1}\n', b'{"step": ' + b"9" * 30 + b"}\n"),
        *(b'{"step": 1, "time/step_s": ' + seconds + b"}\n" for seconds in (b"-0.5", b"null", b"NaN", b"1e999")),
        *(b'{"step": ' + b"9" * 5000 + b"}\n", b"[" * 100_000 + b"\n"),
    ],
    ids=range(16),
)
def test_damaged_metrics_are_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(text)
    with pytest.raises(PspoError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *(None, b"", b"[]", b'{"steps": 20', b"\xff", b"{}", b'{"provenance": {}, "validation": [1]}'),
    ],
)
def test_a_damaged_summary_is_named(tmp_path: Path, text: bytes | None) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_bytes(text)
    with pytest.raises(PspoError, match=r"summary\.json"):
        read_summary(tmp_path)


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    write_graded(path, [True, False])
    first = read_graded(path)
    assert read_graded(path) is first
    write_graded(path, [True, False, True])
    assert len(first) == 2 and len(read_graded(path)) == 3
