"""Verdicts of claims on run directories written by hand, where the outcome is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from written_runs import STEPS, TERSE, write_graded, write_run

import claims
import verdictfiles
import verdicts
from bests import bests_of
from claims import AllEqual, Claim, Claims, Equal, Greater, Identical, Metric, NoGain, NoneGreater, Test, load_claims
from pspo.config import StudyConfig
from pspo.errors import ConfigError
from results import pairs_of
from studies import STUDIES, Cell, cells_of, load_study
from verdicts import Finding, overall

STUDY = load_study("smoke")  # no_clip and pspo, two seeds
PROBLEMS = 200


def judged(monkeypatch: pytest.MonkeyPatch, cells: list[Cell], *tests: Test) -> list[verdicts.Verdict]:
    claims = tuple(Claim(str(k), "ours", "it holds", "here", "smoke", test) for k, test in enumerate(tests))
    monkeypatch.setattr(verdicts, "load_claims", lambda: Claims("2026-11-28", "nothing was run", claims))
    return verdicts.verdicts_of("smoke", "cpu", STUDY, cells)


def fill(cells: list[Cell], problems: int = PROBLEMS, **right: tuple[int, int]) -> None:
    """So many problems right by arm, one number a seed."""
    for cell in cells:
        if cell.arm in right:
            write_run(cell, [k < right[cell.arm][cell.seed] for k in range(problems)])


@pytest.mark.parametrize(
    ("pspo", "greater", "equal"),
    [
        # t is 12.7 for two comparisons and two seeds: differences that are 0.05 points apart give +- 0.32 points.
        ((1400, 1401), "reproduced", "not reproduced"),
        ((1000, 1001), "not reproduced", "reproduced"),
        ((600, 601), "not reproduced", "not reproduced"),
        ((1010, 1050), "underpowered", "underpowered"),
        ((1400, 1400), "underpowered", "underpowered"),  # no spread is not certainty
    ],
)
def test_a_difference_is_shown_ruled_out_or_open(
    smoke: tuple[StudyConfig, list[Cell]],
    monkeypatch: pytest.MonkeyPatch,
    pspo: tuple[int, int],
    greater: str,
    equal: str,
) -> None:
    cells = smoke[1]
    fill(cells, 2000, no_clip=(1000, 1000), pspo=pspo)
    tests = (Greater("greater", "pspo", "no_clip", 2.0), Equal("equal", "pspo", "no_clip", 2.0))
    found = judged(monkeypatch, cells, *tests)
    assert [verdict.outcome for verdict in found] == [greater, equal]
    [finding] = found[0].findings
    assert (finding.where, finding.seeds, finding.planned) == ("gentle", 2, 2)
    assert finding.value == pytest.approx((sum(pspo) - 2000) / 40)


def test_the_interval_is_students_for_all_comparisons_together(
    smoke: tuple[StudyConfig, list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = smoke[1]
    fill(cells, no_clip=(100, 100), pspo=(101, 102))  # +0.5 and +1 points: mean 0.75, standard error 0.25
    one = judged(monkeypatch, cells, Greater("greater", "pspo", "no_clip", 2.0))
    assert one[0].findings[0].interval == pytest.approx((0.75 - 0.25 * 6.3138, 0.75 + 0.25 * 6.3138), abs=1e-3)
    two = judged(monkeypatch, cells, *[Greater("greater", "pspo", "no_clip", 2.0)] * 2)
    assert two[0].findings[0].interval == pytest.approx((0.75 - 0.25 * 12.7062, 0.75 + 0.25 * 12.7062), abs=1e-3)


def test_without_runs_nothing_is_decided_and_on_some_it_is_said(
    smoke: tuple[StudyConfig, list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = smoke[1]
    test = Greater("greater", "pspo", "no_clip", 2.0)
    [nothing] = judged(monkeypatch, cells, test)
    assert (nothing.outcome, nothing.incomplete, nothing.findings[0].planned) == ("not run", False, 2)
    fill([cell for cell in cells if cell.seed == 0], PROBLEMS, no_clip=(100, 0), pspo=(150, 0))
    [half] = judged(monkeypatch, cells, test)
    assert (half.outcome, half.incomplete, half.findings[0].interval) == ("underpowered", True, None)  # one seed


def test_completions_that_differ_in_one_letter_are_not_identical(
    smoke: tuple[StudyConfig, list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = smoke[1]
    fill(cells, no_clip=(9, 9), pspo=(9, 9))
    test = Identical("identical", "pspo", "no_clip")
    [same] = judged(monkeypatch, cells, test)
    assert same.outcome == "reproduced" and same.findings[0].note == f"all {2 * PROBLEMS} completions are the same"
    path = next(cell for cell in cells if cell.arm == "pspo").run_dir / "eval" / "wordproblems.jsonl"
    path.write_text(path.read_text().replace(json.dumps(STEPS), json.dumps(STEPS + "!"), 1))
    [other] = judged(monkeypatch, cells, test)
    assert other.outcome == "not reproduced" and other.findings[0].note == f"1 of {2 * PROBLEMS} completions differ"


def test_a_metric_is_looked_at_in_every_step(
    smoke: tuple[StudyConfig, list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = smoke[1]
    fill(cells, pspo=(9, 9))  # reward/mean is 0.1 and 0.2
    for most, outcome in ((0.2, "reproduced"), (0.15, "not reproduced")):
        [verdict] = judged(monkeypatch, cells, Metric("metric", "pspo", "reward/mean", most))
        assert verdict.outcome == outcome and verdict.findings[0].note == "reward/mean at most 0.2 in 4 steps"


def test_a_step_that_is_not_finite_breaks_a_bound_and_what_is_not_computed_does_not(
    smoke: tuple[StudyConfig, list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = smoke[1]
    fill(cells, pspo=(9, 9))
    claim = Metric("metric", "pspo", "slope/zero_share", 0.0)
    [verdict] = judged(monkeypatch, cells, claim)
    assert verdict.outcome == "not run"  # none has it on record
    runs = [cell.run_dir / "metrics.jsonl" for cell in cells if cell.arm == "pspo"]
    clamped = {"slope/zero_share": 0.25, "ratio/clamped_share": 0.25}
    for path in runs:
        path.write_text("".join(json.dumps({"step": k} | (clamped if k else {})) + "\n" for k in range(3)))
    [verdict] = judged(monkeypatch, cells, claim)
    assert verdict.outcome == "reproduced"
    assert verdict.findings[0].note == "slope/zero_share at most 0 in 4 steps"
    runs[0].write_text(runs[0].read_text().replace("0.25", "null", 1))
    [verdict] = judged(monkeypatch, cells, claim)
    assert verdict.outcome == "not reproduced"
    assert verdict.findings[0].note == "slope/zero_share at most 0 in 4 steps, not finite in 1"


def test_gains_are_over_the_starting_policy_and_each_arm_is_a_line(
    smoke: tuple[StudyConfig, list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = smoke[1]
    fill(cells, 2000, no_clip=(1000, 1002), pspo=(1500, 1502))
    write_graded(cells[0].start_evaluation, [k < 1000 for k in range(2000)], text=TERSE)
    gain, best = judged(monkeypatch, cells, NoGain("no_gain", 2.0), NoneGreater("none_greater", "no_clip", 2.0))
    assert [(one.where, one.outcome, one.value) for one in gain.findings] == [
        ("gentle: no_clip", "reproduced", pytest.approx(0.05)),
        ("gentle: pspo", "not reproduced", pytest.approx(25.05)),
    ]
    assert gain.outcome == "not reproduced"
    # The lead over no_clip is 25 points for either seed: no spread to hold it against.
    assert [(one.where, one.outcome) for one in best.findings] == [("gentle: pspo", "underpowered")]


def test_one_place_that_does_not_hold_decides() -> None:
    def of(*outcomes: verdicts.Outcome) -> str:
        return overall([Finding("", outcome) for outcome in outcomes])

    assert of("reproduced", "reproduced") == "reproduced"
    assert of("reproduced", "underpowered", "not reproduced") == "not reproduced"
    assert of("reproduced", "not run") == "not run" and of("not run", "underpowered") == "underpowered"
    assert of() == "not run"


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_every_claim_names_what_its_study_has(study_config: Callable[..., StudyConfig], scale: str) -> None:
    """And has a line to decide at each scale that it speaks of."""
    claims = [claim for claim in load_claims().claims if claim.study != "theory"]
    assert {claim.study for claim in claims} <= {path.stem for path in STUDIES.glob("*.yaml")}
    for name in sorted({claim.study for claim in claims if claim.scale in (None, scale)}):
        study = load_study(name)
        cells = cells_of(study, study_config(f"study={name}", f"scale={scale}"))
        for verdict in verdicts.verdicts_of(name, scale, study, cells):
            assert verdict.findings, verdict.claim.id
            assert {finding.outcome for finding in verdict.findings} <= {"not run"}


def test_a_claim_about_an_arm_that_is_not_there_is_refused(
    smoke: tuple[StudyConfig, list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"claims.yaml: 0: than=clip: must be one of no_clip, pspo"):
        judged(monkeypatch, smoke[1], Greater("greater", "pspo", "clip", 2.0))


def test_published_figures_are_met_within_the_margin(
    paper: tuple[StudyConfig, list[Cell]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GR-PSPO on Qwen2.5-0.5B: 39.7 published; five seeds here have 40.0% to 40.2% right."""
    study, cells = load_study("main"), paper[1]
    mine = [replace(cell, cfg=replace(cell.cfg, runs=str(tmp_path / "runs"))) for cell in cells]
    for cell in mine:
        if (cell.model, cell.arm, cell.data) == ("qwen2_5_0_5b", "pspo", "gsm8k"):
            write_run(cell, [k < 800 + cell.seed for k in range(2000)])
    claim = next(one for one in load_claims().claims if one.id == "published-figures")
    monkeypatch.setattr(verdicts, "load_claims", lambda: Claims("2026-11-28", "nothing was run", (claim,)))
    [verdict] = verdicts.verdicts_of("main", "paper", study, mine)
    outcomes = {finding.where: (finding.outcome, finding.value) for finding in verdict.findings}
    assert outcomes["qwen2_5_0_5b, pspo, gsm8k (v1: 39.7)"] == ("reproduced", pytest.approx(0.4))
    assert len(outcomes) == 6 and sum(outcome == "not run" for outcome, _ in outcomes.values()) == 5
    assert verdict.outcome == "not run"


