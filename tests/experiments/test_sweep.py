"""The figure of the study `alpha`, from hand-written run directories in the real file format, and its program."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.container import ErrorbarContainer

import curves
import figures
from pspo.config import StudyConfig
from results import rows_of
from studies import Cell, cells_of, load_study

ROOT = Path(__file__).resolve().parents[2]
PROBLEMS = 20
STUDY = load_study("alpha")
KNOWN = "alpha, edge, epsilon, reuse, tau"


def write_run(cell: Cell, right: int) -> None:
    """A complete run with so many of the problems right."""
    path = cell.run_dir / "eval" / f"{cell.data}.jsonl"
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        for number in range(PROBLEMS):
            correct = number < right
            completion = {
                "text": "2+3=5.\n#### 5", "answer": "5", "correct": correct, "lenient": correct, "status": "ok",
                "tokens": 9, "finished": True, "right_if_finished": correct,
            }  # fmt: skip
            line = {
                "id": f"wp-{number}", "level": "2", "subject": "", "prompt_hash": "abc", "question": "q", "gold": "5",
                "correct": correct, "status": "ok", "tokens": 9, "completions": [completion],
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    (cell.run_dir / "metrics.jsonl").write_text("".join(f'{{"step": {k}}}\n' for k in range(cell.cfg.steps + 1)))
    provenance = {"commit": "c", "packages": "p", "machine": "m"}
    (cell.run_dir / "summary.json").write_text(json.dumps({"provenance": provenance}))
    (cell.run_dir / "DONE").touch()


@pytest.fixture
def alpha(study_config: Callable[..., StudyConfig]) -> tuple[StudyConfig, list[Cell]]:
    cfg = study_config("study=alpha")
    return cfg, cells_of(STUDY, cfg)


def test_alpha_is_six_values_over_five_seeds_of_one_method(alpha: tuple[StudyConfig, list[Cell]]) -> None:
    cells = alpha[1]
    assert STUDY.curve is not None
    values = [STUDY.curve.x.value(cell.cfg) for cell in cells]
    assert sorted(values) == sorted([0, 0.05, 0.1, 0.2, 0.4, 0.8] * 5)
    assert {cell.seed for cell in cells} == {0, 1, 2, 3, 4}
    alike = [replace(cell.cfg, surrogate=cells[0].cfg.surrogate, seed=0) for cell in cells]
    assert all(cfg == alike[0] for cfg in alike)  # nothing but alpha and the seed differs
    assert all(cell.arm == f"alpha={value:g}" for cell, value in zip(cells, values, strict=True))


def test_panels_share_an_axis_that_has_every_point(study_config: Callable[..., StudyConfig]) -> None:
    """Of reuse: 90% right at the lowest learning rate, none at the highest."""
    study, cfg = load_study("reuse"), study_config("study=reuse")
    cells = cells_of(study, cfg)
    for cell in cells:
        write_run(cell, right={2e-5: 18, 5e-5: 10, 1e-4: 0}[cell.cfg.learner.lr])
    assert study.curve is not None
    drawing = curves.draw_panels(study.curve, list(study.arms), cells, rows_of(study, cells, cfg))
    assert [panel.get_title() for panel in drawing.axes] == [
        f"learning rate {lr}" for lr in ("2e-05", "5e-05", "0.0001")
    ]
    for panel, accuracy in zip(drawing.axes, (90, 50, 0), strict=True):
        low, high = panel.get_ylim()
        lines = [one for one in panel.containers if isinstance(one, ErrorbarContainer)]
        assert [list(line.get_ydata()) for line, _, _ in lines] == [[pytest.approx(accuracy)] * 4] * 4
        assert 0 <= low <= accuracy <= high <= 100
    figures.plt.close(drawing)


def test_the_curve_is_means_with_their_intervals_and_every_seed(alpha: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = alpha
    for cell in cells:
        if cell.arm != "alpha=0.8":  # not run yet: the figure is of what is there
            write_run(cell, right=8 + cell.seed * (cell.arm != "alpha=0"))
    complete, rows = [cell for cell in cells if cell.complete], rows_of(STUDY, cells, cfg)
    figure, panel = figures.plt.subplots()
    assert STUDY.curve is not None
    curves.draw_panel(panel, STUDY.curve, list(STUDY.arms), complete, rows)
    (bars,) = (one for one in panel.containers if isinstance(one, ErrorbarContainer))
    line, _, (segments,) = bars
    assert list(line.get_xdata()) == [0, 1, 2, 3, 4]
    assert list(line.get_ydata()) == pytest.approx([40, 50, 50, 50, 50])
    assert [text.get_text() for text in panel.get_xticklabels()] == ["0", "0.05", "0.1", "0.2", "0.4"]
    ends = [(low[1], high[1]) for low, high in segments.get_segments()]
    last = {row.arm: row.last for row in rows}
    asked = [last[f"alpha={value:g}"].over_seeds for value in (0, 0.05, 0.1, 0.2, 0.4)]
    assert asked[0] is None  # seeds all alike have no interval, and no bar
    asked[0] = (0.4, 0.4)
    assert ends == [pytest.approx([100 * end for end in pair]) for pair in asked]
    points = [list(one.get_ydata()) for one in panel.lines if one.get_marker() == "o"]
    dots = sorted(point[0] for point in points if point)
    assert dots == pytest.approx([40] * 9 + [45] * 4 + [50] * 4 + [55] * 4 + [60] * 4)
    figures.plt.close(figure)


def test_a_figure_is_written_as_svg_and_png_and_is_the_same_again(alpha: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = alpha
    folder = Path(cfg.results) / "alpha" / "figures"

    def draw() -> list[Path]:
        return curves.draw(folder, STUDY, cells, rows_of(STUDY, cells, cfg))

    assert draw() == []
    for cell in cells[:2]:
        write_run(cell, right=10)  # one seed: no interval
    [drawn] = draw()
    assert drawn == folder / "accuracy.svg"
    assert drawn.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    first = drawn.read_bytes()
    texts = " ".join(ElementTree.fromstring(first).itertext())
    assert "test accuracy, T=0 (%)" in texts and "alpha (no unit" in texts and "before RL" not in texts
    draw()
    assert drawn.read_bytes() == first


def test_each_method_is_a_line_where_each_goes_over_the_setting(study_config: Callable[..., StudyConfig]) -> None:
    """Study reuse: a panel a learning rate, in each a line a method over mu; what has no complete run is not drawn."""
    study, cfg = load_study("reuse"), study_config("study=reuse")
    cells = cells_of(study, cfg)
    for cell in cells:
        if cell.seed < 2 and cell.cfg.learner.lr < 1e-4 and not (cell.arm == "clip" and cell.cfg.learner.passes == 8):
            write_run(cell, right=cell.cfg.learner.passes + cell.seed)
    complete, rows = [cell for cell in cells if cell.complete], rows_of(study, cells, cfg)
    assert study.curve is not None
    panels = curves.panels_of(study.curve, complete)
    assert [title for title, _ in panels] == ["learning rate 2e-05", "learning rate 5e-05"]
    figure, panel = figures.plt.subplots()
    curves.draw_panel(panel, study.curve, list(study.arms), panels[0][1], rows)
    drawn = {one.get_label(): one for one in panel.containers if isinstance(one, ErrorbarContainer)}
    assert list(drawn) == ["no_clip", "clip", "sigmoid", "pspo"]
    expected = [100 * (passes + 0.5) / PROBLEMS for passes in (1, 2, 4, 8)]
    assert list(drawn["pspo"].lines[0].get_ydata()) == pytest.approx(expected)
    assert list(drawn["clip"].lines[0].get_ydata()) == pytest.approx(expected[:3])
    assert len({one.lines[0].get_color() for one in drawn.values()}) == 4
    figures.plt.close(figure)


def test_a_study_that_goes_over_nothing_is_refused() -> None:
    command = [sys.executable, "experiments/sweep.py", "study=main", "scale=cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == f"pspo: wrong setting: study=main: goes over no setting; must be one of {KNOWN}\n"


def test_where_all_is_complete_it_draws_and_ends_with_the_figures_path(alpha: tuple[StudyConfig, list[Cell]]) -> None:
    """The same command a second time: nothing is run, and the table is there as well."""
    cfg, cells = alpha
    for cell in cells:
        write_run(cell, right=10 + cell.seed)
    start = cells[0]
    start.start_evaluation.parent.mkdir(parents=True)
    (start.start_dir / "DONE").touch()
    start.start_evaluation.write_bytes((start.run_dir / "eval" / f"{start.data}.jsonl").read_bytes())
    places = [f"{name}={getattr(cfg, name)}" for name in ("results", "runs", "models")]
    command = [sys.executable, "experiments/sweep.py", "study=alpha", "scale=cpu", "rollout=hf", *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "nothing to run: all 30 runs of study alpha complete" in done.stderr
    figure = Path(done.stdout.splitlines()[-1])
    assert figure == Path(cfg.results) / "alpha" / "figures" / "accuracy.svg" and figure.is_file()
    assert (Path(cfg.results) / "alpha" / "table_main.md").is_file()
