"""A study as data: what `studies/<name>.yaml` may say, and the grid of training runs (cells) that it stands for.

A cell is one training run: one arm (method), model, data set, regime and seed. Its config is composed exactly as
`python -m pspo.train <overrides>` would compose it, so its run directory is known before it has run. Imports
pspo.config and pspo.errors only; never torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from pspo.config import StudyConfig, TrainConfig, compose_each, load_yaml, run_dir_of, to_yaml, warm_start_dir
from pspo.config.schema import FORBID, Seed
from pspo.errors import ConfigError

STUDIES = Path(__file__).resolve().parent / "studies"

NAME = r"[A-Za-z0-9][A-Za-z0-9 .,+=_()-]{0,39}"
"""Of an arm, model, data set or regime: it stands in tables, figures and file names."""

Overrides = tuple[str, ...]
Choices = Annotated[dict[str, Overrides], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Where:
    """The cells that have every name given here; a name left out matches all."""

    __pydantic_config__ = FORBID
    arm: str | None = None
    model: str | None = None
    data: str | None = None
    regime: str | None = None

    def matches(self, names: Mapping[str, str]) -> bool:
        return all(getattr(self, kind) in (None, name) for kind, name in names.items())


@dataclass(frozen=True, kw_only=True)
class Also(Where):
    """Overrides for some cells."""

    overrides: Overrides

    def __post_init__(self) -> None:
        check_overrides("also.overrides", self.overrides)


@dataclass(frozen=True)
class Axis:
    """A number of the training config that a study goes over, and what a reader of its figure calls it."""

    __pydantic_config__ = FORBID
    setting: str
    label: str

    def value(self, cfg: TrainConfig) -> float:
        """Raises ConfigError where a run has no such number."""
        found: Any = cfg
        for part in self.setting.split("."):
            found = getattr(found, part, None)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise ConfigError("curve.setting", self.setting, "must be a number of every run's config")
        return float(found)


@dataclass(frozen=True)
class Curve:
    """Accuracy against a setting: a line an arm, or one for all where each arm is one value; a panel for each value of
    `panel`, or for each regime."""

    __pydantic_config__ = FORBID
    x: Axis
    panel: Axis | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (self.x,) if self.panel is None else (self.x, self.panel)


@dataclass(frozen=True)
class Scale:
    """The part of a study that depends on its scale. Each choice has a name and the overrides that make it."""

    __pydantic_config__ = FORBID
    models: Choices
    data: Choices
    regimes: Choices
    overrides: Overrides = ()
    """For every cell."""
    also: tuple[Also, ...] = ()
    """Applied last, in order."""
    skip: tuple[Where, ...] = ()
    """Combinations that are no runs of the study."""
    benchmarks: dict[str, Overrides] = field(default_factory=dict)
    """What the trained policies are evaluated on besides their own test part: settings of eval/evaluate.py."""
    shows: str = ""
    """What is different from the study's `shows` at this scale."""
    published: dict[str, str] = field(default_factory=dict)
    """Arm -> the method of published.yaml beside whose figures its runs stand."""

    def __post_init__(self) -> None:
        check_overrides("overrides", self.overrides)
        for group in ("models", "data", "regimes", "benchmarks"):
            for name, overrides in getattr(self, group).items():
                check_overrides(f"{group}.{name}", overrides)
        for name in self.benchmarks:
            if not re.fullmatch(r"[\w-]+", name):
                raise ConfigError("benchmarks", repr(name), "it names a file: letters, digits, _ and - only")
        for what, some in (("also", self.also), ("skip", self.skip)):
            for where in some:
                for kind, group in (("model", "models"), ("data", "data"), ("regime", "regimes")):
                    name = getattr(where, kind)
                    if name is not None and name not in getattr(self, group):
                        raise ConfigError(f"{what}.{kind}", name, f"must be one of {', '.join(getattr(self, group))}")