def test_what_a_study_wrote_is_read_by_the_report_of_another(tmp_path: Path) -> None:
    def main_of(scale: str) -> verdictfiles.Elsewhere:
        return next(one for one in verdictfiles.of_other_studies(tmp_path, "smoke", scale) if one.study == "main")

    first = main_of("cpu")
    assert {one.outcome for one in first.verdicts} == {"not run"} and first.made == {}
    finding = Finding("gentle", "reproduced", 1.5, (0.5, 2.5), 5, 5)
    done = [replace(first.verdicts[0], findings=(finding,)), *first.verdicts[1:]]
    (tmp_path / "main").mkdir()
    made = {"date": "today", "command": "python x", "commit": "abc", "machine": "two cores"}
    text = verdictfiles.to_json(done, "cpu", made)
    (tmp_path / "main/verdicts.cpu.json").write_text(text)
    again = main_of("cpu")
    assert (again.verdicts[0].outcome, again.verdicts[0].findings, again.made) == (
        "reproduced",
        (finding,),
        made,
    )
    assert {one.outcome for one in main_of("paper").verdicts} == {"not run"}  # of another scale
    for changed in (
        text.replace('"id": "slope', '"id": "no-slope'),
        text[:100],
        "[]",
        text.replace("0.5,", ""),
        text.replace('"commit"', '"comit"'),
    ):
        (tmp_path / "main/verdicts.cpu.json").write_text(changed)  # the claim is another now, or the file is torn
        assert {one.outcome for one in main_of("cpu").verdicts} == {"not run"}


