"""What a study takes, beside counts by hand."""

from __future__ import annotations

import json

import pytest
from written_runs import write_run

from cost import cost_of, costs_elsewhere, costs_of
from forecasts import device_hours, forecast_of, machine
from pspo.config import StudyConfig
from studies import Cell, load_study


def test_counts_of_the_papers_scale(paper: tuple[StudyConfig, list[Cell]]) -> None:
    study = load_study("main")
    costs = costs_of(study, paper[1], paper[0])
    assert [cost.scale for cost in costs] == ["paper"] * 6
    assert [(cost.scale, cost.planned, cost.done) for cost in costs_elsewhere(study, paper[0])] == [("cpu", 55, 0)]
    [one] = [cost for cost in costs if (cost.model, cost.data) == ("qwen2_5_0_5b", "math")]
    # Six methods and five seeds, of which SFT samples nothing; 1,312 steps of 16 problems, four completions of each.
    assert (one.planned, one.done, one.hours, one.steps) == (30, 0, None, 30 * 1312)
    assert (one.completions, one.sampled) == (25 * 83_968, 25 * 83_968 * 1024)
    # 264 validations of 200 problems, the test parts of MATH twice, and of each benchmark, twice.
    assert one.evaluated == 30 * (264 * 200 + 2 * 5000 + 2 * (1319 + 5000 + 500 + 300 + 2305))
    # One pass of no_clip's, one of SFT's over a solution a problem, two of the four others'.
    assert one.learned == 5 * 1024 * (83_968 + 83_968 // 4 + 4 * 2 * 83_968)


def test_hours_are_those_on_record_of_complete_runs(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cells = smoke[1]
    study = load_study("smoke")
    assert cost_of(cells, study, smoke[0]).hours is None
    for cell in cells[:2]:
        write_run(cell, [True])
        lines = [
            {"step": 0, "time/eval_s": 60.0},
            {"step": 1, "time/step_s": 600.0, "time/rollout_s": 500.0, "time/save_s": 60.0},
            {"step": 2, "time/step_s": 1020.0, "time/save_s": 60.0},
        ]
        (cell.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cost = cost_of(cells, study, smoke[0])
    assert (cost.done, cost.planned, cost.hours) == (2, 4, pytest.approx(1.0))


def test_forecast_hours(paper: tuple[StudyConfig, list[Cell]]) -> None:
    """Those of the run, and of ten evaluations, each of which starts for itself; none on a CPU."""
    study, (cfg, cells) = load_study("main"), paper
    cell = next(cell for cell in cells if (cell.arm, cell.model, cell.data) == ("pspo", "qwen2_5_0_5b", "gsm8k"))
    plan = forecast_of(cell, machine())
    hours = device_hours(cell, study, cfg, plan)
    assert hours is not None and hours > plan.hours + 10 * plan.machine.start_s / 3600
    assert cost_of([cell], study, cfg).forecast == hours
    small = forecast_of(cell, machine("rtx4090"))
    assert not small.fits
    more = device_hours(cell, study, cfg, small)
    assert more is not None and more > hours
    assert [cost.forecast for cost in costs_elsewhere(study, cfg)] == [None]
