from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cputime import CpuTime

import studies
from pspo.config import StudyConfig, TrainConfig, compose, run_dir_of
from pspo.errors import ConfigError
from slurm import arguments_of
from studies import STUDIES, Cell, cells_of, load_study, override

NAMES = sorted(path.stem for path in STUDIES.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_study_composes_at_each_of_its_scales(name: str, study_config: Callable[..., StudyConfig]) -> None:
    study = load_study(name)
    for scale in study.scales:
        cells = cells_of(study, study_config(f"study={name}", f"scale={scale}"))
        assert [cell.index for cell in cells] == list(range(len(cells)))
        assert len({cell.run_dir for cell in cells}) == len(cells)
        assert {(cell.arm, cell.seed) for cell in cells} == {(arm, seed) for arm in study.arms for seed in study.seeds}


def test_main_is_five_methods_in_two_regimes_over_five_seeds(study_config: Callable[..., StudyConfig]) -> None:
    with CpuTime() as took:
        cells = cells_of(load_study("main"), study_config("study=main"))
    assert took.seconds < 6
    assert len(cells) == (5 * 2 + 1) * 5
    assert {cell.cfg.surrogate.name for cell in cells} == {"no_clip", "clip", "sigmoid", "pspo"}
    # Nothing but the surrogate differs between the methods of a regime and seed.
    for cell in cells:
        like = next(c for c in cells if c.regime == cell.regime).cfg.learner
        assert cell.cfg.learner == (replace(like, passes=1) if cell.arm in ("no_clip, one pass", "sft") else like)
        assert (cell.cfg.train_on == "solutions") == (cell.arm == "sft")
        assert (cell.cfg.regime, cell.cfg.seed) == (cell.regime, cell.seed)
    assert len({cell.start_dir for cell in cells}) == 1


def test_a_cells_command_line_makes_that_cells_run(smoke: tuple[StudyConfig, list[Cell]]) -> None:
    cell = smoke[1][-1]
    assert compose("train", TrainConfig, cell.overrides) == cell.cfg
    assert run_dir_of(cell.cfg) == cell.run_dir


def test_the_paper_scale_gives_no_clip_its_own_settings(paper: tuple[StudyConfig, list[Cell]]) -> None:
    _, cells = paper
    assert len(cells) == 6 * 3 * 2 * 5
    learners = {cell.arm: cell.cfg.learner for cell in cells if cell.model == "qwen2_5_0_5b"}
    assert [(learners[arm].lr, learners[arm].passes) for arm in ("no_clip, one pass", "clip", "pspo")] == [
        (1e-6, 1),
        (1e-6, 2),
        (5e-7, 2),
    ]
    assert {cell.cfg.prompt.style for cell in cells if cell.data == "math"} == {"math"}


def test_what_a_study_skips_is_no_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study_config: Callable[..., StudyConfig]
) -> None:
    more = "[experiment=gentle], stress: [experiment=stress]}\n    skip: [{arm: b, regime: gentle}]"
    text = GOOD.replace("[experiment=gentle]}", more)
    (tmp_path / "some.yaml").write_text(text)
    monkeypatch.setattr(studies, "STUDIES", tmp_path)
    cells = cells_of(load_study("some"), study_config("study=some"))
    assert [(cell.arm, cell.regime) for cell in cells] == [("a", "gentle"), ("a", "stress"), ("b", "stress")]


