"""The tables of hand-written run directories, in the real file format."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from written_runs import STEPS, TERSE, write_graded, write_run

import columns
import published
import report
import tables
import tabletext
from asked import Asked, asked_of
from benchmarking import benchmark_tasks
from claims import load_claims
from pspo.config import StudyConfig
from pspo.errors import PspoError
from pspo.intervals import Estimate, wilson
from published import all_published, published_for
from results import Row, besides_of, rows_of
from studies import Cell, cells_of, load_study
from verdicts import Finding, Verdict

ROOT = Path(__file__).resolve().parents[2]
STUDY = load_study("smoke")


def by_arm(rows: list[Row]) -> dict[str | None, Row]:
    return {row.arm: row for row in rows}


def fill(cells: list[Cell]) -> None:
    """Four problems. no_clip: 2 and 3 right; pspo: 3 and 4; before: 1."""
    right = {
        ("no_clip", 0): [True, True, False, False],
        ("no_clip", 1): [True, True, True, False],
        ("pspo", 0): [True, False, True, True],
        ("pspo", 1): [True, True, True, True],
    }
    for cell in cells:
        write_run(cell, right[cell.arm, cell.seed], best=[True] * 4, text=STEPS if cell.arm == "pspo" else TERSE)
    write_graded(cells[0].start_evaluation, [True, False, False, False], text=TERSE, finished=False)


def test_rows_by_hand(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = smoke
    fill(cells)
    rows = by_arm(rows_of(STUDY, cells, cfg))
    assert list(rows) == [None, "no_clip", "pspo"]

    before = rows[None]
    assert before.last is not None and before.last.value == 0.25
    assert before.wilson == wilson(1, 4)
    assert before.texts is not None and (before.texts.truncated, before.texts.steps) == (1.0, 0.0)

    pspo = rows["pspo"]
    assert pspo.last is not None and pspo.best is not None and pspo.texts is not None
    assert pspo.last.value == pytest.approx(7 / 8)
    # Seeds .75 and 1: mean .875, s = .176777, t(.975, 1) = 12.7062: +- 1.588276
    assert pspo.last.over_seeds == pytest.approx((-0.713276, 2.463276), abs=1e-5)
    assert (pspo.best.value, pspo.texts.steps, pspo.texts.arithmetic) == (1.0, 1.0, 1.0)
    assert (before.texts.right_steps, pspo.texts.right_steps) == (None, 0.875)
    # Paired: seed 0 has +1, -1 and +1, +1/4 in the mean; seed 1 has +1/4: no spread over seeds, mean 1/4.
    assert pspo.difference is not None and pspo.gain is not None
    assert pspo.difference.value == pytest.approx(0.25)
    assert pspo.difference.over_seeds is None
    assert pspo.gain.value == pytest.approx(7 / 8 - 1 / 4)
    assert rows["no_clip"].difference is None
    assert (pspo.done, pspo.planned, pspo.incomplete) == (2, 2, False)


def test_a_run_without_done_does_not_count_and_is_told(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = smoke
    fill(cells)
    for cell in cells:
        if (cell.arm, cell.seed) == ("pspo", 1):
            (cell.run_dir / "DONE").unlink()
    pspo = by_arm(rows_of(STUDY, cells, cfg))["pspo"]
    assert pspo.last is not None and pspo.difference is not None
    assert (pspo.done, pspo.planned, pspo.last.value) == (1, 2, 0.75)
    assert pspo.difference.seeds == 1  # paired with the baseline's seed 0 alone
    assert columns.runs(pspo) == "1 of 2, incomplete"
    assert "[one seed]" in tabletext.level(pspo.last)


def test_nothing_run_yet_is_a_table_that_says_so(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = smoke
    text = report.rebuild(STUDY, cells, cfg)
    assert "not evaluated" in text and "0 of 2, incomplete" in text


def test_grader_errors_are_counted_apart(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = smoke
    for cell in cells:
        write_run(cell, [False] * 4, status="timeout" if cell.arm == "pspo" else "no_answer")
    rows = by_arm(rows_of(STUDY, cells, cfg))
    assert rows["pspo"].texts is not None and rows["no_clip"].texts is not None
    assert rows["pspo"].texts.failed == {"timeout": 8, "gold_unreadable": 0, "error": 0}
    assert (rows["pspo"].texts.no_answer, rows["no_clip"].texts.no_answer) == (0.0, 1.0)
    assert set(rows["no_clip"].texts.failed.values()) == {0}
    flat = {row.arm: tables.flat(row) for row in rows.values()}
    assert (flat["pspo"]["timeout"], flat["pspo"]["error"], flat["no_clip"]["timeout"]) == (8, 0, 0)


def test_different_problems_are_not_compared(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = smoke
    for cell in cells:
        write_run(cell, [True] * (4 + (cell.seed == 1)))
    with pytest.raises(PspoError, match="different problems"):
        rows_of(STUDY, cells, cfg)


def test_the_four_tables_say_the_same(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = smoke
    fill(cells)
    printed = report.rebuild(STUDY, cells, cfg)
    folder = Path(cfg.results) / "smoke"
    assert printed.splitlines()[-1] == str(folder / "table_main.md")

    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 + 2 + 1 + 2 + 2 + 2 + 1  # results, comparisons, training, cost
    for first, last in ((0, 5), (5, 8), (8, 12), (12, 15)):
        assert len({line.replace(r"\|", "").count("|") for line in lines[first:last]}) == 1
    titles = [line for line in printed.splitlines() if line.startswith("## ")]
    assert titles == ["## Told apart?", "## What training was like", "## What it takes"]
    assert "| - | before RL (the warm start) | 25.0 [4.6, 69.9] |" in lines[2]
    assert "| gentle | pspo | 87.5 [-71.3, 246.3] / " in lines[4] and "+25.0 [no spread] / " in lines[4]

    pspo = list(csv.DictReader((folder / "table_main.csv").open()))[2]
    assert (pspo["method"], float(pspo["last"]), float(pspo["difference"])) == ("pspo", 0.875, 0.25)
    row = json.loads((folder / "table_main.json").read_text())["rows"][2]
    assert (row["arm"], row["last"]["value"], row["difference"]["value"]) == ("pspo", 0.875, 0.25)
    tex = (folder / "table_main.tex").read_text()
    assert r"gentle & no\_clip & 62.5 {[}" in tex and tex.count(r"\toprule") == 1
    assert len({line.count(" & ") for line in tex.splitlines() if line.endswith(r" \\")}) == 1
    # Right in pspo alone: two problems of seed 0, one of seed 1; in no_clip alone one. By problem 0, -1, 1, 2: of the
    # eight ways to sign 1, 1 and 2, six come to 2 or more.
    assert lines[7] == "| gentle | pspo | no_clip | 2 | +25.0 | - | 3 / 1 | 1.000, 1.000 | 0.750 | - | - |"
    beside = list(csv.DictReader((folder / "table_comparisons.csv").open()))
    assert [(one["arm"], one["of_methods"]) for one in beside] == [("pspo", "")]
    assert float(beside[0]["of_policies"]) == pytest.approx(0.75)
    (same,) = json.loads((folder / "table_main.json").read_text())["comparisons"]
    assert (same["value"], same["tests"]["by_seed"][0]) == (0.25, {"ours": 2, "theirs": 1, "p": 1.0})
    assert r"gentle & pspo & no\_clip & 2 & +25.0" in (folder / "table_comparisons.tex").read_text()
    for name in ("study", "command", "date", "commit", "packages", "test problems"):
        assert f"- {name}: " in printed


def test_the_report_is_one_file_with_figures_and_samples(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = smoke
    fill(cells)
    report.rebuild(STUDY, cells, cfg)
    folder = Path(cfg.results) / "smoke"
    html = (folder / "report.html").read_text()
    assert html.count("<svg") == len(list((folder / "figures").glob("*.svg"))) == 12
    assert "wp-1" in html and "pspo, wrong" in html and "no_clip, right" in html
    assert "src=" not in html and html.count("<link") == html.count('<link rel="icon" href="data:,">') == 1
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".svg", ".png"}
    assert "79.9" in html and "not to be compared" in html  # the paper's figures, apart from ours


def test_published_figures_stand_beside_ours_only_where_they_are_known() -> None:
    assert len(all_published()) == 6
    assert [entry.accuracy for entry in published_for("qwen2_5_0_5b", "gsm8k", "clip")] == [17.6]
    assert [entry.accuracy for entry in published_for("qwen2_math_1_5b", "math", "pspo")] == [59.6]
    assert published_for("qwen2_5_0_5b", "math", "clip") == ()
    place = ("qwen2_math_1_5b", "gsm8k", "released")
    known = Row(*place, "pspo", 0, 3, 0, *[None] * 6, published_for("qwen2_math_1_5b", "gsm8k", "pspo"))
    unknown = Row(*place, "sigmoid", 0, 3, 0, *[None] * 6, ())
    assert columns.published(known) == "79.9 (v2, trained on unknown)"
    assert columns.published(unknown) == "unknown"
    assert [c.title for c in columns.result_columns([known], "no_clip", True)][-1] == "published, %"
    assert "published, %" not in [c.title for c in columns.result_columns([known], "no_clip", False)]


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("accuracy: 79.9", "accuracy: 0.799"),
        ("accuracy: 79.9", "accuracy: .nan"),
        ("arm: clip", "arm: clop"),
        ("benchmark: math", "benchmark: gsm8k"),
        ("version: v1", "version: v3"),
        ("protocol: *v2", "protocols: *v2"),
    ],
)
def test_a_published_figure_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str, now: str
) -> None:
    text = published.PUBLISHED.read_text()
    assert was in text
    (tmp_path / "published.yaml").write_text(text.replace(was, now))
    monkeypatch.setattr(published, "PUBLISHED", tmp_path / "published.yaml")
    with pytest.raises(PspoError, match=r"published\.yaml: ") as caught:
        all_published()
    assert "\n" not in str(caught.value)


@pytest.fixture
def released(study_config: Callable[..., StudyConfig]) -> tuple[StudyConfig, list[Cell]]:
    """The study of the released code at the paper's scale: clip stands in it twice."""
    cfg = study_config("study=released", "scale=paper")
    return cfg, cells_of(load_study("released"), cfg)


