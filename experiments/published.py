"""The figures that the paper publishes (published.yaml): every one that is known, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter

from pspo.config.schema import FORBID, Text
from pspo.errors import PspoError
from studies import Cell

PUBLISHED = Path(__file__).resolve().parent / "published.yaml"


@dataclass(frozen=True)
class Published:
    """A figure of the paper, in percent, with where it stands. `trained_on` None: its source does not say."""

    __pydantic_config__ = FORBID
    version: Literal["v1", "v2"]
    model: Text
    trained_on: Text | None
    arm: Literal["no_clip", "clip", "sigmoid", "pspo"]
    benchmark: Text
    accuracy: Annotated[float, Field(strict=True, gt=1, lt=100)]
    source: Text
    protocol: Text
    """What is known of how it came about."""


def all_published() -> list[Published]:
    """Raises PspoError for a file that does not fit."""
    try:
        entries = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
        found = TypeAdapter(list[Published]).validate_python(entries)
        keys = [(one.version, one.model, one.trained_on, one.arm, one.benchmark) for one in found]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ValueError(f"{twice} stands there twice")
        return found
    except (yaml.YAMLError, ValueError) as error:
        raise PspoError(f"{PUBLISHED}: {' '.join(str(error).split())}") from error


def stands_beside(figure: Published, model: str, data: str, method: str | None) -> bool:
    """Is it of runs of that model and method that were trained and tested on `data`? One whose source does not say on
    what it was trained stands beside those trained on its benchmark."""
    trained_on = figure.trained_on or figure.benchmark
    return (figure.model, figure.arm, figure.benchmark, trained_on) == (model, method, data, data)


def published_for(model: str, data: str, method: str) -> tuple[Published, ...]:
    """The paper's figures that stand beside runs of that model, method and data set."""
    return tuple(figure for figure in all_published() if stands_beside(figure, model, data, method))


def beside(figure: Published, cells: Sequence[Cell], methods: Mapping[str, str]) -> list[Cell]:
    """The runs that a figure stands beside. `methods`: arm -> the method of the paper."""
    return [cell for cell in cells if stands_beside(figure, cell.model, cell.data, methods.get(cell.arm))]
