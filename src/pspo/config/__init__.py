"""Configuration: groups of settings (`schema.py`), what each program takes of them (`programs.py`), and how they are
composed from `conf/` (`compose.py`)."""

from pspo.config.compose import (
    choices,
    compose,
    compose_each,
    config_hash,
    load_yaml,
    program,
    run_dir_of,
    to_yaml,
    warm_start_dir,
)
from pspo.config.programs import EvalConfig, FetchConfig, PlanConfig, SftConfig, StudyConfig, TrainConfig

__all__ = [
    "EvalConfig",
    "FetchConfig",
    "PlanConfig",
    "SftConfig",
    "StudyConfig",
    "TrainConfig",
    "choices",
    "compose",
    "compose_each",
    "config_hash",
    "load_yaml",
    "program",
    "run_dir_of",
    "to_yaml",
    "warm_start_dir",
]
