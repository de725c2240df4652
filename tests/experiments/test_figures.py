"""Figures of runs written by hand: what is drawn are the numbers on record."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from written_runs import write_run

import curves
import figures
from asked import Asked
from pspo.config import StudyConfig
from pspo.intervals import Estimate
from pspo.metrics import RATIO_EDGES
from records import Metrics, read_metrics
from studies import Cell, load_study


def log(cell: Cell, steps: list[dict[str, float | None]]) -> None:
    lines = [{"step": 0, "eval/validation_accuracy": 0.5}, *({"step": k + 1, **line} for k, line in enumerate(steps))]
    (cell.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def runs(smoke: tuple[StudyConfig, list[Cell]]) -> list[Cell]:
    """Two methods, two seeds, two steps; in step 2 a tenth of the tokens is below 0.8, and so on up the edges."""
    cells = smoke[1]
    for cell in cells:
        write_run(cell, [True])
        below = {f"ratio/below_{edge:g}_share": 0.1 * k for k, edge in enumerate(RATIO_EDGES)}
        same = {f"ratio/below_{edge:g}_share": float(edge > 1) for edge in RATIO_EDGES}
        first = {"reward/mean": 0.2 + 0.2 * cell.seed, "policy/entropy": 1.0, "kl/k3": 0.01, "time/rollout_s": 2.0}
        second = {"reward/mean": 0.5, "policy/entropy": 0.5, "kl/k3": None, "time/rollout_s": 4.0, "time/eval_s": 1.0}
        log(cell, [first | same, second | below])
    return cells


def test_every_figure_is_written_twice_with_a_caption_and_the_same_again(runs: list[Cell], tmp_path: Path) -> None:
    drawn = figures.draw(tmp_path / "drawn", runs, ["no_clip", "pspo"])
    assert len({figure.path for figure in drawn}) == len(figures.CURVES) + 4
    assert all(figure.caption.endswith(".") for figure in drawn)
    before = {path: path.read_bytes() for path in (tmp_path / "drawn").iterdir()}
    assert {path.with_suffix(".png") for path in before if path.suffix == ".svg"} < set(before)
    assert len(before) == 2 * len(drawn)
    figures.draw(tmp_path / "drawn", runs, ["no_clip", "pspo"])
    assert {path: path.read_bytes() for path in (tmp_path / "drawn").iterdir()} == before


def test_a_band_is_from_the_least_to_the_greatest_seed(runs: list[Cell]) -> None:
    figure, panel = figures.plt.subplots()
    curve = next(one for one in figures.CURVES if one.metric == "reward/mean")
    of_seeds = [read_metrics(cell.run_dir) for cell in runs if cell.arm == "pspo"]
    figures.over_steps(curve, ["no_clip", "pspo"], panel, [("pspo", of_seeds)])
    [line] = panel.lines
    assert list(line.get_ydata()) == pytest.approx([0.3, 0.5])
    [band] = panel.collections
    ends = band.get_paths()[0].get_extents()
    assert (ends.ymin, ends.ymax) == pytest.approx((0.2, 0.5))
    figures.plt.close(figure)


def test_a_step_where_a_seed_has_no_number_is_left_out(runs: list[Cell]) -> None:
    of_seeds = [read_metrics(cell.run_dir) for cell in runs]
    steps, values = figures.series(of_seeds, "kl/k3")
    assert steps == [1] and values.shape == (4, 1)


def test_a_line_has_a_few_hundred_points_at_most() -> None:
    long = Metrics(np.arange(1, 1313), {"kl/k3": np.arange(1.0, 1313.0)})
    steps, values = figures.series([long], "kl/k3")
    assert 200 < len(steps) <= figures.MOST_STEPS and list(values[0]) == steps == list(range(1, 1313, steps[1] - 1))


def test_curves_against_the_temperature_are_the_tables_numbers(tmp_path: Path) -> None:
    def row(arm: str, temperature: float, value: float) -> Asked:
        found = Estimate(value, (value - 0.1, value + 0.1), (0.0, 1.0), 2, 9)
        counts = {"done": 2, "planned": 2, "problems": 9, "samples": 1 if temperature == 0 else 16}
        return Asked(
            *("tiny", "wordproblems", "gentle", arm, "words", "last", temperature),
            **counts,
            accuracy=found,
            difference=None,
            pass_at={1: value},
            pass_at_most=found,
            pass_difference=None,
            majority=found,
        )

    rows = [row(arm, T, 0.5 - T / 4) for arm in ("no_clip", "pspo") for T in (0.8, 0.0)]
    [drawn] = curves.draw_by_temperature(tmp_path, load_study("smoke"), rows)
    texts = " ".join(ElementTree.parse(drawn.path).getroot().itertext())
    assert all(word in texts for word in ("temperature", "accuracy (%)", "pass@16 (%)", "majority vote (%)", "pspo"))
    assert curves.draw_by_temperature(tmp_path, load_study("smoke"), rows[:1]) == []  # one temperature is no curve
    figure, panel = figures.plt.subplots()
    curves.draw_line(panel, "pspo", 1, [(0.0, rows[1].accuracy), (0.8, rows[0].accuracy)])
    line, _, [bars] = panel.containers[0].lines
    assert list(line.get_ydata()) == pytest.approx([50.0, 30.0])
    assert [list(bar[:, 1]) for bar in bars.get_segments()] == [
        pytest.approx([40.0, 60.0]),
        pytest.approx([20.0, 40.0]),
    ]
    figures.plt.close(figure)


def test_the_distribution_is_the_shares_between_the_edges(runs: list[Cell]) -> None:
    of_seeds = [read_metrics(cell.run_dir) for cell in runs]
    drawing = figures.distributions([("gentle", [("pspo", of_seeds)])])
    [image] = drawing.axes[0].images
    shares = image.get_array()
    assert shares is not None and shares.shape == (len(RATIO_EDGES) + 1, 2)  # by step
    # Step 1: all between 0.99 and 1.01. Step 2: none below the first edge, a tenth in each interval, the rest above.
    assert [k for k in range(9) if not np.ma.getmaskarray(shares)[k, 0]] == [4] and shares[4, 0] == 1
    assert list(shares[1:, 1]) == pytest.approx([*[0.1] * 7, 0.3]) and np.ma.getmaskarray(shares)[0, 1]
    assert [text.get_text() for text in drawing.axes[0].get_yticklabels()] == [f"{edge:g}" for edge in RATIO_EDGES]
    figures.plt.close(drawing)


def test_time_is_the_median_of_steps_and_the_mean_of_what_is_not_in_each(runs: list[Cell]) -> None:
    run = read_metrics(runs[0].run_dir)
    assert (figures.step_seconds(run, "rollout"), figures.step_seconds(run, "eval")) == (3.0, 0.5)


def test_axes_have_their_units(runs: list[Cell], tmp_path: Path) -> None:
    drawn = figures.draw(tmp_path / "drawn", runs, ["no_clip", "pspo"])
    texts = {one.path.stem: " ".join(ElementTree.parse(one.path).getroot().itertext()) for one in drawn}
    assert "nats a token" in texts["entropy"] and "(%)" in texts["validation_accuracy"]
    assert "seconds a step" in texts["time"] and "training step" in texts["ratio_distribution"]
    without = {name for name, text in texts.items() if not ("no_clip" in text and "pspo" in text)}
    assert without == {"slope_zero", "slope_small", "ratio", "grad_norm"}  # which these runs have not on record
