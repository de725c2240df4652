"""What the plan says beside what was measured, and that docs/scaling.md shows it as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from planned import Row, lengths_of_the_benchmark, results, rows

ROWS = rows()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_the_plan_is_within_a_fifth_of_what_was_measured(row: Row) -> None:
    assert row.ratios == [pytest.approx(1.0, abs=0.2)] * len(row.ratios)


@pytest.mark.parametrize("name", ["learner", "learner-cuda"])
def test_lengths_are_those_that_the_benchmark_drew(name: str) -> None:
    found = results(name)
    samples = lengths_of_the_benchmark(found["options"]["groups"], found["options"]["group_size"])
    assert sum(completion for _, completion in samples) == found["tokens"]["completions"]
    assert sum(prompt + completion for prompt, completion in samples) == found["tokens"]["all"]


def test_the_page_shows_what_the_command_prints(root: Path) -> None:
    command = [sys.executable, "experiments/planned.py"]
    printed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=120).stdout
    assert printed.count("\n") == len(ROWS) + 2
    assert f"\n\n{printed}\n" in (root / "docs/scaling.md").read_text(encoding="utf-8")
