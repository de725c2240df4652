"""What training was like, of runs written by hand: means over steps, then over seeds."""

from __future__ import annotations

import json

import pytest
from written_runs import write_run

import tables
from pspo.config import StudyConfig
from studies import Cell
from training import courses_of

Line = dict[str, float | None]


def write(cell: Cell, lines: list[Line]) -> None:
    write_run(cell, [True])
    (cell.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(step: int, validated: float, ratio: float | None, entropy: float, seconds: float) -> Line:
    measured: Line = {"ratio/abs_dev_mean": ratio, "policy/entropy": entropy, "time/step_s": seconds}
    return {"step": step, "eval/validation_accuracy": validated} | (measured if step else {})


def test_means_over_steps_and_seeds(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    """The second seed's ratio of step 2 was not finite: its mean is that of step 1."""
    pspo = [cell for cell in smoke[1] if cell.arm == "pspo"]
    write(pspo[0], [line(0, 0.5, 0, 0, 0), line(1, 0.9, 0.1, 1.0, 4.0), line(2, 0.6, 0.3, 0.4, 6.0)])
    write(pspo[1], [line(0, 0.5, 0, 0, 0), line(1, 0.7, 0.4, 1.0, 4.0), line(2, 0.8, None, 0.2, 8.0)])
    [course] = courses_of(smoke[1])
    assert (course.arm, course.done, course.planned) == ("pspo", 2, 2)
    assert course.ratio == pytest.approx((0.2 + 0.4) / 2)
    assert course.entropy == pytest.approx(0.3) and course.seconds == pytest.approx(5.5)
    assert (course.highest, course.at, course.end) == (pytest.approx(0.8), 1, pytest.approx(0.7))
    assert course.no_slope is None and course.kl is None and course.grad_norm is None

    chosen = tables.course_columns([course])
    texts = {column.title: column.text(course) for column in chosen}
    assert (texts["|r - 1|"], texts["without slope, %"], texts["at step"]) == ("0.3", "-", "1")
    assert texts["highest validation, %"] == "80.0"


def test_a_step_that_only_one_seed_has_validated_is_not_the_highest(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    pspo = [cell for cell in smoke[1] if cell.arm == "pspo"]
    write(pspo[0], [line(0, 0.5, 0, 0, 0), {"step": 1, "eval/validation_accuracy": 0.9}, line(2, 0.6, 0.3, 0.4, 6.0)])
    write(pspo[1], [line(0, 0.5, 0, 0, 0), {"step": 1}, line(2, 0.8, 0.1, 0.2, 8.0)])
    [course] = courses_of(smoke[1])
    assert (course.highest, course.at) == (pytest.approx(0.7), 2)