@dataclass(frozen=True)
class Study:
    """`studies/<name>.yaml`."""

    __pydantic_config__ = FORBID
    title: str
    shows: str
    baseline: str
    """The arm that the others are compared with, on the same seeds and problems."""
    arms: Choices
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    scales: Annotated[dict[Literal["cpu", "paper"], Scale], Field(min_length=1)]
    contrasts: tuple[tuple[str, str], ...] = ()
    """(arm, the arm beside it): compared besides each arm with the baseline."""
    curve: Curve | None = None

    def __post_init__(self) -> None:
        kinds = [("arms", self.arms)]
        for scale in self.scales.values():
            kinds += [("models", scale.models), ("data", scale.data), ("regimes", scale.regimes)]
        for kind, names in kinds:
            for name in names:
                if not re.fullmatch(NAME, name):
                    raise ConfigError(
                        kind, repr(name), "a name has up to 40 characters: letters, digits, spaces, .,+-_()"
                    )
        if self.baseline not in self.arms:
            raise ConfigError("baseline", self.baseline, f"must be one of the arms: {', '.join(self.arms)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("seeds", list(self.seeds), "each may stand only once")
        for name, overrides in self.arms.items():
            check_overrides(f"arms.{name}", overrides)
        seen = {frozenset((arm, self.baseline)) for arm in self.arms}
        for pair in self.contrasts:
            if frozenset(pair) in seen:
                raise ConfigError(
                    "contrasts", list(pair), "each pair of two arms is compared once, with the baseline anyway"
                )
            seen.add(frozenset(pair))
        named = [("contrasts", arm) for pair in self.contrasts for arm in pair]
        named += [("published", arm) for scale in self.scales.values() for arm in scale.published]
        for what, arm in named:
            if arm not in self.arms:
                raise ConfigError(what, arm, f"must be one of the arms: {', '.join(self.arms)}")
        for scale in self.scales.values():
            for what, some in (("also", scale.also), ("skip", scale.skip)):
                for where in some:
                    if where.arm is not None and where.arm not in self.arms:
                        raise ConfigError(f"{what}.arm", where.arm, f"must be one of {', '.join(self.arms)}")


@dataclass(frozen=True)
class Cell:
    """One training run of a study. `overrides` is the command line of `python -m pspo.train` that makes it."""

    index: int
    arm: str
    model: str
    data: str
    regime: str
    seed: int
    overrides: Overrides
    cfg: TrainConfig
    finished: bool | None = None
    """Whether it was complete when somebody looked; None: look each time."""

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.model}/{self.data}/{self.regime}/s{self.seed}"

    @cached_property
    def run_dir(self) -> Path:
        return run_dir_of(self.cfg)

    @property
    def complete(self) -> bool:
        return (self.run_dir / "DONE").exists() if self.finished is None else self.finished

    @property
    def evaluation(self) -> Path:
        """Per-problem file of the last policy on the run's own test part."""
        return self.run_dir / "eval" / f"{self.cfg.data.name}.jsonl"

    @cached_property
    def start_dir(self) -> Path:
        """Where the policy that this run starts from keeps its evaluation, and its weights if they are made here."""
        if self.cfg.model.path is None:
            return warm_start_dir(self.cfg)
        return Path(self.cfg.models) / self.cfg.model.name

    @property
    def start_checkpoint(self) -> str:
        return self.cfg.model.path or str(self.start_dir)

    @cached_property
    def start_evaluation(self) -> Path:
        """Per-problem file of the starting policy on the test part that this run is graded on, under its protocol."""
        parts = (self.cfg.model, self.cfg.data, self.cfg.prompt, self.cfg.rollout, self.cfg.eval)
        protocol = hashlib.sha256("".join(to_yaml(part) for part in parts).encode()).hexdigest()[:8]
        return self.start_dir / "eval" / f"{self.cfg.data.name}.{protocol}.jsonl"


def load_study(name: str) -> Study:
    """The study `studies/<name>.yaml`; raises ConfigError with one line naming what is wrong in it."""
    path = STUDIES / f"{name}.yaml"
    if not path.is_file() or path.parent != STUDIES:
        known = ", ".join(sorted(file.stem for file in STUDIES.glob("*.yaml")))
        raise ConfigError("study", name, f"must be one of {known} (a file of experiments/studies/)")
    try:
        return load_yaml(path, Study)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error.setting}", error.value, error.allowed) from error
    except yaml.YAMLError as error:
        raise ConfigError(path.name, "(not YAML)", " ".join(str(error).split())) from error


