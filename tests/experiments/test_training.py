"""What training was like, of runs written by hand: means over steps, then over seeds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from written_runs import write_run

import columns
import tabletext
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
    assert course.entropy == pytest.approx(0.3) and course.seconds == pytest.approx(5.5) and course.not_finite == 1
    assert (course.highest, course.at, course.end) == (pytest.approx(0.8), 1, pytest.approx(0.7))
    assert course.no_slope is None and course.kl is None and course.grad_norm is None

    chosen = columns.course_columns([course])
    texts = {column.title: column.text(course) for column in chosen}
    assert (texts["|r - 1|"], texts["without slope, %"], texts["at step"]) == ("0.30", "-", "1")
    assert (texts["highest validation, %"], texts["steps not finite"]) == ("80.0", "1")
    head, rule, row = tabletext.markdown(chosen, [course], [])[:3]
    assert {line.replace(r"\|", "").count("|") for line in (head, rule, row)} == {len(chosen) + 1}


def test_what_is_beyond_computing_is_not_the_surrogates_and_a_step_without_update_counts_for_nothing(
    smoke: tuple[StudyConfig, list[Cell]],
) -> None:
    first = next(cell for cell in smoke[1] if cell.arm == "pspo")
    pspo = replace(first, cfg=replace(first.cfg, steps=3))
    slopes: list[Line] = [
        {"step": 1, "slope/zero_share": 0.25, "ratio/clamped_share": 0.25, "policy/entropy": 0.5, "time/step_s": 1.0},
        {"step": 2, "slope/zero_share": 0.3, "ratio/clamped_share": 0.1, "policy/entropy": 0.4, "time/step_s": 1.0},
        {"step": 3, "time/step_s": 9.0},
    ]
    write(pspo, [{"step": 0}, *slopes])
    [course] = courses_of([pspo])
    assert (course.no_slope, course.entropy, course.seconds) == (pytest.approx(0.1), 0.4, 1.0)
    assert (course.highest, course.at, course.end, course.not_finite) == (None, None, None, 0)


def test_solutions_are_not_sampled_and_have_no_ratio(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cell = replace(smoke[1][0], cfg=replace(smoke[1][0].cfg, train_on="solutions"))
    write(cell, [line(0, 0.5, 0, 0, 0), line(1, 0.9, 0.0, 1.0, 4.0), line(2, 0.6, None, 0.4, 6.0)])
    [course] = courses_of([cell])
    assert (course.ratio, course.kl, course.not_finite) == (None, None, 0) and course.entropy == pytest.approx(0.4)


def test_a_mean_over_fewer_seeds_than_are_complete_is_none(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    pspo = [cell for cell in smoke[1] if cell.arm == "pspo"]
    write(pspo[0], [line(0, 0.5, 0, 0, 0), line(1, 0.9, 0.1, 1.0, 4.0), line(2, 0.6, 0.3, 0.4, 6.0)])
    write(pspo[1], [{"step": 0}, {"step": 1, "policy/entropy": 1.0}, {"step": 2, "policy/entropy": 0.2}])
    [course] = courses_of(smoke[1])
    assert (course.ratio, course.seconds, course.highest, course.end) == (None, None, None, None)
    assert course.entropy == pytest.approx(0.3)


def test_of_equals_the_first_is_the_highest(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    """Whatever the order in which seeds are added up."""
    cells = [replace(smoke[1][0], seed=seed, cfg=replace(smoke[1][0].cfg, seed=seed)) for seed in range(3)]
    for cell, (first, second) in zip(cells, ((0.3, 0.1), (0.2, 0.2), (0.1, 0.3)), strict=True):
        write(cell, [line(0, first, 0, 0, 0), line(1, second, 0.1, 1.0, 4.0), line(2, 0.1, 0.3, 0.4, 6.0)])
    [course] = courses_of(cells)
    assert (course.highest, course.at) == (pytest.approx(0.2), 0)


def test_a_step_that_only_one_seed_has_validated_is_not_the_highest(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    pspo = [cell for cell in smoke[1] if cell.arm == "pspo"]
    write(pspo[0], [line(0, 0.5, 0, 0, 0), {"step": 1, "eval/validation_accuracy": 0.9}, line(2, 0.6, 0.3, 0.4, 6.0)])
    write(pspo[1], [line(0, 0.5, 0, 0, 0), {"step": 1}, line(2, 0.8, 0.1, 0.2, 8.0)])
    [course] = courses_of(smoke[1])
    assert (course.highest, course.at) == (pytest.approx(0.7), 2)
