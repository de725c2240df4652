"""What runs have written, read back: a file that is not whole is one line that names it."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize("text", [b"null\n", b'{"stop": 1}\n', b'{"step": 1', b"\xff\n"])
def test_damaged_metrics_are_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(text)
    with pytest.raises(PspoError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("text", [None, b"", b"[]", b'{"steps": 20', b"\xff"])
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
