"""Configuration: schemas (`schema.py`) and their composition from `conf/` (`compose.py`)."""

from pspo.config.compose import compose, config_hash, load_yaml, program, run_dir_of, to_yaml, warm_start_dir
from pspo.config.schema import EvalConfig, SftConfig, StudyConfig, TrainConfig

__all__ = [
    "EvalConfig",
    "SftConfig",
    "StudyConfig",
    "TrainConfig",
    "compose",
    "config_hash",
    "load_yaml",
    "program",
    "run_dir_of",
    "to_yaml",
    "warm_start_dir",
]
