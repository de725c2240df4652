"""Every setting of a study with its source, read out of conf/."""

from __future__ import annotations

from pathlib import Path

import pytest

from pspo.config import StudyConfig
from settings import LEFT_OUT, Setting, settings_of, varying
from studies import Cell, cells_of, load_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def of_paper(paper: tuple[StudyConfig, list[Cell]]) -> dict[str, Setting]:
    return {one.name: one for one in settings_of(paper[1])}


def test_a_setting_has_the_source_that_stands_beside_it(of_paper: dict[str, Setting]) -> None:
    assert of_paper["learner.max_grad_norm"].source == "released code"
    assert of_paper["learner.adam_eps"].source == "library default"
    assert of_paper["learner.ratio_level"].source == "paper"
    assert of_paper["learner.token_budget"].source == "our choice"
    assert of_paper["rollout.top_p"].comment.startswith("the released code has 0.9")
    file, _, line = of_paper["steps"].where.partition(":")
    assert "steps: 1312" in (ROOT / file).read_text().splitlines()[int(line) - 1]


def test_what_differs_between_runs_is_told_by_what_it_hangs_on(of_paper: dict[str, Setting]) -> None:
    assert of_paper["learner.passes"].value == "2, but no_clip, one pass: 1; sft: 1"
    assert of_paper["rollout.max_new_tokens"].value == "gsm8k: 128; math: 1024"
    assert of_paper["surrogate.epsilon_low"].value == "0.2, but qwen2_5_0_5b, clip: 0.1"
    assert of_paper["surrogate.alpha"].value == "pspo: 0.1"  # the others have none
    assert of_paper["learner.passes"].source == "the study"


def test_a_value_of_the_study_or_its_command_line_is_no_files(study_config) -> None:
    cells = cells_of(load_study("smoke"), study_config("overrides=['learner.lr=3e-5']"))
    found = {one.name: one for one in settings_of(cells)}
    assert found["steps"].value == "2" and found["steps"].where == "the study or its command line"
    assert found["learner.lr"].value == "3e-05" and found["learner.lr"].source == "the study"
    assert found["learner.minibatches"].where.startswith("conf/learner/small.yaml:")  # and not released.yaml
    assert found["eval.max_new_tokens"].value == "64" and found["eval.max_new_tokens"].where.startswith("conf/eval/")


@pytest.mark.parametrize(("study", "settings"), [("alpha", ["surrogate.alpha"]), ("main", None), ("controls", None)])
def test_as_few_settings_as_tell_the_runs_apart(study_config, study: str, settings: list[str] | None) -> None:
    cells = cells_of(load_study(study), study_config(f"study={study}"))
    names = varying(cells)
    assert settings is None or names == settings
    told = {tuple(str(value_of(cell, name)) for name in names) for cell in cells}
    assert len(told) == len({(cell.arm, cell.regime) for cell in cells}) and len(names) <= 6


def value_of(cell: Cell, name: str) -> object:
    found: object = cell.cfg
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def test_all_that_decides_a_run_is_there(of_paper: dict[str, Setting]) -> None:
    assert {"seed", *LEFT_OUT}.isdisjoint(name.partition(".")[0] for name in of_paper)
    assert {"surrogate", "model", "data", "prompt", "rollout", "grading", "reward", "learner", "eval"} <= {
        name.partition(".")[0] for name in of_paper
    }