def test_a_published_figure_stands_beside_the_runs_of_its_model_method_and_data(
    released: tuple[StudyConfig, list[Cell]],
) -> None:
    """Ours 50 and 75%, theirs 17.6%."""
    cfg, cells = released
    mine = [c for c in cells if (c.model, c.arm, c.data) == ("qwen2_5_0_5b", "clip as it runs", "gsm8k")]
    for cell, correct in zip(mine[:2], ([True, False, True, False], [True, True, True, False]), strict=True):
        write_run(cell, correct)
    rows = besides_of(load_study("released"), cells, cfg)
    of_small = [(row.figure.accuracy, row.arm) for row in rows if row.figure.model == "qwen2_5_0_5b"]
    assert of_small == [(39.7, "pspo"), (17.6, "clip as written"), (17.6, "clip as it runs")]
    [row] = [row for row in rows if row.done]
    assert (row.figure.accuracy, row.arm, row.done, row.planned) == (17.6, "clip as it runs", 2, len(mine))
    assert row.ours is not None and row.difference is not None and row.ours.value == 0.625
    assert row.difference.value == pytest.approx(0.625 - 0.176)
    assert row.difference.over_seeds == pytest.approx([bound - 0.176 for bound in row.ours.over_seeds or ()])
    texts = {column.title: column.text(row) for column in columns.BESIDE_COLUMNS}
    assert texts["difference, points"].startswith("+44.9 [")
    assert texts["runs"] == f"2 of {len(mine)}, incomplete"
    assert "epsilon 0 and learning rate 5e-7 as it runs" in texts["protocol of theirs"]
    assert "epsilon_low 0.0" in texts["of ours"] and "reading last_number" in texts["of ours"]
    flat = tables.flat_beside(row)
    assert (flat["theirs"], flat["ours"]) == (pytest.approx(0.176), 0.625)
    assert (flat["arm"], flat["method"]) == ("clip as it runs", "clip")

    printed = report.rebuild(load_study("released"), cells, cfg)
    html = (Path(cfg.results) / "released/report.html").read_text()
    assert "## Figures that the paper publishes" in printed and "Which version of the code made these" in printed
    assert '<h2 id="published">' in html and "+44.9 [" in html and "not to be compared" not in html
    assert "p{6cm}" in (Path(cfg.results) / "released/table_published.tex").read_text()