GOOD = """
title: t
shows: s
baseline: a
arms: {a: [surrogate=no_clip], b: [surrogate=clip]}
seeds: [0]
scales:
  cpu:
    models: {tiny: [model=tiny]}
    data: {wordproblems: [data=wordproblems]}
    regimes: {gentle: [experiment=gentle]}
"""


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("baseline: a", "baseline: c", r"bad.yaml: baseline=c: must be one of the arms: a, b"),
        ("seeds: [0]", "seeds: [0, 0]", r"seeds=.*only once"),
        ("seeds: [0]", "seeds: []", r"seeds=.*at least 1"),
        ("[surrogate=clip]", "[surrogate]", r"arms.b='surrogate': each override must be setting=value"),
        ("[surrogate=clip]", "[seed=4]", r"arms.b='seed=4'.*the study's own"),
        ("title: t", "titel: t", r"bad.yaml: titel=t: there is no such setting|bad.yaml: title"),
        ("  cpu:", "  laptop:", r"scales"),
        ("[surrogate=clip]", "[surrogate=klip]", r"surrogate=klip: must be one of clip, no_clip, pspo, sigmoid"),
        ("[surrogate=clip]", "[surrogate=no_clip]", r"b/tiny.* is the same run as a/tiny"),
        ("[experiment=gentle]", "[experiment=gentle, learner.lr=fast]", r"learner.lr=fast"),
        (
            "[experiment=gentle]}",
            "[experiment=gentle]}\n    also: [{arm: c, overrides: []}]",
            r"also.arm=c: must be one of a, b",
        ),
        (
            "[experiment=gentle]}",
            "[experiment=gentle]}\n    skip: [{regime: stress}]",
            r"skip.regime=stress: must be one of gentle",
        ),
        ("seeds: [0]", "seeds: [0]\ncurve: {x: {setting: surrogate.name, label: x}}", r"curve.setting=surrogate.name"),
        ("seeds: [0]", "seeds: [0]\ncurve: {x: {setting: learner.nope, label: x}}", r"curve.setting=learner.nope"),
        ("seeds: [0]", "seeds: [0]\ncontrasts: [[a, c]]", r"contrasts=c: must be one of the arms: a, b"),
        (
            "[experiment=gentle]}",
            "[experiment=gentle]}\n    published: {c: clip}",
            r"published=c: must be one of the arms",
        ),
        ("seeds: [0]", "seeds: [0]\ncontrasts: [[a, b]]", r"contrasts=.*compared once"),
        ("b: [surrogate=clip]", "b$: [surrogate=clip]", r"arms='b\$': a name has up to 40"),
        ("title: t", "title: costs ${5}", r"bad.yaml: title"),
        ("title: t", "title: ???", r"bad.yaml: title"),
        ("[experiment=gentle]}", "[experiment=gentle]}\n    skip: [{}]", r"skips every cell"),
        ("title: t", "title: [", r"not YAML"),
    ],
)
def test_a_mistake_in_a_study_is_one_line_that_names_it(
    before: str,
    after: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    study_config: Callable[..., StudyConfig],
) -> None:
    assert before in GOOD
    (tmp_path / "bad.yaml").write_text(GOOD.replace(before, after))
    monkeypatch.setattr(studies, "STUDIES", tmp_path)
    with pytest.raises(ConfigError, match=complaint) as caught:
        cells_of(load_study("bad"), study_config("study=bad"))
    assert "\n" not in str(caught.value)


def test_an_unknown_study_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"study=mian: must be one of ahead, alpha, confirm, controls, edge, epsilon"):
        load_study("mian")


def test_a_seed_among_the_overrides_is_refused(study_config: Callable[..., StudyConfig]) -> None:
    with pytest.raises(ConfigError, match="seed=3"):
        cells_of(load_study("smoke"), study_config("overrides=['seed=3']"))


def test_paths_that_hydra_would_misread_are_quoted(study_config: Callable[..., StudyConfig], tmp_path: Path) -> None:
    odd = tmp_path / "a run's, [place] = 1"
    cfg = study_config(studies.override("runs", str(odd)))
    assert cells_of(load_study("smoke"), cfg)[0].run_dir.parent == odd


@pytest.mark.parametrize(
    "name",
    [
        "/a/my runs",
        "123",
        "1e5",
        "true",
        "NULL",
        "übung",
        "it's",
        "a\\",
        "a\\'b",
        'say "x"',
        "a,b",
        "{x}",
        "%j",
        "a\nb",
        ".5",
        ".5e3",
        ".runs",
    ],
)
def test_any_name_reaches_a_program_as_it_is(study_config: Callable[..., StudyConfig], name: str) -> None:
    cfg = study_config(override("runs", name))
    assert cfg.runs == name
    assert compose("study", StudyConfig, arguments_of(cfg)).runs == name
