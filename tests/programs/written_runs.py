"""Run directories of a study written by hand, in the real file format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from studies import Cell

STEPS = "2+3=5. 5-1=4.\n#### 4"
TERSE = "2+3-1=4.\n#### 4"


def write_graded(
    path: Path, correct: Sequence[bool], text: str = STEPS, finished: bool = True, status: str = "ok"
) -> None:
    """A per-problem file: problem i is right where correct[i]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for number, right in enumerate(correct):
            completion = {
                "text": text, "answer": "4", "correct": right, "lenient": right, "status": status, "tokens": 9,
                "finished": finished,
            }  # fmt: skip
            line = {
                "id": f"wp-{number}", "level": "2", "prompt_hash": "abc", "gold": "4", "completions": [completion],
                "correct": right, "status": status, "tokens": 9,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")


def write_run(cell: Cell, correct: Sequence[bool], best: Sequence[bool] | None = None, **text: object) -> None:
    """A complete run of a cell."""
    write_graded(cell.run_dir / "eval" / f"{cell.data}.jsonl", correct, **text)  # type: ignore[arg-type]
    write_graded(cell.run_dir / "eval" / f"{cell.data}.best.jsonl", best or correct)
    with (cell.run_dir / "metrics.jsonl").open("w") as file:
        for step in range(cell.cfg.steps + 1):
            line: dict[str, float | None] = {"step": step, "eval/validation_accuracy": 0.25 * step}
            if step:
                line |= {"reward/mean": 0.1 * step, "ratio/abs_dev_mean": 0.01 * step, "policy/entropy": None}
            file.write(json.dumps(line) + "\n")
    made_with = {
        "provenance": {"commit": "abc", "packages": "torch 2", "machine": "two cores"},
        "validation": {"0": 0.5, str(cell.cfg.steps): 0.5},
    }
    (cell.run_dir / "summary.json").write_text(json.dumps(made_with))
    (cell.run_dir / "DONE").touch()