def test_no_published_figure_stands_beside_runs_of_the_small_world(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    assert besides_of(STUDY, smoke[1], smoke[0]) == []


def test_a_report_needs_no_torch(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = smoke
    fill(cells)
    places = [f"{name}={getattr(cfg, name)}" for name in ("results", "runs", "models")]
    script = (
        "import sys; sys.argv[0] = 'experiments/report.py'; sys.path.insert(0, 'experiments');"
        "import report; report.main();"
        "heavy = {'torch', 'transformers', 'vllm'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "study=smoke", "scale=cpu", "rollout=hf", *places],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("results/smoke/table_main.md")


def test_tables_of_runs_that_have_another_name_now_stay(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cfg, cells = smoke
    fill(cells)
    printed = report.rebuild(STUDY, cells, cfg)
    places = [f"{name}={getattr(cfg, name)}" for name in ("results", "runs", "models")]
    command = [sys.executable, "experiments/report.py", "study=smoke", "scale=cpu", "rollout=hf", *places]
    done = subprocess.run([*command, "overrides=['steps=3']"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "no run of study smoke is complete under these settings" in done.stderr
    assert Path(printed.splitlines()[-1]).read_text() in printed


@pytest.mark.parametrize(
    ("estimate", "text"),
    [(None, "-"), (Estimate(-0.021, (-0.05, 0.008), (-0.04, 0.0), 3, 9), "-2.1 [-5.0, +0.8] / [-4.0, +0.0]")],
)
def test_changes_carry_their_sign(estimate: Estimate | None, text: str) -> None:
    assert tabletext.change(estimate) == text


def write_drawn(path: Path, right: Sequence[Sequence[bool]]) -> None:
    """An evaluation's files: problem i has a completion for each of right[i]; all that are right say the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, of_problem in enumerate(right):
        completions = [
            {"correct": one, "answer": "4" if one else str(5 + k), "finished": True} for k, one in enumerate(of_problem)
        ]
        lines.append(json.dumps({"id": f"wp-{number}", "completions": completions}))
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".summary.json").write_text("{}")


def test_sampled_evaluations_by_hand_and_the_best_of_a_run_whose_last_is_best(
    smoke: tuple[StudyConfig, list[Cell]],
) -> None:
    """Two problems, four samples at T = 0.8. PSPO's first seed was best before its end, its second at its end."""
    cfg, cells = smoke
    study = load_study("smoke")
    study.scales["cpu"].benchmarks["two"] = ("benchmark=wordproblems", "temperature=[0,0.8]", "samples=4", "limit=2")
    yes, no = True, False
    for cell in cells:
        write_run(cell, [True])
        best = 1 if (cell.arm, cell.seed) == ("pspo", 0) else cell.cfg.steps
        summary = json.loads((cell.run_dir / "summary.json").read_text())
        (cell.run_dir / "summary.json").write_text(json.dumps(summary | {"best_step": best}))
        last = [[yes, yes, no, no], [no, no, no, yes]] if cell.arm == "pspo" else [[yes] * 4, [no] * 4]
        for task in benchmark_tasks([cell], study, cfg):
            out = task.product.with_name(task.product.name.replace(".summary.json", ".jsonl"))
            drawn = [[yes] * 4, [yes] * 4] if ".best" in out.name else last
            write_drawn(out, drawn)
            write_drawn(out.with_name(out.name.replace("T0.8", "T0")), [one[:1] for one in drawn])
    rows = {(row.arm, row.which, row.temperature): row for row in asked_of(study, cells, cfg)}
    assert len(rows) == 2 * 2 * 2 and {row.done for row in rows.values()} == {2}
    pspo, best = rows["pspo", "last", 0.8], rows["pspo", "best", 0.8]
    assert pspo.accuracy.value == pytest.approx((0.5 + 0.25) / 2) and pspo.difference is not None
    assert pspo.difference.value == pytest.approx(0.375 - 0.5)
    # pass@2 of two right of four: 1 - C(2, 2) / C(4, 2); of one: 1 - C(3, 2) / C(4, 2). Votes: 4 twice; a tie of four.
    assert pspo.pass_at == pytest.approx({1: 0.375, 2: (5 / 6 + 1 / 2) / 2, 4: 1.0})
    assert pspo.pass_at_most.value == 1.0 and pspo.pass_difference is not None
    assert pspo.pass_difference.value == pytest.approx(0.5)
    assert pspo.majority.value == pytest.approx((1 + 1 / 4) / 2)
    # Of the first seed the best checkpoint, of the second the last, which is its best: all of 1, and 0.375.
    assert best.accuracy.value == pytest.approx((1 + 0.375) / 2)
    table = "\n".join(
        tabletext.markdown(columns.asked_columns(list(rows.values()), "no_clip"), list(rows.values()), [])
    )
    assert "| pass@4, % |" in table and "100.0 [" in table


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_takes_every_table(smoke: tuple[StudyConfig, list[Cell]], tmp_path: Path) -> None:
    cfg, cells = smoke
    fill(cells)
    report.rebuild(STUDY, cells, cfg)
    folder = Path(cfg.results) / "smoke"
    found = [*made_up(folder)]
    inputs = "\n\n".join(rf"\resizebox{{\textwidth}}{{!}}{{\input{{{path}}}}}" for path in found)
    text = rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "all.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "all.pdf").stat().st_size > 5000 and len(found) == 4


def made_up(folder: Path) -> Iterator[Path]:
    """The tables of a study, and those of verdicts and benchmarks, which it has not, with what TeX could misread."""
    yield from (folder / "table_main.tex", folder / "table_comparisons.tex")
    [first, *_] = load_claims().claims
    finding = Finding("50% & more_of #1 {x} ~^\\ <|>", "underpowered", 1.0, (-2.0, 4.0), 2, 3)
    lines = columns.verdict_lines([Verdict(first, "underpowered", (finding, finding), "2026-11-28")])
    (folder / "verdicts.tex").write_text(tabletext.tex({}, columns.VERDICT_COLUMNS, lines, ["a note"]))
    estimate = Estimate(0.5, None, (0.4, 0.6), 1, 9)
    place = ("m", "d", "r", "a", "b", "last", 0.2, 1, 2, 9, 16)
    asked = Asked(*place, estimate, None, {1: 0.5, 16: 0.9}, estimate, estimate, estimate)
    (folder / "asked.tex").write_text(tabletext.tex({}, columns.asked_columns([asked], "no_clip"), [asked], []))
    yield from (folder / "verdicts.tex", folder / "asked.tex")
