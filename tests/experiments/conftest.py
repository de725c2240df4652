"""Studies whose every output is under tmp_path. Nothing here runs a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import started as started

from pspo.config import StudyConfig, compose
from studies import Cell, cells_of, load_study, override


@pytest.fixture
def study_config(tmp_path: Path) -> Callable[..., StudyConfig]:
    """The config of a study whose every output is under tmp_path."""

    def make(*overrides: str) -> StudyConfig:
        places = [override(name, str(tmp_path / name)) for name in ("results", "runs", "models")]
        return compose("study", StudyConfig, ["study=smoke", "scale=cpu", "rollout=hf", *places, *overrides])

    return make


@pytest.fixture
def smoke(study_config: Callable[..., StudyConfig]) -> tuple[StudyConfig, list[Cell]]:
    cfg = study_config()
    return cfg, cells_of(load_study("smoke"), cfg)


@pytest.fixture(scope="session")
def paper(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, list[Cell]]:
    """The study main at the paper's scale, composed once: it has many models and data sets."""
    folder = tmp_path_factory.mktemp("paper")
    places = [override(name, str(folder / name)) for name in ("results", "runs", "models")]
    cfg = compose("study", StudyConfig, ["study=main", "scale=paper", *places])
    return cfg, cells_of(load_study("main"), cfg)