def test_formal_results_are_those_that_theory_wrote(tmp_path: Path) -> None:
    def outcomes(*places: str) -> list[str]:
        statements = [
            {"statement": f"{name}, x", "on": on, "violation": 1e-16, "cases": 7, "holds": name != "Lemma 2.1"}
            for name in ("Lemma 2.1", "Corollary 2.2", "Proposition 2.3", "Proposition 2.4", "Proposition 2.5")
            for on in places
        ]
        (tmp_path / "theory.json").write_text(json.dumps({"statements": statements}))
        found = verdicts.theory_verdicts(tmp_path / "theory.json")
        assert "7 cases" in found[1].findings[0].note and found[1].findings[0].where.endswith("x; random")
        return [one.outcome for one in found]

    assert {one.outcome for one in verdicts.theory_verdicts(tmp_path / "theory.json")} == {"not run"}
    assert outcomes("random", verdicts.REAL) == ["not reproduced", *["reproduced"] * 4]
    assert outcomes("random") == ["not reproduced", *["not run"] * 4]  # there was no warm start: no real policies
    for damaged in ('{"statements": null}', '{"statements": [{"statement": 3}]}', "[" * 100_000, "7"):
        (tmp_path / "theory.json").write_text(damaged)
        assert {one.outcome for one in verdicts.theory_verdicts(tmp_path / "theory.json")} == {"not run"}


def test_claims_of_another_scale_are_told_as_not_run() -> None:
    at_cpu = {verdict.claim.id: verdict.outcome for verdict in verdicts.of_other_scales("cpu")}
    assert at_cpu["published-figures"] == "not run" and "alpha-cancels-exactly" not in at_cpu
    assert "alpha-cancels-exactly" in {verdict.claim.id for verdict in verdicts.of_other_scales("paper")}