def cells_of(study: Study, cfg: StudyConfig) -> list[Cell]:
    """Every cell of a study at the scale of `cfg`, seed by seed, so that a study cut short has whole comparisons.

    Raises ConfigError where a setting is wrong, the study has no such scale, or two cells would be the same run.
    """
    if cfg.scale not in study.scales:
        raise ConfigError("scale", cfg.scale, f"study {cfg.study} has {', '.join(study.scales)}")
    for text in cfg.overrides:
        if text.partition("=")[0].lstrip("+~") in ("seed", "run_dir"):
            raise ConfigError("overrides", text, "each run's seed and run_dir follow from the study")
    grid = list(_grid(study, study.scales[cfg.scale], cfg))
    composed = compose_each("train", TrainConfig, [overrides for *_, overrides in grid])  # not once a seed
    if not grid:
        raise ConfigError(f"study {cfg.study}", f"scale={cfg.scale}", "skips every cell")
    cells: list[Cell] = []
    runs: dict[Path, Cell] = {}
    for base in composed:
        for axis in study.curve.axes if study.curve else ():
            axis.value(base)
    for seed in study.seeds:
        for (arm, model, data, regime, overrides), base in zip(grid, composed, strict=True):
            whole = (*overrides, f"seed={seed}")
            cell = Cell(len(cells), arm, model, data, regime, seed, whole, replace(base, seed=seed))
            other = runs.setdefault(cell.run_dir, cell)
            if other is not cell:
                raise ConfigError(f"study {cfg.study}", cell.name, f"is the same run as {other.name}")
            cells.append(cell)
    return cells


def _grid(study: Study, scale: Scale, cfg: StudyConfig) -> Iterator[tuple[str, str, str, str, Overrides]]:
    """(arm, model, data, regime, overrides without the seed) of every combination that is not skipped."""
    where = (
        override("runs", cfg.runs),
        override("models", cfg.models),
        f"rollout={cfg.rollout}",
        f"tracking={cfg.tracking}",
        override("tracking.group", cfg.study),
        "tracking.progress=false",
    )
    for model, of_model in scale.models.items():
        for data, of_data in scale.data.items():
            for regime, of_regime in scale.regimes.items():
                for arm, of_arm in study.arms.items():
                    names = {"arm": arm, "model": model, "data": data, "regime": regime}
                    if any(where.matches(names) for where in scale.skip):
                        continue
                    also = [text for rule in scale.also if rule.matches(names) for text in rule.overrides]
                    chosen = (*of_model, *of_data, *of_regime, *of_arm)
                    overrides = (f"scale={cfg.scale}", *where, *chosen, *scale.overrides, *also, *cfg.overrides)
                    yield arm, model, data, regime, overrides


def override(key: str, value: str) -> str:
    """`key=value` for Hydra's command line, quoted where its grammar would take the value for something else.

    >>> override("runs", "/scratch/my runs"), override("runs", "runs")
    ("runs='/scratch/my runs'", 'runs=runs')
    """
    plain = re.fullmatch(r"(?:[A-Za-z/]|\.(?![0-9]))[A-Za-z0-9_./-]*", value) and value.lower() not in WORDS
    return f"{key}={value if plain else quoted_value(value)}"


WORDS = ("true", "false", "null", "nan", "inf")
"""What Hydra's grammar takes for something else than a text."""


def quoted_value(value: str) -> str:
    """In Hydra's quotes, in which a quote, and the backslashes before one, need a backslash.

    >>> print(quoted_value("it's"), quoted_value("a" + chr(92)))
    'it\\'s' 'a\\\\'
    """
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + (chr(92) + "'" if found[2] else ""), value) + "'"


def group_of(text: str) -> str:
    """The setting's first part: model for model=tiny and model.arch.layers=2."""
    return text.partition("=")[0].lstrip("+~").partition(".")[0]


def threads(cfg: StudyConfig) -> dict[str, str]:
    """One thread a process on a CPU: `jobs` processes use the cores better than threads do (docs/small-world.md)."""
    return {"OMP_NUM_THREADS": "1"} if cfg.scale == "cpu" else {}


def check_overrides(where: str, overrides: Overrides) -> None:
    """Raises ConfigError for a text that is not `setting=value`, or that sets what the study itself decides."""
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(where, repr(text), "each override must be setting=value")
        if key in ("seed", "run_dir", "scale"):
            raise ConfigError(where, repr(text), "seeds, run directories and the scale are the study's own")