def test_seeds_without_spread_decide_nothing_unless_every_completion_is_the_same(
    smoke: tuple[StudyConfig, list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = smoke[1]
    tests = Equal("equal", "pspo", "no_clip", 2.0), AllEqual("all_equal", ("pspo",), "no_clip", 2.0)
    fill(cells, no_clip=(9, 9), pspo=(9, 9))
    found = judged(monkeypatch, cells, *tests)
    assert [one.outcome for one in found] == ["reproduced", "reproduced"]
    assert found[0].findings[0].note == "every completion is the same"
    for cell in cells:  # as many right, and others
        if cell.arm == "pspo":
            write_run(cell, [k >= PROBLEMS - 9 for k in range(PROBLEMS)], text=TERSE)
    assert [one.outcome for one in judged(monkeypatch, cells, *tests)] == ["underpowered", "underpowered"]


def test_at_its_best_is_chosen_on_the_validation_part(
    study_config: Callable[..., StudyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PSPO is best on the test part at 2e-5, on the validation part at 2e-4; no_clip at 5e-5 on both."""
    cfg, study = study_config("study=edge"), load_study("edge")
    cells = cells_of(study, cfg)
    validation = {"pspo": {"lr 2e-4": 0.9}, "no_clip": {"lr 5e-5": 0.9}}
    right = {("pspo", "lr 2e-5"): 190, ("pspo", "lr 2e-4"): 140, ("no_clip", "lr 5e-5"): 160}
    for cell in cells:
        count = right.get((cell.arm, cell.regime), 100) + cell.seed
        write_run(cell, [k < count for k in range(PROBLEMS)])
        accuracy = validation.get(cell.arm, {}).get(cell.regime, 0.5)
        summary = json.loads((cell.run_dir / "summary.json").read_text()) | {
            "validation": {"0": 0.99, str(cell.cfg.steps): accuracy}
        }
        (cell.run_dir / "summary.json").write_text(json.dumps(summary))
    claim = Claim("0", "ours", "it holds", "here", "edge", Greater("greater", "pspo", "no_clip", 2.0, at_best=True))
    monkeypatch.setattr(verdicts, "load_claims", lambda: Claims("2026-11-28", "nothing was run", (claim,)))
    [verdict] = verdicts.verdicts_of("edge", "cpu", study, cells)
    [finding] = verdict.findings
    assert (finding.value, finding.note) == (pytest.approx(-10.0), "pspo: lr 2e-4; no_clip: lr 5e-5")
    best = {one.arm: one for one in bests_of(study, cells)}
    assert (best["pspo"].regime, best["pspo"].farthest, best["pspo"].validated) == ("lr 2e-4", "lr 2e-4", 0.9)
    assert best["pspo"].difference is not None and best["pspo"].difference.value == pytest.approx(-0.1)
    assert best["clip"].farthest == "lr 4e-4"  # all alike: the first is its best, and the last is near it


def test_what_a_claim_compares_is_compared_problem_by_problem_too() -> None:
    for claim in load_claims().claims:
        if isinstance(claim.test, Greater | Equal) and not claim.test.at_best:
            study = load_study(claim.study)
            assert (claim.test.arm, claim.test.than) in pairs_of(study, study.arms), claim.id


CLAIM = """decided: 2026-11-28
pilot: p
claims:
  - id: one
    by: ours
    statement: s
    source: here
    study: smoke
    test: {kind: greater, arm: pspo, than: no_clip, margin: 2.0}
"""


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("claims:\n", "claims:\n" + CLAIM[CLAIM.index("  - id") :], r"one=None: each claim may stand only once"),
        ("study: smoke", "study: smock", r"one: study=smock: must be a file"),
        ("study: smoke", "study: theory", r"one: study=theory"),
        ("than: no_clip", "than: pspo", r"one: than=pspo: must be another arm"),
        ("study: smoke", "study: smoke\n    regimes: []", r"must name one or more"),
        (
            "kind: greater, arm: pspo, than: no_clip, margin: 2.0",
            "kind: metric, arm: pspo, metric: x, at_most: 0.0",
            "x",
        ),
        ("margin: 2.0", "margin: 0", r"margin"),
        ("statement: s", "statement: ???", r"statement"),
        ("decided", "[", r"not YAML"),
    ],
)
def test_a_mistake_in_the_claims_is_one_line_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, complaint: str
) -> None:
    path = tmp_path / "claims.yaml"
    monkeypatch.setattr(claims, "CLAIMS", path)
    path.write_text(CLAIM)
    assert len(claims.load_claims.__wrapped__().claims) == 1
    assert before in CLAIM
    path.write_text(CLAIM.replace(before, after))
    with pytest.raises(ConfigError, match=complaint) as caught:
        claims.load_claims.__wrapped__()
    assert "claims.yaml" in str(caught.value) and "\n" not in str(caught.value)
